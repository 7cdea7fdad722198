"""Rotations of the lattice, of which those of the crystal are a part, and the Laue groups that are possible with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx import crystal, sgtbx
from cctbx.sgtbx import lattice_symmetry

from dials_diffuse.maps.grid import MapGrid

#: degrees, by which a lattice may miss a higher symmetry (le Page's delta)
MAX_DELTA = 1.0


def lattice_rotations(grid: MapGrid, max_delta: float = MAX_DELTA) -> np.ndarray:
    """Proper rotations that bring the lattice to itself, the identity first.

    Parameters
    ----------
    max_delta : degrees, by which the lattice may miss the symmetry

    Returns
    -------
    (m, 3, 3) float64, to be used as ``index @ R`` on Miller indices; in a centred cell they may be fractions
    """
    symmetry = crystal.symmetry(unit_cell=grid.unit_cell, space_group=grid.space_group)
    to_minimum = symmetry.change_of_basis_op_to_minimum_cell()
    minimum = symmetry.change_basis(to_minimum).unit_cell()
    c = _rotation(to_minimum.c())
    rotations = [np.linalg.inv(c) @ _rotation(op) @ c for op in lattice_symmetry.group(minimum, max_delta=max_delta)]
    rotations.sort(key=lambda r: np.abs(r - np.eye(3)).max() > 1e-6)
    return np.array(rotations)


def _rotation(op: sgtbx.rt_mx) -> np.ndarray:
    return np.array(op.r().as_double()).reshape(3, 3)


@dataclass(frozen=True)
class LatticeGroup:
    """Rotations of the lattice that bring voxels to voxels.

    Attributes
    ----------
    grid : MapGrid
    rotations : (m, 3, 3) int64, proper, on Miller indices as ``index @ R``, the identity first
    on_voxels : (m, 3, 3) int64, the same for the indices of voxels
    product : (m, m) int64, number of ``rotations[i] @ rotations[j]``
    untested : tuple of (3, 3) float64, rotations of the lattice that do not bring voxels to voxels
    """

    grid: MapGrid
    rotations: np.ndarray
    on_voxels: np.ndarray
    product: np.ndarray
    untested: tuple

    @property
    def inverse(self) -> np.ndarray:
        """(m,) number of the inverse of each rotation."""
        return np.argmin(self.product, axis=1)

    @property
    def declared(self) -> frozenset:
        """Numbers of the rotations in the Laue group of the grid."""
        return self.members(self.grid.space_group)

    def members(self, group: sgtbx.space_group) -> frozenset:
        """Numbers of the rotations in the Laue group of a space group."""
        return frozenset(self.number_of(op) for op in group) - {-1}

    def subgroups(self) -> list:
        """All groups of these rotations, as frozensets of their numbers, small ones first.

        Two rotations generate any group of them.
        """
        m = len(self.rotations)
        groups = {self._closed({0, i, j}) for i in range(m) for j in range(i, m)}
        return sorted(groups, key=lambda g: (len(g), sorted(g)))

    def _closed(self, members: set) -> frozenset:
        while True:
            numbers = sorted(members)
            larger = members | set(self.product[np.ix_(numbers, numbers)].ravel().tolist())
            if len(larger) == len(members):
                return frozenset(members)
            members = larger

    def operator(self, number: int) -> str:
        """The rotation as what becomes of h, k, l."""
        return in_words(self.rotations[number])

    def laue_symbol(self, members: frozenset) -> str:
        """Hermann-Mauguin symbol of a Laue group, in the setting of the grid."""
        group = self._symmorphic(members)
        group.expand_inv(sgtbx.tr_vec((0, 0, 0)))
        return _symbol(group)

    def space_group_symbol(self, members: frozenset) -> str:
        """Symbol of a space group with this Laue group, whatever the origin.

        That of the grid's own group or of its subgroup, where it has these rotations; else one without screw axes.
        """
        own = self.grid.space_group
        if not members <= self.declared:
            return _symbol(self._symmorphic(members)) if own.is_chiral() else self.laue_symbol(members)
        group = sgtbx.space_group()
        for op in own:
            if self.number_of(op) in members:
                group.expand_smx(op)
        return _symbol(group)

    def number_of(self, op: sgtbx.rt_mx) -> int:
        """Number of the rotation in an operator, -1 where it is none of these."""
        same = np.all(self.rotations == proper_part(op), axis=(1, 2))
        return int(np.argmax(same)) if same.any() else -1

    def _symmorphic(self, members: frozenset) -> sgtbx.space_group:
        group = sgtbx.space_group()
        for op in self.grid.space_group:
            if np.array_equal(_rotation(op), np.eye(3)):
                group.expand_smx(op)
        for i in members:
            group.expand_smx(sgtbx.rt_mx(sgtbx.rot_mx(tuple(self.rotations[i].ravel().tolist()))))
        return group


def _symbol(group: sgtbx.space_group) -> str:
    """Symbol of a group with its origin moved to where the symbol is simplest."""
    to_reference = group.type().cb_op()
    turn = sgtbx.change_of_basis_op(sgtbx.rt_mx(to_reference.c().r()))
    return group.change_basis(to_reference).change_basis(turn.inverse()).type().lookup_symbol()


def proper_part(op: sgtbx.rt_mx) -> np.ndarray:
    """(3, 3) int64, the rotation of an operator, without its inversion."""
    r = np.rint(_rotation(op)).astype(np.int64)
    return r if np.linalg.det(r) > 0 else -r


def in_words(rotation: np.ndarray) -> str:
    """``k,h,-l`` for the matrix that makes it of h, k, l as a row."""
    values = (round(float(x) * 12) for x in np.transpose(rotation).ravel())
    matrix = sgtbx.rot_mx(tuple(values), 12)
    return sgtbx.rt_mx(matrix).as_xyz(False, False, "hkl", ",")


def lattice_group(grid: MapGrid, max_delta: float = MAX_DELTA) -> LatticeGroup:
    """The rotations of a grid's lattice, and of its space group, which fits the lattice exactly."""
    subdivide = np.array(grid.subdivide)
    found: dict = {}
    untested = []
    own = [proper_part(op).astype(float) for op in grid.space_group]
    for rotation in [*lattice_rotations(grid, max_delta), *own]:
        exact = rotation * subdivide / subdivide[:, None]
        whole, moved = np.rint(rotation), np.rint(exact)
        if max(np.abs(rotation - whole).max(), np.abs(exact - moved).max()) > 1e-6:
            untested.append(rotation)
        else:
            found.setdefault(whole.astype(np.int64).tobytes(), (whole.astype(np.int64), moved.astype(np.int64)))
    rotations, on_voxels = (np.array(x) for x in zip(*found.values()))
    number = {r.tobytes(): i for i, r in enumerate(rotations)}
    product = np.array([[number[(a @ b).tobytes()] for b in rotations] for a in rotations])
    return LatticeGroup(grid, rotations, on_voxels, product, tuple(untested))
