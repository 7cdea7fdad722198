"""Maps for the slice browser of a page: the unique voxels as codes, and what the page needs to find all others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import IsotropicPart, isotropic_part
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.report.quantised import ABSENT, UNMEASURED, Spread, entropy, packed, spread_of

logger = logging.getLogger("dials.diffuse.report")

#: bytes of the codes of a browser in a page
BUDGET = 8_500_000

#: codes for values of one sign, and edge of the blocks of voxels whose σ and multiplicity are averaged: what fits first
_QUALITIES = ((30_000, 1), (120, 1), (40, 2), (16, 2), (8, 2))

#: values of a column that are packed to see how much space all of them take
_SAMPLE = 500_000

#: share of the values whose colour is not cut off
_RANGE_PERCENTILE = 99.0


@dataclass(frozen=True)
class Column:
    """One number for each unique voxel.

    Attributes
    ----------
    name : in the page's data
    values : (n,) float64, NaN where there is none
    isotropic : what was subtracted from the values, if they are anisotropic parts
    aid : can it be coarser than the others, when all take too much space?
    """

    name: str
    values: np.ndarray
    isotropic: IsotropicPart | None = None
    aid: bool = False

    @cached_property
    def spread(self) -> Spread:
        """What the scale of its codes depends on."""
        return spread_of(self.values)

    @cached_property
    def sample(self) -> np.ndarray:
        """Some of the values, enough to tell how well they can be packed."""
        if len(self.values) <= _SAMPLE:
            return self.values
        return self.values[np.random.default_rng(0).integers(len(self.values), size=_SAMPLE)]


@dataclass(frozen=True)
class View:
    """What a button shows.

    Attributes
    ----------
    key : letter on the keyboard, and its name
    label, about : on the button, and a sentence about it
    column : name of the Column
    whole : add the isotropic part
    signed : colours symmetric about 0
    group : views with the same group have the same range of colours
    """

    key: str
    label: str
    about: str
    column: str
    whole: bool = False
    signed: bool = False
    group: str = ""


@dataclass(frozen=True)
class Browser:
    """A slice browser.

    Attributes
    ----------
    help : a sentence
    head : all but the voxels, for JSON
    voxels : column name -> codes as text
    """

    help: str
    head: dict
    voxels: dict


def browser_of_map(data: DiffuseMap, fit: dict | None = None) -> Browser:
    """A browser of a map, or of the data, model and residual of a fit.

    Parameters
    ----------
    fit : columns ``model``, ``background`` and ``residual`` of the collection ``fit`` of a map file
    """
    s = data.grid.s_magnitude(data.index)
    columns, views = _fit_columns(data, fit, s) if fit else _map_columns(data, s)
    for column, view in (
        (
            Column("sigma", data.sigma, aid=True),
            View("s", "σ", "standard deviation of the intensity", "sigma"),
        ),
        (
            Column("multiplicity", data.multiplicity.astype(float), aid=True),
            View("n", "multiplicity", "number of observations", "multiplicity"),
        ),
    ):
        if np.nanmax(column.values, initial=0) > 0:  # maps of models have none
            columns.append(column)
            views.append(view)
    return _browser(data, s, columns, views)


def _anisotropic(name: str, values: np.ndarray, s: np.ndarray) -> Column:
    known = np.isfinite(values)
    part = isotropic_part(values[known], s[known])
    return Column(name, values - part.at(s), part)


def _map_columns(data: DiffuseMap, s: np.ndarray) -> tuple:
    column = _anisotropic("intensity", data.intensity, s)
    views = [
        View("a", "anisotropic", "intensity without its isotropic part", "intensity", signed=True),
        View("i", "raw", "intensity as it was measured", "intensity", whole=True),
    ]
    return [column], views


def _fit_columns(data: DiffuseMap, fit: dict, s: np.ndarray) -> tuple:
    model = fit["model"] + fit["background"]
    columns = [
        _anisotropic("data", data.intensity, s),
        _anisotropic("model", model, s),
        Column("residual", np.asarray(fit["residual"], dtype=float)),
    ]
    views = [
        View("d", "data", "measured, without the isotropic part", "data", signed=True, group="signal"),
        View("m", "model", "best model, without the isotropic part", "model", signed=True, group="signal"),
        View("r", "residual", "measured less model and background", "residual", signed=True, group="signal"),
        View("i", "raw data", "intensity as it was measured", "data", whole=True, group="raw"),
        View("j", "raw model", "best model with its background", "model", whole=True, group="raw"),
    ]
    return columns, views


def _browser(data: DiffuseMap, s: np.ndarray, columns: Sequence, views: Sequence) -> Browser:
    """s : (n,) float64, 1/Å, of the voxels"""
    data, s, columns, note = _within_budget(data, s, columns)
    grid = data.grid
    asu, box = _asymmetric_unit(grid, data.friedel)
    levels, stride = _quality(columns)
    heads, voxels = {}, {}
    for column in columns:
        edge = stride if column.aid else 1
        scale = column.spread.scale(levels)
        codes = asu.astype(np.uint8 if scale.bits == 8 else np.uint16)
        if edge == 1:
            codes[tuple((data.index - box[0]).T)] = scale.codes(column.values)
        else:
            codes = scale.codes(_blocks(data.index - box[0], column.values, asu.shape, edge))
        heads[column.name] = {
            "width": scale.width,
            "step": scale.step,
            "zero": scale.zero,
            "bits": scale.bits,
            "stride": edge,
            "shape": codes.shape,
            "isotropic": column.isotropic
            and {name: getattr(column.isotropic, name) for name in ("limits", "offset", "slope")},
        }
        voxels[column.name] = packed(codes)
    if stride > 1:
        note.append(f"σ and multiplicity are means over {stride}×{stride}×{stride} voxels")
    head = {
        "units": data.units,
        "matrix": grid.reciprocal_matrix,
        "subdivide": grid.subdivide,
        "extent": grid.extent,
        "d_min": grid.d_min,
        "d_max": grid.d_max,
        "low": box[0],
        "shape": asu.shape,
        "operators": sorted(laue_operators(grid.space_group, data.friedel).tolist(), reverse=True),
        "columns": heads,
        "views": _view_heads(s, columns, views),
        "note": "; ".join(note),
    }
    text = (
        f"Any plane of the map in {grid.space_group_symbol}, {'×'.join(map(str, grid.subdivide))} voxels for each "
        "reciprocal cell. Grey: not measured. The black line surrounds the asymmetric unit of reciprocal space."
    )
    return Browser(text, head, voxels)


def _asymmetric_unit(grid: MapGrid, friedel: bool) -> tuple:
    """The box around cctbx's asymmetric unit, uint8, UNMEASURED inside the unit and ABSENT outside, and its limits."""
    blocks = list(possible_voxels(grid, friedel))
    low = np.min([block.min(axis=0) for block in blocks if len(block)], axis=0)
    high = np.max([block.max(axis=0) for block in blocks if len(block)], axis=0)
    box = np.full(tuple(high - low + 1), ABSENT, dtype=np.uint8)
    for block in blocks:
        box[tuple((block - low).T)] = UNMEASURED
    return box, (low, high)


