"""Everything that is needed to reduce the images of one experiment, prepared once and shared by all workers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.experiment.detector import DetectorSetup, PanelGeometry, s_magnitude
from dials_diffuse.experiment.images import image_mask, image_shift, read_image, static_mask
from dials_diffuse.experiment.scan import ScanGeometry, scan_geometry, sub_steps
from dials_diffuse.experiment.spot_prediction import PredictedSpots, SpotSize, predict_spots, spot_size
from dials_diffuse.kernels.image import paint_discs, track_outliers, track_range
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction.background import Background, measure_background, no_background
from dials_diffuse.reduction.corrections import pixel_corrections, polarization
from dials_diffuse.reduction.outliers import (
    MIN_IMAGES,
    Frame,
    ShellSample,
    persistent_outliers,
    reference_profile,
    relative_flux,
    resolution_shells,
    sample_shells,
    stuck_pixels,
    widen_regions,
)
from dials_diffuse.reduction.reduction_parameters import ReductionParameters

logger = logging.getLogger("dials.diffuse.reduction")

SAMPLE_IMAGES = 16


@dataclass(frozen=True)
class ShellProfile:
    """What one image looks like on the average.

    Attributes
    ----------
    expected : (N_SHELLS,) float64, C/c per resolution shell (c without flux)
    threshold : (N_SHELLS,) float64, limit of the outlier guard in sigma; negative = no test
    flux : intensity relative to the sweep
    """

    expected: np.ndarray
    threshold: np.ndarray
    flux: float


@dataclass(frozen=True)
class Job:
    """One experiment, ready to be reduced.

    Attributes
    ----------
    number : row of the experiments table
    images : (n,) int, positions of the images to use, counted from the start of the scan
    corrections : (ny, nx) float32 per panel, in the middle of the scan
    polarization : (ny, nx) per panel, the part of the corrections that a changing beam changes; None if it is static
    bad : (ny, nx) uint8 per panel, nonzero = never used
    shells, sample : resolution shells of the outlier guard
    spots : PredictedSpots of all crystals on these images
    n_sub_steps : rotation sub-steps of an image
    reference : (N_SHELLS,) resolution profile of the sweep, (C - b)/c; None = the flux is not corrected
    warnings : what the user should know
    """

    number: int
    imageset: object
    images: np.ndarray
    grid: MapGrid
    parameters: ReductionParameters
    detector: DetectorSetup
    scan: ScanGeometry
    corrections: list
    polarization: list | None
    bad: list
    shells: list
    sample: ShellSample
    spots: list
    background: Background
    n_sub_steps: int
    reference: np.ndarray | None = None
    warnings: tuple = ()

    @property
    def panels(self) -> list[PanelGeometry]:
        return self.detector.panels

    def exposure(self, image: int) -> float:
        return float(self.scan.exposure[image]) if self.parameters.corrections.exposure else 1.0

    def corrections_at(self, image: int) -> list:
        """Pixel corrections of one image, (ny, nx) float32 per panel."""
        if self.polarization is None:
            return self.corrections
        s0, n, p = self.scan.s0_at(image + 0.5), self.scan.polarization_normal, self.scan.polarization_fraction
        now = [polarization(panel.directions, s0, n, p) for panel in self.panels]
        return [(c * f / middle).astype(np.float32) for c, f, middle in zip(self.corrections, now, self.polarization)]

    def read(self, image: int, bragg: list) -> Frame:
        """Read one image and mark its Bragg peaks in ``bragg``, (ny, nx) int32 per panel."""
        raw = read_image(self.imageset, image)
        self.paint_bragg(bragg, image)
        return Frame(image + 1, raw, bragg, image_mask(self.imageset, image))

    def empty_bragg(self) -> list:
        """Arrays for :meth:`read` to mark Bragg peaks in."""
        return [np.zeros(p.shape, dtype=np.int32) for p in self.panels]

    def paint_bragg(self, masks: list, image: int) -> None:
        """Set ``masks`` (one (ny, nx) int32 per panel) to ``image + 1`` where a Bragg peak lies in this image.

        The masked region is the ellipsoid of DIALS's profile model: n sigma_b on the detector for images that hold the
        spot's centre, shrinking to nothing n sigma_m away from it.
        """
        if not self.parameters.masking.bragg:
            return
        n_sigma = self.parameters.masking.n_sigma
        for spots in self.spots:
            outside = np.maximum(np.abs(spots.centre[:, 2] - (image + 0.5)) - 0.5, 0)  # images from the spot's centre
            remaining = 1 - (outside / (n_sigma * spots.sigma_z)) ** 2
            for p, panel in enumerate(self.panels):
                mine = np.flatnonzero((remaining > 0) & (spots.panel == p))
                if len(mine) == 0:
                    continue
                pixel_angle = math.sqrt(panel.pixel_area) / panel.distance.min()
                radius = n_sigma * spots.sigma_b[mine] * np.sqrt(remaining[mine]) + 0.5 * pixel_angle
                y = np.clip(spots.centre[mine, 1].astype(int), 0, panel.shape[0] - 1)
                x = np.clip(spots.centre[mine, 0].astype(int), 0, panel.shape[1] - 1)
                # an angle spans more pixels where the panel is hit obliquely
                per_pixel = math.sqrt(panel.pixel_area) * panel.cos_incidence[y, x] / panel.distance[y, x]
                paint_discs(
                    masks[p],
                    image + 1,
                    panel.directions,
                    np.ascontiguousarray(spots.centre[mine, :2]),
                    np.ascontiguousarray(spots.direction[mine]),
                    np.cos(radius),
                    radius / per_pixel + 2,
                )

    def net_profile(self, centre: np.ndarray, image: int) -> np.ndarray:
        """(N_SHELLS,) C/c of an image less its background."""
        counts, _ = self.background.at(self.scan.angle(image + 0.5), self.exposure(image))
        return centre - self.sample.shell_means(counts, self.background.block) / self.exposure(image)

    def shell_profile(self, frame: Frame) -> ShellProfile:
        """Resolution profile of one image and its flux relative to the sweep."""
        image = frame.number - 1
        exposure = self.exposure(image)
        centre, spread = self.sample.statistics(frame, self.panels, exposure)
        flux = 1.0
        if self.reference is not None:
            flux = relative_flux(self.net_profile(centre, image), self.reference, self.sample.norm, exposure)
        n_sigma = self.parameters.masking.outlier_n_sigma
        threshold = np.where(np.isfinite(centre) & (n_sigma > 0), n_sigma * spread, -1.0)
        return ShellProfile(np.nan_to_num(centre), threshold, flux)


def prepare_job(
    number: int,
    experiments,
    images: np.ndarray,
    grid: MapGrid,
    parameters: ReductionParameters,
    detector: DetectorSetup,
    reflections=None,
    background_experiments=(),
    progress=lambda items, n, label: items,
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
    scan = scan_geometry(experiment)
    middle = scan.n_images / 2
    s0 = scan.s0_at(middle)
    switches = parameters.corrections
    if scan.polarization_fraction is None:
        switches = replace(switches, polarization=False)
        parameters = replace(parameters, corrections=switches)
    normal, fraction = scan.polarization_normal, scan.polarization_fraction
    corrections = [pixel_corrections(p, s0, normal, fraction, switches).astype(np.float32) for p in detector.panels]
    varies = scan.beam_varies and switches.polarization
    s_panels = [s_magnitude(p.directions, s0) for p in detector.panels]
    margin = _voxel_diagonal(grid) / 2
    outside = [(s > 1 / grid.d_min + margin) | (s < 1 / grid.d_max - margin) for s in s_panels]
    masks = static_mask(experiment.imageset)
    bad = [(~m | o | ~(c > 0)).astype(np.uint8) for m, o, c in zip(masks, outside, corrections)]
    s_max = max(float(s.max()) for s in s_panels)
    shells = resolution_shells(s_panels, min(s_max, 1 / grid.d_min + margin))
    n_sub = parameters.sampling.oscillation or sub_steps(grid, scan)
    job = Job(
        number=number,
        imageset=experiment.imageset,
        images=images,
        grid=grid,
        parameters=parameters,
        detector=detector,
        scan=scan,
        corrections=corrections,
        polarization=[polarization(p.directions, s0, normal, fraction) for p in detector.panels] if varies else None,
        bad=bad,
        shells=shells,
        sample=sample_shells(shells, bad, corrections),
        spots=_all_spots(number, experiments, grid.d_min, parameters, reflections),
        background=no_background(len(detector.panels)),
        n_sub_steps=n_sub,
    )
    if parameters.masking.persistent:
        job = _mask_persistent(job, progress)
    if background_experiments:
        job = _subtract_background(job, experiment.detector, background_experiments, progress)
    if parameters.corrections.flux:
        job = _measure_flux(job)
    return job


def _voxel_diagonal(grid: MapGrid) -> float:
    return float(np.linalg.norm(grid.reciprocal_matrix, axis=0) @ (1 / np.array(grid.subdivide)))


def _all_spots(number, experiments, d_min, parameters: ReductionParameters, reflections) -> list[PredictedSpots]:
    """Spots of every crystal whose peaks lie on the images of this experiment."""
    if not parameters.masking.bragg:
        return []
    result = []
    for i, experiment in enumerate(experiments):
        shift = image_shift(experiments[number].imageset, experiment.imageset)
        if shift is None or experiment.crystal is None:
            continue
        own = reflections.select(reflections["id"] == i) if reflections is not None else None
        if parameters.masking.sigma_b is not None:
            b, m = math.radians(parameters.masking.sigma_b), math.radians(parameters.masking.sigma_m)
            size = SpotSize(np.array([b]), np.array([m]), "mask.bragg.sigma_b, sigma_m")
        else:
            size = spot_size(experiment, own)
        spots = predict_spots(experiment, size, d_min, parameters.masking.n_sigma).moved(-shift)
        logger.info(
            "Bragg mask: %d reflections predicted; sigma_b %.3f, sigma_m %.3f degrees from the %s",
            len(spots),
            math.degrees(np.median(size.sigma_b)),
            math.degrees(np.median(size.sigma_m)),
            size.source,
        )
        result.append(spots)
    return result


def _sample_images(job: Job) -> list:
    """Some images spread over the sweep."""
    return [int(i) for i in job.images[np.unique(np.linspace(0, len(job.images) - 1, SAMPLE_IMAGES).astype(int))]]


def _measure_flux(job: Job) -> Job:
    """Add the mean resolution profile of a sample of images, which the flux of each is compared with."""
    bragg = job.empty_bragg()
    profiles = []
    for image in _sample_images(job):
        centre = job.sample.statistics(job.read(image, bragg), job.panels, job.exposure(image))[0]
        profiles.append(job.net_profile(centre, image))
    reference = reference_profile(profiles, job.sample.norm)
    if reference is None:
        warning = f"experiment {job.number}: too few pixels to measure the flux of the images, it is not corrected"
        return replace(job, warnings=(*job.warnings, warning))
    return replace(job, reference=reference)


def _subtract_background(job: Job, detector, experiments, progress) -> Job:
    """Add the background, and mask the pixels where it was not measured."""
    smoothing, use_exposure = job.parameters.background, job.parameters.corrections.exposure
    background = measure_background(experiments, detector, job.bad, smoothing, use_exposure, progress)
    unknown = [background.unmeasured_pixels(p, panel.shape) for p, panel in enumerate(job.panels)]
    bad = [b | u.astype(np.uint8) for b, u in zip(job.bad, unknown)]
    warnings = list(job.warnings)
    far = max(background.distances(job.scan.angle(i + 0.5)).min() for i in job.images)
    if len(background.angles) > 1 and far > smoothing.angle:
        warnings.append(
            f"experiment {job.number}: the nearest background images are up to {far:.0f} degrees away from the data"
        )
    sample = sample_shells(job.shells, bad, job.corrections)
    return replace(job, background=background, bad=bad, sample=sample, warnings=tuple(warnings))


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
            track_range(raw, *job.panels[p].trusted, smallest[p], largest[p])
    stuck = stuck_pixels(smallest, largest, job.shells, len(chosen))
    bad = [b | s.astype(np.uint8) for b, s in zip(job.bad, stuck)]
    job = replace(job, bad=bad, sample=sample_shells(job.shells, bad, job.corrections))

    votes = [np.zeros((3, *s), dtype=np.int16) for s in shapes]
    sums = [[np.zeros(s, dtype=np.float32) for _ in range(3)] for s in shapes]
    bragg = job.empty_bragg()
    for image in progress(chosen, len(chosen), "Looking for hot, dead and shadowed pixels"):
        frame = job.read(image, bragg)
        centre, spread = job.sample.statistics(frame, job.panels, job.exposure(image))
        limit = (job.parameters.masking.outlier_n_sigma or 6.0) * spread
        read_variance = job.sample.read_variance(frame, job.panels, job.exposure(image), centre)
        for p, panel in enumerate(job.panels):
            track_outliers(
                frame.raw[p],
                frame.bad(p, job.bad[p]),
                bragg[p],
                frame.number,
                *panel.trusted,
                panel.pedestal,
                panel.gain,
                job.corrections[p],
                job.exposure(image),
                job.shells[p],
                centre,
                limit,
                read_variance,
                votes[p],
                *sums[p],
            )
    shadow = job.parameters.masking.shadow
    found = [widen_regions(persistent_outliers(v, *sum_, shadow) | s) for v, sum_, s in zip(votes, sums, stuck)]
    bad = [b | f.astype(np.uint8) for b, f in zip(job.bad, found)]
    logger.info(
        "Bad pixels (hot, dead, stuck or shadowed on most images): %d of %d",
        sum(int(f.sum()) for f in found),
        sum(f.size for f in found),
    )
    return replace(job, bad=bad, sample=sample_shells(job.shells, bad, job.corrections))
