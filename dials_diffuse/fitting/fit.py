"""Fits of one or several models to the same voxels: parameters with errors, agreement, what the data determine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting import uncertainty
from dials_diffuse.fitting.agreement import anisotropic_parts, criteria, statistics
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.minimise import Minimum, minimise
from dials_diffuse.fitting.penalty import (
    PenalisedProjection,
    PenalisedWork,
    PriorResult,
    folds_of,
    other_starts,
)
from dials_diffuse.fitting.region import Region
from dials_diffuse.fitting.result import Estimate, ModelFit
from dials_diffuse.fitting.robust import robust
from dials_diffuse.maps.shells import correlation, shells_of
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.parallel import Progress, quiet

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
class Candidate:
    """A model to fit, or a sum of models.

    Attributes
    ----------
    name : for tables
    prepared : at the voxels of the data
    start : (p,) float64
    choose_orders : for each model of the sum, may the fit take more orders (:mod:`fitting.orders`)? Empty: all
    """

    name: str
    prepared: Prepared
    start: np.ndarray
    choose_orders: tuple = ()


def fit_models(data: FitData, candidates, options: FitOptions, progress: Progress = quiet) -> list:
    """Fit all models to the same voxels with the same weights; a list of ModelFit in the same order.

    Raises
    ------
    DiffuseError
        If two models have the same name, or an intensity is not finite.
    """
    candidates = list(candidates)
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise DiffuseError(f"model={','.join(names)}: a model is given twice; leave one out")
    problem = _Problem(data, options, Background(data.s, options.background), 1 / data.sigma**2)
    found = [_best_minimum(problem, candidate) for candidate in progress(candidates, len(candidates), "models")]
    if options.weights == "shell" or options.loss != "squares":
        problem, found = _reweighted(problem, candidates, found)
    return [_finished(problem, candidate, best) for candidate, best in zip(candidates, found)]


@dataclass(frozen=True, eq=False)
class _Problem:
    """What all models are fitted to; ``adjustment`` as in ModelFit."""

    data: FitData
    options: FitOptions
    background: Background
    weights: np.ndarray
    adjustment: float = 1.0

    @cached_property
    def work(self) -> np.ndarray:
        return ~self.data.free

    @cached_property
    def projection(self) -> Projection:
        work = self.work
        return Projection(self.data.intensity[work], self.weights[work], self.background.at(work), self.options.scale)

    def solve(self, intensity: np.ndarray) -> tuple:
        """Linear of the voxels that are fitted, and the background at all; intensity: at all voxels."""
        solved = self.projection.solve(intensity[self.work])
        return solved, self.background.values(solved.background)


@dataclass(frozen=True)
class _Best:
    """The lowest minimum, and of how many starts how many reached it; ``strength`` and ``trials`` of a prior."""

    minimum: Minimum
    reached: int
    starts: int
    strength: float = 0.0
    trials: tuple = ()


class _Work:
    """A prepared model at the voxels that are fitted; derivatives at the others are dropped."""

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


def _objective(problem: _Problem, candidate: Candidate, strength: float) -> tuple:
    """A model at the voxels that are fitted, and what is minimised of it, the prior included; both for minimise."""
    work, prior = _Work(candidate.prepared, problem.work), candidate.prepared.prior
    if prior is None:
        return work, problem.projection
    unit = problem.projection.objective(work.intensity(np.asarray(candidate.start, dtype=float)))
    rows = prior.rows(problem.options.scale is not None)
    return PenalisedWork(work), PenalisedProjection(problem.projection, rows, strength * unit / prior.n_held)


def _best_strength(problem: _Problem, candidate: Candidate) -> _Best:
    """The minimum with the strength of the prior that predicts best what is kept out, each from the one before.

    Every voxel that is fitted is kept out once, in folds of whole blocks: they are many more than the free ones, which
    so have no part in the choice.
    """
    options, data, work = problem.options, problem.data, problem.work
    values, found, fold = np.asarray(candidate.start, dtype=float), [], folds_of(data.block[work], options.seed)
    for strength in sorted(options.strengths, reverse=True):
        inner, projection = _objective(problem, candidate, strength)
        minimum = minimise(inner, projection, values)
        values = minimum.values
        intensity = candidate.prepared.intensity(values)
        solved, b = problem.solve(intensity)
        predicted = fitted = solved.scale * intensity + b
        if len(options.strengths) > 1:
            predicted = fitted.copy()
            predicted[work] += projection.held_out(*inner.jacobian(values), fold)
        x, y = anisotropic_parts(data, fitted)
        _, z = anisotropic_parts(data, predicted)
        kinds = ((y, data.free), (y, work), (z, work))
        found.append((minimum, (strength, *(correlation(x[use], other[use]) for other, use in kinds))))
    first, (strength, *_) = max(found, key=lambda one: one[1][3]) if len(found) > 1 else found[0]
    again = other_starts(first.values, candidate.prepared.prior.metric, options.starts - 1, options.seed)
    minima = [first, *(minimise(*_objective(problem, candidate, strength), start) for start in again)]
    return replace(_lowest(problem, minima), strength=strength, trials=tuple(trial for _, trial in found))


def _lowest(problem: _Problem, minima: list) -> _Best:
    best = min(minima, key=lambda m: m.objective)
    n = np.count_nonzero(problem.work)
    # Minima as deep as the best one, within what a fraction of an e.s.d. makes of it
    reached = sum(m.objective - best.objective < 0.1 * best.objective / n for m in minima)
    return _Best(best, reached, len(minima))


def _best_minimum(problem: _Problem, candidate: Candidate) -> _Best:
    if candidate.prepared.prior is not None:
        return _best_strength(problem, candidate)
    options, projection = problem.options, problem.projection
    work = _Work(candidate.prepared, problem.work)
    starts = [np.asarray(candidate.start, dtype=float)]
    rng = np.random.default_rng(options.seed)
    if len(starts[0]):
        # one factor for all elements of a tensor keeps it positive definite
        kinds = [uncertainty.kind(p.name) for p in work.parameters]
        for _ in range(options.starts - 1):
            factors = {kind: _SPREAD ** rng.uniform(-1, 1) for kind in dict.fromkeys(kinds)}
            starts.append(starts[0] * np.array([factors[kind] for kind in kinds]))
    starts += _starts_of_sum(problem, candidate)
    return _lowest(problem, [minimise(work, projection, start) for start in starts])


def _starts_of_sum(problem: _Problem, candidate: Candidate) -> list:
    """Each part of a sum where it fits alone, the others beside it as strong as they fit alone."""
    parts = candidate.prepared.split(candidate.start)
    if len(parts) == 1:
        return []
    alone, scales = [], []
    for part, start in parts:
        work = _Work(part, problem.work)
        alone.append(minimise(work, problem.projection, start).values)
        scales.append(max(problem.projection.solve(work.intensity(alone[-1])).scale, 0.0))
    starts = []
    for mine in scales:
        values = []
        for (part, _), own, scale in zip(parts, alone, scales):
            ratio = min(scale / mine, 1.0) if mine > 0 else 1.0  # what a common scale makes of sigma² or V
            values += [v * ratio ** _POWERS.get(uncertainty.kind(p.name), 0.0) for p, v in zip(part.parameters, own)]
        starts.append(np.array(values))
    return starts


def _reweighted(problem: _Problem, candidates: list, found: list) -> tuple:
    """The problem with weights for a robust loss and by shell, and the minima with these, until both are settled.

    In each shell weights are divided by the lowest reduced chi² of all models.
    """
    data, options, work = problem.data, problem.options, problem.work
    shell, _ = shells_of(data.s, options.n_shells)
    by_shell, loss = options.weights == "shell", options.loss != "squares"
    number = np.maximum(np.bincount(shell[work], minlength=options.n_shells), 1)
    original, factors, outliers = problem.weights, np.ones(options.n_shells), np.ones(data.n)
    adjustment = problem.adjustment
    for _ in range(_ROBUST_ROUNDS if loss else _ROUNDS):
        residuals = []
        for candidate, best in zip(candidates, found):
            intensity = candidate.prepared.intensity(best.minimum.values)
            solved, b = problem.solve(intensity)
            residuals.append(data.intensity - solved.scale * intensity - b)
        settled = True
        if by_shell:
            chi = [original * outliers * r**2 for r in residuals]
            sums = [np.bincount(shell[work], c[work], options.n_shells) for c in chi]
            lowest = np.min(sums, axis=0) / number
            lowest = np.where(lowest > 0, lowest, 1.0)
            settled = np.abs(lowest / factors - 1).max() < _SETTLED
            factors = lowest
        if loss:
            lowest_model = min(range(len(found)), key=lambda i: found[i].minimum.objective)
            fresh = robust(options.loss, np.sqrt(original / factors[shell]) * residuals[lowest_model], work)
            settled &= np.abs(fresh.factors - outliers)[work].mean() < _ROBUST_SETTLED
            outliers, adjustment = fresh.factors, fresh.adjustment
        problem = replace(problem, weights=original / factors[shell] * outliers, adjustment=adjustment)
        found = [
            replace(best, minimum=minimise(*_objective(problem, c, best.strength), best.minimum.values))
            for c, best in zip(candidates, found)
        ]
        if settled:
            break
    return problem, found


def _finished(problem: _Problem, candidate: Candidate, best: _Best) -> ModelFit:
    """What the minimum says about the model."""
    data, options = problem.data, problem.options
    prepared, values = candidate.prepared, best.minimum.values
    inner, projection = _objective(problem, candidate, best.strength)
    everywhere = prepared.intensity(values)
    solved, b = problem.solve(everywhere)
    fitted = solved.scale * everywhere + b
    linearised = inner.jacobian(values)
    shares = np.ones(len(values)) if prepared.prior is None else projection.shares(*linearised)
    n_parameters = round(float(shares.sum())) + projection.n_linear
    chi2 = problem.adjustment * solved.objective / max(len(solved.residual) - n_parameters, 1)
    hessian = projection.hessian(*linearised, lambda w: inner.second(values, w))
    held = Region(prepared).reached(values)
    covariance, correlations, eigenvalues, loosest = uncertainty.errors(hessian, held, chi2)
    prior, p = None, len(values)
    if prepared.prior is not None:
        more, spread = projection.left_open(values, covariance[:p, :p], chi2)
        covariance[:p, :p] += more
        prior = PriorResult(best.strength, best.trials, shares, float(shares.sum()), spread)
    esd = np.sqrt(np.diag(covariance))
    bound = np.linalg.norm(held, axis=0) > 1 - 1e-9
    estimates = []
    for i, parameter in enumerate(prepared.parameters):
        profile = ()
        if options.profile and uncertainty.kind(parameter.name.split(".")[-1]) in _PROFILED and not bound[i]:
            profile = uncertainty.profile(inner, projection, best.minimum, i, esd[i], chi2)
        estimates.append(
            Estimate(parameter.name, parameter.unit, float(values[i]), float(esd[i]), bool(bound[i]), profile)
        )
    scale = Estimate("scale", "", solved.scale, float(esd[-1]) if options.scale is None else 0.0)
    models = tuple(part.model(own) for part, own in prepared.split(values))
    displacements = compare_displacements(models, prepared.structure)
    d_min = 1 / float(data.s.max())
    warnings = [
        *(model.lack_of_orders(d_min) for model in models),
        *uncertainty.warnings(prepared, best.minimum, estimates, scale, correlations),
        *uncertainty.other_minima(best.reached, best.starts),
        *uncertainty.end_of_strengths(best.trials, best.strength),
        *(comparison.warning for comparison in displacements),
    ]
    return ModelFit(
        name=candidate.name,
        models=models,
        scale=scale,
        intensity=everywhere,
        background=b,
        fitted=fitted,
        weights=problem.weights,
        statistics=statistics(data, fitted, problem.weights, n_parameters, options.n_shells),
        criteria=criteria(solved.objective, len(solved.residual), n_parameters),
        converged=best.minimum.converged,
        starts=best.starts,
        reached=best.reached,
        means=prepared.means,
        adjustment=problem.adjustment,
        displacements=displacements,
        warnings=tuple(f"{candidate.name}: {text}" for text in warnings if text),
        estimates=tuple(estimates),
        correlations=correlations,
        eigenvalues=eigenvalues,
        loosest=loosest,
        minimum=best.minimum,
        covariance=covariance,
        prior=prior,
        details=_details(prepared, values, models, covariance, prior),
    )


def _details(prepared: Prepared, values, models: tuple, covariance: np.ndarray, prior: PriorResult | None) -> tuple:
    found, begin = [], 0
    for model, (_, own) in zip(models, prepared.split(values)):
        rows = slice(begin, begin + len(own))
        share = None if prior is None else prior.share[rows]
        found.append(model.details(prepared.structure, covariance[rows, rows], share))
        begin = rows.stop
    return tuple(found)
