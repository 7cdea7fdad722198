"""The page of a merged map: its statistics against resolution, and its planes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dials_diffuse.report.common_sections import crystals, grid_facts, resolution_limit, slices, symmetry
from dials_diffuse.report.merge import shell_table
from dials_diffuse.report.section import (
    Material,
    Plot,
    Section,
    Table,
    column,
    line,
    middle,
    number,
    resolution_axis,
)


def summary(material: Material) -> Section:
    """What was merged, in a few numbers."""
    record = material.record
    overall = record["statistics"]["overall"]
    return Section(
        "summary",
        "Summary",
        facts=[
            *grid_facts(record),
            ("resolution", f"{resolution_limit(overall['d_max'])}–{number(overall['d_min'], '.2f')} Å"),
            ("observations", f"{record['n_observations']}"),
            (
                "unique voxels",
                f"{overall['n']:.0f} of {overall['possible']:.0f} ({100 * overall['completeness']:.1f} %)",
            ),
            ("CC½, anisotropic", number(overall["cc_half"], ".3f")),
            ("unit of the intensity", record.get("units", "–")),
        ],
    )


def signal(material: Material) -> Section:
    """Half sets and Friedel mates: is there a signal, and how far?"""
    shells = material.record["statistics"]["shells"]
    return Section("signal", "Agreement", plots=(agreement_plot(shells, away_of(material.record)),))


def agreement_plot(shells: list, away: Sequence = ()) -> Plot:
    """CC½, CC*, what chance makes of CC½, and CC of Friedel mates; shells : rows of a record."""
    s, half = middle(shells), column(shells, "cc_half")
    star = [math.sqrt(2 * x / (1 + x)) if x is not None and x > 0 else None for x in half]
    chance = [3 / math.sqrt(n) if n else None for n in column(shells, "n")]
    traces = [
        line("CC½", s, half),
        line("CC* = √(2 CC½/(1 + CC½))", s, star, "lines", line={"dash": "dash"}),
        line("CC of Friedel mates", s, column(shells, "cc_friedel")),
        line("3σ of chance", s, chance, "lines", line={"dash": "dot", "color": "#777"}),
    ]
    if away:
        traces.insert(1, line("CC½ away from Bragg", middle(away), column(away, "cc_half")))
    return Plot(
        "agreement",
        "Correlation of half sets",
        "Correlation of two halves of the data after subtracting what is isotropic. CC* estimates the correlation "
        "with the true map, the highest that a model can reach. Below the dotted line a correlation may be chance.",
        [trace for trace in traces if any(y is not None for y in trace["y"])],
        {"xaxis": resolution_axis(s), "yaxis": {"title": {"text": "correlation"}}},
    )


def away_of(record: dict) -> list:
    """Shells of voxels without lattice points; empty where the record has none."""
    return record["statistics"].get("away_from_bragg") or []


def intensities(material: Material) -> Section:
    """Mean, anisotropic rms and σ against resolution."""
    record = material.record
    return Section(
        "intensity",
        "Intensity",
        plots=(intensity_plot(record["statistics"]["shells"], away_of(record), record.get("units", "a.u.")),),
    )


def intensity_plot(shells: list, away: list, units: str) -> Plot:
    """Mean intensity, rms of its anisotropic part, and mean σ, of all voxels and of those away from lattice points."""
    traces = []
    names = (("mean", "mean"), ("rms_anisotropic", "anisotropic rms"), ("mean_sigma", "mean σ"))
    for i, (key, name) in enumerate(names):
        colour = {"color": ("#0072b2", "#d55e00", "#009e73")[i]}
        if any(value is not None for value in column(shells, key)):
            traces.append(line(f"{name}, all", middle(shells), column(shells, key), line=colour, marker=colour))
        if away:
            style = {"line": {**colour, "dash": "dot"}, "marker": {**colour, "symbol": "circle-open"}}
            traces.append(line(f"{name}, away from Bragg", middle(away), column(away, key), **style))
    return Plot(
        "intensity",
        "Intensity against resolution",
        "Mean over all voxels of a shell, root mean square of what is not isotropic (noise included), and mean σ. "
        "Away from Bragg: voxels that hold no lattice point. Where all is higher, Bragg peaks may have left traces.",
        traces,
        {
            "xaxis": resolution_axis(middle(shells)),
            "yaxis": {"title": {"text": f"intensity ({units})"}, "type": "log"},
        },
    )


def coverage(material: Material) -> Section:
    """Completeness and multiplicity."""
    return Section("coverage", "Coverage", plots=(coverage_plot(material.record["statistics"]["shells"]),))


def coverage_plot(shells: list) -> Plot:
    """Completeness and multiplicity against resolution."""
    s = middle(shells)
    return Plot(
        "coverage",
        "Completeness and multiplicity",
        "Share of the unique voxels that were measured, and how many observations each of them has on the average.",
        [
            line("completeness (%)", s, [None if x is None else 100 * x for x in column(shells, "completeness")]),
            line("multiplicity", s, column(shells, "multiplicity"), yaxis="y2"),
        ],
        {
            "xaxis": resolution_axis(s),
            "yaxis": {"title": {"text": "completeness (%)"}, "range": [0, 103]},
            "yaxis2": {
                "title": {"text": "multiplicity"},
                "overlaying": "y",
                "side": "right",
                "rangemode": "tozero",
                "showgrid": False,
            },
        },
    )


def errors(material: Material) -> Section | None:
    """Do symmetry mates differ as σ says?"""
    shells = material.record["statistics"]["shells"]
    chi2 = column(shells, "chi2_sym")
    if all(x is None for x in chi2):
        return None
    plot = Plot(
        "chi2",
        "χ² of symmetry mates",
        "Squared differences of symmetry mates over the variance that is expected of them: 1 where σ is right, more "
        "where it is too small.",
        [
            line("χ²", middle(shells), chi2),
            line("σ is right", middle(shells), [1] * len(chi2), "lines", line={"dash": "dot"}),
        ],
        {"xaxis": resolution_axis(middle(shells)), "yaxis": {"title": {"text": "χ² per degree of freedom"}}},
    )
    return Section("errors", "Calibration of σ", plots=(plot,))


def table(material: Material) -> Section:
    """All statistics in shells."""
    statistics = material.record["statistics"]
    heads, rows = shell_table([*statistics["shells"], statistics["overall"]])
    return Section(
        "shells",
        "Shells",
        "The last row is for all shells together. compl.: completeness; mult.: multiplicity; CC1/2, CC(F+-): "
        "correlation of half sets and of Friedel mates without what is isotropic.",
        tables=(Table(heads, rows, best=len(rows) - 1),),
    )


def comparison(material: Material) -> Section | None:
    """Agreement with a reference, where there is one."""
    found = material.record.get("comparison")
    if not found:
        return None
    other = found.get("reference") or found.get("map")
    s = middle(found["shells"])
    rows = [*found["shells"], found["overall"]]
    names = (("d_max", ".2f"), ("d_min", ".2f"), ("n", "d"), ("cc", ".3f"), ("slope", ".4g"))
    return Section(
        "comparison",
        f"Agreement with {other}",
        plots=(
            Plot(
                "comparison",
                "Correlation and slope",
                "Of the anisotropic parts of the map and of what it is compared with; a slope of 1 means the same "
                "scale.",
                [
                    line("correlation", s, column(found["shells"], "cc")),
                    line("slope", s, column(found["shells"], "slope"), yaxis="y2"),
                ],
                {
                    "xaxis": resolution_axis(s),
                    "yaxis": {"title": {"text": "correlation"}},
                    "yaxis2": {"title": {"text": "slope"}, "overlaying": "y", "side": "right", "showgrid": False},
                },
            ),
        ),
        tables=(
            Table(
                [name for name, _ in names],
                [[number(row[n], how) for n, how in names] for row in rows],
                best=len(rows) - 1,
            ),
        ),
    )


#: of the page, in its order
SECTIONS = (
    summary,
    slices,
    intensities,
    signal,
    coverage,
    errors,
    table,
    symmetry,
    crystals,
    comparison,
)
