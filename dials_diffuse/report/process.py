"""A whole run: its verdict as text, and its page. Both are made of the record and can be made again from it."""

from __future__ import annotations

from pathlib import Path

from dials_diffuse.report.figures import new_figure
from dials_diffuse.report.page import embedded, write_page
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


def write_process_page(path, record: dict) -> None:
    """Write the report of a run.

    record : as in ``output.json``; pictures among its outputs are put into the page

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    fit, absolute = record["fit"], record["absolute_scale"]
    summary = [
        ("verdict", f"{record['verdict']}: {_MEANING[record['verdict']]}"),
        *(("why", text) for text in record["reasons"]),
        ("what limits it", ", ".join(record["limits"]) or "nothing in particular"),
        ("space group", record["space_group"]),
        ("unit cell", ", ".join(f"{x:.2f}" for x in record["unit_cell"])),
        ("voxels per lattice step", " x ".join(map(str, record["subdivide"]))),
        ("signal to", "-" if record["d_min"] is None else f"{record['d_min']:.2f} Å"),
        ("map to", f"{record['d_min_map']:.2f} Å"),
        ("images used", record["n_images_used"]),
    ]
    if absolute:
        summary.append(("electrons² per unit", f"{absolute['k']:.4g} ± {absolute['esd']:.2g} ({absolute['method']})"))
    if fit:
        summary.append(("best model", _fit_in_words(fit)))
    pictures = [
        (embedded(item["path"]), Path(item["path"]).name)
        for item in record["outputs"]
        if item["kind"] == "picture" and Path(item["path"]).is_file()
    ]
    write_page(
        path,
        "process.html",
        title="Diffuse scattering: " + record["verdict"],
        summary=summary,
        shells={"heads": heads(_SHELLS), "rows": cells(_SHELLS, record["statistics"]["shells"])},
        steps={"heads": heads(_STEPS), "rows": cells(_STEPS, record["steps"])},
        choices=[[item["name"], item["value"], item["reason"]] for item in record["choices"]],
        signal=embedded(_signal_figure(record)),
        pictures=pictures,
        warnings=record["warnings"],
        outputs=[[Path(item["path"]).name, item["kind"]] for item in record["outputs"]],
        parameters=record["parameters"],
        version=record["version"],
        dials_version=record["dials_version"],
    )


def _signal_figure(record: dict):
    """Correlation of half sets against resolution, with what chance makes."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    shells = [shell for shell in record["signal"]["shells"] if shell["cc_half"] is not None]
    s = [1 / shell["d_min"] for shell in shells]
    axes.plot(s, [shell["cc_half"] for shell in shells], "o-", label="half sets, away from Bragg positions")
    chance = [3 * shell["cc_half"] / shell["z"] if shell["z"] else float("nan") for shell in shells]
    axes.plot(s, chance, ":", color="0.4", label="three standard deviations of chance")
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set_xlabel("|s| (1/Å)")
    axes.set_ylabel("correlation")
    axes.set_ylim(min([0, *(shell["cc_half"] for shell in shells)]) - 0.05, 1.02)
    top = axes.secondary_xaxis("top", functions=(lambda x: x, lambda x: x))
    ticks = [1 / d for d in (10, 5, 4, 3, 2.5, 2, 1.8, 1.6, 1.4, 1.2, 1) if s and s[0] / 2 < 1 / d <= s[-1] * 1.02]
    top.set_xticks(ticks, [f"{1 / x:g}" for x in ticks])
    top.set_xlabel("d (Å)")
    axes.legend(frameon=False)
    return figure
