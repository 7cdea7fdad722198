"""What is left of Bragg spots outside their masks, voxel by voxel."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.accumulate import is_outlier
from dials_diffuse.kernels.image import sector_of
from dials_diffuse.kernels.jit import njit


class Tails(NamedTuple):
    """Spots on a panel in one image, and their profiles.

    centre : (n, 2) float64, x, y in pixels
    axes : (n, 2, 3) float64, unit vectors as in Outlines
    radius_px : (n,) float64, half width of the box that is searched, pixels
    reach, unit : (n,) float64 radians, where tails end, and of the distances
    counts : (n,) float64, expected in a pixel where the profile is 1
    profile : (n,) int64, of ``log_density``
    distance : (n_distances,) float64 units, ascending from 0
    first : of :func:`first_distances` for these
    log_density : (n_profiles, n_sectors, n_distances) float64
    """

    centre: np.ndarray
    axes: np.ndarray
    radius_px: np.ndarray
    reach: np.ndarray
    unit: np.ndarray
    counts: np.ndarray
    profile: np.ndarray
    distance: np.ndarray
    first: np.ndarray
    log_density: np.ndarray


#: steps of a unit, in which places among the distances are looked up
_STEPS = 4


def first_distances(distance: np.ndarray) -> np.ndarray:
    """(m,) int64, for each quarter of a unit the last of the ascending distances that is not beyond its beginning."""
    quarters = np.arange(math.ceil(distance[-1] * _STEPS) + 1) / _STEPS
    return np.maximum(np.searchsorted(distance, quarters, side="right") - 1, 0)


@njit
def box(tails, i, nx, ny):
    """Limits x0, x1, y0, y1 of the pixels that are searched about spot i."""
    x, y, r = tails.centre[i, 0], tails.centre[i, 1], tails.radius_px[i]
    return (
        min(nx, max(0, int(math.floor(x - r)))),
        max(0, min(nx, int(math.ceil(x + r)) + 1)),
        min(ny, max(0, int(math.floor(y - r)))),
        max(0, min(ny, int(math.ceil(y + r)) + 1)),
    )


@njit
def density(tails, i, e1, e2, r):
    """Profile of spot i at (e1, e2) radians from it, at a distance of r units, per squared unit; logarithms are linear
    between what is known."""
    last = len(tails.distance) - 2
    k = tails.first[min(int(r * _STEPS), len(tails.first) - 1)]
    while k < last and tails.distance[k + 1] <= r:
        k += 1
    k = min(k, last)
    far = min((r - tails.distance[k]) / (tails.distance[k + 1] - tails.distance[k]), 1.0)
    p, n_sectors = tails.profile[i], tails.log_density.shape[1]
    sector, part = sector_of(e1, e2, n_sectors)
    after = (sector + 1) % n_sectors
    here = (1 - far) * tails.log_density[p, sector, k] + far * tails.log_density[p, sector, k + 1]
    there = (1 - far) * tails.log_density[p, after, k] + far * tails.log_density[p, after, k + 1]
    return math.exp((1 - part) * here + part * there)


@njit
def paint_tails(pixels, view, tails, expected):
    """Add the counts that are expected of spots to the pixels of a panel that are neither bad nor masked.

    pixels, view : as for ``accumulate``; tails : Tails; expected : (ny, nx) float64

    Returns
    -------
    n : how many pixels are no longer 0
    """
    ny, nx = pixels.raw.shape
    u = view.directions
    n = 0
    for i in range(len(tails.reach)):
        x0, x1, y0, y1 = box(tails, i, nx, ny)
        limit = tails.reach[i] ** 2
        # scalars: numba counts references to views
        ax, ay, az = tails.axes[i, 0, 0], tails.axes[i, 0, 1], tails.axes[i, 0, 2]
        bx, by, bz = tails.axes[i, 1, 0], tails.axes[i, 1, 1], tails.axes[i, 1, 2]
        for y in range(y0, y1):
            for x in range(x0, x1):
                if pixels.bad[y, x] != 0 or pixels.bragg[y, x] == pixels.number:
                    continue
                ux, uy, uz = u[0, y, x], u[1, y, x], u[2, y, x]
                f1, f2 = ax * ux + ay * uy + az * uz, bx * ux + by * uy + bz * uz
                square = f1 * f1 + f2 * f2
                if square <= limit:
                    n += np.int64(expected[y, x] == 0.0)
                    expected[y, x] += tails.counts[i] * density(tails, i, f1, f2, math.sqrt(square) / tails.unit[i])
    return n


@njit
def tails_in_voxels(pixels, reading, norm, guard, view, steps, extent, key_offset, expected, keys, counts, rates):
    """What is expected in the pixels that are used, with the voxels of these.

    Pixels are used and get their voxels as in ``accumulate``. Those that follow each other in a row and a voxel are one
    entry.

    Parameters
    ----------
    pixels, reading, norm, guard, view, steps, extent, key_offset : as for ``accumulate``
    expected : (ny, nx) float64, counts; 0 everywhere afterwards
    keys : (m,) int64, counts, rates : (m,) float64, written: counts, and counts over the norm; m at least the number of
        pixels where something is expected, times that of the sub-steps

    Returns
    -------
    n : how many entries were written
    """
    ny, nx = pixels.raw.shape
    u = view.directions
    a = steps.axis_cross_s0
    n_sub = len(steps.angles)
    weight = view.weight / n_sub
    e0, e1, e2 = extent[0], extent[1], extent[2]
    last = np.empty(n_sub, dtype=np.int64)  # entry of each sub-step that the next pixel may go on with
    n = 0
    for y in range(ny):
        last[:] = -1
        for x in range(nx):
            tail = expected[y, x] * weight
            if tail == 0.0:
                continue
            expected[y, x] = 0.0
            value = pixels.raw[y, x]
            if not (reading.low <= value <= reading.high):
                continue
            c = norm.corrections[y, x] * norm.exposure
            shell = guard.shell[y, x]
            limit = guard.threshold[shell]
            seen = (value - reading.pedestal) / reading.gain
            if limit >= 0.0 and is_outlier(seen, guard.rate[shell] * c, limit):
                continue
            ux, uy, uz = u[0, y, x], u[1, y, x], u[2, y, x]
            entering = 1 if a[0] * ux + a[1] * uy + a[2] * uz > 0.0 else 0
            for k in range(n_sub):
                m, o = steps.matrices[k], steps.origins[k]
                i0 = int(math.floor(m[0, 0] * ux + m[0, 1] * uy + m[0, 2] * uz - o[0] + 0.5)) + e0
                i1 = int(math.floor(m[1, 0] * ux + m[1, 1] * uy + m[1, 2] * uz - o[1] + 0.5)) + e1
                i2 = int(math.floor(m[2, 0] * ux + m[2, 1] * uy + m[2, 2] * uz - o[2] + 0.5)) + e2
                if not (0 <= i0 <= 2 * e0 and 0 <= i1 <= 2 * e1 and 0 <= i2 <= 2 * e2):
                    continue
                key = 2 * ((i0 * (2 * e1 + 1) + i1) * (2 * e2 + 1) + i2) + entering + key_offset
                if last[k] < 0 or keys[last[k]] != key:
                    last[k] = n
                    keys[n], counts[n], rates[n] = key, 0.0, 0.0
                    n += 1
                counts[last[k]] += tail
                rates[last[k]] += tail / c
    return n
