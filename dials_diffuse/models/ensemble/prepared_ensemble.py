"""An ensemble at fixed voxels as a function of the members' probabilities."""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.prepared import Prepared, half_of
from dials_diffuse.structure.crystal import Structure

#: points of the lattice of half voxels for each voxel, with those at the rim
_POINTS = 9


class PreparedEnsemble(Prepared):
    """I = c (sum_k p_k |D_k|² - |sum_k p_k D_k|²) + sum_k p_k S_k, c = 1 / (1 - sum_k p_k²).

    D_k is the structure factor of member k less that of the first, S_k what its atoms add by themselves. Parameters are
    p_2 ... p_N; p_1 is the rest, so that the sum of all is 1.

    Parameters
    ----------
    model : Ensemble
    index : (n, 3) int64, inside 1/d_min of the grid
    weights : (n, m) sparse matrix: ``index`` are m points, and the intensity the means of theirs; None: n = m
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray, weights=None):
        self.origin, self.structure = model, structure
        self.parameters = model.parameters(structure)
        members, grid = model.on_grid(grid)
        operators = half_of(laue_operators(grid.space_group, friedel=True))
        keys = [grid.key(index @ r) for r in operators]
        scale = np.sqrt(model.copies / len(keys))
        # (members - 1, mates, n): the mean over mates and the number of copies are in the amplitudes
        amplitudes = np.empty((len(members) - 1, len(keys), len(index)), dtype=np.complex128)
        for mine, difference in zip(amplitudes, model.differences(members, grid)):
            for row, k in zip(mine, keys):
                row[:] = scale * difference.reshape(-1)[k]
        self.means = weights is not None
        self._amplitudes = _Products(amplitudes, weights) if self.means else _Amplitudes(amplitudes)
        own = [sum(v.reshape(-1)[k] for k in keys) / len(keys) for v in model.own_motions(members, grid)]
        own = np.array(own) if own else np.zeros((len(members), len(index)))
        self._own = (weights @ own.T).T if self.means else own

    @staticmethod
    def memory(model, n: int, means: bool = False) -> int:
        """Bytes of the amplitudes at n voxels, roughly; of means also of their products."""
        mates = len(half_of(laue_operators(model.members[0].space_group, friedel=True)))
        number = len(model.members) - 1
        if not means:
            return 16 * number * mates * n
        return 16 * number * mates * _POINTS * n + 4 * number * (number + 1) * n

    def jacobian(self, values) -> tuple:
        p, variance, slopes = self._variance(values)
        c, c1, _ = self._factor(p)
        own = self._own[1:] - self._own[0]
        return c * variance + self._own[0] + p @ own, (c * slopes + np.outer(c1, variance) + own).T

    def second(self, values, weights) -> np.ndarray:
        p, variance, slopes = self._variance(values)
        c, c1, c2 = self._factor(p)
        cross = np.outer(c1, slopes @ weights)
        return -2 * c * self._amplitudes.weighted(weights) + cross + cross.T + c2 * (weights @ variance)

    def _variance(self, values) -> tuple:
        """p_2 ..., the variance of F, (n,), and its derivatives, (N - 1, n)."""
        p = self._checked(values)
        mean, cross = self._amplitudes.mean(p)
        squares = self._amplitudes.squares
        return p, p @ squares - mean, squares - 2 * cross

    @staticmethod
    def _factor(p: np.ndarray) -> tuple:
        """c and its first and second derivatives by p_2 ..."""
        first = 1 - p.sum()
        c = 1 / (1 - first**2 - p @ p)
        slope = 2 * (p - first)
        return c, c**2 * slope, 2 * c**3 * np.outer(slope, slope) + c**2 * 2 * (np.eye(len(p)) + 1)


class _Amplitudes:
    """D_k, (M, mates, n) complex128, and sums over mates of their products."""

    def __init__(self, values: np.ndarray):
        self._values = values
        self.squares = np.array([np.sum(mine.real**2 + mine.imag**2, axis=0) for mine in values])

    def mean(self, p: np.ndarray) -> tuple:
        """|sum_k p_k D_k|², (n,), and half its derivatives by p, (M, n)."""
        mean = np.tensordot(p, self._values, axes=1)
        cross = [np.sum(mine.real * mean.real + mine.imag * mean.imag, axis=0) for mine in self._values]
        return np.sum(mean.real**2 + mean.imag**2, axis=0), np.array(cross)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """(M, M) float64, sum over n of weights times the real part of D_k conj(D_l)."""
        flat = self._values.reshape(len(self._values), -1)  # a copy of all would be too large
        return np.array([(flat @ (mine.conj() * weights).reshape(-1)).real for mine in self._values])


class _Products:
    """Sums over mates of the products of D_k averaged over voxels: each product of two is averaged once.

    values : (M, mates, m) complex128, D_k at m points; weights : (n, m) sparse matrix, from the points to means
    """

    def __init__(self, values: np.ndarray, weights):
        self._first, self._second = np.tril_indices(len(values))
        self._values = np.empty((len(self._first), weights.shape[0]))
        for row, k, m in zip(self._values, self._first, self._second):
            one, other = values[k], values[m]
            row[:] = weights @ np.sum(one.real * other.real + one.imag * other.imag, axis=0)
        self.squares = self._values[self._first == self._second]

    def mean(self, p: np.ndarray) -> tuple:
        number, pairs = len(p), np.arange(len(self._first))
        slopes = np.zeros((number, len(pairs)))
        slopes[self._second, pairs] = p[self._first]
        slopes[self._first, pairs] = p[self._second]
        cross = slopes @ self._values
        return p @ cross, cross

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        result = np.empty((self._first[-1] + 1,) * 2)
        result[self._first, self._second] = result[self._second, self._first] = self._values @ weights
        return result
