"""Fits of one or several models to the same voxels: parameters with errors, agreement, what the data determine."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import shells_of, statistics
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.minimise import Minimum, minimise
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.models.prepared import Prepared

logger = logging.getLogger("dials.diffuse.fit")

WEIGHTS = ("sigma", "shell")

#: correlations of parameters from here on are reported
_STRONG = 0.95
#: a minimum within this relative distance of a bound lies on it
_AT_BOUND = 1e-4
#: starts are multiplied by up to this factor, or divided by it
_SPREAD = 2.0
#: parameters whose profile likelihood is computed, and where, in e.s.d.
_PROFILED = ("sigma", "gamma")
_PROFILE_AT = (-2.0, -1.0, 1.0, 2.0)
#: powers of the factor between intensities that multiply displacements
_POWERS = {"sigma": 0.5, "V": 1.0}
#: rounds of weights by shell, and change of the weights at which they end
_ROUNDS = 4
_SETTLED = 0.02


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    scale : hold the factor between the model and the data; None: fit it
    background : number of splines of the smooth isotropic background, 0 for none
    weights : ``sigma``: 1/sigma²; ``shell``: divided by the reduced chi² that the best of the models reaches in a shell
        of resolution, so that a shell in which no model fits does not rule the others
    n_shells : of equal volume, for these weights and for the statistics
    starts : number of starting points; all but the first are random
    seed : of these
    profile : compute the profile likelihood of sigma and gamma

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    scale: float | None = None
    background: int = 10
    weights: str = "sigma"
    n_shells: int = 10
    starts: int = 2
    seed: int = 0
    profile: bool = True

    def __post_init__(self):
        if self.scale is not None and not self.scale > 0:
            raise DiffuseError(f"scale={self.scale:g}: a positive number is needed")
        if self.weights not in WEIGHTS:
            raise DiffuseError(f"weights={self.weights}: choose from {', '.join(WEIGHTS)}")
        if self.starts < 1 or self.n_shells < 1:
            raise DiffuseError(f"starts={self.starts}, n_shells={self.n_shells}: positive whole numbers are needed")


@dataclass(frozen=True)
class Estimate:
    """A fitted number.

    Attributes
    ----------
    name, unit : as in the model
    value, esd : in ``unit``; NaN for an error that the data do not give
    at_bound : did it end at a bound? Its error is then that of the others with it held there
    profile : (value, objective less the lowest, in units of reduced chi²) pairs: 1 is reached at one e.s.d. if the
        likelihood is Gaussian
    """

    name: str
    unit: str
    value: float
    esd: float
    at_bound: bool = False
    profile: tuple = ()


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes
    ----------
    name : of the model
    estimates : tuple of Estimate, the model's parameters
    scale : Estimate of k; the error of a scale that was held is 0
    fitted : (n,) float64, k I_calc + b at all voxels of the data, free ones too
    intensity : (n,) float64, I_calc, electrons² per unit cell
    background : (n,) float64, b
    statistics : see :func:`agreement.statistics`
    criteria : ``aic``, ``bic`` and ``n_parameters``
    correlations : (p + 1, p + 1) float64, of the parameters and the scale (the last, absent if held)
    eigenvalues : ascending, of the Hessian with its diagonal scaled to 1: near 0 for combinations that the data leave
        undetermined; ``loosest``: the combination of the lowest, in units of the e.s.d.s it would have alone
    minimum : Minimum
    reached : number of starts that ended at the same minimum, of ``starts``
    weights : (n,) float64, of the voxels
    covariance : (g, g) float64, Å², of the groups if all pairs were fitted, else None
    warnings : list of str
    model : the model with the fitted values; a tuple of models for a sum
    """

    name: str
    estimates: tuple
    scale: Estimate
    fitted: np.ndarray
    intensity: np.ndarray
    background: np.ndarray
    statistics: dict
    criteria: dict
    correlations: np.ndarray
    eigenvalues: np.ndarray
    loosest: np.ndarray
    minimum: Minimum
    reached: int
    starts: int
    weights: np.ndarray
    covariance: np.ndarray | None = None
    warnings: list = field(default_factory=list)
    model: object = None


