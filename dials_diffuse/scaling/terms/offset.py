"""c: isotropic scattering that does not scale with the crystal, such as air and liquid around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.checks import at_least, positive
from dials_diffuse.scaling.layout import S, T
from dials_diffuse.scaling.terms.base import Acts, Extent, TermOptions
from dials_diffuse.scaling.terms.spline import Axis, Spline

#: more parameters than this take too long; many sweeps get fewer nodes each, but this many along |s|
MAX_PARAMETERS = 800
_LEAST_NODES = 6


@dataclass(frozen=True)
class OffsetOptions(TermOptions):
    """angle : degrees of rotation between nodes; nodes : spline coefficients along |s|"""

    angle: float = 20.0
    nodes: int = 30

    scope = "c"
    phil = """
  c {
    angle = 20.0
      .type = float
      .help = "Degrees of rotation between nodes."
    nodes = 30
      .type = int(value_min=3, value_max=1000)
      .help = "Spline coefficients along |s|; fewer where there are many sweeps."
  }
"""

    def __post_init__(self):
        positive("scale_model.c.angle", self.angle)
        at_least("scale_model.c.nodes", self.nodes, 3)


class Offset(Spline):
    """Offset of each sweep over |s| and its rotation, relative to the isotropic profile that refinement starts from.

    It must be able to follow the rings of water: what it cannot follow, b is pulled away for.
    """

    name = key = "c"
    label = "offset"
    words = "isotropic offset over s and rotation that does not scale with the crystal"
    options = OffsetOptions
    acts = Acts.OFFSET
    each_sweep = True
    usual = True
    local = True
    repeats = True

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        options, n = extent.of(OffsetOptions), extent.n_sweeps
        along = max(3, min(extent.nodes_along(options.angle), MAX_PARAMETERS // (n * _LEAST_NODES)))
        nodes = max(_LEAST_NODES, min(options.nodes, MAX_PARAMETERS // (n * along)))
        return Axis(T, along, 0.0, 1.0), Axis(S, nodes, *extent.s_range)

    def gauge(self, rows, terms) -> np.ndarray:
        """Mean 0 over all sweeps at each |s|: that is the isotropic profile."""
        along, nodes = self.tensor.axes[:, 1]
        return np.tile(np.eye(nodes), self.n_sets * along)

    def record(self, coefficients, layout, number) -> None:
        return None  # what is added to the counts is more than this term, see scaling.record
