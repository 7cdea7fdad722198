"""An ensemble of structures: what their structure factors vary."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.checks import choice
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.checks import check_supercell, fitted
from dials_diffuse.models.ensemble.ensemble_phil import PHIL
from dials_diffuse.models.ensemble.prepared_ensemble import PreparedEnsemble
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import Parameter, updated
from dials_diffuse.models.single_atoms import diameter, displaced, single_atoms, squares
from dials_diffuse.models.voxel_means import voxel_points
from dials_diffuse.structure.atoms import load_models
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.trajectory import load_trajectory
from dials_diffuse.structure.transform import check_cells, lattice_transform, s_squared, transform_at
from dials_diffuse.structure.transform import memory_estimate as transform_memory

BODIES = ("asu", "cell")

#: amplitudes of the members and their products, bytes, beyond which they are not averaged over voxels
_MEMORY = 2.5e9

logger = logging.getLogger("dials.diffuse.models")


@dataclass(frozen=True, eq=False)
class Ensemble(DiffuseModel):
    """I = N / (N - 1) (<|F|²> - <F>²) over the N members: unbiased for a few members drawn from many.

    Attributes
    ----------
    members : structures of one crystal form, at least two
    weights : how probable each is; by default all are equal. The factor is then 1 / (1 - sum of squared weights).
    body : ``asu``: every symmetry copy of a member's atoms is drawn by itself; ``cell``: the cell holds symmetric
        copies of one member, as in ``cctbx.diffuse``, and the map is averaged over the Laue group
    supercell : the members are blocks of so many cells along a, b, c, each atom with coordinates of its own, as from a
        simulation; needs members in P 1, and a grid subdivided alike, between whose points a block of that size says
        nothing
    soft : the B factors are displacements besides those that the members show, of each atom by itself; otherwise they
        are left out
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If there are fewer than two members, or the parameters do not fit them.

    Source: docs/theory.md, ensemble; Guinier 1963, X-ray Diffraction, ch. 6
    """

    name = "ensemble"
    about = "an ensemble of structures"
    phil = PHIL

    members: tuple
    weights: tuple | None = None
    body: str = "asu"
    supercell: tuple = (1, 1, 1)
    soft: bool = False
    table: str = "wk1995"

    def __post_init__(self):
        n = len(self.members)
        if n < 2:
            raise DiffuseError(f"ensemble: {n} member; give a file with at least two models")
        choice("ensemble.body", self.body, BODIES)
        check_supercell("ensemble.supercell", self.supercell)
        if self.blocks and self.members[0].space_group.order_z() > 1:
            raise DiffuseError(
                f"ensemble.supercell={self.supercell}: the members have symmetry; give the whole block, in P 1"
            )
        if self.weights is not None:
            if len(self.weights) != n:
                raise DiffuseError(f"ensemble.weights: {len(self.weights)} numbers for {n} members")
            if min(self.weights) < 0 or sum(w > 0 for w in self.weights) < 2:
                raise DiffuseError(f"ensemble.weights={self.weights}: none may be negative, and two must be positive")
        if len({m.hall_symbol for m in self.members}) > 1:
            raise DiffuseError("ensemble: the members have different space groups")

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> Ensemble:
        path = coordinates if scope.file is None else scope.file
        if path is None:
            raise CommandLineError("model=ensemble: give ensemble.file, a file with several models")
        if scope.trajectory is None:
            members = load_models(path, selection)
        else:
            members = load_trajectory(scope.trajectory, path, scope.stride, selection)
        return cls(**cls.values_of(scope), members=members)

    def structure(self, coordinates, selection: str | None = None) -> Structure:
        """The crystal form of the members, whatever the coordinate file holds."""
        return self.select(selection).crystal_form

    def change_basis(self, cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> Ensemble:
        if self.blocks:
            raise DiffuseError(
                f"ensemble.supercell={self.supercell}: blocks are not brought into the setting of the map; reindex the "
                "data (dials.reindex) into that of the members"
            )
        return replace(self, members=tuple(member.change_basis(operator) for member in self.members))

    def record(self) -> dict:
        return super().record() | {"members": len(self.members)}

    @property
    def blocks(self) -> bool:
        """Are the members blocks of several cells?"""
        return math.prod(self.supercell) > 1

    @property
    def if_memory_is_short(self) -> str:
        return ", or a smaller supercell"

    @property
    def on_points(self) -> bool:
        return not self.blocks

    @property
    def has_means(self) -> bool:
        """Blocks of cells have no intensity between the points of their grid."""
        return not self.blocks

    @property
    def probabilities(self) -> np.ndarray:
        """(N,) float64, the weights, with the sum 1."""
        weights = np.ones(len(self.members)) if self.weights is None else np.array(self.weights, dtype=float)
        return weights / weights.sum()

    @property
    def crystal_form(self) -> Structure:
        """The first member, with the unit cell of the crystal also where it is a block of several."""
        return self._divided(self.members[0])

    def select(self, selection: str | None) -> Ensemble:
        if selection is None:
            return self
        return replace(self, members=tuple(m.take(m.select(selection)) for m in self.members))

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        """Diffuse intensity at the voxel centres of a grid, see :meth:`DiffuseModel.intensity`.

        structure : of the crystal form; the atoms are those of the members
        """
        members, grid = self.on_grid(grid)
        p = self.probabilities
        mean, square = np.zeros(grid.shape, dtype=complex), np.zeros(grid.shape)
        for difference, weight in zip(self.differences(members, grid), p[1:]):
            square += weight * (difference.real**2 + difference.imag**2)
            difference *= weight
            mean += difference
        square -= mean.real**2 + mean.imag**2
        square *= self.copies / (1 - np.sum(p**2))
        for own, weight in zip(self.own_motions(members, grid), p):
            square += weight * own
        return laue_average(square, grid)

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points; not of blocks, which say nothing between the points of their grid.

        structure : of the crystal form; the atoms are those of the members
        """
        if self.blocks:
            raise DiffuseError(f"ensemble.supercell={self.supercell}: computed on grids only")
        s = np.asarray(s, dtype=float).reshape(-1, 3)
        p = self.probabilities
        total = np.zeros(len(s))
        bodies = [self._body(m, self.members[0]) for m in self.members]
        turns = self.members[0].rotations
        for turn in turns:
            f = np.array([transform_at(body, s @ turn, self.table) for body in bodies])
            f -= f[0].copy()
            mean = p @ f
            total += p @ (f.real**2 + f.imag**2) - (mean.real**2 + mean.imag**2)
        total *= self.copies / (len(turns) * (1 - np.sum(p**2)))
        if self.soft:
            for member, weight in zip(self.members, p):
                everything, own = single_atoms(member, s, self.table)
                total += weight * (everything - own)
        return total

    def parameters(self, structure: Structure) -> tuple:
        """The probabilities of all members but the first, which has the rest."""
        n = len(self.members)
        return tuple(
            Parameter(f"weight_{k}", float(p), "", 0.0, 1.0, 1 / n)
            for k, p in enumerate(self.probabilities[1:], start=2)
        )

    def with_values(self, structure: Structure, values: Mapping) -> Ensemble:
        rest = list(updated("ensemble", self.parameters(structure), values).values())
        return replace(self, weights=(1 - sum(rest), *rest))

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        """Means are those of the products of amplitudes, if there is memory for them."""
        if not means:
            return PreparedEnsemble(self, structure, grid, index)
        if not self.has_means or PreparedEnsemble.memory(self, len(index), means=True) > _MEMORY:
            logger.info("ensemble: taken at the centres of voxels, not averaged over them")
            return PreparedEnsemble(self, structure, grid, index)
        fine, points, weights = voxel_points(structure, grid, index)
        return PreparedEnsemble(self, structure, fine, points, weights)

    def on_grid(self, grid: MapGrid) -> tuple:
        """The members in the cell of a grid, and the grid with their symmetry."""
        if self.blocks and tuple(grid.subdivide) != tuple(self.supercell):
            raise DiffuseError(
                f"grid.subdivide={','.join(map(str, grid.subdivide))}: blocks of "
                f"{','.join(map(str, self.supercell))} cells need the same subdivision"
            )
        members = [self._in_cell(m, grid) for m in self.members]
        _, grid = fitted(members[0], grid)
        return members, grid

    @property
    def copies(self) -> float:
        """What moves by itself, for each unit cell."""
        return (self.members[0].space_group.order_z() if self.body == "asu" else 1) / math.prod(self.supercell)

    def differences(self, members: list, grid: MapGrid) -> Iterator[np.ndarray]:
        """complex128 of ``grid.shape`` for all members but the first: F less that of the first.

        So no digits are lost if all are alike.
        """
        reference = self._amplitude(members[0], grid, members[0])
        for member in members[1:]:
            difference = self._amplitude(member, grid, members[0])
            difference -= reference
            yield difference

    def own_motions(self, members: list, grid: MapGrid) -> Iterator[np.ndarray]:
        """float64 of ``grid.shape`` for each member if ``soft``: what its atoms add by themselves."""
        if self.soft:
            s2 = s_squared(grid)
            for member in members:
                own = squares(member, s2, self.table) - displaced(member, grid, s2, self.table)
                yield own / math.prod(self.supercell)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        return transform_memory(grid) + 56 * grid.n_voxels

    def correlation_length(self, structure: Structure) -> float:
        return max(diameter(m.expand() if self.body == "cell" else m) for m in self.members)

    def _in_cell(self, member: Structure, grid: MapGrid) -> Structure:
        """The member with coordinates in units of the grid's cell, of which it may cover several."""
        member = self._divided(member)
        check_cells(member, grid)
        return member.in_cell(grid.unit_cell)

    def _divided(self, member: Structure) -> Structure:
        n = np.array(self.supercell)
        lengths = tuple(float(x) for x in np.array(member.unit_cell[:3]) / n)
        return replace(member, unit_cell=(*lengths, *member.unit_cell[3:]), site_frac=member.site_frac * n)

    def _amplitude(self, member: Structure, grid: MapGrid, reference: Structure) -> np.ndarray:
        return lattice_transform(self._body(member, reference), grid, self.table)

    def _body(self, member: Structure, reference: Structure) -> Structure:
        """What is drawn from the ensemble, in P 1."""
        body = member.molecule() if self.body == "asu" else _beside(member.expand(), reference.expand())
        return body if self.soft else body.without_displacements()


def _beside(content: Structure, reference: Structure) -> Structure:
    """The content of the cell with each copy moved by a lattice vector to where the reference has it.

    Between Bragg positions it matters in which cell a copy lies, and that must not change from member to member.
    """
    site = content.site_frac.copy()
    for number in np.unique(content.copy):
        mine = content.copy == number
        there = reference.site_frac[reference.copy == number].mean(axis=0)
        site[mine] += np.rint(there - site[mine].mean(axis=0))
    return replace(content, site_frac=site)
