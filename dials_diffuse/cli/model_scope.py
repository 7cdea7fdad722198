"""The parameters of diffuse models, shared by all programs that take one."""

from __future__ import annotations

from libtbx.phil import parse

from dials_diffuse.errors import CommandLineError
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.table import all_models, refuse

#: the model that programs compute if none is named
_DEFAULT = "llm"

FORM_FACTOR_PHIL = """
scattering_table = *wk1995 it1992 electron
  .type = choice
  .help = "Form factors: of X-rays, by Waasmaier & Kirfel 1995 or the International Tables 1992, or of electrons."
wavelength = None
  .type = float(value_min=0.1)
  .help = "Of X-rays, in Angstrom: add the f', f'' of Sasaki's tables to the form factors. Default: leave them out."
"""


def _scopes() -> str:
    """The scopes of all models; a model of another distribution with a faulty one is left out."""
    texts = {}
    for name, model in list(all_models().items()):
        try:
            if [scope.name for scope in parse(model.phil).objects] not in ([], [name]):
                raise ValueError(f"its phil is not one scope {name}")
            texts[name] = model.phil
        except Exception as error:  # phil raises RuntimeError, Sorry and others
            refuse(name, error)
    return "".join(texts.values())


def _choice() -> str:
    """The parameter ``model`` of programs that compute one."""
    names = " ".join(f"*{name}" if name == _DEFAULT else name for name in all_models())
    *others, last = (f"of {model.about}" for model in all_models().values())
    return f"""
model = {names}
  .type = choice
  .help = "Diffuse scattering: {", ".join(others)}, or {last}."
"""


#: the scopes of all models, each with its name
SCOPES_PHIL = _scopes()
MODEL_PHIL = _choice() + SCOPES_PHIL

#: what the scopes hold if nothing is given
_UNCHANGED = parse(MODEL_PHIL).extract()


def model_from_phil(params, coordinates=None, selection: str | None = None) -> DiffuseModel:
    """The model of ``params.model`` with the parameters of its scope.

    Parameters
    ----------
    coordinates : file that holds the models of an ensemble for which no other is given
    selection : of its atoms

    Returns
    -------
    One of :func:`models.table.all_models`; how many orders it needs is chosen later, see :func:`automatic_orders`

    Raises
    ------
    CommandLineError
        If parameters of another model were given.
    DiffuseError
        If a value is out of range, or a file cannot be read.
    """
    if params.model is None:
        raise CommandLineError(f"model=None: choose from {', '.join(all_models())}")
    for name in all_models():
        given = given_parameters(params, name)
        if given and name != params.model:
            raise CommandLineError(
                f"{name}.{given[0]} is given, but model={params.model}; say model={name}, or leave it out"
            )
    return all_models()[params.model].from_scope(scope_of(params, params.model), coordinates, selection)


def scope_of(params, name: str):
    """The scope of a model in the parameters of a program; None if it has none."""
    return getattr(params, name, None)


def given_parameters(params, name: str) -> list:
    """Names of the parameters of a model that differ from their defaults."""
    return _given(scope_of(params, name), scope_of(_UNCHANGED, name))


def automatic_orders(params, name: str) -> bool:
    """Is the program to choose the number of orders of a model?"""
    return all_models()[name].leaves_orders_open(scope_of(params, name))


def _given(scope, unchanged) -> list:
    """Parameters of a scope that differ from their defaults."""
    found = []
    for key, default in vars(unchanged).items() if unchanged is not None and scope is not None else ():
        if key.startswith("__"):
            continue
        value = getattr(scope, key, default)
        if hasattr(default, "__phil_path__"):
            found += [f"{key}.{inner}" for inner in _given(value, default)]
        elif _without_none(value) != _without_none(default):
            found.append(key)
    return found


def _without_none(value):
    """What may be given several times is a list with None if it was not."""
    return [x for x in value if x is not None] if isinstance(value, list) else value
