"""What neighbouring pixels share is computed once: runs of pixels in a tile, summed in cells, and added to voxels.

All that is summed of a pixel fits into three 64-bit integers: the number of pixels and the values, both times powers
of the position in the row. So three running sums of integers through the tile give the sums of any run as a difference,
which is added to its cell with powers of the number of the row. Cells are the parts of voxels in a tile.
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels import bricks as b
from dials_diffuse.kernels.bricks import new_brick, voxel_of
from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.vectors import add_run, changes, fetch, lowest_bit, multiply_add, number_of_bits, shifted

TILE_X, TILE_Y = 32, 16
SIZE = TILE_X * TILE_Y
CUBIC = 10  # terms of a polynomial of third order in x and y, of second order 6
MAX_CELL_BITS = 12

#: values must fit into this many bits
VALUE_BITS = 16

# what is summed of pixels with values m at (u, v) in the tile: 1, u and u²; m and m u; m u². Cells have these, and the
# first two times v and v². No sum over the 512 pixels of a tile reaches the next one's bits, but for those that are not
# needed, which are the last of their words
_U, _UU, _MU = 16, 36, 32
_MASK_N, _MASK_U, _MASK_M = (1 << 16) - 1, (1 << 20) - 1, (1 << 32) - 1
CELL_WORDS = 7
CELL_SIZE = 8  # one cache line

_STARTS = 8  # written at a time by run_starts
_TOGETHER = 8  # cells in cell_sums


@njit
def packing(table, factors, middle):
    """What :func:`~dials_diffuse.kernels.vectors.running_sums`, ``add_run`` and :func:`cells_of_pixels` need.

    table : (4 * TILE_X,) int64; factors : (CELL_SIZE * TILE_Y,) int64; middle : (TILE_X,) float32; all are written
    """
    for u in range(TILE_X):
        table[4 * u] = 1 + (u << _U) + ((u * u) << _UU)
        table[4 * u + 1] = 1 + (u << _MU)
        table[4 * u + 2] = u * u
        table[4 * u + 3] = 0
        middle[u] = u - 0.5 * (TILE_X - 1)
    for v in range(TILE_Y):
        for k, factor in enumerate((1, v, v * v, 1, v, v * v, 1, 0)):
            factors[CELL_SIZE * v + k] = factor


@njit
def combine(p, ty, matrix, shift, q, far):
    """Linear combinations of the polynomials of one row of tiles, and how far they go from their values in the middle.

    p : (ty, 3, CUBIC, tx) float64; ty : uint64
    matrix : (n, 3) float64; shift : (n,) float64
    q : (n, CUBIC, tx) float64, written: matrix p + shift
    far : (n, tx) float64, written: largest distance within a tile from the value in its middle
    """
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    x, y = 0.5 * (TILE_X - 1), 0.5 * (TILE_Y - 1)
    reach = (0.0, x, y, x * x, x * y, y * y, x * x * x, x * x * y, x * y * y, y * y * y)
    for a in range(np.uint64(matrix.shape[0])):
        m0, m1, m2 = matrix[a, zero], matrix[a, one], matrix[a, two]
        for t in range(np.uint64(p.shape[3])):
            far[a, t] = 0.0
        for k in range(np.uint64(CUBIC)):
            r = reach[k]
            for t in range(np.uint64(p.shape[3])):
                value = m0 * p[ty, zero, k, t] + m1 * p[ty, one, k, t] + m2 * p[ty, two, k, t]
                q[a, k, t] = value
                far[a, t] += r * abs(value)
        for t in range(np.uint64(p.shape[3])):
            q[a, zero, t] += shift[a]


@njit
def cells_of_pixels(q, first, t, origin, bits0, bits1, position, rows, cell):
    """Cell of every pixel of a tile, with the row in the bits from MAX_CELL_BITS on, so that rows differ.

    q : (n, CUBIC, tx) of :func:`combine`, voxel coordinates in q[first : first + 3]; first, t : uint64, t the tile
    origin : (3,) lowest voxel
    bits0, bits1 : lowest bits of a cell's number that hold its place along the first two axes
    position : (TILE_X,) float32, x - 15.5; rows : (3 * 4 * TILE_Y,) float32, scratch
    cell : (1 + SIZE,) int32, written but for the first
    """
    s0, s1 = np.int32(bits0), np.int32(bits1)
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    for a in range(np.uint64(3)):
        _along_rows(q, first + a, t, np.float64(origin[a]), rows, a)
    for row in range(np.uint64(TILE_Y)):
        a0, a1, a2, a3 = _of_row(rows, zero, row)
        b0, b1, b2, b3 = _of_row(rows, one, row)
        c0, c1, c2, c3 = _of_row(rows, two, row)
        top = np.int32(np.int32(row) << np.int32(MAX_CELL_BITS))
        here = row * np.uint64(TILE_X) + one
        for u in range(np.uint64(TILE_X)):
            x = position[u]
            at0 = np.int32(multiply_add(x, multiply_add(x, multiply_add(x, a3, a2), a1), a0))
            at1 = np.int32(multiply_add(x, multiply_add(x, multiply_add(x, b3, b2), b1), b0))
            at2 = np.int32(multiply_add(x, multiply_add(x, multiply_add(x, c3, c2), c1), c0))
            cell[here + u] = np.int32(np.int32(shifted(at0, s0) + shifted(at1, s1)) + np.int32(at2 + top))


@njit
def _along_rows(q, a, t, origin, rows, axis):
    """Coefficients of 1, x, x² and x³ of a polynomial less a number, for every row of a tile, into rows[axis]."""
    n = np.uint64
    q0, q1, q2, q3 = q[a, n(0), t] - origin, q[a, n(1), t], q[a, n(2), t], q[a, n(3), t]
    q4, q5, q6, q7 = q[a, n(4), t], q[a, n(5), t], q[a, n(6), t], q[a, n(7), t]
    q8, q9 = q[a, n(8), t], q[a, n(9), t]
    first = axis * n(4 * TILE_Y)
    for v in range(n(TILE_Y)):
        y = np.float64(np.int64(v)) - 0.5 * (TILE_Y - 1)
        rows[first + v] = np.float32(q0 + y * (q2 + y * (q5 + y * q9)))
        rows[first + v + n(TILE_Y)] = np.float32(q1 + y * (q4 + y * q8))
        rows[first + v + n(2 * TILE_Y)] = np.float32(q3 + y * q7)
        rows[first + v + n(3 * TILE_Y)] = np.float32(q6)


@njit
def _of_row(rows, axis, v):
    """What :func:`_along_rows` wrote for one row."""
    first = axis * np.uint64(4 * TILE_Y) + v
    return (
        rows[first],
        rows[first + np.uint64(TILE_Y)],
        rows[first + np.uint64(2 * TILE_Y)],
        rows[first + np.uint64(3 * TILE_Y)],
    )


@njit
def enter(e, t, bit, cell):
    """Set a bit in the cells of pixels where a polynomial is positive: e[0, :, t], (1, CUBIC, tx)."""
    zero, n = np.uint64(0), np.uint64
    for v in range(np.uint64(TILE_Y)):
        y = np.float64(v) - 0.5 * (TILE_Y - 1)
        e0 = e[zero, n(0), t] + y * (e[zero, n(2), t] + y * (e[zero, n(5), t] + y * e[zero, n(9), t]))
        e1 = e[zero, n(1), t] + y * (e[zero, n(4), t] + y * e[zero, n(8), t])
        e2 = e[zero, n(3), t] + y * e[zero, n(7), t]
        here = v * np.uint64(TILE_X) + np.uint64(1)
        for u in range(np.uint64(TILE_X)):
            x = np.float64(u) - 0.5 * (TILE_X - 1)
            if e0 + x * (e1 + x * (e2 + x * e[zero, n(6), t])) > 0.0:
                cell[here + u] += bit


@njit
def run_starts(cell, start):
    """Where the cell changes.

    cell : (1 + SIZE,) int32, of :func:`cells_of_pixels`
    start : (SIZE + _STARTS,) int64, written, with SIZE at the end

    Returns
    -------
    number of runs
    """
    one = np.uint64(1)
    n = np.uint64(0)
    for v in range(np.uint64(TILE_Y)):
        first = v * np.uint64(TILE_X)
        bits = changes(cell, first + one) | np.uint32(1)  # every row begins with a run
        end = n + np.uint64(number_of_bits(bits))
        while n < end:
            for k in range(np.uint64(_STARTS)):  # more than there are: the next ones are written over these
                start[n + k] = first + np.uint64(lowest_bit(bits))
                bits &= np.uint32(bits - np.uint32(1))
            n += np.uint64(_STARTS)
        n = end
    start[n] = SIZE
    return n


@njit
def add_runs(running, factors, cell, start, n_runs, cells, filled):
    """Add the sums of runs to cells.

    running, factors : of :func:`packing` and ``running_sums``
    cells : (CELL_SIZE << MAX_CELL_BITS,) int64, incremented
    filled : (SIZE + 1,) int64, written: cells that were empty

    Returns
    -------
    number of cells filled
    """
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    low, bits = np.uint64((1 << MAX_CELL_BITS) - 1), np.uint64(MAX_CELL_BITS)
    n_filled = zero
    begin = zero
    for i in range(np.uint64(n_runs)):
        at = np.uint64(cell[np.uint64(start[i]) + one])
        end = np.uint64(start[i + one]) << two
        c = at & low
        filled[n_filled] = c
        n_filled += np.uint64((cells[c << three] == 0) & (running[end] != running[begin]))
        add_run(running, begin, end, factors, (at >> bits) << three, cells, c << three)
        begin = end
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
    half,
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
    half : uint64, 1 for an odd image
    found : (SIZE, 2) uint64, written: brick, and voxel in it
    words : (CELL_WORDS * SIZE,) int64, written: what was in the cells

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
        cell = np.uint64(at) * np.uint64(CELL_SIZE)
        for k in range(np.uint64(CELL_WORDS)):
            words[k * np.uint64(SIZE) + n] = cells[cell + k]
        for k in range(np.uint64(CELL_SIZE)):
            cells[cell + k] = 0
        i0 = o0 + ((at >> bits0) & mask0)
        i1 = o1 + ((at >> bits1) & mask1)
        i2 = o2 + (at & mask2)
        if not inside and not (0 <= i0 <= e0 and 0 <= i1 <= e1 and 0 <= i2 <= e2):
            off_grid += words[n] & np.int64(_MASK_N)
            continue
        j0, j1, j2 = np.uint64(i0), np.uint64(i1), np.uint64(i2)
        enters = entering | np.uint64(at >> bits2)
        b0, b1, b2 = j0 >> two, j1 >> two, j2 >> two
        number = np.uint64(directory[b0, b1, b2, enters])
        if number == zero:
            n_bricks += 1
            number = np.uint64(n_bricks)
            new_brick(directory, sums, seen, place, b0, b1, b2, enters, first_place, n_bricks)
        voxel = voxel_of(j0, j1, j2)
        line = number * np.uint64(b.VOXELS) + voxel
        fetch(sums, np.uint64(b.N_COLUMNS) * (line + (number + half) * np.uint64(b.VOXELS)))
        fetch(seen, line + line)
        found[n, zero], found[n, one] = number, voxel
        n += one
    return n_bricks, n, off_grid


@njit
def cell_sums(words, n_cells, c, ty, tx, scale, at, w, out):
    """The sums of cells over their pixels, times a weight.

    Parameters
    ----------
    words : (CELL_WORDS * SIZE,) int64, of :func:`find_voxels`; n_cells : uint64
    c : (ty, tx, 3, 6) polynomials of c, 1/c and 1/c²; ty, tx : uint64, the tile
    scale : offset, gain and exposure; counts are (value + offset) / gain
    at : x and y of the tile's first pixel, and the angle
    w : float
    out : (N_COLUMNS * SIZE,) float64, written: the columns of a voxel, one after another
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
    per_gain = w / gain
    norm_scale = w * exposure
    rate_scale = w / (gain * exposure)
    variance_scale = rate_scale / exposure
    n_whole = (n_cells + np.uint64(_TOGETHER - 1)) & ~np.uint64(_TOGETHER - 1)  # whole vectors
    for i in range(n_whole):
        a, av, avv = words[i], words[np.uint64(1 * SIZE) + i], words[np.uint64(2 * SIZE) + i]
        b0, bv = words[np.uint64(3 * SIZE) + i], words[np.uint64(4 * SIZE) + i]
        n = np.float64(a & np.int64(_MASK_N))
        su = np.float64((a >> np.int64(_U)) & np.int64(_MASK_U))
        suu = np.float64(a >> np.int64(_UU))
        sv = np.float64(av & np.int64(_MASK_N))
        suv = np.float64((av >> np.int64(_U)) & np.int64(_MASK_U))
        svv = np.float64(avv & np.int64(_MASK_N))
        m = np.float64(b0 & np.int64(_MASK_M)) + offset * n
        mu = np.float64((b0 >> np.int64(_MU)) & np.int64(_MASK_M)) + offset * su
        mv = np.float64(bv & np.int64(_MASK_M)) + offset * sv
        muv = np.float64((bv >> np.int64(_MU)) & np.int64(_MASK_M)) + offset * suv
        mvv = np.float64(words[np.uint64(5 * SIZE) + i] & np.int64(_MASK_M)) + offset * svv
        muu = np.float64(words[np.uint64(6 * SIZE) + i]) + offset * suu
        norm = c0 * n + c1 * su + c2 * sv + c3 * suu + c4 * suv + c5 * svv
        rate = g0 * m + g1 * mu + g2 * mv + g3 * muu + g4 * muv + g5 * mvv
        variance = h0 * m + h1 * mu + h2 * mv + h3 * muu + h4 * muv + h5 * mvv
        out[np.uint64(b.N_PIXELS * SIZE) + i] = n * w
        out[np.uint64(b.COUNTS * SIZE) + i] = m * per_gain
        out[np.uint64(b.NORM * SIZE) + i] = norm * norm_scale
        out[np.uint64(b.RATE * SIZE) + i] = rate * rate_scale
        out[np.uint64(b.VARIANCE * SIZE) + i] = variance * variance_scale
        out[np.uint64(b.SUM_X * SIZE) + i] = (su + n * x0) * w
        out[np.uint64(b.SUM_Y * SIZE) + i] = (sv + n * y0) * w
        out[np.uint64(b.SUM_ANGLE * SIZE) + i] = n * (angle * w)


@njit
def add_cells(sums, seen, found, n_cells, out, half, image):
    """Add the sums of cells to their voxels.

    sums, seen : as in Bricks; found, n_cells : of :func:`find_voxels`; out : of :func:`cell_sums`
    half : uint64, 1 for an odd image; image : int32
    """
    zero, one = np.uint64(0), np.uint64(1)
    for i in range(n_cells):
        number, voxel = found[i, zero], found[i, one]
        for k in range(np.uint64(b.N_COLUMNS)):
            sums[number, half, voxel, k] += out[k * np.uint64(SIZE) + i]
        seen[number, voxel, zero] = min(seen[number, voxel, zero], image)
        seen[number, voxel, one] = max(seen[number, voxel, one], image)
