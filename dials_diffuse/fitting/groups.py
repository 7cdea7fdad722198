"""The covariance of every pair of groups, fitted to a map with a prior that falls off with distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import correlation, shell_residual
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.pair_freedom import PairFreedom, pair_freedom
from dials_diffuse.fitting.pair_minimisers import MOST_ELEMENTS, chosen, minimise_pairs
from dials_diffuse.fitting.pair_objective import PairObjective, Sample
from dials_diffuse.models.group_covariance import GroupCovariance
from dials_diffuse.models.motion import flattened

#: voxels from which second derivatives are estimated: so many, and so many times the number of elements of V
_FEWEST_SAMPLED = 10000
_SAMPLED_PER_ELEMENT = 2
#: elements of V up to which it is asked what the data determine
_MOST_KNOWN = 6000
#: relative gain of a step at which L-BFGS ends; of many elements the last digits cost minutes, and are noise
_FTOL, _FTOL_MANY = 1e-8, 1e-6


@dataclass(frozen=True)
class GroupFit:
    """Fitted covariance of groups.

    Attributes
    ----------
    covariance : (g, g) or (g, g, 3, 3) float64, V in Å², positive semidefinite
    scale : k
    background : (n,) float64, b at all voxels
    intensity : (n,) float64, I_calc at all voxels
    strength : of the prior; trials : (strength, correlation on free voxels, on the others) of each that was tried
    iterations : of the minimisation that is kept
    converged : bool, did it end before max_iterations?
    freedom : what the data determine; None for tensors and for many groups
    """

    covariance: np.ndarray
    scale: float
    background: np.ndarray
    intensity: np.ndarray
    strength: float
    trials: tuple
    iterations: int
    converged: bool
    freedom: PairFreedom | None = None


def sampled_rows(free: np.ndarray, n_groups: int) -> np.ndarray | None:
    """Rows of the voxels that are enough for second derivatives; None: all that are fitted.

    Newton's steps, for few groups, need those of all: with a sample they would converge slowly.
    """
    n_elements = n_groups * (n_groups + 1) // 2
    work = np.flatnonzero(~free)
    number = max(_FEWEST_SAMPLED, _SAMPLED_PER_ELEMENT * n_elements)
    if number >= len(work) or not MOST_ELEMENTS < n_elements <= _MOST_KNOWN:
        return None
    return np.sort(np.random.default_rng(0).choice(work, number, replace=False))


def fit_groups(
    data: FitData,
    groups: GroupCovariance,
    prior: np.ndarray,
    strengths=(1.0,),
    scale: float | None = None,
    n_background: int = 10,
    max_iterations: int = 200,
    minimiser: str = "auto",
    weights: np.ndarray | None = None,
    sample: Sample | None = None,
) -> GroupFit:
    """Minimise chi² / its value at the prior + strength times the mean square deviation from the prior.

    V is symmetric and positive semidefinite; scale and background are eliminated as for all models. The deviation of
    each element is relative to the geometric mean of the prior's variances. Of several strengths the one with the best
    correlation on free voxels is kept; each starts from the result of the one before, the strongest first.

    Parameters
    ----------
    groups : at all voxels of the data
    prior : (g, g) or, if ``groups`` has tensors, (g, g, 3, 3) float64, Å², for example of a kernel that was fitted
    strengths : positive, or 0 for none
    scale : hold k at this value; None: fit it
    minimiser : one of ``pair_minimisers.MINIMISERS``
    weights : (n,) float64; by default 1/sigma²
    sample : of the voxels that are fitted, from which second derivatives are estimated; by default all

    Raises
    ------
    DiffuseError
        If the prior is not positive semidefinite, or voxels are to choose a strength and none is free.
    """
    prior = np.asarray(prior, dtype=float)
    values = np.linalg.eigvalsh(flattened(prior))
    if values[0] < -1e-9 * values[-1] or values[-1] <= 0:
        raise DiffuseError("the prior of the covariance of groups is not positive semidefinite")
    if len(strengths) > 1 and not data.free.any():
        raise DiffuseError("several strengths of the prior: free voxels choose one; set free_fraction")
    work = ~data.free
    weights = 1 / data.sigma**2 if weights is None else weights
    background = Background(data.s, n_background)
    projection = Projection(data.intensity[work], weights[work], background.at(work), scale)
    observed = shell_residual(data.intensity, data.s)
    objective = PairObjective(groups, projection, weights, work, prior, background, sample)
    minimiser = chosen(minimiser, objective)
    v = objective.prior
    few = objective.axes == 1 and len(objective.triangle[0]) <= MOST_ELEMENTS
    trials, best = [], None
    for strength in sorted(strengths, reverse=True):
        found = minimise_pairs(objective, v, strength, minimiser, max_iterations, _FTOL if few else _FTOL_MANY)
        v = found.covariance
        intensity = groups.intensity(objective.unfolded(v))
        solved = projection.solve(intensity[work])
        b = background.values(solved.background) if n_background else np.zeros(data.n)
        residual = shell_residual(solved.scale * intensity + b, data.s)
        ccs = [correlation(observed[use], residual[use]) for use in (data.free, work)]
        trials.append((strength, *ccs))
        if best is None or ccs[0] > best[0]:
            best = ccs[0], found, solved, b, intensity, strength
    _, found, solved, b, intensity, strength = best
    freedom = None
    if objective.axes == 1 and len(objective.triangle[0]) <= _MOST_KNOWN:
        freedom = pair_freedom(objective, found.covariance, strength, solved.objective)
    return GroupFit(
        objective.unfolded(found.covariance),
        solved.scale,
        b,
        intensity,
        strength,
        tuple(trials),
        found.iterations,
        found.converged,
        freedom,
    )
