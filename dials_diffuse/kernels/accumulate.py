"""The fused pass over one panel of one image: mask, correct, guard against outliers, add to voxels."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit

#: columns of the accumulator table
PIXELS, COUNTS, NORM, BACKGROUND, BACKGROUND_SIGMA, RATE, RATE_VARIANCE = range(7)
SUM_X, SUM_Y, SUM_ANGLE = range(7, 10)
PIXELS_ODD, COUNTS_ODD, NORM_ODD, BACKGROUND_ODD, RATE_ODD = range(10, 15)
FIRST_IMAGE, LAST_IMAGE = 15, 16
N_COLUMNS = 17

#: columns of the pixel tally
USED, UNTRUSTED, BRAGG, OUTLIER, OFF_GRID = range(5)
N_TALLY = 5

_EMPTY = np.int64(-1)


@njit
def find_slot(key, keys, slots):
    """Slot of ``key`` in an open-addressing hash table, or -1 - position where it would go.

    keys : (2**k,) int64, -1 = empty; slots : (2**k,) int32
    """
    mask = keys.shape[0] - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    position = np.int64(mixed >> np.uint64(20)) & mask
    while keys[position] != key:
        if keys[position] == _EMPTY:
            return -1 - position
        position = (position + 1) & mask
    return np.int64(slots[position])


@njit
def rehash(keys, slots, old_keys, old_slots):
    """Move all entries of the old table into the new, empty one (keys, slots)."""
    for i in range(old_keys.shape[0]):
        if old_keys[i] != _EMPTY:
            position = -1 - find_slot(old_keys[i], keys, slots)
            keys[position] = old_keys[i]
            slots[position] = old_slots[i]


@njit
def is_outlier(counts, expected, threshold):
    """Two-sided test of a Poisson count: |2 sqrt(C + 3/8) - 2 sqrt(m + 3/8)| > threshold (Anscombe 1948).

    Square roots are taken only where the bounds a + b <= (sqrt(a) + sqrt(b))^2 <= 2 (a + b) do not decide.
    """
    difference = counts - expected
    a = max(counts, 0.0) + 0.375
    b = max(expected, 0.0) + 0.375
    left = 4.0 * difference * difference
    right = threshold * threshold * (a + b)
    if left <= right:
        return False
    if left > 2.0 * right:
        return True
    root = math.sqrt(a) + math.sqrt(b)
    return left > threshold * threshold * root * root


@njit
def accumulate(
    raw,
    bad,
    bragg,
    directions,
    corrections,
    exposure,
    shells,
    expected_rate,
    threshold,
    background,
    background_sigma,
    background_block,
    matrices,
    origins,
    angles,
    axis_cross_s0,
    limits,
    count_scale,
    image,
    odd,
    first_row,
    key_offset,
    extent,
    keys,
    slots,
    row_keys,
    table,
    n_rows,
    weight,
    pixel_offset,
    tally,
):
    """Add one panel of one image to the voxel table.

    Parameters
    ----------
    raw : (ny, nx) int32 or float64, detector counts
    bad : (ny, nx) uint8, nonzero = never use
    bragg : (ny, nx) int32, equal to ``image`` where a Bragg peak covers the pixel in this image
    directions : (ny, nx, 3) float64, unit vectors from the sample to the pixel, laboratory frame
    corrections : (ny, nx) float32, product of all pixel corrections
    exposure : float, multiplies the corrections
    shells : (ny, nx) uint8, resolution shell for the outlier guard
    expected_rate, threshold : (n_shells,) float64, C/c expected and threshold in sigma; threshold < 0: no test
    background, background_sigma : (by, bx) float64, expected counts per pixel and their sigma in detector blocks
    background_block : int, pixels along the edge of a block
    matrices, origins : (n_sub, 3, 3) and (n_sub, 3) float64; voxel coordinates are ``matrix @ direction - origin``
    angles : (n_sub,) float64, rotation angle of each sub-step in degrees
    axis_cross_s0 : (3,) float64, rotation axis x s0; a positive product with the direction means entering
    limits : (2,) float64, lowest and highest trusted raw value (inclusive)
    count_scale : (2,) float64, pedestal and gain: C = (raw - pedestal) / gain
    image : int, number of the image; odd : bool, does it belong to the odd half set
    first_row : int, row of the panel to start from
    key_offset : int64, added to voxel keys (tells panels apart)
    extent : (3,) int64, largest index along each axis
    keys, slots : hash table; row_keys : (capacity,) int64; table : (capacity, N_COLUMNS) float64
    n_rows : int, rows in use
    weight : float, fraction of a pixel that one call with one sub-step stands for, times n_sub
    pixel_offset : (2,) float64, position inside the pixel (0.5, 0.5 = centre)
    tally : (N_TALLY,) int64, pixels by fate, incremented

    Returns
    -------
    next_row, n_rows : where it stopped (ny when done; earlier when the table must grow first) and rows now in use
    """
    ny, nx = raw.shape
    n_sub = matrices.shape[0]
    n2 = 2 * extent[1] + 1
    n3 = 2 * extent[2] + 1
    w = weight / n_sub
    column = np.empty(nx, dtype=np.int64)
    capacity = min(row_keys.shape[0], keys.shape[0] // 2)
    for y in range(first_row, ny):
        if n_rows + nx * n_sub > capacity:
            return y, n_rows
        n_good = 0
        for x in range(nx):
            if bad[y, x] != 0:
                continue
            value = raw[y, x]
            if not (limits[0] <= value <= limits[1]):
                tally[UNTRUSTED] += 1
                continue
            if bragg[y, x] == image:
                tally[BRAGG] += 1
                continue
            limit = threshold[shells[y, x]]
            if limit >= 0.0:
                counts = (value - count_scale[0]) / count_scale[1]
                if is_outlier(counts, expected_rate[shells[y, x]] * corrections[y, x] * exposure, limit):
                    tally[OUTLIER] += 1
                    continue
            column[n_good] = x
            n_good += 1
        by = y // background_block
        for sub in range(n_sub):
            m = matrices[sub]
            m00, m01, m02 = m[0, 0], m[0, 1], m[0, 2]
            m10, m11, m12 = m[1, 0], m[1, 1], m[1, 2]
            m20, m21, m22 = m[2, 0], m[2, 1], m[2, 2]
            o0 = origins[sub, 0] - 0.5
            o1 = origins[sub, 1] - 0.5
            o2 = origins[sub, 2] - 0.5
            last_key = _EMPTY
            slot = np.int64(0)
            for i in range(n_good):
                x = column[i]
                ux, uy, uz = directions[y, x, 0], directions[y, x, 1], directions[y, x, 2]
                i0 = np.int64(math.floor(m00 * ux + m01 * uy + m02 * uz - o0))
                i1 = np.int64(math.floor(m10 * ux + m11 * uy + m12 * uz - o1))
                i2 = np.int64(math.floor(m20 * ux + m21 * uy + m22 * uz - o2))
                if abs(i0) > extent[0] or abs(i1) > extent[1] or abs(i2) > extent[2]:
                    if sub == 0:
                        tally[OFF_GRID] += 1
                    continue
                key = ((i0 + extent[0]) * n2 + (i1 + extent[1])) * n3 + (i2 + extent[2]) + key_offset
                key *= 2
                if axis_cross_s0[0] * ux + axis_cross_s0[1] * uy + axis_cross_s0[2] * uz > 0.0:
                    key += 1
                if key != last_key:
                    slot = find_slot(key, keys, slots)
                    if slot < 0:
                        position = -1 - slot
                        slot = np.int64(n_rows)
                        keys[position] = key
                        slots[position] = n_rows
                        row_keys[slot] = key
                        for c in range(N_COLUMNS):
                            table[slot, c] = 0.0
                        table[slot, FIRST_IMAGE] = image
                        n_rows += 1
                    last_key = key
                if sub == 0:
                    tally[USED] += 1
                correction = np.float64(corrections[y, x]) * exposure
                counts = (raw[y, x] - count_scale[0]) / count_scale[1]
                b = background[by, x // background_block]
                rate = (counts - b) / correction
                row = table[slot]
                row[PIXELS] += w
                row[COUNTS] += w * counts
                row[NORM] += w * correction
                row[BACKGROUND] += w * b
                row[BACKGROUND_SIGMA] += w * background_sigma[by, x // background_block]
                row[RATE] += w * rate
                row[RATE_VARIANCE] += w * counts / (correction * correction)
                row[SUM_X] += w * (x + pixel_offset[0])
                row[SUM_Y] += w * (y + pixel_offset[1])
                row[SUM_ANGLE] += w * angles[sub]
                row[FIRST_IMAGE] = min(row[FIRST_IMAGE], image)
                row[LAST_IMAGE] = max(row[LAST_IMAGE], image)
                if odd:
                    row[PIXELS_ODD] += w
                    row[COUNTS_ODD] += w * counts
                    row[NORM_ODD] += w * correction
                    row[BACKGROUND_ODD] += w * b
                    row[RATE_ODD] += w * rate
    return ny, n_rows
