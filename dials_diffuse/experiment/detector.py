"""Detectors as plain arrays: where pixels are, seen from the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from dxtbx import flumpy
from dxtbx.model import Detector
from scitbx.array_family import flex

from dials_diffuse.compat import trusted_bounds
from dials_diffuse.experiment.polynomials import direction_tiles
from dials_diffuse.kernels.image import Reading


@dataclass(frozen=True)
class PanelGeometry:
    """One detector panel.

    Attributes
    ----------
    directions : (3, ny, nx) float64, unit vectors from the sample to the pixel, laboratory frame
    distance : (ny, nx) float32, from the sample to the pixel, mm
    cos_incidence : (ny, nx) float32, cosine of the angle between direction and panel normal
    pixel_area : float, mm²
    mu, thickness : sensor attenuation (1/mm) and thickness (mm); 0 when unknown
    reading : trusted raw values, and the counts that they stand for
    """

    directions: np.ndarray
    distance: np.ndarray
    cos_incidence: np.ndarray
    pixel_area: float
    mu: float
    thickness: float
    reading: Reading

    @property
    def shape(self) -> tuple:
        return self.distance.shape

    @cached_property
    def polynomials(self) -> tuple:
        """The directions in tiles, and their largest errors: see :func:`direction_tiles`."""
        return direction_tiles(self.directions)


def panel_geometry(panel, offset=(0.5, 0.5)) -> PanelGeometry:
    """Directions to all pixels through the panel's own pixel-to-millimetre strategy (parallax included).

    offset : position inside each pixel, (0.5, 0.5) is the centre
    """
    nx, ny = panel.get_image_size()
    directions = np.empty((3, ny, nx))
    distance = np.empty((ny, nx), dtype=np.float32)
    cosine = np.empty((ny, nx), dtype=np.float32)
    normal = np.array(panel.get_normal())
    x = np.arange(nx) + offset[0]
    rows = max(1, (1 << 20) // nx)  # bounds the temporary flex arrays
    for start in range(0, ny, rows):
        stop = min(start + rows, ny)
        yy, xx = np.meshgrid(np.arange(start, stop) + offset[1], x, indexing="ij")
        pixels = flex.vec2_double(flumpy.from_numpy(xx.ravel().copy()), flumpy.from_numpy(yy.ravel().copy()))
        lab = panel.get_lab_coord(panel.pixel_to_millimeter(pixels))
        position = flumpy.to_numpy(lab).reshape(stop - start, nx, 3)
        r = np.linalg.norm(position, axis=-1)
        directions[:, start:stop] = np.moveaxis(position / r[..., None], -1, 0)
        distance[start:stop] = r
        cosine[start:stop] = np.abs(np.tensordot(normal, directions[:, start:stop], 1))
    size = panel.get_pixel_size()
    return PanelGeometry(
        directions=directions,
        distance=distance,
        cos_incidence=cosine,
        pixel_area=size[0] * size[1],
        mu=panel.get_mu(),
        thickness=panel.get_thickness(),
        reading=panel_reading(panel),
    )


def panel_reading(panel) -> Reading:
    """How raw values of a dxtbx panel are read."""
    return Reading(*trusted_bounds(panel), float(panel.get_pedestal()), float(panel.get_gain() or 1.0))


def pixel_directions(panel, positions) -> np.ndarray:
    """(n, 3) float64 unit vectors from the sample to positions on a panel, laboratory frame.

    positions : (n, 2) float64, x and y in pixels; pixel centres are at i + 0.5
    """
    x, y = np.asarray(positions, dtype=float).T
    pixels = flex.vec2_double(flumpy.from_numpy(x.copy()), flumpy.from_numpy(y.copy()))
    lab = flumpy.to_numpy(panel.get_lab_coord(panel.pixel_to_millimeter(pixels)))
    return lab / np.linalg.norm(lab, axis=1, keepdims=True)


def s_magnitude(directions: np.ndarray, s0: np.ndarray) -> np.ndarray:
    """|s| in 1/Å of elastic scattering from the beam s0, (3,), into unit vectors ``directions``, (3, ...)."""
    k = np.linalg.norm(s0)
    return k * np.sqrt(np.maximum(2 - 2 * np.tensordot(s0 / k, directions, 1), 0))


@dataclass(frozen=True)
class DetectorSetup:
    """Pixel geometry of a detector; shared between experiments on the same one.

    What is pickled is the model that it was computed of: the arrays are 32 bytes per pixel, more when sub-sampled.

    Attributes
    ----------
    panels : PanelGeometry of the pixel centres
    sub_pixels : ``(offset, directions of every panel)`` for each sub-pixel; the centres themselves when not sub-sampled
    model : the dxtbx Detector
    """

    panels: list
    sub_pixels: list
    model: Detector

    def with_readings(self, readings) -> DetectorSetup:
        """The same with another Reading for each panel."""
        return replace(self, panels=[replace(p, reading=r) for p, r in zip(self.panels, readings)])

    def __reduce__(self):
        edge = math.isqrt(len(self.sub_pixels))
        return _computed_again, (self.model, edge, [panel.reading for panel in self.panels])


def _computed_again(model, sub_pixel: int, readings: list) -> DetectorSetup:
    return detector_setup(model, sub_pixel).with_readings(readings)


def detector_setup(detector, sub_pixel: int = 1) -> DetectorSetup:
    """Directions to all pixels (and sub-pixels) of a dxtbx detector."""
    panels = [panel_geometry(p) for p in detector]
    if sub_pixel == 1:
        sub_pixels = [((0.5, 0.5), [p.directions for p in panels])]
    else:
        steps = (np.arange(sub_pixel) + 0.5) / sub_pixel
        offsets = [(dx, dy) for dy in steps for dx in steps]
        sub_pixels = [(o, [panel_geometry(p, o).directions for p in detector]) for o in offsets]
    return DetectorSetup(panels, sub_pixels, detector)
