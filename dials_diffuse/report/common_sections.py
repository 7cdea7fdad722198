"""Sections that the pages of several programs have."""

from __future__ import annotations

from dials_diffuse.report.section import SIGNED, Material, Plot, Section, Table, number
from dials_diffuse.report.slices import browser_of_map


def grid_facts(record: dict) -> list:
    """Inputs, symmetry, cell and grid of any record that has them."""
    facts = [("input", path) for path in record.get("inputs", ())]
    facts += [("space group", record["space_group"])]
    facts += [("unit cell", ", ".join(f"{x:.6g}" for x in record["unit_cell"]))]
    return [*facts, ("voxels per reciprocal cell", "×".join(map(str, record["subdivide"])))]


def resolution_limit(d) -> str:
    """A limit in Å as text; None: there is none."""
    return "∞" if d is None else f"{d:.2f}"


def slices(material: Material) -> Section | None:
    """The slice browser of the map."""
    if material.map is None or not len(material.map.index):
        return None
    return Section("slices", "Planes of the map", browser=browser_of_map(material.map, material.fit))


def symmetry(material: Material) -> Section | None:
    """The Laue group that the data have."""
    found = material.record.get("symmetry")
    if not found or not found["operators"]:
        return None
    operators = [
        [
            item["operator"],
            "yes" if item["declared"] else "no",
            f"{item['n_pairs']}",
            number(item["cc"], ".3f"),
            number(item["cc_expected"], ".3f"),
            item["verdict"],
        ]
        for item in found["operators"]
    ]
    groups = [
        [item["laue_group"], f"{item['n_operators']}", number(item["likelihood"], ".3f"), item["verdict"]]
        for item in found["groups"][:6]
    ]
    likeliest = found["recommended"]["laue_group"] if found["recommended"] else "not decided"
    return Section(
        "symmetry",
        "Symmetry",
        f"Laue group as given: {found['declared']['laue_group']}; likeliest: {likeliest}. Expected: the correlation "
        "of mates if the rotation holds.",
        tables=(
            Table(["rotation", "in the group", "pairs", "CC", "expected", "verdict"], operators),
            Table(["Laue group", "rotations", "likelihood", "verdict"], groups),
        ),
    )


def crystals(material: Material) -> Section | None:
    """Which crystals were kept."""
    found = material.record.get("crystals")
    if not found:
        return None
    rows = [
        [
            f"{e['crystal']}",
            f"{e['file']} {e['experiment']}",
            number(e["correlation"], ".3f"),
            number(e["esd"], ".3f"),
            e["operator"] or "",
            "kept" if e["kept"] else "left out",
            e["reason"],
        ]
        for e in found["experiments"]
    ]
    heads = ["crystal", "file", "CC", "e.s.d.", "operator", "decision", "why"]
    plots: tuple = ()
    pairs = found.get("pairs")
    if pairs and len(pairs["crystals"]) > 2:
        trace = {
            "type": "heatmap",
            "x": [str(n) for n in pairs["crystals"]],
            "y": [str(n) for n in pairs["crystals"]],
            "z": pairs["correlation"],
            "colorscale": SIGNED,
            "zmin": -1,
            "zmax": 1,
        }
        layout = {"xaxis": {"title": {"text": "crystal"}, "type": "category"}, "yaxis": {"type": "category"}}
        text = "Of the anisotropic parts of the crystals' maps, corrected for noise; those of one structure are near 1."
        plots = (Plot("crystals", "Correlation of crystals", text, [trace], layout, square=True),)
    return Section("crystals", "Crystals", plots=plots, tables=(Table(heads, rows),))
