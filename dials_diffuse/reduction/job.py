"""Everything that is needed to reduce the images of one experiment, prepared once and shared by all workers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.experiment.bragg import PredictedSpots, SpotSize, predict_spots, spot_size
from dials_diffuse.experiment.geometry import PanelGeometry, ScanGeometry, panel_geometry, scan_geometry
from dials_diffuse.experiment.images import image_files, image_mask, read_image, static_mask
from dials_diffuse.kernels.image import paint_discs, track_outliers, track_range
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction.background import Background, measure_background, no_background
from dials_diffuse.reduction.corrections import pixel_corrections, polarization
from dials_diffuse.reduction.outliers import (
    MIN_IMAGES,
    ShellSample,
    persistent_outliers,
    relative_flux,
    resolution_shells,
    sample_shells,
    stuck_pixels,
    widen_regions,
)
from dials_diffuse.reduction.parameters import ReductionParameters

logger = logging.getLogger("dials.diffuse.reduction")

SAMPLE_IMAGES = 16
MAX_SUB_STEPS = 20


@dataclass(frozen=True)
class DetectorSetup:
    """Pixel geometry of a detector in a beam; shared between experiments that have both in common.

    Attributes
    ----------
    panels : PanelGeometry of the pixel centres
    sub_pixels : ``(offset, directions of every panel)`` for each sub-pixel; the centres themselves when not sub-sampled
    reference_distance : shortest distance from sample to detector, mm
    """

    panels: list
    sub_pixels: list
    reference_distance: float


def detector_setup(detector, sub_pixel: int = 1) -> DetectorSetup:
    """Directions to all pixels (and sub-pixels) of a dxtbx detector."""
    panels = [panel_geometry(p) for p in detector]
    if sub_pixel == 1:
        sub_pixels = [((0.5, 0.5), [p.directions for p in panels])]
    else:
        steps = (np.arange(sub_pixel) + 0.5) / sub_pixel
        offsets = [(dx, dy) for dy in steps for dx in steps]
        sub_pixels = [(o, [panel_geometry(p, o).directions for p in detector]) for o in offsets]
    return DetectorSetup(panels, sub_pixels, min(float(p.distance.min()) for p in panels))


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
    corrections : (ny, nx) float32 per panel; without polarization when the beam varies over the scan
    bad : (ny, nx) uint8 per panel, nonzero = never used
    shells, sample : resolution shells of the outlier guard
    spots : PredictedSpots of all crystals on these images
    n_sub_steps : rotation sub-steps of an image
    reference : (N_SHELLS,) resolution profile of the sweep, C/c; None = the flux is not corrected
    """

    number: int
    imageset: object
    images: np.ndarray
    grid: MapGrid
    parameters: ReductionParameters
    detector: DetectorSetup
    scan: ScanGeometry
    corrections: list
    bad: list
    shells: list
    sample: ShellSample
    spots: list
    background: Background
    n_sub_steps: int
    reference: np.ndarray | None = None

    @property
    def panels(self) -> list[PanelGeometry]:
        return self.detector.panels

    def exposure(self, image: int) -> float:
        return float(self.scan.exposure[image]) if self.parameters.corrections.exposure else 1.0

    def corrections_at(self, image: int) -> list:
        """Pixel corrections of one image, (ny, nx) float32 per panel."""
        if not (self.scan.beam_varies and self.parameters.corrections.polarization):
            return self.corrections
        s0, n, p = self.scan.s0_at(image + 0.5), self.scan.polarization_normal, self.scan.polarization_fraction
        factors = [polarization(panel.directions, s0, n, p) for panel in self.panels]
        return [(c * f).astype(np.float32) for c, f in zip(self.corrections, factors)]

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

    def shell_profile(self, raw: list, bragg: list, image: int) -> ShellProfile:
        """Resolution profile of one image and its flux relative to the sweep."""
        centre, spread = self.sample.statistics(raw, self.panels, bragg, image + 1, self.exposure(image))
        flux = 1.0 if self.reference is None else relative_flux(centre, self.reference)
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
    if scan.beam_varies:
        switches = replace(switches, polarization=False)  # depends on s0: applied image by image
    corrections = [
        pixel_corrections(
            p, s0, scan.polarization_normal, scan.polarization_fraction, detector.reference_distance, switches
        ).astype(np.float32)
        for p in detector.panels
    ]
    s_panels = [_s_magnitude(p.directions, s0) for p in detector.panels]
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
        bad=bad,
        shells=shells,
        sample=sample_shells(shells, bad, corrections),
        spots=_all_spots(number, experiments, grid.d_min, parameters, reflections),
        background=no_background(len(detector.panels)),
        n_sub_steps=n_sub,
    )
    if parameters.masking.persistent:
        job = _mask_persistent(job, progress)
    if parameters.corrections.flux:
        job = replace(job, reference=_reference_profile(job))
    if background_experiments:
        background = measure_background(
            background_experiments,
            detector.panels,
            job.bad,
            parameters.background,
            parameters.corrections.exposure,
            progress,
        )
        job = replace(job, background=background)
    return job


