"""All models by name: those of the package, and those that other distributions bring."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions

from dials_diffuse.models.base import DiffuseModel

logger = logging.getLogger("dials.diffuse.models")

#: entry points of other distributions: the name of a model, and where its class is
GROUP = "dials_diffuse.models"

#: name of a model in the programs, and where its class is
_OWN = {
    "uncorrelated": "dials_diffuse.models.uncorrelated:Uncorrelated",
    "rigid_body": "dials_diffuse.models.rigid_body.rigid_body:RigidBody",
    "llm": "dials_diffuse.models.llm.llm:LiquidLikeMotions",
    "covariance": "dials_diffuse.models.covariance.covariance:Covariance",
    "ensemble": "dials_diffuse.models.ensemble.ensemble:Ensemble",
    "lattice_dynamics": "dials_diffuse.models.lattice_dynamics.lattice_dynamics:LatticeDynamics",
}


@lru_cache(maxsize=1)
def all_models() -> dict:
    """Name -> class of every model, those of the package first.

    What another distribution brings is left out with a warning if it cannot be imported, is no model, or has a name
    that is taken.
    """
    found = {name: EntryPoint(name, place, GROUP).load() for name, place in _OWN.items()}
    for point, distribution in _others().items():
        try:
            found[point.name] = _loaded(point, found)
        except Exception as error:  # of whatever kind: it is not our code
            _warn(point, distribution, error)
    return found


def refuse(name: str, reason) -> None:
    """Leave a model of another distribution out from now on, with a warning."""
    point, distribution = next((p, d) for p, d in _others().items() if p.name == name)
    _warn(point, distribution, reason)
    del all_models()[name]


@lru_cache(maxsize=1)
def _others() -> dict:
    """Entry points of other distributions, in the order of their names, and whose they are."""
    found: dict = {}
    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group == GROUP:
                found.setdefault(point, distribution.metadata["Name"])  # the first on the path is the one in use
    return dict(sorted(found.items(), key=lambda item: item[0].name))


def _loaded(point: EntryPoint, taken) -> type:
    if point.name in taken:
        raise ValueError("there is a model of this name already")
    model = point.load()
    if not (isinstance(model, type) and issubclass(model, DiffuseModel)):
        raise TypeError(f"{point.value} is not derived from DiffuseModel")
    if model.name != point.name:
        raise ValueError(f"{point.value} calls itself {model.name}")
    return model


def _warn(point: EntryPoint, distribution: str, reason) -> None:
    text = " ".join(str(reason).split()) or type(reason).__name__
    logger.warning("Warning: the model %s of %s is left out: %s", point.name, distribution, text)
