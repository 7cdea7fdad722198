"""Phonons of bodies that touch, as a function of the stiffness of each contact, with derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.models.lattice_dynamics.body_lattice import (
    SINGULAR,
    BodyLattice,
    CrystalBodies,
    centre_phases,
    held,
)
from dials_diffuse.models.lattice_dynamics.contacts import contact_geometry

#: numbers of stretches of contacts by waves in memory together
_NUMBERS = 1 << 22


@dataclass(frozen=True, eq=False)
class WaveMean:
    """A weighted mean of D^-1 over waves.

    Attributes
    ----------
    waves : (n, 3) float64, fractional indices
    weights : (n,) float64
    moves : (n, 3) float64, with the phases of these at the bodies' centres: what is left of the waves when those of the
        voxel's centre are taken away
    paired : do these stand for their opposites, too, with as much weight? For these D^-1 is the complex conjugate, so
        that the mean is real.
    """

    waves: np.ndarray
    weights: np.ndarray
    moves: np.ndarray
    paired: bool = False


class ContactLattice:
    """E = sum over contacts of xᵀ K x / 2, x the relative motion of the two bodies at the contact.

    Symmetry mates of a contact have the same K along axes that turn with them; so D(k) is linear in each K.

    Parameters
    ----------
    bodies : CrystalBodies
    contacts : tuple of Contact

    Attributes
    ----------
    geometries : ContactGeometry of each
    """

    def __init__(self, bodies: CrystalBodies, contacts: tuple):
        self.bodies, self.contacts = bodies, contacts
        self.geometries = [contact_geometry(contact, bodies) for contact in contacts]
        self._ends = np.cumsum([0, *(len(contact.mates) for contact in contacts)])
        number, size = bodies.n_bodies, 6 * len(bodies.frames)
        first, second, self._shifts = [], [], np.concatenate([c.mates[:, 2:] for c in contacts])
        for contact, geometry in zip(contacts, self.geometries):
            for a, b in contact.mates[:, :2]:
                for end, body, by in (
                    (first, a * number + contact.first, geometry.first),
                    (second, b * number + contact.second, geometry.second),
                ):
                    end.append(np.zeros((6, size)))
                    end[-1][:, 6 * body : 6 * body + 6] = by
        self._first, self._second = (np.array(end)[:, :, bodies.active] for end in (first, second))

    def stretches(self, waves: np.ndarray) -> np.ndarray:
        """(n, h, 6, d) complex128, x of the h contacts of a cell by the coordinates of a wave; waves : (n, 3)"""
        phase = np.exp(2j * np.pi * (waves @ self._shifts.T))
        return phase[:, :, None, None] * self._second - self._first

    def mates_of(self, contact: int) -> slice:
        """Of the h contacts of a cell those that are mates of one."""
        return slice(self._ends[contact], self._ends[contact + 1])

    def lattice(self, stiffnesses) -> BodyLattice:
        """The force constants between cells; stiffnesses : (6, 6) of each contact"""
        d = len(self.bodies.active)
        constants = {(0, 0, 0): np.zeros((d, d))}
        for c, k in enumerate(stiffnesses):
            for h in range(self._ends[c], self._ends[c + 1]):
                first, second, shift = self._first[h], self._second[h], tuple(self._shifts[h].tolist())
                constants[0, 0, 0] += first.T @ k @ first + second.T @ k @ second
                across = first.T @ k @ second
                for cells, matrix in ((shift, across), (tuple(-x for x in shift), across.T)):
                    constants[cells] = constants.get(cells, np.zeros((d, d))) - matrix
        return BodyLattice(self.bodies, np.array(list(constants)), np.array(list(constants.values())))

    def matrices(self, stretches: np.ndarray, stiffnesses) -> np.ndarray:
        """(n, d, d) complex128, D of waves; stretches : of them"""
        n, _, _, d = stretches.shape
        pulled = np.concatenate([stiffnesses[c] @ stretches[:, self.mates_of(c)] for c in range(len(stiffnesses))], 1)
        return stretches.reshape(n, -1, d).conj().transpose(0, 2, 1) @ pulled.reshape(n, -1, d)

    def mean(self, mean: WaveMean, stiffnesses, slopes=None) -> tuple:
        """The mean of D^-1, and its derivatives.

        Parameters
        ----------
        stiffnesses : (6, 6) float64 of each contact
        slopes : (m, 6, 6) float64 of each contact, changes of its stiffness by m parameters; None: no derivatives

        Returns
        -------
        (d, d) complex128, Hermitian (float64 if ``paired``), and a list of (m, d, d), those by the parameters of each
        contact; without ``slopes`` empty

        Raises
        ------
        DiffuseError
            If there is a motion that stretches no contact.
        """
        d = len(self.bodies.active)
        total = np.zeros((d, d), dtype=np.complex128)
        moved = [np.zeros((6 * d, 6 * d), dtype=np.complex128) for _ in self.contacts]
        for rows in self._blocks(len(mean.waves)):
            stretches, inverse, phase = self._inverses(mean, rows, stiffnesses)
            weights = mean.weights[rows]
            inverse = phase[:, :, None] * inverse
            total += np.einsum("n,nij,nj->ij", weights, inverse, phase.conj())
            if slopes is None:
                continue
            answers = inverse[:, None] @ stretches.conj().transpose(0, 1, 3, 2)  # (n, h, d, 6)
            for c, sums in enumerate(moved):
                own = answers[:, self.mates_of(c)]
                weighted = own * weights[:, None, None, None]
                sums += weighted.reshape(-1, 6 * d).T @ own.reshape(-1, 6 * d).conj()
        total = (total + total.conj().T) / 2
        if mean.paired:
            total, moved = total.real, [sums.real for sums in moved]
        if slopes is None:
            return total, []
        return total, [
            -np.einsum("iajb,pab->pij", sums.reshape(d, 6, d, 6), changes, optimize=True)
            for sums, changes in zip(moved, slopes)
        ]

    def second(self, mean: WaveMean, stiffnesses, slopes, matrix: np.ndarray) -> tuple:
        """Second derivatives of the real part of tr(M W), M the mean of D^-1.

        Parameters
        ----------
        stiffnesses, slopes : as for :meth:`mean`
        matrix : (d, d) complex128 W, Hermitian

        Returns
        -------
        gradients : (6, 6) float64 of each contact, symmetric: tr(G dK) is the change by the contact's K
        second : list of lists of (m, m') float64, for each pair of contacts those by their parameters at constant
            slopes: what d²K adds is not in them
        """
        n_contacts, matrix = len(self.contacts), matrix.real if mean.paired else matrix
        gradients = [np.zeros((6, 6)) for _ in range(n_contacts)]
        sums = [[np.zeros((36, 36), dtype=np.complex128) for _ in range(n_contacts)] for _ in range(n_contacts)]
        for rows in self._blocks(len(mean.waves)):
            stretches, inverse, phase = self._inverses(mean, rows, stiffnesses)
            n, h, _, d = stretches.shape
            flat = stretches.reshape(n, -1, d)
            turned = phase.conj()[:, :, None] * matrix * phase[:, None, :]
            answers = inverse @ flat.conj().transpose(0, 2, 1)
            compliance = (flat @ answers).reshape(n, h, 6, h, 6)
            weighted = mean.weights[rows, None, None] * turned
            forces = (answers.conj().transpose(0, 2, 1) @ weighted @ answers).reshape(n, h, 6, h, 6)
            for c in range(n_contacts):
                own = self.mates_of(c)
                gradients[c] -= np.einsum("nhahb->ab", forces[:, own, :, own].real)
                for o in range(n_contacts):
                    other = self.mates_of(o)
                    a = compliance[:, own, :, other].transpose(0, 1, 3, 2, 4).reshape(-1, 36)  # b, a'
                    q = forces[:, own, :, other].transpose(0, 1, 3, 2, 4).reshape(-1, 36)  # a, b'
                    sums[c][o] += a.T @ q.conj()
        flat = [changes.reshape(-1, 36) for changes in slopes]
        second = [
            [2 * flat[c] @ _by_pairs(sums[c][o].real) @ flat[o].T for o in range(n_contacts)] for c in range(n_contacts)
        ]
        return [(g + g.T) / 2 for g in gradients], second

    def _inverses(self, mean: WaveMean, rows: slice, stiffnesses) -> tuple:
        """Stretches, D^-1 and the phases at the centres for some waves."""
        stretches = self.stretches(mean.waves[rows])
        inverse = np.linalg.inv(held(self.matrices(stretches, stiffnesses), SINGULAR))
        return stretches, inverse, centre_phases(self.bodies, mean.moves[rows])

    def _blocks(self, n: int):
        step = max(1, _NUMBERS // self._first.size)
        return [slice(first, min(first + step, n)) for first in range(0, n, step)]


def _by_pairs(sums: np.ndarray) -> np.ndarray:
    """(36, 36), rows ab and columns cd; sums : (36, 36), rows bc and columns ad"""
    return sums.reshape(6, 6, 6, 6).transpose(2, 0, 1, 3).reshape(36, 36)
