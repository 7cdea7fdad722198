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
from dials_diffuse.kernels.lookup import find_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.key_table import KeyTable
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.parallel import in_threads, row_ranges

#: maps of cells that differ by more than this (relative for lengths, and 100 x in degrees for angles) are not compared
CELL_TOLERANCE = 0.02

#: observations that are looked at together
_ROWS = 1 << 20

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
    keys : (m,) int64, keys of the grid, in the order of the observations
    entries : hash table from keys to rows, see ``kernels.lookup``
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


def with_rows(blocks) -> Iterator[tuple]:
    """(first experiment, columns, slice of all rows) of :func:`numbered_blocks`."""
    start = 0
    for first, block in blocks:
        stop = start + len(next(iter(block.values())))
        yield first, block, slice(start, stop)
        start = stop


def rows_of(wanted: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n,) int64, the row of ``index`` that holds each of the ``wanted``; -1 where none does.

    wanted : (n, 3) integers; index : (m, 3) integers, all different
    """
    if not len(index):
        return np.full(len(wanted), -1)
    low = np.minimum(wanted.min(axis=0, initial=0), index.min(axis=0))
    shape = np.maximum(wanted.max(axis=0, initial=0), index.max(axis=0)) - low + 1
    keys, sought = (np.ravel_multi_index((x - low).T, shape) for x in (index, wanted))
    table = KeyTable()
    table.number(keys)
    place = table.number(sought)
    return np.where(place < len(index), place, -1)


def refused_in_words(n_refused: int, n_rows: int) -> list:
    """What the user is told of observations without a positive norm."""
    return [f"{n_refused} of {n_rows} observations have no positive norm and were left out"] if n_refused else []


def memory_of_voxels(grid: MapGrid, n_rows: int) -> float:
    """Upper limit in bytes of what :func:`find_voxels` takes for so many observations."""
    sphere = 4 / 3 * math.pi * grid.d_min**-3 / abs(np.linalg.det(grid.reciprocal_matrix)) * math.prod(grid.subdivide)
    return _BYTES_PER_VOXEL * min(n_rows, sphere)


def find_voxels(blocks, grid: MapGrid, friedel: bool, of_rows: np.ndarray | None = None) -> tuple:
    """Voxels with an observation of positive norm, and the number of observations without.

    Parameters
    ----------
    blocks : {"index", "norm": array}, all observations
    of_rows : (n,) int32, written: row of ``Voxels.index`` of each observation, or -1; None: nobody asks
    """
    table, n_refused, start = KeyTable(), 0, 0
    for rows, n in in_threads(partial(_numbered, grid, table), blocks, 1):  # while the next block is read
        n_refused += n
        if of_rows is not None:
            of_rows[start : start + len(rows)] = rows
            start += len(rows)
    found = unique_voxels(grid.index(table.keys), grid.space_group, friedel)
    inside = grid.inside(found.index)  # asked of the unique voxel: rounding cannot separate mates
    unique = np.where(inside, np.cumsum(inside) - 1, -1).astype(np.int32)[found.inverse]
    if of_rows is not None:
        for mine in row_ranges(len(of_rows), 1 + len(of_rows) // _ROWS):
            rows = of_rows[mine]
            of_rows[mine] = np.where(rows >= 0, unique[rows], -1) if len(unique) else -1
    kept, inverted = unique >= 0, found.inverted
    if not kept.all():
        keys, unique, inverted = table.keys[kept], unique[kept], inverted[kept]
        table = KeyTable()
        table.number(keys)
    return Voxels(grid, table.keys, table.entries, unique, inverted, found.index[inside]), n_refused


def _numbered(grid: MapGrid, table: KeyTable, block: dict) -> tuple:
    return table.number_voxels(block["index"], block["norm"], grid.extent), int(np.count_nonzero(~(block["norm"] > 0)))


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
