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
from dials_diffuse.models.motion import BodyMotion
from dials_diffuse.models.patterson import memory_estimate as patterson_memory
from dials_diffuse.models.patterson import patterson_sum
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.groups import GROUPS, group_labels
from dials_diffuse.structure.tls import TlsGroup
from dials_diffuse.structure.transform import lattice_transform, s_squared, transform_at
from dials_diffuse.structure.transform import memory_estimate as transform_memory

#: what can move as one: the content of the cell, one symmetry copy, or parts of one
BODIES = ("cell", "asu", *(g for g in GROUPS if g not in ("atom", "molecule")), "tls")


@dataclass(frozen=True)
class RigidBody:
    """I = sum over bodies of (1 - exp(-qᵀVq)) |F_body|², F without displacements of the atoms.

    With ``soft`` the atoms keep their own displacements U, of which V is the part that they share:
    I = sum over bodies of (exp(qᵀVq) - 1) |F_body,U|² + sum over atoms of |f|² (1 - exp(-qᵀUq + qᵀVq)).

    Bodies that also rotate (``tls``) have V_ij = M_i C M_jᵀ in the general sum over pairs, M_i the displacement of an
    atom by translation and rotation, C their covariance.

    Attributes
    ----------
    sigma : Å, rms displacement along one direction; or
    V : six numbers 11, 22, 33, 12, 13, 23 in Å², Cartesian frame of the coordinate file
    body : ``asu``: every symmetry copy of the atoms given moves by itself, V is rotated with it; ``cell``: the content
        of the cell moves as one (molecules with their centres in the cell), the map is averaged over the Laue group;
        ``residue``, ``segment``, ``chain``, ``selection``: parts of each symmetry copy; ``tls``: the groups in ``tls``
    selections : for ``selection``, one text for each body
    tls : the groups, each with its atoms; atoms in none stand still, or move by themselves if ``soft``
    soft : atoms have displacements of their own
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If not exactly one of sigma, V and tls is given, or a value is out of range.

    Source: THEORY.md §2
    """

    sigma: float | None = None
    V: tuple | None = None
    body: str = "asu"
    selections: tuple = ()
    tls: tuple[TlsGroup, ...] = ()
    soft: bool = False
    table: str = "wk1995"

    def __post_init__(self):
        if self.body not in BODIES:
            raise DiffuseError(f"rigid_body.body={self.body}: choose from {', '.join(BODIES)}")
        if (self.body == "tls") != bool(self.tls):
            raise DiffuseError("rigid_body: body=tls and TLS groups need each other")
        if self.body != "tls":
            _ = self.tensor
        elif self.sigma is not None or self.V is not None:
            raise DiffuseError("rigid_body.body=tls: leave out rigid_body.sigma and rigid_body.V")

    @cached_property
    def tensor(self) -> np.ndarray:
        """(3, 3) float64, Å², covariance of the displacement of a body."""
        return displacement_tensor("rigid_body", self.sigma, self.V)

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        if self.body == "tls":
            return self._rotating(structure, grid)
        if self.soft:
            warn_of_small_displacements(structure, self.tensor, "rigid_body")
        if self.body == "cell":
            structure = structure.expand()
        copies, molecule = structure.space_group.order_z(), structure.molecule()
        if not self.soft:
            molecule = molecule.without_displacements()
        volume = np.zeros(grid.shape)
        labels = self._labels(structure)
        for number in range(labels.max() + 1):
            amplitude = lattice_transform(molecule.take(labels == number), grid, self.table)
            volume += copies * (amplitude.real**2 + amplitude.imag**2)
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

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points, of bodies that are rigid, smaller than the cell, and do not rotate.

        Parameters
        ----------
        structure : asymmetric unit
        s : (m, 3) float64, 1/Å, Cartesian frame of the coordinate file

        Returns
        -------
        (m,) float64, electrons² per unit cell

        Raises
        ------
        DiffuseError
            For other bodies.
        """
        if self.soft or self.body in ("cell", "tls"):
            raise DiffuseError(f"rigid_body.body={self.body}, soft={self.soft}: computed on grids only")
        s = np.asarray(s, dtype=float).reshape(-1, 3)
        molecule, labels = structure.molecule().without_displacements(), self._labels(structure)
        total = np.zeros(len(s))
        for turn in structure.rotations:
            turned = s @ turn
            f2 = np.zeros(len(s))
            for number in range(labels.max() + 1):
                f2 += np.abs(transform_at(molecule.take(labels == number), turned, self.table)) ** 2
            total -= np.expm1(-((2 * np.pi) ** 2) * np.einsum("ma,ab,mb->m", turned, self.tensor, turned)) * f2
        return total

    def motion(self, structure: Structure) -> BodyMotion:
        """The joint motion of the atoms of one molecule in TLS groups."""
        labels = np.full(structure.n_atoms, -1)
        modes = np.zeros((structure.n_atoms, 3, 6))
        for number, group in enumerate(self.tls):
            chosen = structure.select(group.selection)
            if not chosen.any() or np.any(labels[chosen] >= 0):
                fault = "shares atoms with another one" if chosen.any() else "holds no atoms"
                raise DiffuseError(f"rigid_body: TLS group {group.selection!r} {fault}")
            labels[chosen] = number
            modes[chosen] = group.modes(structure)[chosen]
        covariances = np.stack([group.covariance for group in self.tls])
        return BodyMotion(structure.molecule(), labels, modes, covariances, self.soft)

    def _rotating(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        motion = self.motion(structure)
        if self.soft:
            warn_of_small_displacements(structure, motion.shared, "rigid_body")
        volume = structure.space_group.order_z() * patterson_sum(motion, grid, self.table)
        s2 = s_squared(grid)
        atoms = structure if self.soft else motion.with_shared(structure)
        volume += squares(structure, s2, self.table) - displaced(atoms, grid, s2, self.table)
        return laue_average(volume, grid)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        return (patterson_memory if self.body == "tls" else transform_memory)(grid) + 24 * grid.n_voxels

    def correlation_length(self, structure: Structure) -> float:
        if self.body == "cell":
            return diameter(structure.expand())
        if self.body == "tls":
            return max(diameter(structure.take(structure.select(group.selection))) for group in self.tls)
        labels = self._labels(structure)
        return max(diameter(structure.take(labels == number)) for number in range(labels.max() + 1))

    def _labels(self, structure: Structure) -> np.ndarray:
        groups = "molecule" if self.body in ("cell", "asu") else self.body
        return group_labels(structure, groups, self.selections)
