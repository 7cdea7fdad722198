"""Table and picture of the crystals of a call: which were kept, in which setting, and how they correlate."""

from __future__ import annotations

import logging

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from dials_diffuse.crystals.choice import AGREES, UNTESTED, CrystalChoice
from dials_diffuse.files.record import Output
from dials_diffuse.report.figures import new_figure, write_png
from dials_diffuse.report.tables import Column, text_table

logger = logging.getLogger("dials.diffuse.crystals")

#: numbers of crystals beside the matrix, and values in its fields, up to so many crystals
_LABELS, _VALUES = 60, 20

#: a single pair is told of in the log, and not drawn; nor are so many crystals that nobody could see them
_FEWEST_DRAWN, _MOST_DRAWN = 3, 600

_COLOURS = {"kept": "#2a7f3f", "reindexed": "#2c6fbb", "untested": "0.55", "left out": "#c23b22"}


def _decision(crystal) -> str:
    if not crystal.kept:
        return f"left out: {crystal.verdict}"
    return "kept" if crystal.verdict == AGREES else f"kept, {crystal.verdict}"


#: rows : (number, Crystal)
_COLUMNS = (
    Column("crystal", 7, "", lambda row: str(row[0])),
    Column("  file and experiment", -40, "", lambda row: "  " + _name(row[1])),
    Column("a", 8, ".2f", lambda row: row[1].unit_cell[0]),
    Column("b", 8, ".2f", lambda row: row[1].unit_cell[1]),
    Column("c", 8, ".2f", lambda row: row[1].unit_cell[2]),
    Column("cells", 6, "d", lambda row: row[1].cell_cluster),
    Column("maps", 5, "d", lambda row: row[1].cluster),
    Column("voxels", 8, "d", lambda row: row[1].common or None),
    Column("CC", 7, ".3f", lambda row: row[1].observed),
    Column("CC true", 8, ".3f", lambda row: row[1].correlation),
    Column("+-", 7, ".3f", lambda row: row[1].esd),
    Column("as given", 9, ".3f", lambda row: row[1].correlation_as_given),
    Column("  operator", -14, "", lambda row: "  " + row[1].operator),
    Column("decision", -22, "", lambda row: _decision(row[1])),
)


def _name(crystal, most: int = 36) -> str:
    text = f"{crystal.path} {crystal.number}"
    return text if len(text) <= most else f"...{text[3 - most :]}"


def crystals_text(choice: CrystalChoice) -> str:
    """Text for the log: a line for each crystal, or for two that agree one line in all."""
    rows = list(enumerate(choice.crystals))
    if choice.quiet and len(rows) < _FEWEST_DRAWN:
        last = choice.crystals[-1]
        return (
            f"The maps of both crystals agree: their anisotropic parts correlate by {last.observed:.3f}, corrected for "
            f"noise by {last.correlation:.3f} +- {last.esd:.3f}, in {last.common} common voxels"
        )
    lines = [text_table(_COLUMNS, rows), ""]
    lines += [
        "cells, maps: clusters of unit cells, and of maps with the cells that are kept; 1 is the largest",
        "CC: of the anisotropic part with that of the others that are kept, in their common voxels;",
        "CC true: corrected for noise, 1 where both are alike; as given: the same, without the operator",
    ]
    return "\n".join(lines)


