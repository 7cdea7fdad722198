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
        self._amplitudes = np.array(
            [[scale * difference.reshape(-1)[k] for k in keys] for difference in model.differences(members, grid)]
        )
        self._squares = np.sum(self._amplitudes.real**2 + self._amplitudes.imag**2, axis=1)
        own = [sum(v.reshape(-1)[k] for k in keys) / len(keys) for v in model.own_motions(members, grid)]
        self._own = np.array(own) if own else np.zeros((len(members), len(index)))

    def jacobian(self, values) -> tuple:
        p, variance, slopes = self._variance(values)
        c, c1, _ = self._factor(p)
        own = self._own[1:] - self._own[0]
        return c * variance + self._own[0] + p @ own, (c * slopes + np.outer(c1, variance) + own).T

    def second(self, values, weights) -> np.ndarray:
        p, variance, slopes = self._variance(values)
        c, c1, c2 = self._factor(p)
        flat = self._amplitudes.reshape(len(p), -1)
        weighted = (self._amplitudes * weights).reshape(len(p), -1)
        cross = np.outer(c1, slopes @ weights)
        return -2 * c * (flat.conj() @ weighted.T).real + cross + cross.T + c2 * (weights @ variance)

    def _variance(self, values) -> tuple:
        """p_2 ..., the variance of F, (n,), and its derivatives, (N - 1, n)."""
        p = self._checked(values)
        mean = np.tensordot(p, self._amplitudes, axes=1)
        variance = p @ self._squares - np.sum(mean.real**2 + mean.imag**2, axis=0)
        slopes = self._squares - 2 * np.sum((self._amplitudes.conj() * mean).real, axis=1)
        return p, variance, slopes

    @staticmethod
    def _factor(p: np.ndarray) -> tuple:
        """c and its first and second derivatives by p_2 ..."""
        first = 1 - p.sum()
        c = 1 / (1 - first**2 - p @ p)
        slope = 2 * (p - first)
        return c, c**2 * slope, 2 * c**3 * np.outer(slope, slope) + c**2 * 2 * (np.eye(len(p)) + 1)
