"""An ensemble of structures: what their structure factors vary."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.common import diameter, displaced, fitted, laue_average, squares
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.transform import check_cells, lattice_transform, s_squared
from dials_diffuse.structure.transform import memory_estimate as transform_memory

BODIES = ("asu", "cell")

logger = logging.getLogger("dials.diffuse.models")


@dataclass(frozen=True, eq=False)
class Ensemble:
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

    Source: THEORY.md §7; Guinier 1963, X-ray Diffraction, ch. 6
    """

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
        if self.body not in BODIES:
            raise DiffuseError(f"ensemble.body={self.body}: choose from {', '.join(BODIES)}")
        if len(self.supercell) != 3 or any(k < 1 or k != int(k) for k in self.supercell):
            raise DiffuseError(f"ensemble.supercell={self.supercell}: three positive whole numbers are needed")
        if math.prod(self.supercell) > 1 and self.members[0].space_group.order_z() > 1:
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

    @property
    def probabilities(self) -> np.ndarray:
        """(N,) float64, the weights, with the sum 1."""
        weights = np.ones(len(self.members)) if self.weights is None else np.array(self.weights, dtype=float)
        return weights / weights.sum()

    @property
    def crystal_form(self) -> Structure:
        """The first member, with the unit cell of the crystal also where it is a block of several."""
        return self._divided(self.members[0])

    def select(self, selection: str) -> Ensemble:
        """The same of some of the atoms; selection: in cctbx's syntax."""
        return replace(self, members=tuple(m.take(m.select(selection)) for m in self.members))

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        """As for every model; the structure stands for the crystal form only."""
        if math.prod(self.supercell) > 1 and tuple(grid.subdivide) != tuple(self.supercell):
            raise DiffuseError(
                f"grid.subdivide={','.join(map(str, grid.subdivide))}: blocks of "
                f"{','.join(map(str, self.supercell))} cells need the same subdivision"
            )
        members = [self._in_cell(m, grid) for m in self.members]
        _, grid = fitted(members[0], grid)
        copies = members[0].space_group.order_z() if self.body == "asu" else 1
        p = self.probabilities
        reference = self._amplitude(members[0], grid, members[0])
        mean, square = np.zeros_like(reference), np.zeros(grid.shape)
        for member, weight in zip(members[1:], p[1:]):
            difference = self._amplitude(member, grid, members[0])  # from the first: no loss of digits if all are alike
            difference -= reference
            square += weight * (difference.real**2 + difference.imag**2)
            difference *= weight
            mean += difference
        square -= mean.real**2 + mean.imag**2
        square *= copies / (1 - np.sum(p**2)) / math.prod(self.supercell)
        if self.soft:
            s2 = s_squared(grid)
            for member, weight in zip(members, p / math.prod(self.supercell)):
                square += weight * (squares(member, s2, self.table) - displaced(member, grid, s2, self.table))
        return laue_average(square, grid)

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
        if self.body == "asu":
            body = member.molecule()
        else:
            body = _beside(member.expand(), reference.expand())
        return lattice_transform(body if self.soft else body.without_displacements(), grid, self.table)


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
