"""Peaks on single images, found without any prediction, and where they and predicted spots are seen from the beam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dials.algorithms.spot_finding.threshold import DispersionThresholdStrategy
from dxtbx import flumpy

from dials_diffuse.experiment.detector import pixel_directions
from dials_diffuse.kernels.strong_peaks import measure_peaks

#: pixels of a peak at least: a single one may be hot or a cosmic ray
MIN_PIXELS = 2

#: mean counts of a peak over those around it, at least: with many counts, the maxima of the diffuse scattering
#: are significant, too, but do not double what is there
MIN_CONTRAST, _AROUND = 2.0, 4

#: scattering angle to which a plane is one, radians
_FLAT = 1.2


@dataclass(frozen=True)
class BeamPlane:
    """Directions as places on a plane across the beam, in pixels: as on a detector that stands there.

    What turns about the beam turns; a wrong distance or wavelength makes the pattern larger or smaller. Far out, where
    the plane is met nowhere, distances from the beam grow with the angle.

    Attributes
    ----------
    beam, right, down : (3,) unit vectors; the last two along the fast and slow axes of the first panel, across the beam
    pixels : for each radian of the scattering angle, near the beam
    """

    beam: np.ndarray
    right: np.ndarray
    down: np.ndarray
    pixels: float

    def places(self, directions: np.ndarray) -> np.ndarray:
        """(n, 2) float64 of (n, 3) unit vectors."""
        across = np.stack([directions @ self.right, directions @ self.down], axis=1)
        sine = np.linalg.norm(across, axis=1)
        angle = np.arctan2(sine, directions @ self.beam)
        near = np.minimum(angle, _FLAT)
        distance = np.tan(near) + (angle - near) / np.cos(_FLAT) ** 2
        return across * (self.pixels * distance / np.maximum(sine, 1e-12))[:, None]


def beam_plane(detector, s0) -> BeamPlane:
    """Of the detector's first panel and the beam vector, (3,)."""
    panel = detector[0]
    beam = np.asarray(s0) / np.linalg.norm(s0)
    right = np.array(panel.get_fast_axis()) - beam * (beam @ np.array(panel.get_fast_axis()))
    right /= np.linalg.norm(right)
    down = np.cross(beam, right)
    down *= np.sign(down @ np.array(panel.get_slow_axis())) or 1.0
    return BeamPlane(beam, right, down, abs(panel.get_directed_distance()) / panel.get_pixel_size()[0])


def find_peaks(counts: np.ndarray, good: np.ndarray) -> tuple:
    """Peaks as dials.find_spots finds strong pixels, those that touch each other together.

    Parameters
    ----------
    counts : (ny, nx) float64, finite where good
    good : (ny, nx) bool, pixels that can be used

    Returns
    -------
    (n, 2) float64 centres of mass, x and y in pixels; (n,) float64 counts, background included
    """
    from scipy import ndimage

    counts = np.where(good, counts, 0.0)
    strong = flumpy.to_numpy(DispersionThresholdStrategy()(flumpy.from_numpy(counts), flumpy.from_numpy(good)))
    label, n = ndimage.label(strong, np.ones((3, 3)))
    empty = good & ~strong
    centre, total = measure_peaks(counts, empty, label, n, MIN_PIXELS, MIN_CONTRAST, _AROUND)
    return centre + 0.5, total


def peak_places(experiment, plane: BeamPlane, panel: int, positions: np.ndarray) -> np.ndarray:
    """(n, 2) places of positions on a panel, (n, 2) x and y in pixels."""
    return plane.places(pixel_directions(experiment.detector[panel], positions))
