"""The terms of the scale model."""

from __future__ import annotations

from dials_diffuse.scaling.terms.absorption_harmonics import AbsorptionHarmonics
from dials_diffuse.scaling.terms.absorption_spline import AbsorptionSpline
from dials_diffuse.scaling.terms.crystal import Profile, SmoothPart
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.terms.modules import Modules
from dials_diffuse.scaling.terms.offset import Offset
from dials_diffuse.scaling.terms.response import Response

#: what every model has: the crystal's own part
CRYSTAL = (Profile, SmoothPart)

#: in the order in which they are tried. The offset comes last: as long as the crystals are not on one scale it is much
#: the same as the drift
TERMS = (
    Drift,
    Modules,
    AbsorptionHarmonics,
    AbsorptionSpline,
    Response,
    Offset,
)

#: what the user can choose from
NAMES = tuple(sorted({term.name for term in TERMS}))

#: kinds of TermOptions
OPTIONS = tuple(sorted({term.options for term in TERMS if term.options}, key=lambda kind: kind.scope))


def help_of_names() -> str:
    """What stands behind each name, for the help of ``model=``."""
    words = {name: ", ".join(t.words for t in TERMS if t.name == name and t.words) for name in NAMES}
    return ", ".join(f"{name}: {text}" for name, text in words.items())
