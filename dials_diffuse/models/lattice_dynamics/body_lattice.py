"""Rigid bodies on springs in a crystal: the matrices of force constants between cells, and what they are at a wave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.block import crystal_block
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_labels
from dials_diffuse.structure.tls import rigid_motions

#: motions of a body that displace its atoms by less than this fraction of others are none, such as turns of one atom
_SMALLEST_MOTION = 1e-6
#: atoms of different bodies nearer than this, Å, are one, on a special position
_SAME_PLACE = 1e-3
#: springs longer by this fraction count, so that of symmetry mates of the length of the cutoff none is lost
_TIE = 1e-6
#: waves whose matrices are in memory together: numbers in them
_NUMBERS = 1 << 22
#: smallest square of a pivot of a wave's matrix relative to the largest, below which the wave is held by nothing
FREE = 1e-9
#: the same of any wave, acoustic ones of 1e-6 of a reciprocal-lattice step included
SINGULAR = 1e-13


@dataclass(frozen=True, eq=False)
class CrystalBodies:
    """Rigid bodies in a cell, copy after copy, in each those of the asymmetric unit in the same order.

    The coordinates w of a body are amplitudes of six motions (fewer of one atom, or of atoms in a row), each with a
    mean square of 1 of its atoms' displacements. They turn with the copy: mates that move alike have the same w.

    Attributes
    ----------
    content : the atoms of the cell, in P 1, copy after copy
    labels : (n,) int64, the body of each of them
    frames : (b, 6, 6) float64, t (Å) and w (radians, about the centre) of a body by its coordinates; columns of those
        that it lacks are 0
    centres, centres_frac : (b, 3) float64, Å, and fractional
    active : (d,) int64, which of the 6 b coordinates there are
    turns : (g, 3, 3) float64, Cartesian rotation of each copy
    operators : (g, 3, 3) int64 and (g, 3) float64, from the fractional coordinates of the asymmetric unit to each copy
    """

    content: Structure
    labels: np.ndarray
    frames: np.ndarray
    centres: np.ndarray
    centres_frac: np.ndarray
    active: np.ndarray
    turns: np.ndarray
    operators: tuple

    @property
    def n_atoms(self) -> int:
        """Of one copy."""
        return self.content.n_atoms // len(self.turns)

    @property
    def n_bodies(self) -> int:
        """Of one copy."""
        return len(self.frames) // len(self.turns)

    def modes(self, sites: np.ndarray) -> np.ndarray:
        """(n, 3, 6) float64, displacement of each atom of the cell by the coordinates of its body; sites : (n, 3), Å"""
        return rigid_motions(sites - self.centres[self.labels]) @ self.frames[self.labels]


def crystal_bodies(structure: Structure, groups: str, selections: tuple = ()) -> CrystalBodies:
    """The bodies of a cell.

    Parameters
    ----------
    structure : asymmetric unit; of an atom on a special position every copy has one, with its share
    groups, selections : see :func:`structure.groups.group_labels`
    """
    labels = group_labels(structure, groups, selections)
    everywhere = replace(
        structure,
        occupancy=structure.occupancy * structure.share,
        multiplicity=np.full(structure.n_atoms, structure.space_group.order_z()),
    )
    content, labels = crystal_block(everywhere, labels, (1, 1, 1))
    sites, turns = content.site_cart, np.array(structure.rotations)
    centres = np.stack([np.bincount(labels, x) for x in sites.T], axis=1) / np.bincount(labels)[:, None]
    motions = rigid_motions(sites - centres[labels])
    own = np.stack([_frame(motions[labels == b]) for b in range(len(centres) // len(turns))])
    turned = np.zeros((len(turns), 6, 6))
    turned[:, :3, :3], turned[:, 3:, 3:] = turns, np.linalg.det(turns)[:, None, None] * turns
    frames = (turned[:, None] @ own).reshape(-1, 6, 6)
    matrices = np.array([np.rint(op.r().as_double()).reshape(3, 3) for op in structure.space_group]).astype(np.int64)
    first = content.site_frac[:: structure.n_atoms]
    return CrystalBodies(
        content=content,
        labels=labels,
        frames=frames,
        centres=centres,
        centres_frac=centres @ np.linalg.inv(content.orthogonalization).T,
        active=np.flatnonzero(np.tile(np.any(own != 0, axis=1), (len(turns), 1)).reshape(-1)),
        turns=turns,
        operators=(matrices, first - matrices @ structure.site_frac[0]),
    )


@dataclass(frozen=True, eq=False)
class BodyLattice:
    """Energy of rigid bodies in harmonic springs, E = sum over cells R, R' of w(R)ᵀ K(R' - R) w(R') / 2.

    Attributes
    ----------
    bodies : with the coordinates w
    shifts : (m, 3) int64, R' - R in cells
    constants : (m, d, d) float64, K for springs of stiffness 1
    """

    bodies: CrystalBodies
    shifts: np.ndarray
    constants: np.ndarray

    def matrices(self, hkl: np.ndarray) -> np.ndarray:
        """(n, d, d) complex128, D(k) = sum over R of K(R) exp(2 pi i hR); hkl : (n, 3) fractional indices of waves"""
        phase = np.exp(2j * np.pi * (hkl @ self.shifts.T))
        d = self.constants.shape[1]
        return (phase @ self.constants.reshape(len(phase.T), -1)).reshape(-1, d, d)

    def blocks(self, n: int) -> int:
        """How many of n waves to treat together."""
        return max(1, min(n, _NUMBERS // self.constants.shape[1] ** 2))

    def check(self) -> None:
        """Raise DiffuseError if springs do not connect the bodies along all three axes."""
        held(self.matrices(np.array([wave for wave in np.ndindex(2, 2, 2) if any(wave)]) / 2), FREE)

    def solve(self, hkl: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(n, d) complex128, D(k)^-1 v; v : (n, d)

        Raises
        ------
        DiffuseError
            If there is a motion that stretches no spring.
        """
        return np.linalg.solve(held(self.matrices(hkl), SINGULAR), v[:, :, None])[:, :, 0]

    def mean_inverse(self, hkl: np.ndarray, weights: np.ndarray, centred: bool = False) -> np.ndarray:
        """(d, d) float64, mean of D^-1 over waves and their opposites, for which it is the complex conjugate.

        Parameters
        ----------
        hkl, weights : (n, 3) and (n,) float64
        centred : with the phases of the waves at the bodies' centres instead of at the origins of their cells

        Raises
        ------
        DiffuseError
            If there is a motion that stretches no spring.
        """
        total = np.zeros((len(self.bodies.active),) * 2)
        step = self.blocks(len(hkl))
        for first in range(0, len(hkl), step):
            waves = hkl[first : first + step]
            inverse = np.linalg.inv(held(self.matrices(waves), FREE))
            if centred:
                phase = centre_phases(self.bodies, waves)
                inverse = phase[:, :, None] * inverse * phase.conj()[:, None, :]
            total += np.tensordot(weights[first : first + step], inverse.real, axes=1)
        return total / weights.sum()


def centre_phases(bodies: CrystalBodies, waves: np.ndarray) -> np.ndarray:
    """(n, d) complex128, exp(-2 pi i k c) for each coordinate, c the centre of its body; waves : (n, 3)"""
    return np.exp(-2j * np.pi * (waves @ bodies.centres_frac[bodies.active // 6].T))


def neighbours(bodies: CrystalBodies, cutoff: float, first: int) -> Iterator[tuple]:
    """Atoms of different bodies that are near to each other.

    Parameters
    ----------
    cutoff : Å
    first : of this many atoms, from the start of the content, the neighbours are wanted

    Yields
    ------
    shift : tuple of three int, cells of the second atoms
    i, j : (m,) int64, atoms of the content
    distance : (m,) float64, Å
    """
    content, labels, o = bodies.content, bodies.labels, bodies.content.orthogonalization
    sites = content.site_cart
    reach = np.ceil(np.ptp(content.site_frac, axis=0) + cutoff * np.linalg.norm(np.linalg.inv(o), axis=1)).astype(int)
    tree = cKDTree(sites[:first])
    for shift in np.ndindex(*(2 * reach + 1)):
        shift = np.array(shift) - reach
        near = tree.sparse_distance_matrix(cKDTree(sites + o @ shift), cutoff * (1 + _TIE), output_type="ndarray")
        i, j, distance = near["i"], near["j"], near["v"]
        touching = (distance > _SAME_PLACE) & (shift.any() | (labels[i] != labels[j]))
        if touching.any():
            yield tuple(shift.tolist()), i[touching], j[touching], distance[touching]


def body_lattice(bodies: CrystalBodies, cutoff: float, central: bool) -> BodyLattice:
    """Springs of one stiffness between all atoms of different bodies that are near to each other.

    Parameters
    ----------
    cutoff : Å, length of the longest springs
    central : a spring resists only changes of its length, otherwise any displacement of one end from the other

    Raises
    ------
    DiffuseError
        If there are no springs.
    """
    labels, sites, o = bodies.labels, bodies.content.site_cart, bodies.content.orthogonalization
    number = len(bodies.frames)
    modes = bodies.modes(sites)
    shifts, constants = [], []
    own = np.zeros((number, number, 6, 6))
    for shift, i, j, distance in neighbours(bodies, cutoff, len(sites)):
        across = np.zeros_like(own)
        direction = (sites[j] + o @ np.array(shift) - sites[i]) / distance[:, None] if central else None
        for axis in [direction] if central else [np.tile(e, (len(i), 1)) for e in np.eye(3)]:
            first = np.einsum("pc,pck->pk", axis, modes[i])
            second = np.einsum("pc,pck->pk", axis, modes[j])
            np.add.at(own, (labels[i], labels[i]), first[:, :, None] * first[:, None, :])
            np.add.at(across, (labels[i], labels[j]), -first[:, :, None] * second[:, None, :])
        shifts.append(shift)
        constants.append(across)
    if not shifts:
        raise DiffuseError(f"lattice_dynamics.cutoff={cutoff:g}: no two bodies are that near; choose a larger one")
    shifts.append((0, 0, 0))
    constants.append(own)
    flat = np.stack(constants).transpose(0, 1, 3, 2, 4).reshape(len(shifts), 6 * number, 6 * number)
    active = bodies.active
    return BodyLattice(bodies, np.array(shifts), flat[:, active][:, :, active])


def _frame(motions: np.ndarray) -> np.ndarray:
    """(6, 6), t and w by coordinates of which each has a mean square displacement of 1; motions : (n, 3, 6)"""
    _, sizes, vectors = np.linalg.svd(motions.reshape(-1, 6) / np.sqrt(len(motions)))
    sizes = np.concatenate([sizes, np.zeros(6 - len(sizes))])
    moving = sizes > _SMALLEST_MOTION * sizes[0]
    return vectors.T * np.where(moving, 1 / np.where(moving, sizes, 1.0), 0.0)


def held(matrices: np.ndarray, lowest: float) -> np.ndarray:
    """The matrices, (n, d, d), unless squares of the pivots of one are that small a fraction of the largest."""
    try:
        pivots = np.linalg.cholesky(matrices).real.diagonal(axis1=1, axis2=2)
        held = np.all(pivots.min(axis=1) > lowest**0.5 * pivots.max(axis=1))
    except np.linalg.LinAlgError:
        held = False
    if not held:
        raise DiffuseError(
            "lattice_dynamics: some bodies can move and stretch no spring; choose a larger lattice_dynamics.cutoff "
            "(springs=contacts: contacts.cutoff), or lattice_dynamics.springs=gaussian"
        )
    return matrices
