"""d: one factor for each module of the detector, or for each panel where there are several."""

from __future__ import annotations

import numpy as np

from dials_diffuse.scaling.layout import MODULE
from dials_diffuse.scaling.terms.base import Curve, Extent
from dials_diffuse.scaling.terms.spline import Axis, Spline


class Modules(Spline):
    """Factors that are the same for all sweeps."""

    name = "d"
    key = "m"
    label = "modules"
    words = "response of the detector, by module"
    smoothing = 0.0
    expected = 0.02

    @classmethod
    def fits(cls, extent: Extent) -> bool:
        return extent.layout.n_modules > 1

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        return (Axis(MODULE, extent.layout.n_modules),)

    def record(self, coefficients, layout, number) -> None:
        return None

    def record_of_all(self, coefficients) -> dict:
        return {"modules": list(np.exp(coefficients[self.all]))}

    def curve(self, coefficients, layout, number) -> Curve | None:
        """Drawn once, with the first sweep."""
        factors = np.exp(coefficients[self.all])
        return None if number else Curve(np.arange(self.size), factors, "module", "factor", "o")
