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
SIGNIFICANT = 8.0


@dataclass(frozen=True)
class SpotCheck:
    """Peaks on a sample of images, stacked on their predicted positions.

    Attributes
    ----------
    n_spots, n_images : that were stacked
    height : of the stacked image at the predicted position, over its standard deviation
    height_observed : the same at the positions where the reflections say that spots were observed; NaN without such
    offset : (x, y) pixels from the predicted to the observed position; NaN where no peak stands out
    """

    n_spots: int
    n_images: int
    height: float
    height_observed: float
    offset: tuple

    @property
    def distance(self) -> float:
        """Length of the offset in pixels."""
        return math.hypot(*self.offset)

    @property
    def found(self) -> bool:
        """Is there a peak, wherever it is?"""
        return math.isfinite(self.distance)

    @property
    def missing(self) -> bool:
        """Are there peaks where they were observed, but none where they are predicted?

        Coarse pixels or few spots show neither, and then nothing can be said.
        """
        return self.height < SIGNIFICANT / 2 and self.height_observed > SIGNIFICANT


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
    predicted = _Stack(spots.panel, spots.centre, strength, np.maximum(0.5, spots.sigma_z))
    observed = _observed(experiment, reflections)
    positions = np.asarray(positions)
    chosen = np.unique(positions[np.linspace(0, len(positions) - 1, min(n_images, len(positions))).astype(int)])
    good, readings = static_mask(experiment.imageset), image_readings(experiment.imageset)
    for i in chosen:
        panels = []
        for values, reading, usable in zip(read_image(experiment.imageset, int(i)), readings, good):
            panels.append(np.where(usable & reading.trusted(values), reading.counts(values), np.nan))
        for stack in (predicted, observed):
            stack.add(int(i), panels)
    height, offset = predicted.peak()
    return SpotCheck(predicted.n, len(chosen), height, observed.peak()[0] if observed.n else math.nan, offset)


class _Stack:
    """Surroundings of spots, added up."""

    def __init__(self, panel: np.ndarray, centre: np.ndarray, strength: np.ndarray, reach: np.ndarray):
        self._panel, self._centre, self._strength, self._reach = panel, centre, strength, reach
        self._sum, self._weight = np.zeros((2, *(2 * _HALF + 1,) * 2))
        self.n = 0

    def add(self, image: int, panels: list) -> None:
        """Add the strongest spots of an image; panels : (ny, nx) counts, NaN where they cannot be trusted"""
        here = np.flatnonzero(np.abs(self._centre[:, 2] - image - 0.5) < self._reach)
        here = here[np.argsort(self._strength[here], kind="stable")[::-1][:_N_SPOTS]]
        for p, counts in enumerate(panels):
            for x, y in self._centre[here[self._panel[here] == p], :2]:
                self.n += _add_window(counts, int(x), int(y), self._sum, self._weight)

    def peak(self) -> tuple:
        """(height at the centre, offset of the peak)"""
        return _peak(self._sum, self._weight)


def _observed(experiment, reflections) -> _Stack:
    """Where the reflections say that spots were observed; empty where they do not."""
    columns = ("xyzobs.px.value", "intensity.sum.value", "panel")
    if reflections is None or any(name not in reflections for name in columns):
        return _Stack(np.zeros(0, int), np.zeros((0, 3)), np.zeros(0), np.zeros(0))
    centre = np.array(reflections["xyzobs.px.value"]).reshape(-1, 3)
    strength = np.array(reflections["intensity.sum.value"])
    use = np.any(centre != 0, axis=1) & (strength > 0)
    centre[:, 2] -= experiment.scan.get_array_range()[0]
    panel = np.array(reflections["panel"], dtype=int)
    return _Stack(panel[use], centre[use], strength[use], np.full(np.count_nonzero(use), 0.5))


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
    if heights[y, x] < SIGNIFICANT:
        return at_centre, (math.nan, math.nan)
    # centre of mass of the peak: the offset to a fraction of a pixel
    rows, columns = np.mgrid[-2:3, -2:3]
    part = np.pad(np.maximum(heights - 0.3 * heights[y, x], 0), 2)[y : y + 5, x : x + 5]
    dx, dy = float((part * columns).sum() / part.sum()), float((part * rows).sum() / part.sum())
    # windows are cut at whole pixels, their centres lie half a pixel before the position on the average
    return at_centre, (x - centre + dx, y - centre + dy)
