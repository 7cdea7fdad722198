"""Pages of files whose record is not at hand: what the file itself tells."""

from __future__ import annotations

from dials_diffuse.report import merge_page
from dials_diffuse.report.common_sections import grid_facts, resolution_limit, slices
from dials_diffuse.report.overview_plots import detector_plots, image_plots
from dials_diffuse.report.section import Material, Section, Table


def map_summary(material: Material) -> Section:
    """What the map is."""
    record = material.record
    facts = [
        ("written by", record["program"]),
        *grid_facts(record),
        ("resolution", f"{resolution_limit(record['d_max'])}–{record['d_min']:.2f} Å"),
        ("unique voxels", f"{record['n_voxels']}"),
        ("unit of the intensity", record["units"]),
    ]
    return Section("summary", "Summary", facts=facts)


def statistics(material: Material) -> list:
    """The sections about its statistics, where the file has some."""
    if not material.record["statistics"]:
        return []
    sections = (merge_page.intensities, merge_page.signal, merge_page.coverage, merge_page.errors, merge_page.table)
    return [section(material) for section in sections]


MAP = (
    map_summary,
    slices,
    statistics,
)


def observations(material: Material) -> Section:
    """What the observations are of."""
    record = material.record
    facts = [
        ("written by", record["program"]),
        *grid_facts(record),
        ("resolution", f"{resolution_limit(record['d_max'])}–{record['d_min']:.2f} Å"),
        ("observations", f"{record['n_observations']}"),
        ("unit of the intensity", record["units"]),
    ]
    heads = ["experiment", "identifier", "images", "used", "wavelength (Å)"]
    rows = [
        [
            f"{i}",
            e["identifier"],
            f"{e['image_range'][0]}–{e['image_range'][1]}",
            f"{e['n_images_used']}",
            f"{e['wavelength']:.5g}",
        ]
        for i, e in enumerate(record["experiments"])
    ]
    return Section("summary", "Summary", facts=facts, tables=(Table(heads, rows),))


def images(material: Material) -> Section:
    """Rate and pixels of each image."""
    return Section("images", "Images", plots=image_plots(material.record["overview"]))


def detector(material: Material) -> Section:
    """Maps of the detector."""
    return Section("detector", "Detector", plots=detector_plots(material.record["overview"]))


OBSERVATIONS = (
    observations,
    images,
    detector,
)
