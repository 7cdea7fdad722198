"""Sums over pairs of groups whose displacements are correlated by tensors, and their derivatives by the tensors."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def pair_values(features, a, own, v, dv, free, out, slope):
    """I = sum over pairs of B_ij K(z_ij), z_ij = q V_ij q, and its change along dV.

    B_ij = 2 Re a_i conj(a_j) for i > j; B_ii = ``own``. K = exp(z) - 1, or if ``free`` exp(z - m) - exp(-m) with
    m = (z_ii + z_jj) / 2, and K = 1 - exp(-z) for i = j.

    Parameters
    ----------
    features : (n, 6) float64, z = features @ v
    a : (n, g) complex128, amplitudes; own : (n, g) float64
    v, dv : (g (g + 1) / 2, 6) float64, elements 11, 22, 33, 12, 13, 23 of V_ij, i >= j, in the order of tril_indices
    free : bool
    out, slope : (n,) float64, written
    """
    g = a.shape[1]
    for k in range(features.shape[0]):
        value = 0.0
        change = 0.0
        for i in range(g):
            row = i * (i + 1) // 2
            zi = _form(features[k], v[row + i])
            di = _form(features[k], dv[row + i])
            for j in range(i):
                strength = 2 * (a[k, i].real * a[k, j].real + a[k, i].imag * a[k, j].imag)
                z = _form(features[k], v[row + j])
                dz = _form(features[k], dv[row + j])
                if free:
                    last = j * (j + 1) // 2 + j
                    m = 0.5 * (zi + _form(features[k], v[last]))
                    dm = 0.5 * (di + _form(features[k], dv[last]))
                    damping = math.exp(-m)
                    value += strength * damping * math.expm1(z)
                    change += strength * damping * (math.exp(z) * (dz - dm) + dm)
                else:
                    value += strength * math.expm1(z)
                    change += strength * math.exp(z) * dz
            if free:
                value -= own[k, i] * math.expm1(-zi)
                change += own[k, i] * math.exp(-zi) * di
            else:
                value += own[k, i] * math.expm1(zi)
                change += own[k, i] * math.exp(zi) * di
        out[k] = value
        slope[k] = change


@njit
def pair_gradient(features, weights, a, own, v, dv, free, directional, out):
    """Derivatives by V of the sum of weights I, or the change of these derivatives along dV if ``directional``.

    Parameters
    ----------
    weights : (n,) float64
    out : (g (g + 1) / 2, 6) float64, added to
    others : as for :func:`pair_values`
    """
    g = a.shape[1]
    for k in range(features.shape[0]):
        if weights[k] == 0:
            continue
        for i in range(g):
            row = i * (i + 1) // 2
            zi = _form(features[k], v[row + i])
            di = _form(features[k], dv[row + i])
            diagonal = 0.0
            for j in range(i):
                strength = 2 * weights[k] * (a[k, i].real * a[k, j].real + a[k, i].imag * a[k, j].imag)
                z = _form(features[k], v[row + j])
                dz = _form(features[k], dv[row + j])
                if free:
                    last = j * (j + 1) // 2 + j
                    m = 0.5 * (zi + _form(features[k], v[last]))
                    dm = 0.5 * (di + _form(features[k], dv[last]))
                    damping = strength * math.exp(-m)
                    shared = damping * math.exp(z)
                    both = -0.5 * damping * math.expm1(z)
                    if directional:
                        both = -0.5 * (shared * (dz - dm) + damping * dm)
                        shared *= dz - dm
                    diagonal += both
                    _add(features[k], both, out[last])
                else:
                    shared = strength * math.exp(z)
                    if directional:
                        shared *= dz
                _add(features[k], shared, out[row + j])
            if free:
                slope = weights[k] * own[k, i] * math.exp(-zi)
                diagonal += -slope * di if directional else slope
            else:
                slope = weights[k] * own[k, i] * math.exp(zi)
                diagonal += slope * di if directional else slope
            _add(features[k], diagonal, out[row + i])


@njit
def pair_jacobian(features, a, own, v, free, out):
    """Derivatives of I by V at each point.

    Parameters
    ----------
    out : (n, g (g + 1) / 2, 6) float64, added to
    others : as for :func:`pair_values`
    """
    one, still = np.ones(1), np.zeros_like(v)
    for k in range(features.shape[0]):
        here = slice(k, k + 1)
        pair_gradient(features[here], one, a[here], own[here], v, still, free, False, out[k])


@njit
def _form(features, v):
    total = 0.0
    for c in range(6):
        total += features[c] * v[c]
    return total


@njit
def _add(features, weight, out):
    for c in range(6):
        out[c] += weight * features[c]
