"""As many orders of the liquids in a fit as the displacements need that come out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Candidate, FitOptions, fit_models
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.structure.crystal import Structure

logger = logging.getLogger("dials.diffuse.fit")

#: fits with more orders each; after the first one displacements hardly change
_ROUNDS = 6


def orders_of(model) -> tuple:
    """Numbers of orders of the liquids in a model, or in a tuple of models for a sum."""
    parts = model if isinstance(model, tuple) else (model,)
    return tuple(part.orders for part in parts if isinstance(part, LiquidLikeMotions))


def with_orders_at(model, structure: Structure, values: Mapping, d_min: float):
    """A model; a liquid with the orders that it needs at d_min (Å) when its parameters have these values."""
    if not isinstance(model, LiquidLikeMotions):
        return model
    return replace(model, orders=model.with_values(structure, values).enough_orders(d_min))


def fit_with_enough_orders(data: FitData, candidates, options: FitOptions, prepare: Callable, track=None) -> list:
    """:func:`fit.fit_models`, repeated with more orders for liquids whose fitted displacements need them.

    Fitted again, from the values found, are those liquids, and all models where the weights depend on all of them.

    Parameters
    ----------
    prepare : of a candidate's name and its models, one or a tuple, makes Prepared at the voxels of the data
    """
    candidates = list(candidates)
    fits = fit_models(data, candidates, options, track)
    together = options.weights == "shell" or options.loss != "squares"
    d_min = 1 / float(data.s.max())
    for _ in range(_ROUNDS):
        raised = {i: _raised(c.prepared.origin, f.model, d_min) for i, (c, f) in enumerate(zip(candidates, fits))}
        raised = {i: origin for i, origin in raised.items() if origin is not None}
        if not raised:
            break
        again = [
            Candidate(c.name, prepare(c.name, raised[i]) if i in raised else c.prepared, fits[i].minimum.values)
            for i, c in enumerate(candidates)
        ]
        for i, origin in raised.items():
            logger.info(
                "%s: the fitted displacement needs more orders, %s instead of %s; it is fitted again",
                candidates[i].name,
                ",".join(map(str, orders_of(origin))),
                ",".join(map(str, orders_of(fits[i].model))),
            )
        rows = range(len(again)) if together else sorted(raised)
        for i, fit in zip(rows, fit_models(data, [again[i] for i in rows], options, track)):
            candidates[i], fits[i] = again[i], fit
    return fits


def _raised(origin, fitted, d_min: float):
    """What was fitted, with the orders that the fitted values need; None if it has them."""
    pair = (origin, fitted) if isinstance(origin, tuple) else ((origin,), (fitted,))
    parts = [
        replace(mine, orders=max(mine.orders, found.enough_orders(d_min)))
        if isinstance(mine, LiquidLikeMotions)
        else mine
        for mine, found in zip(*pair)
    ]
    if orders_of(tuple(parts)) == orders_of(origin):
        return None
    return tuple(parts) if isinstance(origin, tuple) else parts[0]
