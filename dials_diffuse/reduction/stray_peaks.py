"""Peaks that no crystal of the experiments predicts: found on each image and masked there, with their tails.

Source: docs/theory.md, Peaks that are not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from dials_diffuse.experiment.detector import s_magnitude
from dials_diffuse.kernels import stray_peaks as kernel
from dials_diffuse.kernels.accumulate import Guard, Norm

MOST_PIXELS = 20_000  # of a panel in one image; where so many are too high, something else is wrong
MOST_AREA = 0.2  # of the pixels of an image, that masks of such peaks may take
TOGETHER = 2.3  # pixels from one to the next of the same peak
NEAR_LATTICE = 0.2  # of a reciprocal-lattice step along each axis: so near, peaks are the crystal's own
ANGLES = np.linspace(-0.25, 1.25, 7)  # of an image, at which a peak may have been reflected
CONTRAST = 1.5  # mean counts of a peak over those around it, at least
SHARP, WIDEST = 3.0, 2.5  # pixels, and widths of the crystal's own spots, to where half of a peak is left, at most
SPOT = 3.0  # widths of predicted spots, and a pixel, in which peaks are theirs

ROCKING = 3.0  # widths about the rotation axis, in which spots are on an image


@dataclass(frozen=True)
class StrayPeaks:
    """The n peaks of one image that are not predicted.

    Attributes
    ----------
    hkl : (n, 3) float64, fractional indices in the crystal's lattice, in the middle of the image
    s : (n,) float64, 1/Å
    size : (n,) int64, pixels that stand out
    top : (n,) float64, counts above those around, of the highest pixels
    pixels : int, that are masked for them and would have been used
    given_up : they would have taken too much of the image, and are not masked
    """

    hkl: np.ndarray
    s: np.ndarray
    size: np.ndarray
    top: np.ndarray
    pixels: int = 0
    given_up: bool = False

    def __len__(self) -> int:
        return len(self.s)


NONE = StrayPeaks(np.zeros((0, 3)), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0))


def mask_stray(job, frame, profile) -> StrayPeaks:
    """Find the peaks of an image that are not predicted, and mark them in ``frame.bragg``.

    job : Job; frame : Frame with its Bragg peaks marked; profile : ShellProfile of it
    """
    image = frame.number - 1
    corrections = job.corrections_at(image)
    found = []
    for p, panel in enumerate(job.panels):
        pixels = frame.pixels(p, job.bad[p])
        norm = Norm(corrections[p], job.exposure(image))
        parts = (pixels, panel.reading, norm, Guard(job.shells[p], profile.expected, profile.threshold))
        peaks = _found(job, image, p, parts)
        if peaks is not None:
            found.append((pixels, panel.reading, *peaks))
    if not found:
        return NONE
    area = np.pi * sum(float(np.sum(radius**2)) for *_, radius, _ in found)
    result = StrayPeaks(*(np.concatenate([part[k] for *_, part in found]) for k in range(4)))
    if area > MOST_AREA * sum(int(np.count_nonzero(bad == 0)) for bad in job.bad):
        return StrayPeaks(result.hkl, result.s, result.size, result.top, given_up=True)
    painted = 0
    for pixels, reading, centre, radius, _ in found:
        each = np.empty(len(radius), dtype=np.int64)
        kernel.paint_peaks(pixels, reading, centre, radius, each)
        painted += int(each.sum())
    return StrayPeaks(result.hkl, result.s, result.size, result.top, painted)


def _found(job, image: int, p: int, parts: tuple) -> tuple | None:
    """Centres (y, x), radii and (hkl, s, size, top) of such peaks on one panel."""
    places = np.empty((MOST_PIXELS, 2), dtype=np.int64)
    n = kernel.find_high(*parts, job.peak_tiles[p], places)
    if n == 0 or n > MOST_PIXELS:
        return None
    places = places[:n]
    peak, n_peaks = _together(places)
    size = np.bincount(peak, minlength=n_peaks)
    centre = np.stack([np.bincount(peak, places[:, k], n_peaks) / size for k in (0, 1)], axis=1)
    y, x = np.rint(centre).astype(int).T
    direction = job.panels[p].directions[:, y, x]
    strange = np.flatnonzero(~_at_lattice_points(job, image, direction))
    if len(strange):
        strange = strange[~_at_spots(job, image, p, centre[strange])]
    if not len(strange):
        return None
    far = np.zeros(n_peaks)
    np.maximum.at(far, peak, np.hypot(*(places - centre[peak]).T))
    centre, size, core = centre[strange], size[strange], np.ceil(far[strange]).astype(np.int64)
    measured = np.empty((len(strange), kernel.N_MEASURED))
    kernel.measure_tails(*parts, np.ascontiguousarray(centre), core, measured)
    reach, half, level, top = measured.T
    sharp = half <= np.maximum(SHARP, WIDEST * job.spot_pixels)
    good = np.flatnonzero(sharp & (top > (CONTRAST - 1) * np.maximum(level, 0)))
    if not len(good):
        return None
    radius = np.maximum(reach, core + 1)[good] + 0.5
    u = direction[:, strange[good]]
    matrix, origin = job.scan.to_lattice(image + 0.5, (1, 1, 1))
    hkl = u.T @ matrix.T - origin
    s = s_magnitude(u, job.scan.s0_at(image + 0.5))
    return np.ascontiguousarray(centre[good]), radius, (hkl, s, size[good], top[good])


def _together(places: np.ndarray) -> tuple:
    """(n,) number of the peak of each pixel, and how many peaks there are."""
    pairs = cKDTree(places).query_pairs(TOGETHER, output_type="ndarray")
    joined = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(places),) * 2)
    number, label = connected_components(joined, directed=False)
    return label, number


def _at_lattice_points(job, image: int, direction: np.ndarray) -> np.ndarray:
    """(n,) bool, directions (3, n) that a lattice point may have reflected into during the image, or nearly."""
    near = np.zeros(direction.shape[1], dtype=bool)
    for angle in ANGLES:
        matrix, origin = job.scan.to_lattice(image + angle, (1, 1, 1))
        h = direction.T @ matrix.T - origin
        near |= np.all(np.abs(h - np.rint(h)) < NEAR_LATTICE, axis=1)
    return near


def _at_spots(job, image: int, p: int, centre: np.ndarray) -> np.ndarray:
    """(n,) bool, places (y, x) at spots of any crystal that are predicted on the image."""
    result = np.zeros(len(centre), dtype=bool)
    for spots in job.spots:
        on = (np.abs(spots.centre[:, 2] - image - 0.5) <= 0.5 + ROCKING * spots.sigma_z) & (spots.panel == p)
        if on.any():
            tree = cKDTree(spots.centre[on, 1::-1] - 0.5)
            result |= tree.query(centre)[0] < 1 + SPOT * job.spot_pixels
    return result
