"""Bodies that move as a whole and independently of each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.base import DiffuseModel, TensorWord, Words, selections_of
from dials_diffuse.models.checks import check_exponent, displacement_tensor, fitted, warn_of_small_displacements
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.motion import BodyMotion
from dials_diffuse.models.covariance.patterson import memory_estimate as patterson_memory
from dials_diffuse.models.covariance.patterson import patterson_sum
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.prepared import Fixed, Prepared
from dials_diffuse.models.refinable import (
    SOME_SIGMA,
    TensorComponents,
    displacement,
    tensor_components,
    updated,
)
from dials_diffuse.models.rigid_body.prepared_rigid import PreparedRigidBody
from dials_diffuse.models.rigid_body.rigid_body_phil import PHIL, displacements_of, tls_groups_of
from dials_diffuse.models.single_atoms import (
    diameter,
    displaced,
    single_atoms,
    special_remainder,
    special_remainder_at,
    squares,
)
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.envelope import FlatSolvent, displaced_solvent
from dials_diffuse.structure.factors import FLAT
from dials_diffuse.structure.groups import GROUPS, group_labels
from dials_diffuse.structure.tls import TlsGroup
from dials_diffuse.structure.transform import lattice_transform, s_squared, transform_at
from dials_diffuse.structure.transform import memory_estimate as transform_memory

#: what can move as one: the content of the cell, one symmetry copy, or parts of one
BODIES = ("cell", "asu", *(g for g in GROUPS if g not in ("atom", "molecule")), "tls")


@dataclass(frozen=True)
class RigidBody(DiffuseModel):
    """I = sum over bodies of (1 - exp(-qᵀVq)) |F_body|², F without displacements of the atoms.

    Of an atom on a special position each body that it belongs to has a share in F; what |F|² lacks of the atom's own
    term is added.

    With ``soft`` the atoms keep their own displacements U, of which V is the part that they share:
    I = sum over bodies of (exp(qᵀVq) - 1) |F_body,U|² + sum over atoms of |f|² (1 - exp(-qᵀUq + qᵀVq)).

    Bodies that also rotate (``tls``) have V_ij = M_i C M_jᵀ in the general sum over pairs, M_i the displacement of an
    atom by translation and rotation, C their covariance.

    Attributes
    ----------
    sigma : Å, rms displacement along one direction, or a tuple of one for each body; or
    V : six numbers 11, 22, 33, 12, 13, 23 in Å², Cartesian frame of the coordinate file, or such a tuple for each body
    body : ``asu``: every symmetry copy of the atoms given moves by itself, V is rotated with it; ``cell``: the content
        of the cell moves as one (molecules with their centres in the cell), the map is averaged over the Laue group;
        ``residue``, ``segment``, ``chain``, ``selection``: parts of each symmetry copy; ``tls``: the groups in ``tls``
    selections : for ``selection``, one text for each body
    tls : the groups, each with its atoms; atoms in none stand still, or move by themselves if ``soft``
    soft : atoms have displacements of their own
    solvent : is what bodies displace of the solvent part of their contrast? Not of those that rotate
    k_sol, b_sol : of that solvent, electrons/Å³ and Å², see :class:`FlatSolvent`
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If not exactly one of sigma, V and tls is given, or a value is out of range.

    Source: docs/theory.md, rigid_body and Bodies that rotate
    """

    name = "rigid_body"
    about = "rigid bodies"
    phil = PHIL
    words = Words(tensors={"V": TensorWord("sigma", power=2, default=SOME_SIGMA)}, each=True)
    on_points = True

    sigma: float | tuple | None = None
    V: tuple | None = None
    body: str = "asu"
    selections: tuple = ()
    tls: tuple[TlsGroup, ...] = ()
    soft: bool = False
    solvent: bool = False
    k_sol: float = 0.35
    b_sol: float = 46.0
    table: str = "wk1995"

    def __post_init__(self):
        choice("rigid_body.body", self.body, BODIES)
        if (self.body == "tls") != bool(self.tls):
            raise DiffuseError("rigid_body: body=tls and TLS groups need each other")
        FlatSolvent(self.k_sol, self.b_sol)
        if self.solvent and self.body == "tls":
            raise DiffuseError("rigid_body.solvent=True: not of bodies that rotate, body=tls; leave it out")
        if self.body != "tls":
            _ = self.displacements
        elif self.sigma is not None or self.V is not None or len(self.selections):
            raise DiffuseError("rigid_body.body=tls: leave out rigid_body.sigma, rigid_body.V and rigid_body.selection")

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> RigidBody:
        groups = tls_groups_of(scope, coordinates, selection)
        values = cls.values_of(scope) | {"selections": selections_of(scope), "tls": groups}
        values.update(displacements_of(scope))
        return cls(**(values if scope.body == "tls" else cls.with_defaults(values)))

    def change_basis(self, cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> RigidBody:
        turned = super().change_basis(cell, operator)
        return replace(turned, tls=tuple(group.change_basis(cell, operator) for group in self.tls))

    def record(self) -> dict:
        return super().record() | {"tls": [asdict(group) for group in self.tls]}

    def shared_displacements(self, structure: Structure) -> np.ndarray:
        if self.body == "tls":
            return self.motion(structure).shared
        if not self.separate:
            return np.broadcast_to(self.displacements[0], (structure.n_atoms, 3, 3))
        return self.displacements[self._labels(structure)]

    @property
    def separate(self) -> bool:
        """Has each body a displacement of its own?"""
        return isinstance(self.sigma, tuple) or (self.V is not None and np.ndim(self.V) > 1)

    @cached_property
    def displacements(self) -> np.ndarray:
        """(b, 3, 3) float64, Å², covariance of the displacement of each body; b = 1 if it is the same for all."""
        if not self.separate:
            return displacement_tensor("rigid_body", self.sigma, self.V)[None]
        if self.sigma is not None and self.V is not None:
            raise DiffuseError("rigid_body: give sigma or V for each body, not both")
        if self.V is None:
            return np.stack([displacement_tensor("rigid_body", s, None) for s in self.sigma])
        return np.stack([displacement_tensor("rigid_body", None, six) for six in self.V])

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        if self.body == "tls":
            return self._rotating(structure, grid)
        if self.soft:
            check_exponent("rigid_body", self.displacements, 1 / grid.d_min)
            for tensor in self.displacements:
                warn_of_small_displacements(structure, tensor, "rigid_body")
        total = np.zeros(grid.shape)
        for tensor, strength, own, constant in self.strengths(structure, grid):
            exponent = (2 * np.pi) ** 2 * s_squared(grid, tensor)
            if self.soft:
                total += np.exp(exponent) * (strength - own) - strength + constant
            else:
                total -= np.expm1(-exponent) * strength
        return laue_average(total, grid)

    def strengths(self, structure: Structure, grid: MapGrid):
        """What the intensity is made of, for each of the different displacements.

        Yields
        ------
        tensor : (3, 3) float64, Å²
        strength : float64 of ``grid.shape``, sum of |F|² over the bodies, not averaged over the Laue group
        own, constant : the same for sums of f² exp(-qᵀUq) and f² over their atoms if ``soft``, else 0
        """
        content = structure.expand() if self.body == "cell" else structure
        labels = self._labels(content)
        copies, molecule = content.space_group.order_z(), content.molecule()
        if not self.soft:
            molecule = molecule.without_displacements()
        displaced_points = self._displaced(molecule, labels)
        s2 = s_squared(grid)
        everything = np.arange(labels.max() + 1)
        for tensor, members in zip(self._of_bodies(labels), everything[:, None] if self.separate else [everything]):
            strength = np.zeros(grid.shape)
            for number in members:
                amplitude = lattice_transform(molecule.take(labels == number), grid, self.table)
                if displaced_points:
                    amplitude -= lattice_transform(displaced_points[number], grid, FLAT)
                strength += copies * (amplitude.real**2 + amplitude.imag**2)
                del amplitude
            moving = content.take(np.isin(labels, members))
            moving = moving if self.soft else moving.without_displacements()
            strength += special_remainder(moving, grid, s2, self.table)
            own = constant = 0.0
            if self.soft:
                own, constant = displaced(moving, grid, s2, self.table), squares(moving, s2, self.table)
            yield tensor, strength, own, constant

    def _of_bodies(self, labels: np.ndarray) -> np.ndarray:
        number = labels.max() + 1
        if self.separate and len(self.displacements) != number:
            raise DiffuseError(
                f"rigid_body: displacements of {len(self.displacements)} bodies are given, there are {number}"
            )
        return self.displacements

    def for_each_body(self, structure: Structure) -> RigidBody:
        """The model with a sigma or V of its own for each body, all equal so far; TLS groups have theirs."""
        if self.separate or self.body == "tls":
            return self
        number = self._labels(structure).max() + 1
        if self.sigma is not None:
            return replace(self, sigma=(float(self.sigma),) * number)
        return replace(self, V=(tuple(self.V),) * number)

    def parameters(self, structure: Structure) -> tuple:
        if self.body == "tls":
            return ()
        components, share = self.components(structure), 0.5 if self.soft else 1.0
        if not self.separate:
            return tuple(displacement(structure, components, self.sigma, self.V, share))
        values = self.sigma if components is None else self.V
        parts = (displacement(structure, components, v, v, share, f"_{n}") for n, v in enumerate(values, start=1))
        return tuple(itertools.chain(*parts))

    def components(self, structure: Structure) -> TensorComponents | None:
        """Free elements of V, None if there is sigma: only of the whole cell it must have the crystal's symmetry."""
        return None if self.sigma is not None else tensor_components(structure, symmetric=self.body == "cell")

    def with_values(self, structure: Structure, values: Mapping) -> RigidBody:
        merged = list(updated("rigid_body", self.parameters(structure), values).values())
        if not merged:
            return self
        components = self.components(structure)
        if components is None:
            return replace(self, sigma=tuple(merged) if self.separate else merged[0])
        rows = np.reshape(merged, (-1, len(components.names)))
        six = tuple(components.six(row) for row in rows)
        return replace(self, V=six if self.separate else six[0])

    def prepare_centres(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        if self.body == "tls":
            return Fixed(self, structure, grid, index)
        return PreparedRigidBody(self, structure, grid, index)

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        if self.body == "tls":
            modes = self.motion(structure).normal_modes
            return Covariance(kernel="free", modes=modes, soft=self.soft, table=self.table).intensity_at(structure, s)
        s = np.asarray(s, dtype=float).reshape(-1, 3)
        content = structure.expand() if self.body == "cell" else structure
        molecule, labels = content.molecule(), self._labels(content)
        if not self.soft:
            molecule = molecule.without_displacements()
        tensors = self._of_bodies(labels)
        if self.soft and len(s):
            check_exponent("rigid_body", tensors, np.linalg.norm(s, axis=1).max())
        points = self._displaced(molecule, labels)
        total = np.zeros(len(s))
        for turn in structure.rotations:
            turned = s @ turn
            for number in range(labels.max() + 1):
                body = molecule.take(labels == number)
                tensor = tensors[number if self.separate else 0]
                x = (2 * np.pi) ** 2 * np.einsum("ma,ab,mb->m", turned, tensor, turned)
                moving = content.take(labels == number)
                moving = moving if self.soft else moving.without_displacements()
                amplitude = transform_at(body, turned, self.table)
                if points:
                    amplitude = amplitude - transform_at(points[number], turned, FLAT)
                f2 = np.abs(amplitude) ** 2
                f2 += special_remainder_at(moving, turned, self.table)
                if self.soft:  # the shares of atoms on special positions make up for their copies
                    whole = replace(body, occupancy=body.occupancy / np.sqrt(moving.share))
                    everything, own = single_atoms(whole, turned, self.table)
                    total += np.expm1(x) * f2 + everything - np.exp(x) * own
                else:
                    total -= np.expm1(-x) * f2
        return total * content.space_group.order_z() / len(structure.rotations)

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
        return (patterson_memory if self.body == "tls" else transform_memory)(grid) + 48 * grid.n_voxels

    def correlation_length(self, structure: Structure) -> float:
        if self.body == "cell":
            return diameter(structure.expand())
        if self.body == "tls":
            return max(diameter(structure.take(structure.select(group.selection))) for group in self.tls)
        labels = self._labels(structure)
        return max(diameter(structure.take(labels == number)) for number in range(labels.max() + 1))

    def imaginary_part(self, table) -> RigidBody:
        return replace(self, table=table, solvent=False)

    def _displaced(self, molecule: Structure, labels: np.ndarray) -> list:
        """What each body displaces; empty if it moves in vacuum."""
        return displaced_solvent(molecule, labels, FlatSolvent(self.k_sol, self.b_sol)) if self.solvent else []

    def _labels(self, structure: Structure) -> np.ndarray:
        groups = "molecule" if self.body in ("cell", "asu") else self.body
        return group_labels(structure, groups, self.selections)
