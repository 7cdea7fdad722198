"""The page of an integration: what became of the pixels, image by image and over the detector."""

from __future__ import annotations

from dials_diffuse.report.common_sections import grid_facts, resolution_limit
from dials_diffuse.report.overview_plots import detector_plots, image_plots
from dials_diffuse.report.section import Material, Section, Table, number

_FATES = ("used", "bragg", "outlier", "untrusted", "never_used", "off_grid")


def summary(material: Material) -> Section:
    """What was integrated."""
    record = material.record
    reflections = record.get("reflections")
    facts = [
        *grid_facts(record),
        ("resolution", f"{resolution_limit(record['d_max'])}–{record['d_min']:.2f} Å"),
        ("images used", f"{record['n_images_used']}"),
        ("observations", f"{record['n_observations']}"),
    ]
    if reflections:
        facts.append(("reflections used", f"{reflections['used']}"))
    return Section("summary", "Summary", facts=facts)


def images(material: Material) -> Section | None:
    """Flux, rate, pixels, and what was left out of each image."""
    overview = material.record.get("overview")
    if not overview:
        return None
    plots = image_plots(overview, material.record["experiments"])
    return Section("images", "Images", plots=plots, tables=_left_out(material.record))


def _left_out(record: dict) -> tuple:
    rows = [
        [f"{i}", f"{item['image']}", item["reason"]]
        for i, e in enumerate(record["experiments"])
        for item in (e.get("left_out") or [])[:50]
    ]
    return (Table(["experiment", "image", "why"], rows, "Images that were left out"),) if rows else ()


def detector(material: Material) -> Section | None:
    """Maps of the detector."""
    overview = material.record.get("overview")
    return Section("detector", "Detector", plots=detector_plots(overview)) if overview else None


def fates(material: Material) -> Section:
    """What became of the pixels."""
    rows = []
    for i, e in enumerate(material.record["experiments"]):
        total = sum(e[name] for name in _FATES) or 1
        rows.append([f"{i}", f"{e['n_images']}", *(f"{100 * e[name] / total:.2f} %" for name in _FATES)])
    heads = ["experiment", "images", "used", "Bragg mask", "outliers", "untrusted", "masked always", "off the grid"]
    return Section(
        "fates",
        "What became of the pixels",
        "Shares of all pixels of the images used. Masked always: bad pixels, gaps, shadows and what lies outside "
        "the limits of resolution.",
        tables=(Table(heads, rows),),
    )


def masks(material: Material) -> Section | None:
    """Ice rings and Bragg masks that follow the peaks."""
    rings, bragg = [], []
    for i, e in enumerate(material.record["experiments"]):
        rings += [
            [f"{i}", number(r["d"], ".3f"), "yes" if r["ice"] else "no", number(r["excess"], ".3f")]
            for r in e.get("ice_rings") or []
        ]
        bragg += [
            [
                f"{i}",
                f"{m['reflections']}",
                f"{m['unmasked']}",
                number(m["leak_mean"], ".3f"),
                number(m["leak_95"], ".3f"),
            ]
            for m in e.get("bragg_masks") or []
        ]
    tables = []
    if rings:
        tables.append(Table(["experiment", "d (Å)", "ice", "excess"], rings, "Rings that are masked"))
    if bragg:
        heads = ["experiment", "reflections", "too weak to be masked", "mean leak", "95 % leak less than"]
        tables.append(Table(heads, bragg, "Masks that follow the Bragg peaks; leaks over the diffuse rms"))
    return Section("masks", "Masks", tables=tuple(tables))


SECTIONS = (
    summary,
    images,
    detector,
    fates,
    masks,
)
