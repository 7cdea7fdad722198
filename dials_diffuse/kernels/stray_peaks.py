"""Pixels of an image that count far more than others at their resolution, and how far the peaks around them reach."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.accumulate import is_outlier
from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.tile_cells import TILE_X, TILE_Y

#: pixels from the middle of a peak to where its tails are followed, and from a ring to those that it is compared with
FARTHEST, NEXT, RINGS = 24, 2, 4

#: standard errors, and part of what is counted around, by which a ring of a peak exceeds the rings beyond it
N_SIGMA, LEAST = 2.0, 0.03

#: columns of what is known of a peak
REACH, HALF, LEVEL, TOP = range(4)
N_MEASURED = 4


class PeakTiles(NamedTuple):
    """What limits the counts in tiles of 32 x 16 pixels.

    shell_range : (ty, tx, 2) int64, lowest and highest resolution shell
    least : (ty, tx) float64, smallest correction of the pixels that are not bad; infinite where all are
    """

    shell_range: np.ndarray
    least: np.ndarray


@njit
def find_high(pixels, reading, norm, guard, tiles, places):
    """Pixels that the outlier guard refuses because they count too much.

    Whole tiles are compared with the lowest limit that any of their pixels can have, and only what exceeds it is looked
    at one by one.

    Parameters
    ----------
    pixels, reading, norm, guard : as for ``accumulate``
    tiles : PeakTiles
    places : (m, 2) int64, y and x are written, as many as there is room for

    Returns
    -------
    n : how many there are
    """
    raw, bad, bragg, number = pixels
    ny, nx = raw.shape
    n = 0
    for ty in range(tiles.least.shape[0]):
        for tx in range(tiles.least.shape[1]):
            c = tiles.least[ty, tx] * norm.exposure
            lowest = np.inf
            for s in range(tiles.shell_range[ty, tx, 0], tiles.shell_range[ty, tx, 1] + 1):
                if guard.threshold[s] >= 0.0:
                    root = math.sqrt(max(guard.rate[s] * c, 0.0) + 0.375) + 0.5 * guard.threshold[s]
                    lowest = min(lowest, root * root - 0.375)
            if not math.isfinite(lowest):
                continue
            limit = raw.dtype.type(min(math.floor(lowest * reading.gain + reading.pedestal), 2e9))
            x0, x1 = TILE_X * tx, min(TILE_X * tx + TILE_X, nx)
            for y in range(TILE_Y * ty, min(TILE_Y * ty + TILE_Y, ny)):
                above = 0
                for x in range(np.uint64(x0), np.uint64(x1)):
                    above += np.int64(raw[np.uint64(y), x] > limit)
                if above == 0:
                    continue
                for x in range(x0, x1):
                    value = raw[y, x]
                    if value <= limit or value > reading.high or bad[y, x] != 0 or bragg[y, x] == number:
                        continue
                    shell = guard.shell[y, x]
                    expected = guard.rate[shell] * norm.corrections[y, x] * norm.exposure
                    counts = (value - reading.pedestal) / reading.gain
                    if guard.threshold[shell] < 0.0 or counts <= expected:
                        continue
                    if is_outlier(counts, expected, guard.threshold[shell]):
                        if n < places.shape[0]:
                            places[n, 0], places[n, 1] = y, x
                        n += 1
    return n


@njit
def measure_tails(pixels, reading, norm, guard, centre, core, measured):
    """How far peaks reach: until a ring about them counts no more than the rings beyond it.

    Pixels outside the core count no more than the outlier guard allows, so that other peaks nearby do not decide.

    Parameters
    ----------
    pixels, reading, norm, guard : as for ``accumulate``
    centre : (n, 2) float64, y and x, those of pixels at whole numbers
    core : (n,) int64 pixels, distance from the centre to where pixels belong to the peak anyway
    measured : (n, N_MEASURED) float64, written: REACH, pixels to where the peak ends; HALF, to where half of it is
        left; LEVEL, counts of a pixel around it; TOP, mean counts of the pixels in its middle above that
    """
    raw, bad, bragg, number = pixels
    ny, nx = raw.shape
    size, excess, usual = np.empty(FARTHEST), np.empty(FARTHEST), np.empty(FARTHEST)
    for i in range(centre.shape[0]):
        size[:], excess[:], usual[:] = 0.0, 0.0, 0.0
        cy, cx = centre[i, 0], centre[i, 1]
        for y in range(max(0, int(cy) - FARTHEST), min(ny, int(cy) + FARTHEST + 2)):
            for x in range(max(0, int(cx) - FARTHEST), min(nx, int(cx) + FARTHEST + 2)):
                ring = int(math.hypot(y - cy, x - cx) + 0.5)
                value = raw[y, x]
                if ring >= FARTHEST or bad[y, x] != 0 or bragg[y, x] == number:
                    continue
                if not (reading.low <= value <= reading.high):
                    continue
                shell = guard.shell[y, x]
                m = max(guard.rate[shell] * norm.corrections[y, x] * norm.exposure, 0.0)
                counts = (value - reading.pedestal) / reading.gain
                if ring > core[i]:
                    root = math.sqrt(m + 0.375) + 0.5 * guard.threshold[shell]
                    counts = min(counts, root * root - 0.375)
                size[ring] += 1.0
                excess[ring] += counts - m
                usual[ring] += m
        reach = FARTHEST
        beyond = around = 0.0
        for ring in range(1, FARTHEST - NEXT - RINGS + 1):
            here, n_far, far, expected = 0.0, 0.0, 0.0, 0.0
            for k in range(ring + NEXT, ring + NEXT + RINGS):
                n_far += size[k]
                far += excess[k]
                expected += usual[k]
            if n_far == 0.0:
                continue
            beyond, around = far / n_far, expected / n_far
            if ring <= core[i]:
                continue
            if size[ring] > 0.0:
                here = excess[ring] / size[ring]
                level = max(around + beyond, 0.0)
                error = math.sqrt((max(here - beyond, 0.0) + level + 1.0) / size[ring] + (level + 1.0) / n_far)
                if here - beyond > max(N_SIGMA * error, LEAST * level):
                    continue
            reach = ring
            break
        top = (excess[0] + excess[1]) / max(size[0] + size[1], 1.0) - beyond
        half = FARTHEST
        for ring in range(FARTHEST):
            if size[ring] > 0.0 and excess[ring] / size[ring] - beyond < 0.5 * top:
                half = ring
                break
        measured[i, REACH], measured[i, HALF] = reach, half
        measured[i, LEVEL], measured[i, TOP] = around + beyond, top


@njit
def paint_peaks(pixels, reading, centre, radius, painted):
    """Mark the pixels about peaks as those of Bragg peaks.

    Parameters
    ----------
    pixels, reading : as for ``accumulate``; ``pixels.bragg`` is changed
    centre : (n, 2) float64, y and x; radius : (n,) float64, pixels
    painted : (n,) int64, written: how many pixels of each peak could have been used
    """
    ny, nx = pixels.raw.shape
    for i in range(centre.shape[0]):
        cy, cx, r = centre[i, 0], centre[i, 1], radius[i]
        painted[i] = 0
        for y in range(max(0, math.ceil(cy - r)), min(ny, math.floor(cy + r) + 1)):
            for x in range(max(0, math.ceil(cx - r)), min(nx, math.floor(cx + r) + 1)):
                if (y - cy) ** 2 + (x - cx) ** 2 > r * r or pixels.bragg[y, x] == pixels.number:
                    continue
                pixels.bragg[y, x] = pixels.number
                trusted = reading.low <= pixels.raw[y, x] <= reading.high
                painted[i] += np.int64(pixels.bad[y, x] == 0 and trusted)