def save_crystals_png(path, choice: CrystalChoice | None) -> list:
    """Draw :func:`crystals_figure` into a PNG file, where there are neither too few nor too many crystals.

    path : None: nowhere

    Returns
    -------
    list of Output

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    if path is None or choice is None or not _FEWEST_DRAWN <= len(choice.compared) <= _MOST_DRAWN:
        return []
    logger.info("Saving a picture of the crystals to %s", path)
    write_png(path, crystals_figure(choice))
    return [Output(path, "picture", "aid")]


def crystals_figure(choice: CrystalChoice):
    """In which order crystals were joined, and the correlations of all pairs in that order.

    Returns
    -------
    matplotlib.figure.Figure with an Agg canvas
    """
    n = len(choice.compared)
    size = float(np.clip(3.5 + 0.28 * n, 5.5, 11.0))
    figure = new_figure(size + 3.6, size + 0.6)
    tree, matrix, bar = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.6, size - 1, 1.0]})
    options = {"orientation": "left", "no_labels": True, "color_threshold": 0, "above_threshold_color": "0.3"}
    drawn = dendrogram(linkage_of_joins(choice.joins, n), ax=tree, **options)
    order = np.array(drawn["leaves"])
    tree.set(xlabel="1 − correlation", ylim=(10 * n, 0))
    for side in ("left", "right", "top"):
        tree.spines[side].set_visible(False)
    _draw_matrix(figure, matrix, bar, choice, order)
    kept = sum(c.kept for c in choice.crystals)
    others = len(choice.crystals) - n
    title = f"{kept} of {len(choice.crystals)} crystals are kept"
    figure.suptitle(title + (f"; {others} of other unit cells are not drawn" if others else ""))
    return figure


def _draw_matrix(figure, axes, bar, choice: CrystalChoice, order: np.ndarray) -> None:
    n = len(order)
    values = choice.corrected[np.ix_(order, order)].copy()
    values[np.arange(n), np.arange(n)] = np.nan
    colours = _colour_map()
    image = axes.imshow(values, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    crystals = [choice.crystals[k] for k in choice.compared[order]]
    numbers = choice.compared[order]
    if n <= _LABELS:
        small = 9 if n <= 30 else 6
        axes.set_xticks(range(n), numbers, rotation=90, fontsize=small)
        axes.set_yticks(range(n), numbers, fontsize=small)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if n <= _VALUES:
        for i, j in np.argwhere(np.isfinite(values)):
            dark = abs(values[i, j]) > 0.6
            text = f"{values[i, j]:.2f}".replace("0.", ".", 1)
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    axes.set(xlabel="crystal", title="correlation, corrected for noise (grey: not known)")
    figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, pad=0.02)
    given = choice.operators[0]
    for y, crystal in enumerate(crystals):
        kind = "left out" if not crystal.kept else "untested" if crystal.verdict == UNTESTED else "kept"
        if kind == "kept" and crystal.operator != given:
            kind = "reindexed"
        bar.barh(y, 1, height=1.0, color=_COLOURS[kind])
        if n <= _LABELS and crystal.operator != given:
            bar.text(0.5, y, crystal.operator, ha="center", va="center", fontsize=7 if n <= 30 else 5, color="white")
    bar.set(ylim=(n - 0.5, -0.5), xlim=(0, 1), xticks=[], yticks=[])
    handles = [bar.barh(np.nan, 0, color=colour, label=name) for name, colour in _COLOURS.items()]
    bar.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small", frameon=False)


def _colour_map():
    from matplotlib import colormaps

    colours = colormaps["RdBu_r"].copy()
    colours.set_bad("0.75")
    return colours


def linkage_of_joins(joins, n: int) -> np.ndarray:
    """(n - 1, 4) float64, a tree as scipy has it; heights are 1 - ρ, or that of a branch where this is less.

    joins : (one of n, another, ρ), see ``clusters.Clusters``
    """
    top, size = list(range(n)), [1] * n
    height, rows = [0.0] * n, []
    for a, b, rho in joins:
        roots = [_root(top, x) for x in (a, b)]
        level = max(1 - rho, 0.0, *(height[r] for r in roots))
        count = sum(size[r] for r in roots)
        rows.append([*roots, level, count])
        for r in roots:
            top[r] = len(top)
        top.append(len(top))
        size.append(count)
        height.append(level)
    return np.array(rows, dtype=float)


def _root(top: list, node: int) -> int:
    while top[node] != node:
        node = top[node]
    return node
