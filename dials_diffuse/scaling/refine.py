"""Refinement of the scale model against the merged unique intensities."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.scaling.data import Layout, Observations
from dials_diffuse.scaling.errors import ErrorModel, Weights, find_outliers, first_error_model, update_errors, weigh
from dials_diffuse.scaling.model import ScaleModel, start_model
from dials_diffuse.scaling.normal import add, chi2, normal_equations
from dials_diffuse.scaling.parameters import ScalingParameters
from dials_diffuse.scaling.solve import TermTest, best_step, choose_strengths, held_out, judge, make_system, penalty

logger = logging.getLogger("dials.diffuse.scaling")

#: terms are added in this order. c comes last: as long as the crystals are not on one scale it is much the same as b
ORDER = "bmhadc"

#: observations on which the terms are tried
_TRIAL_OBSERVATIONS = 250_000
_TRIAL_STEPS = 4

#: smoothing of a term before its own is chosen
_FIRST_STRENGTH = 1e4

#: steps end when χ² falls by less than this: no parameter then moves by a standard error
_SMALL = 0.5


@dataclass(frozen=True)
class Refinement:
    """A refined scale model and how it came about.

    Attributes
    ----------
    model, errors : ScaleModel and ErrorModel
    strengths : smoothing of each term, by cross-validation
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
    errors: ErrorModel
    rejected: np.ndarray
    strengths: dict


class _Refiner:
    """Steps of the refinement on one set of observations, in folds of blocks of voxels."""

    def __init__(self, data: Observations, parameters: ScalingParameters, threads: int):
        self.data, self.parameters, self.threads = data, parameters, threads
        self.fold = fold_of_blocks(data.block, parameters.n_folds, parameters.seed)
        self.parts = [data.orbits(self.fold == k) for k in range(parameters.n_folds)]
        self.history: list = []

    def start(self, model: ScaleModel, errors: ErrorModel, strengths: dict) -> _State:
        return _State(model, errors, np.zeros(self.data.n, dtype=bool), strengths)

    def weights(self, state: _State) -> Weights:
        return weigh(state.model, self.data, state.errors, state.rejected)

    def normals(self, model: ScaleModel, weights: Weights) -> list:
        """Normal equations of each fold."""
        result = []
        for k, part in enumerate(self.parts):
            rows, voxels = (self.fold == k)[self.data.orbit], self.fold == k
            parts = weights.weight[rows], weights.prior[voxels]
            result.append(normal_equations(model, part, *parts, self.threads))
        return result

    def system(self, state: _State):
        return make_system(state.model, self.data, float(np.median(state.errors.spread)))

    def improve(self, state: _State, n_steps: int, names, new: bool = True) -> _State:
        """Up to ``n_steps`` Gauss-Newton steps; in the first two the strengths of ``names`` are chosen.

        new : those of terms that are new, from all that there are
        """
        for number in range(n_steps):
            errors = update_errors(state.model, self.data, state.errors, state.rejected)
            state = replace(state, errors=errors)
            if self.history:
                limit = self.parameters.outlier_n_sigma
                state = replace(state, rejected=find_outliers(state.model, self.data, errors, limit))
            weights, system = self.weights(state), self.system(state)
            folds = self.normals(state.model, weights)
            if number < 2 and names:
                strengths = choose_strengths(folds, system, state.strengths, names, new)
                state = replace(state, strengths=strengths)
            normal = add(folds)
            step = best_step(normal, system, state.strengths)
            length = self._length(state, weights, normal, system, step)
            self._note(state, normal, step, length)
            state = replace(state, model=state.model.moved(length * step))
            if number and normal.chi2 - normal.at(length * step) < _SMALL:
                break
        return state

    def test(self, name: str, without: _State, having: _State) -> TermTest:
        """Are voxels that were kept out predicted better by having a term? Both with the same weights."""
        weights = self.weights(having)
        chi2_of = [
            held_out(self.normals(state.model, weights), self.system(state), state.strengths)
            for state in (without, having)
        ]
        return judge(name, *chi2_of, int(np.count_nonzero(weights.weight)))

    def _length(self, state, weights, normal, system, step) -> float:
        """Share of a step that lowers χ² and penalties: the model is not linear."""
        best, best_value, length = 0.0, normal.chi2, 1.0
        while length > 0.05:
            value = chi2(state.model.moved(length * step), self.data, weights.weight, weights.prior)
            value += penalty(system, state.strengths, step, length)
            if value < best_value:
                best, best_value = length, value
            elif best > 0:
                break
            length /= 2
        return best

    def _note(self, state, normal, step, length) -> None:
        blocks = [b for b in state.model.blocks if b.name != "p"]
        self.history.append(
            {
                "terms": list(state.model.terms),
                "chi2": normal.chi2 / max(normal.n, 1),
                "chi2_expected": normal.at(length * step) / max(normal.n, 1),
                "length": length,
                "rejected": int(state.rejected.sum()),
                "largest_steps": {b.name: float(np.abs(step[b.all]).max()) for b in blocks},
            }
        )
        logger.debug("step %d: %s", len(self.history), self.history[-1])


def refine(
    data: Observations,
    layout: Layout,
    parameters: ScalingParameters,
    threads: int = 1,
    progress=lambda items, total, label: items,
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
    chosen = np.random.default_rng(parameters.seed).random(len(data.unique)) < share
    trial = _Refiner(data if share == 1 else data.orbits(chosen), parameters, threads)
    state = trial.start(full.with_terms(()), first_error_model(trial.data), {})
    state = trial.improve(state, _TRIAL_STEPS, ())
    tests: dict = {}
    order = sorted(full.terms, key=ORDER.index)
    for name in progress(2 * order, 2 * len(order), "Trying the terms"):
        tried = tests.get(name)
        if tried is not None and (name in state.model.terms or tried[1] == state.model.terms):
            continue  # the second round is for those that the first, without the others, found to be useless
        strengths = state.strengths if name == "m" else {**state.strengths, name: _FIRST_STRENGTH}
        candidate = replace(state, model=state.model.with_term(full, name), strengths=strengths)
        candidate = trial.improve(candidate, _TRIAL_STEPS, () if name == "m" else (name,))
        result = trial.test(name, state, candidate)
        if result.kept or not parameters.automatic:
            state = candidate
        tests[name] = (result, state.model.terms)
    every = _Refiner(data, parameters, threads)
    every.history = trial.history
    rejected = find_outliers(state.model, data, state.errors, parameters.outlier_n_sigma)
    state = replace(state, rejected=rejected)
    for _ in progress(range(1), 1, "Refining the scale model"):
        state = every.improve(state, parameters.n_cycles, tuple(state.strengths), new=False)
    return Refinement(state.model, state.errors, state.strengths, [t for t, _ in tests.values()], every.history)


def fold_of_blocks(block: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """(m,) int, fold of each voxel: all voxels of a block are in the same."""
    names, number = np.unique(block, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names)) % n_folds
    return order[number.reshape(-1)]
