"""Do the counts end at a value that many pixels have? Then they were cut off, and the trusted range is too wide."""

from __future__ import annotations

import numpy as np

from dials_diffuse.experiment.images import image_mask, read_image
from dials_diffuse.reduction.job import Job

N_IMAGES = 6

#: pixels with the highest value, and standard errors by which they are more than those with the next lower one
_FEWEST, _N_SIGMA = 30, 6.0


def cut_off(job: Job) -> tuple | None:
    """(highest raw value, pixels of a few images that have it) where values seem to be cut off there, else None.

    Fewer pixels have higher values, wherever the values are from. If more pixels have the highest of all values than
    have the next lower one, then those that should have been higher are among them.
    """
    found: dict = {}
    where: list = []
    highest = -np.inf
    for image in job.images[np.unique(np.linspace(0, len(job.images) - 1, N_IMAGES).astype(int))]:
        masks = image_mask(job.imageset, int(image))
        for p, (values, panel) in enumerate(zip(read_image(job.imageset, int(image)), job.panels)):
            good = (job.bad[p] == 0) & panel.reading.trusted(values)
            if masks is not None:
                good &= masks[p]
            if values.dtype.kind != "i" or not good.any():
                continue
            top = int(values[good].max())
            few = values[good & (values > 0.5 * max(top, highest))]
            for value, n in zip(*np.unique(few, return_counts=True)):
                found[int(value)] = found.get(int(value), 0) + int(n)
            if top > highest:
                highest, where = top, []
            where.append(np.flatnonzero(good & (values == highest)) + p * (1 << 40))
    values = sorted(found)
    if len(values) < 3 or values[-1] <= 0:
        return None
    # a hot pixel has the same value on all images
    n, below = len(np.unique(np.concatenate(where))), found[values[-2]]
    if n < _FEWEST or n < below + _N_SIGMA * np.sqrt(n + below):
        return None
    return values[-1], found[values[-1]]


def cut_off_in_words(job: Job) -> list:
    """What the user is told."""
    found = cut_off(job)
    if found is None:
        return []
    value, n = found
    n_images = min(N_IMAGES, len(job.images))
    return [
        f"experiment {job.number}: counts seem to be cut off: {n} pixels of {n_images} images have "
        f"the highest value, {value}, more than have any value just below it; is the trusted range of the detector too "
        f"wide? Set it with dials.import, geometry.detector.panel.trusted_range="
    ]
