"""Models to fit, from the words of ``model=`` and the scopes of the models."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from libtbx.phil import parse

from dials_diffuse.cli.model_scope import MODEL_PHIL, automatic_orders, model_from_phil
from dials_diffuse.errors import CommandLineError
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Candidate
from dials_diffuse.fitting.orders import with_orders_at
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.table import all_models

_SCOPES = parse(MODEL_PHIL)

#: tensors that a model can have in place of a number, and what they start from if nothing is given
_TENSORS = {"V": ("sigma", 0.3, 2), "G": ("gamma", 10.0, 1)}


#: words that are no choices of a model's scope: a motion for each body, the covariance of each pair of groups
_WORDS = (("rigid_body", "each"), ("covariance", "pairs"))


def model_from_text(text: str, params, coordinates) -> tuple:
    """A model, the names of the parameters that were given for it, and whether each body shall have its own motion.

    text : ``name`` or ``name/choice/...``
    """
    name, *words = text.split("/")
    if name not in all_models():
        raise CommandLineError(f"model={text}: no model {name!r}; choose from {', '.join(all_models())}")
    own = _SCOPES.extract()  # with the scopes of the other models as they are by default
    own.model = name
    scope = copy.deepcopy(getattr(params, name, None))
    given = {key for key in ("sigma", "V", "gamma", "G") if getattr(scope, key, None) is not None}
    each = "each" in words and name == "rigid_body"
    words = [word for word in words if (name, word) not in _WORDS]
    for word in words:
        if word in _TENSORS and hasattr(scope, word):
            given |= _make_tensor(scope, word)
        else:
            _choose(scope, text, name, word)
    if scope is not None:
        setattr(own, name, scope)
    model = replace(model_from_phil(own, coordinates), table=params.scattering_table)
    if isinstance(model, Ensemble) and params.selection is not None:
        model = model.select(params.selection)
    return model, given, each


def _make_tensor(scope, name: str) -> set:
    """Put a tensor in place of the number; names that count as given: that of the tensor if the number was."""
    if getattr(scope, name) is not None:
        return set()
    number, default, power = _TENSORS[name]
    given = getattr(scope, number)
    value = np.mean(default if given is None else given) ** power
    setattr(scope, name, [value, value, value, 0.0, 0.0, 0.0])
    setattr(scope, number, None)
    return set() if given is None else {name}


def _choose(scope, text: str, name: str, word: str) -> None:
    """Set what a word after the name of a model stands for."""
    known = [word for word in _TENSORS if hasattr(scope, word)]
    for definition in _SCOPES.all_definitions():
        parent, _, key = definition.path.rpartition(".")
        if parent == name and definition.object.type.phil_type == "choice":
            choices = [w.value.lstrip("*") for w in definition.object.words]
            known += choices
            if word in choices:
                setattr(scope, key, word)
                return
    known += [other for model, other in _WORDS if model == name]
    raise CommandLineError(f"model={text}: {word!r} is no choice of {name}; there is {', '.join(known) or 'none'}")


def candidate(name: str, parts, params, structure, data: FitData) -> Candidate:
    """A model, or the sum of several, at the voxels of the data.

    parts : what :func:`model_from_text` says of each
    """
    models, starts = [], []
    for model, given, each in parts:
        model = model.for_each_body(structure) if each else model
        start = {p.name: p.value if _root(p.name) in given else p.start for p in model.parameters(structure)}
        if automatic_orders(params, "llm"):
            model = with_orders_at(model, structure, start, 1 / float(data.s.max()))
        models.append(model)
        starts += start.values()
    models = tuple(models) if len(models) > 1 else models[0]
    return Candidate(name, prepare_parts(name, models, params, structure, data), np.array(starts))


def prepare_parts(name: str, models, params, structure, data: FitData) -> Prepared:
    """A model, or a tuple of models for a sum, prepared as the phil parameters ask for."""
    whole = models if isinstance(models, tuple) else (models,)
    prepared = [
        prepare_dispersive(model, structure, data.grid, data.index, params.voxels == "mean", params.wavelength)
        for model in whole
    ]
    if len(prepared) == 1:
        return prepared[0]
    return PreparedSum(prepared, [text.split("/")[0] for text in name.split("+")], structure)


def _root(name: str) -> str:
    """sigma of sigma_1, V of V11"""
    return name.split("_")[0].rstrip("0123456789")
