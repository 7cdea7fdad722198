"""The page of scaled observations: the terms of the scale model, images, errors, and the absolute scale."""

from __future__ import annotations

from dials_diffuse.report.common_sections import crystals, grid_facts, symmetry
from dials_diffuse.report.overview_plots import detector_plots, image_plots
from dials_diffuse.report.section import COLOURS, SIGNED, Material, Plot, Section, Table, line, number, resolution_axis

#: sweeps that are drawn
_SWEEPS = 20

#: how an image that does not belong is drawn
_MARKS = {"blank": "triangle-down", "scale": "triangle-up", "ring": "circle-open", "region": "square-open"}


def summary(material: Material) -> Section:
    """What was scaled, and to which scale."""
    record, absolute = material.record, material.record["absolute_scale"]
    facts = [
        *grid_facts(record),
        ("observations", f"{record['n_observations']}, of which {record['n_outliers']} are outliers and left out"),
        ("terms used", ", ".join(record["terms"]["used"]) or "none"),
        ("error of the scale", f"{100 * record['scale_error']['rms']:.2f} %" if "scale_error" in record else "–"),
    ]
    if absolute:
        facts.append(
            (
                "absolute scale",
                f"1 unit of the model is {absolute['k']:.4g} ± {absolute['esd']:.2g} electrons² per unit cell "
                f"({absolute['method']})",
            )
        )
        facts.append(("contents of the cell", absolute["contents"]))
    return Section("summary", "Summary", facts=facts)


def terms(material: Material) -> Section:
    """Tests of the terms, and the drift beside the scales of dials.scale."""
    record = material.record
    rows = [
        [
            test["label"],
            number(test["gain"], ".4f"),
            number(test["esd"], ".4f"),
            f"{test['n_parameters']}",
            number(test["determined"], ".1f"),
            "yes" if test["kept"] else "no",
        ]
        for test in record["terms"]["tests"]
    ]
    heads = ["term", "fall of χ² per held-out observation", "e.s.d.", "parameters", "determined", "used"]
    return Section(
        "terms",
        "Scale model",
        "A term is used where voxels that were kept out of the fit are predicted no worse with it.",
        plots=(
            _drift(record["sweeps"]),
            *_offsets(record["sweeps"]),
            *_absorption(record["sweeps"]),
            *_response(record),
        ),
        tables=(Table(heads, rows),),
    )


def _drift(sweeps: list) -> Plot:
    traces = []
    for i, sweep in enumerate(sweeps[:_SWEEPS]):
        colour = {"color": COLOURS[i % len(COLOURS)]}
        mean = sum(sweep["b"]) / len(sweep["b"])
        traces.append(line(f"b of sweep {i}", sweep["angle"], [b / mean for b in sweep["b"]], "lines", line=colour))
        other = sweep.get("dials_scale")
        if other:
            label = f"dials.scale, correlation {number(other['correlation'], '.2f')}"
            values = other["inverse_scale_factor"]
            traces.append(line(label, sweep["angle"], values, "lines", line={**colour, "dash": "dash"}))
    return Plot(
        "drift",
        "Scale against rotation",
        "Term b, what multiplies the scattering of the crystal, over its mean; dashed: the factor that dials.scale "
        "found on the Bragg reflections.",
        traces,
        {"xaxis": {"title": {"text": "rotation (°)"}}, "yaxis": {"title": {"text": "scale / mean"}}},
    )


def _offsets(sweeps: list) -> tuple:
    traces = []
    for i, sweep in enumerate(sweeps[:_SWEEPS]):
        if sweep.get("c"):
            rows = sweep["c"]["offset"]
            mean = [sum(column) / len(rows) for column in zip(*rows)]
            traces.append(line(f"sweep {i}", sweep["c"]["s"], mean, "lines"))
    if not traces:
        return ()
    return (
        Plot(
            "offset",
            "What is added, against resolution",
            "Term c, mean over the rotation: scattering that differs from sweep to sweep and is not the crystal's.",
            traces,
            {"xaxis": resolution_axis([x for t in traces for x in t["x"]]), "yaxis": {"title": {"text": "c"}}},
        ),
    )


def _absorption(sweeps: list) -> tuple:
    """Absorption and smooth response as maps of the detector, at the first rotation that is told."""
    plots = []
    names = (("a", "Absorption"), ("d", "Response of the detector"))
    for key, title in names:
        for i, sweep in enumerate(sweeps[:1]):
            term = sweep.get(key)
            if term and "factor" in term:
                plots.append(_map(f"{key}-{i}", title, term))
    return tuple(plots)


def _map(id: str, title: str, term: dict) -> Plot:
    factor = term["factor"][0]
    spread = max((abs(v - 1) for row in factor for v in row), default=0.01) or 0.01
    trace = {
        "type": "heatmap",
        "x": term["x"],
        "y": term["y"],
        "z": factor,
        "colorscale": SIGNED,
        "zmid": 1,
        "zmin": 1 - spread,
        "zmax": 1 + spread,
        "colorbar": {"thickness": 12},
    }
    return Plot(
        id,
        f"{title} at {term['angle'][0]:.0f}°",
        "Factor over the detector; white is 1.",
        [trace],
        {
            "xaxis": {"title": {"text": "fast (px)"}, "constrain": "domain"},
            "yaxis": {
                "title": {"text": "slow (px)"},
                "autorange": "reversed",
                "scaleanchor": "x",
                "constrain": "domain",
            },
        },
        square=True,
    )


def _response(record: dict) -> tuple:
    modules = record.get("modules")
    if not modules:
        return ()
    return (
        Plot(
            "modules",
            "Response of the modules",
            "Factor of each module of the detector; 1 is the mean.",
            [line("module", range(len(modules)), modules, "markers")],
            {"xaxis": {"title": {"text": "module"}}, "yaxis": {"title": {"text": "factor"}}},
        ),
    )


