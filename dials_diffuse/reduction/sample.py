"""What a sample of the images decides: masks that follow the Bragg peaks, and ice rings."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.experiment.bragg_photons import bragg_photons
from dials_diffuse.experiment.scan import scan_geometry
from dials_diffuse.experiment.spot_prediction import PredictedSpots, SpotSize
from dials_diffuse.reduction.diffuse_level import DiffuseLevel
from dials_diffuse.reduction.frames import empty_bragg, paint_bragg, paint_ellipsoids, read_frame
from dials_diffuse.reduction.ice_rings import RadialProfile, all_rings, find_rings, in_rings
from dials_diffuse.reduction.job import Job
from dials_diffuse.reduction.outliers import N_SHELLS
from dials_diffuse.reduction.spot_mask import UNSURE
from dials_diffuse.reduction.spot_photons import SpotPhotons, spot_photons
from dials_diffuse.reduction.survey import CLAIM, SpotSurvey

logger = logging.getLogger("dials.diffuse.reduction")

MARGIN = 5.0  # widths sigma_b, and as many pixels, beyond the panels
N_LOOKED_AT = 10  # images
N_COUNTED = 4  # images on which masked pixels are counted
MIN_REFLECTIONS = 100  # with intensities
MOST_PIXELS, MOST_TIMES = 0.1, 3.0  # masks that take more, and so many times what fixed ones take, are wrong


@dataclass(frozen=True)
class MaskReport:
    """What became of the reflections of one crystal.

    Attributes
    ----------
    reflections : predicted on the images
    unmasked : of these, too weak to matter
    measured, mates, wilson : all predictions, by the source of their intensity
    leak_mean, leak_95 : estimated leak into the voxel at a lattice point over the diffuse rms, with expected tails
        subtracted; mean, and what 95 % are below
    tail_seen_to : distance to which spots were seen in each resolution range, in their own widths
    ranges : 1/Å, where the ranges end
    masked_pixels, masked_pixels_fixed : fraction of the pixels under these masks, and under the fixed ones
    """

    reflections: int
    unmasked: int
    measured: int
    mates: int
    wilson: int
    leak_mean: float
    leak_95: float
    tail_seen_to: list
    ranges: list
    masked_pixels: float
    masked_pixels_fixed: float


def spot_margin(detector, size: SpotSize) -> float:
    """Pixels beyond the edges of the panels from which tails of spots reach them."""
    nearest = min(abs(panel.get_directed_distance()) / max(panel.get_pixel_size()) for panel in detector)
    return MARGIN * (1 + float(size.sigma_b.max()) * nearest)


def photons_of(spots: PredictedSpots, reflections, experiment) -> SpotPhotons | None:
    """Photons of predicted reflections; None where hardly any was integrated.

    reflections : dials reflection table of this experiment only
    """
    scan = scan_geometry(experiment)
    good = bragg_photons(reflections, scan)
    if good is None or len(good) < MIN_REFLECTIONS:
        return None
    everything = bragg_photons(reflections, scan, use_bad=True)
    # photons are |F|² / speed, but for factors that hardly differ between mates
    return spot_photons(spots, good, everything, 1 / spots.speed, experiment.crystal.get_space_group())


def look_at_images(job: Job, photons: list, images: list, s_panels: list, progress) -> Job:
    """Let Bragg masks follow the peaks where intensities are known, and mask ice rings, by a sample of the images.

    Parameters
    ----------
    photons : SpotPhotons of each crystal, or None where its mask is the same for all reflections
    images : positions of the sample
    s_panels : (ny, nx) |s| of each panel, 1/Å
    """
    masking = job.parameters.masking
    look_for_ice = masking.ice_rings is None
    if masking.ice_rings:
        job = without_rings(job, all_rings(1 / job.shell_limit), s_panels)
    if not look_for_ice and not any(photons):
        return job
    surveys = [None if p is None else SpotSurvey(s, p, job) for s, p in zip(job.spots, photons)]
    s_max = job.shell_limit
    images = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, N_LOOKED_AT).astype(int))]
    level = DiffuseLevel(job.sample, job.panels, job.scan.s0_at(job.scan.n_images / 2), s_max)
    radial = RadialProfile(s_panels, s_max) if look_for_ice else None
    bragg = empty_bragg(job)
    rates = []
    for image in progress(images, len(images), "Looking at Bragg spots and for ice"):
        frame = read_frame(job, image, bragg)
        exposure = job.exposure(image)
        centre, _ = job.sample.statistics(frame, job.panels, exposure)
        rates.append(centre)
        if radial is not None:
            radial.add(frame, job.panels, job.bad, job.corrections, exposure)
        if not any(photons):
            continue
        level.add(frame, job.bad, job.corrections, exposure, centre)
        filled = np.nan_to_num(centre) * exposure
        expected = [(filled[s] * c).astype(np.float32) for s, c in zip(job.shells, job.corrections)]
        for survey in surveys:
            if survey is not None:
                survey.add(frame, job.bad, expected, _of_others(job, survey.spots, image))
    if radial is not None:
        job = without_rings(job, find_rings(*radial.rate(), 1 / s_max), s_panels)
    if not any(photons):
        return job
    rms = level.rms() * _mean_rate(rates)
    known = np.flatnonzero(np.isfinite(rms))
    if not len(known):
        return job
    rms = np.interp(np.arange(N_SHELLS), known, rms[known])
    exposure = float(np.mean([job.exposure(i) for i in images]))
    masks, reports = [], []
    for spots, survey, of_crystal in zip(job.spots, surveys, photons):
        mask = None
        if survey is not None:
            shell = np.clip((spots.s / s_max * N_SHELLS).astype(int), 0, N_SHELLS - 1)
            mask = survey.mask(job.parameters.masking.leak * rms[shell] * survey.norm * exposure)
        masks.append(mask)
        if mask is not None:
            reports.append(_report(job, spots, survey, mask, of_crystal))
        elif survey is not None:
            logger.info("Too few strong reflections on %d images to see their profile: the mask is fixed", len(images))
    followed = replace(job, masks=masks)
    if reports:
        before, after = (_masked_pixels(j, images[:: max(1, len(images) // N_COUNTED)]) for j in (job, followed))
        logger.info(
            "Pixels under Bragg masks: %.1f %%, where %g sigma for all would take %.1f %%",
            100 * after,
            job.parameters.masking.fixed_n_sigma,
            100 * before,
        )
        if not believable(after, before):
            logger.info("Peaks do not reach so far, their profiles are not to be believed: the mask is fixed")
            return job
        reports = [replace(r, masked_pixels=after, masked_pixels_fixed=before) for r in reports]
    return replace(followed, mask_reports=tuple(reports))


def _of_others(job: Job, own: PredictedSpots, image: int) -> list | None:
    """(ny, nx) bool per panel, pixels at spots of other crystals on an image; None where there is one crystal."""
    others = [spots for spots in job.spots if spots is not own]
    if not others:
        return None
    marked = empty_bragg(job)
    for spots in others:
        paint_ellipsoids(job, spots, marked, image, CLAIM)
    return [m != 0 for m in marked]


def believable(followed: float, fixed: float) -> bool:
    """Can masks take this fraction of the pixels, where fixed ones take the other?

    Where few and weak spots stand close together, all that is between them may pass for tails.
    """
    return followed <= max(MOST_PIXELS, MOST_TIMES * fixed)


def _mean_rate(rates: list) -> np.ndarray:
    """(N_SHELLS,) mean of the C/c of some images, NaN where it is never known."""
    known = np.isfinite(rates)
    total = np.sum(np.where(known, rates, 0.0), axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def without_rings(job: Job, rings: list, s_panels: list) -> Job:
    """The job without the pixels in the bands of ice rings."""
    if not rings:
        return job
    logger.info(
        "Ice rings masked (%s): %s Å",
        rings[0].ice,
        ", ".join(f"{r.d:.2f}" + ("" if r.excess is None else f" (+{100 * r.excess:.0f} %)") for r in rings),
    )
    return replace(job.without([in_rings(s, rings) for s in s_panels]), ice_rings=tuple(rings))


def _report(job: Job, spots, survey: SpotSurvey, mask, photons: SpotPhotons) -> MaskReport:
    """How many reflections are masked, and what leaks in the mean into the voxel at a lattice point."""
    on_images = (spots.centre[:, 2] >= 0) & (spots.centre[:, 2] < job.scan.n_images)
    voxel = abs(np.linalg.det(job.grid.reciprocal_matrix)) / np.prod(job.grid.subdivide)
    pixels = voxel / survey.swept_by_pixel()
    limit = UNSURE * job.parameters.masking.leak  # no pixel outside has more, and so no voxel
    leak = np.minimum(mask.total_leak(spots, job.scan.n_images) / pixels, 1.0)[on_images] * limit
    report = MaskReport(
        reflections=int(on_images.sum()),
        unmasked=int(np.count_nonzero(on_images & ~mask.masked(spots))),
        measured=photons.measured,
        mates=photons.mates,
        wilson=photons.wilson,
        leak_mean=float(leak.mean()),
        leak_95=float(np.quantile(leak, 0.95)),
        tail_seen_to=[float(p.measured_to.max()) for p in mask.profiles],
        ranges=[float(x) for x in mask.limits],
        masked_pixels=0.0,
        masked_pixels_fixed=0.0,
    )
    logger.info(
        "Bragg masks follow the peaks: %d of %d reflections are too weak to be masked. Estimated leak into voxels at "
        "lattice points: %.2f %% of the diffuse rms (95 %% of them below %.2f %%)",
        report.unmasked,
        report.reflections,
        100 * report.leak_mean,
        100 * report.leak_95,
    )
    return report


def _masked_pixels(job: Job, images) -> float:
    """Fraction of the usable pixels of some images that lie under Bragg masks."""
    masked = usable = 0
    bragg = empty_bragg(job)
    for image in images:
        paint_bragg(job, bragg, image)
        masked += sum(int(np.count_nonzero((b == image + 1) & (bad == 0))) for b, bad in zip(bragg, job.bad))
        usable += sum(int(np.count_nonzero(bad == 0)) for bad in job.bad)
    return masked / max(usable, 1)
