"""Sums over sparse rows of a design matrix, for the normal equations of the scaling model.

A Design, of ``kernels.scaling``, has w derivatives of each of n observations.
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def number_columns(index, rows, place, columns):
    """Number the parameters that some rows of a design matrix touch; returns how many there are.

    Parameters
    ----------
    index : (n, w) integers; rows : (m,) int64, which of them
    place : (p,) int64, number of each parameter, ascending, or -1; written
    columns : (p,) int64, the parameter with each number; written
    """
    place[:] = -1
    for i in rows:
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
def add_dense(design, rows, acts, factors, place, dense):
    """Add rows of a design matrix to dense rows of the columns that are touched.

    Parameters
    ----------
    design : Design of n observations, for a factor of 1
    rows : (m,) int64, which of them
    acts : (w,) int64, which of the factors belongs to each column of the design
    factors : (k, n) float64
    place : (p,) int64, see :func:`number_columns`
    dense : (m, c) float64, incremented
    """
    index, value = design
    for r in range(rows.shape[0]):
        i, row = rows[r], dense[r]
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
def voxel_sums(designs, places, acts, factors, unit, orbit, voxels, total, coupling, products):
    """Sums over the observations of each unique voxel: ``u J``, and products with the part that patterns multiply.

    From the products, what the intensity of the voxel explains is taken off: ``t cᵀ / total`` with c the coupling of
    the voxel, and t its last elements.

    Parameters
    ----------
    designs : two Designs of n observations, of all terms but the one that patterns multiply, and of its spline along
        |s| with a pattern of 1
    places : for each of them (p,) int64, see :func:`number_columns`; c and k columns are touched
    acts, factors : as for :func:`add_dense`, those of the spline at the end
    unit : (n,) float64, u
    orbit : (n,) int64, ascending, voxel of each observation
    voxels : (4,) int64, the first and the last + 1 of the voxels, and of their observations
    total : (m,) float64, of these voxels
    coupling : (m, c + k) float64, incremented
    products : (m, k, c + k) float64, incremented; the last k columns are those of the spline along |s|
    """
    (index, value), (nodes, along) = designs
    place, node_place = places
    width, k = index.shape[1], products.shape[1]
    first = coupling.shape[1] - k
    row = np.empty(width + 3)
    at = np.empty(width + 3, dtype=np.int64)
    for i in range(voxels[2], voxels[3]):
        slot = orbit[i] - voxels[0]
        own, square = coupling[slot], products[slot]
        for a in range(width):
            at[a] = place[index[i, a]]
            row[a] = value[i, a] * factors[acts[a], i]
        for s in range(3):
            at[width + s] = first + node_place[nodes[i, s]]
            row[width + s] = along[i, s] * factors[acts[width + s], i]
        for a in range(width + 3):
            own[at[a]] += unit[i] * row[a]
        for s in range(width, width + 3):
            target, x = square[at[s] - first], row[s]
            for a in range(width + 3):
                target[at[a]] += x * row[a]
    for v in range(coupling.shape[0]):
        own = coupling[v]
        for s in range(k):
            x, target = own[first + s] / total[v], products[v, s]
            for a in range(coupling.shape[1]):
                target[a] -= x * own[a]


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