def images(material: Material) -> Section:
    """χ² and outliers of batches of images; images that do not belong."""
    record = material.record
    n_sweeps = len(record["sweeps"])
    chi2, outliers = [], []
    for i in range(min(n_sweeps, _SWEEPS)):
        mine = [b for b in record["residuals"] if b["experiment"] == i]
        centres = [0.5 * (b["first"] + b["last"]) for b in mine]
        chi2.append(line(f"sweep {i}", centres, [b["chi2"] for b in mine]))
        outliers.append(line(f"sweep {i}", centres, [100 * b["outliers"] for b in mine]))
    bad = (record.get("images") or {}).get("bad", [])
    for reason in dict.fromkeys(item["reason"] for item in bad):
        mine = [item for item in bad if item["reason"] == reason]
        marker = {"symbol": _MARKS.get(reason, "diamond-open"), "color": "#b2182b", "size": 9}
        x, y = [0.5 * (b["first"] + b["last"]) for b in mine], [b["chi2"] for b in mine]
        chi2.append(line(reason, x, y, "markers", marker=marker))
    axis = {"xaxis": {"title": {"text": "image"}}}
    plots = [
        Plot(
            "residuals",
            "χ² of the images",
            "Squared difference of observations from the others of their voxel, over its variance; 1 is expected. "
            "Marks in red are images that do not belong.",
            chi2,
            {**axis, "yaxis": {"title": {"text": "χ² per observation"}, "rangemode": "tozero"}},
        ),
        Plot(
            "outliers",
            "Outliers of the images",
            "Share of the observations of an image that differ too much from the others of their voxel.",
            outliers,
            {**axis, "yaxis": {"title": {"text": "outliers (%)"}, "rangemode": "tozero"}},
        ),
    ]
    overview = record.get("overview")
    if overview:
        plots += image_plots(overview)
    rows = [[f"{b['experiment']}", f"{b['first']}–{b['last']}", b["words"]] for b in bad[:50]]
    tables = (Table(["sweep", "images", "why"], rows, "Images that do not belong"),) if rows else ()
    return Section("images", "Images", plots=tuple(plots), tables=tables)


def detector(material: Material) -> Section | None:
    """Maps of the detector after scaling."""
    overview = material.record.get("overview")
    return Section("detector", "Detector, after scaling", plots=detector_plots(overview)) if overview else None


def errors(material: Material) -> Section | None:
    """What σ has beside counting statistics."""
    found = material.record["errors"]
    s = [0.5 * (a + b) for a, b in zip(found["s"], found["s"][1:])]
    if not s:
        return None
    return Section(
        "errors",
        "Calibration of σ",
        plots=(
            Plot(
                "errors",
                "Error beside counting statistics",
                "Excess: relative error that observations of a voxel have beyond counting. Spread: how much the "
                "voxels of a shell differ, relative to the mean.",
                [line("excess", s, found["excess"]), line("spread", s, found["spread"])],
                {
                    "xaxis": resolution_axis(s),
                    "yaxis": {"title": {"text": "relative to the intensity"}, "rangemode": "tozero"},
                },
            ),
        ),
    )


def absolute(material: Material) -> Section | None:
    """What the cell scatters against what its atoms should."""
    found = material.record["absolute_scale"]
    if not found:
        return None
    shells = found["shells"]
    s = shells["s"]
    gas = [a + b for a, b in zip(shells["sum_of_squares"], shells["compton"])]
    near = [i for i, x in enumerate(s) if x > 0.2]
    expected = [gas[i] + shells["interference"][i] for i in near]
    axis = {"xaxis": {**resolution_axis(s), "range": [0, max(s)]}}
    top = sorted(shells["total"])[int(0.95 * (len(s) - 1))]
    plots = [
        Plot(
            "envelope",
            "Measured against expected",
            "All that the unit cell scatters, diffuse and Bragg, against the sum over its atoms, elastic and "
            "Compton. They meet at high angles where the scale is right and no background is left.",
            [
                line("diffuse + Bragg", s, shells["total"], "lines", line={"shape": "hvh"}),
                line("diffuse", s, shells["diffuse"], "lines"),
                line("Σf² + Compton", s, gas, "lines"),
                line("Compton", s, shells["compton"], "lines", line={"dash": "dot"}),
                line("with interference of neighbours", [s[i] for i in near], expected, "lines", line={"dash": "dash"}),
            ],
            {**axis, "yaxis": {"title": {"text": "electrons² per unit cell"}, "range": [0, 1.15 * max(gas[0], top)]}},
        )
    ]
    parts = found.get("separation")
    if parts:
        traces = [
            line(name, parts["s"], parts[name], "lines", stackgroup="parts") for name in ("crystal", "liquid", "air")
        ]
        plots.append(
            Plot(
                "separation",
                "Crystal, liquid and air",
                "What is on the images, told apart by the shapes of the curves.",
                traces,
                {"xaxis": resolution_axis(parts["s"]), "yaxis": {"title": {"text": "electrons² per unit cell"}}},
            )
        )
    rows = [
        [e["method"], f"{e['k']:.4g}", f"{e['esd']:.2g}", found["left_out"].get(e["method"], "")]
        for e in found["estimates"]
    ]
    heads = ["method", "electrons² per unit", "e.s.d.", "not compared, because"]
    return Section("absolute", "Absolute scale", plots=tuple(plots), tables=(Table(heads, rows),))


SECTIONS = (
    summary,
    terms,
    images,
    detector,
    errors,
    absolute,
    crystals,
    symmetry,
)
