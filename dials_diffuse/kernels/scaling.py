"""Sums over observations for the scaling model: spline bases, outliers.

A block of parameters is a tensor product of up to three axes. An axis is either a uniform quadratic B-spline or, where
its step is zero, a table of numbered categories. Every observation touches few parameters of each block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.jit import njit


class Tensor(NamedTuple):
    """The axes of a block.

    axes : (k, 2) int64, for each axis the column of the coordinates and the number of basis functions; k is 1 to 3
    limits : (k, 2) float64, lower end and step of each axis
    """

    axes: np.ndarray
    limits: np.ndarray


class Design(NamedTuple):
    """Sparse rows of a design matrix: w derivatives of the expected counts of n observations.

    index : (n, w) int64, of the parameters, ascending in each row; value : (n, w) float64
    """

    index: np.ndarray
    value: np.ndarray


class Patterns(NamedTuple):
    """Functions of the unique voxels.

    value : (m, k) float64; orbit : (n,) int64, unique voxel of each observation
    """

    value: np.ndarray
    orbit: np.ndarray


class Residuals(NamedTuple):
    """What the model leaves of n observations.

    orbit : (n,) integers, unique voxel, negative: none
    weight : (n,) floats, 1 / variance
    residual : (n,) floats, counts less what is expected without anisotropic part
    unit : (n,) floats, counts per unit of intensity
    """

    orbit: np.ndarray
    weight: np.ndarray
    residual: np.ndarray
    unit: np.ndarray


@njit
def axis_weights(x, low, step, n, weights):
    """Weights of the B-splines that are not zero at x; returns the number of the first, and how many there are.

    Outside ``low .. low + (n - 2) step`` the value at the nearer end is taken. A step of zero: category int(x).

    weights : (3,) float64, written
    """
    if step == 0.0:
        weights[0] = 1.0
        return min(max(int(x), 0), n - 1), 1
    p = min(max((x - low) / step, 0.0), n - 2.0)
    j = min(int(p), n - 3)
    t = p - j
    weights[0] = 0.5 * (1.0 - t) * (1.0 - t)
    weights[1] = 0.5 + t - t * t
    weights[2] = 0.5 * t * t
    return j, 3


@njit
def block_basis(row, tensor, w, index, value, at):
    """Append the non-zero basis functions of one block at one observation to ``index`` and ``value``.

    Parameters
    ----------
    row : (m,) float64, coordinates of the observation
    tensor : Tensor
    w : (3, 3) float64, scratch
    index, value : int64 and float64, written from position ``at``; the index counts from 0 within the block

    Returns
    -------
    int, the position after the last entry
    """
    axes, limits = tensor.axes, tensor.limits
    w0, w1, w2 = w[0], w[1], w[2]
    j0, k0 = axis_weights(row[axes[0, 0]], limits[0, 0], limits[0, 1], axes[0, 1], w0)
    if axes.shape[0] == 1:
        for a in range(k0):
            index[at] = j0 + a
            value[at] = w0[a]
            at += 1
        return at
    n1 = axes[1, 1]
    j1, k1 = axis_weights(row[axes[1, 0]], limits[1, 0], limits[1, 1], n1, w1)
    if axes.shape[0] == 2:
        for a in range(k0):
            for b in range(k1):
                index[at] = (j0 + a) * n1 + j1 + b
                value[at] = w0[a] * w1[b]
                at += 1
        return at
    n2 = axes[2, 1]
    j2, k2 = axis_weights(row[axes[2, 0]], limits[2, 0], limits[2, 1], n2, w2)
    for a in range(k0):
        for b in range(k1):
            for c in range(k2):
                index[at] = ((j0 + a) * n1 + j1 + b) * n2 + j2 + c
                value[at] = w0[a] * w1[b] * w2[c]
                at += 1
    return at


@njit
def evaluate_block(coordinates, offset, tensor, coefficients, out):
    """Value of one block at every observation.

    Parameters
    ----------
    coordinates : (n, m) float64
    offset : (n,) int64, first parameter of the block for the observation
    tensor : Tensor
    coefficients : (p,) float64, all parameters
    out : (n,) float64, written
    """
    index, value, w = np.empty(27, dtype=np.int64), np.empty(27), np.empty((3, 3))
    axes, limits, w0 = tensor.axes, tensor.limits, w[0]
    if axes.shape[0] == 1 and limits[0, 1] != 0.0:  # the profile, which is needed most often
        for i in range(coordinates.shape[0]):
            j, _ = axis_weights(coordinates[i, axes[0, 0]], limits[0, 0], limits[0, 1], axes[0, 1], w0)
            j += offset[i]
            out[i] = w0[0] * coefficients[j] + w0[1] * coefficients[j + 1] + w0[2] * coefficients[j + 2]
        return
    for i in range(coordinates.shape[0]):
        total = 0.0
        n = block_basis(coordinates[i], tensor, w, index, value, 0)
        for k in range(n):
            total += value[k] * coefficients[offset[i] + index[k]]
        out[i] = total


@njit
def fill_basis(coordinates, offset, tensor, factor, design, at):
    """Put one block into the sparse rows of the design matrix.

    Parameters
    ----------
    factor : (n,) float64, derivative of the expected counts by the value of the block
    design : Design, written from column ``at`` on
    others : as for :func:`evaluate_block`
    """
    index, value = design
    w = np.empty((3, 3))
    for i in range(coordinates.shape[0]):
        end = block_basis(coordinates[i], tensor, w, index[i], value[i], at)
        for k in range(at, end):
            index[i, k] += offset[i]
            value[i, k] *= factor[i]


@njit
def evaluate_monomials(directions, exponents, coefficients, row, out):
    """Mean of a polynomial at two unit vectors.

    Parameters
    ----------
    directions : (n, 6) float64
    exponents : (m, 3) int64, of x, y, z; the highest is below 16
    coefficients : (e, m) float64; row : (n,) int64, which of them
    out : (n,) float64, written
    """
    power = np.empty((6, 16))
    top = exponents.max() + 1
    for i in range(directions.shape[0]):
        for k in range(6):
            power[k, 0] = 1.0
            for p in range(1, top):
                power[k, p] = power[k, p - 1] * directions[i, k]
        total = 0.0
        for m in range(exponents.shape[0]):
            a, b, c = exponents[m]
            total += coefficients[row[i], m] * (
                power[0, a] * power[1, b] * power[2, c] + power[3, a] * power[4, b] * power[5, c]
            )
        out[i] = 0.5 * total


@njit
def sum_monomials(directions, exponents, out):
    """Sums over one or several vectors of products of their powers.

    Parameters
    ----------
    directions : (n, 3 k) float64, k vectors
    exponents : (m, 3) int64, of x, y, z; the highest is below 16
    out : (n, m) float64, written
    """
    power = np.ones((3, 16))
    top = exponents.max() + 1
    for i in range(directions.shape[0]):
        out[i] = 0.0
        for first in range(0, directions.shape[1], 3):
            for k in range(3):
                for p in range(1, top):
                    power[k, p] = power[k, p - 1] * directions[i, first + k]
            for m in range(exponents.shape[0]):
                out[i, m] += power[0, exponents[m, 0]] * power[1, exponents[m, 1]] * power[2, exponents[m, 2]]


@njit
def fill_dense(offset, basis, factor, design, at):
    """Put functions that are nowhere zero into the sparse rows of the design matrix.

    offset : (n,) int64, first parameter for the observation; basis : (n, k) float64
    others : as for :func:`fill_basis`
    """
    index, value = design
    for i in range(basis.shape[0]):
        for k in range(basis.shape[1]):
            index[i, at + k] = offset[i] + k
            value[i, at + k] = basis[i, k] * factor[i]


@njit
def fill_patterns(coordinates, start, tensor, factor, patterns, design, at):
    """Put parameters that multiply patterns of the unique voxels, each with a spline in one coordinate, into the rows.

    Parameters
    ----------
    start : int, first parameter; pattern k has as many as the only axis of ``tensor`` has functions
    patterns : Patterns
    others : as for :func:`fill_basis`
    """
    (axes, limits), (pattern, orbit), (index, value) = tensor, patterns, design
    w = np.empty(3)
    for i in range(coordinates.shape[0]):
        j, n = axis_weights(coordinates[i, axes[0, 0]], limits[0, 0], limits[0, 1], axes[0, 1], w)
        for k in range(pattern.shape[1]):
            level = pattern[orbit[i], k] * factor[i]
            for a in range(n):
                index[i, at + k * n + a] = start + k * axes[0, 1] + j + a
                value[i, at + k * n + a] = w[a] * level


@njit
def evaluate_patterns(coordinates, start, tensor, coefficients, patterns, out):
    """Sum of the patterns with their splines; out : (n,) float64, written; others as for :func:`fill_patterns`."""
    (axes, limits), (pattern, orbit) = tensor, patterns
    w = np.empty(3)
    for i in range(coordinates.shape[0]):
        j, n = axis_weights(coordinates[i, axes[0, 0]], limits[0, 0], limits[0, 1], axes[0, 1], w)
        total = 0.0
        for k in range(pattern.shape[1]):
            for a in range(n):
                total += w[a] * pattern[orbit[i], k] * coefficients[start + k * axes[0, 1] + j + a]
        out[i] = total


@njit
def orbit_sums(residuals, rejected, sums):
    """``sums[orbit] += (w r u, w u^2)``, what the intensity of a unique voxel is found from.

    residuals : Residuals; rejected : (n,) bool, to leave out; sums : (m, 2) float64, incremented
    """
    orbit, weight, residual, unit = residuals
    for i in range(orbit.shape[0]):
        j = orbit[i]
        if j >= 0 and not rejected[i]:
            wu = weight[i] * unit[i]
            sums[j, 0] += wu * residual[i]
            sums[j, 1] += wu * unit[i]


@njit
def deviance(counts, expected):
    """Root of the Poisson deviance: the size of a normal deviate to good approximation also for few counts."""
    if expected <= 0.0:
        return 0.0
    if counts <= 0.0:
        return math.sqrt(2.0 * expected)
    return math.sqrt(2.0 * max(counts * math.log(counts / expected) - (counts - expected), 0.0))


@njit
def deviations(residuals, rejected, counts, least, prior, sums, out):
    """Size of the deviation of each observation from what the others of its unique voxel predict, in sigma.

    The prediction is their mean, shrunk towards the isotropic part with the spread expected of the anisotropic part.

    Parameters
    ----------
    residuals, rejected : as for :func:`orbit_sums`; the rejected ones are tested too
    counts : (n,) floats, total counts; those that are expected without anisotropic part are ``counts - residual``
    least : float, what is expected at least
    prior : (m,) floats, 1 / variance of the anisotropic part
    sums : (m, 2) float64, from :func:`orbit_sums`
    out : (n,) float32, written
    """
    orbit, weight, residual, unit = residuals
    for i in range(orbit.shape[0]):
        j = orbit[i]
        out[i] = 0.0
        if j < 0 or weight[i] <= 0.0:
            continue
        w, u = np.float64(weight[i]), np.float64(unit[i])
        expected = max(np.float64(counts[i]) - residual[i], least)
        a, b = sums[j, 0], sums[j, 1]
        if not rejected[i]:
            a -= w * u * residual[i]
            b -= w * u * u
        b = max(b, 0.0) + prior[j]
        poisson = max(expected + u * a / b, 0.1 * expected)
        variance = max(poisson / expected, 1.0) / w + u * u / b
        out[i] = deviance(counts[i], poisson) * math.sqrt(poisson / max(variance, poisson))


@njit
def worst_deviation(orbit, deviation, rejected, limit, worst):
    """``worst[orbit]`` = largest above ``limit`` among the observations that are not rejected yet.

    worst : (m,) float32, zeros; written
    """
    for i in range(orbit.shape[0]):
        size = deviation[i]
        if orbit[i] >= 0 and not rejected[i] and size > limit and size > worst[orbit[i]]:
            worst[orbit[i]] = size
