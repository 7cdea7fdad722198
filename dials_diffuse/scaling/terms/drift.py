"""b: how much crystal is in the beam, over the rotation; its decay, and the intensity of the beam."""

from __future__ import annotations

from dataclasses import dataclass

from dials_diffuse.checks import positive
from dials_diffuse.scaling.layout import T
from dials_diffuse.scaling.terms.base import Acts, Extent, TermOptions
from dials_diffuse.scaling.terms.spline import Axis, Spline

#: more parameters than this take too long; many sweeps get fewer nodes each
MAX_PARAMETERS = 800


@dataclass(frozen=True)
class DriftOptions(TermOptions):
    """angle : degrees of rotation between nodes"""

    angle: float = 5.0

    scope = "b"
    phil = """
  b.angle = 5.0
    .type = float
    .help = "Degrees of rotation between nodes."
"""

    def __post_init__(self):
        positive("scale_model.b.angle", self.angle)


class Drift(Spline):
    """Scale of each sweep over its rotation. In the JSON file it is the curve ``b`` that every sweep has."""

    name = key = "b"
    label = "drift"
    words = "scale over the rotation"
    options = DriftOptions
    acts = Acts.SCALE
    each_sweep = True
    usual = True
    local = True
    repeats = True
    expected = 0.5

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        n = min(extent.nodes_along(extent.of(DriftOptions).angle), MAX_PARAMETERS // extent.n_sweeps)
        return (Axis(T, max(3, n), 0.0, 1.0),)

    def record(self, coefficients, layout, number) -> None:
        return None
