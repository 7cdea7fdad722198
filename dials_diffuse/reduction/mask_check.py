"""Do the pixels of the Bragg masks count more than those beside them? If not, the peaks are elsewhere.

Source: docs/theory.md, Do the images belong to the models?
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from dials_diffuse.reduction.frames import empty_bragg, read_frame
from dials_diffuse.reduction.job import Job

#: images that are looked at, and the fewest that tell something
N_IMAGES, _FEWEST = 8, 4

#: pixels around the masks that are compared with them, and how many of each an image must have
_RING, _FEWEST_PIXELS = 2, 300

#: standard deviations at which a pixel is cut off: the strongest peaks do not decide
_CLIP = 8.0

#: standard errors of a difference that is there, and a difference that peaks surely exceed (standard deviations)
_N_SIGMA, _HARDLY = 3.0, 0.1


@dataclass(frozen=True)
class MaskCheck:
    """Pixels in the Bragg masks of some images against those beside them.

    Attributes
    ----------
    n_images : that were looked at
    inside, beside : mean of (C − m)/√(m + 1), where m is what pixels of this resolution count; cut off at ±8
    difference, esd : of the two, from the scatter of the images
    """

    n_images: int
    inside: float
    beside: float
    difference: float
    esd: float

    @property
    def empty(self) -> bool:
        """Are there no peaks in the masks?"""
        return self.difference < _N_SIGMA * self.esd and self.difference + _N_SIGMA * self.esd < _HARDLY


def check_masks(job: Job, images: np.ndarray) -> MaskCheck | None:
    """Compare the counts inside and beside the Bragg masks.

    Parameters
    ----------
    images : positions of the images that were used, counted from the start of the scan

    Returns
    -------
    MaskCheck, or None where nothing is masked, or too few pixels or images tell something

    Raises
    ------
    DiffuseError
        If an image cannot be read.
    """
    if not job.spots or not len(images):
        return None
    chosen = images[np.unique(np.linspace(0, len(images) - 1, min(N_IMAGES, len(images))).astype(int))]
    bragg, means = empty_bragg(job), []
    for image in chosen:
        inside, beside = _deviations(job, int(image), bragg)
        if min(len(inside), len(beside)) >= _FEWEST_PIXELS:
            means.append((inside.mean(), beside.mean()))
    if len(means) < _FEWEST:
        return None
    inside, beside = np.transpose(means)
    difference = inside - beside
    esd = float(np.std(difference, ddof=1)) / math.sqrt(len(means))
    return MaskCheck(len(means), float(inside.mean()), float(beside.mean()), float(difference.mean()), esd)


def masks_in_words(number: int, check: MaskCheck | None) -> list:
    """What the user is told."""
    if check is None or not check.empty:
        return []
    return [
        f"experiment {number}: on {check.n_images} images the pixels in the Bragg masks count no more than those "
        f"beside them (by {check.difference:.3f} ± {check.esd:.3f} standard deviations): are these the images of this "
        f"crystal?"
    ]


def _deviations(job: Job, image: int, bragg: list) -> tuple:
    """Deviations of the good pixels of an image from others at their resolution, in the masks and beside them."""
    frame = read_frame(job, image, bragg)
    exposure = job.exposure(image)
    rates, _ = job.sample.statistics(frame, job.panels, exposure)
    parts: tuple = ([], [])
    for p, (panel, values) in enumerate(zip(job.panels, frame.raw)):
        expected = rates[job.shells[p]] * job.corrections[p] * exposure
        good = (job.bad[p] == 0) & panel.reading.trusted(values) & np.isfinite(expected)
        if frame.usable is not None:
            good &= frame.usable[p]
        mask = frame.bragg[p] == frame.number
        ring = binary_dilation(mask, iterations=_RING) & ~mask
        deviation = (panel.reading.counts(values) - expected) / np.sqrt(np.maximum(expected, 0) + 1)
        for part, where in zip(parts, (mask, ring)):
            part.append(np.clip(deviation[good & where], -_CLIP, _CLIP))
    return tuple(np.concatenate(part) for part in parts)
