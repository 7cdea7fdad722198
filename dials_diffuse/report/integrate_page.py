"""The page of an integration: what became of the pixels, image by image and over the detector."""

from __future__ import annotations

from dials_diffuse.report.common_sections import grid_facts, resolution_limit
from dials_diffuse.report.overview_plots import detector_plots, image_plots
from dials_diffuse.report.section import Material, Section, Table, number
from dials_diffuse.report.tables import Column, cells, heads

#: rows : (number of the experiment, record of its peaks)
_PEAKS = (
    Column("experiment", 10, "d", lambda row: row[0]),
    Column("images", 8, "d", lambda row: row[1]["n_images"]),
    Column("peaks", 8, "d", lambda row: row[1]["n_peaks"]),
    Column("predicted", 10, ".1%", lambda row: row[1]["share"]),
    Column("chance", 10, ".1%", lambda row: row[1]["chance"]),
    Column("pixels", 8, ".2f", lambda row: row[1]["offset"]),
    Column("verdict", 10, "", lambda row: row[1]["verdict"]),
)

_FATES = ("used", "bragg", "outlier", "untrusted", "never_used", "off_grid", "unpredicted")


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
        [f"{e['experiment']}", f"{item['image']}", item["reason"]]
        for e in record["experiments"]
        for item in (e.get("left_out") or [])[:50]
    ]
    return (Table(["experiment", "image", "why"], rows, "Images that were left out"),) if rows else ()


def peaks(material: Material) -> Section | None:
    """Are the images those of the models?"""
    checks = [(e["experiment"], e["peaks"]) for e in material.record["experiments"] if e.get("peaks")]
    if not checks:
        return None
    return Section(
        "peaks",
        "Peaks where spots are predicted",
        "Peaks of some images. Chance is taken off their share; it says how many places beside the peaks have a "
        "predicted spot. Pixels: what all predicted places are off by.",
        lines=[f"Experiment {number}: {check['words']}" for number, check in checks if check["words"]],
        tables=(Table(heads(_PEAKS), cells(_PEAKS, checks)),),
    )


def detector(material: Material) -> Section | None:
    """Maps of the detector."""
    overview = material.record.get("overview")
    return Section("detector", "Detector", plots=detector_plots(overview)) if overview else None


def fates(material: Material) -> Section:
    """What became of the pixels."""
    rows = []
    for e in material.record["experiments"]:
        counts = [e.get(name, 0) for name in _FATES]  # records of former versions have no masks of peaks not predicted
        total = sum(counts) or 1
        rows.append([f"{e['experiment']}", f"{e['n_images']}", *(f"{100 * n / total:.2f} %" for n in counts)])
    names = ["experiment", "images", "used", "Bragg mask", "outliers", "untrusted", "masked always", "off the grid"]
    names.append("peaks not predicted")
    return Section(
        "fates",
        "What became of the pixels",
        "Shares of all pixels of the images used. Masked always: bad pixels, gaps, shadows and what lies outside "
        "the limits of resolution.",
        tables=(Table(names, rows),),
    )


def masks(material: Material) -> Section | None:
    """Ice rings, peaks that no crystal predicts, and Bragg masks that follow the peaks."""
    rings, bragg, strange = [], [], []
    for e in material.record["experiments"]:
        i = f"{e['experiment']}"
        rings += [[i, number(r["d"], ".3f"), r["ice"], number(r["excess"], ".3f")] for r in e.get("ice_rings") or []]
        bragg += [
            [
                i,
                f"{m['reflections']}",
                f"{m['unmasked']}",
                number(m["leak_mean"], ".3f"),
                number(m["leak_95"], ".3f"),
            ]
            for m in e.get("bragg_masks") or []
        ]
        other = e.get("unpredicted_peaks")
        if other and other["peaks"]:
            kinds = ", ".join(f"{kind} {n}" for kind, n in other["kinds"].items())
            d = f"{number(other['d_max'], '.1f')}–{number(other['d_min'], '.1f')}"
            turn = number(other["turn"], ".1f")
            strange.append(
                [i, f"{other['peaks']}", f"{other['images']}", d, f"{100 * other['pixels']:.2f} %", kinds, turn]
            )
    tables = []
    if strange:
        names = ["experiment", "peaks", "images", "d (Å)", "pixels masked", "probably", "turn of the lattice (°)"]
        tables.append(Table(names, strange, "Peaks that no crystal predicts"))
    if rings:
        tables.append(Table(["experiment", "d (Å)", "ice", "excess"], rings, "Rings that are masked"))
    if bragg:
        names = ["experiment", "reflections", "too weak to be masked", "mean leak", "95 % leak less than"]
        tables.append(Table(names, bragg, "Masks that follow the Bragg peaks; leaks over the diffuse rms"))
    return Section("masks", "Masks", tables=tuple(tables))


SECTIONS = (
    summary,
    images,
    peaks,
    detector,
    fates,
    masks,
)
