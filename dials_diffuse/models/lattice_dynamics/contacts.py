"""Contacts between rigid bodies in a crystal: which atoms touch, which contacts are the same by symmetry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.models.lattice_dynamics.body_lattice import CrystalBodies, neighbours
from dials_diffuse.structure.tls import rigid_motions

#: two translations, fractional, are the same if they differ by less
_SAME = 1e-4
#: Å, smallest radius of gyration of a patch along any direction across an axis: a contact of few atoms in a row would
#: otherwise not resist turns about the row
_SMALLEST_PATCH = 1.0


@dataclass(frozen=True, eq=False)
class Contact:
    """A contact of which all others of its kind are symmetry mates.

    Attributes
    ----------
    first, second : bodies of the asymmetric unit
    copy : operator of the second body; the first one is that of the coordinate file
    shift : (3,) cells of the second body
    pairs : (n, 2) int64, atoms of the asymmetric unit that touch, of the first and of the second body
    mates : (m, 5) int64, contacts in one cell: copy of the first body, copy of the second, and cells of the latter
    swap : operator that exchanges the two bodies, such as a two-fold axis; None: there is none
    """

    first: int
    second: int
    copy: int
    shift: tuple
    pairs: np.ndarray
    mates: np.ndarray
    swap: int | None

    @property
    def n_pairs(self) -> int:
        return len(self.pairs)


def find_contacts(bodies: CrystalBodies, cutoff: float) -> tuple:
    """All contacts that symmetry does not relate, those of the most pairs of atoms first, of as many the nearer ones.

    cutoff : Å, atoms of different bodies that are this near touch

    Raises
    ------
    DiffuseError
        If there are none.
    """
    group = _Group(bodies)
    touching: dict = {}
    n = bodies.n_atoms
    for shift, i, j, distances in neighbours(bodies, cutoff, n):
        for a, b, distance in zip(i, j, distances):
            key = (int(bodies.labels[a]), int(b // n), int(bodies.labels[b % n]), shift)
            touching.setdefault(key, []).append((a, b % n, distance))
    if not touching:
        raise DiffuseError(
            f"lattice_dynamics.contacts.cutoff={cutoff:g}: no two bodies are that near; choose a larger one"
        )
    found = []
    for key in sorted(touching):
        first, copy, second, shift = key
        reverse = group.reverse(*key)
        if (first, copy, second, shift) > reverse and reverse in touching:
            continue
        mates: dict = {}
        for number in range(len(group.turns)):
            mate = (number, *group.product(number, copy, shift))
            opposite = group.opposite(mate)
            if not (first == second and opposite in mates):
                mates[mate] = None
        first_atoms, second_atoms, distances = zip(*sorted(touching[key]))
        pairs = np.array([first_atoms, second_atoms], dtype=np.int64).T
        swap = copy if key == reverse else None
        rows = np.array([(a, b, *cells) for a, b, cells in mates], dtype=np.int64)
        order = (-len(pairs), round(float(np.mean(distances)), 6))
        found.append((order, Contact(first, second, copy, shift, pairs, rows, swap)))
    return tuple(contact for _, contact in sorted(found, key=lambda entry: entry[0]))


class _Group:
    """Operators that take the asymmetric unit to the copies of the cell, each where the copy lies.

    Copy g, in the cell R, is W_g x + t_g + R of the coordinates x of the asymmetric unit.
    """

    def __init__(self, bodies: CrystalBodies):
        self.turns, self.shifts = bodies.operators
        self._number: dict = {}
        for number, turn in enumerate(self.turns):
            self._number.setdefault(turn.tobytes(), []).append(number)

    def product(self, number: int, copy: int, shift) -> tuple:
        """Copy and cell of a body when the operator that takes copy 0 to this one is applied to it."""
        turn = self.turns[number] @ self.turns[copy]
        move = self.turns[number] @ (self.shifts[copy] + shift - self.shifts[0]) + self.shifts[number]
        return self._found(turn, move)

    def reverse(self, first: int, copy: int, second: int, shift: tuple) -> tuple:
        """The contact seen from its second body, moved to where the asymmetric unit is."""
        turn = np.rint(np.linalg.inv(self.turns[copy])).astype(np.int64)
        move = turn @ (self.shifts[0] - self.shifts[copy] - shift) + self.shifts[0]
        other, cells = self._found(turn, move)
        return second, other, first, cells

    def opposite(self, mate: tuple) -> tuple:
        """The same contact with its second body in cell 0."""
        first, second, cells = mate
        return second, first, tuple(-c for c in cells)

    def _found(self, turn: np.ndarray, move: np.ndarray) -> tuple:
        for number in self._number[turn.astype(np.int64).tobytes()]:
            cells = move - self.shifts[number]
            if np.abs(cells - np.rint(cells)).max() < _SAME:
                return number, tuple(int(c) for c in np.rint(cells))
        raise DiffuseError("lattice_dynamics: the copies of the molecule are no symmetry mates of each other")


@dataclass(frozen=True, eq=False)
class ContactGeometry:
    """Where a contact is, and what moves there.

    The relative motion of the bodies at the contact is x = (t, w) = X_B w_B - X_A w_A: how far the second body moves
    at the centre of the contact when the first one is held (Å), and how it turns (radians), both along ``axes``.

    Attributes
    ----------
    centre : (3,) float64, Å, mean of the middles of all pairs
    axes : (3, 3) float64, rows are the axes of the frame: those of the file, or with z along the axis of ``swap``
    first, second : (6, 6) float64, X_A and X_B: x by the coordinates of the bodies
    geometric : (6, 6) float64, the stiffness of springs of length 0 and stiffness 1 between the bodies at the middles
    signs : (6,) ±1, what ``swap`` does to x along the axes; stiffnesses between different signs are 0
    """

    centre: np.ndarray
    axes: np.ndarray
    first: np.ndarray
    second: np.ndarray
    geometric: np.ndarray
    signs: np.ndarray


def contact_geometry(contact: Contact, bodies: CrystalBodies) -> ContactGeometry:
    """Centre, frame and geometric stiffness of a contact."""
    n, sites = bodies.n_atoms, bodies.content.site_cart
    move = bodies.content.orthogonalization @ np.array(contact.shift)
    i, j = contact.pairs.T
    middles = (sites[i] + sites[contact.copy * n + j] + move) / 2
    centre = middles.mean(axis=0)
    axes, signs = np.eye(3), np.ones(6)
    if contact.swap is not None:
        turn = bodies.turns[contact.swap]
        axes = _axes_of(turn)
        along = np.rint(np.diag(axes @ turn @ axes.T))
        signs = np.concatenate([along, along * round(np.linalg.det(turn))])
    offsets = (middles - centre) @ axes.T
    inertia = np.sum(offsets**2) * np.eye(3) - offsets.T @ offsets
    values, vectors = np.linalg.eigh(inertia)
    least = np.maximum(values, len(i) * _SMALLEST_PATCH**2)
    if np.any(least > values):
        inertia = (vectors * least) @ vectors.T
    geometric = np.zeros((6, 6))
    geometric[:3, :3], geometric[3:, 3:] = len(i) * np.eye(3), inertia
    frame = np.kron(np.eye(2), axes)
    number = bodies.n_bodies
    first, second = contact.first, contact.copy * number + contact.second
    return ContactGeometry(
        centre,
        axes,
        frame @ _motion_at(centre - bodies.centres[first]) @ bodies.frames[first],
        frame @ _motion_at(centre - bodies.centres[second] - move) @ bodies.frames[second],
        geometric,
        signs,
    )


def _motion_at(offset: np.ndarray) -> np.ndarray:
    """(6, 6): translation at a point and rotation, by t and w of a body; offset : (3,) of the point from its centre"""
    result = np.eye(6)
    result[:3] = rigid_motions(offset[None])[0]
    return result


def _axes_of(turn: np.ndarray) -> np.ndarray:
    """(3, 3), rows: two directions that an involution treats alike, and its axis."""
    values, vectors = np.linalg.eigh((turn + turn.T) / 2)
    axis = vectors[:, 2] if values[1] < 0 else vectors[:, 0]  # -1, -1, 1: a two-fold axis; -1, 1, 1: a mirror
    axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
    x = np.eye(3)[np.argmin(np.abs(axis))]
    x = x - axis * (axis @ x)
    x = x / np.linalg.norm(x)
    return np.array([x, np.cross(axis, x), axis])
