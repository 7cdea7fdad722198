"""A whole run: its verdict as text, and its page. Both are made of the record and can be made again from it."""

from __future__ import annotations

from pathlib import Path

from dials_diffuse.report.section import Material, Plot, Section, Table, column, line, middle, resolution_axis
from dials_diffuse.report.tables import Column, cells, heads, text_table

_MEANING = {
    "good": "anisotropic diffuse signal, with good statistics",
    "weak": "anisotropic diffuse signal, but little of it or to low resolution only",
    "none": "no significant anisotropic diffuse signal",
    "doubtful": "something contradicts the models; look before using the map",
}


def _of(name: str):
    return lambda row: float("nan") if row[name] is None else row[name]


#: rows : shells of ``statistics`` of the record
_SHELLS = tuple(
    Column(head, width, how, _of(name))
    for name, head, width, how in (
        ("d_max", "d_max", 8, ".2f"),
        ("d_min", "d_min", 8, ".2f"),
        ("n", "voxels", 9, ".0f"),
        ("completeness", "compl.", 8, ".3f"),
        ("multiplicity", "mult.", 8, ".1f"),
        ("mean", "<I>", 11, ".4g"),
        ("rms_anisotropic", "rms(aniso)", 11, ".4g"),
        ("cc_half", "CC1/2", 7, ".3f"),
        ("cc_friedel", "CC(F+-)", 9, ".3f"),
    )
)

#: rows : steps of the record
_STEPS = (
    Column("step", -12, "", lambda row: row["name"]),
    Column("s", 8, ".1f", lambda row: row["seconds"]),
    Column("CPU s", 8, ".1f", lambda row: row["cpu_seconds"]),
    Column("GB", 7, ".2f", lambda row: row["peak_memory"] / 1e9),
    Column("", -1, "", lambda row: "  " + ("" if row["repeated"] else "done before")),
)


def process_text(record: dict) -> str:
    """The verdict and what it rests on, for the log."""
    lines = [f"Verdict: {record['verdict']} ({_MEANING[record['verdict']]})"]
    lines += [f"  {text}" for text in record["reasons"]]
    if record["limits"]:
        lines.append(f"  What limits it: {', '.join(record['limits'])}")
    fit = record["fit"]
    if fit is not None:
        lines.append(f"  Best of {len(fit['models'])} models: {_fit_in_words(fit)}")
    lines += ["", text_table(_STEPS, record["steps"])]
    return "\n".join(lines)


def _fit_in_words(fit: dict) -> str:
    values = ", ".join(
        f"{name} = {x['value']:.3g} ± {float('nan') if x['esd'] is None else x['esd']:.2g} {x['unit']}"
        for name, x in list(fit["parameters"].items())[:6]
        if x["value"] is not None
    )
    free = fit["cc_anisotropic_free"]
    return f"{fit['best']}: {values}; free correlation {'unknown' if free is None else format(free, '.3f')}"


def summary(material: Material) -> Section:
    """The verdict and what it rests on."""
    record = material.record
    fit, absolute = record["fit"], record["absolute_scale"]
    facts = [
        ("verdict", f"{record['verdict']}: {_MEANING[record['verdict']]}"),
        *(("why", text) for text in record["reasons"]),
        ("what limits it", ", ".join(record["limits"]) or "nothing in particular"),
        ("space group", record["space_group"]),
        ("unit cell", ", ".join(f"{x:.2f}" for x in record["unit_cell"])),
        ("voxels per lattice step", " × ".join(map(str, record["subdivide"]))),
        ("signal to", "-" if record["d_min"] is None else f"{record['d_min']:.2f} Å"),
        ("map to", f"{record['d_min_map']:.2f} Å"),
        ("images used", record["n_images_used"]),
    ]
    if absolute:
        facts.append(("electrons² per unit", f"{absolute['k']:.4g} ± {absolute['esd']:.2g} ({absolute['method']})"))
    if fit:
        facts.append(("best model", _fit_in_words(fit)))
    return Section("summary", "Verdict", facts=facts)


def signal(material: Material) -> Section:
    """Correlation of half sets against resolution, with what chance makes."""
    shells = [shell for shell in material.record["signal"]["shells"] if shell["cc_half"] is not None]
    s = middle(shells)
    chance = [3 * shell["cc_half"] / shell["z"] if shell["z"] else None for shell in shells]
    plot = Plot(
        "signal",
        "Signal of the map",
        "Correlation of half sets of what varies from voxel to voxel, away from Bragg positions, without what is "
        "smooth in direction. Below the dotted line it may be chance.",
        [
            line("half sets", s, column(shells, "cc_half")),
            line("three standard deviations of chance", s, chance, "lines", line={"dash": "dot", "color": "#777"}),
        ],
        {"xaxis": resolution_axis(s), "yaxis": {"title": {"text": "correlation"}}},
    )
    return Section("signal", "Signal", plots=(plot,))


def shells(material: Material) -> Section:
    """The table of the map."""
    rows = cells(_SHELLS, material.record["statistics"]["shells"])
    note = "CC1/2: correlation of half sets without what is isotropic. CC(F+-): that of Friedel mates."
    return Section("shells", "Shells", note, tables=(Table(heads(_SHELLS), rows),))


def choices(material: Material) -> Section:
    """What was decided from the data, and how long the steps took."""
    record = material.record
    decided = [[item["name"], item["value"], item["reason"]] for item in record["choices"]]
    outputs = [[Path(item["path"]).name, item["kind"]] for item in record["outputs"]]
    return Section(
        "run",
        "Run",
        tables=(
            Table(["parameter", "value", "why"], decided, "Decided from the data"),
            Table(heads(_STEPS), cells(_STEPS, record["steps"]), "Steps"),
            Table(["file", "what it is"], outputs, "Files"),
        ),
    )


SECTIONS = (
    summary,
    signal,
    shells,
    choices,
)
