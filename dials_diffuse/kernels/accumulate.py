"""The fused pass over one panel of one image: mask, correct, guard against outliers, add to voxels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.jit import njit

#: columns of the accumulator table: five sums over even images, the same five over odd images, and sums over all
PIXELS, COUNTS, NORM, BACKGROUND, RATE = range(5)
ODD = 5
BACKGROUND_SIGMA, RATE_VARIANCE, SUM_X, SUM_Y, SUM_ANGLE = range(10, 15)
FIRST_IMAGE, LAST_IMAGE = 15, 16
N_COLUMNS = 17

#: columns of the pixel tally; kernels count masks of peaks that are not predicted among those of Bragg peaks
USED, UNTRUSTED, BRAGG, OUTLIER, OFF_GRID, UNPREDICTED = range(6)
N_TALLY = 6

_EMPTY = np.int64(-1)


@njit
def find_slot(key, entries):
    """Slot of ``key`` in an open-addressing hash table, or -1 - position where it would go.

    entries : (2**k, 2) int64, key (-1 = empty) and slot
    """
    mask = entries.shape[0] - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    position = np.int64(mixed >> np.uint64(20)) & mask
    while entries[position, 0] != key:
        if entries[position, 0] == _EMPTY:
            return -1 - position
        position = (position + 1) & mask
    return entries[position, 1]


@njit
def rehash(entries, old_entries):
    """Enter everything of an old hash table into a new, empty one."""
    for i in range(old_entries.shape[0]):
        if old_entries[i, 0] != _EMPTY:
            position = -1 - find_slot(old_entries[i, 0], entries)
            entries[position, :] = old_entries[i, :]


@njit
def is_outlier(counts, expected, threshold):
    """Two-sided test of a Poisson count: |2 sqrt(C + 3/8) - 2 sqrt(m + 3/8)| > threshold (Anscombe 1948).

    Square roots are taken only where the bounds a + b <= (sqrt(a) + sqrt(b))^2 <= 2 (a + b) do not decide.
    """
    a = max(counts, 0.0) + 0.375  # read noise makes negative counts: they are as good as zero
    b = max(expected, 0.0) + 0.375
    difference = a - b
    left = 4.0 * difference * difference
    right = threshold * threshold * (a + b)
    if left <= right:
        return False
    if left > 2.0 * right:
        return True
    root = math.sqrt(a) + math.sqrt(b)
    return left > threshold * threshold * root * root


@njit
def _add(table, slot, w, half, image, pixels, counts, norm, background, background_sigma, rate, variance):
    """Add sums over some pixels, each with weight w, to a row of the table; ``half`` is 0 or ODD."""
    # indexed without a view of the row: numba counts references to views, and that costs more than the sums
    table[slot, half + PIXELS] += w * pixels
    table[slot, half + COUNTS] += w * counts
    table[slot, half + NORM] += w * norm
    table[slot, half + BACKGROUND] += w * background
    table[slot, half + RATE] += w * rate
    table[slot, BACKGROUND_SIGMA] += w * background_sigma
    table[slot, RATE_VARIANCE] += w * variance
    if table[slot, LAST_IMAGE] != image:
        table[slot, FIRST_IMAGE] = min(table[slot, FIRST_IMAGE], image)
        table[slot, LAST_IMAGE] = max(table[slot, LAST_IMAGE], image)


@njit
def _add_position(table, slot, w, pixels, sum_x, y, offset, angle):
    table[slot, SUM_X] += w * (sum_x + pixels * offset[0])
    table[slot, SUM_Y] += w * pixels * (y + offset[1])
    table[slot, SUM_ANGLE] += w * pixels * angle


@njit
def _count(tally, untrusted, bragg, outlier, off_grid, used):
    tally[UNTRUSTED] += untrusted
    tally[BRAGG] += bragg
    tally[OUTLIER] += outlier
    tally[OFF_GRID] += off_grid
    tally[USED] += used


@njit
def _voxel_keys(u_x, u_y, u_z, matrix, origin, extent, axis_cross_s0, voxels):
    """Voxel of every pixel of a row as ``2 * flat index + entering``, or -1 off the grid.

    Kept as float64 (exact below 2**53) and free of branches, so that the compiler can use vector instructions.

    u_x, u_y, u_z : (nx,) float64, unit vectors; voxels : (nx,) float64, written
    """
    m00, m01, m02 = matrix[0, 0], matrix[0, 1], matrix[0, 2]
    m10, m11, m12 = matrix[1, 0], matrix[1, 1], matrix[1, 2]
    m20, m21, m22 = matrix[2, 0], matrix[2, 1], matrix[2, 2]
    e0, e1, e2 = float(extent[0]), float(extent[1]), float(extent[2])
    o0, o1, o2 = origin[0] - 0.5 - e0, origin[1] - 0.5 - e1, origin[2] - 0.5 - e2
    a0, a1, a2 = axis_cross_s0[0], axis_cross_s0[1], axis_cross_s0[2]
    n2, n3 = 2 * e1 + 1, 2 * e2 + 1
    for x in range(voxels.shape[0]):
        ux, uy, uz = u_x[x], u_y[x], u_z[x]
        i0 = np.floor(m00 * ux + m01 * uy + m02 * uz - o0)
        i1 = np.floor(m10 * ux + m11 * uy + m12 * uz - o1)
        i2 = np.floor(m20 * ux + m21 * uy + m22 * uz - o2)
        inside = (i0 >= 0) & (i0 <= 2 * e0) & (i1 >= 0) & (i1 < n2) & (i2 >= 0) & (i2 < n3)
        entering = 1.0 if a0 * ux + a1 * uy + a2 * uz > 0.0 else 0.0
        key = 2 * ((i0 * n2 + i1) * n3 + i2) + entering
        voxels[x] = key if inside else -1.0


class Norm(NamedTuple):
    """What a pixel is expected to count for an intensity of 1: ``corrections * exposure``.

    corrections : (ny, nx) float32, product of all corrections of pixels
    exposure : float, of all corrections of images
    """

    corrections: np.ndarray
    exposure: float


class Guard(NamedTuple):
    """Limits of the outlier guard.

    shell : (ny, nx) uint8, resolution shell of each pixel
    rate, threshold : (n_shells,) float64, C/c expected and threshold in sigma; threshold < 0: no test
    """

    shell: np.ndarray
    rate: np.ndarray
    threshold: np.ndarray


class BackgroundBlocks(NamedTuple):
    """Background in square blocks of the panel.

    counts, sigma : (by, bx) float64, expected counts per pixel and their sigma
    edge : int, pixels along the edge of a block
    """

    counts: np.ndarray
    sigma: np.ndarray
    edge: int


class View(NamedTuple):
    """Which point of each pixel stands for it.

    directions : (3, ny, nx) float64, unit vectors from the sample to the points, laboratory frame
    offset : (2,) float64, position inside the pixel (0.5, 0.5 = centre)
    weight : float, fraction of the pixel that the point stands for
    """

    directions: np.ndarray
    offset: np.ndarray
    weight: float


class Steps(NamedTuple):
    """Rotation sub-steps of an image.

    matrices, origins : (n, 3, 3) and (n, 3) float64; voxel coordinates are ``matrix @ direction - origin``
    angles : (n,) float64, degrees
    axis_cross_s0 : (3,) float64, rotation axis x s0; a positive product with the direction means entering
    """

    matrices: np.ndarray
    origins: np.ndarray
    angles: np.ndarray
    axis_cross_s0: np.ndarray


class VoxelRows(NamedTuple):
    """Rows of sums that voxels of a grid have, found by a hash table.

    extent : (3,) int64, largest index along each axis
    entries : (2 m, 2) int64, hash table from keys to rows, m a power of two
    keys : (m,) int64; sums : (m, N_COLUMNS) float64
    """

    extent: np.ndarray
    entries: np.ndarray
    keys: np.ndarray
    sums: np.ndarray


@njit
def accumulate(
    pixels, reading, norm, guard, background, view, steps, voxels, n_rows, key_offset, odd, first_row, tally
):
    """Add one panel of one image to the rows of voxels.

    Parameters
    ----------
    pixels, reading : Pixels and Reading of the panel
    norm, guard, background, view, steps, voxels : a tuple of each of these kinds
    n_rows : int, rows in use
    key_offset : int64, added to keys (tells panels apart)
    odd : bool, does the image belong to the odd half set?
    first_row : int, row of the panel to start from
    tally : (N_TALLY,) int64, pixels by fate, incremented

    Returns
    -------
    next_row, n_rows : where it stopped (ny when done; earlier when the table must grow first) and rows now in use
    """
    raw, bad, bragg, image = pixels
    corrections, exposure = norm
    shells, expected_rate, threshold = guard
    block_counts, block_sigma, block = background
    directions, pixel_offset, weight = view
    matrices, origins, angles, axis_cross_s0 = steps
    extent, entries, row_keys, table = voxels
    low, high, pedestal = reading.low, reading.high, reading.pedestal
    inverse_gain = 1.0 / reading.gain
    ny, nx = raw.shape
    n_sub = matrices.shape[0]
    w = weight / n_sub
    half = ODD if odd else 0
    capacity = min(row_keys.shape[0], entries.shape[0] // 2)
    # one detector row of good pixels
    column = np.empty(nx, dtype=np.int64)
    row_voxels = np.empty(nx)
    row_counts, row_norm, row_rate, row_variance = np.empty(nx), np.empty(nx), np.empty(nx), np.empty(nx)
    row_background, row_sigma = np.zeros(nx), np.zeros(nx)
    n_untrusted = n_bragg = n_outlier = n_off_grid = n_used = 0
    has_background = block_counts.size > 1 or block_counts[0, 0] != 0.0
    for y in range(first_row, ny):
        if n_rows + nx * n_sub > capacity:
            _count(tally, n_untrusted, n_bragg, n_outlier, n_off_grid, n_used)
            return y, n_rows
        n_good = 0
        by = y // block
        bx, block_end = 0, block
        for x in range(nx):
            if x >= block_end:
                bx += 1
                block_end += block
            if bad[y, x] != 0:
                continue
            value = raw[y, x]
            if not (low <= value <= high):
                n_untrusted += 1
                continue
            if bragg[y, x] == image:
                n_bragg += 1
                continue
            counts = (value - pedestal) * inverse_gain
            correction = corrections[y, x] * exposure
            limit = threshold[shells[y, x]]
            if limit >= 0.0 and is_outlier(counts, expected_rate[shells[y, x]] * correction, limit):
                n_outlier += 1
                continue
            column[n_good] = x
            inverse = 1.0 / correction
            rate = counts * inverse
            row_counts[n_good] = counts
            row_norm[n_good] = correction
            row_variance[n_good] = rate * inverse
            if has_background:
                rate -= block_counts[by, bx] * inverse
                row_background[n_good] = block_counts[by, bx]
                row_sigma[n_good] = block_sigma[by, bx]
            row_rate[n_good] = rate
            n_good += 1
        for sub in range(n_sub):
            u_x, u_y, u_z = directions[0, y], directions[1, y], directions[2, y]
            _voxel_keys(u_x, u_y, u_z, matrices[sub], origins[sub], extent, axis_cross_s0, row_voxels)
            n_outside = 0
            last_voxel = -1.0
            slot = np.int64(-1)
            # neighbouring pixels mostly share a voxel: their sums are kept here until it changes
            n_pixels = np.int64(0)
            sum_x = np.int64(0)
            counts = norms = rate = variance = b = b_sigma = 0.0
            for i in range(n_good):
                x = column[i]
                voxel = row_voxels[x]
                if voxel < 0.0:
                    n_outside += 1
                    continue
                if voxel != last_voxel:
                    if slot >= 0:
                        _add(table, slot, w, half, image, n_pixels, counts, norms, b, b_sigma, rate, variance)
                        _add_position(table, slot, w, n_pixels, sum_x, y, pixel_offset, angles[sub])
                        n_pixels = np.int64(0)
                        sum_x = np.int64(0)
                        counts = norms = rate = variance = b = b_sigma = 0.0
                    key = np.int64(voxel) + key_offset
                    slot = find_slot(key, entries)
                    if slot < 0:
                        position = -1 - slot
                        slot = np.int64(n_rows)
                        entries[position, 0] = key
                        entries[position, 1] = n_rows
                        row_keys[slot] = key
                        for c in range(N_COLUMNS):
                            table[slot, c] = 0.0
                        table[slot, FIRST_IMAGE] = table[slot, LAST_IMAGE] = image
                        n_rows += 1
                    last_voxel = voxel
                n_pixels += 1
                counts += row_counts[i]
                norms += row_norm[i]
                rate += row_rate[i]
                variance += row_variance[i]
                if has_background:
                    b += row_background[i]
                    b_sigma += row_sigma[i]
                sum_x += x
            if slot >= 0:
                _add(table, slot, w, half, image, n_pixels, counts, norms, b, b_sigma, rate, variance)
                _add_position(table, slot, w, n_pixels, sum_x, y, pixel_offset, angles[sub])
            if sub == 0:
                n_off_grid += n_outside
                n_used += n_good - n_outside
    _count(tally, n_untrusted, n_bragg, n_outlier, n_off_grid, n_used)
    return ny, n_rows
