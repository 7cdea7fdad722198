"""The pages of a model's map and of a simulation: what was computed, and its planes."""

from __future__ import annotations

from dials_diffuse.report.common_sections import grid_facts, slices
from dials_diffuse.report.merge_page import comparison
from dials_diffuse.report.section import Material, Section, Table, number


def summary(material: Material) -> Section:
    """The model and its map."""
    record = material.record
    facts = [
        *grid_facts(record),
        ("resolution", f"{record['d_min']:.2f} Å"),
        ("voxels", "mean over each voxel" if record["voxels"] == "mean" else "at their centres"),
        ("mean intensity", number(record["mean_intensity"], ".5g")),
    ]
    return Section("summary", "Summary", facts=facts)


def model(material: Material) -> Section:
    """The parameters of the model."""
    return Section("model", "Model", tables=(Table(["parameter", "value"], parameter_rows(material.record["model"])),))


def parameter_rows(record: dict, before: str = "") -> list:
    """Parameters of a model's record as rows of text; those that are not set are left out."""
    rows = []
    for name, value in record.items():
        if isinstance(value, dict):
            rows += parameter_rows(value, f"{before}{name}.")
        elif value is not None and value != []:
            rows.append([f"{before}{name}", _text(value)])
    return rows


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value[:12]) + (" …" if len(value) > 12 else "")
    return str(value)


SECTIONS = (
    summary,
    slices,
    model,
    comparison,
)


def simulation(material: Material) -> Section:
    """What was simulated."""
    record = material.record
    heads = ["images", "number", "mean diffuse", "mean background", "mean Bragg", "highest", "saturated"]
    rows = [
        [
            sweep["template"],
            f"{sweep['n_images']}",
            number(sweep["mean_diffuse"], ".4g"),
            number(sweep["mean_background"], ".4g"),
            number(sweep["mean_bragg"], ".4g"),
            f"{sweep['highest']}",
            f"{sweep['saturated']}",
        ]
        for sweep in record["sweeps"]
    ]
    return Section("sweeps", "Images", "Counts of a pixel.", tables=(Table(heads, rows),))


SIMULATION = (
    simulation,
    slices,
    model,
)
