"""Lattice dynamics at fixed voxels as a function of the size of the displacements."""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.structure.crystal import Structure


class PreparedLatticeDynamics(Prepared):
    """I = sigma² A + B.

    Parameters
    ----------
    model : LatticeDynamics
    index : (n, 3) int64, inside 1/d_min of the grid
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray):
        self.origin, self.structure = model, structure
        self.parameters = model.parameters(structure)
        structure, grid = fitted(structure, grid)
        self._slope, self._constant = model.parts_at_voxels(structure, grid, index)

    def jacobian(self, values) -> tuple:
        sigma = float(self._checked(values)[0])
        return sigma**2 * self._slope + self._constant, 2 * sigma * self._slope[:, None]

    def second(self, values, weights) -> np.ndarray:
        self._checked(values)
        return np.full((1, 1), 2 * float(np.dot(weights, self._slope)))
