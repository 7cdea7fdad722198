"""The voxels of a map that a model is fitted to, and those that are set aside to test it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.checks import positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import BLOCK

#: errors below this fraction of the median in their surroundings of |s| are raised to it: they are accidents of few
#: counts, and would outweigh everything else
SIGMA_FLOOR = 0.5
#: width in |s| of these surroundings, 1/Å
_SURROUNDINGS = 0.02

#: fewer voxels than this are no data
_FEWEST = 50


@dataclass(frozen=True)
class Selection:
    """Which voxels take part.

    Attributes
    ----------
    d_max, d_min : Å, resolution range; None: that of the map
    free_fraction : of the blocks of voxels, set aside
    seed : of the choice of these blocks
    min_multiplicity : voxels with fewer observations are left out
    bragg : keep the voxels on the lattice points, which a map may have measured badly
    bragg_distance : 1/Å; leave out all whose centres are not further than this from a lattice point

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    d_max: float | None = None
    d_min: float | None = None
    free_fraction: float = 0.05
    seed: int = 0
    min_multiplicity: int = 1
    bragg: bool = False
    bragg_distance: float = 0.0

    def __post_init__(self):
        if not 0 <= self.bragg_distance < math.inf:
            raise DiffuseError(f"bragg_distance={self.bragg_distance:g}: must not be negative (1/Å)")
        if self.bragg and self.bragg_distance > 0:
            raise DiffuseError(
                f"bragg=True keeps what bragg_distance={self.bragg_distance:g} leaves out; give one of them"
            )
        for name, limit in (("d_max", self.d_max), ("d_min", self.d_min)):
            if limit is not None:
                positive(name, limit)
        if self.seed < 0:
            raise DiffuseError(f"seed={self.seed}: must not be negative")
        if not 0 <= self.free_fraction <= 0.5:
            raise DiffuseError(f"free_fraction={self.free_fraction:g}: need a fraction from 0 to 0.5")
        if self.d_max is not None and self.d_min is not None and self.d_max <= self.d_min:
            raise DiffuseError(f"d_max={self.d_max:g}, d_min={self.d_min:g}: need d_max > d_min (Å)")
        if self.min_multiplicity < 0:
            raise DiffuseError(f"min_multiplicity={self.min_multiplicity}: must not be negative")


@dataclass(frozen=True)
class FitData:
    """n voxels in one resolution range.

    Attributes
    ----------
    grid : of the map, with its d_min raised to that of the range
    row : (n,) int64, row of the map
    index : (n, 3) int64
    s : (n,) float64, |s| in 1/Å
    intensity : (n,) float64
    sigma : (n,) float64, with the floor of :data:`SIGMA_FLOOR`
    free : (n,) bool, set aside
    block : (n,) int64, number of the block in which a voxel is set aside, or not
    half_a, half_b : (n,) float64, NaN where a half has none; or None
    n_floored : voxels whose error was raised
    """

    grid: MapGrid
    row: np.ndarray
    index: np.ndarray
    s: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    free: np.ndarray
    block: np.ndarray
    half_a: np.ndarray | None
    half_b: np.ndarray | None
    n_floored: int

    @property
    def n(self) -> int:
        return len(self.row)


