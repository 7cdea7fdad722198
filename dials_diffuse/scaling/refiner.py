"""Steps of the refinement on one set of observations, in folds of which each can be kept out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from dials_diffuse.parallel import in_threads
from dials_diffuse.scaling.error_model import ErrorModel, find_outliers, update_errors, weigh
from dials_diffuse.scaling.judging import Judgement, Stretch, judge_terms
from dials_diffuse.scaling.layout import T
from dials_diffuse.scaling.model import Prediction, ScaleModel
from dials_diffuse.scaling.normal import Normal, Part, add, bases_of, chi2, normal_equations, subtract, with_slopes
from dials_diffuse.scaling.sample import Observations, alike
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import System, make_system, most_probable_strengths, penalty, posterior, projected
from dials_diffuse.scaling.terms.base import Acts
from dials_diffuse.scaling.uncertainty import ScaleErrors, scale_errors

logger = logging.getLogger("dials.diffuse.scaling")

#: each sweep is cut into so many stretches of images to test the terms
_STRETCHES = 4

#: a step is not made shorter when it lowers χ² by this share of what is expected
_AS_EXPECTED = 0.5

#: neighbourhoods of two blocks are kept out as a whole where a fold has as many, else single blocks. Larger ones would
#: ask for extrapolation
_LEAST_IN_FOLD = 5

#: steps end when χ² will fall by less than this: no parameter then moves by a standard error. Tests of terms ask less
_SMALL, SMALL_FOR_TESTS = 0.5, 5.0

#: what the next step brings is told by the last two only when the last one brought less than so many times that:
#: weights and priors change, too
_NEAR = 20.0

#: the matrix of a step is good for the next ones until one of them brings more than this share of the one before, or
#: more than this per observation: the gradient and the weights that it is found with are always new
_MATRIX_SERVES, _FAR = 0.2, 0.08

#: share of a step that is still tried
_SHORTEST = 0.06

#: observations that are enough for another thread of its own
_FOR_A_THREAD = 30_000


@dataclass(frozen=True)
class State:
    model: ScaleModel
    prediction: Prediction
    errors: ErrorModel
    rejected: np.ndarray
    strengths: dict


class _Step(NamedTuple):
    """What the last step was found from: normal equations of each fold, and of all, projected; its system, strengths.

    fall : of χ² and priors that it was expected to bring; left : that another step is expected to bring
    """

    folds: list
    normal: Normal
    system: System
    strengths: dict
    fall: float
    left: float


class Refiner:
    """Steps of the refinement on one set of observations, in folds of blocks of voxels."""

    def __init__(self, data: Observations, parameters: ScalingParameters, threads: int, spaces: Callable):
        fold = fold_of_blocks(_kept_together(data, parameters.n_folds), parameters.n_folds, parameters.seed)
        order = alike(data.coordinates[data.first], fold)
        ends = np.searchsorted(fold[order], np.arange(parameters.n_folds + 1))
        self.data, self.parameters, self.threads = data.orbits(order), parameters, threads
        self.voxels = [slice(*ends[k : k + 2]) for k in range(parameters.n_folds)]
        self.rows = [slice(*np.searchsorted(self.data.orbit, [v.start, v.stop])) for v in self.voxels]
        self.folds = [self.data.part(v.start, v.stop) for v in self.voxels]
        self.spaces = spaces
        self.history: list = []
        self._last: _Step | None = None
        self._bases: tuple = (None, [])  # terms of a model, and its Bases for each fold
        self._kept: tuple = (None, [])  # terms of a model, and its Normal of each group of folds, for the next step

    @property
    def last(self) -> _Step:
        """The last step; there is one after :meth:`improve`."""
        if self._last is None:
            raise RuntimeError("no step was made yet")
        return self._last

    def state(self, model: ScaleModel, errors: ErrorModel, strengths: dict) -> State:
        prediction = self.predict(model)
        rejected = np.zeros(self.data.n, dtype=bool)
        if self.history:
            rejected = find_outliers(prediction, self.data, errors, self.parameters.outlier_n_sigma)
        return State(model, prediction, errors, rejected, strengths)

    def predict(self, model: ScaleModel) -> Prediction:
        parts = in_threads(model.predict_observations, self.folds, self.threads)
        return Prediction(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts))))

    def weights(self, state: State) -> list:
        """Weights of each fold."""
        return [
            weigh(state.prediction.rows(rows), data, state.errors, state.rejected[rows])
            for rows, data in zip(self.rows, self.folds)
        ]

    def _groups(self, state: State, weights: list, number: int) -> list:
        """A list of Part for each of ``number`` groups of folds."""
        if self._bases[0] != state.model.terms:
            found = in_threads(partial(bases_of, state.model), [d.rows for d in self.folds], self.threads)
            self._bases = state.model.terms, list(found)
        parts = [
            Part(state.prediction.rows(rows), *x) for rows, *x in zip(self.rows, self.folds, weights, self._bases[1])
        ]
        return [[parts[k] for k in some] for some in np.array_split(np.arange(len(parts)), number)]

    def normals(self, state: State, weights: list, apart: bool) -> list:
        """Normal equations of each fold; unless they are wanted apart, of folds together, where there are few data.

        How many there are never depends on the threads: sums in another order are not the same, bit for bit.
        """
        number = len(self.folds) if apart else int(np.clip(self.data.n // _FOR_A_THREAD, 1, len(self.folds)))
        groups = self._groups(state, weights, number)
        return list(in_threads(partial(normal_equations, state.model), groups, self.threads))

    def _slopes(self, state: State, weights: list) -> list:
        """What is kept of the last step, with new gradients."""
        kept = self._kept[1]
        groups = zip(kept, self._groups(state, weights, len(kept)))
        return list(in_threads(partial(_with_slopes, state.model), groups, self.threads))

    def _serves(self, state: State, apart: bool) -> bool:
        """Can the matrices of the last step be those of the next one?"""
        terms, kept = self._kept
        return terms == state.model.terms and not (apart and len(kept) < len(self.folds))

    def keep_matrix(self, model: ScaleModel, smaller: ScaleModel) -> None:
        """What the last step of a model was found from serves as well for one with some of its terms."""
        place = {b.key: b.all for b in model.blocks}
        columns = np.concatenate([np.arange(place[b.key].start, place[b.key].stop) for b in smaller.blocks])
        if self._kept[0] == model.terms:
            self._kept = smaller.terms, [normal.of_columns(columns) for normal in self._kept[1]]

    def chi2(self, prediction: Prediction, weights: list) -> float:
        return sum(chi2(prediction.rows(rows), *x) for rows, *x in zip(self.rows, self.folds, weights))

    def system(self, state: State) -> System:
        return make_system(state.model, self.spaces(state.model), float(np.median(state.errors.spread)))

    def improve(self, state: State, n_steps: int, small: float = _SMALL, apart: bool = False) -> State:
        """Up to ``n_steps`` Gauss-Newton steps, each with the most probable strengths of the priors.

        small : fall of χ² that ends them, where another step is expected to bring less: near the minimum the square of
            the last one over the one before
        apart : are the equations of each fold wanted, by :meth:`test`?
        """
        before = np.inf
        for _ in range(n_steps):
            errors = update_errors(state.prediction, self.data, state.errors, state.rejected)
            state = replace(state, errors=errors)
            if self.history:
                limit = self.parameters.outlier_n_sigma
                state = replace(state, rejected=find_outliers(state.prediction, self.data, errors, limit))
            weights, system = self.weights(state), self.system(state)
            if self._serves(state, apart):
                folds = self._slopes(state, weights)
                now, normal, found, length, moved = self._step(state, weights, system, folds, self.last.fall, 1.0)
            else:
                length = 0.0
            if length < 1:
                folds = self.normals(state, weights, apart)
                now, normal, found, length, moved = self._step(state, weights, system, folds, np.inf, _SHORTEST)
            self._kept = state.model.terms, folds
            self._note(now, normal, system.space.free @ found.step, found.step, length)
            left = found.fall * (min(1.0, found.fall / before) if length == 1 else 1.0)
            self._last = _Step(folds, normal, system, now.strengths, found.fall, left)
            if length < 1 or found.fall > min(_MATRIX_SERVES * before, _FAR * self.data.n):
                self._kept = None, []
            state = moved
            if before < np.inf and left < small and found.fall < _NEAR * small:
                break
            before = found.fall
        return state

    def test(self, terms, stretches: list) -> Judgement:
        """Of the terms, by the last step: the equations know where the minimum is.

        stretches : see :meth:`stretches`
        """
        last = self.last
        folds = [projected(fold, last.system.space) for fold in last.folds]
        return judge_terms(folds, stretches, last.system, last.strengths, terms)

    def stretches(self, state: State) -> list:
        """Stretches of images, each of the same share of every sweep."""
        space, number = self.spaces(state.model), np.minimum(self.data.coordinates[:, T] * _STRETCHES, _STRETCHES - 1)
        of_all = projected(add(self.normals(state, self.weights(state), False)), space)
        result = []
        for k in range(_STRETCHES):
            rest = replace(state, rejected=state.rejected | (number.astype(int) == k))
            others = projected(add(self.normals(rest, self.weights(rest), False)), space)
            result.append(Stretch(subtract(of_all, others), others))
        return result

    def scale_errors(self, state: State, n_sweeps: int) -> ScaleErrors:
        """Of the state after the last step: where steps ended too early, equations are found once more."""
        system, normal = self.system(state), self.last.normal
        if self.last.left >= _SMALL:
            normal = projected(add(self.normals(state, self.weights(state), False)), system.space)
        covariance = posterior(normal, system, state.strengths).covariance
        covariance = system.space.free @ covariance @ system.space.free.T
        return scale_errors(state.model, self.data, state.prediction, covariance, n_sweeps)

    def _step(self, state: State, weights: list, system: System, folds: list, most: float, shortest: float) -> tuple:
        """A step from the normal equations of folds.

        most : fall of χ² from which on it is not tried; shortest : share of it that still is

        Returns
        -------
        State with its strengths, Normal of all, Posterior, and see :meth:`_moved`
        """
        normal = projected(add(folds), system.space)
        strengths = most_probable_strengths(normal, system, {**system.first, **state.strengths})
        state = replace(state, strengths={key: strengths[key] for key in system.first})
        found = posterior(normal, system, state.strengths)
        if found.fall > most:
            return state, normal, found, 0.0, state
        return state, normal, found, *self._moved(state, weights, normal, system, found.step, shortest)

    def _moved(self, state, weights, normal, system, step, shortest) -> tuple:
        """Share of a step that lowers χ² and penalties, and the state after it: the model is not linear."""
        best, best_value, length = (0.0, state), normal.chi2, 1.0
        while length >= shortest:
            model = state.model.moved(length * (system.space.free @ step))
            prediction = self.predict(model)
            change = penalty(system, state.strengths, step, length)
            value = self.chi2(prediction, weights) + change
            if value < best_value:
                best, best_value = (length, replace(state, model=model, prediction=prediction)), value
            expected = normal.at(length * step) + change - normal.chi2
            if best[0] > 0 and (value > best_value or value - normal.chi2 < _AS_EXPECTED * expected):
                break
            length /= 2
        return best

    def _note(self, state, normal, step, direction, length) -> None:
        blocks = [b for b in state.model.blocks if b.acts is not Acts.PROFILE]
        self.history.append(
            {
                "terms": list(state.model.terms),
                "chi2": normal.chi2 / max(normal.n, 1),
                "chi2_expected": normal.at(length * direction) / max(normal.n, 1),
                "length": length,
                "rejected": int(state.rejected.sum()),
                "largest_steps": {b.key: float(np.abs(step[b.all]).max()) for b in blocks},
            }
        )
        logger.debug("step %d: %s", len(self.history), self.history[-1])


def _kept_together(data: Observations, n_folds: int) -> np.ndarray:
    """(m,) int, voxels with the same number are kept out of the fit together."""
    small, large = data.neighbourhood.T[:2]
    return large if len(np.unique(large)) >= _LEAST_IN_FOLD * n_folds else small


def _with_slopes(model: ScaleModel, item: tuple) -> Normal:
    normal, parts = item
    return with_slopes(model, normal, parts)


def fold_of_blocks(block: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """(m,) int, fold of each voxel: all voxels of a block are in the same."""
    names, number = np.unique(block, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names)) % n_folds
    return order[number.reshape(-1)]
