"""Observations as plain arrays for the scale model: all rows of some unique voxels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np

from dials_diffuse.maps.voxels import Voxels, blocks_of_voxels, with_rows
from dials_diffuse.parallel import in_threads
from dials_diffuse.scaling.layout import DIFFRACTED, Layout, Rows, S, T, coordinates
from dials_diffuse.scaling.patterns import absorption_functions, symmetric_patterns

COLUMNS = ("index", "experiment", "panel", "counts", "norm", "background", "background_variance", "xyz", "s")


#: rows of about the same |s| that are sorted by rotation, see :func:`alike`
_RING = 2048

#: neighbourhoods are so many blocks wide
TIMES = (1, 2, 4)


@dataclass(frozen=True)
class Observations:
    """n rows of m unique voxels, those of one voxel together.

    Attributes
    ----------
    orbit : (n,) int64, ascending, 0 … m - 1
    unique : (m,) int64, row of ``Voxels.index``
    experiment : (n,) int64
    coordinates : (n, N_COORDINATES) float64
    counts, norm, background, background_variance : (n,) float64
    s_voxel : (n,) float64, |s| of the voxel's centre
    patterns : (m, k) float64, see :mod:`dials_diffuse.scaling.patterns`
    neighbourhood : (m, 3) int64, neighbouring voxels have the same number: blocks, and larger ones that consist of
        whole smaller ones, see ``TIMES``
    harmonics : (n, k) float64, functions of the absorption as harmonics; k is 0 where the layout lacks the orientation
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
    neighbourhood: np.ndarray
    harmonics: np.ndarray

    @property
    def n(self) -> int:
        return len(self.orbit)

    @property
    def net(self) -> np.ndarray:
        return self.counts - self.background

    @property
    def rows(self) -> Rows:
        return Rows(self.coordinates, self.experiment, self.harmonics, self.orbit, self.patterns)

    @cached_property
    def first(self) -> np.ndarray:
        """(m,) int, the first row of each voxel."""
        return np.searchsorted(self.orbit, np.arange(len(self.unique)))

    @cached_property
    def parents(self) -> tuple:
        """(m,) int, smallest neighbourhood of each voxel, and for each of these the next larger one; counted from 0."""
        result, names = [], self.neighbourhood
        while names.shape[1]:
            _, first, parent = np.unique(names[:, 0], return_index=True, return_inverse=True)
            result.append(parent.reshape(-1))
            names = names[first, 1:]
        return tuple(result)

    @cached_property
    def alike(self) -> np.ndarray:
        """(n,) int, an order in which neighbours touch the same parameters of most terms."""
        return alike(self.coordinates, self.experiment)

    def orbits(self, wanted: np.ndarray) -> Observations:
        """The rows of some voxels; wanted : (k,) int, rows of ``unique`` in the order that is wanted."""
        rank = np.full(len(self.unique), -1)
        rank[wanted] = np.arange(len(wanted))
        rows = np.argsort(rank[self.orbit], kind="stable")
        rows = rows[np.count_nonzero(rank[self.orbit] < 0) :]
        return self._taken(rows, wanted, rank[self.orbit[rows]])

    def some_rows(self, wanted: np.ndarray) -> Observations:
        """Some of the rows, without voxels that have none of them; wanted : (n,) bool."""
        rows = np.flatnonzero(wanted)
        voxels, orbit = np.unique(self.orbit[rows], return_inverse=True)
        return self._taken(rows, voxels, orbit.reshape(-1).astype(np.int64))

    def part(self, first: int, last: int) -> Observations:
        """The rows of voxels ``first`` up to, not with, ``last``, without copying them."""
        rows = slice(*np.searchsorted(self.orbit, [first, last]))
        return self._taken(rows, slice(first, last), self.orbit[rows] - first)

    def _taken(self, rows, voxels, orbit) -> Observations:
        by_voxel = ("unique", "patterns", "neighbourhood")
        names = [f.name for f in fields(self) if f.name != "orbit"]
        return Observations(orbit, **{n: getattr(self, n)[voxels if n in by_voxel else rows] for n in names})


def alike(coordinates: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) int, an order by group, in it by rings of |s|, and in these along the rotation.

    coordinates : (n, N_COORDINATES) float64; group : (n,) int
    """
    ring = np.argsort(np.argsort(coordinates[:, S], kind="stable"), kind="stable") // _RING
    return np.lexsort((coordinates[:, T], ring, group))


def sample_observations(
    blocks, voxels: Voxels, of_rows: np.ndarray, layout: Layout, wanted: np.ndarray, degree: int, threads: int = 1
) -> Observations:
    """All rows of the wanted unique voxels.

    Parameters
    ----------
    blocks : (first experiment of the file, {column: array}) pairs with ``COLUMNS``
    of_rows : (n,) int32, unique voxel of each row of all files, or -1
    wanted : (u,) bool, by row of ``voxels.index``
    degree : of the harmonics of the absorption
    """
    grid = voxels.grid
    items = ((first, block, of_rows[rows]) for first, block, rows in with_rows(blocks))
    parts = list(in_threads(partial(_wanted_rows, wanted), items, threads))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["unique"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    unique, orbit = np.unique(columns["unique"], return_inverse=True)
    experiment = columns["experiment"].astype(np.int64)
    position = coordinates(layout, experiment, columns)
    known = layout.orientation is not None
    return Observations(
        orbit=orbit.reshape(-1).astype(np.int64),
        unique=unique,
        experiment=experiment,
        coordinates=position,
        **{name: columns[name].astype(float) for name in ("counts", "norm", "background", "background_variance")},
        s_voxel=grid.s_magnitude(columns["index"]),
        patterns=symmetric_patterns(grid, voxels.index[unique]),
        neighbourhood=np.stack([blocks_of_voxels(grid, voxels.index[unique], times=k) for k in TIMES], axis=1),
        harmonics=absorption_functions(position[:, DIFFRACTED:], degree) if known else np.zeros((len(orbit), 0)),
    )


def _wanted_rows(wanted: np.ndarray, item: tuple) -> dict:
    first, block, unique = item
    use = np.flatnonzero((unique >= 0) & wanted[unique])
    part = {name: block[name][use] for name in COLUMNS}
    part["experiment"] = part["experiment"] + first
    return {**part, "unique": unique[use].astype(np.int64)}
