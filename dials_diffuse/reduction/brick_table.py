"""A growing table of bricks of voxels, with the rows that they hold at the end."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels import accumulate as row
from dials_diffuse.kernels import bricks as kernel
from dials_diffuse.kernels.tile_cells import SIZE
from dials_diffuse.maps.grid import MapGrid

FIRST_CAPACITY = 2048  # bricks
LINE = 64  # bytes of a cache line: a voxel is in one
MAX_DIRECTORY = 1 << 29  # bytes, of all panels; only what is used takes memory


def directory_shape(grid: MapGrid) -> tuple:
    return (*(-(-n // kernel.EDGE) for n in grid.shape), 2)


def directory_fits(grid: MapGrid, n_panels: int) -> bool:
    """Is the grid small enough for a directory of its bricks, for each panel?"""
    return 4 * math.prod(directory_shape(grid)) * n_panels <= MAX_DIRECTORY


class BrickTable:
    """Sums of voxels in bricks, for the panels of one detector; panels without pixels take no memory.

    n_steps : rotation sub-steps of an image: what one tile adds at a time must find room
    """

    def __init__(self, grid: MapGrid, n_steps: int):
        self._grid = grid
        self._directories: dict = {}
        self.n_bricks = 0
        self._sums, self._seen, self._place = _arrays(FIRST_CAPACITY + 2 * SIZE * n_steps)

    def panel(self, p: int) -> kernel.Bricks:
        """The bricks of a panel; they hold until :meth:`grow`."""
        if p not in self._directories:
            self._directories[p] = np.zeros(directory_shape(self._grid), dtype=np.int32)
        extent = np.array(self._grid.extent, dtype=np.int64)
        return kernel.Bricks(self._directories[p], self._sums, self._seen, self._place, extent)

    def first_place(self, p: int) -> int:
        """Places in the directories of the panels before."""
        return p * math.prod(directory_shape(self._grid))

    def grow(self) -> None:
        used = slice(self.n_bricks + 1)
        old = self._sums, self._seen, self._place
        self._sums, self._seen, self._place = _arrays(2 * len(self._place))
        for new, before in zip((self._sums, self._seen, self._place), old):
            new[used] = before[used]

    def sorted_rows(self) -> tuple:
        """(keys, sums) of all voxels with pixels; the table is empty then."""
        shape = np.array(directory_shape(self._grid), dtype=np.int64)
        size = np.array(self._grid.shape, dtype=np.int64)
        keys, source = kernel.used_voxels(self._place, self._sums, self.n_bricks, shape, size)
        order = np.argsort(keys)  # in a kernel it takes a second to compile
        table = np.zeros((len(keys), row.N_COLUMNS))
        kernel.voxel_rows(self._sums, self._seen, source[order], table)
        _used.append((self._sums, self._seen, self._place))
        del self._sums, self._seen, self._place
        return keys[order], table


#: arrays of tables that are read out: new memory takes a page fault for every 4096 bytes, the next table has none
_used: list = []


def _arrays(capacity: int) -> tuple:
    """Arrays of Bricks, for so many at least; the first brick is none."""
    while _used:
        arrays = _used.pop()
        if len(arrays[2]) >= capacity:
            return arrays
    return (
        _aligned((capacity, 2, kernel.VOXELS, kernel.N_COLUMNS)),
        np.empty((capacity, kernel.VOXELS, 2), dtype=np.int32),
        np.empty(capacity, dtype=np.int64),
    )


def _aligned(shape: tuple) -> np.ndarray:
    """An empty float64 array that begins with a cache line."""
    n = math.prod(shape)
    memory = np.empty(n + LINE // 8)
    start = -memory.ctypes.data % LINE // 8
    return memory[start : start + n].reshape(shape)
