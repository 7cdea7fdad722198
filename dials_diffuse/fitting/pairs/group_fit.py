"""The covariance of every pair of groups, fitted to a map with a prior that falls off with distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import anisotropic_parts
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.linear import Background, Linear, Projection
from dials_diffuse.fitting.pairs.pair_freedom import PairFreedom, pair_freedom
from dials_diffuse.fitting.pairs.pair_minimisers import MOST_ELEMENTS, chosen, minimise_pairs
from dials_diffuse.fitting.pairs.pair_minimum import PairMinimum
from dials_diffuse.fitting.pairs.pair_objective import PairObjective, Sample
from dials_diffuse.maps.shells import correlation
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.motion import flattened

#: voxels from which second derivatives are estimated: so many, and so many times the number of elements of V
_FEWEST_SAMPLED = 10000
_SAMPLED_PER_ELEMENT = 2
#: elements of V, of tensors six for each pair, up to which it is asked what the data determine
_MOST_KNOWN = 6000
#: degrees of freedom, for each row of V, of the random matrices that make other starts of the prior; to the prior this
#: fraction of its mean variance is added, so that a singular one has others
_FREEDOM, _MORE = 2, 0.05
#: relative gain of a step at which L-BFGS ends; of many elements the last digits cost minutes, and are noise
_FTOL, _FTOL_MANY = 1e-8, 1e-6


@dataclass(frozen=True, eq=False)
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
    starts : with the strength that is kept; ``reached``: how many of them ended as low as the best, within what changes
        chi² by the reduced chi²
    freedom : what the data determine; None for many groups
    n_background : number of splines
    """

    covariance: np.ndarray
    scale: float
    background: np.ndarray
    intensity: np.ndarray
    strength: float
    trials: tuple
    iterations: int
    converged: bool
    starts: int
    reached: int
    freedom: PairFreedom | None
    n_background: int

    @property
    def n_free(self) -> int:
        """How many covariances the data determine beside the prior; if that is not known, all.

        Of tensors the six elements of each symmetric part count.
        """
        if self.freedom is not None:
            return round(self.freedom.n_effective)
        g = len(self.covariance)
        return g * (g + 1) // 2 * (1 if self.covariance.ndim == 2 else 6)


def other_starts(prior: np.ndarray, number: int, seed: int) -> list:
    """Random matrices L W Lᵀ, L Lᵀ the prior, W of Wishart's distribution with the mean 1: positive semidefinite.

    prior : (m, m) float64
    """
    rng = np.random.default_rng(seed)
    m = len(prior)
    root = np.linalg.cholesky(prior + _MORE * np.trace(prior) / m * np.eye(m))
    factors = (root @ rng.normal(size=(m, _FREEDOM * m)) / (_FREEDOM * m) ** 0.5 for _ in range(number))
    return [factor @ factor.T for factor in factors]


def sampled_rows(free: np.ndarray, n_groups: int, tensor: bool = False) -> np.ndarray | None:
    """Rows of the voxels that are enough for second derivatives; None: all that are fitted.

    Newton's steps, for few groups, need those of all: with a sample they would converge slowly.
    """
    n_elements = n_groups * (n_groups + 1) // 2 * (6 if tensor else 1)
    work = np.flatnonzero(~free)
    number = max(_FEWEST_SAMPLED, _SAMPLED_PER_ELEMENT * n_elements)
    newton = not tensor and n_elements <= MOST_ELEMENTS
    if number >= len(work) or newton or n_elements > _MOST_KNOWN:
        return None
    return np.sort(np.random.default_rng(0).choice(work, number, replace=False))


def fit_groups(
    data: FitData,
    groups: GroupCovariance,
    prior: np.ndarray,
    strengths=(1.0,),
    scale: float | None = None,
    n_background: int | None = None,
    max_iterations: int = 200,
    minimiser: str = "auto",
    weights: np.ndarray | None = None,
    sample: Sample | None = None,
    starts: int = 1,
    seed: int = 0,
    adjustment: float = 1.0,
) -> GroupFit:
    """Minimise chi² / its value at the prior + strength times the mean square deviation from the prior.

    V is symmetric and positive semidefinite; scale and background are eliminated as for all models. The deviation of
    each element is relative to the geometric mean of the prior's variances. Of several strengths the one with the best
    correlation on free voxels is kept; each starts from the result of the one before, the strongest first. V is no
    convex problem: with the strength that is kept other starts follow, and the lowest minimum of all is the result.

    Parameters
    ----------
    groups : at all voxels of the data
    prior : (g, g) or, if ``groups`` has tensors, (g, g, 3, 3) float64, Å², for example of a kernel that was fitted
    strengths : positive, or 0 for none
    scale : hold k at this value; None: fit it
    n_background : as for :class:`linear.Background`
    minimiser : one of ``pair_minimisers.MINIMISERS``
    weights : (n,) float64; by default 1/sigma²
    sample : of the voxels that are fitted, from which second derivatives are estimated; by default all
    starts : all but the first are random, see :func:`other_starts`
    seed : of these
    adjustment : of chi² for the errors, where the weights are those of a robust loss, see :class:`robust.Robust`

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
    objective = PairObjective(groups, projection, weights, work, prior, background, sample)
    minimiser = chosen(minimiser, objective)
    ftol = _FTOL if objective.axes == 1 and len(objective.triangle[0]) <= MOST_ELEMENTS else _FTOL_MANY

    def minimum(start, strength) -> _Minimum:
        found = minimise_pairs(objective, start, strength, minimiser, max_iterations, ftol)
        intensity = groups.intensity(objective.unfolded(found.covariance))
        solved = projection.solve(intensity[work])
        b = background.values(solved.background)
        x, y = anisotropic_parts(data, solved.scale * intensity + b)
        ccs = (correlation(x[use], y[use]) for use in (data.free, work))
        return _Minimum(found, intensity, solved, b, (strength, *ccs))

    minima, v = [], objective.prior
    for strength in sorted(strengths, reverse=True):
        minima.append(minimum(v, strength))
        v = minima[-1].found.covariance
    first = max(minima, key=lambda m: m.trial[1])
    strength = first.trial[0]
    same = [first, *(minimum(start, strength) for start in other_starts(objective.prior, starts - 1, seed))]
    best = min(same, key=lambda m: m.found.value)
    freedom = None
    if len(objective.relative_unit) <= _MOST_KNOWN:
        freedom = pair_freedom(objective, best.found.covariance, strength, adjustment * best.solved.objective)
    return GroupFit(
        covariance=objective.unfolded(best.found.covariance),
        scale=best.solved.scale,
        background=best.background,
        intensity=best.intensity,
        strength=strength,
        trials=tuple((best if m is first else m).trial for m in minima),
        iterations=best.found.iterations,
        converged=best.found.converged,
        starts=len(same),
        reached=sum(m.found.value - best.found.value <= best.found.value / objective.n for m in same),
        freedom=freedom,
        n_background=background.n_terms,
    )


@dataclass(frozen=True, eq=False)
class _Minimum:
    """Where a minimisation ended: intensity, scale and background there, (strength, free and other correlation)."""

    found: PairMinimum
    intensity: np.ndarray
    solved: Linear
    background: np.ndarray
    trial: tuple
