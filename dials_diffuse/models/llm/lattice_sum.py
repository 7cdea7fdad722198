"""Sums over a reciprocal lattice at any points: slow, without transforms."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.llm import series
from dials_diffuse.models.llm.convolution import TAIL_NODES, Correlation
from dials_diffuse.models.single_atoms import single_atoms
from dials_diffuse.structure.crystal import Structure

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


def summed_intensity(model, structure: Structure, s: np.ndarray) -> np.ndarray:
    """Diffuse intensity of liquid-like motions at any points.

    Parameters
    ----------
    model : LiquidLikeMotions
    structure : asymmetric unit
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure

    Returns
    -------
    (m,) float64, electrons² per unit cell
    """
    s2 = np.sum(s**2, axis=1)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 1 / max(np.sqrt(s2.max()), 0.01))
    overall = model.adp == "overall"
    if overall:
        structure = structure.without_displacements()
    work = model.work_grid(structure, grid)
    correlation, strength, source, mean = model.strength(structure, work)
    turns = structure.rotations
    if model.confined_to == "crystal" and len(model.operators(grid)) > 2:
        turns = turns[:1]  # the first is the identity, and all are alike
    nodes = np.linspace(0, 2 * np.pi / grid.d_min, TAIL_NODES)
    q = 2 * np.pi * np.sqrt(s2)
    tails = [
        np.interp(q, nodes, correlation.tail(nodes, 2 * np.pi / source.d_min, mean, order))
        for order in range(1, model.orders + 1)
    ]
    everything, own = single_atoms(structure, s, model.table)
    total = np.zeros(len(s))
    for turn in turns:
        turned = s @ turn
        x = (2 * np.pi) ** 2 * np.einsum("ma,ab,mb->m", turned, model.tensor, turned)
        sums = lattice_sums(turned, strength, source, correlation, model.orders) + tails
        part = sum(term * value for term, value in zip(series.terms(x, model.orders), sums))
        if model.local_form_factor:
            part *= model.decay(structure, np.sqrt(s2))
        if model.incoherent:
            part -= own * series.exponential(x, model.orders)
        total += part * np.exp(-x) if overall else part
    return total / len(turns) + (everything if model.incoherent else 0.0)
