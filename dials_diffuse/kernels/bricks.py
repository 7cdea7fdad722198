"""Sums of voxels in bricks of 4 x 4 x 4, found by a directory that covers the grid: no hashing, no moving of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels import accumulate as row
from dials_diffuse.kernels.jit import njit

EDGE = 4  # voxels along the edge of a brick
VOXELS = EDGE**3

#: columns of a voxel, one set for even and one for odd images
N_PIXELS, COUNTS, NORM, RATE, VARIANCE, SUM_X, SUM_Y, SUM_ANGLE = range(8)
N_COLUMNS = 8


class Bricks(NamedTuple):
    """Bricks in use; the numbers count from 1.

    directory : (b0, b1, b2, 2) int32, number of the brick at each place, for voxels that leave and that enter; 0 = none
    sums : (m, 2, VOXELS, N_COLUMNS) float64, for even and odd images
    seen : (m, VOXELS, 2) int32, first and last image
    place : (m,) int64, flat position in the directory, plus the directory's size for each panel before
    extent : (3,) int64, largest index of the grid along each axis
    """

    directory: np.ndarray
    sums: np.ndarray
    seen: np.ndarray
    place: np.ndarray
    extent: np.ndarray


@njit
def new_brick(directory, sums, seen, place, b0, b1, b2, entering, first_place, number):
    """Make an empty brick of a number.

    directory, sums, seen, place : as in Bricks, one by one: numba counts references to what a tuple holds
    b0, b1, b2, entering : uint64, its place in the directory; first_place : int64, of the panel
    """
    directory[b0, b1, b2, entering] = number
    size1, size2 = directory.shape[1], directory.shape[2]
    flat = ((np.int64(b0) * size1 + np.int64(b1)) * size2 + np.int64(b2)) * 2 + np.int64(entering)
    new = np.uint64(number)
    place[new] = first_place + flat
    for k in range(np.uint64(VOXELS)):
        seen[new, k, np.uint64(0)] = 2147483647
        seen[new, k, np.uint64(1)] = -2147483648
        for c in range(np.uint64(N_COLUMNS)):
            sums[new, np.uint64(0), k, c] = 0.0
            sums[new, np.uint64(1), k, c] = 0.0


@njit
def voxel_of(i0, i1, i2):
    """Position of a voxel in its brick, uint64."""
    three, two, four = np.uint64(3), np.uint64(2), np.uint64(4)
    return ((i0 & three) << four) | ((i1 & three) << two) | (i2 & three)


@njit
def used_voxels(place, sums, n_bricks, directory_shape, grid_shape):
    """Keys of the voxels with pixels, as in :mod:`dials_diffuse.kernels.accumulate`, in the order of the bricks.

    Parameters
    ----------
    place, sums : as in Bricks; n_bricks : int, in use
    directory_shape : (4,) int64; grid_shape : (3,) int64

    Returns
    -------
    keys : (n,) int64; source : (n,) int64, number of the brick times VOXELS, plus position in it
    """
    n = 0
    for b in range(1, n_bricks + 1):
        for k in range(VOXELS):
            if sums[b, 0, k, N_PIXELS] > 0.0 or sums[b, 1, k, N_PIXELS] > 0.0:
                n += 1
    keys = np.empty(n, dtype=np.int64)
    source = np.empty(n, dtype=np.int64)
    size = directory_shape[0] * directory_shape[1] * directory_shape[2] * directory_shape[3]
    n_voxels = grid_shape[0] * grid_shape[1] * grid_shape[2]
    n = 0
    for b in range(1, n_bricks + 1):
        panel, flat = place[b] // size, place[b] % size
        entering, flat = flat % 2, flat // 2
        b2, flat = flat % directory_shape[2], flat // directory_shape[2]
        b1, b0 = flat % directory_shape[1], flat // directory_shape[1]
        for k in range(VOXELS):
            if sums[b, 0, k, N_PIXELS] > 0.0 or sums[b, 1, k, N_PIXELS] > 0.0:
                i0, i1, i2 = 4 * b0 + (k >> 4), 4 * b1 + ((k >> 2) & 3), 4 * b2 + (k & 3)
                flat_voxel = (i0 * grid_shape[1] + i1) * grid_shape[2] + i2
                keys[n] = 2 * (panel * n_voxels + flat_voxel) + entering
                source[n] = b * VOXELS + k
                n += 1
    return keys, source


@njit
def voxel_rows(sums, seen, source, table):
    """Read voxels as rows of :mod:`dials_diffuse.kernels.accumulate`.

    sums, seen : as in Bricks; source : (n,) int64, see :func:`used_voxels`
    table : (n, row.N_COLUMNS) float64, 0 to begin with
    """
    for i in range(len(source)):
        b, k = source[i] // VOXELS, source[i] % VOXELS
        for half in range(2):
            table[i, half * row.ODD + row.PIXELS] = sums[b, half, k, N_PIXELS]
            table[i, half * row.ODD + row.COUNTS] = sums[b, half, k, COUNTS]
            table[i, half * row.ODD + row.NORM] = sums[b, half, k, NORM]
            table[i, half * row.ODD + row.RATE] = sums[b, half, k, RATE]
        table[i, row.RATE_VARIANCE] = sums[b, 0, k, VARIANCE] + sums[b, 1, k, VARIANCE]
        table[i, row.SUM_X] = sums[b, 0, k, SUM_X] + sums[b, 1, k, SUM_X]
        table[i, row.SUM_Y] = sums[b, 0, k, SUM_Y] + sums[b, 1, k, SUM_Y]
        table[i, row.SUM_ANGLE] = sums[b, 0, k, SUM_ANGLE] + sums[b, 1, k, SUM_ANGLE]
        table[i, row.FIRST_IMAGE] = seen[b, k, 0]
        table[i, row.LAST_IMAGE] = seen[b, k, 1]
