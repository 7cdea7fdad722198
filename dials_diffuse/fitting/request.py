"""What to fit: models, from the words of ``model=`` and the scopes of the models, or as objects."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from dials_diffuse.errors import CommandLineError
from dials_diffuse.fitting.fit_parameters import FitParameters
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.table import all_models
from dials_diffuse.structure.factors import Dispersive


@dataclass(frozen=True)
class Part:
    """A model to fit.

    Attributes
    ----------
    model : a DiffuseModel
    given : names of parameters, without the numbers of elements and bodies, at whose values in the model the fit
        starts; the others start where the structure suggests. None: all start at the values in the model.
    each : shall each body have a motion of its own, see :meth:`DiffuseModel.for_each_body`?
    choose_orders : as many orders as the fitted displacement needs; otherwise those of the model
    """

    model: DiffuseModel
    given: frozenset | None = None
    each: bool = False
    choose_orders: bool = True

    def start(self, parameter) -> float:
        """Where a Parameter of the model starts."""
        root = parameter.name.split("_")[0].rstrip("0123456789")  # sigma of sigma_1, V of V11
        return parameter.value if self.given is None or root in self.given else parameter.start


@dataclass(frozen=True)
class FitRequest:
    """A model, or a sum of models, to fit.

    Attributes
    ----------
    name : for tables, all requests of a fit have different ones
    parts : tuple of Part; several for a sum
    pairs : shall the covariance of every pair of groups be fitted, starting from the model, a Covariance?
    """

    name: str
    parts: tuple
    pairs: bool = False

    @classmethod
    def of(cls, *models: DiffuseModel, name: str = "", pairs: bool = False) -> FitRequest:
        """A model, or the sum of several, each of which starts at the values that it has.

        name : by default that of the models, with + between them
        """
        name = name or "+".join(model.name for model in models) + ("/pairs" if pairs else "")
        return cls(name, tuple(map(Part, models)), pairs)

    @property
    def kernel(self) -> FitRequest:
        """For pairs the model that they start from, which is fitted as one of its own; else the request itself."""
        return replace(self, name=self.name.replace("/pairs", ""), pairs=False) if self.pairs else self


@dataclass(frozen=True)
class ModelScope:
    """What a program was told about a model.

    Attributes
    ----------
    values : an object with the model's parameters as attributes, for ``from_scope``; None if it has none
    choices : word -> the parameter that has it as a choice, such as overall -> adp
    given : names of the parameters that are not what they are by default
    """

    values: object = None
    choices: Mapping[str, str] = field(default_factory=dict)
    given: Collection[str] = ()


def requests_from_words(
    words: Iterable[str],
    scopes: Mapping[str, ModelScope],
    coordinates=None,
    table: str = "wk1995",
    selection: str | None = None,
) -> tuple:
    """What ``model=`` asks for, a tuple of FitRequest.

    Parameters
    ----------
    words : texts such as ``llm/overall,rigid_body+llm``, see docs/fit.md
    scopes : of all models, by name
    coordinates : path of the structure, for models that read more from it
    table : of form factors, for all models
    selection : of atoms, for models that have atoms of their own

    Raises
    ------
    CommandLineError
        If a word is not known.
    DiffuseError
        If a parameter of a model is out of range, or a file cannot be read.
    """
    names = [name for word in words for name in word.split(",") if name]
    requests = []
    for name in names:
        named = [_part(text, scopes, coordinates, selection) for text in name.split("+")]
        parts = tuple(replace(p, model=replace(p.model, table=table).select(selection)) for p in named)
        pairs = any(p.model.words.pairs and "pairs" in text.split("/") for p, text in zip(parts, name.split("+")))
        requests.append(FitRequest(name, parts, pairs))
    return tuple(requests)


def check_requests(requests: Iterable[FitRequest], parameters: FitParameters) -> None:
    """Do the requests fit together, and with the parameters?

    Raises
    ------
    CommandLineError
        If they do not.
    """
    requests = list(requests)
    names = ",".join(request.name for request in requests)
    if not requests:
        raise CommandLineError(f"model=None: choose from {', '.join(all_models())}")
    if len({request.name for request in requests}) < len(requests):
        raise CommandLineError(f"model={names}: a model is given twice; leave one out")
    if parameters.wavelength is not None:
        for table in {part.model.table for request in requests for part in request.parts}:
            Dispersive(table, parameters.wavelength)
    pairs = [request for request in requests if request.pairs]
    if len(pairs) > 1 or any(len(request.parts) > 1 for request in pairs):
        raise CommandLineError(f"model={names}: one model of all pairs can be fitted, and not in a sum")
    for request in pairs:
        _check_pairs(request.parts[0].model, request.name, parameters)


def _check_pairs(model: DiffuseModel, name: str, parameters: FitParameters) -> None:
    if not model.words.pairs:
        raise CommandLineError(f"model={name}: pairs are fitted from a model covariance, not from {model.name}")
    if model.supercell is not None:
        raise CommandLineError("covariance.supercell: pairs are fitted within one molecule; leave it out with /pairs")
    if parameters.wavelength is not None:
        raise CommandLineError(f"wavelength={parameters.wavelength:g}: pairs are fitted without f', f''; leave it out")
    if len(parameters.pairs.strengths) > 1 and parameters.selection.free_fraction == 0:
        raise CommandLineError("pairs.strength: free voxels choose one of several; give one, or raise free_fraction")


def _part(text: str, scopes: Mapping[str, ModelScope], coordinates, selection: str | None) -> Part:
    """text : ``name`` or ``name/word/...``"""
    name, *words = text.split("/")
    if name not in all_models():
        raise CommandLineError(f"model={text}: no model {name!r}; choose from {', '.join(all_models())}")
    cls, scope = all_models()[name], scopes[name]
    values, given = copy.deepcopy(scope.values), set(scope.given)
    own = {word: there for word, there in (("each", cls.words.each), ("pairs", cls.words.pairs)) if there}
    for word in words:
        if word in cls.words.tensors:
            given |= _make_tensor(values, word, cls.words.tensors[word])
        elif word in scope.choices:
            setattr(values, scope.choices[word], word)
        elif word not in own:
            known = ", ".join([*cls.words.tensors, *scope.choices, *own]) or "none"
            raise CommandLineError(f"model={text}: {word!r} is no choice of {name}; there is {known}")
    model = cls.from_scope(values, coordinates, selection)
    return Part(model, frozenset(given), "each" in words, cls.leaves_orders_open(values))


def _make_tensor(values, name: str, tensor) -> set:
    """Put a tensor in place of a number; names that count as given: that of the tensor if the number was.

    values : the parameters of a model; name : of the tensor; tensor : TensorWord
    """
    if getattr(values, name) is not None:
        return set()
    number = getattr(values, tensor.number)
    setattr(values, name, tensor.six(number))
    setattr(values, tensor.number, None)
    return set() if number is None else {name}
