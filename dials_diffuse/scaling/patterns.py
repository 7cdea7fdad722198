"""Smooth functions on the sphere: of absorption, and, with the symmetry of the crystal, of its own anisotropy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import lpmv

from dials_diffuse.kernels.scaling import evaluate_monomials, sum_monomials
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators

#: even harmonics up to this degree
L_MAX = 8

_DIRECTIONS = 1500


def harmonics(u: np.ndarray, degrees) -> np.ndarray:
    """(n, k) real spherical harmonics at unit vectors u (n, 3), each of unit mean square over the sphere.

    k runs over the 2 l + 1 functions of each degree l in ``degrees``.
    """
    z, phi = np.clip(u[:, 2], -1, 1), np.arctan2(u[:, 1], u[:, 0])
    columns = []
    for degree in degrees:
        norm = 1.0
        for m in range(degree + 1):
            if m:
                norm /= (degree + m) * (degree - m + 1)
            legendre = np.sqrt((2 * degree + 1) * norm * (2 if m else 1)) * lpmv(m, degree, z)
            columns.append(legendre * np.cos(m * phi))
            if m:
                columns.append(legendre * np.sin(m * phi))
    return np.stack(columns, axis=1)


def absorption_functions(directions: np.ndarray, l_max: int) -> np.ndarray:
    """(n, (l_max + 1)² - 1) harmonics of degree 1 … l_max, mean of those at two unit vectors each.

    Source: Blessing (1995) Acta Cryst. A51, 33; as in DIALS: Beilsten-Edmands et al. (2020) Acta Cryst. D76, 385

    directions : (n, 6) float64, see ``data.DIFFRACTED``
    """
    return _monomials(directions, _exponents(l_max)) @ (0.5 * _from_monomials(l_max))


def absorption(directions: np.ndarray, coefficients: np.ndarray, row: np.ndarray, l_max: int) -> np.ndarray:
    """(n,) float64, sums of :func:`absorption_functions` without making them, which takes much longer.

    directions : (n, 6) float64; coefficients : (e, k) float64; row : (n,) int64, which of them
    """
    result = np.empty(len(directions))
    polynomials = np.ascontiguousarray((_from_monomials(l_max) @ coefficients.T).T)
    evaluate_monomials(directions, _exponents(l_max), polynomials, row, result)
    return result


def degrees_of(l_max: int) -> np.ndarray:
    """(k,) degree of each of :func:`absorption_functions`."""
    return np.repeat(np.arange(1, l_max + 1), 2 * np.arange(1, l_max + 1) + 1)


def _monomials(directions: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """(n, m) products x^i y^j z^k, summed over vectors; directions : (n, 3 k) float64; exponents : (m, 3) int64"""
    result = np.empty((len(directions), len(exponents)))
    sum_monomials(directions, exponents, result)
    return result


@lru_cache
def _exponents(degree: int) -> np.ndarray:
    """((degree + 1)², 3) int64, exponents of products of ``degree`` or one less factors: they span all harmonics."""
    return np.concatenate([_homogeneous(degree), _homogeneous(degree - 1)])


def _homogeneous(degree: int) -> np.ndarray:
    """(m, 3) int64, exponents of products of ``degree`` factors: on the sphere they span every second degree."""
    return np.array([(i, j, degree - i - j) for i in range(degree + 1) for j in range(degree + 1 - i)])


def _some_directions() -> np.ndarray:
    """(n, 3) unit vectors anywhere."""
    u = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    return u / np.linalg.norm(u, axis=1, keepdims=True)


@lru_cache
def _from_monomials(l_max: int) -> np.ndarray:
    """Matrix from monomials to harmonics of degree 1 … l_max: much faster than Legendre functions for every row."""
    u = _some_directions()
    return np.linalg.lstsq(_monomials(u, _exponents(l_max)), harmonics(u, range(1, l_max + 1)), rcond=None)[0]


def symmetric_patterns(grid: MapGrid, index: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    """(m, k) float64: the combinations of harmonics that the Laue group leaves unchanged, at voxels.

    index : (m, 3) integers on the subdivided lattice
    """
    u = _some_directions()
    basis = grid.reciprocal_matrix  # s = B h for columns
    degrees = range(2, l_max + 1, 2)
    plain = harmonics(u, degrees)
    average = np.zeros_like(plain)
    operators = laue_operators(grid.space_group, True)
    for operator in operators:
        rotation = basis @ operator.T @ np.linalg.inv(basis)  # h' = h R, so s' = B Rᵀ B⁻¹ s
        average += harmonics(u @ rotation.T, degrees) / len(operators)
    # average = plain @ projector
    projector = np.linalg.lstsq(plain, average, rcond=None)[0]
    left, size, _ = np.linalg.svd(projector)
    invariant = left[:, size > 0.5]
    s = (np.asarray(index) / np.array(grid.subdivide)) @ basis.T
    length = np.linalg.norm(s, axis=1, keepdims=True)
    s = np.divide(s, length, out=np.tile([0.0, 0.0, 1.0], (len(s), 1)), where=length > 0)
    exponents = _homogeneous(l_max)
    return _monomials(s, exponents) @ np.linalg.lstsq(_monomials(u, exponents), plain @ invariant, rcond=None)[0]
