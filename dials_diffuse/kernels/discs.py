"""Bragg peaks as discs on the detector."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.tile_cells import TILE_X, TILE_Y


class Discs(NamedTuple):
    """Spots on a panel.

    centre : (n, 2) float64, positions x, y in pixels
    direction : (n, 3) float64 unit vectors
    cos_radius : (n,) float64, cosine of the angular radius
    radius_px : (n,) float64, half width of the box that is searched, pixels
    """

    centre: np.ndarray
    direction: np.ndarray
    cos_radius: np.ndarray
    radius_px: np.ndarray


@njit
def paint_discs(mask, image, directions, polynomials, errors, discs):
    """Mark the pixels whose direction d lies within an angle r of a spot's direction u.

    That is u.d >= cos r. The polynomials decide by |u - d|² <= 2 - 2 cos r, which keeps its digits where r is small;
    rows of a tile with a pixel so close to the limit that their error matters are looked at pixel by pixel.

    Parameters
    ----------
    mask : (ny, nx) int32, set to ``image`` inside the discs
    image : int
    directions : (3, ny, nx) float64 unit vectors to the pixels
    polynomials, errors : (ty, tx, 3, CUBIC) and (ty, tx) float64, as in Tiles
    discs : Discs
    """
    centres, spots, cos_radius, radius_px = discs
    ny, nx = mask.shape
    marked = np.int32(image)
    square = np.empty(TILE_X)
    for i in range(centres.shape[0]):
        x0 = max(0, int(math.floor(centres[i, 0] - radius_px[i])))
        x1 = min(nx, int(math.ceil(centres[i, 0] + radius_px[i])) + 1)
        y0 = max(0, int(math.floor(centres[i, 1] - radius_px[i])))
        y1 = min(ny, int(math.ceil(centres[i, 1] + radius_px[i])) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        limit = 2.0 - 2.0 * cos_radius[i]
        for ty in range(np.uint64(y0 // TILE_Y), np.uint64((y1 - 1) // TILE_Y + 1)):
            for tx in range(np.uint64(x0 // TILE_X), np.uint64((x1 - 1) // TILE_X + 1)):
                error = errors[ty, tx]
                slack = 2.0 * (math.sqrt(limit) + error) * error + 1e-14
                left, top = np.int64(tx) * TILE_X, np.int64(ty) * TILE_Y
                first, last = max(x0 - left, 0), min(x1 - left, TILE_X)
                for y in range(max(y0, top), min(y1, top + TILE_Y)):
                    _distances(polynomials, ty, tx, y - top - 0.5 * (TILE_Y - 1), spots, i, first, last, square)
                    close = 0
                    for k in range(np.uint64(first), np.uint64(last)):
                        close += np.int64(abs(square[k] - limit) <= slack)
                    if close > 0:
                        _exact_row(directions, y, left, first, last, spots, i, cos_radius[i], square)
                    for k in range(np.uint64(first), np.uint64(last)):
                        inside = np.int32(square[k] <= limit)
                        before = mask[np.uint64(y), np.uint64(left) + k]
                        mask[np.uint64(y), np.uint64(left) + k] = before + inside * (marked - before)


@njit
def _exact_row(directions, y, left, first, last, spots, i, cosine, square):
    """Write 0 for the pixels of a row within the disc of spot i, and 8 for the others."""
    for k in range(first, last):
        x = left + k
        d = directions[0, y, x] * spots[i, 0] + directions[1, y, x] * spots[i, 1] + directions[2, y, x] * spots[i, 2]
        square[k] = 0.0 if d >= cosine else 8.0


@njit
def _distances(p, ty, tx, y, spots, i, first, last, square):
    """Squared distance of the directions along a row of a tile from that of spot i; ``square`` is written."""
    x0 = 0.5 * (TILE_X - 1)
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    a0, a1, a2, a3 = _along_row(p, ty, tx, zero, y)
    b0, b1, b2, b3 = _along_row(p, ty, tx, one, y)
    c0, c1, c2, c3 = _along_row(p, ty, tx, two, y)
    a0, b0, c0 = a0 - spots[i, 0], b0 - spots[i, 1], c0 - spots[i, 2]
    for k in range(np.uint64(first), np.uint64(last)):
        x = np.float64(k) - x0
        a = a0 + x * (a1 + x * (a2 + x * a3))
        b = b0 + x * (b1 + x * (b2 + x * b3))
        c = c0 + x * (c1 + x * (c2 + x * c3))
        square[k] = a * a + b * b + c * c


@njit
def _along_row(p, ty, tx, component, y):
    """Coefficients of 1, x, x² and x³ at a height y in a tile."""
    q = np.uint64
    return (
        p[ty, tx, component, q(0)]
        + y * (p[ty, tx, component, q(2)] + y * (p[ty, tx, component, q(5)] + y * p[ty, tx, component, q(9)])),
        p[ty, tx, component, q(1)] + y * (p[ty, tx, component, q(4)] + y * p[ty, tx, component, q(8)]),
        p[ty, tx, component, q(3)] + y * p[ty, tx, component, q(7)],
        p[ty, tx, component, q(6)],
    )
