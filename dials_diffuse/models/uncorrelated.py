"""Every atom moves by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.prepared import Fixed, Prepared
from dials_diffuse.models.single_atoms import ATOM_LENGTH, displaced, single_atoms, squares
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.transform import s_squared


@dataclass(frozen=True)
class Uncorrelated(DiffuseModel):
    """I = sum over atoms of |f|² (1 - exp(-qᵀUq)), with the displacements of the coordinate file.

    Attributes
    ----------
    table : form factors, one of ``structure.factors.TABLES``

    Source: docs/theory.md, uncorrelated
    """

    name = "uncorrelated"
    about = "atoms that move independently"
    on_points = True

    table: str = "wk1995"

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        s2 = s_squared(grid)
        return laue_average(squares(structure, s2, self.table) - displaced(structure, grid, s2, self.table), grid)

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        everything, own = single_atoms(structure, np.asarray(s, dtype=float).reshape(-1, 3), self.table)
        return everything - own

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        """At the centres in either case: within a voxel the intensity hardly varies."""
        return Fixed(self, structure, grid, index)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        return 48 * grid.n_voxels

    def correlation_length(self, structure: Structure) -> float:
        return ATOM_LENGTH
