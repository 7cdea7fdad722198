"""Reduce experiments to an observation file: the library function behind ``dials.diffuse_integrate``."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import DetectorSetup, detector_setup
from dials_diffuse.experiment.exclusion import check_excluded, images_to_use
from dials_diffuse.experiment.identity import chosen_positions, image_checksums, image_files
from dials_diffuse.experiment.image_md5 import check_images, odd_images
from dials_diffuse.experiment.scan import scan_geometry
from dials_diffuse.files.identity import Exposed, refuse_twice
from dials_diffuse.files.observations import ExperimentSummary, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.kernels import accumulate as kernel
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.parallel import SERIAL, Executor, Progress, quiet
from dials_diffuse.reduction.bragg_rows import bragg_rows
from dials_diffuse.reduction.frames import NO_BEAM, OTHER_PROFILE
from dials_diffuse.reduction.job import Job
from dials_diffuse.reduction.mask_check import MaskCheck, check_masks, masks_in_words
from dials_diffuse.reduction.outliers import outliers_in_words
from dials_diffuse.reduction.peak_result import PeakCheck
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.reduction.refl_check import ReflectionCheck
from dials_diffuse.reduction.stray_causes import UnpredictedPeaks, unpredicted_peaks
from dials_diffuse.reduction.voxel_sums import blocks_of_images, memory_estimate, observations, reduce_blocks

logger = logging.getLogger("dials.diffuse.reduction")

#: what is told of the pixels of each image, those that are masked on all images left out
_FATES = {
    "used": kernel.USED,
    "bragg": kernel.BRAGG,
    "outlier": kernel.OUTLIER,
    "untrusted": kernel.UNTRUSTED,
    "off_grid": kernel.OFF_GRID,
    "unpredicted": kernel.UNPREDICTED,
}


@dataclass(frozen=True)
class ExperimentReport:
    """What happened to one experiment, of this number among all.

    Pixels by fate, summed over the images used and, in ``images``, of each image with its number. The flux of all
    images, and which of them were left out. A MaskReport of each crystal whose Bragg masks follow its peaks, the ice
    rings that are masked, the comparison of peaks on some images with predictions, that of the pixels in Bragg masks
    with those beside them, and that of the reflections with predictions. Peaks that no crystal predicts, where they are
    masked.
    """

    experiment: int
    identifier: str
    n_images: int
    n_observations: int
    sub_steps: int
    never_used: int
    used: int
    untrusted: int
    bragg: int
    outlier: int
    off_grid: int
    unpredicted: int
    flux: list
    images: dict
    left_out: list
    bragg_masks: list
    ice_rings: list
    warnings: list
    peaks: PeakCheck | None = None
    masks: MaskCheck | None = None
    predictions: ReflectionCheck | None = None
    unpredicted_peaks: UnpredictedPeaks | None = None


@dataclass(frozen=True)
class IntegrationResult:
    """Summary of an integration; the sums themselves are in the observation file."""

    grid: MapGrid
    n_observations: int
    experiments: list = field(default_factory=list)
    warnings: list = field(default_factory=list)


def integrate(
    experiments,
    parameters: ReductionParameters,
    path,
    provenance: Provenance,
    reflections=None,
    background_experiments=(),
    excluded=(),
    executor: Executor = SERIAL,
    progress: Progress = quiet,
) -> IntegrationResult:
    """Reduce all images of ``experiments`` to voxel sums and write them to ``path``.

    Parameters
    ----------
    experiments : dxtbx ExperimentList of indexed rotation data
    reflections : dials reflection table, needed only where there is no profile model
    background_experiments : experiments of images without crystal
    excluded : see :func:`images_to_use`
    executor : does the work, block of images by block
    progress : wraps an iterator as ``progress(items, total, label)``

    Raises
    ------
    DiffuseError
        On data that cannot be reduced; ``path`` is then left as it was.
    """
    check_excluded(experiments, excluded)
    images = [images_to_use(e, i, excluded) for i, e in enumerate(experiments)]
    if not any(len(i) for i in images):
        raise DiffuseError("exclude_images leaves no image to integrate; exclude fewer")
    used = [e for e, mine in zip(experiments, images) if len(mine)]
    grid = choose_grid(used, parameters.d_min, parameters.d_max, parameters.subdivide)
    warnings = []
    if parameters.d_min is not None and grid.d_min > parameters.d_min * 1.0001:
        warnings.append(f"d_min={parameters.d_min:g} lies beyond the detector corner: {grid.d_min:.3f} Å used")
    logger.info(
        "Grid: %d x %d x %d voxels (%s per reciprocal-lattice step), %s, d_min %.3f Å",
        *grid.shape,
        "x".join(map(str, grid.subdivide)),
        grid.space_group_symbol,
        grid.d_min,
    )
    summaries = [_summary(e, mine) for e, mine in zip(experiments, images)]
    refuse_twice(
        Exposed(
            f"experiment {i} ({e.imageset.get_path(0)})",
            summaries[i].orientation,
            frozenset(summaries[i].images) | image_files(e.imageset, images[i]),
        )
        for i, e in enumerate(experiments)
    )
    reports = []
    setup: DetectorSetup | None = None
    seen = None
    with write_observations(path, grid, summaries, provenance) as writer:
        for number, experiment in enumerate(experiments):
            if len(images[number]) == 0:
                warnings.append(f"experiment {number}: all images are excluded")
                continue
            logger.info("\nExperiment %d: %d images", number, len(images[number]))
            warnings += _check_memory(number, grid, experiment, parameters.sampling.pixel, executor)
            if setup is None or seen != experiment.detector:
                setup, seen = detector_setup(experiment.detector, parameters.sampling.pixel), experiment.detector
            sample = chosen_positions(experiment.scan.get_oscillation(), images[number])
            first = experiment.scan.get_image_range()[0]
            has_md5 = check_images(number, experiment.imageset, first, sample)
            job = prepare_job(
                number,
                experiments,
                images[number],
                grid,
                parameters,
                setup,
                reflections,
                background_experiments,
                progress,
            )
            report = _reduce_experiment(job, experiment.identifier, reflections, writer, executor, progress, has_md5)
            reports.append(report)
            summaries[number] = replace(summaries[number], n_images_used=report.n_images)
        if writer.n_rows == 0:
            raise DiffuseError(
                f"no observations: every pixel of {sum(map(len, images))} images is masked or outside "
                f"d_min={grid.d_min:g} Å, d_max={grid.d_max:g} Å; check the masks and the resolution limits"
            )
        writer.update_experiments(summaries)
    return IntegrationResult(grid, writer.n_rows, reports, warnings + [w for r in reports for w in r.warnings])


def _check_memory(number: int, grid: MapGrid, experiment, sub_pixel: int, executor: Executor) -> list:
    """Log what the reduction will need; a warning if workers that have memory of their own have less."""
    limit = executor.worker_memory
    estimate = memory_estimate(grid, experiment, sub_pixel, executor.workers if limit is None else 1)
    logger.info("Memory: about %.2f GB%s", estimate / 1e9, "" if limit is None else " for each worker")
    if limit is None or estimate <= limit:
        return []
    return [
        f"experiment {number}: a worker needs about {estimate / 1e9:.2f} GB and may have {limit / 1e9:.2f} GB; "
        f"give more dask.memory if workers are lost"
    ]


def _summary(experiment, images: np.ndarray) -> ExperimentSummary:
    """What later steps need to know; of an experiment without images only what it is."""
    geometry = scan_geometry(experiment).in_head_frame() if experiment.crystal is not None else {}
    return ExperimentSummary(
        identifier=experiment.identifier,
        image_range=tuple(experiment.scan.get_image_range()),
        oscillation=tuple(experiment.scan.get_oscillation()),
        n_images_used=len(images),
        wavelength=experiment.beam.get_wavelength(),
        n_panels=len(experiment.detector),
        image_size=tuple(experiment.detector[0].get_image_size()),
        images=image_checksums(experiment.imageset, experiment.scan, images) if len(images) else (),
        **geometry,
    )


def _reduce_experiment(
    job: Job, identifier: str, reflections, writer, executor: Executor, progress, has_md5: bool
) -> ExperimentReport:
    tally = np.zeros(kernel.N_TALLY, dtype=np.int64)
    before = writer.n_rows
    flux: dict = {}
    unfit: dict = {}
    by_image: dict = {}
    stray: dict = {}
    blocks = blocks_of_images(job)
    if job.n_sub_steps > 1:
        logger.info("Each image is divided into %d rotation sub-steps (sampling.oscillation)", job.n_sub_steps)
    for block in progress(_written(job, writer, executor), len(blocks), f"Integrating experiment {job.number}"):
        tally += block.tally
        flux.update(block.flux)
        unfit.update(block.unfit)
        by_image.update(block.fates)
        stray.update(block.stray)
    first = job.scan.first_index + 1
    refused = {i: int(fates[[kernel.UNTRUSTED, kernel.OUTLIER]].sum()) for i, fates in by_image.items()}
    if has_md5:  # damage moves the counts in the rest of an image
        odd = {*odd_images(flux), *odd_images(refused), *(i for i, why in unfit.items() if why == OTHER_PROFILE)}
        check_images(job.number, job.imageset, first, sorted(odd), known_to_tell=True)
    warnings = [*job.warnings, *_unfit_in_words(job.number, {first + i: why for i, why in sorted(unfit.items())})]
    warnings += outliers_in_words(job.number, int(tally[kernel.OUTLIER]), int(tally[kernel.USED]))
    n_images = len(flux) - len(unfit)
    unpredicted = None
    if job.parameters.masking.unpredicted:
        good = tally[[kernel.USED, kernel.UNPREDICTED]]
        share = float(good[1] / max(good.sum(), 1))
        unpredicted = unpredicted_peaks([stray[i] for i in sorted(stray)], job.grid.reciprocal_matrix, share)
        if unpredicted.many:
            warnings.append(f"experiment {job.number}: {unpredicted.words}")
        elif unpredicted.words:
            logger.info("%s", unpredicted.words)
    masks = None
    if job.parameters.geometry_check != "none":
        masks = check_masks(job, np.array([i for i in sorted(flux) if i not in unfit], dtype=int))
        warnings += masks_in_words(job.number, masks)
    fit = {i: f for i, f in flux.items() if i not in unfit}
    bragg = bragg_rows(job, reflections, fit) if reflections is not None else None
    if bragg is not None:
        writer.append_bragg(*bragg)
        logger.info("%d integrated Bragg reflections, for the absolute scale", len(bragg[0]))
    report = ExperimentReport(
        experiment=job.number,
        identifier=identifier,
        n_images=n_images,
        n_observations=writer.n_rows - before,
        sub_steps=job.n_sub_steps,
        never_used=n_images * sum(int((b != 0).sum()) for b in job.bad),
        used=int(tally[kernel.USED]),
        untrusted=int(tally[kernel.UNTRUSTED]),
        bragg=int(tally[kernel.BRAGG]),
        outlier=int(tally[kernel.OUTLIER]),
        off_grid=int(tally[kernel.OFF_GRID]),
        unpredicted=int(tally[kernel.UNPREDICTED]),
        flux=[flux[i] for i in sorted(flux)],
        images={
            "image": [first + i for i in sorted(flux)],
            **{name: [int(by_image[i][fate]) for i in sorted(flux)] for name, fate in _FATES.items()},
        },
        left_out=[{"image": first + i, "reason": unfit[i]} for i in sorted(unfit)],
        bragg_masks=list(job.mask_reports),
        ice_rings=list(job.ice_rings),
        warnings=warnings,
        peaks=job.peak_check,
        masks=masks,
        predictions=job.reflection_check,
        unpredicted_peaks=unpredicted,
    )
    total = max(report.never_used + int(tally.sum()), 1)
    if job.reference is not None:
        logger.info("Flux of the images relative to their mean: %.3f to %.3f", min(report.flux), max(report.flux))
    logger.info(
        "%d observations. Pixels: used %.1f %%, never used %.1f %%, Bragg %.1f %%, untrusted %.2f %%, outlier %.3f %%",
        report.n_observations,
        *(100 * n / total for n in (report.used, report.never_used, report.bragg, report.untrusted, report.outlier)),
    )
    return report


def _unfit_in_words(number: int, unfit: dict) -> list:
    """Warnings of the images that were left out, {image: reason}."""
    strange = [str(image) for image, why in unfit.items() if why == OTHER_PROFILE]
    words = [
        f"experiment {number}: no beam on image {image}, left out" for image, why in unfit.items() if why == NO_BEAM
    ]
    if strange:
        words.append(
            f"experiment {number}: {len(strange)} images left out, whose resolution profile is unlike that of "
            f"the others (beam beside the crystal, defocused?): {', '.join(strange)}"
        )
    return words


def _written(job: Job, writer, executor: Executor):
    for rows, block in observations(job, reduce_blocks(job, executor)):
        writer.append(rows)
        if block is not None:
            yield block
