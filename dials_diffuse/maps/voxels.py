"""Which voxels do observation files hold, and do the files fit together on one grid?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.parallel import in_threads

#: files whose cells differ by more than this (relative for lengths, and 100 x in degrees for angles) are not merged
CELL_TOLERANCE = 0.02


def common_grid(files, space_group: str | None = None) -> MapGrid:
    """The grid of the merged map: cell of the first file, resolution limits that hold all files.

    Parameters
    ----------
    files : open ObservationFile objects
    space_group : as in MergeParameters

    Raises
    ------
    DiffuseError
        If the files do not fit together, or the space group does not fit them.
    """
    first = files[0]
    for other in files[1:]:
        _check_alike(first, other, same_group=space_group is None)
    group = first.grid.space_group if space_group is None else _space_group(space_group, first)
    try:
        return MapGrid(
            unit_cell=group.average_unit_cell(uctbx.unit_cell(first.grid.unit_cell)).parameters(),
            hall_symbol=group.type().hall_symbol(),
            subdivide=first.grid.subdivide,
            d_min=min(f.grid.d_min for f in files),
            d_max=max(f.grid.d_max for f in files),
        )
    except DiffuseError as error:
        raise DiffuseError(f"{first.path}: {error}, or choose another space_group") from None


def check_distinct(paths) -> None:
    """DiffuseError if two of the paths are the same file."""
    seen = {}
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
    cells = [uctbx.unit_cell(grid.unit_cell) for grid in (a, b)]
    if not cells[0].is_similar_to(cells[1], CELL_TOLERANCE, 100 * CELL_TOLERANCE):
        text = [_cell_text(cell) for cell in cells]
        raise DiffuseError(f"{both} the unit cells are {text[0]} and {text[1]}; merge crystals of the same cell only")


def _space_group(symbol: str, file) -> sgtbx.space_group:
    try:
        group = sgtbx.space_group_info(symbol).group()
    except (RuntimeError, ValueError):
        raise DiffuseError(f"space_group={symbol}: no such space group; give a symbol such as P43212") from None
    cell = uctbx.unit_cell(file.grid.unit_cell)
    if not group.is_compatible_unit_cell(cell, CELL_TOLERANCE, 100 * CELL_TOLERANCE):
        text = _cell_text(cell)
        raise DiffuseError(f"space_group={symbol}: does not fit the unit cell {text} of {file.path}; choose another")
    return group


def _cell_text(cell: uctbx.unit_cell) -> str:
    return f"({', '.join(f'{x:g}' for x in cell.parameters())})"


@dataclass(frozen=True)
class Voxels:
    """Measured voxels: ``slot`` takes a key of the grid to a row of ``unique`` and ``inverted``, or to -1.

    slot : (grid.n_voxels,) int32; unique : (m,) int32, row of ``index``; inverted : (m,) bool; index : (u, 3) int32
    """

    slot: np.ndarray
    unique: np.ndarray
    inverted: np.ndarray
    index: np.ndarray


def blocks_of_rows(files, columns, rows: int) -> Iterator[dict]:
    """Yield columns of open ObservationFile objects, {name: array} of at most ``rows`` rows, file after file."""
    for file in files:
        for _, block in file.chunks(*columns, size=rows):
            yield block


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


def keys_in_box(grid: MapGrid, index: np.ndarray) -> tuple:
    """Which rows lie in the grid's box, and the keys of those."""
    fits = np.all(np.abs(index) <= np.array(grid.extent), axis=1)
    return fits, grid.key(index[fits])


def find_voxels(blocks, grid: MapGrid, friedel: bool, threads: int = 1) -> tuple:
    """Voxels with an observation of positive norm, and the number of observations without."""
    keys, n_refused = _measured(blocks, grid, threads)
    found = unique_voxels(grid.index(keys), grid.space_group, friedel)
    inside = grid.inside(found.index)  # asked of the unique voxel: rounding cannot separate mates
    rank = np.cumsum(inside) - 1
    keep = inside[found.inverse]
    slot = np.full(grid.n_voxels, -1, dtype=np.int32)
    slot[keys[keep]] = np.arange(np.count_nonzero(keep))
    unique = rank[found.inverse[keep]].astype(np.int32)
    return Voxels(slot, unique, found.inverted[keep], found.index[inside]), n_refused


def _measured(blocks, grid: MapGrid, threads: int) -> tuple:
    seen = np.zeros(grid.n_voxels, dtype=bool)

    def work(block) -> int:
        positive = block["norm"] > 0
        seen[keys_in_box(grid, block["index"][positive])[1]] = True
        return len(positive) - np.count_nonzero(positive)

    n_refused = sum(in_threads(work, blocks, threads))
    return np.flatnonzero(seen), n_refused


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
