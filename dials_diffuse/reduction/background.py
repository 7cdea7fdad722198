"""Background images (no crystal), averaged over detector blocks and rotation angle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.images import image_mask, image_readings, read_image, static_mask
from dials_diffuse.experiment.scan import has_exposure_times
from dials_diffuse.kernels.image import block_sums
from dials_diffuse.parallel import Progress, quiet
from dials_diffuse.reduction.corrections import Corrections, image_corrections
from dials_diffuse.reduction.reduction_parameters import BackgroundSmoothing

MAX_ANGLE_BETWEEN_AXES = 2.0  # degrees; background images need not be refined
MAX_SHIFT = 0.05  # of the distance
MAX_DISTANCE_DIFFERENCE = 0.02
MAX_WAVELENGTH_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Background:
    """Expected background counts per pixel and second.

    Attributes
    ----------
    block : pixels along the edge of a detector block
    angles : (n,) float64, middle of each angular range, degrees
    rate, variance : one (n, by, bx) float64 array per panel
    measured : one (by, bx) bool array per panel, False where no background image has a usable pixel
    """

    block: int
    angles: np.ndarray
    rate: list
    variance: list
    measured: list

    def at(self, angle: float, exposure: float) -> tuple:
        """Expected counts and their sigma at the nearest angular range: two lists of (by, bx) arrays, one per panel."""
        i = int(np.argmin(self.distances(angle)))
        counts = [rate[i] * exposure for rate in self.rate]
        sigma = [np.sqrt(variance[i]) * exposure for variance in self.variance]
        return counts, sigma

    def distances(self, angle: float) -> np.ndarray:
        """(n,) degrees between an angle and the middle of each range."""
        return np.abs((self.angles - angle + 180) % 360 - 180)

    def unmeasured_pixels(self, p: int, shape) -> np.ndarray:
        """(ny, nx) bool: pixels of panel ``p`` whose background is unknown."""
        spread = np.repeat(np.repeat(~self.measured[p], self.block, axis=0), self.block, axis=1)
        return spread[: shape[0], : shape[1]]


def measure_background(
    experiments,
    detector,
    bad: list,
    smoothing: BackgroundSmoothing,
    corrections: Corrections,
    progress: Progress = quiet,
    data_scan=None,
) -> Background:
    """Average background images.

    Parameters
    ----------
    experiments : dxtbx experiments without crystals, on the same detector as the data
    detector : dxtbx detector of the data
    bad : (ny, nx) uint8 per panel, nonzero = masked
    corrections : those of images are divided by
    data_scan : dxtbx Scan of the data; where only one of both knows its exposure times, see :func:`unlike_exposures`,
        the background images were exposed as long as the data

    Raises
    ------
    DiffuseError
        If the detector differs from that of the data, or no background was measured.
    """
    block = smoothing.block
    shapes = [tuple(p.get_image_size()[::-1]) for p in detector]
    per_range: dict = {}
    for experiment in experiments:
        check_detector(experiment, detector)
        masks = [b | ~m for b, m in zip(bad, static_mask(experiment.imageset))]
        readings = image_readings(experiment.imageset)
        scan = experiment.scan
        n_images = len(experiment.imageset)
        exposures = np.ones(n_images) if scan is None else image_corrections(scan, corrections)
        if data_scan is not None and unlike_exposures(experiment, data_scan):
            exposures = np.full(n_images, image_corrections(data_scan, corrections).mean())
        for i in progress(range(n_images), n_images, "Background"):
            angle = scan.get_angle_from_array_index(scan.get_array_range()[0] + i + 0.5) if scan is not None else 0.0
            exposure = exposures[i]
            key = int(np.rint((angle % 360) / smoothing.angle)) % math.ceil(360 / smoothing.angle)
            sums = per_range.setdefault(key, [[np.zeros(_blocks(s, block)) for s in shapes] for _ in range(3)])
            shadows = image_mask(experiment.imageset, i)
            for p, (raw, reading) in enumerate(zip(read_image(experiment.imageset, i), readings)):
                mask = masks[p] if shadows is None else masks[p] | ~shadows[p]
                before = sums[1][p].copy()
                block_sums(raw, mask, reading, block, sums[0][p], sums[1][p])
                sums[2][p] += (sums[1][p] - before) * exposure
    keys = sorted(per_range)
    rates, variances, measured = [], [], []
    for p in range(len(shapes)):
        counts = np.array([per_range[k][0][p] for k in keys])
        norm = np.array([per_range[k][2][p] for k in keys])
        # a block that was masked at one angle takes the mean of the others
        empty = norm == 0
        counts = np.where(empty, counts.sum(axis=0), counts)
        norm = np.where(empty, norm.sum(axis=0), norm)
        known = norm > 0
        safe = np.where(known, norm, 1.0)
        rates.append(np.where(known, counts / safe, 0.0) * smoothing.scale)
        variances.append(np.where(known, np.maximum(counts, 1.0) / safe**2, 0.0) * smoothing.scale**2)
        measured.append(known.all(axis=0))
    if not any(m.any() for m in measured):
        raise DiffuseError("background: no usable pixel in any image; check its masks and trusted range")
    return Background(block, np.array(keys) * smoothing.angle, rates, variances, measured)


def unlike_exposures(experiment, data_scan) -> bool:
    """Have either the background images exposure times, or the data, but not both?"""
    return has_exposure_times(experiment.scan) != has_exposure_times(data_scan)


def check_wavelength(experiments, wavelength: float) -> None:
    """Raise DiffuseError if background images are of another wavelength (Å) than the data."""
    for experiment in experiments:
        own = experiment.beam.get_wavelength()
        if abs(own / wavelength - 1) > MAX_WAVELENGTH_DIFFERENCE:
            raise DiffuseError(
                f"background {experiment.imageset.get_path(0)}: the wavelength is {own:.4f} Å, that of the data "
                f"{wavelength:.4f} Å; use background images of the same wavelength"
            )


def no_background(n_panels: int) -> Background:
    """A background of zero without variance."""
    zero = [np.zeros((1, 1, 1)) for _ in range(n_panels)]
    return Background(1 << 30, np.zeros(1), zero, zero, [np.ones((1, 1), dtype=bool)] * n_panels)


def check_detector(experiment, detector) -> None:
    """Raise DiffuseError if background images have other panels than the data, or in another place.

    Some way off is allowed, for background is not refined.
    """
    where = f"background {experiment.imageset.get_path(0)}"
    if len(experiment.detector) != len(detector):
        raise DiffuseError(f"{where}: {len(experiment.detector)} panels, the data have {len(detector)}; same detector?")
    for own, data in zip(experiment.detector, detector):
        if own.get_image_size() != data.get_image_size():
            raise DiffuseError(
                f"{where}: panel of {own.get_image_size()} pixels, the data have {data.get_image_size()}; use "
                f"background images of the same detector"
            )
        if not np.allclose(own.get_pixel_size(), data.get_pixel_size(), rtol=1e-3):
            raise DiffuseError(
                f"{where}: pixels of {own.get_pixel_size()} mm, the data have {data.get_pixel_size()}; use background "
                f"images of the same detector"
            )
        ratio = own.get_distance() / data.get_distance()
        if abs(ratio - 1) > MAX_DISTANCE_DIFFERENCE:
            raise DiffuseError(
                f"{where}: its detector is at {ratio:.3f} times the distance of the data; use background images of the "
                f"same detector, at the same distance"
            )
        shift = np.linalg.norm(np.subtract(own.get_origin(), data.get_origin())) / abs(data.get_distance())
        axes = ((own.get_fast_axis(), data.get_fast_axis()), (own.get_slow_axis(), data.get_slow_axis()))
        angle = max(np.degrees(np.arccos(np.clip(np.dot(a, b), -1, 1))) for a, b in axes)
        if shift > MAX_SHIFT or angle > MAX_ANGLE_BETWEEN_AXES:
            raise DiffuseError(
                f"{where}: its detector is {100 * shift:.0f} % of the distance and {angle:.1f} degrees away from "
                f"that of the data; use background images of the same detector, at the same distance"
            )


def _blocks(shape, block: int) -> tuple:
    return tuple(-(-n // block) for n in shape)
