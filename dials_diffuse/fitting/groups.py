"""The covariance of every pair of groups, fitted to a map with a prior that falls off with distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import correlation, shell_residual
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.models.group_covariance import GroupCovariance

#: V starts this much more definite than the prior, relative to its mean variance: L of a singular V has no derivative
_RIDGE = 1e-3


@dataclass(frozen=True)
class GroupFit:
    """Fitted covariance of groups.

    Attributes
    ----------
    covariance : (g, g) float64, V in Å², positive semidefinite
    scale : k
    background : (n,) float64, b at all voxels
    intensity : (n,) float64, I_calc at all voxels
    strength : of the prior; trials : (strength, correlation on free voxels, on the others) of each that was tried
    iterations : of the minimisation that is kept
    converged : bool, did it end before max_iterations?
    """

    covariance: np.ndarray
    scale: float
    background: np.ndarray
    intensity: np.ndarray
    strength: float
    trials: tuple
    iterations: int
    converged: bool


def fit_groups(
    data: FitData,
    groups: GroupCovariance,
    prior: np.ndarray,
    strengths=(1.0,),
    scale: float | None = None,
    n_background: int = 10,
    max_iterations: int = 200,
) -> GroupFit:
    """Minimise chi² / its value at the prior + strength times the mean square deviation from the prior.

    V = LLᵀ, L a lower triangle, by L-BFGS; scale and background are eliminated as for all models. The deviation of each
    element is relative to the geometric mean of the prior's variances. Of several strengths the one with the best
    correlation on free voxels is kept; each starts from the result of the one before, the strongest first.

    Parameters
    ----------
    groups : at all voxels of the data, isotropic
    prior : (g, g) float64, Å², for example of a kernel that was fitted
    strengths : positive, or 0 for none
    scale : hold k at this value; None: fit it

    Raises
    ------
    DiffuseError
        If the prior is not positive semidefinite, or voxels are to choose a strength and none is free.
    """
    prior = np.asarray(prior, dtype=float)
    values = np.linalg.eigvalsh(prior)
    if values[0] < -1e-9 * values[-1] or values[-1] <= 0:
        raise DiffuseError("the prior of the covariance of groups is not positive semidefinite")
    if len(strengths) > 1 and not data.free.any():
        raise DiffuseError("several strengths of the prior: free voxels choose one; set free_fraction")
    work = ~data.free
    background = Background(data.s, n_background)
    projection = Projection(data.intensity[work], 1 / data.sigma[work] ** 2, background.at(work), scale)
    observed = shell_residual(data.intensity, data.s)
    objective = _Objective(groups, projection, data.sigma, work, prior)
    root = np.linalg.cholesky(prior + _RIDGE * np.trace(prior) / len(prior) * np.eye(len(prior)))
    x = root[objective.triangle]
    trials, best = [], None
    for strength in sorted(strengths, reverse=True):
        result = minimize(
            objective,
            x,
            args=(strength,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "maxcor": 30, "ftol": 1e-10, "gtol": 1e-9},
        )
        x = result.x
        v = objective.covariance(x)
        intensity = groups.intensity(v)
        solved = projection.solve(intensity[work])
        b = background.values(solved.background) if n_background else np.zeros(data.n)
        residual = shell_residual(solved.scale * intensity + b, data.s)
        ccs = [correlation(observed[use], residual[use]) for use in (data.free, work)]
        trials.append((strength, *ccs))
        if best is None or ccs[0] > best[0]:
            found = v, solved.scale, b, intensity, strength, result.nit, bool(result.nit < max_iterations)
            best = ccs[0], found
    *result, iterations, converged = best[1]
    return GroupFit(*result, tuple(trials), iterations, converged)


class _Objective:
    """Value and gradient by the lower triangle of L."""

    def __init__(self, groups: GroupCovariance, projection: Projection, sigma, work, prior):
        self._groups, self._projection, self._work, self._prior = groups, projection, work, prior
        self.triangle = np.tril_indices(len(prior))
        size = np.sqrt(np.diag(prior))
        self._size = np.outer(size, size)
        self._weights = 1 / sigma[work] ** 2
        self._unit = projection.objective(groups.intensity(prior)[work])

    def covariance(self, x: np.ndarray) -> np.ndarray:
        root = self._root(x)
        return root @ root.T

    def __call__(self, x: np.ndarray, strength: float) -> tuple:
        root = self._root(x)
        v = root @ root.T
        solved = self._projection.solve(self._groups.intensity(v)[self._work])
        slopes = np.zeros(self._groups.n)
        slopes[self._work] = -2 * solved.scale * self._weights * solved.residual / self._unit
        deviation = (v - self._prior) / self._size
        value = solved.objective / self._unit + strength * np.mean(deviation**2)
        gradient = self._groups.vjp(v, slopes) + 2 * strength * deviation / self._size / v.size
        return value, (2 * gradient @ root)[self.triangle]

    def _root(self, x: np.ndarray) -> np.ndarray:
        root = np.zeros(self._prior.shape)
        root[self.triangle] = x
        return root
