"""d: response of the detector that varies smoothly over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.checks import at_least
from dials_diffuse.scaling.layout import X, Y, detector_points, rotation_points
from dials_diffuse.scaling.terms.absorption_harmonics import AbsorptionHarmonics, combinations_of
from dials_diffuse.scaling.terms.absorption_spline import AbsorptionSpline
from dials_diffuse.scaling.terms.base import Extent, TermOptions, rings
from dials_diffuse.scaling.terms.spline import Axis, Spline

#: rings of |s| in which it averages to nothing
_RINGS = 10


@dataclass(frozen=True)
class ResponseOptions(TermOptions):
    """nodes : spline coefficients along each edge of the detector"""

    nodes: int = 8

    scope = "d"
    phil = """
  d.nodes = 8
    .type = int(value_min=3, value_max=1000)
    .help = "Spline coefficients along each edge of the detector."
"""

    def __post_init__(self):
        at_least("scale_model.d.nodes", self.nodes, 3)


class Response(Spline):
    """A spline over the detector, the same for all sweeps; where there is one panel, and no spline for absorption.

    Where panels lie relative to each other is not in the observation files. A spline for absorption can do what this
    one can.
    """

    name = key = "d"
    label = "response"
    words = "and a smooth one when there is no a"
    options = ResponseOptions
    expected = 0.02

    @classmethod
    def fits(cls, extent: Extent) -> bool:
        absorption = AbsorptionSpline.name in extent.names and AbsorptionSpline.fits(extent)
        return extent.layout.n_panels == 1 and not absorption

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        n = extent.of(ResponseOptions).nodes
        return Axis(X, n, 0.0, 1.0), Axis(Y, n, 0.0, 1.0)

    def gauge(self, rows, terms) -> np.ndarray:
        """Mean 0 in rings of |s|, which is the isotropic profile; and no part that absorption as harmonics can make."""
        basis = self.basis(rows)
        result = np.array([np.asarray(basis[r].sum(axis=0))[0] for r in rings(rows, _RINGS)])
        absorption = terms.get(AbsorptionHarmonics.key)
        if absorption is None:
            return result
        return np.concatenate([result, combinations_of(basis.toarray(), absorption.basis(rows).toarray())])

    def record(self, coefficients, layout, number) -> dict:
        _, angles = rotation_points(layout, number, every=10)
        rows, x, y, shape = detector_points(layout, number, np.array([0.5]))
        return {"angle": angles, "x": x, "y": y, "factor": np.exp(self.value(coefficients, rows)).reshape(shape)}
