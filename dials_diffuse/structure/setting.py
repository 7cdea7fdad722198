"""A structure and a map of one crystal whose cells are chosen otherwise: the operator between them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import product

import numpy as np
from cctbx import crystal, sgtbx, uctbx

from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.crystal import Structure

logger = logging.getLogger("dials.diffuse.structure")

#: cells agree within these, relative and in degrees
LENGTHS, ANGLES = 0.01, 1.0
#: reduced cells may differ by more where cells agree: their angles depend on those of the cell, and on its lengths
_REDUCED_LENGTHS, _REDUCED_ANGLES = 0.03, 3.0
#: the axes as they are give way to others that fit so much better, in the mean difference of basis vectors
_MISFIT, _BETTER = 0.005, 5.0
#: how well space groups agree: equal, but for the origin; of one Laue group; one Laue group contains the other
_EQUAL, _LAUE, _SUBGROUP = range(3)


@dataclass(frozen=True, eq=False)
class SettingChange:
    """The operator from the setting of a structure to that of a map.

    Attributes
    ----------
    operator : change of basis
    others : such operators as text that the cells and the space groups allow too, and that give another intensity
    """

    operator: sgtbx.change_of_basis_op
    others: tuple = ()

    @property
    def text(self) -> str:
        """The new axes in terms of the old ones."""
        return self.operator.as_abc()

    @property
    def is_identity(self) -> bool:
        return self.operator.is_identity_op()


@dataclass(frozen=True, eq=False)
class _Candidate:
    operator: sgtbx.change_of_basis_op
    rank: int
    misfit: float
    laue: frozenset

    @property
    def is_identity(self) -> bool:
        return self.operator.is_identity_op()

    @property
    def order(self) -> tuple:
        """Candidates are sorted by this: the fit, and of equal ones that with the fewest, most positive numbers."""
        r = np.array(self.operator.c_inv().r().as_double())
        return round(self.misfit, 5), not self.is_identity, np.abs(r).sum(), -r.sum(), self.operator.as_abc()


def in_setting_of(structure: Structure, unit_cell, space_group: sgtbx.space_group) -> tuple:
    """The structure in the setting of a map.

    Parameters
    ----------
    unit_cell : six floats, Å and degrees, of the map
    space_group : of the map

    Returns
    -------
    structure : Structure, the given one if its setting is that of the map, or if it is of another crystal
    operator : str, the new axes in terms of the old ones such as ``-a-c,b,a``; empty if nothing was changed
    """
    change = setting_change(structure, unit_cell, space_group)
    if change is None or change.is_identity:
        return structure, ""
    tell_change(change)
    return structure.change_basis(change.operator), change.text


def tell_change(change: SettingChange) -> None:
    """Say that a structure changes its setting, and into what other ones it might as well."""
    logger.warning(
        "The structure is brought into the setting of the map, in the frame of which tensors are given: its new axes "
        "are %s",
        change.text,
    )
    if change.others:
        logger.warning(
            "The cells of structure and map agree in other settings too, as with new axes %s; compare them "
            "(dials.diffuse_fit indexing=auto)",
            " or ".join(change.others),
        )


def setting_change(structure: Structure, unit_cell, space_group: sgtbx.space_group) -> SettingChange | None:
    """The operator that brings a structure into the setting of a map, or None if the cells are of other lattices.

    From the similarity of the reduced cells come all axes that agree with those of the map within 1 % and 1°. Of these
    the space group decides: equal to that of the map, with a shift of the origin if need be, else of the same Laue
    group, else one Laue group contains the other. Of several the cell that fits best is taken, or the axes as they are.
    """
    candidates = _candidates(structure, uctbx.unit_cell(unit_cell), space_group)
    if not candidates:
        return None
    best = min(c.rank for c in candidates)
    candidates = sorted((c for c in candidates if c.rank == best), key=lambda c: c.order)
    chosen = candidates[0]
    unchanged = [c for c in candidates if c.is_identity]
    if unchanged and not (unchanged[0].misfit > _MISFIT and unchanged[0].misfit > _BETTER * chosen.misfit):
        chosen = unchanged[0]
    if chosen.is_identity:
        return SettingChange(chosen.operator)
    return SettingChange(chosen.operator, tuple(c.operator.as_abc() for c in _others(chosen, candidates, space_group)))


def _candidates(structure: Structure, cell: uctbx.unit_cell, space_group: sgtbx.space_group) -> list:
    """Operators after which the cells agree and the space groups do not contradict each other."""
    wanted = _laue(space_group)
    found = {}
    for operator in _similar(structure.crystal_symmetry, cell, space_group):
        moved = structure.cell.change_basis(operator)
        if operator.as_abc() in found or not moved.is_similar_to(cell, LENGTHS, ANGLES):
            continue
        try:
            group = structure.space_group.change_basis(operator)
        except RuntimeError:  # its operators are no integers with these axes
            continue
        laue = _laue(group)
        if laue <= wanted or wanted <= laue:
            misfit = (moved.bases_mean_square_difference(cell) / cell.volume() ** (2 / 3)) ** 0.5
            rank, shift = _rank(group, space_group) if laue == wanted else (_SUBGROUP, sgtbx.change_of_basis_op())
            both = operator if operator.is_identity_op() else shift * operator  # the origin alone means nothing
            found[operator.as_abc()] = _Candidate(both, rank, misfit, laue)
    return list(found.values())


def _similar(symmetry: crystal.symmetry, cell: uctbx.unit_cell, space_group: sgtbx.space_group):
    """Changes of basis that make a cell like another one: by way of the reduced cells of both."""
    yield sgtbx.change_of_basis_op()
    own = symmetry.change_of_basis_op_to_niggli_cell()
    # A map whose cell does not quite have the symmetry of its group is reduced as one that has.
    centring = space_group.conventional_centring_type_symbol()
    lattice = crystal.symmetry(cell, space_group_symbol=f"Hall: {centring} 1")
    theirs = lattice.change_of_basis_op_to_niggli_cell().inverse()
    reduced = symmetry.unit_cell().change_basis(own)
    for matrix in reduced.similarity_transformations(
        cell.change_basis(theirs.inverse()),
        relative_length_tolerance=_REDUCED_LENGTHS,
        absolute_angle_tolerance=_REDUCED_ANGLES,
    ):
        rotation = sgtbx.rt_mx(sgtbx.rot_mx(matrix)).new_denominators(sgtbx.cb_r_den, sgtbx.cb_t_den)
        step = sgtbx.change_of_basis_op(rotation)
        yield theirs * step * own
        yield theirs * step.inverse() * own


def _rank(group: sgtbx.space_group, wanted: sgtbx.space_group) -> tuple:
    """How well two groups of a Laue group agree, and the shift of the origin that makes them equal."""
    if group.type().number() == wanted.type().number():
        for shift in _shifts():
            if group.change_basis(shift) == wanted:
                return _EQUAL, shift
    return _LAUE, sgtbx.change_of_basis_op()


def _shifts():
    """No shift of the origin first, then all by quarters, sixths and eighths of the axes."""
    yield sgtbx.change_of_basis_op()
    for n in (4, 6, 8):
        for shift in product(range(n), repeat=3):
            yield sgtbx.change_of_basis_op(",".join(f"{axis}+{k}/{n}" for axis, k in zip("xyz", shift)))


def _others(chosen: _Candidate, candidates: list, space_group: sgtbx.space_group) -> list:
    """Candidates with another intensity than the chosen one, one for each: no symmetry of structure or map between."""
    distinct = [chosen]
    for candidate in candidates:
        if not any(_are_equivalent(candidate, known, space_group) for known in distinct):
            distinct.append(candidate)
    return distinct[1:]


def _are_equivalent(one: _Candidate, other: _Candidate, space_group: sgtbx.space_group) -> bool:
    between = np.array((one.operator * other.operator.inverse()).c().r().as_double()).reshape(3, 3)
    whole = np.rint(between).astype(np.int64)
    return np.allclose(between, whole) and whole.tobytes() in other.laue | _laue(space_group)


def _laue(group: sgtbx.space_group) -> frozenset:
    return frozenset(operator.tobytes() for operator in laue_operators(group, friedel=True))
