"""Intensity as a function of the covariance of groups of atoms, with derivatives by all of its elements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.models.covariance.group_scattering import BLOCK, GroupScattering

ADPS = ("held", "free")


class GroupCovariance(ABC):
    """I(q; V) at fixed q, where atoms move with the displacement of their group, <d_a d_bᵀ> = V_ab.

    I = sum over symmetry copies of the molecule of sum_ab F_a conj(F_b) K_ab + uncorrelated part, with V turned by the
    operator of the copy. Nothing is correlated between copies.

    - ``adp=held``: atoms have the displacements U of the structure, of which V_aa is the part that their group shares.
      F with Debye-Waller factors; K = exp(q V_ab q) - 1; each atom's own term stays |f|² (1 - exp(-qUq)).
    - ``adp=free``: U of the structure is what an atom has besides its group; all Debye-Waller factors change with V.
      K = exp(q (V_ab - V_aa/2 - V_bb/2) q) - exp(-q (V_aa + V_bb) q / 2).

    With one atom in each group and no U in the structure the latter is the plain pair sum.

    Derivatives by the matrix V are matrices D of the same shape with dI = sum over all a, b of D_ab dV_ab, symmetric
    as V is; of tensors only the symmetric part acts on I, and D is symmetric in both pairs of indices.

    Attributes
    ----------
    n : number of points
    shape : of V: (g, g) of numbers, (g, g, 3, 3) of tensors
    means : is the intensity averaged over voxels?

    Source: docs/theory.md, covariance
    """

    #: numbers that V has for each pair of groups
    elements = 1

    def __init__(self, scattering: GroupScattering, free: bool):
        self.n, self.means, self._free = scattering.n, scattering.means, free
        self._g = scattering.g
        self._first, self._second = np.tril_indices(self._g)
        self._order, self._x, self._constant = scattering.order, scattering.x, scattering.constant

    @property
    @abstractmethod
    def shape(self) -> tuple: ...

    @abstractmethod
    def intensity(self, v) -> np.ndarray:
        """(n,) float64, electrons² per unit cell"""

    @abstractmethod
    def jvp(self, v, dv) -> np.ndarray:
        """(n,) float64, change of the intensity along dv, symmetric, of the shape of V."""

    @abstractmethod
    def gradient_of_pairs(self, v, r) -> np.ndarray:
        """Derivatives of the sum of r I by V_ab with a >= b, V_ba changing with it.

        r : (n,) float64

        Returns
        -------
        (g (g + 1) / 2,) float64, or (g (g + 1) / 2, 6) by the elements of tensors; order of np.tril_indices
        """

    def vjp(self, v, r) -> np.ndarray:
        """:meth:`gradient_of_pairs` as a matrix of the shape of V."""
        return self._as_matrix(self.gradient_of_pairs(v, r))

    @abstractmethod
    def hvp(self, v, r, dv) -> np.ndarray:
        """Change of :meth:`vjp` along dv: the second derivatives of the sum of r I times dv."""

    def gauss_newton(self, v, w, dv) -> np.ndarray:
        """Jᵀ w J dv, J the derivatives of I by V; w : (n,) float64"""
        return self.vjp(v, w * self.jvp(v, dv))

    @abstractmethod
    def jacobian(self, v, rows=slice(None)) -> np.ndarray:
        """(n, P) float64, derivatives of I by v_ab, a >= b, P = g (g + 1) / 2; of tensors by six elements of each.

        rows : of the points in ascending order of |s|
        """

    def normal_matrix(self, v, w, r=None) -> np.ndarray:
        """Sum over n of w J Jᵀ, J as in :meth:`jacobian`, plus that of r times the second derivatives.

        For few groups: (P, P) float64, or (6 P, 6 P) of tensors, which have no r.
        """
        number = len(self._first) * self.elements
        result = np.zeros((number, number))
        w = np.asarray(w)[self._order]
        for rows in self._blocks(0, self.n):
            part = self.jacobian(v, rows)
            result += (part.T * w[rows]) @ part
        return result if r is None else result + self._second_derivatives(v, r)

    @abstractmethod
    def _second_derivatives(self, v, r) -> np.ndarray:
        """(P, P) float64, of the sum of r I by v_ab, a >= b."""

    def _blocks(self, start: int, stop: int) -> Iterator[slice]:
        step = max(1, BLOCK // self._g**2)
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))

    def _as_matrix(self, pairs: np.ndarray) -> np.ndarray:
        """Derivatives by pairs as a symmetric matrix of the shape of V: half of each to V_ab, half to V_ba."""
        matrix = np.zeros(self.shape)
        np.add.at(matrix, (self._first, self._second), 0.5 * pairs)
        np.add.at(matrix, (self._second, self._first), 0.5 * pairs)
        return matrix

    def _restored(self, values: np.ndarray) -> np.ndarray:
        """In the order of the points given."""
        result = np.empty_like(values)
        result[self._order] = values
        return result

    def _checked(self, v) -> np.ndarray:
        v = np.asarray(v, dtype=float)
        if v.shape != self.shape:
            raise DiffuseError(f"covariance: shape {v.shape}, needed {self.shape}")
        return v
