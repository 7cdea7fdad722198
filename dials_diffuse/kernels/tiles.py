"""The pass over one panel of one image in tiles of 32 x 16 pixels.

Within a tile the direction to a pixel is a cubic and its correction a quadratic polynomial of its position. What pixels
count is decided by comparing integers; those that are not clear from the limits of their tile are looked at one by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.accumulate import BRAGG, OFF_GRID, OUTLIER, UNTRUSTED, USED, is_outlier
from dials_diffuse.kernels.bricks import N_COLUMNS, new_brick, voxel_of
from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.tile_cells import (
    CELL_SIZE,
    CELL_WORDS,
    CUBIC,
    MAX_CELL_BITS,
    SIZE,
    TILE_X,
    TILE_Y,
    VALUE_BITS,
    add_cells,
    add_runs,
    cell_sums,
    cells_of_pixels,
    combine,
    enter,
    find_voxels,
    packing,
    run_starts,
)
from dials_diffuse.kernels.vectors import running_sums

LOWEST = -(1 << 16)  # counted value of a tile, where nothing else limits them
BELOW = 1 << (VALUE_BITS - 1)  # so far below the lowest counted value there is room for those that pass the exact tests


class Tiles(NamedTuple):
    """One panel in tiles, from the corner of the first pixel; those at the far edges may be cut.

    directions : (ty, 3, CUBIC, tx) float64, polynomials of (x - 15.5, y - 7.5), x and y pixels within the tile, with
        the terms 1, x, y, x², xy, y², x³, x²y, xy², y³
    corrections : (ty, tx, 3, 6) float64, of c, 1/c and 1/c²; polynomials of (x, y)
    c_range : (ty, tx, 2) float64, smallest and largest c
    shell_range : (ty, tx, 2) int64, first and last resolution shell
    exact : (ty, tx) uint8, 1 where the polynomials are not good enough
    """

    directions: np.ndarray
    corrections: np.ndarray
    c_range: np.ndarray
    shell_range: np.ndarray
    exact: np.ndarray


@njit
def _counted_values(first, last, c_low, c_high, low, high, rates, thresholds, exposure, gain, pedestal):
    """Raw values, from a first to a last one, that are trusted and no outlier wherever they lie in a tile.

    first, last : shells; c_low, c_high : range of c; low, high : int64, trusted
    rates, thresholds : as in Guard
    """
    lowest, highest = low, high
    for s in range(first, last + 1):
        limit = thresholds[s]
        if limit < 0.0:
            continue
        rate = rates[s] * exposure
        a, c = rate * c_low, rate * c_high
        least, most = max(min(a, c), 0.0) + 0.375, max(a, c, 0.0) + 0.375
        root = math.sqrt(least) + 0.5 * limit
        top = (root * root - 0.375) * (1.0 - 1e-9) * gain + pedestal
        highest = min(highest, np.int64(math.floor(min(top, 2e9))))
        root = math.sqrt(most) - 0.5 * limit
        if root * root > 0.375 and root > 0.0:
            bottom = (root * root - 0.375) * (1.0 + 1e-9) * gain + pedestal
            lowest = max(lowest, np.int64(math.ceil(min(bottom, 2e9))))
    lowest = max(lowest, LOWEST)
    return lowest, min(highest, lowest + (1 << VALUE_BITS) - 1)


@njit
def _mask(raw, bad, bragg, image, y0, bases, firsts, spans, low, trusted_span, value, facts):
    """Which pixels of a row of tiles count, and what.

    Parameters
    ----------
    raw, bad, bragg, image : as in Pixels; y0 : first row of pixels
    bases, firsts, spans : (tiles,) uint32; counted are first + (0 .. span), and written relative to base
    low, trusted_span : uint32; trusted are low + (0 .. trusted_span)
    value : (tiles, SIZE) int32, written: 2 (raw - base) + 1 where the pixel counts, else 0
    facts : (tiles, 3) int64, written: pixels that count, pixels covered by Bragg peaks, nonzero if a pixel must be
        looked at
    """
    ny, nx = raw.shape
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    image = np.int32(image)
    height = min(TILE_Y, ny - y0)
    for t in range(np.uint64(len(bases))):
        facts[t, zero] = facts[t, one] = facts[t, two] = 0
        if height < TILE_Y or np.int64(t + one) * TILE_X > nx:
            for i in range(np.uint64(SIZE)):
                value[t, i] = 0
    for v in range(np.uint64(height)):
        y = np.uint64(y0) + v
        first = v * np.uint64(TILE_X)
        for t in range(np.uint64(len(bases))):
            x0 = t * np.uint64(TILE_X)
            base, lowest, span = bases[t], firsts[t], spans[t]
            n_counted = np.int32(0)
            n_covered = np.int32(0)
            strange = np.int32(0)
            for u in range(np.uint64(min(TILE_X, nx - np.int64(x0)))):
                x = x0 + u
                r = np.uint32(raw[y, x])
                trusted = np.int32(np.uint32(r - low) <= trusted_span)
                usable = np.int32(bad[y, x] == np.uint8(0))
                covered = np.int32(bragg[y, x] == image)
                free = np.int32(usable & np.int32(covered ^ np.int32(1)))
                count = np.int32(np.int32(free & np.int32(np.uint32(r - lowest) <= span)) & trusted)
                strange |= np.int32(np.int32(usable & np.int32(trusted ^ np.int32(1))) | np.int32(free ^ count))
                n_counted = np.int32(n_counted + count)
                n_covered = np.int32(n_covered + np.int32(np.int32(usable & covered) & trusted))
                value[t, first + u] = np.int32(
                    np.int32(np.int32(np.uint32(r - base)) * np.int32(2)) + np.int32(1)
                ) & np.int32(-count)
            facts[t, zero] += n_counted
            facts[t, one] += n_covered
            facts[t, two] |= strange


@njit
def _look(pixels, reading, norm, guard, tile, y0, x0, base, value, special, fates):
    """The exact tests for the pixels of a tile that :func:`_mask` could not count.

    pixels, reading, norm, guard : as in add_tiles; tile : uint64, column of the tile; y0, x0 : its first pixel
    base : as in _mask, int64; value : (tiles, SIZE) of _mask, changed
    special : (SIZE,) int64, written: places of pixels to be added one by one, because they are so bright
    fates : (2,) int64, incremented by pixels that are not trusted and by outliers

    Returns
    -------
    pixels that count all the same, and how many of them are special
    """
    ny, nx = pixels.raw.shape
    n_counted = n_special = 0
    for v in range(min(TILE_Y, ny - y0)):
        for u in range(min(TILE_X, nx - x0)):
            y, x = y0 + v, x0 + u
            place = v * TILE_X + u
            if value[tile, place] != 0 or pixels.bad[y, x] != 0:
                continue
            raw = pixels.raw[y, x]
            if not (reading.low <= raw <= reading.high):
                fates[0] += 1
                continue
            if pixels.bragg[y, x] == pixels.number:
                continue
            shell = guard.shell[y, x]
            limit = guard.threshold[shell]
            expected = guard.rate[shell] * (norm.corrections[y, x] * norm.exposure)
            if limit >= 0.0 and is_outlier((raw - reading.pedestal) / reading.gain, expected, limit):
                fates[1] += 1
                continue
            n_counted += 1
            d = np.int64(raw) - base
            if 0 <= d < (1 << VALUE_BITS):
                value[tile, place] = 2 * d + 1
            else:
                special[n_special] = place
                n_special += 1
    return n_counted, n_special


@njit
def _add_pixel(pixels, reading, norm, view, steps, sub, shift, y, x, bricks, first_place, n_bricks, odd):
    """Add one pixel by its own direction and correction; returns n_bricks, and 1 if it is off the grid."""
    ux, uy, uz = view.directions[0, y, x], view.directions[1, y, x], view.directions[2, y, x]
    m, axis, e = steps.matrices, steps.axis_cross_s0, bricks.extent
    i0 = np.int64(math.floor(m[sub, 0, 0] * ux + m[sub, 0, 1] * uy + m[sub, 0, 2] * uz + shift[0]))
    i1 = np.int64(math.floor(m[sub, 1, 0] * ux + m[sub, 1, 1] * uy + m[sub, 1, 2] * uz + shift[1]))
    i2 = np.int64(math.floor(m[sub, 2, 0] * ux + m[sub, 2, 1] * uy + m[sub, 2, 2] * uz + shift[2]))
    if not (0 <= i0 <= 2 * e[0] and 0 <= i1 <= 2 * e[1] and 0 <= i2 <= 2 * e[2]):
        return n_bricks, 1
    enters = 1 if axis[0] * ux + axis[1] * uy + axis[2] * uz > 0.0 else 0
    number = np.int64(bricks.directory[i0 >> 2, i1 >> 2, i2 >> 2, enters])
    if number == 0:
        n_bricks += 1
        number = n_bricks
        b0, b1, b2 = np.uint64(i0 >> 2), np.uint64(i1 >> 2), np.uint64(i2 >> 2)
        directory, sums, seen, place, _ = bricks
        new_brick(directory, sums, seen, place, b0, b1, b2, np.uint64(enters), first_place, number)
    voxel = np.int64(voxel_of(np.uint64(i0), np.uint64(i1), np.uint64(i2)))
    counts = (pixels.raw[y, x] - reading.pedestal) / reading.gain
    c = norm.corrections[y, x] * norm.exposure
    rate = counts / c
    w = view.weight / m.shape[0]
    half = 1 if odd else 0
    at_x, at_y, angle = x + view.offset[0], y + view.offset[1], steps.angles[sub]
    for k, term in enumerate((1.0, counts, c, rate, rate / c, at_x, at_y, angle)):  # in the order of the columns
        bricks.sums[number, half, voxel, k] += w * term
    image = np.int32(pixels.number)
    bricks.seen[number, voxel, 0] = min(bricks.seen[number, voxel, 0], image)
    bricks.seen[number, voxel, 1] = max(bricks.seen[number, voxel, 1], image)
    return n_bricks, 0


@njit
def add_tiles(pixels, reading, norm, guard, view, steps, tiles, bricks, n_bricks, first_place, odd, first_tile, tally):
    """Add one panel of one image to bricks.

    Parameters
    ----------
    pixels, reading, norm, guard, view, steps, tiles, bricks : a tuple of each of these kinds; raw is int32
    n_bricks : int, bricks in use
    first_place : int64, places before the panel
    odd : bool, does the image belong to the odd half set?
    first_tile : int, tile to start from
    tally : (N_TALLY,) int64, pixels by fate, incremented

    Returns
    -------
    next_tile, n_bricks : where it stopped (the number of tiles when done; earlier when there must be more bricks
        first) and bricks now in use
    """
    raw, bad, bragg, number = pixels
    low, high, pedestal, gain = reading
    exposure, rates, thresholds = norm.exposure, guard.rate, guard.threshold
    offset, weight = view.offset, view.weight
    matrices, origins, angles, axis = steps
    polynomials, c_polynomials, c_range, shell_range, exact = tiles
    directory, sums, seen, places, extent = bricks
    n_steps = matrices.shape[0]
    w = weight / n_steps
    half = np.uint64(1) if odd else np.uint64(0)
    image = np.int32(number)
    int_low = np.int64(max(math.ceil(low), -2147483648.0))
    int_high = np.int64(min(math.floor(high), 2147483647.0))
    capacity = places.shape[0] - 1
    rows, columns = exact.shape
    value, facts = np.empty((columns, SIZE), dtype=np.int32), np.empty((columns, 3), dtype=np.int64)
    bases, firsts = np.empty(columns, dtype=np.uint32), np.empty(columns, dtype=np.uint32)
    spans = np.empty(columns, dtype=np.uint32)
    running = np.empty(4 * (SIZE + 1), dtype=np.int64)
    cell = np.zeros(SIZE + 1, dtype=np.int32)
    start, filled = np.empty(SIZE + 8, dtype=np.int64), np.empty(SIZE + 1, dtype=np.int64)
    special = np.empty(SIZE, dtype=np.int64)
    found, words = np.empty((SIZE, 2), dtype=np.uint64), np.zeros(CELL_WORDS * SIZE, dtype=np.int64)
    out = np.empty(N_COLUMNS * SIZE)
    cells = np.zeros(CELL_SIZE << MAX_CELL_BITS, dtype=np.int64)
    fates = np.zeros(2, dtype=np.int64)
    table, factors = np.empty(4 * TILE_X, dtype=np.int64), np.empty(CELL_SIZE * TILE_Y, dtype=np.int64)
    middle, along_rows = np.empty(TILE_X, dtype=np.float32), np.empty(3 * 4 * TILE_Y, dtype=np.float32)
    packing(table, factors, middle)
    q, q_far = np.empty((3 * n_steps, CUBIC, columns)), np.empty((3 * n_steps, columns))
    along, along_far = np.empty((1, CUBIC, columns)), np.empty((1, columns))
    origin, bits, shape = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    shifts = np.empty((n_steps, 3))
    for sub in range(n_steps):
        for a in range(3):
            shifts[sub, a] = 0.5 + extent[a] - origins[sub, a]
    n_used = n_bragg = n_off_grid = 0
    tile = first_tile
    room = capacity - SIZE * n_steps
    while tile < rows * columns and n_bricks <= room:
        ty = np.uint64(tile // columns)
        y0 = (tile // columns) * TILE_Y
        for t in range(columns):
            tx = np.uint64(t)
            first, last = _counted_values(
                shell_range[ty, tx, 0],
                shell_range[ty, tx, 1],
                c_range[ty, tx, 0],
                c_range[ty, tx, 1],
                int_low,
                int_high,
                rates,
                thresholds,
                exposure,
                gain,
                pedestal,
            )
            if last < first:  # no value is certain: the only one that is not looked at is one that is not trusted
                first = last = int_high + 1 if int_high < 2147483647 else int_low - 1
            base = max(int_low, first - BELOW)
            last = min(last, base + (1 << VALUE_BITS) - 1)
            bases[tx], firsts[tx], spans[tx] = np.uint32(base), np.uint32(first), np.uint32(last - first)
        _mask(
            raw,
            bad,
            bragg,
            number,
            y0,
            bases,
            firsts,
            spans,
            np.uint32(int_low),
            np.uint32(int_high - int_low),
            value,
            facts,
        )
        combine(polynomials, ty, matrices.reshape((3 * n_steps, 3)), shifts.reshape(3 * n_steps), q, q_far)
        combine(polynomials, ty, axis.reshape((1, 3)), np.zeros(1), along, along_far)
        for t in range(tile % columns, columns):
            if n_bricks > room:
                break
            tile += 1
            tx = np.uint64(t)
            x0 = t * TILE_X
            base = np.int64(np.int32(bases[tx]))
            n_counted = facts[tx, 0]
            n_bragg += facts[tx, 1]
            n_special = 0
            if facts[tx, 2] != 0:
                more, n_special = _look(pixels, reading, norm, guard, tx, y0, x0, base, value, special, fates)
                n_counted += more
            if n_counted == 0:
                continue
            n_used += n_counted
            whole = exact[ty, tx] == 0
            if whole:
                running_sums(value, tx * np.uint64(SIZE), np.uint64(SIZE), table, running)
            mixed = abs(along[0, 0, tx]) <= along_far[0, tx]
            entering = np.uint64(1) if along[0, 0, tx] > 0.0 and not mixed else np.uint64(0)
            for sub in range(n_steps):
                outside = 0
                first_axis = np.uint64(3 * sub)
                fits = inside = whole  # for a True in the source, find_voxels would be compiled a second time
                if fits:
                    for a in range(np.uint64(3)):
                        middle_at, far = q[first_axis + a, 0, tx], q_far[first_axis + a, tx] + 1e-5
                        low_end, high_end = math.floor(middle_at - far), math.floor(middle_at + far)
                        origin[a] = np.int64(low_end)
                        bits[a] = 0
                        while (np.int64(high_end) - origin[a]) >> bits[a] > 0:
                            bits[a] += 1
                        inside &= low_end >= 0 and high_end <= 2 * extent[a]
                    shape[1] = bits[2]
                    shape[0] = bits[2] + bits[1]
                    shape[2] = shape[0] + bits[0]
                    fits = shape[2] + mixed <= MAX_CELL_BITS
                if fits:
                    cells_of_pixels(q, first_axis, tx, origin, shape[0], shape[1], middle, along_rows, cell)
                    if mixed:
                        enter(along, tx, np.int32(1 << shape[2]), cell)
                    n_runs = run_starts(cell, start)
                    n_filled = add_runs(running, factors, cell, start, n_runs, cells, filled)
                    n_bricks, n_cells, outside = find_voxels(
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
                        places,
                        first_place,
                        n_bricks,
                        entering,
                        half,
                        found,
                        words,
                    )
                    at = x0 + offset[0], y0 + offset[1], angles[sub]
                    cell_sums(words, n_cells, c_polynomials, ty, tx, (base - pedestal, gain, exposure), at, w, out)
                    add_cells(sums, seen, found, n_cells, out, half, image)
                n_alone = n_special
                if not fits:
                    for k in range(SIZE):
                        if value[tx, k] != 0:
                            special[n_alone] = k
                            n_alone += 1
                for k in range(n_alone):
                    y, x = y0 + special[k] // TILE_X, x0 + special[k] % TILE_X
                    n_bricks, off = _add_pixel(
                        pixels, reading, norm, view, steps, sub, shifts[sub], y, x, bricks, first_place, n_bricks, odd
                    )
                    outside += off
                if sub == 0:
                    n_off_grid += outside
    tally[USED] += n_used - n_off_grid
    tally[OFF_GRID] += n_off_grid
    tally[BRAGG] += n_bragg
    tally[UNTRUSTED] += fates[0]
    tally[OUTLIER] += fates[1]
    return tile, n_bricks
