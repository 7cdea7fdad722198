"""What neighbouring pixels share is computed once: runs of pixels in a tile, summed in cells, and added to voxels.

All that is summed of a pixel fits into two 64-bit integers: the number of pixels, the values, and both times the
position in the row and its square. So two running sums of integers through the tile give the sums of any run as a
difference. Runs are added up in cells, the parts of voxels in a tile, and cells go to voxels.
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels import bricks as b
from dials_diffuse.kernels.bricks import new_brick, voxel_of
from dials_diffuse.kernels.jit import njit

TILE_X, TILE_Y = 32, 16
SIZE = TILE_X * TILE_Y
CUBIC = 10  # terms of a polynomial of third order in x and y, of second order 6
MAX_CELL_BITS = 12

#: values must fit into this many bits
VALUE_BITS = 17

# a run of at most 32 pixels as two integers; the first: pixels, sum of positions u in the row, sum of values, sum of
# values times u; the second: sum of u², sum of values times u²
_U, _C, _CU = 6, 15, 37
_MASK_N, _MASK_U, _MASK_C, _MASK_CU = (1 << 6) - 1, (1 << 9) - 1, (1 << 22) - 1, (1 << 27) - 1
_CUU = 15
_MASK_UU = (1 << 15) - 1
# a cell of at most 512 pixels as six integers; the first: pixels, sum u, sum v, sum v²
_CELL_U, _CELL_V, _CELL_VV = 10, 24, 37
# then: values, values times u | values times v, sum u v | sum u², values times u² | values times u v | values times v²
_CELL_CU, _CELL_UV, _CELL_CUU = 27, 31, 19
CELL_WORDS = 6


@njit
def packing(position, middle):
    """What :func:`running_sums` and :func:`cells_of_pixels` need of each position, written into these arrays."""
    for i in range(SIZE):
        u = i % TILE_X
        position[0, i] = 1 + (u << _U)
        position[1, i] = (1 << _C) + (u << _CU)
        position[2, i] = u * u
        position[3, i] = (u * u) << _CUU
        middle[u] = u - 0.5 * (TILE_X - 1)


@njit
def running_sums(value, tile, position, word, running):
    """Pack what is summed of each pixel into two integers and sum through the tile.

    value : (tiles, SIZE) int32, 2 (raw - base) + 1 where a pixel counts, else 0; tile : uint64
    position : (4, SIZE) int64, of :func:`packing`; word : (2, SIZE) int64, scratch
    running : (2, SIZE + 1) int64, written: sums of the pixels before each
    """
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    for i in range(np.uint64(SIZE)):
        f = np.int64(value[tile, i])
        counts, m = -(f & 1), f >> 1
        word[zero, i] = (counts & position[zero, i]) + m * position[one, i]
        word[one, i] = (counts & position[two, i]) + m * position[three, i]
    first, second = np.int64(0), np.int64(0)
    for i in range(np.uint64(SIZE)):
        running[zero, i] = first
        running[one, i] = second
        first += word[zero, i]
        second += word[one, i]
    running[zero, np.uint64(SIZE)] = first
    running[one, np.uint64(SIZE)] = second


@njit
def reach(p, a):
    """Largest distance of the cubic polynomial p[a] within a tile from its value in the middle."""
    x, y = 0.5 * (TILE_X - 1), 0.5 * (TILE_Y - 1)
    return (
        abs(p[a, 1]) * x
        + abs(p[a, 2]) * y
        + abs(p[a, 3]) * (x * x)
        + abs(p[a, 4]) * (x * y)
        + abs(p[a, 5]) * (y * y)
        + abs(p[a, 6]) * (x * x * x)
        + abs(p[a, 7]) * (x * x * y)
        + abs(p[a, 8]) * (x * y * y)
        + abs(p[a, 9]) * (y * y * y)
    )


@njit
def combine(p, ty, tx, a, x, y, z, shift, out):
    """Write into out[a] the polynomial x p0 + y p1 + z p2 + shift; p : (ty, tx, 3, CUBIC)."""
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    for k in range(np.uint64(CUBIC)):
        out[a, k] = x * p[ty, tx, zero, k] + y * p[ty, tx, one, k] + z * p[ty, tx, two, k]
    out[a, zero] += shift


@njit
def cells_of_pixels(q, origin, bits0, bits1, position, cell):
    """Cell of every pixel of a tile, with the row in the bits from MAX_CELL_BITS on, so that rows differ.

    q : (3, CUBIC) voxel coordinates; origin : (3,) lowest voxel
    bits0, bits1 : lowest bits of a cell's number that hold its place along the first two axes
    position : (TILE_X,) float32, x - 15.5; cell : (SIZE,) int32, written
    """
    s0, s1 = np.int32(1 << bits0), np.int32(1 << bits1)
    for row in range(np.uint64(TILE_Y)):
        y = np.float64(row) - 0.5 * (TILE_Y - 1)
        a0 = np.float32(q[0, 0] - origin[0] + y * (q[0, 2] + y * (q[0, 5] + y * q[0, 9])))
        b0 = np.float32(q[1, 0] - origin[1] + y * (q[1, 2] + y * (q[1, 5] + y * q[1, 9])))
        c0 = np.float32(q[2, 0] - origin[2] + y * (q[2, 2] + y * (q[2, 5] + y * q[2, 9])))
        a1 = np.float32(q[0, 1] + y * (q[0, 4] + y * q[0, 8]))
        b1 = np.float32(q[1, 1] + y * (q[1, 4] + y * q[1, 8]))
        c1 = np.float32(q[2, 1] + y * (q[2, 4] + y * q[2, 8]))
        a2, b2, c2 = (
            np.float32(q[0, 3] + y * q[0, 7]),
            np.float32(q[1, 3] + y * q[1, 7]),
            np.float32(q[2, 3] + y * q[2, 7]),
        )
        a3, b3, c3 = np.float32(q[0, 6]), np.float32(q[1, 6]), np.float32(q[2, 6])
        top = np.int32(np.int32(row) << np.int32(MAX_CELL_BITS))
        first = row * np.uint64(TILE_X)
        for u in range(np.uint64(TILE_X)):
            x = position[u]
            i = np.int32(a0 + x * (a1 + x * (a2 + x * a3)))
            j = np.int32(b0 + x * (b1 + x * (b2 + x * b3)))
            k = np.int32(c0 + x * (c1 + x * (c2 + x * c3)))
            cell[first + u] = np.int32(np.int32(np.int32(i * s0) + np.int32(j * s1)) + np.int32(k + top))


@njit
def enter(e, bit, cell):
    """Set a bit in the cells of pixels where the polynomial e, (1, CUBIC), is positive."""
    for v in range(np.uint64(TILE_Y)):
        y = np.float64(v) - 0.5 * (TILE_Y - 1)
        e0 = e[0, 0] + y * (e[0, 2] + y * (e[0, 5] + y * e[0, 9]))
        e1 = e[0, 1] + y * (e[0, 4] + y * e[0, 8])
        e2 = e[0, 3] + y * e[0, 7]
        for u in range(np.uint64(TILE_X)):
            x = np.float64(u) - 0.5 * (TILE_X - 1)
            if e0 + x * (e1 + x * (e2 + x * e[0, 6])) > 0.0:
                cell[v * np.uint64(TILE_X) + u] += bit


@njit
def run_starts(cell, start):
    """Write where the cell changes, (SIZE + 1,) int64 with SIZE at the end; returns the number of runs."""
    n = np.uint64(0)
    before = np.int32(-1)
    for i in range(np.uint64(SIZE)):
        start[n] = i
        n += np.uint64(cell[i] != before)
        before = cell[i]
    start[n] = SIZE
    return n


@njit
def add_runs(running, cell, start, n_runs, cells, filled):
    """Add the sums of runs to cells.

    cells : (2**MAX_CELL_BITS, 8) int64, incremented; filled : (SIZE + 1,) int64, written: cells that were empty

    Returns
    -------
    number of cells filled
    """
    n_filled = np.uint64(0)
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    four, five = np.uint64(4), np.uint64(5)
    for i in range(np.uint64(n_runs)):
        begin, end = np.uint64(start[i]), np.uint64(start[i + one])
        d = running[zero, end] - running[zero, begin]
        e = running[one, end] - running[one, begin]
        n = d & np.int64(_MASK_N)
        sum_u = (d >> np.int64(_U)) & np.int64(_MASK_U)
        counts = (d >> np.int64(_C)) & np.int64(_MASK_C)
        counts_u = (d >> np.int64(_CU)) & np.int64(_MASK_CU)
        at = np.int64(cell[begin])
        v = at >> np.int64(MAX_CELL_BITS)
        c = np.uint64(at & np.int64((1 << MAX_CELL_BITS) - 1))
        filled[n_filled] = c
        n_filled += np.uint64((cells[c, zero] == 0) & (n > 0))
        cells[c, zero] += n * (1 + (v << np.int64(_CELL_V)) + ((v * v) << np.int64(_CELL_VV))) + (
            sum_u << np.int64(_CELL_U)
        )
        cells[c, one] += counts + (counts_u << np.int64(_CELL_CU))
        cells[c, two] += v * (counts + (sum_u << np.int64(_CELL_UV)))
        cells[c, three] += (e & np.int64(_MASK_UU)) + ((e >> np.int64(_CUU)) << np.int64(_CELL_CUU))
        cells[c, four] += v * counts_u
        cells[c, five] += v * v * counts
    return n_filled


@njit
def find_voxels(
    cells,
    filled,
    n_filled,
    shape,
    origin,
    inside,
    extent,
    directory,
    sums,
    seen,
    place,
    first_place,
    n_bricks,
    entering,
    found,
    words,
):
    """Find the voxels of cells, and empty the cells.

    Parameters
    ----------
    cells, filled, n_filled : of :func:`add_runs`; of cells off the grid nothing stays in ``filled``
    shape : (3,) int64, lowest bits of a cell's number that hold its place along the first two axes, and whether it
        enters; what ``entering`` says is added
    origin : (3,) int64, lowest voxel of the tile; inside : bool, is it on the grid with all its voxels?
    directory, sums, seen, place, extent : as in Bricks; first_place, n_bricks : as in add_tiles
    found : (SIZE, 2) uint64, written: brick, and voxel in it
    words : (CELL_WORDS, SIZE) int64, written: what was in the cells

    Returns
    -------
    n_bricks, number of cells on the grid, pixels off the grid
    """
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    bits0, bits1, bits2 = shape[zero], shape[one], shape[two]
    o0, o1, o2 = origin[zero], origin[one], origin[two]
    e0, e1, e2 = 2 * extent[zero], 2 * extent[one], 2 * extent[two]
    mask0 = (np.int64(1) << (bits2 - bits0)) - 1
    mask1 = (np.int64(1) << (bits0 - bits1)) - 1
    mask2 = (np.int64(1) << bits1) - 1
    off_grid = np.int64(0)
    n = zero
    for i in range(np.uint64(n_filled)):
        at = filled[i]
        cell = np.uint64(at)
        for k in range(np.uint64(CELL_WORDS)):
            words[k, n] = cells[cell, k]
            cells[cell, k] = 0
        i0 = o0 + ((at >> bits0) & mask0)
        i1 = o1 + ((at >> bits1) & mask1)
        i2 = o2 + (at & mask2)
        if not inside and not (0 <= i0 <= e0 and 0 <= i1 <= e1 and 0 <= i2 <= e2):
            off_grid += words[zero, n] & np.int64((1 << _CELL_U) - 1)
            continue
        j0, j1, j2 = np.uint64(i0), np.uint64(i1), np.uint64(i2)
        enters = entering | np.uint64(at >> bits2)
        b0, b1, b2 = j0 >> two, j1 >> two, j2 >> two
        number = np.uint64(directory[b0, b1, b2, enters])
        if number == zero:
            n_bricks += 1
            number = np.uint64(n_bricks)
            new_brick(directory, sums, seen, place, b0, b1, b2, enters, first_place, n_bricks)
        found[n, zero], found[n, one] = number, voxel_of(j0, j1, j2)
        n += one
    return n_bricks, n, off_grid


@njit
def cell_sums(words, n_cells, c, ty, tx, scale, at, out):
    """The sums of cells over their pixels.

    Parameters
    ----------
    words : (CELL_WORDS, SIZE) int64, of :func:`find_voxels`; n_cells : uint64
    c : (ty, tx, 3, 6) polynomials of c, 1/c and 1/c²; ty, tx : uint64, the tile
    scale : offset, gain and exposure; counts are (value + offset) / gain
    at : x and y of the tile's first pixel, and the angle
    out : (8, SIZE) float64, written: the columns of a voxel
    """
    offset, gain, exposure = scale
    x0, y0, angle = at
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    four, five = np.uint64(4), np.uint64(5)
    c0, c1, c2 = c[ty, tx, zero, zero], c[ty, tx, zero, one], c[ty, tx, zero, two]
    c3, c4, c5 = c[ty, tx, zero, three], c[ty, tx, zero, four], c[ty, tx, zero, five]
    g0, g1, g2 = c[ty, tx, one, zero], c[ty, tx, one, one], c[ty, tx, one, two]
    g3, g4, g5 = c[ty, tx, one, three], c[ty, tx, one, four], c[ty, tx, one, five]
    h0, h1, h2 = c[ty, tx, two, zero], c[ty, tx, two, one], c[ty, tx, two, two]
    h3, h4, h5 = c[ty, tx, two, three], c[ty, tx, two, four], c[ty, tx, two, five]
    per_gain = 1.0 / gain
    rate_scale = 1.0 / (gain * exposure)
    variance_scale = rate_scale / exposure
    for i in range(n_cells):
        first, second, third, fourth = words[zero, i], words[one, i], words[two, i], words[three, i]
        n = np.float64(first & np.int64((1 << 10) - 1))
        su = np.float64((first >> np.int64(_CELL_U)) & np.int64((1 << 14) - 1))
        sv = np.float64((first >> np.int64(_CELL_V)) & np.int64((1 << 13) - 1))
        svv = np.float64(first >> np.int64(_CELL_VV))
        m = np.float64(second & np.int64((1 << _CELL_CU) - 1))
        mu = np.float64(second >> np.int64(_CELL_CU))
        mv = np.float64(third & np.int64((1 << _CELL_UV) - 1))
        suv = np.float64(third >> np.int64(_CELL_UV))
        suu = np.float64(fourth & np.int64((1 << _CELL_CUU) - 1))
        muu = np.float64(fourth >> np.int64(_CELL_CUU)) + offset * suu
        muv = np.float64(words[four, i]) + offset * suv
        mvv = np.float64(words[five, i]) + offset * svv
        m, mu, mv = m + offset * n, mu + offset * su, mv + offset * sv
        norm = c0 * n + c1 * su + c2 * sv + c3 * suu + c4 * suv + c5 * svv
        rate = g0 * m + g1 * mu + g2 * mv + g3 * muu + g4 * muv + g5 * mvv
        variance = h0 * m + h1 * mu + h2 * mv + h3 * muu + h4 * muv + h5 * mvv
        out[np.uint64(b.N_PIXELS), i] = n
        out[np.uint64(b.COUNTS), i] = m * per_gain
        out[np.uint64(b.NORM), i] = norm * exposure
        out[np.uint64(b.RATE), i] = rate * rate_scale
        out[np.uint64(b.VARIANCE), i] = variance * variance_scale
        out[np.uint64(b.SUM_X), i] = su + n * x0
        out[np.uint64(b.SUM_Y), i] = sv + n * y0
        out[np.uint64(b.SUM_ANGLE), i] = n * angle


@njit
def add_cells(sums, seen, found, n_cells, out, half, image, w):
    """Add the sums of cells, with a weight, to their voxels.

    sums, seen : as in Bricks; found, n_cells : of :func:`find_voxels`; out : of :func:`cell_sums`
    half : uint64, 1 for an odd image; image : int32; w : float
    """
    zero, one = np.uint64(0), np.uint64(1)
    for i in range(n_cells):
        number, voxel = found[i, zero], found[i, one]
        for k in range(np.uint64(b.N_COLUMNS)):
            sums[number, half, voxel, k] += w * out[k, i]
        if seen[number, voxel, one] != image:
            seen[number, voxel, zero] = min(seen[number, voxel, zero], image)
            seen[number, voxel, one] = max(seen[number, voxel, one], image)
