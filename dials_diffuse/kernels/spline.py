"""Cubic B-splines on a three-dimensional lattice, evaluated where pixels see reciprocal space."""

from __future__ import annotations

import math

from dials_diffuse.kernels.jit import njit


@njit
def _weights(t):
    """The four cubic B-spline weights at a fraction t of a step."""
    u = 1.0 - t
    return (
        u * u * u / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        t * t * t / 6.0,
    )


@njit
def spline_at(coefficients, x, y, z):
    """Value at a position in steps of the lattice, (0, 0, 0) being the first node; 0 within a step of the border.

    coefficients : (n1, n2, n3) as from ``scipy.ndimage.spline_filter``
    """
    i, j, k = math.floor(x), math.floor(y), math.floor(z)
    n1, n2, n3 = coefficients.shape
    if not (1 <= i < n1 - 2 and 1 <= j < n2 - 2 and 1 <= k < n3 - 2):
        return 0.0
    i, j, k = int(i), int(j), int(k)
    wx, wy, wz = _weights(x - i), _weights(y - j), _weights(z - k)
    total = 0.0
    for a in range(4):
        plane = 0.0
        for b in range(4):
            row = (
                wz[0] * coefficients[i - 1 + a, j - 1 + b, k - 1]
                + wz[1] * coefficients[i - 1 + a, j - 1 + b, k]
                + wz[2] * coefficients[i - 1 + a, j - 1 + b, k + 1]
                + wz[3] * coefficients[i - 1 + a, j - 1 + b, k + 2]
            )
            plane += wy[b] * row
        total += wx[a] * plane
    return total


@njit
def spline_points(coefficients, positions, out):
    """Values at many positions in steps of the lattice; positions : (n, 3) float64, out : (n,) float64, written."""
    for i in range(positions.shape[0]):
        out[i] = spline_at(coefficients, positions[i, 0], positions[i, 1], positions[i, 2])


@njit
def add_spline(coefficients, directions, matrix, origin, weight, wanted, out):
    """Add ``weight`` times the spline at ``matrix @ u - origin``, or 0 if it is below, to every wanted pixel.

    Parameters
    ----------
    coefficients : (n1, n2, n3) float32
    directions : (3, ny, nx) float64, unit vectors u
    matrix : (3, 3) float64; origin : (3,) float64: together they take a direction to steps of the lattice
    wanted : (ny, nx) bool
    out : (ny, nx) float64, added to
    """
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            if wanted[y, x]:
                u, v, w = directions[0, y, x], directions[1, y, x], directions[2, y, x]
                value = spline_at(
                    coefficients,
                    matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2] * w - origin[0],
                    matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2] * w - origin[1],
                    matrix[2, 0] * u + matrix[2, 1] * v + matrix[2, 2] * w - origin[2],
                )
                out[y, x] += weight * max(value, 0.0)