@dataclass(frozen=True)
class Candidate:
    """A model to fit.

    Attributes
    ----------
    name : for tables
    prepared : at the voxels of the data
    start : (p,) float64
    """

    name: str
    prepared: Prepared
    start: np.ndarray


def fit_models(data: FitData, candidates, options: FitOptions, track=None) -> list:
    """Fit all models to the same voxels with the same weights; a list of Fit in the same order.

    Parameters
    ----------
    track : passes an iterable through and shows progress, as ``cli.program.track`` does
    """
    candidates = list(candidates)
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise DiffuseError(f"model={','.join(names)}: a model is given twice; leave one out")
    weights = 1 / data.sigma**2
    background = Background(data.s, options.background)
    minima = {}
    follow = track or (lambda items, total, label: items)
    for candidate in follow(candidates, len(candidates), "models"):
        minima[candidate.name] = _best_minimum(data, candidate, weights, background, options)
    if options.weights == "shell":
        weights, minima = _shell_weights(data, candidates, minima, weights, background, options)
    return [_finish(data, c, *minima[c.name], weights, background, options) for c in candidates]


def best_fit(fits) -> Fit:
    """The model with the highest correlation of the anisotropic part on free voxels.

    Of models within one standard error of the highest, or where no voxel is free, the one with the lowest BIC.
    """
    fits = list(fits)
    free = np.array([f.statistics["free"]["cc_anisotropic"] for f in fits])
    if np.all(np.isfinite(free)):
        highest = free.max()
        error = (1 - highest**2) / math.sqrt(fits[0].statistics["free"]["n"])
        fits = [f for f, cc in zip(fits, free) if cc >= highest - error]
    return min(fits, key=lambda f: f.criteria["bic"])


class _Work:
    """A prepared model and the background at the voxels that are fitted; derivatives at the others are dropped."""

    def __init__(self, prepared: Prepared, use: np.ndarray):
        self._prepared, self._use = prepared, use
        self.parameters = prepared.parameters
        self.largest_step = prepared.largest_step

    def intensity(self, values):
        return self._prepared.intensity(values)[self._use]

    def jacobian(self, values):
        intensity, jacobian = self._prepared.jacobian(values)
        return intensity[self._use], jacobian[self._use]

    def second(self, values, weights):
        everywhere = np.zeros(len(self._use))
        everywhere[self._use] = weights
        return self._prepared.second(values, everywhere)


def _projection(data: FitData, weights, background: Background, options: FitOptions) -> Projection:
    work = ~data.free
    return Projection(data.intensity[work], weights[work], background.at(work), options.scale)


def _best_minimum(data, candidate: Candidate, weights, background, options) -> tuple:
    """The lowest minimum from all starts, how many starts reached it, and how many there were."""
    work = _Work(candidate.prepared, ~data.free)
    projection = _projection(data, weights, background, options)
    starts = [np.asarray(candidate.start, dtype=float)]
    rng = np.random.default_rng(options.seed)
    if len(starts[0]):
        # one factor for all elements of a tensor keeps it positive definite
        kinds = [_kind(p.name) for p in work.parameters]
        for _ in range(options.starts - 1):
            factors = {kind: _SPREAD ** rng.uniform(-1, 1) for kind in dict.fromkeys(kinds)}
            starts.append(starts[0] * np.array([factors[kind] for kind in kinds]))
    if isinstance(candidate.prepared, PreparedSum):
        starts += _starts_of_sum(candidate, projection, ~data.free)
    minima = [minimise(work, projection, start) for start in starts]
    best = min(minima, key=lambda m: m.objective)
    n = len(projection.solve(work.intensity(best.values)).residual)
    # Minima as deep as the best one, within what a fraction of an e.s.d. makes of it
    same = sum(m.objective - best.objective < 0.1 * best.objective / n for m in minima)
    return best, same, len(minima)


