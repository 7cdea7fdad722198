"""Refinement of the scale model against the merged unique intensities."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dials_diffuse.parallel import Progress, in_threads, quiet
from dials_diffuse.scaling.error_model import (
    ErrorModel,
    Weights,
    find_outliers,
    first_error_model,
    update_errors,
    weigh,
)
from dials_diffuse.scaling.layout import Layout
from dials_diffuse.scaling.model import Prediction, ScaleModel, start_model
from dials_diffuse.scaling.normal import Normal, add, chi2, normal_equations
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import (
    System,
    TermTest,
    best_step,
    choose_strengths,
    held_out,
    judge,
    make_space,
    make_system,
    penalty,
)
from dials_diffuse.scaling.terms.base import Acts, Term
from dials_diffuse.scaling.terms.table import TERMS

logger = logging.getLogger("dials.diffuse.scaling")

#: observations on which the terms are tried
_TRIAL_OBSERVATIONS = 250_000
_TRIAL_STEPS = 4

#: smoothing of a term before its own is chosen
_FIRST_STRENGTH = 1e4

#: a step is not made shorter when it lowers χ² by this share of what is expected
_AS_EXPECTED = 0.5

#: steps end when χ² falls by less than this: no parameter then moves by a standard error
_SMALL = 0.5


@dataclass(frozen=True)
class Refinement:
    """A refined scale model and how it came about.

    Attributes
    ----------
    model, errors : ScaleModel and ErrorModel
    strengths : key -> smoothing of each term, by cross-validation
    tests : list of TermTest, in the order in which the terms were tried
    history : list of dictionaries, one for each step: terms, χ² per observation before it and as expected after it,
        share of the step that was taken, rejected observations, largest step of each term
    """

    model: ScaleModel
    errors: ErrorModel
    strengths: dict
    tests: list
    history: list


@dataclass(frozen=True)
class _State:
    model: ScaleModel
    prediction: Prediction
    errors: ErrorModel
    rejected: np.ndarray
    strengths: dict


class _Refiner:
    """Steps of the refinement on one set of observations, in folds of blocks of voxels."""

    def __init__(self, data: Observations, parameters: ScalingParameters, threads: int):
        fold = fold_of_blocks(data.block, parameters.n_folds, parameters.seed)
        order = np.argsort(fold, kind="stable")
        ends = np.searchsorted(fold[order], np.arange(parameters.n_folds + 1))
        self.data, self.parameters, self.threads = data.orbits(order), parameters, threads
        self.voxels = [slice(*ends[k : k + 2]) for k in range(parameters.n_folds)]
        self.rows = [slice(*np.searchsorted(self.data.orbit, [v.start, v.stop])) for v in self.voxels]
        self.folds = [self.data.part(v.start, v.stop) for v in self.voxels]
        self.spaces: dict = {}
        self.history: list = []

    def state(self, model: ScaleModel, errors: ErrorModel, strengths: dict) -> _State:
        prediction = self.predict(model)
        rejected = np.zeros(self.data.n, dtype=bool)
        if self.history:
            rejected = find_outliers(prediction, self.data, errors, self.parameters.outlier_n_sigma)
        return _State(model, prediction, errors, rejected, strengths)

    def predict(self, model: ScaleModel) -> Prediction:
        parts = in_threads(model.predict_observations, self.folds, self.threads)
        return Prediction(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts))))

    def weights(self, state: _State) -> Weights:
        return weigh(state.prediction, self.data, state.errors, state.rejected)

    def normals(self, state: _State, weights: Weights) -> list:
        """Normal equations of each fold."""

        folds = (
            (state.prediction.rows(rows), data, Weights(weights.weight[rows], weights.prior[voxels]))
            for rows, voxels, data in zip(self.rows, self.voxels, self.folds)
        )
        return list(in_threads(partial(_normal, state.model), folds, self.threads))

    def system(self, state: _State) -> System:
        terms = state.model.terms
        if terms not in self.spaces:
            self.spaces[terms] = make_space(state.model, self.data)
        return make_system(state.model, self.spaces[terms], float(np.median(state.errors.spread)))

    def improve(self, state: _State, n_steps: int, keys, new: bool = True) -> _State:
        """Up to ``n_steps`` Gauss-Newton steps; in the first two the strengths of terms with these keys are chosen.

        new : those of terms that are new, from all that there are
        """
        for number in range(n_steps):
            errors = update_errors(state.prediction, self.data, state.errors, state.rejected)
            state = replace(state, errors=errors)
            if self.history:
                limit = self.parameters.outlier_n_sigma
                state = replace(state, rejected=find_outliers(state.prediction, self.data, errors, limit))
            weights, system = self.weights(state), self.system(state)
            folds = self.normals(state, weights)
            if number < 2 and keys:
                strengths = choose_strengths(folds, system, state.strengths, keys, new)
                state = replace(state, strengths=strengths)
            normal = add(folds)
            step = best_step(normal, system, state.strengths)
            length, moved = self._moved(state, weights, normal, system, step)
            self._note(state, normal, step, length)
            state = moved
            if number and normal.chi2 - normal.at(length * step) < _SMALL:
                break
        return state

    def test(self, term: Term, without: _State, having: _State) -> TermTest:
        """Are voxels that were kept out predicted better by having a term? Both with the same weights."""
        weights = self.weights(having)
        chi2_of = [
            held_out(self.normals(state, weights), self.system(state), state.strengths) for state in (without, having)
        ]
        return judge(term, *chi2_of, int(np.count_nonzero(weights.weight)))

    def _moved(self, state, weights, normal, system, step) -> tuple:
        """Share of a step that lowers χ² and penalties, and the state after it: the model is not linear."""
        best, best_value, length = (0.0, state), normal.chi2, 1.0
        while length > 0.05:
            model = state.model.moved(length * step)
            prediction = self.predict(model)
            change = penalty(system, state.strengths, step, length)
            value = chi2(prediction, self.data, weights) + change
            if value < best_value:
                best, best_value = (length, replace(state, model=model, prediction=prediction)), value
            expected = normal.at(length * step) + change - normal.chi2
            if best[0] > 0 and (value > best_value or value - normal.chi2 < _AS_EXPECTED * expected):
                break
            length /= 2
        return best

    def _note(self, state, normal, step, length) -> None:
        blocks = [b for b in state.model.blocks if b.acts is not Acts.PROFILE]
        self.history.append(
            {
                "terms": list(state.model.terms),
                "chi2": normal.chi2 / max(normal.n, 1),
                "chi2_expected": normal.at(length * step) / max(normal.n, 1),
                "length": length,
                "rejected": int(state.rejected.sum()),
                "largest_steps": {b.key: float(np.abs(step[b.all]).max()) for b in blocks},
            }
        )
        logger.debug("step %d: %s", len(self.history), self.history[-1])


def refine(
    data: Observations,
    layout: Layout,
    parameters: ScalingParameters,
    threads: int = 1,
    progress: Progress = quiet,
    start: ScaleModel | None = None,
) -> Refinement:
    """Refine all terms together against the intensities of the unique voxels.

    Terms are added one after the other, on a part of the observations: each has to predict voxels that were kept out
    of the fit better than the model without it. Then all that stayed are refined together.

    Parameters
    ----------
    data : observations of a random choice of unique voxels
    threads : for the normal equations
    start : model whose coefficients are those to begin with, of terms that are tried
    """
    full = start_model(data, layout, parameters) if start is None else start
    share = min(1.0, _TRIAL_OBSERVATIONS / data.n)
    some = np.flatnonzero(np.random.default_rng(parameters.seed).random(len(data.unique)) < share)
    trial = _Refiner(data.orbits(some), parameters, threads)
    state = trial.state(full.with_terms(()), first_error_model(trial.data), {})
    state = trial.improve(state, _TRIAL_STEPS, ())
    tests: dict = {}
    order = [full.block(term.key) for term in TERMS if term.key in full.terms]
    for term in progress(2 * order, 2 * len(order), "Trying the terms"):
        key = term.key
        tried = tests.get(key)
        if tried is not None and (key in state.model.terms or tried[1] == state.model.terms):
            continue  # the second round is for those that the first, without the others, found to be useless
        chosen = (key,) if term.smoothing is None else ()
        strengths = {**state.strengths, **dict.fromkeys(chosen, _FIRST_STRENGTH)}
        candidate = trial.state(state.model.with_term(full, key), state.errors, strengths)
        candidate = trial.improve(candidate, _TRIAL_STEPS, chosen)
        result = trial.test(term, state, candidate)
        if result.kept or not parameters.automatic:
            state = candidate
        tests[key] = (result, state.model.terms)
    every = _Refiner(data, parameters, threads)
    every.history = trial.history
    state = every.state(state.model, state.errors, state.strengths)
    for _ in progress(range(1), 1, "Refining the scale model"):
        state = every.improve(state, parameters.n_cycles, tuple(state.strengths), new=False)
    return Refinement(state.model, state.errors, state.strengths, [t for t, _ in tests.values()], every.history)


def _normal(model: ScaleModel, fold: tuple) -> Normal:
    prediction, data, weights = fold
    return normal_equations(model, prediction, data, weights)


def fold_of_blocks(block: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """(m,) int, fold of each voxel: all voxels of a block are in the same."""
    names, number = np.unique(block, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names)) % n_folds
    return order[number.reshape(-1)]
