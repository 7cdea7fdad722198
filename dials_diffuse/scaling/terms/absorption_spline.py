"""a as any smooth function of the position on the detector and the rotation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dials_diffuse.kernels.scaling import Tensor
from dials_diffuse.scaling.layout import T, X, Y, detector_points, rotation_points
from dials_diffuse.scaling.terms.absorption import RINGS, AbsorptionOptions, overlaps
from dials_diffuse.scaling.terms.absorption_harmonics import AbsorptionHarmonics
from dials_diffuse.scaling.terms.base import Extent, rings
from dials_diffuse.scaling.terms.spline import Axis, Spline

#: more parameters than this take too long; many sweeps get fewer nodes each
MAX_PARAMETERS = 1600

#: a function with more than this share of its variance between the rings is radial
_RADIAL_SHARE = 0.9


class AbsorptionSpline(Spline):
    """A spline for each sweep, where the files or the user do without harmonics; for detectors of one panel."""

    name = key = "a"
    label = "absorption (spline)"
    options = AbsorptionOptions
    each_sweep = True
    usual = True
    local = True
    expected = 0.03

    @classmethod
    def fits(cls, extent: Extent) -> bool:
        return not AbsorptionHarmonics.fits(extent) and extent.layout.n_panels == 1

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        options = extent.of(AbsorptionOptions)
        angle, nodes = options.angle, options.nodes
        while True:
            along = extent.nodes_along(angle)
            if along * nodes**2 * extent.n_sweeps <= MAX_PARAMETERS or nodes == along == 3:
                return Axis(T, along, 0.0, 1.0), Axis(X, nodes, 0.0, 1.0), Axis(Y, nodes, 0.0, 1.0)
            if along > nodes:
                angle *= 1.25
            else:
                nodes -= 1

    def gauge(self, rows, terms) -> np.ndarray:
        """No part that depends on |s| alone around each node of the rotation, the mean included.

        That is b and c, for all but the small anisotropic part.
        """
        plane = replace(self, tensor=Tensor(*(x[1:] for x in self.tensor)), n_sets=1)
        basis = plane.basis(rows)
        ring = rings(rows, RINGS)
        means = np.array([np.asarray(basis[r].mean(axis=0))[0] for r in ring])
        gram = (basis.T @ basis).toarray() / len(rows.experiment)
        radial = overlaps(gram, means.T @ means / len(ring), _RADIAL_SHARE)
        return np.kron(np.eye(self.n_sets * self.tensor.axes[0, 1]), radial)

    def record(self, coefficients, layout, number) -> dict:
        t, angles = rotation_points(layout, number, every=10)
        rows, x, y, shape = detector_points(layout, number, t)
        return {"angle": angles, "x": x, "y": y, "factor": np.exp(self.value(coefficients, rows)).reshape(shape)}