def _starts_of_sum(candidate: Candidate, projection: Projection, use: np.ndarray) -> list:
    """Each part where it fits alone, the others beside it as strong as they fit alone."""
    alone, scales = [], []
    for part, start in candidate.prepared.split(candidate.start):
        work = _Work(part, use)
        alone.append(minimise(work, projection, start).values)
        scales.append(max(projection.solve(work.intensity(alone[-1])).scale, 0.0))
    starts = []
    for mine in scales:
        values = []
        for (part, _), own, scale in zip(candidate.prepared.split(candidate.start), alone, scales):
            ratio = min(scale / mine, 1.0) if mine > 0 else 1.0  # what a common scale makes of sigma² or V
            values += [v * ratio ** _POWERS.get(_kind(p.name), 0.0) for p, v in zip(part.parameters, own)]
        starts.append(np.array(values))
    return starts


def _shell_weights(data, candidates, minima, weights, background, options) -> tuple:
    """Weights divided by the lowest reduced chi² of all models in each shell, and minima with these, until settled."""
    shell, _ = shells_of(data.s, options.n_shells)
    work = ~data.free
    number = np.maximum(np.bincount(shell[work], minlength=options.n_shells), 1)
    original, factors = weights, np.ones(options.n_shells)
    for _ in range(_ROUNDS):
        lowest = np.full(options.n_shells, np.inf)
        projection = _projection(data, weights, background, options)
        for candidate in candidates:
            solved = projection.solve(candidate.prepared.intensity(minima[candidate.name][0].values)[work])
            chi = original[work] * solved.residual**2
            lowest = np.minimum(lowest, np.bincount(shell[work], chi, options.n_shells) / number)
        lowest = np.where(lowest > 0, lowest, 1.0)
        change = np.abs(lowest / factors - 1).max()
        factors = lowest
        weights = original / factors[shell]
        projection = _projection(data, weights, background, options)
        for candidate in candidates:
            best, same, starts = minima[candidate.name]
            minimum = minimise(_Work(candidate.prepared, work), projection, best.values)
            minima[candidate.name] = minimum, same, starts
        if change < _SETTLED:
            break
    return weights, minima


def _finish(data, candidate, minimum, reached, starts, weights, background, options) -> Fit:
    prepared, values = candidate.prepared, minimum.values
    work = ~data.free
    projection = _projection(data, weights, background, options)
    inner = _Work(prepared, work)
    everywhere, jacobian = prepared.jacobian(values)
    solved = projection.solve(everywhere[work])
    b = background.values(solved.background) if options.background else np.zeros(data.n)
    fitted = solved.scale * everywhere + b
    n_parameters = len(values) + projection.n_linear
    freedom = max(len(solved.residual) - n_parameters, 1)
    chi2 = solved.objective / freedom
    hessian = projection.hessian(everywhere[work], jacobian[work], lambda w: inner.second(values, w))
    bound = np.array([_at_bound(p, v) for p, v in zip(prepared.parameters, values)], dtype=bool)
    covariance, correlations, eigenvalues, loosest = _errors(hessian, bound, chi2)
    esd = np.sqrt(np.diag(covariance))
    estimates = []
    for i, parameter in enumerate(prepared.parameters):
        profile = ()
        if options.profile and _kind(parameter.name.split(".")[-1]) in _PROFILED and not bound[i]:
            profile = _profile(inner, projection, minimum, i, esd[i], chi2)
        estimates.append(
            Estimate(parameter.name, parameter.unit, float(values[i]), float(esd[i]), bool(bound[i]), profile)
        )
    scale = Estimate("scale", "", solved.scale, float(esd[-1]) if options.scale is None else 0.0)
    return Fit(
        name=candidate.name,
        estimates=tuple(estimates),
        scale=scale,
        fitted=fitted,
        intensity=everywhere,
        background=b,
        statistics=statistics(data, fitted, weights, n_parameters, options.n_shells),
        criteria=criteria(solved.objective, len(solved.residual), n_parameters),
        correlations=correlations,
        eigenvalues=eigenvalues,
        loosest=loosest,
        minimum=minimum,
        reached=reached,
        starts=starts,
        weights=weights,
        warnings=_warnings(candidate, minimum, estimates, scale, correlations, reached, starts),
        model=prepared.model(values),
    )


