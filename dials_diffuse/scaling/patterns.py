"""Smooth anisotropic functions with the symmetry of the crystal: what absorption must not be mistaken for."""

from __future__ import annotations

import numpy as np
from scipy.special import lpmv

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators

#: even harmonics up to this degree
L_MAX = 8

_DIRECTIONS = 1500


def harmonics(u: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    """(n, k) real harmonics of even degree 2 … l_max at unit vectors u (n, 3), each of about unit mean square."""
    z, phi = np.clip(u[:, 2], -1, 1), np.arctan2(u[:, 1], u[:, 0])
    columns = []
    for degree in range(2, l_max + 1, 2):
        norm = 1.0
        for m in range(degree + 1):
            if m:
                norm /= (degree + m) * (degree - m + 1)
            legendre = np.sqrt((2 * degree + 1) * norm * (2 if m else 1)) * lpmv(m, degree, z)
            columns.append(legendre * np.cos(m * phi))
            if m:
                columns.append(legendre * np.sin(m * phi))
    return np.stack(columns, axis=1)


def symmetric_patterns(grid: MapGrid, index: np.ndarray, l_max: int = L_MAX) -> np.ndarray:
    """(m, k) float64: the combinations of harmonics that the Laue group leaves unchanged, at voxels.

    index : (m, 3) integers on the subdivided lattice
    """
    rng = np.random.default_rng(0)
    u = rng.normal(size=(_DIRECTIONS, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    basis = grid.reciprocal_matrix  # s = B h for columns
    plain, average = harmonics(u, l_max), 0.0
    operators = laue_operators(grid.space_group, True)
    for operator in operators:
        rotation = basis @ operator.T @ np.linalg.inv(basis)  # h' = h R, so s' = B Rᵀ B⁻¹ s
        average = average + harmonics(u @ rotation.T, l_max) / len(operators)
    # average = plain @ projector
    projector = np.linalg.lstsq(plain, average, rcond=None)[0]
    left, size, _ = np.linalg.svd(projector)
    invariant = left[:, size > 0.5]
    s = (np.asarray(index) / np.array(grid.subdivide)) @ basis.T
    length = np.linalg.norm(s, axis=1, keepdims=True)
    s = np.divide(s, length, out=np.tile([0.0, 0.0, 1.0], (len(s), 1)), where=length > 0)
    return harmonics(s, l_max) @ invariant
