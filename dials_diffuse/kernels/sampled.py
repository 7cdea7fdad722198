"""Positions on a detector, and where they see reciprocal space."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def sampled_s(directions, xy, s0):
    """|s| of elastic scattering into directions between pixels.

    Parameters
    ----------
    directions : (3, ny, nx) float64 unit vectors to the centres of pixels
    xy : (n, 2) float64, positions in pixels whose centres are at i + 0.5; beyond the outermost ones these are taken
    s0 : (n, 3) or (1, 3) float64, beam vectors

    Returns
    -------
    (n,) float64, in the unit of s0
    """
    _, ny, nx = directions.shape
    s = np.empty(xy.shape[0])
    u = np.empty(3)
    for i in range(xy.shape[0]):
        b = i if s0.shape[0] > 1 else 0
        x, y = min(max(xy[i, 0] - 0.5, 0.0), nx - 1.0), min(max(xy[i, 1] - 0.5, 0.0), ny - 1.0)
        x0, y0 = int(x), int(y)
        x1, y1 = min(x0 + 1, nx - 1), min(y0 + 1, ny - 1)
        fx, fy = x - x0, y - y0
        for k in range(3):
            above = (1 - fx) * directions[k, y0, x0] + fx * directions[k, y0, x1]
            below = (1 - fx) * directions[k, y1, x0] + fx * directions[k, y1, x1]
            u[k] = (1 - fy) * above + fy * below
        scale = math.sqrt((s0[b, 0] ** 2 + s0[b, 1] ** 2 + s0[b, 2] ** 2) / (u[0] * u[0] + u[1] * u[1] + u[2] * u[2]))
        square = 0.0
        for k in range(3):
            square += (scale * u[k] - s0[b, k]) ** 2
        s[i] = math.sqrt(square)
    return s
