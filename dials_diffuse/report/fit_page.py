"""The page of a fit: models, their parameters and errors, agreement, planes, and what the covariances look like."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.fitting.result import Estimate
from dials_diffuse.report.common_sections import grid_facts, slices
from dials_diffuse.report.fit import format_estimate
from dials_diffuse.report.fit_matrices import correlation_plots, kernel_plots
from dials_diffuse.report.fit_phonons import phonons
from dials_diffuse.report.section import (
    COLOURS,
    SIGNED,
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

#: a table of correlations has at most so many parameters, of more there is a picture
_TABLE = 8


def summary(material: Material) -> Section:
    """What was fitted to what."""
    record = material.record
    best = _best(record)
    n = best["statistics"]["n"], best["statistics"]["free"]["n"]
    facts = [
        *grid_facts(record),
        ("resolution", f"{record['d_max']:.2f}–{record['d_min']:.2f} Å"),
        ("voxels", f"{n[0]} fitted, {n[1]} free"),
        ("unit of the map", record["units"]),
        ("best model", best["model"]),
    ]
    return Section("summary", "Summary", facts=facts)


def _best(record: dict) -> dict:
    return next(model for model in record["models"] if model["model"] == record["best"])


def comparison(material: Material) -> Section:
    """All models beside each other."""
    record = material.record
    models, choice = record["models"], record["choice"]
    aic, bic = (min(_known(column(models, key)), default=math.nan) for key in ("aic", "bic"))
    names = (("cc_anisotropic", ".3f"), ("cc", ".3f"), ("r", ".3f"), ("chi2", ".4g"))
    rows = []
    for model in models:
        statistics = model["statistics"]
        row = [model["model"]]
        for key, how in names:
            row += [number(statistics[key], how), number(statistics["free"][key], how)]
        row += [
            number(_less(model["aic"], aic), ".5g"),
            number(_less(model["bic"], bic), ".5g"),
            f"{model['n_parameters']}",
        ]
        rows.append(row)
    heads = ["model", "CC(aniso)", "free", "CC", "free", "R", "free", "χ²", "free", "ΔAIC", "ΔBIC", "parameters"]
    if choice["criterion"] == "free" and len(models) > 1:
        heads.append("below the highest")
        for row, item in zip(rows, choice["models"]):
            row.append(f"{number(item['below_highest'], '.4f')} ± {number(item['error'], '.4f')}")
    criterion = "free voxels" if choice["criterion"] == "free" else "BIC"
    best = next(i for i, model in enumerate(models) if model["model"] == record["best"])
    centres = [model["model"] for model in models if model["voxels"] == "centre"]
    note = f" Not averaged over voxels, but taken at their centres: {', '.join(centres)}." if centres else ""
    return Section(
        "models",
        "Models",
        f"The best model by {criterion}: {record['best']}. CC(aniso): correlation of the anisotropic parts, which "
        "are what is left of data and model after subtracting a straight line in |s| in each thin shell. The column "
        f"“free” after a number is the same number for the free voxels. ΔAIC, ΔBIC: above the lowest.{note}",
        plots=(agreement_plot(models),),
        tables=(Table(heads, rows, best=best),),
    )


def _known(values) -> list:
    return [x for x in values if x is not None]


def _less(value, other):
    return None if value is None else value - other


def agreement_plot(models: list) -> Plot:
    """Correlations of all models in shells, with the ceiling that the noise leaves."""
    traces = []
    s: list = []
    for i, model in enumerate(models):
        shells = model["statistics"]["shells"]
        s = middle(shells)
        colour = {"color": COLOURS[i % len(COLOURS)]}
        traces.append(line(model["model"], s, column(shells, "cc_anisotropic"), "lines", line=colour))
        free = [row["free"]["cc_anisotropic"] for row in shells]
        traces.append(line(f"{model['model']}, free", s, free, "markers", marker=colour))
    star = column(models[0]["statistics"]["shells"], "cc_star")
    if _known(star):
        traces.append(line("CC*", s, star, "lines", line={"dash": "dash", "color": "#777"}))
    return Plot(
        "agreement",
        "Correlation of the anisotropic part",
        "In shells of resolution: voxels that were fitted (lines), free voxels (points), and the ceiling that the "
        "noise of the half sets leaves (CC*).",
        traces,
        {"xaxis": resolution_axis(s), "yaxis": {"title": {"text": "correlation"}}},
    )


def models(material: Material) -> list:
    """A section of each model."""
    return [_model(i, model, material) for i, model in enumerate(material.record["models"])]


def _model(i: int, model: dict, material: Material) -> Section:
    tables = [Table(["parameter", "fitted", "value", "e.s.d.", "unit"], _parameters(model))]
    plots = [*_profiles(i, model), *_displacements(i, model)]
    order, correlations = model["identifiability"]["order"], model["identifiability"]["correlations"]
    if 1 < len(order) <= _TABLE:
        rows = [[name, *(number(x, ".3f") for x in row)] for name, row in zip(order, correlations)]
        tables.append(Table(["", *order], rows, "Correlations of the errors"))
    elif len(order) > _TABLE:
        plots.append(_correlations(i, order, correlations))
    pairs = model.get("pairs")
    if pairs:
        plots += correlation_plots(material, pairs)
    plots += kernel_plots(material, i, model.get("details") or [])
    compared = [
        [
            d["model"],
            number(d["u_model"], ".3f"),
            number(d["u_structure"], ".3f"),
            number(d["correlation"], ".3f"),
            f"{d['n_exceeded']} of {d['n_atoms']}",
        ]
        for d in model["displacements"]
    ]
    if compared:
        heads = ["", "mean U of the model (Å²)", "of the atoms", "correlation", "atoms that it exceeds"]
        tables.append(Table(heads, compared, "Displacements against those of the coordinate file"))
    tables.append(_shells(model["statistics"]["shells"]))
    warnings = [text.removeprefix(f"{model['model']}: ") for text in model["warnings"]]
    return Section(
        f"model-{i}",
        model["model"],
        warnings=warnings,
        lines=_pair_lines(pairs),
        plots=tuple(plots),
        tables=tuple(tables),
    )


def _parameters(model: dict) -> list:
    """Rows of the parameters and the scale: value and error with the digits that the error leaves, and both in full."""
    rows = []
    for name, found in [*model["parameters"].items(), ("scale", model["scale"])]:
        value, esd = (math.nan if found[key] is None else found[key] for key in ("value", "esd"))
        text = format_estimate(Estimate(name, found["unit"], value, esd, found.get("at_bound", False)))
        rows.append([name, text.partition(" = ")[2], number(value, ".8g"), number(esd, ".2g"), found["unit"]])
    for name, orders in zip(model["model"].split("+"), model.get("orders", ())):
        rows.append([f"{name.split('/')[0]}.orders", f"{orders}", "", "", ""])
    return rows


def _pair_lines(pairs: dict | None) -> list:
    if not pairs:
        return []
    lines = [f"strength of the prior = {pairs['strength']:g}"]
    if "n_effective" in pairs:
        lines.append(
            f"{pairs['n_effective']:.1f} of {len(pairs['errors'])} covariances come from the data, not the prior"
        )
    return lines


def _shells(shells: list) -> Table:
    heads = ["d_max", "d_min", "n", "CC", "CC(aniso)", "n free", "free CC(aniso)", "CC*", "χ²"]
    rows = [
        [
            number(row["d_max"], ".2f"),
            number(row["d_min"], ".2f"),
            f"{row['n']}",
            number(row["cc"], ".3f"),
            number(row["cc_anisotropic"], ".3f"),
            f"{row['free']['n']}",
            number(row["free"]["cc_anisotropic"], ".3f"),
            number(row["cc_star"], ".3f"),
            number(row["chi2"], ".4g"),
        ]
        for row in shells
    ]
    return Table(heads, rows, "Shells")


def _profiles(i: int, model: dict) -> list:
    traces = []
    for name, found in model["parameters"].items():
        if found.get("profile") and found["esd"]:
            x = [(value - found["value"]) / found["esd"] for value in found["profile"]["value"]]
            order = np.argsort([*x, 0.0])
            y = [*found["profile"]["rise"], 0.0]
            traces.append(line(name, [[*x, 0.0][k] for k in order], [y[k] for k in order]))
    if not traces:
        return []
    t = np.linspace(-2, 2, 41)
    traces.append(line("if the e.s.d. says all", t, t**2, "lines", line={"dash": "dot", "color": "#777"}))
    return [
        Plot(
            f"profile-{i}",
            "Rise of χ² with one parameter held",
            "In units of the reduced χ², the other parameters fitted. Where a curve leaves the dotted one, the "
            "e.s.d. does not say all.",
            traces,
            {"xaxis": {"title": {"text": "(value − fitted) / e.s.d."}}, "yaxis": {"title": {"text": "rise"}}},
        )
    ]


def _displacements(i: int, model: dict) -> list:
    """U of the model beside U of the atoms, group by group."""
    plots = []
    for k, found in enumerate(model["displacements"]):
        groups = found.get("groups") or []
        if not groups:
            continue
        names, x = column(groups, "name"), list(range(len(groups)))
        every = max(1, len(groups) // 12)
        plots.append(
            Plot(
                f"displacements-{i}-{k}",
                f"Displacements of {found['model']}",
                "Mean square displacement along one direction: of the atoms in the coordinate file, and what of it "
                "the model explains. The model must not exceed the atoms.",
                [
                    line("atoms (B/8π²)", x, column(groups, "u_structure"), "lines", text=names, hoverinfo="text+y"),
                    line("model", x, column(groups, "u_model"), "lines", text=names, hoverinfo="text+y"),
                ],
                {
                    "xaxis": {"tickvals": x[::every], "ticktext": names[::every]},
                    "yaxis": {"title": {"text": "U (Å²)"}, "rangemode": "tozero"},
                },
            )
        )
    return plots


def _correlations(i: int, order: list, correlations: list) -> Plot:
    trace = {
        "type": "heatmap",
        "x": order,
        "y": order,
        "z": correlations,
        "colorscale": SIGNED,
        "zmin": -1,
        "zmax": 1,
    }
    layout = {"yaxis": {"autorange": "reversed", "type": "category"}, "xaxis": {"type": "category"}}
    text = "Near 1 or −1 the data determine only a combination of two parameters."
    return Plot(f"correlations-{i}", "Correlations of the errors", text, [trace], layout, square=True)


def settings(material: Material) -> Section | None:
    """Which setting of the map agrees with the structure."""
    found = material.record.get("indexing")
    if not found or len(found) < 2:
        return None
    rows = [[item["operator"], number(item["cc_anisotropic"], ".3f")] for item in found]
    return Section(
        "settings", "Settings of the map", tables=(Table(["operator", "CC(aniso) with the first model"], rows),)
    )


SECTIONS = (
    summary,
    comparison,
    slices,
    models,
    phonons,
    settings,
)