def _blocks(index: np.ndarray, values: np.ndarray, shape: tuple, edge: int) -> np.ndarray:
    """Means over blocks of voxels, NaN where a block has none; index : (n, 3) from 0 in a box of ``shape``."""
    size = tuple(-(-n // edge) for n in shape)
    known = np.isfinite(values)
    place = np.ravel_multi_index(tuple((index[known] // edge).T), size)
    number = np.bincount(place, minlength=int(np.prod(size)))
    total = np.bincount(place, values[known], minlength=int(np.prod(size)))
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0).reshape(size)


def _within_budget(data: DiffuseMap, s: np.ndarray, columns: Sequence) -> tuple:
    """Map, |s| and columns to a resolution at which the coarsest codes fit into a page, and notes about that."""
    note: list = []
    size = _size(columns, *_QUALITIES[-1])
    while size > BUDGET:
        d_min = data.grid.d_min * (size / BUDGET) ** (1 / 3) * 1.01
        grid = replace(data.grid, d_min=d_min)
        keep = grid.inside(data.index)
        data = replace(
            data,
            grid=grid,
            index=data.index[keep],
            intensity=data.intensity[keep],
            sigma=data.sigma[keep],
            multiplicity=data.multiplicity[keep],
            half_a=None,
            half_b=None,
            sums={},
        )
        s, columns = s[keep], [replace(column, values=column.values[keep]) for column in columns]
        note = [f"to {d_min:.2f} Å only, more would be too large for a page"]
        size = _size(columns, *_QUALITIES[-1])
    return data, s, list(columns), note


def _quality(columns: Sequence) -> tuple:
    """The finest codes that fit into a page."""
    n = len(columns[0].values) * len(columns)
    for levels, stride in _QUALITIES[:-1]:
        if levels > 120 and 1.5 * n > BUDGET:  # two bytes hardly become less than one and a half
            continue
        if _size(columns, levels, stride) <= BUDGET:
            return levels, stride
    return _QUALITIES[-1]


def _size(columns: Sequence, levels: int, stride: int) -> float:
    """Bytes that the codes take."""
    total = 0.0
    for column in columns:
        size = entropy(column.spread.scale(levels).codes(column.sample))
        size *= len(column.values) / max(len(column.sample), 1)
        total += size / stride**3 if column.aid else size
    return total


def _view_heads(s: np.ndarray, columns: Sequence, views: Sequence) -> list:
    """The views with the ranges of their colours."""
    by_name = {column.name: column for column in columns}
    heads: list = []
    ranges: dict = {}
    for view in views:
        column = by_name[view.column]
        values = column.values + column.isotropic.at(s) if view.whole else column.values
        known = values[np.isfinite(values)]
        if not known.size:
            low, high = 0.0, 1.0
        elif view.signed:
            high = float(np.percentile(np.abs(known), _RANGE_PERCENTILE))
            low = -high
        else:
            low, high = (float(np.percentile(known, p)) for p in (100 - _RANGE_PERCENTILE, _RANGE_PERCENTILE))
        if not high > low:
            low, high = (-1.0, 1.0) if view.signed else (low, low + 1.0)
        low, high = ranges.setdefault(view.group, (low, high)) if view.group else (low, high)
        head = {name: getattr(view, name) for name in ("key", "label", "about", "column", "whole", "signed")}
        heads.append({**head, "low": low, "high": high})
    return heads
