"""The corrections of the norm: one row of a table for each.

A pixel of an image counts ``C = c I + b``. The norm c is the product of the corrections that are switched on. The
switches of the program, the parameters of the library and the product all come from the rows of ``CORRECTIONS``.
Source: docs/theory.md, Corrections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from pkgutil import resolve_name

import numpy as np

from dials_diffuse.experiment.detector import PanelGeometry
from dials_diffuse.experiment.pixel_factors import air_transmission, polarization, sensor_efficiency, solid_angle
from dials_diffuse.experiment.scan import ScanGeometry, exposure_times

#: unit of solid angle, steradian: the same for all detectors, so that intensities from several can be merged
MICROSTERADIAN = 1e-6


@dataclass(frozen=True)
class Correction:
    """A factor of the norm, with the switch ``corrections.NAME``. Without a function it is measured on the images.

    Attributes
    ----------
    name, help, default : of the switch
    of_pixels : ``f(panel, scan, position)`` gives the (ny, nx) factors of a PanelGeometry, at a position in images from
        the start of a ScanGeometry; the function or its place, ``module:function``
    varies : ``f(scan)``, do these factors change from image to image? Else they are those of mid-scan.
    of_images : ``f(scan)`` gives the (n_images,) factors of the images of a dxtbx Scan
    """

    name: str
    help: str
    default: bool = True
    of_pixels: Callable[[PanelGeometry, ScanGeometry, float], np.ndarray] | str | None = None
    varies: Callable[[ScanGeometry], bool] = lambda scan: False
    of_images: Callable | None = None

    def __post_init__(self):
        if isinstance(self.of_pixels, str):
            object.__setattr__(self, "of_pixels", resolve_name(self.of_pixels))


#: the product is taken in this order
CORRECTIONS = (
    Correction(
        "solid_angle",
        "Solid angle of each pixel, relative to normal incidence at the shortest distance.",
        of_pixels=lambda panel, scan, position: solid_angle(panel) / MICROSTERADIAN,
    ),
    Correction(
        "polarization",
        "Polarization, from the beam model's normal and fraction.",
        of_pixels=lambda panel, scan, position: polarization(panel.directions, *scan.beam_at(position)),
        varies=lambda scan: scan.beam_varies,
    ),
    Correction(
        "efficiency",
        "Sensor efficiency under oblique incidence, where the panel gives mu and thickness.",
        of_pixels=lambda panel, scan, position: sensor_efficiency(panel),
    ),
    Correction(
        "air",
        "Attenuation on the longer air path to the edge of the detector.",
        of_pixels=lambda panel, scan, position: air_transmission(panel, 1 / np.linalg.norm(scan.s0_at(position))),
    ),
    Correction("exposure", "Exposure times of the scan.", of_images=exposure_times),
    Correction(
        "flux",
        "Relative intensity of each image, from its resolution profile against that of the whole sweep: a beam that "
        "decays or is refilled, a crystal of uneven thickness. The factors are recorded in output.json. Images without "
        "beam, or with a profile unlike that of the sweep, are left out.",
    ),
)

Corrections = make_dataclass(
    "Corrections",
    [(c.name, bool, c.default) for c in CORRECTIONS],
    namespace={"__doc__": "Which corrections enter the norm, a bool for each of them.", "__module__": __name__},
    frozen=True,
)


def switched_on(switches: Corrections) -> list:
    """The rows of the table whose correction is to be made."""
    return [row for row in CORRECTIONS if getattr(switches, row.name)]


def varying(scan: ScanGeometry, switches: Corrections) -> list:
    """The rows of corrections of pixels that change from image to image."""
    return [row for row in switched_on(switches) if row.of_pixels is not None and row.varies(scan)]


def pixel_corrections(panel: PanelGeometry, scan: ScanGeometry, position: float, rows) -> np.ndarray:
    """(ny, nx) float64, product of the corrections of pixels among some rows of the table.

    position : in images from the start of the scan
    """
    product = np.ones(panel.shape)
    for row in rows:
        if row.of_pixels is not None:
            product *= row.of_pixels(panel, scan, position)
    return product


def image_corrections(scan, switches: Corrections) -> np.ndarray:
    """(n_images,) float64, product of the corrections of the images of a dxtbx Scan."""
    product = np.ones(scan.get_num_images())
    for row in switched_on(switches):
        if row.of_images is not None:
            product *= row.of_images(scan)
    return product
