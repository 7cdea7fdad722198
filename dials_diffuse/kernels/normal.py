"""Sums over sparse rows of a design matrix, for the normal equations of the scaling model.

A Design, of ``kernels.scaling``, has w derivatives of each of n observations.
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def number_columns(index, place, columns):
    """Number the parameters that some rows of a design matrix touch; returns how many there are.

    Parameters
    ----------
    index : (n, w) int64
    place : (p,) int64, number of each parameter, ascending, or -1; written
    columns : (p,) int64, the parameter with each number; written
    """
    place[:] = -1
    for i in range(index.shape[0]):
        for a in range(index.shape[1]):
            place[index[i, a]] = 0
    n = 0
    for k in range(place.shape[0]):
        if place[k] == 0:
            place[k] = n
            columns[n] = k
            n += 1
    return n


@njit
def add_dense(design, acts, factors, place, rows):
    """Add rows of a design matrix to dense rows of the columns that are touched.

    Parameters
    ----------
    design : Design of n observations, for a factor of 1
    acts : (w,) int64, which of the factors belongs to each column of the design
    factors : (k, n) float64
    place : (p,) int64, see :func:`number_columns`
    rows : (n, c) float64, incremented
    """
    index, value = design
    for i in range(index.shape[0]):
        row = rows[i]
        for a in range(index.shape[1]):
            row[place[index[i, a]]] += value[i, a] * factors[acts[a], i]


@njit
def add_gradient(design, acts, factors, vector):
    """``vector += sum f J`` over observations; vector : (p,) float64, others as for :func:`add_dense`."""
    index, value = design
    for i in range(index.shape[0]):
        for a in range(index.shape[1]):
            vector[index[i, a]] += value[i, a] * factors[acts[a], i]


@njit
def voxel_sums(short, acts, factors, unit, slot, coupling, products):
    """Sums over the observations of each unique voxel: ``u J``, and products with the part that patterns multiply.

    Parameters
    ----------
    short : Design whose columns are numbers in 0 … c - 1, the last three those of the spline along |s| of the patterns
    acts, factors : as for :func:`add_dense`
    unit : (n,) float64, u
    slot : (n,) int64, voxel of each observation
    coupling : (m, c) float64, incremented
    products : (m, k, c) float64, incremented; the last k columns are those of the spline along |s|
    """
    index, value = short
    width, first = index.shape[1], coupling.shape[1] - products.shape[1]
    row = np.empty(width)
    for i in range(index.shape[0]):
        own, square = coupling[slot[i]], products[slot[i]]
        for a in range(width):
            row[a] = value[i, a] * factors[acts[a], i]
            own[index[i, a]] += unit[i] * row[a]
        for s in range(width - 3, width):
            target, x = square[index[i, s] - first], row[s]
            for a in range(width):
                target[index[i, a]] += x * row[a]


@njit
def subtract_products(coupling, total, products):
    """``products[v] -= t cᵀ / total[v]`` with c the coupling of a voxel, and t its last elements; see voxel_sums."""
    first = coupling.shape[1] - products.shape[1]
    for v in range(coupling.shape[0]):
        for s in range(products.shape[1]):
            x, target = coupling[v, first + s] / total[v], products[v, s]
            for a in range(coupling.shape[1]):
                target[a] -= x * coupling[v, a]


@njit
def renumber(index, place, first, number):
    """``number[i, first + a] = place[index[i, a]]``; index : (n, w) int64."""
    for i in range(index.shape[0]):
        for a in range(index.shape[1]):
            number[i, first + a] = place[index[i, a]]


@njit
def add_upper(local, columns, matrix):
    """Add the upper triangle of ``local`` (c, c) to the rows and columns ``columns`` (c,), ascending, of ``matrix``."""
    for a in range(local.shape[0]):
        row = matrix[columns[a]]
        for b in range(a, local.shape[0]):
            row[columns[b]] += local[a, b]


@njit
def add_to_parents(factor, parent, columns, rows, above):
    """``above[parent[i], columns] += factor[i] * rows[i]``.

    factor, parent : (m,); columns : (c,) int64; rows : (m, c) and above : (l, p) float64, the latter incremented
    """
    for i in range(rows.shape[0]):
        x, target = factor[i], above[parent[i]]
        for a in range(rows.shape[1]):
            target[columns[a]] += x * rows[i, a]


@njit
def add_patterns_to_parents(factor, parent, columns, rows, pattern, above):
    """The same for parameters that multiply patterns; pattern : (m, k); above : (l, k, p) float64, incremented."""
    for i in range(rows.shape[0]):
        for k in range(pattern.shape[1]):
            x, target = factor[i] * pattern[i, k], above[parent[i], k]
            for a in range(rows.shape[1]):
                target[columns[a]] += x * rows[i, a]


@njit
def quadratic_forms(design, matrix, out):
    """``out[i] = J_i matrix J_i``.

    design : Design of n observations; matrix : (p, p) float64, symmetric; out : (n,) float64, written
    """
    index, value = design
    for i in range(index.shape[0]):
        total = 0.0
        for a in range(index.shape[1]):
            row, half = matrix[index[i, a]], 0.5 * value[i, a] * matrix[index[i, a], index[i, a]]
            for b in range(a):
                half += value[i, b] * row[index[i, b]]
            total += 2.0 * value[i, a] * half
        out[i] = total
