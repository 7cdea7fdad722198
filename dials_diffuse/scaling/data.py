"""Observations as plain arrays for the scale model: all rows of some unique voxels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import Voxels, keys_in_box
from dials_diffuse.scaling.patterns import symmetric_patterns

#: columns of ``coordinates``: fraction of the sweep, position on the detector in its own size, |s|, module number
T, X, Y, S, MODULE = range(5)

COLUMNS = ("index", "experiment", "panel", "counts", "norm", "background", "background_variance", "xyz", "s")

#: module size and gap in pixels, fast and slow, of detectors whose image size tells: Pilatus, Eiger, Eiger 2
_MODULES = ((487, 195, 7, 17), (1030, 514, 10, 37), (1028, 512, 12, 38))


@dataclass(frozen=True)
class Layout:
    """What is common to all sweeps: where modules and sweeps are.

    Attributes
    ----------
    start, width : (e,) float64, first angle and total width of each sweep in degrees
    size : (e, 2) float64, pixels along fast and slow
    module : (e, 4) int64, module size and gap; n_modules : in all panels of one detector
    n_panels : int, largest number of panels
    """

    start: np.ndarray
    width: np.ndarray
    size: np.ndarray
    module: np.ndarray
    n_modules: int
    n_panels: int


def make_layout(experiments) -> Layout:
    """Layout of a list of ExperimentSummary."""
    start, width, size, module, n_modules = [], [], [], [], 1
    for e in experiments:
        first, last = e.image_range
        start.append(e.oscillation[0])
        width.append(e.oscillation[1] * (last - first + 1))
        size.append(e.image_size)
        found = (*e.image_size, 0, 0)
        for fast, slow, gap_fast, gap_slow in _MODULES:
            if (e.image_size[0] - fast) % (fast + gap_fast) == 0 and (e.image_size[1] - slow) % (slow + gap_slow) == 0:
                found = (fast, slow, gap_fast, gap_slow)
        module.append(found)
        columns = (e.image_size[0] + found[2]) // (found[0] + found[2])
        rows = (e.image_size[1] + found[3]) // (found[1] + found[3])
        n_modules = max(n_modules, e.n_panels * max(columns * rows, 1))
    return Layout(
        np.array(start, dtype=float),
        np.array(width, dtype=float),
        np.array(size, dtype=float),
        np.array(module),
        int(n_modules),
        max(e.n_panels for e in experiments),
    )


def coordinates(
    layout: Layout, experiment: np.ndarray, panel: np.ndarray, xyz: np.ndarray, s: np.ndarray
) -> np.ndarray:
    """(n, 5) float64, the columns T, X, Y, S, MODULE.

    experiment : (n,) int, row of the layout; panel : (n,) int; xyz : (n, 3) px, px, degrees; s : (n,) 1/Å
    """
    result = np.empty((len(s), 5))
    result[:, T] = (xyz[:, 2] - layout.start[experiment]) / layout.width[experiment]
    result[:, X:S] = xyz[:, :2] / layout.size[experiment]
    result[:, S] = s
    fast, slow, gap_fast, gap_slow = layout.module[experiment].T
    columns = (layout.size[experiment, 0] + gap_fast) // (fast + gap_fast)
    rows = (layout.size[experiment, 1] + gap_slow) // (slow + gap_slow)
    column = np.clip(xyz[:, 0] // (fast + gap_fast), 0, columns - 1)
    row = np.clip(xyz[:, 1] // (slow + gap_slow), 0, rows - 1)
    result[:, MODULE] = (panel * rows + row) * columns + column
    return result


@dataclass(frozen=True)
class Observations:
    """n rows of m unique voxels, those of one voxel together.

    Attributes
    ----------
    orbit : (n,) int64, ascending, 0 … m - 1
    unique : (m,) int64, row of ``Voxels.index``
    experiment : (n,) int64
    coordinates : (n, 5) float64
    counts, norm, background, background_variance : (n,) float64
    s_voxel : (n,) float64, |s| of the voxel's centre
    patterns : (m, k) float64, see :mod:`dials_diffuse.scaling.patterns`
    """

    orbit: np.ndarray
    unique: np.ndarray
    experiment: np.ndarray
    coordinates: np.ndarray
    counts: np.ndarray
    norm: np.ndarray
    background: np.ndarray
    background_variance: np.ndarray
    s_voxel: np.ndarray
    patterns: np.ndarray

    @property
    def n(self) -> int:
        return len(self.orbit)

    @property
    def net(self) -> np.ndarray:
        return self.counts - self.background

    def orbits(self, wanted: np.ndarray) -> Observations:
        """The rows of some voxels; wanted : (m,) bool."""
        rows = wanted[self.orbit]
        by_row = [f.name for f in fields(self) if f.name not in ("orbit", "unique", "patterns")]
        taken = {name: getattr(self, name)[rows] for name in by_row}
        return Observations(
            orbit=(np.cumsum(wanted) - 1)[self.orbit[rows]],
            unique=self.unique[wanted],
            patterns=self.patterns[wanted],
            **taken,
        )


def unique_of(block: dict, grid: MapGrid, voxels: Voxels) -> np.ndarray:
    """(n,) int64, unique voxel of each row, -1 outside the grid or where the norm is not positive."""
    fits, keys = keys_in_box(grid, block["index"])
    unique = np.full(len(fits), -1, dtype=np.int64)
    slot = voxels.slot[keys]
    unique[fits] = np.where(slot >= 0, voxels.unique[slot], -1)
    unique[~(block["norm"] > 0)] = -1
    return unique


def sample_observations(blocks, grid: MapGrid, voxels: Voxels, layout: Layout, wanted: np.ndarray) -> Observations:
    """All rows of the wanted unique voxels.

    Parameters
    ----------
    blocks : (first experiment of the file, {column: array}) pairs with ``COLUMNS``
    wanted : (u,) bool, by row of ``voxels.index``
    """
    parts = []
    for first, block in blocks:
        unique = unique_of(block, grid, voxels)
        use = np.flatnonzero((unique >= 0) & wanted[unique])
        part = {name: block[name][use] for name in COLUMNS}
        part["experiment"] = part["experiment"] + first
        parts.append({**part, "unique": unique[use]})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["unique"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    unique, orbit = np.unique(columns["unique"], return_inverse=True)
    experiment = columns["experiment"].astype(np.int64)
    return Observations(
        orbit=orbit.reshape(-1).astype(np.int64),
        unique=unique,
        experiment=experiment,
        coordinates=coordinates(layout, experiment, columns["panel"], columns["xyz"], columns["s"]),
        **{name: columns[name].astype(float) for name in ("counts", "norm", "background", "background_variance")},
        s_voxel=grid.s_magnitude(columns["index"]),
        patterns=symmetric_patterns(grid, voxels.index[unique]),
    )