def sub_steps(grid: MapGrid, scan: ScanGeometry) -> int:
    """Sub-steps that keep the arc of one sub-step at d_min within one voxel."""
    arc = abs(math.radians(scan.oscillation[1])) / grid.d_min
    edge = min(np.linalg.norm(grid.reciprocal_matrix, axis=0) / np.array(grid.subdivide))
    return int(min(max(math.ceil(arc / edge), 1), MAX_SUB_STEPS))


def _s_magnitude(directions: np.ndarray, s0: np.ndarray) -> np.ndarray:
    k = np.linalg.norm(s0)
    return k * np.sqrt(np.maximum(2 - 2 * np.tensordot(s0 / k, directions, 1), 0))


def _voxel_diagonal(grid: MapGrid) -> float:
    return float(np.linalg.norm(grid.reciprocal_matrix, axis=0) @ (1 / np.array(grid.subdivide)))


def _all_spots(number, experiments, d_min, parameters: ReductionParameters, reflections) -> list[PredictedSpots]:
    """Spots of every crystal whose peaks lie on the images of this experiment."""
    if not parameters.masking.bragg:
        return []
    mine = image_files(experiments[number].imageset)
    result = []
    for i, experiment in enumerate(experiments):
        if experiment.crystal is None or image_files(experiment.imageset) != mine:
            continue
        own = reflections.select(reflections["id"] == i) if reflections is not None else None
        if parameters.masking.sigma_b is not None:
            b, m = math.radians(parameters.masking.sigma_b), math.radians(parameters.masking.sigma_m)
            size = SpotSize(np.array([b]), np.array([m]), "mask.bragg.sigma_b, sigma_m")
        else:
            size = spot_size(experiment, own)
        spots = predict_spots(experiment, size, d_min, parameters.masking.n_sigma)
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


def _reference_profile(job: Job) -> np.ndarray:
    """(N_SHELLS,) mean C/c per resolution shell over a sample of images."""
    bragg = [np.zeros(p.shape, dtype=np.int32) for p in job.panels]
    profiles = []
    for image in _sample_images(job):
        job.paint_bragg(bragg, image)
        raw = read_image(job.imageset, image)
        profiles.append(job.sample.statistics(raw, job.panels, bragg, image + 1, job.exposure(image))[0])
    known = np.all(np.isfinite(profiles), axis=0)
    return np.where(known, np.mean(profiles, axis=0), np.nan)


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
    counts = [np.zeros(s, dtype=np.float32) for s in shapes]
    expected = [np.zeros(s, dtype=np.float32) for s in shapes]
    bragg = [np.zeros(s, dtype=np.int32) for s in shapes]
    for image in progress(chosen, len(chosen), "Looking for hot, dead and shadowed pixels"):
        raws = read_image(job.imageset, image)
        job.paint_bragg(bragg, image)
        centre, spread = job.sample.statistics(raws, job.panels, bragg, image + 1, job.exposure(image))
        limit = (job.parameters.masking.outlier_n_sigma or 6.0) * spread
        shadows = image_mask(job.imageset, image)
        for p, raw in enumerate(raws):
            panel = job.panels[p]
            mask = job.bad[p] if shadows is None else job.bad[p] | ~shadows[p]
            track_outliers(
                raw,
                mask,
                bragg[p],
                image + 1,
                *panel.trusted,
                panel.pedestal,
                panel.gain,
                job.corrections[p],
                job.exposure(image),
                job.shells[p],
                centre,
                limit,
                votes[p],
                counts[p],
                expected[p],
            )
    shadow = job.parameters.masking.shadow
    found = [persistent_outliers(v, c, e, shadow) | s for v, c, e, s in zip(votes, counts, expected, stuck)]
    found = [widen_regions(f) for f in found]
    bad = [b | f.astype(np.uint8) for b, f in zip(job.bad, found)]
    logger.info(
        "Bad pixels (hot, dead, stuck or shadowed on most images): %d of %d",
        sum(int(f.sum()) for f in found),
        sum(f.size for f in found),
    )
    return replace(job, bad=bad, sample=sample_shells(job.shells, bad, job.corrections))
