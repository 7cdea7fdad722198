"""Lattice dynamics at fixed voxels as a function of the stiffness of each contact."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.hermitian import hermitian_squares
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.lattice_dynamics.body_scattering import amplitudes, own_terms
from dials_diffuse.models.lattice_dynamics.contact_lattice import ContactLattice, WaveMean
from dials_diffuse.models.lattice_dynamics.voxel_waves import voxel_waves
from dials_diffuse.models.lattice_dynamics.waves import mesh_of_waves, symmetric_waves
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.single_atoms import single_atoms
from dials_diffuse.structure.crystal import Structure

#: numbers of products of amplitudes in memory together
_NUMBERS = 1 << 22


class PreparedContacts(Prepared):
    """I = v† <D^-1> v - sum over bodies of P <w wᵀ> + C, with D linear in the stiffnesses.

    <D^-1> is the mean over the waves of a voxel, or of its centre; <w wᵀ> that over all waves; P and C are the atoms'
    own terms, see :func:`own_terms`. Voxels alike relative to their lattice points have the same waves, so that there
    are as many D as voxels between lattice points.

    Parameters
    ----------
    model : LatticeDynamics with springs=contacts
    index : (n, 3) int64, inside 1/d_min of the grid
    means : average over voxels; that of a lattice point is averaged in any case

    Notes
    -----
    With dD = J† dK J, J the relative motions at a contact: dD^-1 = -(J D^-1)† dK (J D^-1). Each mean of D^-1 and its
    derivatives are matrices of the size of D; products with v v† are products of matrices over many voxels.
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False):
        self.origin, self.structure, self.means = model, structure, means
        self.parameters = model.parameters(structure)
        contacts = model.contacts(structure)
        structure, grid = fitted(structure, grid)
        bodies = model.bodies(structure)
        self.lattice = ContactLattice(bodies, contacts)
        self.stiffnesses = model.stiffnesses(self.lattice)
        self.prior = self.stiffnesses.prior
        self.scale = model.scale(structure, self.lattice)
        # the mates of voxels that lie least ways relative to their lattice points: as bright, and fewer D
        index = _moved(structure, grid, index)
        s = grid.s(index)
        v = amplitudes(bodies, s, model.table, model.displaced)
        self._classes = _classes(structure, grid, index, means)
        self._v = [v[rows] for rows, _ in self._classes]
        self._n = len(index)
        self._mesh = mesh_mean(model.mesh, structure)
        self._own = self._constant = None
        if model.incoherent:
            self._own = own_terms(bodies, s, model.table)
            everything, own = single_atoms(structure, s, model.table)
            self._constant = everything - own

    def intensity(self, values) -> np.ndarray:
        return self._sums(self._checked(values), False)[:, 0]

    def jacobian(self, values) -> tuple:
        sums = self._sums(self._checked(values), True)
        return sums[:, 0], sums[:, 1:]

    def gradient(self, values, weights) -> np.ndarray:
        """(p,) float64, sum over voxels of weights times the derivatives, without a matrix of all of these."""
        values = self._checked(values)
        result = np.zeros(len(values))
        k, slopes = self.stiffnesses.matrices(values), self.stiffnesses.derivatives(values)
        for mean, matrix in self._weighted(weights):
            _, derivatives = self.lattice.mean(mean, k, slopes)
            for own, part in zip(self.stiffnesses.own, derivatives):
                result[own] += self.scale * np.einsum("pij,ji->p", part, matrix).real
        return result

    def second(self, values, weights) -> np.ndarray:
        values = self._checked(values)
        k, slopes = self.stiffnesses.matrices(values), self.stiffnesses.derivatives(values)
        gradients = [np.zeros((6, 6)) for _ in k]
        result = np.zeros((len(values),) * 2)
        for mean, matrix in self._weighted(weights):
            first, second = self.lattice.second(mean, k, slopes, matrix)
            for total, part in zip(gradients, first):
                total += part
            for own, row in zip(self.stiffnesses.own, second):
                for other, part in zip(self.stiffnesses.own, row):
                    result[np.ix_(own, other)] += part
        return self.scale * (result + self.stiffnesses.second(values, gradients))

    def _sums(self, values: np.ndarray, with_derivatives: bool) -> np.ndarray:
        """(n, 1) or (n, 1 + p), the intensity and its derivatives."""
        k = self.stiffnesses.matrices(values)
        slopes = self.stiffnesses.derivatives(values) if with_derivatives else None
        result = np.empty((self._n, 1 + (len(values) if with_derivatives else 0)))
        for (rows, mean), v in zip(self._classes, self._v):
            forms = self._forms(mean, k, slopes, len(values))
            if not with_derivatives:
                result[rows, 0] = np.einsum("nd,nd->n", v.conj(), v @ forms[0].T).real
                continue
            packed = _packed(forms)
            step = max(1, _NUMBERS // v.shape[1] ** 2)
            for first in range(0, len(v), step):
                chosen = slice(first, first + step)
                result[rows[chosen]] = _squares(v[chosen]) @ packed.T
        if self._own is not None:
            forms = self._forms(self._mesh, k, slopes, len(values))
            number, per_body = self._own.shape[1], np.zeros((len(forms), self._own.shape[1], 21))
            for b in range(number):
                whole = np.zeros((len(forms), 6, 6))
                own = np.flatnonzero(self.lattice.bodies.active // 6 == b)
                at = self.lattice.bodies.active[own] % 6
                whole[np.ix_(range(len(forms)), at, at)] = forms[np.ix_(range(len(forms)), own, own)].real
                per_body[:, b] = whole[:, _ROWS, _COLUMNS]
            result -= self._own.reshape(self._n, -1) @ per_body.reshape(len(forms), -1).T
        result *= self.scale
        if self._constant is not None:
            result[:, 0] += self._constant
        return result

    def _forms(self, mean: WaveMean, k, slopes, p: int) -> np.ndarray:
        """(1, d, d) or (1 + p, d, d) complex128, a mean of D^-1 and its derivatives."""
        value, derivatives = self.lattice.mean(mean, k, slopes)
        forms = np.zeros((1 + (p if slopes is not None else 0), *value.shape), dtype=np.complex128)
        forms[0] = value
        for own, part in zip(self.stiffnesses.own, derivatives):
            forms[1 + own] += part
        return forms

    def _weighted(self, weights):
        """(WaveMean, W) pairs: sum over voxels of weights times I is that of scale tr(<D^-1> W), but for constants."""
        weights = np.asarray(weights, dtype=float)
        for (rows, mean), v in zip(self._classes, self._v):
            yield mean, (v * weights[rows, None]).T @ v.conj()
        if self._own is not None:
            active = self.lattice.bodies.active
            matrix = np.zeros((len(active),) * 2, dtype=np.complex128)
            for b, elements in enumerate(np.tensordot(weights, self._own, axes=1)):
                whole = np.zeros((6, 6))
                whole[_ROWS, _COLUMNS] = elements / 2
                own = np.flatnonzero(active // 6 == b)
                at = active[own] % 6
                matrix[np.ix_(own, own)] = -(whole + whole.T)[np.ix_(at, at)]
            yield self._mesh, matrix


def mesh_mean(mesh: tuple, structure: Structure) -> WaveMean:
    """The mean over all waves of a mesh."""
    waves, weights = symmetric_waves(mesh_of_waves(mesh), structure)
    return WaveMean(waves, weights / weights.sum(), np.zeros_like(waves), paired=True)


def _offsets(grid: MapGrid, index: np.ndarray) -> np.ndarray:
    """(n, 3) int64, voxels from the nearest lattice point."""
    subdivide = np.array(grid.subdivide)
    return index - subdivide * np.rint(index / subdivide).astype(np.int64)


def _moved(structure: Structure, grid: MapGrid, index: np.ndarray) -> np.ndarray:
    """(n, 3) int64, of each voxel that mate whose place relative to its lattice point comes first in order.

    Opposite voxels are as bright: form factors are real, f'' has a model of its own (:mod:`models.dispersive`).
    """
    kinds, number = np.unique(_offsets(grid, index), axis=0, return_inverse=True)
    turns = laue_operators(structure.space_group, friedel=True)
    mates = np.einsum("ki,rij->krj", kinds, turns)
    first = [np.lexsort(own.T[::-1])[0] for own in mates]
    return np.einsum("ni,nij->nj", index, turns[first][number.reshape(-1)])


def _classes(structure: Structure, grid: MapGrid, index: np.ndarray, means: bool) -> list:
    """(rows, WaveMean) of voxels that lie alike relative to their lattice points."""
    subdivide = np.array(grid.subdivide)
    kinds, number = np.unique(_offsets(grid, index), axis=0, return_inverse=True)
    order = np.argsort(number.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(number.reshape(-1)))
    found = []
    for kind, end, before in zip(kinds, ends, [0, *ends]):
        points, weights = np.zeros((1, 3)), np.ones(1)
        if means or not kind.any():
            points, weights = voxel_waves(kind, structure)
        paired = not kind.any()  # the points are as many, as they are sorted, on both sides of the lattice point
        if paired:
            half = slice(len(points) // 2, None)
            points, weights = points[half], 2 * weights[half]
        moves = points / subdivide
        found.append((order[before:end], WaveMean(kind / subdivide + moves, weights, moves, paired)))
    return found


_ROWS, _COLUMNS = np.tril_indices(6)


def _packed(forms: np.ndarray) -> np.ndarray:
    """(k, d²) float64 of Hermitian matrices, (k, d, d): v† M v is the product with :func:`_squares` of v."""
    i, j = np.triu_indices(forms.shape[1], 1)
    off = forms[:, i, j]
    return np.concatenate([np.einsum("kii->ki", forms).real, 2 * off.real, -2 * off.imag], axis=1)


def _squares(v: np.ndarray) -> np.ndarray:
    """(n, d²) float64; v : (n, d)"""
    result = np.empty((len(v), v.shape[1] ** 2))
    hermitian_squares(np.ascontiguousarray(v.real), np.ascontiguousarray(v.imag), result)
    return result
