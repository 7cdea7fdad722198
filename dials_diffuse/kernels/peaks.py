"""Gaussian peaks on a periodic grid."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.vectors import add_product

#: the exponents of the factors of a peak may be so large: a float64 holds exp(700)
_LARGEST_EXPONENT = 600.0


@njit
def add_peaks(position, tensor, weight, edges, cutoff, out):
    """Add normalised Gaussians, weight (2 pi)^-3/2 det(U)^-1/2 exp(-r U^-1 r / 2), to the points of a grid.

    A Gaussian is a product of factors of two coordinates each, of which there are few, see :func:`_add_products`. For
    a needle or a disc askew to the grid these are too large and too small for a number: :func:`_add_rows`.

    Parameters
    ----------
    position : (n, 3) float64, in units of the grid's steps; wraps round
    tensor : (n, 3, 3) float64, U in Å², positive definite
    weight : (n,) float64
    edges : (3, 3) float64, columns are the steps along the three axes, Å, Cartesian
    cutoff : a peak ends where r U^-1 r exceeds this
    out : (n1, n2, n3) float64, added to
    """
    p = np.empty((3, 3))
    metric = np.empty((3, 3))
    reach = np.empty(3)
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
        _inverse(metric, p)
        for a in range(3):
            reach[a] = math.sqrt(cutoff * p[a, a])
        largest = 0.0
        for a in range(3):
            for b in range(3):
                largest += 0.5 * abs(metric[a, b]) * reach[a] * reach[b]
        if largest < _LARGEST_EXPONENT:
            _add_products(position[peak], metric, height, reach, cutoff, out)
        else:
            _add_rows(position[peak], metric, height, reach[0], cutoff, out)


@njit
def _add_products(position, metric, height, reach, cutoff, out):
    """Add a peak as a product of three factors: of x and y, of x and z, of y and z.

    The last is a table, and the second a line of one for each x. Each value in them follows from the one before by
    multiplication, for every z at a time.

    position : (3,); metric : (3, 3), of exp(-x M x / 2); reach : (3,), largest |x| of each axis; in steps of the grid
    """
    n1, n2, n3 = out.shape
    x0, y0, z0 = position
    m22 = metric[2, 2]
    # what is left of the metric when the best place along the last axis is taken
    s00 = metric[0, 0] - metric[0, 2] ** 2 / m22
    s01 = metric[0, 1] - metric[0, 2] * metric[1, 2] / m22
    s11 = metric[1, 1] - metric[1, 2] ** 2 / m22
    t00 = s00 - s01 * s01 / s11
    i0, j0, k0 = math.ceil(x0 - reach[0]), math.ceil(y0 - reach[1]), math.ceil(z0 - reach[2])
    i1, j1, k1 = math.floor(x0 + reach[0]), math.floor(y0 + reach[1]), math.floor(z0 + reach[2])
    n_z = k1 - k0 + 1
    table = np.empty((j1 - j0 + 1, n_z))
    growth, line, line_growth = np.empty(n_z), np.empty(n_z), np.empty(n_z)
    dx, dy = i0 - x0, j0 - y0
    for k in range(n_z):
        dz = k0 + k - z0
        if j1 >= j0:
            table[0, k] = math.exp(-0.5 * (metric[1, 1] * dy * dy + m22 * dz * dz) - metric[1, 2] * dy * dz)
        growth[k] = math.exp(-metric[1, 1] * (dy + 0.5) - metric[1, 2] * dz)
        line[k] = math.exp(-metric[0, 2] * dx * dz)
        line_growth[k] = math.exp(-metric[0, 2] * dz)
    less = math.exp(-metric[1, 1])
    for j in range(1, j1 - j0 + 1):
        for k in range(n_z):
            table[j, k] = table[j - 1, k] * growth[k]
            growth[k] *= less
    start = _wrapped(k0, n3)
    for i in range(i0, i1 + 1):
        dx = i - x0
        room = max(cutoff - t00 * dx * dx, 0.0)
        middle = y0 - s01 / s11 * dx
        half = math.sqrt(room / s11)
        first_j, last_j = max(math.ceil(middle - half), j0), min(math.floor(middle + half), j1)
        dy = first_j - y0
        factor = height * math.exp(-0.5 * metric[0, 0] * dx * dx - metric[0, 1] * dx * dy)
        factor_growth = math.exp(-metric[0, 1] * dx)
        layer, row = _wrapped(i, n1) * n2, _wrapped(first_j, n2)
        for j in range(first_j, last_j + 1):
            k, begin = 0, start
            while k < n_z:
                n = min(n_z - k, n3 - begin)
                place, entry = np.uint64((layer + row) * n3 + begin), np.uint64((j - j0) * n_z + k)
                add_product(out, place, factor, line, np.uint64(k), table, entry, np.uint64(n))
                k += n
                begin = 0
            factor *= factor_growth
            row += 1
            if row == n2:
                row = 0
        for k in range(n_z):
            line[k] *= line_growth[k]


@njit
def _wrapped(i, n):
    """i modulo n, without a division where i is near."""
    while i < 0:
        i += n
    while i >= n:
        i -= n
    return i


@njit
def _add_rows(position, metric, height, reach, cutoff, out):
    """Add a peak of any shape row by row.

    Along the last axis the exponent is a quadratic function of the point's number, so that each value follows from the
    one before by two multiplications.

    position, metric : as for :func:`_add_products`; reach : along the first axis
    """
    n1, n2, n3 = out.shape
    m22 = metric[2, 2]
    # what is left of the metric when the best place along the last, and along the last two axes, is taken
    s00 = metric[0, 0] - metric[0, 2] ** 2 / m22
    s01 = metric[0, 1] - metric[0, 2] * metric[1, 2] / m22
    s11 = metric[1, 1] - metric[1, 2] ** 2 / m22
    t00 = s00 - s01 * s01 / s11
    x0, y0, z0 = position
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
