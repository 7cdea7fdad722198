"""The terms of the scale model."""

from __future__ import annotations

from pkgutil import resolve_name

from dials_diffuse.scaling.terms.crystal import Profile, SmoothPart

#: what every model has: the crystal's own part
CRYSTAL = (Profile, SmoothPart)

#: where the classes of the terms are, in the order in which they are told
_PLACES = (
    "dials_diffuse.scaling.terms.drift:Drift",
    "dials_diffuse.scaling.terms.modules:Modules",
    "dials_diffuse.scaling.terms.absorption_harmonics:AbsorptionHarmonics",
    "dials_diffuse.scaling.terms.absorption_spline:AbsorptionSpline",
    "dials_diffuse.scaling.terms.response:Response",
    "dials_diffuse.scaling.terms.offset:Offset",
)
TERMS = tuple(resolve_name(place) for place in _PLACES)

#: what the user can choose from
NAMES = tuple(sorted({term.name for term in TERMS}))

#: kinds of TermOptions
OPTIONS = tuple(sorted({term.options for term in TERMS if term.options}, key=lambda kind: kind.scope))


def help_of_names() -> str:
    """What stands behind each name, for the help of ``model=``."""
    words = {name: ", ".join(t.words for t in TERMS if t.name == name and t.words) for name in NAMES}
    return ", ".join(f"{name}: {text}" for name, text in words.items())
