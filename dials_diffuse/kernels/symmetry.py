"""Loops over voxels and symmetry operators.

A voxel gets one integer key, linear in its index and odd under inversion: ``key = (h B + k) B + l`` with an odd base B
larger than twice any index. The key of a mate ``index @ R`` is then ``index @ w`` with ``w = R @ (B^2, B, 1)``, three
multiplications for each operator.
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def extreme_keys(index, weights, lowest, highest):
    """Smallest and largest key among the mates of each voxel.

    Parameters
    ----------
    index : (n, 3) integers
    weights : (m, 3) int64, one row for each operator
    lowest, highest : (n,) int64, written
    """
    for i in range(index.shape[0]):
        h, k, l = np.int64(index[i, 0]), np.int64(index[i, 1]), np.int64(index[i, 2])
        low = high = h * weights[0, 0] + k * weights[0, 1] + l * weights[0, 2]
        for m in range(1, weights.shape[0]):
            key = h * weights[m, 0] + k * weights[m, 1] + l * weights[m, 2]
            low = min(low, key)
            high = max(high, key)
        lowest[i] = low
        highest[i] = high


@njit
def canonical_in_box(first, last, extent, weights, friedel, metric, longest, found):
    """Voxels of a slab of a box, inside an ellipsoid, that have the largest key among their mates: one of every orbit.

    Parameters
    ----------
    first, last : int, the slab is ``first <= h < last``
    extent : (3,) int64, the box reaches from ``-extent`` to ``extent``
    weights : (m, 3) int64, one row for each operator, the identity first
    friedel : bool, the inverted mates count too
    metric : (3, 3) float64, ``index @ metric @ index`` is the squared length of an index
    longest : float, squared length up to which voxels are looked at
    found : (capacity, 3) int32, written; the caller provides a row for every voxel of the slab

    Returns
    -------
    int, rows written
    """
    n = 0
    for h in range(first, last):
        for k in range(-extent[1], extent[1] + 1):
            for l in range(-extent[2], extent[2] + 1):
                own = h * weights[0, 0] + k * weights[0, 1] + l * weights[0, 2]
                if friedel and own < 0:
                    continue
                if _square(h, k, l, metric) > longest:
                    continue
                best = True
                for m in range(weights.shape[0]):
                    key = h * weights[m, 0] + k * weights[m, 1] + l * weights[m, 2]
                    if key > own or (friedel and -key > own):
                        best = False
                        break
                if best:
                    found[n, 0] = h
                    found[n, 1] = k
                    found[n, 2] = l
                    n += 1
    return n


@njit
def best_mates(index, weights, operator, inverted):
    """The operator that takes each voxel to the mate of the largest key, and whether an inversion follows it.

    Parameters
    ----------
    index : (n, 3) integers
    weights : (m, 3) int64, one row for each operator
    operator : (n,) int64, written; -1 where two operators lead there: the voxel lies on a symmetry element
    inverted : (n,) bool, written
    """
    for i in range(index.shape[0]):
        h, k, l = np.int64(index[i, 0]), np.int64(index[i, 1]), np.int64(index[i, 2])
        best, found, times, turned = np.int64(-1), -1, 0, False
        for m in range(weights.shape[0]):
            key = h * weights[m, 0] + k * weights[m, 1] + l * weights[m, 2]
            if abs(key) > best:
                best, found, times, turned = abs(key), m, 1, key < 0
            elif abs(key) == best:
                times += 1
        operator[i] = found if times == 1 else -1
        inverted[i] = turned


@njit
def average_orbits(volume, operators, weights, metric, longest, furthest, out):
    """Give every voxel of a box, inside an ellipsoid, the mean of its mates that are not NaN.

    Parameters
    ----------
    volume : (2 a + 1, 2 b + 1, 2 c + 1) float64, indices from -a, -b, -c on
    operators : (m, 3, 3) int64, used as ``index @ R``; the inverted mates count too
    weights : (m, 3) int64, one row of keys for each operator, the identity first
    metric : (3, 3) float64, ``index @ metric @ index`` is the squared length of an index
    longest : float, squared length up to which voxels are wanted
    furthest : float, squared length of their mates at most: cells deviate from the symmetry of their group
    out : of the shape of volume, float64, written; NaN outside, and where all mates are
    """
    a, b, c = volume.shape[0] // 2, volume.shape[1] // 2, volume.shape[2] // 2
    out[:] = np.nan
    for h in range(-a, a + 1):
        for k in range(-b, b + 1):
            for l in range(-c, c + 1):
                own = h * weights[0, 0] + k * weights[0, 1] + l * weights[0, 2]
                if own < 0 or _square(h, k, l, metric) > furthest or not _has_largest_key(h, k, l, own, weights):
                    continue
                total, number = 0.0, 0
                for m in range(operators.shape[0]):
                    u, v, w = _mate(h, k, l, operators[m])
                    if abs(u) > a or abs(v) > b or abs(w) > c:
                        continue
                    for value in (volume[a + u, b + v, c + w], volume[a - u, b - v, c - w]):
                        if value == value:
                            total += value
                            number += 1
                if number == 0:
                    continue
                for m in range(operators.shape[0]):
                    u, v, w = _mate(h, k, l, operators[m])
                    if abs(u) > a or abs(v) > b or abs(w) > c or _square(u, v, w, metric) > longest:
                        continue
                    out[a + u, b + v, c + w] = out[a - u, b - v, c - w] = total / number


@njit
def _has_largest_key(h, k, l, own, weights):
    """Is this the key furthest from 0 among the mates?"""
    for m in range(1, weights.shape[0]):
        if abs(h * weights[m, 0] + k * weights[m, 1] + l * weights[m, 2]) > own:
            return False
    return True


@njit
def _mate(h, k, l, r):
    return (
        h * r[0, 0] + k * r[1, 0] + l * r[2, 0],
        h * r[0, 1] + k * r[1, 1] + l * r[2, 1],
        h * r[0, 2] + k * r[1, 2] + l * r[2, 2],
    )


@njit
def _square(h, k, l, metric):
    return (
        metric[0, 0] * h * h
        + metric[1, 1] * k * k
        + metric[2, 2] * l * l
        + 2.0 * (metric[0, 1] * h * k + metric[0, 2] * h * l + metric[1, 2] * k * l)
    )
