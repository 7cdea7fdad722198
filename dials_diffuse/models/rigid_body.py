"""Bodies that move as a whole and independently of each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.common import (
    diameter,
    displaced,
    displacement_tensor,
    fitted,
    laue_average,
    squares,
    warn_of_small_displacements,
)
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.transform import lattice_transform, s_squared
from dials_diffuse.structure.transform import memory_estimate as transform_memory

BODIES = ("cell", "asu")


@dataclass(frozen=True)
class RigidBody:
    """I = sum over bodies of (1 - exp(-qᵀVq)) |F_body|², F without displacements of the atoms.

    With ``soft`` the atoms keep their own displacements U, of which V is the part that they share:
    I = sum over bodies of (exp(qᵀVq) - 1) |F_body,U|² + sum over atoms of |f|² (1 - exp(-qᵀUq + qᵀVq)).

    Attributes
    ----------
    sigma : Å, rms displacement along one direction; or
    V : six numbers 11, 22, 33, 12, 13, 23 in Å², Cartesian frame of the coordinate file
    body : ``asu``: every symmetry copy of the atoms given moves by itself, V is rotated with it; ``cell``: the content
        of the cell moves as one (molecules with their centres in the cell), the map is averaged over the Laue group
    soft : atoms have displacements of their own
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If not exactly one of sigma and V is given, or a value is out of range.

    Source: THEORY.md §2
    """

    sigma: float | None = None
    V: tuple | None = None
    body: str = "asu"
    soft: bool = False
    table: str = "wk1995"

    def __post_init__(self):
        if self.body not in BODIES:
            raise DiffuseError(f"rigid_body.body={self.body}: choose from {', '.join(BODIES)}")
        _ = self.tensor

    @cached_property
    def tensor(self) -> np.ndarray:
        """(3, 3) float64, Å², covariance of the displacement of a body."""
        return displacement_tensor("rigid_body", self.sigma, self.V)

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        if self.soft:
            warn_of_small_displacements(structure, self.tensor, "rigid_body")
        if self.body == "cell":
            bodies, structure = 1, structure.expand()
            body = structure
        else:
            bodies, body = structure.space_group.order_z(), structure.molecule()
        if not self.soft:
            body = body.without_displacements()
        amplitude = lattice_transform(body, grid, self.table)
        volume = bodies * (amplitude.real**2 + amplitude.imag**2)
        del amplitude
        exponent = (2 * np.pi) ** 2 * s_squared(grid, self.tensor)
        if not self.soft:
            volume *= -np.expm1(-exponent)
            return laue_average(volume, grid)
        volume *= np.expm1(exponent)
        s2 = s_squared(grid)
        volume += squares(structure, s2, self.table)
        volume -= np.exp(exponent) * displaced(structure, grid, s2, self.table)
        return laue_average(volume, grid)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        return transform_memory(grid) + 24 * grid.n_voxels

    def correlation_length(self, structure: Structure) -> float:
        return diameter(structure.expand() if self.body == "cell" else structure)