def select(data: DiffuseMap, selection: Selection, space_group=None) -> FitData:
    """Take the voxels that a selection asks for.

    Free voxels are set aside with all mates that models make equal: Friedel's, whether the map has merged them or not,
    and those of the structure.

    Parameters
    ----------
    space_group : sgtbx.space_group of the structure, which may have more symmetry than the map; None: that of the map

    Raises
    ------
    DiffuseError
        If the range lies outside the map, or too few voxels are left.
    """
    d_min = data.grid.d_min if selection.d_min is None else selection.d_min
    if d_min < data.grid.d_min * (1 - 1e-9):
        raise DiffuseError(f"d_min={d_min:g}: the map ends at {data.grid.d_min:g}; leave d_min out, or set it higher")
    d_max = math.inf if selection.d_max is None else selection.d_max
    if d_max <= d_min:
        raise DiffuseError(f"d_max={d_max:g}: need d_max > d_min ({d_min:g} Å)")
    s = data.grid.s_magnitude(data.index)
    use = (s >= 1 / d_max) & (s <= (1 + 1e-9) / d_min) & (s > 0)
    use &= np.isfinite(data.intensity) & np.isfinite(data.sigma) & (data.sigma > 0)
    use &= data.multiplicity >= selection.min_multiplicity
    if not selection.bragg:
        use &= np.any(data.index % np.array(data.grid.subdivide) != 0, axis=1) | (math.prod(data.grid.subdivide) == 1)
    if selection.bragg_distance > 0:
        _, distance = _nearest_points(data.index / np.array(data.grid.subdivide), data.grid.reciprocal_matrix)
        use &= distance > selection.bragg_distance
    row = np.flatnonzero(use)
    if len(row) < _FEWEST:
        raise DiffuseError(
            f"{len(row)} voxels with errors from {d_max:g} to {d_min:g} Å: too few to fit; widen d_max, d_min, or "
            "lower min_multiplicity, bragg_distance (the map of a model has no errors: give merged data)"
        )
    s, index = s[row], data.index[row].astype(np.int64)
    sigma = data.sigma[row]
    floored = np.maximum(sigma, SIGMA_FLOOR * _local_median(sigma, s))
    symmetric = data.grid
    if space_group is not None and space_group.order_p() > data.grid.space_group.order_p():
        symmetric = replace(data.grid, hall_symbol=space_group.type().hall_symbol())
    block = unique_blocks(symmetric, index, True)
    free = free_voxels(symmetric, index, block, selection.free_fraction, selection.seed)
    if np.count_nonzero(~free) < _FEWEST:
        raise DiffuseError(f"free_fraction={selection.free_fraction:g}: too few voxels are left to fit; lower it")
    return FitData(
        grid=MapGrid(data.grid.unit_cell, data.grid.hall_symbol, data.grid.subdivide, max(d_min, data.grid.d_min)),
        row=row,
        index=index,
        s=s,
        intensity=data.intensity[row],
        sigma=floored,
        free=free,
        block=block,
        half_a=None if data.half_a is None else data.half_a[row],
        half_b=None if data.half_b is None else data.half_b[row],
        n_floored=int(np.count_nonzero(floored > sigma)),
    )


def free_voxels(grid: MapGrid, index: np.ndarray, block: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(n,) bool, voxels in about this fraction of the blocks, evenly over the resolution.

    Blocks are ordered by the lowest |s| of their voxels, and of each run of 1/fraction neighbours one is chosen.

    block : (n,) int64, of :func:`unique_blocks`
    """
    blocks, number = np.unique(block, return_inverse=True)
    number = number.reshape(-1)
    lowest = np.full(len(blocks), np.inf)
    np.minimum.at(lowest, number, grid.s_magnitude(index))
    order = np.argsort(np.round(lowest, 6), kind="stable")  # rounding: |s| of mates differ in the last digits
    n_free = round(fraction * len(blocks))
    limits = np.arange(n_free + 1) * len(blocks) // max(n_free, 1)
    chosen = np.zeros(len(blocks), dtype=bool)
    if n_free:
        chosen[order[np.random.default_rng(seed).integers(limits[:-1], limits[1:])]] = True
    return chosen[number]


def unique_blocks(grid: MapGrid, index: np.ndarray, friedel: bool) -> np.ndarray:
    """(n,) int64, number of the block that a voxel lies in; neighbours and symmetry mates are in the same one.

    A block is what lies nearer to one point of a coarse lattice, of about BLOCK 1/Å, than to all others, together with
    its mates: signal that varies slowly, or repeats with the symmetry, is either fitted or set aside.

    index : (n, 3) integers on the subdivided lattice
    """
    index, _ = map_to_asu(index, grid.space_group, friedel)  # halfway between two points mates could part
    across = np.maximum(np.round(BLOCK / grid.edges), 1)  # voxels, along each axis
    point, _ = _nearest_points(index / across, grid.reciprocal_matrix / grid.subdivide * across)
    asu, _ = map_to_asu(point, grid.space_group, friedel)
    lowest = asu.min(axis=0)
    return np.ravel_multi_index((asu - lowest).T, np.ptp(asu, axis=0) + 1)


def _nearest_points(position: np.ndarray, axes: np.ndarray) -> tuple:
    """Integer coordinates, (n, 3), and distance, (n,), of the lattice point next to each position.

    position : (n, 3) float64, in units of the axes; axes : (3, 3) float64, columns
    """
    nearest = np.rint(position).astype(np.int64)
    point = nearest.copy()
    best = np.full(len(position), np.inf)
    for offset in itertools.product((0, -1, 1), repeat=3):  # rounding finds the nearest only where axes are at 90°
        candidate = nearest + np.array(offset)
        distance = np.sum(((position - candidate) @ axes.T) ** 2, axis=1)
        nearer = distance < best * (1 - 1e-9)
        point[nearer], best[nearer] = candidate[nearer], distance[nearer]
    return point, np.sqrt(best)


def _local_median(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    bins = ((s - s.min()) / _SURROUNDINGS).astype(np.int64)
    median = np.zeros(bins.max() + 1)
    for number in np.unique(bins):
        median[number] = np.median(values[bins == number])
    return median[bins]
