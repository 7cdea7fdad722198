"""Which voxels do observation files hold, and do the files fit together on one grid?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.lookup import enter_keys, find_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.parallel import in_threads

#: maps of cells that differ by more than this (relative for lengths, and 100 x in degrees for angles) are not compared
CELL_TOLERANCE = 0.02

#: keys that are collected before they are sorted into those known
_FRESH = 1 << 22

#: of each measured voxel: keys and indices, sorted and unsorted, while unique voxels are found
_BYTES_PER_VOXEL = 130


def common_grid(files, space_group: str | None = None, cell=None) -> MapGrid:
    """The grid of the merged map: resolution limits that hold all files.

    Parameters
    ----------
    files : open ObservationFile objects
    space_group : as in MergeParameters
    cell : six numbers, Å and degrees; None: that of the first file

    Raises
    ------
    DiffuseError
        If the files do not fit together, or the space group does not fit them.
    """
    first = files[0]
    for other in files[1:]:
        _check_alike(first, other, same_group=space_group is None)
    cell = uctbx.unit_cell(tuple(first.grid.unit_cell if cell is None else cell))
    group = first.grid.space_group if space_group is None else _space_group(space_group, cell, first.path)
    try:
        return MapGrid(
            unit_cell=group.average_unit_cell(cell).parameters(),
            hall_symbol=group.type().hall_symbol(),
            subdivide=first.grid.subdivide,
            d_min=min(f.grid.d_min for f in files),
            d_max=max(f.grid.d_max for f in files),
        )
    except DiffuseError as error:
        raise DiffuseError(f"{first.path}: {error}, or choose another space_group") from None


def check_distinct(paths) -> None:
    """DiffuseError if two of the paths are the same file."""
    seen: dict = {}
    for path in paths:
        resolved = Path(path).resolve()
        if resolved in seen:
            raise DiffuseError(
                f"{path}: given twice (as {seen[resolved]} before), its data would count double; leave one out"
            )
        seen[resolved] = path


def _check_alike(first, other, same_group: bool) -> None:
    a, b = first.grid, other.grid
    both = f"{first.path} and {other.path} cannot be merged:"
    if a.subdivide != b.subdivide:
        raise DiffuseError(f"{both} grid.subdivide is {a.subdivide} and {b.subdivide}; integrate both with the same")
    if same_group and a.space_group != b.space_group:
        raise DiffuseError(
            f"{both} the space groups are {a.space_group_symbol} and {b.space_group_symbol}; "
            "reindex one of them, or give space_group= if both are in the same setting"
        )


def _space_group(symbol: str, cell: uctbx.unit_cell, path) -> sgtbx.space_group:
    try:
        group = sgtbx.space_group_info(symbol).group()
    except (RuntimeError, ValueError):
        raise DiffuseError(f"space_group={symbol}: no such space group; give a symbol such as P43212") from None
    if not group.is_compatible_unit_cell(cell, CELL_TOLERANCE, 100 * CELL_TOLERANCE):
        text = cell_text(cell.parameters())
        raise DiffuseError(f"space_group={symbol}: does not fit the unit cell {text} of {path}; choose another")
    return group


def cell_text(cell) -> str:
    """Six numbers, for messages."""
    return f"({', '.join(f'{x:g}' for x in cell)})"


@dataclass(frozen=True)
class Voxels:
    """Measured voxels, m of them, and the u unique ones among them. Memory goes with m, whatever the size of the grid.

    Attributes
    ----------
    grid : MapGrid
    keys : (m,) int64, ascending, keys of the grid; entries : hash table from keys to rows, see ``kernels.lookup``
    unique : (m,) int32, row of ``index``; inverted : (m,) bool, see ``maps.symmetry.UniqueVoxels``
    index : (u, 3) int32, unique voxels in the asymmetric unit
    """

    grid: MapGrid
    keys: np.ndarray
    entries: np.ndarray
    unique: np.ndarray
    inverted: np.ndarray
    index: np.ndarray

    def rows(self, index: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """(n,) int64, row of ``keys`` of each observation; -1 outside the grid or where the norm is not positive.

        index : (n, 3) integers; norm : (n,) float64
        """
        rows = np.empty(len(index), dtype=np.int64)
        find_rows(np.ascontiguousarray(index), norm, np.array(self.grid.extent), self.keys, self.entries, rows)
        return rows


def blocks_of_rows(files, columns, rows: int) -> Iterator[dict]:
    """Yield columns of open ObservationFile objects, {name: array} of at most ``rows`` rows, file after file."""
    for file in files:
        for _, block in file.chunks(*columns, size=rows):
            yield block


def numbered_blocks(files, columns, rows: int) -> Iterator[tuple]:
    """Yield (number of the file's first experiment among all, columns) as :func:`blocks_of_rows`."""
    first = 0
    for file in files:
        for block in blocks_of_rows([file], columns, rows):
            yield first, block
        first += len(file.experiments)


def rows_of(wanted: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n,) int64, the row of ``index`` that holds each of the ``wanted``; -1 where none does.

    wanted : (n, 3) integers; index : (m, 3) integers, all different
    """
    if not len(index):
        return np.full(len(wanted), -1)
    low = np.minimum(wanted.min(axis=0, initial=0), index.min(axis=0))
    shape = np.maximum(wanted.max(axis=0, initial=0), index.max(axis=0)) - low + 1
    keys, sought = (np.ravel_multi_index((x - low).T, shape) for x in (index, wanted))
    order = np.argsort(keys)
    place = order[np.minimum(np.searchsorted(keys, sought, sorter=order), len(keys) - 1)]
    return np.where(keys[place] == sought, place, -1)


def refused_in_words(n_refused: int, n_rows: int) -> list:
    """What the user is told of observations without a positive norm."""
    return [f"{n_refused} of {n_rows} observations have no positive norm and were left out"] if n_refused else []


def memory_of_voxels(grid: MapGrid, n_rows: int) -> float:
    """Upper limit in bytes of what :func:`find_voxels` takes for so many observations."""
    sphere = 4 / 3 * math.pi * grid.d_min**-3 / abs(np.linalg.det(grid.reciprocal_matrix)) * math.prod(grid.subdivide)
    return _BYTES_PER_VOXEL * min(n_rows, sphere)


def find_voxels(blocks, grid: MapGrid, friedel: bool, threads: int = 1) -> tuple:
    """Voxels with an observation of positive norm, and the number of observations without."""
    keys, n_refused = _measured(blocks, grid, threads)
    found = unique_voxels(grid.index(keys), grid.space_group, friedel)
    inside = grid.inside(found.index)  # asked of the unique voxel: rounding cannot separate mates
    rank = np.cumsum(inside) - 1
    keep = inside[found.inverse]
    keys = keys[keep]
    entries = np.full(1 << (2 * len(keys)).bit_length(), -1, dtype=np.int32)
    enter_keys(keys, entries)
    unique = rank[found.inverse[keep]].astype(np.int32)
    return Voxels(grid, keys, entries, unique, found.inverted[keep], found.index[inside]), n_refused


def _measured(blocks, grid: MapGrid, threads: int) -> tuple:
    """Keys of the voxels of all rows with a positive norm, ascending, and the number of rows without."""
    n_refused, known, fresh, n_fresh = 0, np.empty(0, dtype=np.int64), [], 0
    for keys, n in in_threads(partial(_keys_of_block, grid), blocks, threads):
        n_refused += n
        fresh.append(keys)
        n_fresh += len(keys)
        if n_fresh > max(len(known), _FRESH):  # each key is sorted few times, however many blocks there are
            known, fresh, n_fresh = np.unique(np.concatenate([known, *fresh])), [], 0
    return np.unique(np.concatenate([known, *fresh])), n_refused


def _keys_of_block(grid: MapGrid, block: dict) -> tuple:
    positive = block["norm"] > 0
    index = block["index"][positive]
    index = index[np.all(np.abs(index) <= np.array(grid.extent), axis=1)]
    return np.unique(grid.key(index)), len(positive) - np.count_nonzero(positive)


#: edge of the blocks of voxels that are held out together in cross-validation, 1/Å
BLOCK = 0.06


def blocks_of_voxels(grid: MapGrid, index: np.ndarray, least: int = 1, times: int = 1) -> np.ndarray:
    """(m,) int64, number of the block of about BLOCK 1/Å, or ``least`` voxels, along each axis that a voxel lies in.

    times : blocks so many times as large; they consist of whole small ones

    Blocks hold whole neighbourhoods of lattice points: what varies within a halo or between neighbouring halos of
    diffuse scattering is the same in a block.

    index : (m, 3) integers on the subdivided lattice
    """
    block = np.floor(index / (times * np.maximum(np.round(BLOCK / grid.edges), least))).astype(np.int64)
    return np.ravel_multi_index((block - block.min(axis=0)).T, np.ptp(block, axis=0) + 1)
