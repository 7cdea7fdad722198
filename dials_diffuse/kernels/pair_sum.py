"""Sums over atoms and pairs of atoms at arbitrary points of reciprocal space: slow, obvious, exact."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def amplitudes(q, site, kind, f, u, out):
    """Structure factors by direct summation, F = sum_i f_i exp(-q U_i q / 2) exp(i q r_i).

    Parameters
    ----------
    q : (m, 3) float64, 1/Å, 2 pi s
    site : (n, 3) float64, Å, same Cartesian frame
    kind : (n,) integers, row of f of each atom
    f : (types, m) float64 or complex128, form factors at each q
    u : (n, 3, 3) float64, Å²; an atom's occupancy is left to the caller
    out : (m, n) complex128, written: the term of each atom
    """
    for k in range(q.shape[0]):
        for i in range(site.shape[0]):
            phase = q[k, 0] * site[i, 0] + q[k, 1] * site[i, 1] + q[k, 2] * site[i, 2]
            square = 0.0
            for a in range(3):
                for b in range(3):
                    square += q[k, a] * u[i, a, b] * q[k, b]
            weight = math.exp(-0.5 * square)
            out[k, i] = f[kind[i], k] * weight * complex(math.cos(phase), math.sin(phase))


@njit
def pair_sum(q, site, f, v, out):
    """Diffuse intensity of displacements with a joint normal distribution.

    I(q) = Re sum_ij a_i conj(a_j) (exp(q V_ij q) - 1), a_i = f_i exp(-q V_ii q / 2) exp(i q r_i)

    Parameters
    ----------
    q : (m, 3) float64, 1/Å, 2 pi s
    site : (n, 3) float64, Å
    f : (m, n) complex128, form factor times occupancy
    v : (n, n, 3, 3) float64, Å², V_ij = <d_i d_j^T>; V_ji = V_ij^T is taken for granted
    out : (m,) float64, written

    Source: docs/theory.md, Models
    """
    n = site.shape[0]
    a = np.empty(n, dtype=np.complex128)
    for k in range(q.shape[0]):
        total = 0.0
        for i in range(n):
            phase = q[k, 0] * site[i, 0] + q[k, 1] * site[i, 1] + q[k, 2] * site[i, 2]
            own = _quadratic(q[k], v[i, i])
            a[i] = f[k, i] * math.exp(-0.5 * own) * complex(math.cos(phase), math.sin(phase))
            total += (a[i].real ** 2 + a[i].imag ** 2) * math.expm1(own)
            for j in range(i):
                product = a[i].real * a[j].real + a[i].imag * a[j].imag
                total += 2 * product * math.expm1(_quadratic(q[k], v[i, j]))
        out[k] = total


@njit
def pair_sum_isotropic(q, site, f, v, out):
    """Diffuse intensity of displacements with a joint normal distribution and V_ij = v_ij 1.

    v : (n, n) float64, Å²; the other arguments as for :func:`pair_sum`
    """
    n = site.shape[0]
    a = np.empty(n, dtype=np.complex128)
    for k in range(q.shape[0]):
        square = q[k, 0] ** 2 + q[k, 1] ** 2 + q[k, 2] ** 2
        total = 0.0
        for i in range(n):
            phase = q[k, 0] * site[i, 0] + q[k, 1] * site[i, 1] + q[k, 2] * site[i, 2]
            own = square * v[i, i]
            a[i] = f[k, i] * math.exp(-0.5 * own) * complex(math.cos(phase), math.sin(phase))
            total += (a[i].real ** 2 + a[i].imag ** 2) * math.expm1(own)
            for j in range(i):
                product = a[i].real * a[j].real + a[i].imag * a[j].imag
                total += 2 * product * math.expm1(square * v[i, j])
        out[k] = total


@njit
def _quadratic(q, v):
    total = 0.0
    for a in range(3):
        for b in range(3):
            total += q[a] * v[a, b] * q[b]
    return total


@njit
def displaced_squares(q, kind, f2, u, weight, out):
    """Sum over atoms of weight f² exp(-q U q).

    Parameters
    ----------
    q : (m, 3) float64, 1/Å, 2 pi s
    kind : (n,) integers, row of f2 of each atom
    f2 : (types, m) float64
    u : (n, 3, 3) float64, Å²
    weight : (n,) float64
    out : (m,) float64, written
    """
    for k in range(q.shape[0]):
        x, y, z = q[k, 0], q[k, 1], q[k, 2]
        total = 0.0
        for i in range(kind.shape[0]):
            square = x * x * u[i, 0, 0] + y * y * u[i, 1, 1] + z * z * u[i, 2, 2]
            square += 2 * (x * y * u[i, 0, 1] + x * z * u[i, 0, 2] + y * z * u[i, 1, 2])
            total += weight[i] * f2[kind[i], k] * math.exp(-square)
        out[k] = total


@njit
def pair_form(q, a, v, out):
    """Diffuse intensity from the amplitudes of atoms or groups, I(q) = Re sum_ij a_i conj(a_j) (exp(q V_ij q) - 1).

    Parameters
    ----------
    q : (m, 3) float64, 1/Å, 2 pi s
    a : (m, n) complex128, Debye-Waller factors included
    v : (n, n, 3, 3) float64, Å²; V_ji = V_ij^T is taken for granted
    out : (m,) float64, written
    """
    n = a.shape[1]
    for k in range(q.shape[0]):
        total = 0.0
        for i in range(n):
            total += (a[k, i].real ** 2 + a[k, i].imag ** 2) * math.expm1(_quadratic(q[k], v[i, i]))
            for j in range(i):
                product = a[k, i].real * a[k, j].real + a[k, i].imag * a[k, j].imag
                total += 2 * product * math.expm1(_quadratic(q[k], v[i, j]))
        out[k] = total


@njit
def pair_form_isotropic(square, a, v, out):
    """Diffuse intensity from amplitudes, I(q) = Re sum_ij a_i conj(a_j) (exp(q² v_ij) - 1).

    square : (m,) float64, q² in 1/Å²; v : (n, n) float64, Å²; the other arguments as for :func:`pair_form`
    """
    n = a.shape[1]
    for k in range(square.shape[0]):
        total = 0.0
        for i in range(n):
            total += (a[k, i].real ** 2 + a[k, i].imag ** 2) * math.expm1(square[k] * v[i, i])
            for j in range(i):
                product = a[k, i].real * a[k, j].real + a[k, i].imag * a[k, j].imag
                total += 2 * product * math.expm1(square[k] * v[i, j])
        out[k] = total


@njit
def exponential_matrix(x, v, first, last, out):
    """Rows first ... last - 1 of (exp(x v_ij) - 1) / x below the diagonal and on it, twice that below; 0 above.

    x : q² in 1/Å², positive; v : (n, n) float64, Å²; out : (n, n) float64, those rows are written
    """
    for i in range(first, last):
        for j in range(i):
            out[i, j] = 2 * math.expm1(x * v[i, j]) / x
        out[i, i] = math.expm1(x * v[i, i]) / x
        out[i, i + 1 :] = 0.0
