"""What a page consists of: chapters of sections, with plots and tables that are made of the record of a program."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.report.slices import Browser
from dials_diffuse.report.tables import UNKNOWN

#: of lines, told apart by all kinds of colour vision (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

#: for plotly, of what has a sign: blue, white, red, as in the slice browser
SIGNED = tuple(
    [i / 10, colour]
    for i, colour in enumerate(
        ("#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b")
        + ("#67001f",)
    )
)

#: resolutions that are marked on an axis of 1/d, Å
_TICKS = (20, 10, 7, 5, 4, 3.5, 3, 2.5, 2.2, 2, 1.8, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1, 0.9, 0.8, 0.7, 0.6)

#: cells that stand at the right
_NUMBER = re.compile(r"[-+−±–∞0-9.,eE%° ]*|nan|inf")

#: characters of a cell that is not broken into lines
_WORD = 26


def _kind(cells: Sequence) -> str:
    if cells and all(map(_NUMBER.fullmatch, cells)):
        return "number"
    return "word" if max(map(len, cells), default=0) <= _WORD else "text"


@dataclass(frozen=True)
class Plot:
    """A plot of plotly.

    Attributes
    ----------
    id : of the element in the page; unique in its chapter
    title, help : what it is, and a sentence about how to read it, which stands for the plot where it cannot be seen
    traces : of plotly, as dictionaries
    layout : of plotly, where it is not that of all plots
    square : as high as it is wide
    """

    id: str
    title: str
    help: str
    traces: Sequence
    layout: dict = field(default_factory=dict)
    square: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text; best : number of the row that stands out, or None."""

    heads: Sequence
    rows: Sequence
    title: str = ""
    best: int | None = None

    @cached_property
    def kinds(self) -> list:
        """Of each column: ``number``, which stands at the right, ``word``, or ``text`` of several lines."""
        return [_kind([str(row[i]) for row in self.rows]) for i in range(len(self.heads))]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    id : of the element in the page; unique in its chapter
    title, help : a heading, and a sentence about what is shown
    facts : (name, value) pairs
    lines, warnings : sentences
    plots, tables : tuples of Plot and Table
    browser : Browser or None
    """

    id: str
    title: str
    help: str = ""
    facts: Sequence = ()
    lines: Sequence = ()
    warnings: Sequence = ()
    plots: Sequence = ()
    tables: Sequence = ()
    browser: Browser | None = None

    @property
    def empty(self) -> bool:
        """Is there nothing to see?"""
        return not (self.facts or self.lines or self.warnings or self.plots or self.tables or self.browser)


@dataclass(frozen=True)
class Material:
    """What sections are made of.

    Attributes
    ----------
    record : of a program, as its JSON file has it
    map : that belongs to it, None where there is none
    fit : columns of the fit in the map's file, empty where there is none
    arrays : names of other outputs -> arrays, such as ``covariance``
    """

    record: dict
    map: DiffuseMap | None = None
    fit: dict = field(default_factory=dict)
    arrays: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Chapter:
    """The sections of one program on a page, and what it warned of."""

    id: str
    title: str
    sections: Sequence
    warnings: Sequence = ()


def line(name: str, x, y, mode: str = "lines+markers", **style) -> dict:
    """A line of a plot; x, y : (n,) numbers or None. ``style`` are attributes of plotly's scatter."""
    return {"type": "scatter", "name": name, "mode": mode, "x": list(x), "y": list(y), **style}


def resolution_axis(s: Iterable) -> dict:
    """Plotly's axis of 1/d with marks at round d; s : 1/Å of what is shown, None where unknown."""
    known = [x for x in s if x is not None and math.isfinite(x) and x > 0]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if not high > low:
        low, high = 0.5 * low, 1.5 * high
    margin = 0.03 * (high - low)
    ticks: list = []
    for d in _TICKS:  # far enough from the one before to be read
        if low - margin <= 1 / d <= high + margin and (not ticks or 1 / d - 1 / ticks[-1] > 0.06 * (high - low)):
            ticks.append(d)
    return {
        "title": {"text": "resolution d (Å)"},
        "tickvals": [1 / d for d in ticks],
        "ticktext": [f"{d:g}" for d in ticks],
        "range": [max(low - margin, 0), high + margin],
    }


def middle(shells: Iterable) -> list:
    """1/d in the middle of the volume of each shell, rows with d_max (None: no limit) and d_min, Å."""
    return [
        (0.5 * ((1 / row["d_max"]) ** 3 if row["d_max"] else 0) + 0.5 / row["d_min"] ** 3) ** (1 / 3) for row in shells
    ]


def column(rows: Iterable, name: str) -> list:
    """One value of each row, None where it is not there."""
    return [row.get(name) for row in rows]


def number(value, how: str) -> str:
    """A value as text; what is not known is a dash."""
    return UNKNOWN if value is None or not math.isfinite(value) else format(value, how)


def short(value, digits: int = 5):
    """Numbers of plots rounded to so many digits, so that pages stay small; everything else as it is."""
    if isinstance(value, dict):
        return {key: short(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [short(item, digits) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
