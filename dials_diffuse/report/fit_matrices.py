"""Correlations between groups as pictures, with the helices and strands of the structure along the edge."""

from __future__ import annotations

import numpy as np

from dials_diffuse.report.section import SIGNED, Material, Plot, line

#: groups that are drawn; of more, means over neighbours are
_GROUPS = 400

#: width of the bars along the edge, relative to the matrix
_EDGE = 0.03

_KINDS = {"helix": "#d55e00", "strand": "#0072b2"}
_KINDS_HELP = " Along the edges: helices orange, strands blue."


def correlation_plots(material: Material, pairs: dict) -> list:
    """The correlation matrix of groups and their rms displacements; empty without the array ``covariance``.

    pairs : of a model's record
    """
    covariance = material.arrays.get("covariance")
    if covariance is None:
        return []
    names = pairs.get("groups") or []
    g = len(covariance)
    if names and g == 3 * len(names):  # tensors: a third of the trace of each 3 x 3
        blocks = covariance.reshape(len(names), 3, len(names), 3)
        covariance = np.trace(blocks, axis1=1, axis2=3) / 3
        g = len(names)
    if len(names) != g:
        names = [f"{i + 1}" for i in range(g)]
    size = np.sqrt(np.maximum(np.diag(covariance), 0))
    unit = np.outer(size, size)
    correlations = np.divide(covariance, unit, out=np.zeros_like(covariance), where=unit > 0)
    shapes = edge_shapes(names, material.record.get("secondary_structure") or [])
    rms = Plot(
        "rms",
        "Displacements of groups",
        "Root mean square displacement along one direction." + (_KINDS_HELP if shapes else ""),
        [line("rms", range(g), size, "lines", text=names, hoverinfo="text+y")],
        {
            "xaxis": _axis(names),
            "yaxis": {"title": {"text": "rms (Å)"}, "rangemode": "tozero"},
            "shapes": [{**shape, "yref": "paper", "y0": 1.0, "y1": 1.02} for shape in shapes[::2]],
        },
    )
    return [matrix_plot("covariance", names, correlations, shapes), rms]


def kernel_plots(material: Material, i: int, details: list) -> list:
    """The correlation matrices of the models of a fit whose covariance is a function, not fitted pair by pair.

    i, details : number of the fit, and what its models say in the record
    """
    stretches = material.record.get("secondary_structure") or []
    return [
        matrix_plot(
            f"correlations-{i}-{k}",
            found["groups"],
            np.array(found["correlations"]),
            edge_shapes(found["groups"], stretches),
        )
        for k, found in enumerate(details)
        if "correlations" in found
    ]


def _axis(names: list) -> dict:
    every = max(1, len(names) // 12)
    return {"tickvals": list(range(0, len(names), every)), "ticktext": names[::every], "showgrid": False}


def matrix_plot(id: str, names: list, correlations: np.ndarray, shapes: list) -> Plot:
    """Correlations of groups as colours; (g, g) float64, shapes : of :func:`edge_shapes`."""
    g, axis = len(names), _axis(names)
    low = -0.5 - (_EDGE * g if shapes else 0)
    step = -(-g // _GROUPS)
    trace = {
        "type": "heatmap",
        "x": list(range(0, g, step)),
        "y": list(range(0, g, step)),
        "z": np.round(_means(correlations, step), 3),
        "colorscale": SIGNED,
        "zmin": -1,
        "zmax": 1,
        "colorbar": {"thickness": 12, "len": 0.9},
    }
    return Plot(
        id,
        "Correlations of the displacements of groups",
        "Red: two groups move together, blue: against each other." + (_KINDS_HELP if shapes else ""),
        [trace],
        {
            "xaxis": {**axis, "range": [low, g - 0.5], "constrain": "domain"},
            "yaxis": {**axis, "range": [g - 0.5, low], "scaleanchor": "x", "constrain": "domain"},
            "shapes": shapes,
        },
        square=True,
    )


def _means(matrix: np.ndarray, step: int) -> np.ndarray:
    if step == 1:
        return matrix
    starts = np.arange(0, len(matrix), step)
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    number = np.diff([*starts, len(matrix)])
    return sums / np.outer(number, number)


def edge_shapes(names: list, stretches: list) -> list:
    """Bars of plotly along the edges of a matrix whose elements are at whole numbers, two for each stretch.

    names : of groups, ``chain residue``, others are not marked; stretches : records of structure.secondary.Stretch
    """
    place: dict = {}
    for i, name in enumerate(names):
        words = name.split()
        if len(words) >= 2:
            place.setdefault((words[0], words[1]), []).append(i)
    outer, inner = (-0.5 - x * _EDGE * len(names) for x in (1.0, 0.2))
    shapes = []
    for stretch in stretches:
        ends = [place.get((stretch["chain"], stretch[key])) for key in ("first", "last")]
        if not all(ends):
            continue
        low, high = ends[0][0] - 0.5, ends[1][-1] + 0.5
        style = {"type": "rect", "fillcolor": _KINDS.get(stretch["kind"], "#777"), "line": {"width": 0}}
        style |= {"xref": "x", "yref": "y"}
        shapes.append({**style, "x0": low, "x1": high, "y0": outer, "y1": inner})
        shapes.append({**style, "y0": low, "y1": high, "x0": outer, "x1": inner})
    return shapes
