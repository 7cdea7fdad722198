"""Fits of one or several models to the same voxels: parameters with errors, agreement, what the data determine."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting import uncertainty
from dials_diffuse.fitting.agreement import statistics
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.minimise import Minimum, minimise
from dials_diffuse.fitting.region import Region
from dials_diffuse.fitting.robust import LOSSES, robust
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.shells import shells_of
from dials_diffuse.models.prepared import Prepared

logger = logging.getLogger("dials.diffuse.fit")

WEIGHTS = ("sigma", "shell")

#: starts are multiplied by up to this factor, or divided by it
_SPREAD = 2.0
#: parameters whose profile likelihood is computed
_PROFILED = ("sigma", "gamma")
#: powers of the factor between intensities that multiply displacements
_POWERS = {"sigma": 0.5, "V": 1.0}
#: rounds of weights by shell, and of those of a robust loss, and the change of the weights at which they end
_ROUNDS = 4
_SETTLED = 0.02
_ROBUST_ROUNDS = 30
_ROBUST_SETTLED = 1e-3


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    scale : hold the factor between the model and the data; None: fit it
    background : number of splines of the smooth isotropic background, 0 for none
    weights : ``sigma``: 1/sigma²; ``shell``: divided by the reduced chi² that the best of the models reaches in a shell
        of resolution, so that a shell in which no model fits does not rule the others
    loss : ``squares``, or one of ``robust.LOSSES`` that outliers cannot rule; what is an outlier the model decides for
        which the weighted sum of squares is lowest
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
    loss: str = "squares"
    n_shells: int = 10
    starts: int = 2
    seed: int = 0
    profile: bool = True

    def __post_init__(self):
        if self.scale is not None and not self.scale > 0:
            raise DiffuseError(f"scale={self.scale:g}: a positive number is needed")
        if self.weights not in WEIGHTS:
            raise DiffuseError(f"weights={self.weights}: choose from {', '.join(WEIGHTS)}")
        if self.loss not in LOSSES:
            raise DiffuseError(f"loss={self.loss}: choose from {', '.join(LOSSES)}")
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
    pairs : GroupFit if the covariance of all pairs of groups was fitted, else None
    warnings : list of str
    model : the model with the fitted values; a tuple of models for a sum
    means : is the intensity averaged over voxels, or that of their centres?
    adjustment : of the reduced chi² for errors with a robust loss, see :class:`robust.Robust`; else 1
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
    pairs: object = None
    warnings: list = field(default_factory=list)
    model: object = None
    means: bool = False
    adjustment: float = 1.0


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
    adjustment = 1.0
    if options.weights == "shell" or options.loss != "squares":
        weights, minima, adjustment = _reweighted(data, candidates, minima, weights, background, options)
    return [_finish(data, c, *minima[c.name], weights, adjustment, background, options) for c in candidates]


class _Work:
    """A prepared model and the background at the voxels that are fitted; derivatives at the others are dropped."""

    def __init__(self, prepared: Prepared, use: np.ndarray):
        self._prepared, self._use = prepared, use
        self.parameters = prepared.parameters
        self.tensors = prepared.tensors

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
        kinds = [uncertainty.kind(p.name) for p in work.parameters]
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
            values += [v * ratio ** _POWERS.get(uncertainty.kind(p.name), 0.0) for p, v in zip(part.parameters, own)]
        starts.append(np.array(values))
    return starts


def _reweighted(data, candidates, minima, weights, background, options) -> tuple:
    """Weights for a robust loss and by shell, minima with these, until both are settled, and Robust.adjustment.

    In each shell weights are divided by the lowest reduced chi² of all models.
    """
    shell, _ = shells_of(data.s, options.n_shells)
    work = ~data.free
    by_shell, loss = options.weights == "shell", options.loss != "squares"
    number = np.maximum(np.bincount(shell[work], minlength=options.n_shells), 1)
    original, factors, outliers, adjustment = weights, np.ones(options.n_shells), np.ones(data.n), 1.0
    for _ in range(_ROBUST_ROUNDS if loss else _ROUNDS):
        projection = _projection(data, weights, background, options)
        residuals = {}
        for candidate in candidates:
            intensity = candidate.prepared.intensity(minima[candidate.name][0].values)
            solved = projection.solve(intensity[work])
            b = background.values(solved.background) if options.background else 0.0
            residuals[candidate.name] = data.intensity - solved.scale * intensity - b
        settled = True
        if by_shell:
            chi = [original * outliers * r**2 for r in residuals.values()]
            sums = [np.bincount(shell[work], c[work], options.n_shells) for c in chi]
            lowest = np.min(sums, axis=0) / number
            lowest = np.where(lowest > 0, lowest, 1.0)
            settled = np.abs(lowest / factors - 1).max() < _SETTLED
            factors = lowest
        if loss:
            best = min(candidates, key=lambda c: minima[c.name][0].objective).name
            found = robust(options.loss, np.sqrt(original / factors[shell]) * residuals[best], work)
            settled &= np.abs(found.factors - outliers)[work].mean() < _ROBUST_SETTLED
            outliers, adjustment = found.factors, found.adjustment
        weights = original / factors[shell] * outliers
        projection = _projection(data, weights, background, options)
        for candidate in candidates:
            best, same, starts = minima[candidate.name]
            minimum = minimise(_Work(candidate.prepared, work), projection, best.values)
            minima[candidate.name] = minimum, same, starts
        if settled:
            break
    return weights, minima, adjustment


def _finish(data, candidate, minimum, reached, starts, weights, adjustment, background, options) -> Fit:
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
    chi2 = adjustment * solved.objective / freedom
    hessian = projection.hessian(everywhere[work], jacobian[work], lambda w: inner.second(values, w))
    held = Region(prepared).reached(values)
    covariance, correlations, eigenvalues, loosest = uncertainty.errors(hessian, held, chi2)
    esd = np.sqrt(np.diag(covariance))
    bound = np.linalg.norm(held, axis=0) > 1 - 1e-9
    estimates = []
    for i, parameter in enumerate(prepared.parameters):
        profile = ()
        if options.profile and uncertainty.kind(parameter.name.split(".")[-1]) in _PROFILED and not bound[i]:
            profile = uncertainty.profile(inner, projection, minimum, i, esd[i], chi2)
        estimates.append(
            Estimate(parameter.name, parameter.unit, float(values[i]), float(esd[i]), bool(bound[i]), profile)
        )
    model = prepared.model(values)
    warnings = uncertainty.missing_orders(candidate.name, model, 1 / float(data.s.max()))
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
        warnings=warnings + uncertainty.warnings(candidate, minimum, estimates, scale, correlations, reached, starts),
        model=model,
        means=prepared.means,
        adjustment=adjustment,
    )


def criteria(objective: float, n: int, n_parameters: int) -> dict:
    """Akaike's and the Bayesian information criterion for errors known up to one factor: n ln(chi²/n) + penalty."""
    log_likelihood = n * math.log(max(objective, 1e-300) / n)
    return {
        "aic": log_likelihood + 2 * n_parameters,
        "bic": log_likelihood + n_parameters * math.log(n),
        "n_parameters": n_parameters,
    }
