"""Do the images have Bragg peaks where the models predict them? Asked of a few images, before anything takes long."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.experiment.images import image_readings, read_image, static_mask
from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size

#: images that are looked at
N_IMAGES = 12

#: proteins have strong reflections here, 1/Å
_STRONG_S = 0.2

#: strongest reflections of each that count; half the edge of the windows around them, pixels
_N_SPOTS, _HALF = 150, 24

#: counts of a pixel beyond this many standard deviations of its window say no more than that there is a peak
_CLIP = 20.0

#: a stacked peak is there if it stands out so far
_SIGNIFICANT = 8.0


@dataclass(frozen=True)
class SpotCheck:
    """Peaks on a sample of images, stacked on their predicted positions.

    Attributes
    ----------
    n_spots, n_images : that were stacked
    height : of the stacked image at the predicted position, over its standard deviation
    offset : (x, y) pixels from the predicted to the observed position; NaN where no peak stands out
    """

    n_spots: int
    n_images: int
    height: float
    offset: tuple

    @property
    def distance(self) -> float:
        """Length of the offset in pixels."""
        return math.hypot(*self.offset)

    @property
    def found(self) -> bool:
        """Is there a peak, wherever it is?"""
        return math.isfinite(self.distance)


def check_spots(experiment, reflections, d_min: float, positions, n_images: int = N_IMAGES) -> SpotCheck:
    """Stack windows of images on the predicted positions of strong reflections.

    Parameters
    ----------
    experiment : dxtbx Experiment that can read its images
    reflections : its reflections, or None; with intensities in them only strong ones are stacked
    d_min : Å, no further
    positions : of the images to choose from, counted from the start of the scan

    Raises
    ------
    DiffuseError
        If an image cannot be read, or nothing is predicted.
    """
    spots = predict_spots(experiment, spot_size(experiment, reflections), d_min)
    strength = _strengths(experiment, reflections, spots)
    positions = np.asarray(positions)
    chosen = np.unique(positions[np.linspace(0, len(positions) - 1, min(n_images, len(positions))).astype(int)])
    stack, weight, n_spots = np.zeros((2 * _HALF + 1,) * 2), np.zeros((2 * _HALF + 1,) * 2), 0
    good, readings = static_mask(experiment.imageset), image_readings(experiment.imageset)
    for i in chosen:
        here = np.flatnonzero(np.abs(spots.centre[:, 2] - i - 0.5) < np.maximum(0.5, spots.sigma_z))
        here = here[np.argsort(strength[here], kind="stable")[::-1][:_N_SPOTS]]
        for p, (values, reading) in enumerate(zip(read_image(experiment.imageset, int(i)), readings)):
            usable = good[p] & reading.trusted(values)
            counts = np.where(usable, reading.counts(values), np.nan)
            for x, y in spots.centre[here[spots.panel[here] == p], :2]:
                n_spots += _add_window(counts, int(x), int(y), stack, weight)
    return SpotCheck(n_spots, len(chosen), *_peak(stack, weight))


def _strengths(experiment, reflections, spots) -> np.ndarray:
    """(n,) something that is larger for stronger spots; without intensities, near the resolution of strong ones."""
    if reflections is None or "intensity.sum.value" not in reflections or "xyzcal.px" not in reflections:
        beam = np.array(experiment.beam.get_s0())
        length = np.linalg.norm(beam)
        return -np.abs(np.linalg.norm(spots.direction * length - beam, axis=1) - _STRONG_S)
    from scipy.spatial import cKDTree

    known = np.array(reflections["xyzcal.px"]).reshape(-1, 3)
    known[:, 2] -= experiment.scan.get_array_range()[0]
    values = np.array(reflections["intensity.sum.value"])
    # the nearest reflection of the table: models that changed since move all of them alike
    distance, nearest = cKDTree(known).query(spots.centre)
    return np.where(distance < _HALF, values[nearest], -np.inf)


def _add_window(counts: np.ndarray, x: int, y: int, stack: np.ndarray, weight: np.ndarray) -> int:
    """Add the surroundings of a pixel, in standard deviations above their median; 1 if there is enough of them."""
    ny, nx = counts.shape
    if not (_HALF <= x < nx - _HALF and _HALF <= y < ny - _HALF):
        return 0
    window = counts[y - _HALF : y + _HALF + 1, x - _HALF : x + _HALF + 1]
    usable = np.isfinite(window)
    if usable.mean() < 0.8:
        return 0
    level = float(np.median(window[usable]))
    spread = math.sqrt(max(level, 0.2))
    stack += np.where(usable, np.clip((window - level) / spread, -_CLIP, _CLIP), 0)
    weight += usable
    return 1


def _peak(stack: np.ndarray, weight: np.ndarray) -> tuple:
    """Height at the centre, and the offset of the highest place of the stack, smoothed over 3 x 3 pixels."""
    from scipy.ndimage import uniform_filter

    mean = np.divide(stack, weight, out=np.zeros(stack.shape), where=weight > 0)
    smooth = uniform_filter(mean, 3, mode="nearest")
    inner = smooth[1:-1, 1:-1]
    spread = 1.4826 * float(np.median(np.abs(inner - np.median(inner))))
    if spread == 0:
        return 0.0, (math.nan, math.nan)
    heights = (inner - np.median(inner)) / spread
    y, x = np.unravel_index(np.argmax(heights), heights.shape)
    centre = heights.shape[0] // 2
    at_centre = float(heights[centre - 1 : centre + 2, centre - 1 : centre + 2].max())
    if heights[y, x] < _SIGNIFICANT:
        return at_centre, (math.nan, math.nan)
    # centre of mass of the peak: the offset to a fraction of a pixel
    rows, columns = np.mgrid[-2:3, -2:3]
    part = np.pad(np.maximum(heights - 0.3 * heights[y, x], 0), 2)[y : y + 5, x : x + 5]
    dx, dy = float((part * columns).sum() / part.sum()), float((part * rows).sum() / part.sum())
    # windows are cut at whole pixels, their centres lie half a pixel before the position on the average
    return at_centre, (x - centre + dx, y - centre + dy)
