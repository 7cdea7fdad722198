"""Gaussian peaks on a periodic grid."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def add_peaks(position, tensor, weight, edges, cutoff, out):
    """Add normalised Gaussians, weight (2 pi)^-3/2 det(U)^-1/2 exp(-r U^-1 r / 2), to the points of a grid.

    Along the last axis the exponent is a quadratic function of the point's number, so that each value follows from the
    one before by two multiplications.

    Parameters
    ----------
    position : (n, 3) float64, in units of the grid's steps; wraps round
    tensor : (n, 3, 3) float64, U in Å², positive definite
    weight : (n,) float64
    edges : (3, 3) float64, columns are the steps along the three axes, Å, Cartesian
    cutoff : a peak ends where r U^-1 r exceeds this
    out : (n1, n2, n3) float64, added to
    """
    n1, n2, n3 = out.shape
    p = np.empty((3, 3))
    metric = np.empty((3, 3))
    for peak in range(position.shape[0]):
        det = _inverse(tensor[peak], p)
        height = weight[peak] / ((2 * math.pi) ** 1.5 * math.sqrt(det))
        for a in range(3):
            for b in range(3):
                total = 0.0
                for c in range(3):
                    for d in range(3):
                        total += edges[c, a] * p[c, d] * edges[d, b]
                metric[a, b] = total
        m22 = metric[2, 2]
        # what is left of the metric when the best place along the last, and along the last two axes, is taken
        s00 = metric[0, 0] - metric[0, 2] ** 2 / m22
        s01 = metric[0, 1] - metric[0, 2] * metric[1, 2] / m22
        s11 = metric[1, 1] - metric[1, 2] ** 2 / m22
        t00 = s00 - s01 * s01 / s11
        x0, y0, z0 = position[peak, 0], position[peak, 1], position[peak, 2]
        reach = math.sqrt(cutoff / t00)
        step = math.exp(-m22)
        for i in range(math.ceil(x0 - reach), math.floor(x0 + reach) + 1):
            dx = i - x0
            room = cutoff - t00 * dx * dx
            if room < 0:
                continue
            middle = y0 - s01 / s11 * dx
            reach_y = math.sqrt(room / s11)
            for j in range(math.ceil(middle - reach_y), math.floor(middle + reach_y) + 1):
                dy = j - y0
                base = s00 * dx * dx + 2 * s01 * dx * dy + s11 * dy * dy
                room = cutoff - base
                if room < 0:
                    continue
                centre = z0 - (metric[0, 2] * dx + metric[1, 2] * dy) / m22
                reach_z = math.sqrt(room / m22)
                first = math.ceil(centre - reach_z)
                last = math.floor(centre + reach_z)
                dz = first - centre
                value = height * math.exp(-0.5 * (base + m22 * dz * dz))
                ratio = math.exp(-0.5 * m22 * (2 * dz + 1))
                row = out[i % n1, j % n2]
                k = first % n3
                for _ in range(first, last + 1):
                    row[k] += value
                    value *= ratio
                    ratio *= step
                    k += 1
                    if k == n3:
                        k = 0


@njit
def _inverse(u, p):
    """Write the inverse of a symmetric (3, 3) matrix; return the determinant."""
    a = u[1, 1] * u[2, 2] - u[1, 2] * u[1, 2]
    b = u[0, 2] * u[1, 2] - u[0, 1] * u[2, 2]
    c = u[0, 1] * u[1, 2] - u[0, 2] * u[1, 1]
    det = u[0, 0] * a + u[0, 1] * b + u[0, 2] * c
    p[0, 0] = a / det
    p[0, 1] = p[1, 0] = b / det
    p[0, 2] = p[2, 0] = c / det
    p[1, 1] = (u[0, 0] * u[2, 2] - u[0, 2] * u[0, 2]) / det
    p[1, 2] = p[2, 1] = (u[0, 1] * u[0, 2] - u[0, 0] * u[1, 2]) / det
    p[2, 2] = (u[0, 0] * u[1, 1] - u[0, 1] * u[0, 1]) / det
    return det
