"""Rigid bodies at fixed voxels as a function of their displacements."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.prepared import Prepared, Square, half_of
from dials_diffuse.structure.crystal import Structure


class PreparedRigidBody(Prepared):
    """I = sum over bodies and operators of h(x) A + B, x = qᵀVq with q turned by the operator.

    h = 1 - exp(-x), A = |F|², B = 0; of soft bodies h = exp(x) - 1, A = |F|² - sum of f² exp(-qᵀUq), and B = sum of
    f² (1 - exp(-qᵀUq)). The intensity is that of the model, without further approximation.

    Parameters
    ----------
    model : RigidBody that does not rotate
    index : (n, 3) int64, inside 1/d_min of the grid
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray):
        self.origin, self.structure = model, structure
        self.parameters = model.parameters(structure)
        self._components = model.components(structure)
        self._sign = 1.0 if model.soft else -1.0
        structure, grid = fitted(structure, grid)
        operators = half_of(laue_operators(grid.space_group, friedel=True))
        scale = 2 * np.pi / np.array(grid.subdivide)
        mates = [index @ r for r in operators]
        isotropic = self._components is None  # then x is the same for all mates
        turned = mates[:1] if isotropic else mates
        self._squares = [Square((m * scale) @ grid.reciprocal_matrix.T, self._components) for m in turned]
        keys = [grid.key(m) for m in mates]
        self._constant = np.zeros(len(index))
        self._terms = []  # for each displacement and square: A
        for _, strength, own, constant in model.strengths(structure, grid):
            part = strength - own
            rows = [part.reshape(-1)[k] / len(keys) for k in keys]
            self._terms.append([sum(rows)] if isotropic else rows)
            if model.soft:
                rest = (constant - own).reshape(-1)
                self._constant += sum(rest[k] for k in keys) / len(keys)

    @cached_property
    def tensors(self) -> list:
        if self._components is None:
            return []
        k = len(self._components.names)
        return [(slice(i, i + k), self._components) for i in range(0, len(self.parameters), k)]

    def jacobian(self, values) -> tuple:
        intensity = self._constant.copy()
        jacobian = np.zeros((len(intensity), len(self.parameters)))
        for where, own, rows in self._parts(values):
            for square, strength in zip(self._squares, rows):
                x, first = square(own)
                intensity += self._sign * np.expm1(self._sign * x) * strength
                jacobian[:, where] += (np.exp(self._sign * x) * strength)[:, None] * first
        return intensity, jacobian

    def second(self, values, weights) -> np.ndarray:
        result = np.zeros((len(self.parameters),) * 2)
        for where, own, rows in self._parts(values):
            for square, strength in zip(self._squares, rows):
                x, first = square(own)
                slope = weights * np.exp(self._sign * x) * strength
                result[where, where] += self._sign * (first.T * slope) @ first + square.second(slope)
        return result

    def _parts(self, values):
        """For each displacement: where its values are, the values, and the A that belong to it."""
        values = self._checked(values)
        k = len(values) // len(self._terms)
        for i, rows in enumerate(self._terms):
            where = slice(i * k, (i + 1) * k)
            yield where, values[where], rows
