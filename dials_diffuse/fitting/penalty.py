"""Fits of models whose parameters a prior holds: of several strengths, voxels that are kept out choose one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.linear import Linear, Projection, reduced

#: of the spread of other starts, natural logarithm
_SPREAD = 0.35
#: parts of the blocks of voxels, each of which is predicted once from the others
_FOLDS = 10
#: of the diagonal: directions that the other folds leave free do not move
_LEFT_FREE = 1e-12
#: parameters, or parts of them, that data tell together, from which on their spread can be known
_TOLD = 1.0


@dataclass(frozen=True, eq=False)
class PriorResult:
    """What a prior did to a fit.

    Attributes
    ----------
    strength : that was taken; chi² of the start times this, over the number of parameters that the prior holds, is the
        weight of its squares beside chi²
    trials : (strength, correlation on free voxels, on the others, on these as predicted from the other folds) of each
        that was tried
    share : (p,) float64, how much of each parameter comes from the data: 1 all, 0 nothing, all from the prior
    n_effective : sum of the shares, the number of parameters that the data fit
    spread : rms of the true parameters that the fit tells, in the units of the prior's squares; NaN if it does not

    Notes
    -----
    With A the data's Gauss-Newton matrix and R the prior's, where the truth changes by dx, the fit changes by
    (A + R)^-1 A dx; the shares are the diagonal of this matrix.
    """

    strength: float
    trials: tuple
    share: np.ndarray
    n_effective: float
    spread: float


class PenalisedWork:
    """A prepared model with the values themselves below its intensities, see :class:`PenalisedProjection`.

    work : has the ``intensity``, ``jacobian``, ``second``, ``parameters`` and ``tensors`` of a Prepared
    """

    def __init__(self, work):
        self._work, self.parameters, self.tensors = work, work.parameters, work.tensors

    def intensity(self, values) -> np.ndarray:
        return np.concatenate([self._work.intensity(values), values])

    def jacobian(self, values) -> tuple:
        intensity, jacobian = self._work.jacobian(values)
        return np.concatenate([intensity, values]), np.concatenate([jacobian, np.eye(len(values))])

    def second(self, values, weights) -> np.ndarray:
        return self._work.second(values, weights)


class PenalisedProjection:
    """The objective of a Projection, and that of the prior: weight times the sum of squares of rows @ values.

    What it is given as intensities and derivatives are those of :class:`PenalisedWork`.

    Parameters
    ----------
    projection : of n voxels
    rows : (p, p) float64, of the Prior
    weight : of its squares beside chi²
    """

    def __init__(self, projection: Projection, rows: np.ndarray, weight: float):
        self._inner, self._rows, self._weight = projection, rows, weight
        self.n_linear = projection.n_linear

    def solve(self, intensity: np.ndarray) -> Linear:
        return self._inner.solve(self._split(intensity)[0])

    def objective(self, intensity: np.ndarray) -> float:
        intensity, values = self._split(intensity)
        return self._inner.objective(intensity) + self._weight * float(np.sum((self._rows @ values) ** 2))

    def normal(self, intensity: np.ndarray, jacobian: np.ndarray) -> tuple:
        (intensity, values), (slopes, changes) = self._split(intensity), self._split(jacobian)
        gradient, matrix = self._inner.normal(intensity, slopes)
        rows = self._rows @ changes
        return gradient + self._weight * (rows.T @ (self._rows @ values)), matrix + self._weight * (rows.T @ rows)

    def hessian(self, intensity: np.ndarray, jacobian: np.ndarray, second) -> np.ndarray:
        (intensity, _), (slopes, changes) = self._split(intensity), self._split(jacobian)
        hessian, rows = self._inner.hessian(intensity, slopes, second), self._rows @ changes
        hessian[: rows.shape[1], : rows.shape[1]] += self._weight * (rows.T @ rows)
        return hessian

    def shares(self, intensity: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
        """(p,) float64, how much of each parameter comes from the data."""
        (intensity, _), (slopes, changes) = self._split(intensity), self._split(jacobian)
        p = slopes.shape[1]
        data = reduced(self._inner.hessian(intensity, slopes, lambda weights: np.zeros((p, p))), p)
        rows = self._rows @ changes
        prior = self._weight * (rows.T @ rows)
        scale = np.sqrt(np.maximum(np.diag(data + prior), 1e-300))
        both, data = ((m / np.outer(scale, scale)) for m in (data + prior, data))
        return np.clip(np.diag(np.linalg.pinv(both, rcond=1e-13, hermitian=True) @ data), 0.0, 1.0)

    def held_out(self, intensity: np.ndarray, jacobian: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """(n,) float64, what is added to the fitted values of each voxel if those of its fold were not fitted.

        A Gauss-Newton step from the minimum of all, so that all folds together cost less than a fit. The background
        stays.

        Parameters
        ----------
        fold : (n,) int64
        """
        (intensity, _), (slopes, changes) = self._split(intensity), self._split(jacobian)
        columns, rest, root = self._inner.columns(intensity, slopes)
        rows = np.zeros((len(self._rows), columns.shape[1]))
        rows[:, : slopes.shape[1]] = self._rows @ changes
        whole = columns.T @ columns + self._weight * (rows.T @ rows)
        result = np.empty(len(rest))
        for k in np.unique(fold):
            own = fold == k
            mine = columns[own]
            others = whole - mine.T @ mine
            scale = np.sqrt(np.maximum(np.diag(whole), 1e-300))
            inverse = np.linalg.pinv(others / np.outer(scale, scale), rcond=_LEFT_FREE, hermitian=True)
            step = -(inverse @ ((mine.T @ rest[own]) / scale)) / scale
            result[own] = (mine @ step) / root[own]
        return result

    def left_open(self, values: np.ndarray, covariance: np.ndarray, chi2: float) -> tuple:
        """What a prior that is too strong adds to the errors, as it pulls parameters from where they are.

        Parameters
        ----------
        values : (p,) float64, at the minimum
        covariance : (p, p) float64, chi2 C, C the inverse of half the Hessian, prior included

        Returns
        -------
        (p, p) float64, to be added to the covariance, and the spread of :class:`PriorResult`

        Notes
        -----
        Parameters x of mean 0 and variance v by the prior's metric M, R = weight M, are found as x - C R x + noise,
        of variance chi2 C A C, A = C^-1 - R. So v follows from the size of what was found, and the errors' covariance
        is chi2 C A C + v weight C R C: chi2 C if the weight is that of v. Weaker than chi2 C it is not taken.
        """
        metric = self._rows.T @ self._rows
        if self._weight == 0 or not np.all(np.isfinite(covariance)):
            return np.zeros_like(covariance), math.nan
        inverse = covariance / chi2
        pulled = self._weight * inverse @ metric
        kept = np.eye(len(values)) - pulled
        noise = chi2 * float(np.sum(metric * (kept @ inverse)))
        told = float(np.sum((metric @ kept) * (kept @ np.linalg.pinv(metric, rcond=1e-10, hermitian=True))))
        found = float(np.sum((self._rows @ values) ** 2)) - noise
        spread2 = found / told if told > _TOLD else math.nan
        more = self._weight * spread2 - chi2
        if not more > 0:
            return np.zeros_like(covariance), math.sqrt(max(spread2, 0.0))
        return more * pulled @ inverse, math.sqrt(spread2)

    def _split(self, values: np.ndarray) -> tuple:
        n = len(values) - len(self._rows)
        return values[:n], values[n:]


def folds_of(block: np.ndarray, seed: int) -> np.ndarray:
    """(n,) int64, a fold of each voxel, at random; voxels of a block are in the same one."""
    names, number = np.unique(block, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % _FOLDS)[number.reshape(-1)]


def other_starts(values: np.ndarray, metric: np.ndarray, number: int, seed: int) -> list:
    """Random values of the parameters that a prior holds, the others as they are.

    metric : (p,) float64, of the Prior
    """
    rng = np.random.default_rng(seed)
    return [np.where(metric > 0, _SPREAD * rng.normal(size=len(values)), values) for _ in range(number)]
