"""As many orders of the models in a fit as the displacements need that come out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.result import ModelFit
from dials_diffuse.parallel import Progress, quiet

logger = logging.getLogger("dials.diffuse.fit")

#: fits with more orders each; after the first one displacements hardly change
_ROUNDS = 6


def orders_of(models) -> tuple:
    """Numbers of orders of the models that have any."""
    return tuple(model.orders for model in models if model.orders is not None)


def fit_with_enough_orders(
    data: FitData, candidates, options: FitOptions, prepare: Callable, progress: Progress = quiet
) -> list:
    """:func:`fit.fit_models`, repeated with more orders for models whose fitted displacements need them.

    Fitted again, from the values found, are those models, and all models where the weights depend on all of them.

    Parameters
    ----------
    prepare : of the models of a sum, or of one, makes Prepared at the voxels of the data
    """
    candidates = list(candidates)
    fits = fit_models(data, candidates, options, progress)
    together = options.weights == "shell" or options.loss != "squares"
    d_min = 1 / float(data.s.max())
    for _ in range(_ROUNDS):
        raised = {i: _raised(c, fit, d_min) for i, (c, fit) in enumerate(zip(candidates, fits))}
        raised = {i: models for i, models in raised.items() if models}
        if not raised:
            break
        again = [replace(c, start=fit.minimum.values) for c, fit in zip(candidates, fits)]
        for i, models in raised.items():
            again[i] = replace(again[i], prepared=prepare(models))
            logger.info(
                "%s: the fitted displacement needs more orders, %s instead of %s; it is fitted again",
                candidates[i].name,
                ",".join(map(str, orders_of(models))),
                ",".join(map(str, orders_of(fits[i].models))),
            )
        rows = range(len(again)) if together else sorted(raised)
        for i, fit in zip(rows, fit_models(data, [again[i] for i in rows], options, progress)):
            candidates[i], fits[i] = again[i], fit
    return fits


def _raised(candidate: Candidate, fit: ModelFit, d_min: float) -> tuple:
    """The models that were fitted, with the orders that the fitted values need; empty if they have them."""
    parts = candidate.prepared.split(fit.minimum.values)
    models = []
    for (part, values), may in zip(parts, candidate.choose_orders or (True,) * len(parts)):
        needed = part.origin.with_orders_for(part.structure, dict(zip(part.names, values)), d_min)
        models.append(needed if may and (needed.orders or 0) > (part.origin.orders or 0) else part.origin)
    return tuple(models) if orders_of(models) != orders_of([part.origin for part, _ in parts]) else ()
