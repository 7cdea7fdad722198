"""One image of a job: read, with its Bragg peaks marked, and its resolution profile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.experiment.images import image_mask, read_image
from dials_diffuse.experiment.spot_prediction import PredictedSpots
from dials_diffuse.kernels.discs import Discs, paint_discs
from dials_diffuse.kernels.image import paint_outlines
from dials_diffuse.reduction.job import Job
from dials_diffuse.reduction.outliers import Frame, relative_flux, shape_difference
from dials_diffuse.reduction.spot_mask import outlines, pixel_angle

MIN_FLUX = 0.02  # an image this much weaker than the sweep was taken without beam

#: why an image is not used
NO_BEAM = "no beam"
OTHER_PROFILE = "resolution profile unlike that of the sweep"


@dataclass(frozen=True)
class ShellProfile:
    """What one image looks like on the average.

    Attributes
    ----------
    expected : (N_SHELLS,) float64, C/c per resolution shell (c without flux)
    threshold : (N_SHELLS,) float64, limit of the outlier guard in sigma; negative = no test
    flux : intensity relative to the sweep
    unfit : why the image is not used, one of NO_BEAM and OTHER_PROFILE; empty if it is
    """

    expected: np.ndarray
    threshold: np.ndarray
    flux: float
    unfit: str


def empty_bragg(job: Job) -> list:
    """Arrays for :func:`read_frame` to mark Bragg peaks in."""
    return [np.zeros(p.shape, dtype=np.int32) for p in job.panels]


def read_frame(job: Job, image: int, bragg: list) -> Frame:
    """Read one image and mark its Bragg peaks in ``bragg``, (ny, nx) int32 per panel."""
    raw = read_image(job.imageset, image)
    paint_bragg(job, bragg, image)
    return Frame(image + 1, raw, bragg, image_mask(job.imageset, image))


def paint_bragg(job: Job, masks: list, image: int) -> None:
    """Set ``masks`` (one (ny, nx) int32 per panel) to ``image + 1`` where a Bragg peak lies in this image.

    Where intensities are known, a reflection takes the pixels where it would leak too much, see AdaptiveMask. Elsewhere
    the masked region is the ellipsoid of DIALS's profile model: n sigma_b on the detector for images that hold the
    spot's centre, shrinking to nothing n sigma_m away from it.
    """
    for spots, mask in zip(job.spots, job.masks):
        if mask is None:
            paint_ellipsoids(job, spots, masks, image, job.parameters.masking.fixed_n_sigma)
            continue
        chosen, radius = mask.radii(spots, image)
        for p, panel in enumerate(job.panels):
            paint_outlines(masks[p], image + 1, panel.directions, outlines(spots, chosen, radius, panel, p))


def paint_ellipsoids(job: Job, spots: PredictedSpots, masks: list, image: int, n_sigma: float) -> None:
    """Mark the spots of one crystal as :func:`paint_bragg` does where intensities are not known."""
    outside = np.maximum(np.abs(spots.centre[:, 2] - (image + 0.5)) - 0.5, 0)  # images from the spot's centre
    remaining = 1 - (outside / (n_sigma * spots.sigma_z)) ** 2
    for p, panel in enumerate(job.panels):
        mine = np.flatnonzero((remaining > 0) & (spots.panel == p))
        if len(mine) == 0:
            continue
        half_pixel = 0.5 * math.sqrt(panel.pixel_area) / panel.distance.min()
        radius = n_sigma * spots.sigma_b[mine] * np.sqrt(remaining[mine]) + half_pixel
        discs = Discs(
            np.ascontiguousarray(spots.centre[mine, :2]),
            np.ascontiguousarray(spots.direction[mine]),
            np.cos(radius),
            radius / pixel_angle(spots, mine, panel) + 2,
        )
        paint_discs(masks[p], image + 1, panel.directions, *panel.polynomials, discs)


def background_profile(job: Job, image: int) -> np.ndarray:
    """(N_SHELLS,) C/c of the background of an image."""
    counts, _ = job.background.at(job.scan.angle(image + 0.5), job.exposure(image))
    return job.sample.shell_means(counts, job.background.block) / job.exposure(image)


def shell_profile(job: Job, frame: Frame) -> ShellProfile:
    """Resolution profile of one image and its flux relative to the sweep."""
    image = frame.number - 1
    exposure = job.exposure(image)
    centre, spread = job.sample.statistics(frame, job.panels, exposure)
    flux, unfit = 1.0, ""
    if job.reference is not None:
        background = background_profile(job, image)
        flux = relative_flux(centre - background, job.reference, job.sample.norm, exposure)
        if flux < MIN_FLUX:
            unfit = NO_BEAM
        elif job.usual is not None:
            difference = shape_difference(centre, background, job.usual, job.sample.norm, exposure)
            unfit = OTHER_PROFILE if difference > job.usual.limit else ""
    n_sigma = job.parameters.masking.outlier_n_sigma
    threshold = np.where(np.isfinite(centre) & (n_sigma > 0), n_sigma * spread, -1.0)
    return ShellProfile(np.nan_to_num(centre), threshold, flux, unfit)