def criteria(objective: float, n: int, n_parameters: int) -> dict:
    """Akaike's and the Bayesian information criterion for errors known up to one factor: n ln(chi²/n) + penalty."""
    log_likelihood = n * math.log(max(objective, 1e-300) / n)
    return {
        "aic": log_likelihood + 2 * n_parameters,
        "bic": log_likelihood + n_parameters * math.log(n),
        "n_parameters": n_parameters,
    }


def _errors(hessian: np.ndarray, bound: np.ndarray, chi2: float) -> tuple:
    """Covariance of the estimates, their correlations, eigenvalues and the loosest combination.

    The inverse of half the Hessian of chi², times the reduced chi²: errors of the data that are all wrong by a factor
    do not matter. Parameters at a bound are held there, with an error of NaN.
    """
    size = len(hessian)
    covariance, correlations = np.full((size, size), np.nan), np.full((size, size), np.nan)
    free = np.ones(size, dtype=bool)
    free[: len(bound)] = ~bound
    diagonal = np.diag(hessian)[free]
    loosest = np.zeros(size)
    if not free.any() or not np.all(diagonal > 0):
        return covariance, correlations, np.zeros(0), loosest
    root = np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(hessian[np.ix_(free, free)] / np.outer(root, root))
    loosest[free] = vectors[:, 0]
    if values[0] > 1e-12:
        inverse = np.linalg.inv(hessian[np.ix_(free, free)] / np.outer(root, root)) / np.outer(root, root)
        covariance[np.ix_(free, free)] = chi2 * inverse
        spread = np.sqrt(np.diag(inverse))
        correlations[np.ix_(free, free)] = inverse / np.outer(spread, spread)
    return covariance, correlations, values, loosest


def _profile(work, projection, minimum: Minimum, i: int, esd: float, chi2: float) -> tuple:
    """The objective with one parameter held at some values and all others fitted anew."""
    if not math.isfinite(esd) or esd <= 0:
        return ()
    points = []
    fixed = np.zeros(len(minimum.values), dtype=bool)
    fixed[i] = True
    for t in _PROFILE_AT:
        start = minimum.values.copy()
        start[i] += t * esd
        if work.parameters[i].lower < start[i] < work.parameters[i].upper:
            found = minimise(work, projection, start, fixed)
            points.append((float(start[i]), (found.objective - minimum.objective) / chi2))
    return tuple(points)


def _kind(name: str) -> str:
    """llm.V of llm.V11, sigma of sigma_2"""
    return name.rstrip("0123456789_")


def _at_bound(parameter, value: float) -> bool:
    width = _AT_BOUND * (parameter.upper - parameter.lower)
    return value - parameter.lower < width or parameter.upper - value < width


def _warnings(candidate, minimum, estimates, scale, correlations, reached, starts) -> list:
    found = []
    if not minimum.converged:
        found.append(f"{candidate.name}: no minimum after {minimum.iterations} steps; start from other values")
    for parameter, estimate in zip(candidate.prepared.parameters, estimates):
        if estimate.at_bound:
            found.append(
                f"{candidate.name}: {estimate.name} ended at a bound, {estimate.value:.4g} {estimate.unit} (allowed: "
                f"{parameter.lower:.4g} to {parameter.upper:.4g}): the data do not determine it, or the model is wrong"
            )
    if scale.value <= 0:
        found.append(f"{candidate.name}: the scale is not positive: the data contradict the model")
    names = [e.name for e in estimates] + ["scale"]
    for i in range(len(correlations)):
        for j in range(i):
            if abs(correlations[i, j]) > _STRONG:
                found.append(
                    f"{candidate.name}: {names[j]} and {names[i]} are correlated, {correlations[i, j]:.3f}: the data "
                    "determine little more than one combination of them"
                )
    if estimates and not np.all(np.isfinite([e.esd for e in estimates if not e.at_bound])):
        found.append(f"{candidate.name}: the Hessian is not positive definite, errors are not known")
    if reached < starts:
        found.append(f"{candidate.name}: {reached} of {starts} starts reached the best minimum, it has others")
    return found
