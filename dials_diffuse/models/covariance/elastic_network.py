"""Covariance of the displacements of groups on springs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.checks import choice, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_centres

NETWORKS = ("gaussian", "anisotropic")

#: eigenvalues of the springs' matrix below this fraction of the largest are those of free motions
_FREE = 1e-8


@dataclass(frozen=True)
class ElasticNetwork:
    """Springs of equal stiffness between the centres of groups that are near to each other; V = kT K^-1.

    Attributes
    ----------
    network : ``gaussian``: K is the Kirchhoff matrix of the contacts, displacements are isotropic; ``anisotropic``:
        K is the matrix of second derivatives of springs along the contacts
    cutoff : Å, up to which two groups are in contact
    crystal_contacts : springs also to symmetry copies. Those outside of what moves together, the molecule or a block
        of cells, are held still, so that it cannot move freely. Without them motions that stretch no spring, such as
        those of a molecule as a whole, are left out.
    crystal_stiffness : of the springs to symmetry copies, in units of that of the others

    Source: Bahar, Atilgan & Erman 1997, Fold. Des. 2, 173; Atilgan et al. 2001, Biophys. J. 80, 505
    """

    network: str = "gaussian"
    cutoff: float = 8.0
    crystal_contacts: bool = True
    crystal_stiffness: float = 1.0

    def __post_init__(self):
        choice("elastic_network.network", self.network, NETWORKS)
        positive("elastic_network.cutoff", self.cutoff)
        positive("elastic_network.crystal_stiffness", self.crystal_stiffness)

    def covariance(
        self, structure: Structure, labels: np.ndarray, sigma: float | None, supercell: tuple = (1, 1, 1)
    ) -> np.ndarray:
        """V of the groups of one molecule, or of a block of cells.

        Parameters
        ----------
        structure : asymmetric unit, or the content of a block in P 1 with a number of its own for each ``copy``
        labels : (n,) int64, group of each atom
        supercell : cells in a block along a, b, c: it repeats with so many of them
        sigma : Å, rms displacement along one direction, over all groups; sets the stiffness. None: that of the atoms'
            U in the structure.

        Returns
        -------
        (g, g) or (g, g, 3, 3) float64, Å²

        Raises
        ------
        DiffuseError
            If nothing is in contact.
        """
        mean_square = self.mean_square(structure) if sigma is None else positive("covariance.sigma", sigma) ** 2
        centres = group_centres(structure, labels)
        flexible = self._inverse(self.stiffness(structure, centres, copies_of(structure, labels), supercell))
        return self._of_groups(flexible * (mean_square / np.mean(np.diag(flexible))), len(centres))

    def derivatives(
        self, structure: Structure, labels: np.ndarray, sigma: float, supercell: tuple = (1, 1, 1)
    ) -> tuple:
        """V, its derivatives by sigma and by the stiffness of the springs to symmetry copies, and second derivatives.

        For the inverse C of K = K_0 + c X: dC/dc = -C X C. V is sigma² C over the mean of its diagonal.

        Returns
        -------
        covariance : as from :meth:`covariance`
        first : list of two such arrays
        second : dict of three, for [0, 0], [1, 0] and [1, 1]
        """
        centres = group_centres(structure, labels)
        copies = copies_of(structure, labels)
        c = self._inverse(self.stiffness(structure, centres, copies, supercell))
        crystal = self._crystal_springs(structure, centres, copies, supercell)
        c1 = -c @ crystal @ c
        c2 = -2 * c @ crystal @ c1
        t, t1, t2 = (np.mean(np.diag(x)) for x in (c, c1, c2))
        v = c / t
        v1 = (c1 - v * t1) / t
        v2 = (c2 - v * t2 - 2 * v1 * t1) / t

        def finished(x):
            return self._of_groups(x, len(centres))

        first = [finished(2 * sigma * v), finished(sigma**2 * v1)]
        second = {(0, 0): finished(2 * v), (1, 0): finished(2 * sigma * v1), (1, 1): finished(sigma**2 * v2)}
        return finished(sigma**2 * v), first, second

    def _inverse(self, stiffness: np.ndarray) -> np.ndarray:
        """K^-1 without free motions."""
        values, vectors = np.linalg.eigh(stiffness)
        moving = values > _FREE * max(values[-1], 1e-300)
        if not moving.any():
            raise DiffuseError(
                f"elastic_network.cutoff={self.cutoff:g}: no two of {len(stiffness)} groups are that near; choose a "
                "larger one"
            )
        scaled = vectors[:, moving] / np.sqrt(values[moving])
        return scaled @ scaled.T

    def _of_groups(self, matrix: np.ndarray, n: int) -> np.ndarray:
        if self.network == "gaussian":
            return matrix
        return np.ascontiguousarray(matrix.reshape(n, 3, n, 3).transpose(0, 2, 1, 3))

    def mean_square(self, structure: Structure) -> float:
        """Mean U of the atoms, Å²."""
        return float(np.average(structure.u_iso, weights=structure.occupancy))

    def stiffness(
        self, structure: Structure, centres: np.ndarray, copies: np.ndarray | None = None, supercell: tuple = (1, 1, 1)
    ) -> np.ndarray:
        """(g, g) or (3g, 3g) float64, second derivatives of the energy in units of a spring's stiffness.

        centres : (g, 3) float64, Å, of the groups; copies : (g,) integers, the molecule of each, by default one
        """
        copies = np.zeros(len(centres), dtype=int) if copies is None else copies
        pairs = cKDTree(centres).query_pairs(self.cutoff, output_type="ndarray")
        inside = self._springs(centres, pairs[copies[pairs[:, 0]] == copies[pairs[:, 1]]])
        return inside + self.crystal_stiffness * self._crystal_springs(structure, centres, copies, supercell)

    def _crystal_springs(self, structure: Structure, centres: np.ndarray, copies: np.ndarray, supercell: tuple):
        """The part of the springs to symmetry copies in the matrix of second derivatives, of stiffness 1."""
        if not self.crystal_contacts:
            return self._springs(centres, np.zeros((0, 2), dtype=int))
        pairs = cKDTree(centres).query_pairs(self.cutoff, output_type="ndarray")
        moving = self._springs(centres, pairs[copies[pairs[:, 0]] != copies[pairs[:, 1]]])
        held, direction = self._crystal_contacts(structure, centres, np.array(supercell))
        blocks = np.zeros((len(centres), len(centres), *self._block(np.ones((1, 3))).shape[1:]))
        np.add.at(blocks, (held, held), self._block(direction))
        return moving + self._as_matrix(blocks)

    def _springs(self, centres: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """The matrix of second derivatives for springs between pairs of groups, (m, 2), both of which move."""
        n = len(centres)
        first, second = pairs[:, 0], pairs[:, 1]
        blocks = np.zeros((n, n, *self._block(np.ones((1, 3))).shape[1:]))
        inner = self._block(centres[first] - centres[second])
        blocks[first, second] = blocks[second, first] = -inner
        diagonal = np.zeros((n, *blocks.shape[2:]))
        np.add.at(diagonal, first, inner)
        np.add.at(diagonal, second, inner)
        blocks[np.arange(n), np.arange(n)] = diagonal
        return self._as_matrix(blocks)

    def _as_matrix(self, blocks: np.ndarray) -> np.ndarray:
        n = len(blocks)
        return blocks if self.network == "gaussian" else blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)

    def _block(self, direction: np.ndarray) -> np.ndarray:
        """The spring's part in the matrix of second derivatives, (m,) or (m, 3, 3)."""
        if self.network == "gaussian":
            return np.ones(len(direction))
        unit = direction / np.linalg.norm(direction, axis=1)[:, None]
        return unit[:, :, None] * unit[:, None, :]

    def _crystal_contacts(self, structure: Structure, centres: np.ndarray, supercell: np.ndarray) -> tuple:
        """(m,) groups in contact with one outside of the molecule or block, and (m, 3) vectors to it in Å."""
        o = structure.orthogonalization * supercell
        fractional = centres @ np.linalg.inv(o).T
        reach = self.cutoff * np.linalg.norm(np.linalg.inv(o), axis=1)  # of the cutoff along the axes of the cell
        low, high = fractional.min(axis=0) - reach, fractional.max(axis=0) + reach
        tree = cKDTree(centres)
        held: list = []
        direction: list = []
        for number, operator in enumerate(structure.space_group):
            turned = fractional @ np.array(operator.r().as_double()).reshape(3, 3).T + operator.t().as_double()
            first = np.ceil(low - turned.max(axis=0)).astype(int)
            last = np.floor(high - turned.min(axis=0)).astype(int)
            for shift in np.ndindex(*np.maximum(last - first + 1, 0)):
                shift = np.array(shift) + first
                if number == 0 and not shift.any():
                    continue
                copy = (turned + shift) @ o.T
                for other, near in zip(copy, tree.query_ball_point(copy, self.cutoff)):
                    near = [k for k in near if np.linalg.norm(other - centres[k]) > 1e-3]
                    held.extend(near)
                    direction.extend(other - centres[k] for k in near)
        return np.array(held, dtype=int), np.array(direction).reshape(-1, 3)


def copies_of(structure: Structure, labels: np.ndarray) -> np.ndarray:
    """(g,) which copy of the molecule each group belongs to."""
    return structure.copy[np.unique(labels, return_index=True)[1]]
