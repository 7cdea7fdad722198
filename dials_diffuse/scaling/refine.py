"""Refinement of the scale model against the merged unique intensities."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.kernels.scaling import deviations, orbit_sums, worst_deviation
from dials_diffuse.scaling.data import Layout, Observations, S
from dials_diffuse.scaling.model import Prediction, ScaleModel, start_model
from dials_diffuse.scaling.normal import add, chi2, normal_equations
from dials_diffuse.scaling.parameters import ScalingParameters
from dials_diffuse.scaling.solve import best_step, choose_strengths, compare_terms, make_system, penalty

logger = logging.getLogger("dials.diffuse.scaling")

N_SHELLS = 20

#: smoothing of the first steps, before cross-validation
_FIRST_STRENGTH = 1e3
_FIRST_STEPS = 4

#: steps end when χ² falls by less than this for each parameter
_SMALL = 0.05

#: c is left alone first: as long as the intensities are wrong it is the same as b
_STEPS_WITHOUT_OFFSET = 2

#: median of χ² with one degree of freedom
_MEDIAN_CHI2 = 0.4549

_LEAST_COUNTS = 0.05

#: of the anisotropic part, relative to the isotropic
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class ErrorModel:
    """Variance of counts that the model expects: Poisson, background, and a share of the signal.

    Attributes
    ----------
    shells : (k + 1,) float64, |s| from shell to shell
    excess : (k,) float64, relative error that comes from sampling: a voxel's observations see different parts of it
    spread : (k,) float64, standard deviation of the anisotropic part relative to the isotropic
    """

    shells: np.ndarray
    excess: np.ndarray
    spread: np.ndarray

    def shell(self, s: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.shells, s, side="right") - 1, 0, len(self.spread) - 1)

    def expected(self, prediction: Prediction, background: np.ndarray) -> np.ndarray:
        """(n,) expected counts without anisotropic part, never from the observed ones: that would bias weak data."""
        return np.maximum(prediction.isotropic + background, _LEAST_COUNTS)

    def variance(self, prediction: Prediction, background, background_variance, s) -> np.ndarray:
        """(n,) variance of the counts of observations."""
        relative = self.excess[self.shell(s)] * prediction.unit * prediction.profile
        return self.expected(prediction, background) + background_variance + relative**2

    def prior(self, s: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """(m,) 1 / variance of the anisotropic part of voxels at |s| where the isotropic part is ``profile``."""
        level = np.maximum(profile, 1e-3 * float(np.mean(np.abs(profile))) + 1e-300)
        return (self.spread[self.shell(s)] * level) ** -2.0


@dataclass(frozen=True)
class Weights:
    """Weights of observations (n,), zero when rejected, and the priors of voxels (m,)."""

    weight: np.ndarray
    prior: np.ndarray


def first_error_model(data: Observations) -> ErrorModel:
    """Equal numbers of observations in each shell, an anisotropic part of a fifth."""
    shells = np.quantile(data.coordinates[:, S], np.linspace(0, 1, N_SHELLS + 1))
    return ErrorModel(shells, np.zeros(N_SHELLS), np.full(N_SHELLS, 0.2))


def weigh(model: ScaleModel, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> Weights:
    """Weights from the present model; rejected : (n,) bool."""
    prediction = model.predict_observations(data)
    variance = errors.variance(prediction, data.background, data.background_variance, data.coordinates[:, S])
    first = np.searchsorted(data.orbit, np.arange(len(data.unique)))
    prior = errors.prior(data.s_voxel[first], prediction.profile_at_voxel[first])
    return Weights(np.where(rejected, 0.0, 1 / variance), prior)


def update_errors(model: ScaleModel, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> ErrorModel:
    """Excess from the median of squared deviations in each shell, spread from the variance between voxels."""
    prediction = model.predict_observations(data)
    weights = weigh(model, data, errors, rejected)
    w, unit = weights.weight, prediction.unit
    residual = data.net - prediction.isotropic - unit * prediction.profile * model.smooth_anisotropic(data)
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(data.orbit, w, residual, unit, rejected, sums)
    measured = sums[:, 1] > 0
    anisotropic = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=measured)
    error = np.divide(1, sums[:, 1], out=np.zeros(len(sums)), where=measured)
    first = np.searchsorted(data.orbit, np.arange(len(data.unique)))
    level = np.maximum(prediction.profile_at_voxel[first], 1e-12)
    shell_of_voxel, shell = errors.shell(data.s_voxel[first]), errors.shell(data.coordinates[:, S])
    leverage = w * unit**2 * error[data.orbit]
    usable = (w > 0) & (leverage < 0.7)
    r2 = (residual - unit * anisotropic[data.orbit]) ** 2 / np.maximum(1 - leverage, 0.1)
    poisson = errors.expected(prediction, data.background) + data.background_variance
    signal = (unit * prediction.profile) ** 2
    excess, spread = errors.excess.copy(), errors.spread.copy()
    for k in range(len(spread)):
        mine = usable & (shell == k)
        if np.count_nonzero(mine) > 100:
            excess[k] = _excess(r2[mine], poisson[mine], signal[mine])
        voxels = measured & (shell_of_voxel == k)
        if np.count_nonzero(voxels) > 100:  # a step of expectation maximisation: never negative, stable
            inverse = sums[voxels, 1] + weights.prior[voxels]
            mean = sums[voxels, 0] / inverse
            spread[k] = np.sqrt(np.clip(np.mean((mean**2 + 1 / inverse) / level[voxels] ** 2), _LEAST_SPREAD**2, 1.0))
    return replace(errors, excess=excess, spread=spread)


def _excess(r2, poisson, signal) -> float:
    """Relative error for which the median of r² / variance is that of χ²; 0 where Poisson noise explains it all."""
    low, high = 0.0, 1.0
    if np.median(r2 / poisson) <= _MEDIAN_CHI2:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        if np.median(r2 / (poisson + middle**2 * signal)) > _MEDIAN_CHI2:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def find_outliers(model: ScaleModel, data: Observations, errors: ErrorModel, n_sigma: float) -> np.ndarray:
    """(n,) bool, observations that deviate by more than ``n_sigma`` from what the others of their voxel predict.

    In each round only the worst observation of a voxel goes: a wrong one makes its mates look wrong. What was rejected
    before comes back when it fits.
    """
    if n_sigma == 0:
        return np.zeros(data.n, dtype=bool)
    prediction = model.predict_observations(data)
    weights = weigh(model, data, errors, np.zeros(data.n, dtype=bool))
    return reject(
        data.orbit,
        weights.weight,
        data.net - prediction.isotropic,
        prediction.unit,
        data.counts,
        errors.expected(prediction, data.background),
        weights.prior,
        n_sigma,
    )


def reject(orbit, weight, residual, unit, counts, expected, prior, n_sigma: float, rounds: int = 4) -> np.ndarray:
    """The rounds of :func:`find_outliers` on plain arrays, see ``kernels.scaling.deviations``."""
    rejected = np.zeros(len(orbit), dtype=bool)
    deviation = np.empty(len(orbit), dtype=np.float32)
    for _ in range(rounds):
        sums = np.zeros((len(prior), 2))
        orbit_sums(orbit, weight, residual, unit, rejected, sums)
        deviations(orbit, weight, residual, unit, counts, expected, prior, sums, rejected, deviation)
        worst = np.zeros(len(prior), dtype=np.float32)
        worst_deviation(orbit, deviation, rejected, n_sigma, worst)
        bad = np.flatnonzero(np.abs(deviation) > n_sigma)
        bad = bad[rejected[bad] | (np.abs(deviation[bad]) >= worst[orbit[bad]])]
        if np.count_nonzero(rejected) == len(bad) and rejected[bad].all():
            break
        rejected[:] = False
        rejected[bad] = True
    return rejected


@dataclass(frozen=True)
class Refinement:
    """A refined scale model and how it came about.

    Attributes
    ----------
    model, errors : ScaleModel and ErrorModel
    strengths : smoothing of each term, by cross-validation
    tests : list of TermTest
    history : list of dictionaries, one for each step: χ² per observation before it and as expected after it, share of
        the step that was taken, rejected observations, largest step of each term
    """

    model: ScaleModel
    errors: ErrorModel
    strengths: dict
    tests: list
    history: list


def refine(
    data: Observations,
    layout: Layout,
    parameters: ScalingParameters,
    threads: int = 1,
    progress=lambda items, total, label: items,
) -> Refinement:
    """Refine all terms together against the intensities of the unique voxels.

    First with moderate smoothing; then strengths and terms are chosen by cross-validation over voxels, and the last
    steps follow.

    Parameters
    ----------
    data : observations of a random choice of unique voxels
    threads : for the normal equations
    """
    model = start_model(data, layout, parameters)
    errors = first_error_model(data)
    rejected = np.zeros(data.n, dtype=bool)
    strengths = {name: _FIRST_STRENGTH for name in model.terms if name != "m"}
    fold = np.random.default_rng(parameters.seed).integers(0, parameters.n_folds, len(data.unique))
    parts = [data.orbits(fold == k) for k in range(parameters.n_folds)]
    tests, history = [], []
    n_steps = _FIRST_STEPS + 1 + parameters.n_cycles
    for number in progress(range(n_steps), n_steps, "Refining the scale model"):
        if number:
            errors = update_errors(model, data, errors, rejected)
            rejected = find_outliers(model, data, errors, parameters.outlier_n_sigma)
        weights = weigh(model, data, errors, rejected)
        spread = float(np.median(errors.spread))
        choosing = number == _FIRST_STEPS
        if choosing:
            folds = []
            for k, part in enumerate(parts):
                rows, voxels = (fold == k)[data.orbit], fold == k
                folds.append(normal_equations(model, part, weights.weight[rows], weights.prior[voxels], threads))
            system = make_system(model, data, spread)
            strengths, held_out = choose_strengths(folds, system, strengths)
            tests = compare_terms(folds, model, data, spread, strengths, held_out)
            normal = add(folds)
        else:
            normal = normal_equations(model, data, weights.weight, weights.prior, threads)
            system = make_system(model, data, spread, frozen="c" if number < _STEPS_WITHOUT_OFFSET else ())
        step = best_step(normal, system, strengths)
        length = _length(model, data, weights, normal, system, strengths, step)
        history.append(
            {
                "chi2": normal.chi2 / max(normal.n, 1),
                "chi2_expected": normal.at(length * step) / max(normal.n, 1),
                "length": length,
                "rejected": int(rejected.sum()),
                "largest_steps": {b.name: float(np.abs(step[b.all]).max()) for b in model.blocks if b.name != "p"},
            }
        )
        logger.debug("step %d: %s", number, history[-1])
        model = model.moved(length * step)
        if number > _FIRST_STEPS and normal.chi2 - normal.at(length * step) < _SMALL * model.n_parameters:
            break
        if choosing and parameters.automatic:
            kept = tuple(t.name for t in tests if t.kept)
            if set(kept) != set(model.terms):
                model = model.with_terms(kept)
                strengths = {name: strengths[name] for name in strengths if name in kept}
    return Refinement(model, errors, strengths, tests, history)


def _length(model, data, weights, normal, system, strengths, step) -> float:
    """Share of a step that lowers χ² and penalties: the model is not linear."""
    best, best_value, length = 0.0, normal.chi2, 1.0
    while length > 0.05:
        value = chi2(model.moved(length * step), data, weights.weight, weights.prior)
        value += penalty(system, strengths, step, length)
        if value < best_value:
            best, best_value = length, value
        elif best > 0:
            break
        length /= 2
    return best
