"""Sums over a reciprocal lattice at any points: slow, without transforms."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.llm.convolution import Correlation

#: terms that are in memory together
_TERMS = 1 << 21


def lattice_sums(
    s: np.ndarray, strength: np.ndarray, source: MapGrid, correlation: Correlation, orders: int
) -> np.ndarray:
    """(orders, n) float64, (1/V) sum over h of strength(h) Gamma_l(q - q_h), l = 1 ... orders.

    Parameters
    ----------
    s : (n, 3) float64, 1/Å, Cartesian frame of the structure
    strength : float64 of ``source.shape``, finite
    source : reciprocal lattice, subdivide 1, 1, 1; V is the volume of its cell
    """
    chosen = np.flatnonzero(strength)
    weight = strength.reshape(-1)[chosen] * abs(np.linalg.det(source.reciprocal_matrix))
    frame = 2 * math.pi * correlation.matrix
    nodes = source.index(chosen) @ (source.reciprocal_matrix.T @ frame.T)
    points = s @ frame.T
    result = np.zeros((orders, len(s)))
    rows = max(1, _TERMS // max(len(nodes), 1))
    for start in range(0, len(s), rows):
        part = slice(start, start + rows)
        square = sum(np.subtract.outer(points[part, c], nodes[:, c]) ** 2 for c in range(3))
        for order in range(1, orders + 1):
            result[order - 1, part] = correlation.transform(square, order) @ weight
    return result
