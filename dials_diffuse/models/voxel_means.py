"""Means of a model over voxels: what a map holds, in place of what is at the voxels' centres."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators, map_to_asu
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors

#: Simpson's rule on an interval: weights at its ends and its middle
_SIMPSON = np.array([1.0, 4.0, 1.0]) / 6


class VoxelMeans(Prepared):
    """Weighted means of a model that is prepared at more points.

    Parameters
    ----------
    inner : at m points
    weights : (n, m) sparse matrix
    """

    means = True

    def __init__(self, inner: Prepared, weights: csr_matrix):
        self.origin, self.structure, self.parameters = inner.origin, inner.structure, inner.parameters
        self._inner, self._weights = inner, weights

    @cached_property
    def tensors(self) -> list:
        return self._inner.tensors

    def intensity(self, values) -> np.ndarray:
        return self._weights @ self._inner.intensity(values)

    def jacobian(self, values) -> tuple:
        intensity, jacobian = self._inner.jacobian(values)
        return self._weights @ intensity, self._weights @ jacobian

    def second(self, values, weights) -> np.ndarray:
        return self._inner.second(values, self._weights.T @ weights)


def gauss_points(grid: MapGrid) -> np.ndarray:
    """Points around a voxel's centre, all of one weight: Gauss's rule with two points along each edge.

    Where operators of the map turn voxels into others of another shape, those of a box that has the second moments of
    all shapes together. Exact for polynomials of the third degree. Of cos(r q) it leaves (r w)⁴/4320 on an edge w,
    after a mean that differs from the centre by (r w)²/24.

    Returns
    -------
    (8, 3) float64, 1/Å, relative to the centre, Cartesian frame
    """
    edges = grid.reciprocal_matrix / np.array(grid.subdivide)  # one in each column
    shapes = np.array([edges @ r.T for r in laue_operators(grid.space_group, True)])
    moments = np.mean(shapes @ shapes.transpose(0, 2, 1), axis=0) / 12
    values, vectors = np.linalg.eigh(moments)
    return np.array(list(itertools.product((-1, 1), repeat=3))) @ (vectors * np.sqrt(values)).T


def relative_scattering(
    structure: Structure, s: np.ndarray, points: np.ndarray, u: float, displaced: bool, table: str
) -> np.ndarray:
    """Mean f² exp(-u q²) of the atoms around points relative to that at them: what varies slowly within a voxel.

    Parameters
    ----------
    s : (n, 3) float64, 1/Å
    points : (k, 3) float64, 1/Å, relative to each s
    u : Å², mean square displacement along a line
    displaced : times q², as the diffuse scattering of small displacements is

    Returns
    -------
    (k, n) float64, 1 where s = 0
    """
    weights = np.bincount(structure.type_index, structure.occupancy**2, len(structure.types))

    def scattering(s):
        length = np.linalg.norm(s, axis=1)
        x = (2 * np.pi * length) ** 2
        return weights @ np.abs(form_factors(structure, length, table)) ** 2 * np.exp(-u * x) * (x if displaced else 1)

    if not points.any():
        return np.ones((len(points), len(s)))
    centre = scattering(s)
    return np.array([np.divide(scattering(s + o), centre, out=np.ones(len(s)), where=centre > 0) for o in points])


def averaged(prepare: Callable, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
    """A model averaged over the volumes of voxels, see :func:`voxel_points`.

    Parameters
    ----------
    prepare : of structure, grid and index makes the Prepared of the centres of voxels; its intensity must have the
        symmetry of the structure
    """
    fine, points, weights = voxel_points(structure, grid, index)
    return VoxelMeans(prepare(structure, fine, points), weights)


def voxel_points(structure: Structure, grid: MapGrid, index) -> tuple:
    """Points on the lattice of half voxels, by Simpson's rule: 27 points of a voxel, shared with its neighbours.

    Where operators of the map turn voxels into others of another shape (trigonal and hexagonal axes), the mean over
    these shapes is taken, as a merged map has it.

    Returns
    -------
    grid : of half voxels
    points : (m, 3) int64, its voxels; those that the structure's symmetry makes equal are one
    weights : (n, m) sparse matrix, from values at the points to means over the voxels

    Notes
    -----
    The rule is exact for polynomials of the third degree along each edge. The mean differs from the value at the centre
    by 1/24 of the second derivatives along the edges: for a halo of correlation length γ on voxels of width w (in q,
    1/Å) by the order of (γ w)²/6 of its height.
    """
    index = np.asarray(index, dtype=np.int64).reshape(-1, 3)
    corner = np.linalg.norm(np.abs(grid.reciprocal_matrix / (2 * np.array(grid.subdivide))).sum(axis=1))
    subdivide = tuple(2 * n for n in grid.subdivide)
    fine = replace(grid, subdivide=subdivide, d_min=1 / (1 / grid.d_min + corner), d_max=np.inf)
    box = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    operators = laue_operators(grid.space_group, friedel=True)
    offsets, number = np.unique((box @ operators).reshape(-1, 3), axis=0, return_inverse=True)
    weight = np.tile([np.prod(_SIMPSON[1 + o]) for o in box], len(operators))
    weight = np.bincount(number.reshape(-1), weight) / len(operators)
    points, _ = map_to_asu((2 * index[:, None] + offsets).reshape(-1, 3), structure.space_group, True)
    extent = np.abs(points).max(axis=0) + 1
    keys = np.ravel_multi_index((points + extent).T, 2 * extent + 1)
    unique, first, number = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.repeat(np.arange(len(index)), len(offsets))
    matrix = csr_matrix((np.tile(weight, len(index)), (rows, number.reshape(-1))), (len(index), len(unique)))
    return fine, points[first], matrix
