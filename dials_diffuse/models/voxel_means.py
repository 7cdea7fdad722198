"""Means of a model over voxels: what a map holds, in place of what is at the voxels' centres."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators, map_to_asu
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.structure.atoms import Structure

#: Simpson's rule on an interval: weights at its ends and its middle
_SIMPSON = np.array([1.0, 4.0, 1.0]) / 6


class VoxelMeans(Prepared):
    """Weighted means of a model that is prepared at more points.

    Parameters
    ----------
    inner : at m points
    weights : (n, m) sparse matrix
    """

    def __init__(self, inner: Prepared, weights: csr_matrix):
        self.origin, self.structure, self.parameters = inner.origin, inner.structure, inner.parameters
        self._inner, self._weights = inner, weights

    @cached_property
    def tensors(self) -> list:
        return self._inner.tensors

    def largest_step(self, values, step) -> float:
        return self._inner.largest_step(values, step)

    def intensity(self, values) -> np.ndarray:
        return self._weights @ self._inner.intensity(values)

    def jacobian(self, values) -> tuple:
        intensity, jacobian = self._inner.jacobian(values)
        return self._weights @ intensity, self._weights @ jacobian

    def second(self, values, weights) -> np.ndarray:
        return self._inner.second(values, self._weights.T @ weights)


def prepare_means(model, structure: Structure, grid: MapGrid, index) -> Prepared:
    """A model averaged over the volumes of voxels, by Simpson's rule: 27 points of a voxel, shared with its neighbours.

    Where operators of the map turn voxels into others of another shape (trigonal and hexagonal axes), the mean over
    these shapes is taken, as a merged map has it.

    Parameters are those of ``model.prepare``; the intensity must have the symmetry of the structure.

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
    return VoxelMeans(model.prepare(structure, fine, points[first]), matrix)
