"""What images hold around Bragg spots, summed in bins about each spot."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.image import across, sector_of
from dials_diffuse.kernels.jit import njit

#: columns of the sums of a bin
PIXELS, EXCESS, EXPECTED = range(3)
N_SUMS = 3

#: entries of an owner array: pixels of no spot, and of several
FREE, SHARED = -1, -2


class Around(NamedTuple):
    """Spots on a panel, and the bins about them.

    number : (n,) int64, of each spot, any numbers from 0
    centre : (n, 2) float64, x, y in pixels
    axes : (n, 2, 3) float64, unit vectors as in Outlines
    radius_px : (n,) float64, half width of the box that is searched, pixels
    unit : (n,) float64 radians, of the distances
    """

    number: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    radius_px: np.ndarray
    unit: np.ndarray


@njit
def claim_pixels(owner, directions, spots, reach):
    """Write into every pixel within ``reach`` units of a spot the spot's number, or SHARED where it has several.

    owner : (ny, nx) int32, FREE where nothing was claimed; directions : (3, ny, nx) unit vectors
    """
    ny, nx = owner.shape
    for i in range(len(spots.number)):
        x0, x1, y0, y1 = _box(spots, i, nx, ny)
        limit = (reach * spots.unit[i]) ** 2
        for y in range(y0, y1):
            for x in range(x0, x1):
                e1, e2 = across(spots.axes[i], directions[0, y, x], directions[1, y, x], directions[2, y, x])
                if e1 * e1 + e2 * e2 <= limit:
                    owner[y, x] = spots.number[i] if owner[y, x] == FREE else SHARED


@njit
def bin_excess(pixels, reading, expected, directions, owner, spots, edges, sums):
    """Sum counts beyond what is expected over the pixels about each spot, in sectors and rings.

    Pixels count where nobody else claims them. A pixel belongs to the sector whose middle is nearest.

    Parameters
    ----------
    pixels, reading : Pixels and Reading of the panel; ``bragg`` is not looked at
    expected : (ny, nx) float32, counts without the spot
    directions : (3, ny, nx) float64 unit vectors
    owner : (ny, nx) int32, of :func:`claim_pixels`
    spots : Around
    edges : (n_rings + 1,) float64, of the rings in units, ascending from 0
    sums : (n, n_sectors, n_rings, N_SUMS) float64, incremented
    """
    ny, nx = owner.shape
    n_sectors = sums.shape[1]
    for i in range(len(spots.number)):
        x0, x1, y0, y1 = _box(spots, i, nx, ny)
        for y in range(y0, y1):
            for x in range(x0, x1):
                if owner[y, x] != spots.number[i] and owner[y, x] != FREE:
                    continue
                value = pixels.raw[y, x]
                if pixels.bad[y, x] != 0 or not (reading.low <= value <= reading.high):
                    continue
                e1, e2 = across(spots.axes[i], directions[0, y, x], directions[1, y, x], directions[2, y, x])
                ring = np.searchsorted(edges, math.hypot(e1, e2) / spots.unit[i], side="right") - 1
                if ring >= len(edges) - 1:
                    continue
                sector, part = sector_of(e1, e2, n_sectors)
                if part >= 0.5:
                    sector = (sector + 1) % n_sectors
                counts = (value - reading.pedestal) / reading.gain
                sums[i, sector, ring, PIXELS] += 1.0
                sums[i, sector, ring, EXCESS] += counts - expected[y, x]
                sums[i, sector, ring, EXPECTED] += expected[y, x]


@njit
def _box(spots, i, nx, ny):
    """Limits x0, x1, y0, y1 of the pixels that are searched."""
    x, y, r = spots.centre[i, 0], spots.centre[i, 1], spots.radius_px[i]
    return (
        max(0, int(math.floor(x - r))),
        min(nx, int(math.ceil(x + r)) + 1),
        max(0, int(math.floor(y - r))),
        min(ny, int(math.ceil(y + r)) + 1),
    )
