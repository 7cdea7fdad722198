"""Refinement of the scale model against the merged unique intensities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.parallel import Progress, quiet
from dials_diffuse.scaling.error_model import ErrorModel, first_error_model
from dials_diffuse.scaling.judging import Gain, Judgement
from dials_diffuse.scaling.layout import Layout
from dials_diffuse.scaling.model import ScaleModel, start_model
from dials_diffuse.scaling.refiner import SMALL_FOR_TESTS, Refiner
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import Space, make_space
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.terms.table import TERMS
from dials_diffuse.scaling.uncertainty import ScaleErrors

#: observations on which the terms are tried, and on which refinement begins: it starts far away
_TRIAL_OBSERVATIONS, _FIRST_OBSERVATIONS = 150_000, 30_000

#: observations of the stretches of images that terms are tested on
_STRETCHED_OBSERVATIONS = 12_000

#: steps, at most, without terms, with those that differ most between sweeps, with all of them, and with those that stay
_FEW_STEPS, _TRIAL_STEPS = 3, 6


@dataclass(frozen=True)
class Trial:
    """Where another refinement of nearly the same data can begin: before the last terms are tried.

    Attributes
    ----------
    full : ScaleModel with all terms, the coefficients at their start
    model, errors : ScaleModel and ErrorModel
    strengths : key -> Strength
    history : of Refinement, the steps until then
    """

    full: ScaleModel
    model: ScaleModel
    errors: ErrorModel
    strengths: dict
    history: list


@dataclass(frozen=True)
class Refinement:
    """A refined scale model and how it came about.

    Attributes
    ----------
    model, errors : ScaleModel and ErrorModel
    strengths : key -> Strength of the prior of each term, those of the crystal included
    judgement : Judgement of the terms, in the order of their table
    history : list of dictionaries, one for each step: terms, χ² per observation before it and as expected after it,
        share of the step that was taken, rejected observations, largest step of each term
    scale_errors : how well the scale of an observation is known
    trial : Trial, for the next refinement; None of a model that another run refined
    """

    model: ScaleModel
    errors: ErrorModel
    strengths: dict
    judgement: Judgement
    history: list
    scale_errors: ScaleErrors
    trial: Trial | None


def refine(
    data: Observations,
    layout: Layout,
    parameters: ScalingParameters,
    threads: int = 1,
    progress: Progress = quiet,
    start: ScaleModel | None = None,
    before: Trial | None = None,
) -> Refinement:
    """Refine all terms together against the intensities of the unique voxels.

    A few observations bring the model near. On a part of them the terms are tested: each has to predict voxels that
    were kept out of the fit better than the model without it. Then all that stayed are refined with all observations.

    Parameters
    ----------
    data : observations of a random choice of unique voxels
    threads : for the normal equations
    start : model whose coefficients are those to begin with
    before : of nearly the same data, to begin with; ``start`` is then not used
    """
    known: dict = {}

    def spaces(model: ScaleModel) -> Space:
        if model.terms not in known:
            known[model.terms] = make_space(model, data)
        return known[model.terms]

    def part(number: int) -> Refiner:
        share = min(1.0, number / data.n)
        some = np.flatnonzero(np.random.default_rng(parameters.seed).random(len(data.unique)) < share)
        return every if share == 1 else Refiner(data.orbits(some), parameters, threads, spaces)

    every = Refiner(data, parameters, threads, spaces)
    trial = part(_TRIAL_OBSERVATIONS) if data.n > 2 * _TRIAL_OBSERVATIONS else every
    first = part(_FIRST_OBSERVATIONS) if data.n > 2 * _FIRST_OBSERVATIONS else trial
    if before is None:
        full = start_model(data, layout, parameters) if start is None else start
        before = Trial(full, full.with_terms(()), first_error_model(first.data), {}, [])
        *stages, last = _stages(full)
    else:
        stages, last = [], _stages(before.full)[-1]
    full, state = before.full, before
    first.history = list(before.history)
    for keys in progress([*stages, last], len(stages) + 1, "Trying the terms"):
        if keys is last:
            before = Trial(full, state.model, state.errors, state.strengths, list(first.history))
        state = first.state(_extended(state.model, full, keys), state.errors, state.strengths)
        n_steps, apart = (_TRIAL_STEPS, first is trial) if keys is last else (_FEW_STEPS, False)
        state = first.improve(state, n_steps, SMALL_FOR_TESTS, apart)
    if first is not trial:
        trial.history = first.history
        state = trial.state(state.model, state.errors, state.strengths)
        state = trial.improve(state, _TRIAL_STEPS, SMALL_FOR_TESTS, True)
    judgement = Judgement([], Gain(0.0, 0.0))
    if state.model.terms:
        terms = [full.block(term.key) for term in TERMS if term.key in full.terms]
        few = part(_STRETCHED_OBSERVATIONS)
        few.history = first.history
        stretches = few.stretches(few.state(state.model, state.errors, state.strengths))
        judgement = trial.test(terms, stretches)
        kept = [test.name for test in judgement.tests if test.kept or not parameters.automatic]
        smaller = state.model.with_terms(kept)
        trial.keep_matrix(state.model, smaller)
        state = trial.state(smaller, state.errors, state.strengths)
    every.history = trial.history
    state = every.state(state.model, state.errors, state.strengths)
    for _ in progress(range(1), 1, "Refining the scale model"):
        state = every.improve(state, parameters.n_cycles)
    errors = every.scale_errors(state, len(layout.start))
    return Refinement(state.model, state.errors, state.strengths, judgement, every.history, errors, before)


def _stages(full: ScaleModel) -> list:
    """Keys of terms that are added together: no term, the drift, what else belongs to a sweep, and the detector.

    So the larger ones come first, and the equations stay nearly linear.
    """
    sweep = [b.key for b in full.of_experiment if b.each_sweep and b.key != Drift.key]
    detector = [b.key for b in full.of_experiment if not b.each_sweep]
    drift = [b.key for b in full.of_experiment if b.key == Drift.key]
    return [(), *(keys for keys in (drift, sweep, detector) if keys)]


def _extended(model: ScaleModel, full: ScaleModel, keys) -> ScaleModel:
    """The model with more terms of ``full``."""
    for key in keys:
        if key not in model.terms:
            model = model.with_term(full, key)
    return model
