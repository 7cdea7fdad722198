"""Sums over single atoms, which all models share, and the size of a molecule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from scipy.special import ive

from dials_diffuse.kernels.even_table import from_table
from dials_diffuse.kernels.pair_sum import displaced_squares
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors, gaussian, sum_of_squares
from dials_diffuse.structure.transform import s_squared

#: points at which functions of |s| are computed, and nodes of the table that a spline makes of them
_RADIAL_POINTS = 1 << 13
_RADIAL_NODES = 1 << 17
#: bound on the Chebyshev terms that are left out, relative to the value at s = 0
_CHEBYSHEV_ERROR = 1e-8


#: distance up to which the transform of a single atom's diffuse intensity reaches, Å
ATOM_LENGTH = 5.0
#: a correlation below this is none
NEGLIGIBLE_CORRELATION = 0.01
#: atoms whose distances are looked at one by one; of more only those on the convex hull
_MOST_DISTANCES = 1000


def diameter(structure: Structure) -> float:
    """Largest distance between two of the atoms, Å, at least ATOM_LENGTH."""
    sites = structure.site_cart
    if len(sites) > _MOST_DISTANCES:
        sites = sites[ConvexHull(sites).vertices]
    return max(ATOM_LENGTH, float(pdist(sites).max(initial=0.0)))


def radial(function, s2: np.ndarray) -> np.ndarray:
    """A smooth function of |s| at many points, from a table.

    The relative error is below 1e-6 for sums of form factors with displacements of U < 2 Å² up to |s|² = 3 1/Å².

    function : of (m,) |s| in 1/Å; s2 : float64, |s|² in 1/Å²
    """
    points, nodes = (np.linspace(0, s2.max(initial=1e-6), n) for n in (_RADIAL_POINTS, _RADIAL_NODES))
    table = CubicSpline(points, function(np.sqrt(points)))(nodes)
    return from_table(s2, nodes[-1], table)


def squares(structure: Structure, s2: np.ndarray, table: str) -> np.ndarray:
    """Sum of occupancy² f² over the atoms of the cell, electrons², at |s|² = s2."""
    return radial(lambda s: sum_of_squares(structure, s, table), s2)


def displaced(structure: Structure, grid: MapGrid, s2: np.ndarray, table: str) -> np.ndarray:
    """Sum of occupancy² f² exp(-qᵀUq) over the atoms of the asymmetric unit times their multiplicity.

    Not yet averaged over the Laue group. Isotropic atoms make a function of |s|; the rest is interpolated between
    Chebyshev nodes, with an error below 1e-6 of the value at s = 0.

    Returns
    -------
    float64 of ``grid.shape``, electrons² per cell
    """
    total = np.zeros(grid.shape)
    if structure.isotropic.any():
        round_atoms = structure.take(structure.isotropic)
        total += radial(lambda s: sum_of_squares(round_atoms, s, table, displaced=True), s2)
    if not structure.isotropic.all():
        total += _anisotropic(structure.take(~structure.isotropic), grid, table)
    return total


def special_remainder(structure: Structure, grid: MapGrid, s2: np.ndarray, table: str):
    """What |F|² of :meth:`Structure.molecule` lacks of the own terms of atoms on special positions.

    Each copy has a share of such an atom, so that in the sum over copies its own term is that fraction of
    occupancy² f² exp(-qᵀUq).

    Returns
    -------
    float64 of ``grid.shape``, electrons² per cell; 0.0 if there are no such atoms
    """
    special = structure.share < 1
    return displaced(_lacking(structure, special), grid, s2, table) if special.any() else 0.0


def special_remainder_at(structure: Structure, s: np.ndarray, table: str):
    """:func:`special_remainder` at any points for one copy, in the frame of the structure.

    s : (n, 3) float64, 1/Å

    Returns
    -------
    (n,) float64, electrons²; 0.0 if there are no atoms on special positions
    """
    special = structure.share < 1
    if not special.any():
        return 0.0
    part = _lacking(structure, special)
    f2 = form_factors(part, np.linalg.norm(s, axis=1), table) ** 2
    out = np.empty(len(s))
    displaced_squares(2 * np.pi * s, part.type_index, f2, part.u_cart, part.occupancy**2 * part.share, out)
    return out


def _lacking(structure: Structure, special: np.ndarray) -> Structure:
    part = structure.take(special)
    return replace(part, occupancy=part.occupancy * np.sqrt(1 - part.share))


def displaced_at(structure: Structure, grid: MapGrid, index: np.ndarray, table: str) -> np.ndarray:
    """(n,) float64, :func:`displaced` at some voxels of a grid; index : (n, 3) integers"""
    if structure.isotropic.all():
        s2 = np.square(grid.s_magnitude(index))
        return radial(lambda s: sum_of_squares(structure, s, table, displaced=True), s2)
    return displaced(structure, grid, s_squared(grid), table).reshape(-1)[grid.key(index)]


def single_atoms(structure: Structure, s: np.ndarray, table: str) -> tuple:
    """Sums of occupancy² f² and of occupancy² f² exp(-qᵀUq) over the atoms of the cell at any points, (n,) each.

    s : (n, 3) float64, 1/Å, Cartesian frame of the structure
    """
    content = structure.expand()
    f2 = form_factors(content, np.linalg.norm(s, axis=1), table) ** 2
    weight = content.occupancy**2
    own = np.empty(len(s))
    displaced_squares(2 * np.pi * s, content.type_index, f2, content.u_cart, weight, own)
    return np.bincount(content.type_index, weight, len(content.types)) @ f2, own


def _anisotropic(structure: Structure, grid: MapGrid, table: str) -> np.ndarray:
    axes = grid.axes()
    nodes, weights = zip(*(_nodes(axis, n) for axis, n in zip(axes, _node_numbers(structure, grid, table))))
    hkl = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    s = hkl @ grid.reciprocal_matrix.T
    f2 = form_factors(structure, np.linalg.norm(s, axis=1), table) ** 2
    values = np.empty(len(s))
    weight = structure.occupancy**2 * structure.multiplicity
    displaced_squares(2 * np.pi * s, structure.type_index, f2, structure.u_cart, weight, values)
    volume = values.reshape([len(n) for n in nodes])
    for w in weights:  # each pass takes the first axis to the end
        volume = np.tensordot(volume, w, axes=(0, 1))
    return volume


def _node_numbers(structure: Structure, grid: MapGrid, table: str) -> list:
    """Chebyshev nodes along each axis for the sharpest Gaussian among f² exp(-qᵀUq).

    exp(-2z t²) on -1..1 has Chebyshev coefficients 2 (-1)^k exp(-z) I_k(z) at the orders 2k.
    """
    sharpest_f = max(max(gaussian(t, table).array_of_b(), default=0.0) for t in structure.types)
    exponent = 0.5 * sharpest_f + 4 * np.pi**2 * np.linalg.eigvalsh(structure.u_cart).max()
    numbers = []
    for axis, column in zip(grid.axes(), grid.reciprocal_matrix.T):
        z = 0.5 * exponent * (axis[-1] * np.linalg.norm(column)) ** 2
        k = 2
        while ive(k, z) > _CHEBYSHEV_ERROR:
            k += 1
        numbers.append(2 * k + 3)
    return numbers


def _nodes(axis: np.ndarray, n: int) -> tuple:
    """Points at which to compute, and the (len(axis), points) matrix from there to the axis."""
    if n >= len(axis):
        return axis, np.eye(len(axis))
    points = axis[-1] * np.cos(np.pi * np.arange(n) / (n - 1))
    signs = (-1.0) ** np.arange(n)
    signs[[0, -1]] *= 0.5
    difference = axis[:, None] - points
    exact = np.abs(difference) < 1e-14 * axis[-1]
    with np.errstate(divide="ignore"):
        matrix = signs / difference
    matrix[exact.any(axis=1)] = 0
    matrix[exact] = 1
    return points, matrix / matrix.sum(axis=1, keepdims=True)
