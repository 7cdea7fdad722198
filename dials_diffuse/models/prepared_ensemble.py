"""An ensemble at fixed voxels as a function of the members' probabilities."""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.prepared import Prepared, half_of
from dials_diffuse.structure.atoms import Structure


class PreparedEnsemble(Prepared):
    """I = c (sum_k p_k |D_k|² - |sum_k p_k D_k|²) + sum_k p_k S_k, c = 1 / (1 - sum_k p_k²).

    D_k is the structure factor of member k less that of the first, S_k what its atoms add by themselves. Parameters are
    p_2 ... p_N; p_1 is the rest, so that the sum of all is 1.

    Parameters
    ----------
    model : Ensemble
    index : (n, 3) int64, inside 1/d_min of the grid
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray):
        self.origin, self.structure = model, structure
        self.parameters = model.parameters(structure)
        members, grid = model.on_grid(grid)
        operators = half_of(laue_operators(grid.space_group, friedel=True))
        keys = [grid.key(index @ r) for r in operators]
        scale = np.sqrt(model.copies / len(keys))
        # (members - 1, mates, n): the mean over mates and the number of copies are in the amplitudes
        self._amplitudes = np.empty((len(members) - 1, len(keys), len(index)), dtype=np.complex128)
        for mine, difference in zip(self._amplitudes, model.differences(members, grid)):
            for row, k in zip(mine, keys):
                row[:] = scale * difference.reshape(-1)[k]
        self._squares = np.array([np.sum(mine.real**2 + mine.imag**2, axis=0) for mine in self._amplitudes])
        own = [sum(v.reshape(-1)[k] for k in keys) / len(keys) for v in model.own_motions(members, grid)]
        self._own = np.array(own) if own else np.zeros((len(members), len(index)))

    @staticmethod
    def memory(model, n: int) -> int:
        """Bytes of the amplitudes at n voxels."""
        mates = len(half_of(laue_operators(model.members[0].space_group, friedel=True)))
        return 16 * (len(model.members) - 1) * mates * n

    def jacobian(self, values) -> tuple:
        p, variance, slopes = self._variance(values)
        c, c1, _ = self._factor(p)
        own = self._own[1:] - self._own[0]
        return c * variance + self._own[0] + p @ own, (c * slopes + np.outer(c1, variance) + own).T

    def second(self, values, weights) -> np.ndarray:
        p, variance, slopes = self._variance(values)
        c, c1, c2 = self._factor(p)
        flat = self._amplitudes.reshape(len(p), -1)  # a copy of all would be too large
        products = np.array([(flat @ (mine.conj() * weights).reshape(-1)).real for mine in self._amplitudes])
        cross = np.outer(c1, slopes @ weights)
        return -2 * c * products + cross + cross.T + c2 * (weights @ variance)

    def _variance(self, values) -> tuple:
        """p_2 ..., the variance of F, (n,), and its derivatives, (N - 1, n)."""
        p = self._checked(values)
        mean = np.tensordot(p, self._amplitudes, axes=1)
        variance = p @ self._squares - np.sum(mean.real**2 + mean.imag**2, axis=0)
        cross = [np.sum(mine.real * mean.real + mine.imag * mean.imag, axis=0) for mine in self._amplitudes]
        slopes = self._squares - 2 * np.array(cross)
        return p, variance, slopes

    @staticmethod
    def _factor(p: np.ndarray) -> tuple:
        """c and its first and second derivatives by p_2 ..."""
        first = 1 - p.sum()
        c = 1 / (1 - first**2 - p @ p)
        slope = 2 * (p - first)
        return c, c**2 * slope, 2 * c**3 * np.outer(slope, slope) + c**2 * 2 * (np.eye(len(p)) + 1)
