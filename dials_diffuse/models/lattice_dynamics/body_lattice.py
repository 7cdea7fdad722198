"""Rigid bodies on springs in a crystal: the matrices of force constants between cells, and what they are at a wave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure
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
_FREE = 1e-9
#: the same of any wave, acoustic ones of 1e-6 of a reciprocal-lattice step included
_SINGULAR = 1e-13


@dataclass(frozen=True, eq=False)
class BodyLattice:
    """Energy of rigid bodies in harmonic springs, E = sum over cells R, R' of w(R)ᵀ K(R' - R) w(R') / 2.

    The coordinates w of a body are amplitudes of six motions (fewer of one atom, or of atoms in a row), each with a
    mean square of 1 of its atoms' displacements.

    Attributes
    ----------
    labels : (n,) int64, the body of each atom of the cell
    frames : (b, 6, 6) float64, t (Å) and w (radians, about the centre) of a body by its coordinates; columns of those
        that it lacks are 0
    centres, centres_frac : (b, 3) float64, Å, and fractional
    active : (d,) int64, which of the 6 b coordinates there are
    shifts : (m, 3) int64, R' - R in cells
    constants : (m, d, d) float64, K for springs of stiffness 1
    """

    labels: np.ndarray
    frames: np.ndarray
    centres: np.ndarray
    centres_frac: np.ndarray
    active: np.ndarray
    shifts: np.ndarray
    constants: np.ndarray

    def matrices(self, hkl: np.ndarray) -> np.ndarray:
        """(n, d, d) complex128, D(k) = sum over R of K(R) exp(2 pi i hR); hkl : (n, 3) fractional indices of waves"""
        phase = np.exp(2j * np.pi * (hkl @ self.shifts.T))
        d = len(self.active)
        return (phase @ self.constants.reshape(len(phase.T), -1)).reshape(-1, d, d)

    def blocks(self, n: int) -> int:
        """How many of n waves to treat together."""
        return max(1, min(n, _NUMBERS // len(self.active) ** 2))

    def check(self) -> None:
        """Raise DiffuseError if springs do not connect the bodies along all three axes."""
        _held(self.matrices(np.array([wave for wave in np.ndindex(2, 2, 2) if any(wave)]) / 2), _FREE)

    def solve(self, hkl: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(n, d) complex128, D(k)^-1 v; v : (n, d)

        Raises
        ------
        DiffuseError
            If there is a motion that stretches no spring.
        """
        return np.linalg.solve(_held(self.matrices(hkl), _SINGULAR), v[:, :, None])[:, :, 0]

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
        total = np.zeros((len(self.active),) * 2)
        step = self.blocks(len(hkl))
        for first in range(0, len(hkl), step):
            waves = hkl[first : first + step]
            inverse = np.linalg.inv(_held(self.matrices(waves), _FREE))
            if centred:
                phase = np.exp(-2j * np.pi * (waves @ self.centres_frac[self.active // 6].T))
                inverse = phase[:, :, None] * inverse * phase.conj()[:, None, :]
            total += np.tensordot(weights[first : first + step], inverse.real, axes=1)
        return total / weights.sum()

    def modes(self, sites: np.ndarray) -> np.ndarray:
        """(n, 3, 6) float64, displacement of each atom of the cell by the coordinates of its body; sites : (n, 3), Å"""
        return rigid_motions(sites - self.centres[self.labels]) @ self.frames[self.labels]


def body_lattice(content: Structure, labels: np.ndarray, cutoff: float, central: bool) -> BodyLattice:
    """Springs between all atoms of different bodies that are near to each other.

    Parameters
    ----------
    content : the atoms of the cell, in P 1
    labels : (n,) int64, the body of each, from 0
    cutoff : Å, length of the longest springs
    central : a spring resists only changes of its length, otherwise any displacement of one end from the other

    Raises
    ------
    DiffuseError
        If there are no springs.
    """
    sites = content.site_cart
    number = labels.max() + 1
    centres = np.stack([np.bincount(labels, x) for x in sites.T], axis=1) / np.bincount(labels)[:, None]
    motions = rigid_motions(sites - centres[labels])
    frames = np.stack([_frame(motions[labels == b]) for b in range(number)])
    modes = motions @ frames[labels]
    active = np.flatnonzero(np.any(frames != 0, axis=1).reshape(-1))
    o = content.orthogonalization
    reach = np.ceil(np.ptp(content.site_frac, axis=0) + cutoff * np.linalg.norm(np.linalg.inv(o), axis=1)).astype(int)
    tree = cKDTree(sites)
    shifts, constants = [], []
    own = np.zeros((number, number, 6, 6))
    for shift in np.ndindex(*(2 * reach + 1)):
        shift = np.array(shift) - reach
        moved = sites + o @ shift
        near = tree.sparse_distance_matrix(cKDTree(moved), cutoff * (1 + _TIE), output_type="ndarray")
        i, j = near["i"], near["j"]
        springs = (near["v"] > _SAME_PLACE) & (shift.any() | (labels[i] != labels[j]))
        i, j = i[springs], j[springs]
        if len(i) == 0:
            continue
        across = np.zeros_like(own)
        direction = moved[j] - sites[i]
        direction = direction / np.linalg.norm(direction, axis=1)[:, None]
        for axis in [direction] if central else [np.tile(e, (len(i), 1)) for e in np.eye(3)]:
            first = np.einsum("pc,pck->pk", axis, modes[i])
            second = np.einsum("pc,pck->pk", axis, modes[j])
            np.add.at(own, (labels[i], labels[i]), first[:, :, None] * first[:, None, :])
            np.add.at(across, (labels[i], labels[j]), -first[:, :, None] * second[:, None, :])
        shifts.append(shift)
        constants.append(across)
    if not shifts:
        raise DiffuseError(f"lattice_dynamics.cutoff={cutoff:g}: no two bodies are that near; choose a larger one")
    shifts.append(np.zeros(3, dtype=int))
    constants.append(own)
    flat = np.stack(constants).transpose(0, 1, 3, 2, 4).reshape(len(shifts), 6 * number, 6 * number)
    return BodyLattice(
        labels, frames, centres, centres @ np.linalg.inv(o).T, active, np.array(shifts), flat[:, active][:, :, active]
    )


def _frame(motions: np.ndarray) -> np.ndarray:
    """(6, 6), t and w by coordinates of which each has a mean square displacement of 1; motions : (n, 3, 6)"""
    _, sizes, vectors = np.linalg.svd(motions.reshape(-1, 6) / np.sqrt(len(motions)))
    sizes = np.concatenate([sizes, np.zeros(6 - len(sizes))])
    moving = sizes > _SMALLEST_MOTION * sizes[0]
    return vectors.T * np.where(moving, 1 / np.where(moving, sizes, 1.0), 0.0)


def _held(matrices: np.ndarray, lowest: float) -> np.ndarray:
    """The matrices, (n, d, d), unless squares of the pivots of one are that small a fraction of the largest."""
    try:
        pivots = np.linalg.cholesky(matrices).real.diagonal(axis1=1, axis2=2)
        held = np.all(pivots.min(axis=1) > lowest**0.5 * pivots.max(axis=1))
    except np.linalg.LinAlgError:
        held = False
    if not held:
        raise DiffuseError(
            "lattice_dynamics: some bodies can move and stretch no spring; choose a larger lattice_dynamics.cutoff, or "
            "lattice_dynamics.springs=gaussian"
        )
    return matrices
