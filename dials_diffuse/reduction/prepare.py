"""The steps that make a job of an experiment: corrections, spots, bad pixels, background and flux."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.detector import DetectorSetup
from dials_diffuse.experiment.images import image_readings, image_shift, read_image, static_mask
from dials_diffuse.experiment.scan import scan_geometry, sub_steps
from dials_diffuse.experiment.spot_prediction import PredictedSpots, SpotSize, predict_spots, spot_size
from dials_diffuse.kernels.image import Tracked, Usual, track_outliers, track_range
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.parallel import Progress, quiet
from dials_diffuse.reduction.background import (
    check_wavelength,
    measure_background,
    no_background,
    unlike_exposures,
)
from dials_diffuse.reduction.clipped import cut_off_in_words
from dials_diffuse.reduction.corrections import image_corrections
from dials_diffuse.reduction.frames import background_profile, empty_bragg, read_frame
from dials_diffuse.reduction.job import Job, pixel_arrays
from dials_diffuse.reduction.outliers import (
    MIN_IMAGES,
    UsualProfile,
    persistent_outliers,
    reference_profile,
    sample_shells,
    shape_difference,
    stuck_pixels,
    usual_profile,
    widen_regions,
)
from dials_diffuse.reduction.peak_check import check_peaks
from dials_diffuse.reduction.peak_result import UNKNOWN, WRONG
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.reduction.refl_check import check_reflections
from dials_diffuse.reduction.sample import look_at_images, photons_of, spot_margin

logger = logging.getLogger("dials.diffuse.reduction")

SAMPLE_IMAGES = 16
PADDING = 6.0  # widths sigma_m beyond the ends of the scan, where reflections may still leak
GOLDEN_RATIO = 0.6180339887498949


def prepare_job(
    number: int,
    experiments,
    images: np.ndarray,
    grid: MapGrid,
    parameters: ReductionParameters,
    detector: DetectorSetup,
    reflections=None,
    background_experiments=(),
    progress: Progress = quiet,
) -> Job:
    """Predict Bragg peaks, compute corrections, find bad pixels and average the background for one experiment.

    Parameters
    ----------
    number : which of ``experiments``
    experiments : all experiments, because other crystals on the same images have Bragg peaks, too
    images : positions to use, counted from the start of the scan
    reflections : dials reflection table of all experiments, or None
    """
    experiment = experiments[number]
    detector = detector.with_readings(image_readings(experiment.imageset))
    scan = scan_geometry(experiment)
    pixels = pixel_arrays(detector.panels, scan, grid, parameters)
    margin = grid.diagonal / 2
    outside = [(s > 1 / grid.d_min + margin) | (s < 1 / grid.d_max - margin) for s in pixels.s]
    masks = static_mask(experiment.imageset)
    bad = [(~m | o | ~(c > 0)).astype(np.uint8) for m, o, c in zip(masks, outside, pixels.corrections)]
    crystals = _all_spots(number, experiments, grid.d_min, parameters, reflections)
    n_sub = parameters.sampling.oscillation or sub_steps(grid, scan)
    job = Job(
        number=number,
        imageset=experiment.imageset,
        images=images,
        grid=grid,
        parameters=parameters,
        detector=detector,
        scan=scan,
        corrections=pixels.corrections,
        varying=pixels.varying,
        exposures=image_corrections(experiment.scan, parameters.corrections),
        bad=bad,
        shells=pixels.shells,
        shell_limit=pixels.shell_limit,
        sample=sample_shells(pixels.shells, bad, pixels.corrections),
        spots=[spots for _, spots, _ in crystals],
        masks=[None for _ in crystals],
        background=no_background(len(detector.panels)),
        n_sub_steps=n_sub,
    )
    job = _with_peaks_checked(job, experiment, crystals, _reflections_of(reflections, number))
    if parameters.masking.persistent:
        job = _mask_persistent(job, progress)
    job = replace(job, warnings=(*job.warnings, *cut_off_in_words(job)))
    job = look_at_images(job, [photons for *_, photons in crystals], _sample_images(job), pixels.s, progress)
    if background_experiments:
        job = _subtract_background(job, experiment, background_experiments, progress)
    if parameters.corrections.flux:
        job = _measure_flux(job)
    return job


def _all_spots(number, experiments, d_min, parameters: ReductionParameters, reflections) -> list:
    """(number, PredictedSpots, SpotPhotons or None) of every crystal with peaks on the images of this experiment."""
    masking = parameters.masking
    if not masking.bragg:
        return []
    result = []
    for i, experiment in enumerate(experiments):
        shift = image_shift(experiments[number].imageset, experiment.imageset)
        if shift is None or experiment.crystal is None:
            continue
        source, theirs = experiment, _reflections_of(reflections, i)
        if i != number and experiment.profile is None and not theirs:
            # a crystal that is not used, of which nothing else is known
            source, theirs = experiments[number], _reflections_of(reflections, number)
        if masking.sigma_b is not None:
            b, m = math.radians(masking.sigma_b), math.radians(masking.sigma_m)
            size = SpotSize(np.array([b]), np.array([m]), "mask.bragg.sigma_b, sigma_m")
        else:
            size = spot_size(source, theirs)
        photons = None
        if masking.follows_peaks and source is experiment and theirs:
            spots = predict_spots(experiment, size, d_min, PADDING, spot_margin(experiment.detector, size))
            photons = photons_of(spots, theirs, experiment)
        if photons is None:
            spots = predict_spots(experiment, size, d_min, masking.fixed_n_sigma)
        logger.info(
            "Bragg mask: %d reflections predicted; sigma_b %.3f, sigma_m %.3f degrees from the %s",
            len(spots),
            math.degrees(np.median(size.sigma_b)),
            math.degrees(np.median(size.sigma_m)),
            size.source,
        )
        if photons is not None:
            logger.info(
                "Intensities: %d measured, %d from symmetry mates, %d from Wilson's distribution",
                photons.measured,
                photons.mates,
                photons.wilson,
            )
        result.append((i, spots.moved(-shift), photons))
    return result


def _with_peaks_checked(job: Job, experiment, crystals: list, reflections) -> Job:
    """Compare peaks on some images with the predictions.

    crystals : of :func:`_all_spots`

    Raises
    ------
    DiffuseError
        If they are not there, and this is to be an error.
    """
    wanted = job.parameters.geometry_check
    own = [spots for i, spots, _ in crystals if i == job.number]
    if wanted == "none" or not own:
        return job
    job = _with_reflections_checked(job, experiment, own[0], reflections)
    check = check_peaks(job, experiment, own[0], [spots for i, spots, _ in crystals if i != job.number], reflections)
    text = f"experiment {job.number} ({experiment.imageset.get_path(0) or experiment.identifier}): {check.words}"
    if check.verdict == WRONG and wanted == "error":
        raise DiffuseError(f"{text}; correct the models, or give geometry.check=warn to go on as they are")
    if check.verdict == UNKNOWN:
        logger.info("%d peaks on %d images are too few to check the models", check.n_peaks, check.n_images)
    else:
        logger.info(
            "Peaks on %d images: %.0f %% of %d are predicted (%.0f %% by chance), %.2f pixels from their places",
            check.n_images,
            100 * (check.share + check.chance * (1 - check.share)),
            check.n_peaks,
            100 * check.chance,
            check.offset,
        )
    warnings = (*job.warnings, *([text] if check.words else ()))
    return replace(job, peak_check=check, warnings=warnings)


def _with_reflections_checked(job: Job, experiment, own: PredictedSpots, reflections) -> Job:
    """Compare the predictions in the reflection table with those of the models; a difference is a warning."""
    check = check_reflections(own, reflections, experiment, job.grid.d_min)
    if check is None:
        return job
    logger.info("Reflections: %.0f %% of %d are where the models predict them", 100 * check.same, check.n)
    words = (f"experiment {job.number}: {check.words}",) if check.words else ()
    return replace(job, reflection_check=check, warnings=(*job.warnings, *words))


def _reflections_of(reflections, i: int):
    """Those of one experiment; None without a table."""
    return None if reflections is None else reflections.select(reflections["id"] == i)


def _sample_images(job: Job) -> list:
    """Some images spread over the sweep."""
    return [int(i) for i in job.images[np.unique(np.linspace(0, len(job.images) - 1, SAMPLE_IMAGES).astype(int))]]


def _scattered_images(job: Job) -> list:
    """As many, at steps of the golden ratio: where every fourth image is wrong, not all of them are among these."""
    steps = np.arange(1, SAMPLE_IMAGES + 1) * GOLDEN_RATIO % 1
    return [int(i) for i in job.images[np.unique((steps * len(job.images)).astype(int))]]


def _measure_flux(job: Job) -> Job:
    """Add the mean resolution profile of a sample of images, which the flux of each is compared with, and its shape."""
    bragg = empty_bragg(job)
    sample, scattered = _sample_images(job), _scattered_images(job)
    gross, background = {}, {}
    for image in sorted({*sample, *scattered}):
        gross[image] = job.sample.statistics(read_frame(job, image, bragg), job.panels, job.exposure(image))[0]
        background[image] = background_profile(job, image)

    def values(images, of) -> np.ndarray:
        return np.array([of[image] for image in images])

    exposures = np.array([job.exposure(image) for image in scattered])
    usual, good = usual_profile(values(scattered, gross), values(scattered, background), job.sample.norm, exposures)
    if usual is not None:
        fit = [image for image in sample if _is_usual(job, usual, gross[image], background[image], image)]
        sample = fit or [image for image, use in zip(scattered, good) if use]
        job = replace(job, usual=usual)
    reference = reference_profile(values(sample, gross) - values(sample, background), job.sample.norm)
    if reference is None:
        warning = f"experiment {job.number}: too few pixels to measure the flux of the images, it is not corrected"
        return replace(job, warnings=(*job.warnings, warning))
    return replace(job, reference=reference)


def _is_usual(job: Job, usual: UsualProfile, gross: np.ndarray, background: np.ndarray, image: int) -> bool:
    return shape_difference(gross, background, usual, job.sample.norm, job.exposure(image)) <= usual.limit


def _subtract_background(job: Job, data, experiments, progress) -> Job:
    """Add the background, and mask the pixels where it was not measured."""
    smoothing, corrections = job.parameters.background, job.parameters.corrections
    check_wavelength(experiments, 1 / float(np.linalg.norm(job.scan.s0_at(job.scan.n_images / 2))))
    background = measure_background(experiments, data.detector, job.bad, smoothing, corrections, progress, data.scan)
    unknown = [background.unmeasured_pixels(p, panel.shape) for p, panel in enumerate(job.panels)]
    warnings = list(job.warnings)
    if corrections.exposure and any(unlike_exposures(e, data.scan) for e in experiments):
        warnings.append(
            f"experiment {job.number}: exposure times are known of the data or of the background images, not of both; "
            f"taken as equal (background_average.scale is for what differs)"
        )
    lost = sum(int(np.count_nonzero(u & (b == 0))) for u, b in zip(unknown, job.bad))
    if lost:
        left = sum(int(np.count_nonzero(b == 0)) for b in job.bad)
        warnings.append(
            f"experiment {job.number}: {lost} pixels ({100 * lost / left:.1f} %) are masked in the background images; "
            f"they have no background and are left out"
        )
    far = max(background.distances(job.scan.angle(i + 0.5)).min() for i in job.images)
    if len(background.angles) > 1 and far > smoothing.angle:
        warnings.append(
            f"experiment {job.number}: the nearest background images are up to {far:.0f} degrees away from the data"
        )
    return replace(job.without(unknown), background=background, warnings=tuple(warnings))


def _mask_persistent(job: Job, progress) -> Job:
    """Mask pixels that are wrong on most of a sample of images."""
    if len(job.images) < MIN_IMAGES:
        return job
    chosen = _sample_images(job)
    shapes = [p.shape for p in job.panels]
    smallest = [np.full(s, np.inf, dtype=np.float32) for s in shapes]
    largest = [np.full(s, -np.inf, dtype=np.float32) for s in shapes]
    for image in progress(chosen, len(chosen), "Looking for stuck pixels"):
        for p, raw in enumerate(read_image(job.imageset, image)):
            track_range(raw, job.panels[p].reading, smallest[p], largest[p])
    stuck = stuck_pixels(smallest, largest, job.shells, len(chosen))
    job = job.without(stuck)

    tracked = [
        Tracked(np.zeros((3, *s), dtype=np.int16), *(np.zeros(s, dtype=np.float32) for _ in range(3))) for s in shapes
    ]
    bragg = empty_bragg(job)
    for image in progress(chosen, len(chosen), "Looking for hot, dead and shadowed pixels"):
        frame = read_frame(job, image, bragg)
        centre, spread = job.sample.statistics(frame, job.panels, job.exposure(image))
        limit = (job.parameters.masking.outlier_n_sigma or 6.0) * spread
        read_variance = job.sample.read_variance(frame, job.panels, job.exposure(image), centre)
        for p, panel in enumerate(job.panels):
            track_outliers(
                frame.pixels(p, job.bad[p]),
                panel.reading,
                job.corrections[p],
                job.exposure(image),
                Usual(job.shells[p], centre, limit, read_variance),
                tracked[p],
            )
    shadow = job.parameters.masking.shadow
    found = [widen_regions(persistent_outliers(*t, shadow) | s) for t, s in zip(tracked, stuck)]
    logger.info(
        "Bad pixels (hot, dead, stuck or shadowed on most images): %d of %d",
        sum(int(f.sum()) for f in found),
        sum(f.size for f in found),
    )
    return job.without(found)
