"""Background images (no crystal), averaged over detector blocks and rotation angle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.images import image_mask, read_image
from dials_diffuse.kernels.image import block_sums
from dials_diffuse.reduction.parameters import BackgroundSmoothing


@dataclass(frozen=True)
class Background:
    """Expected background counts per pixel and second.

    Attributes
    ----------
    block : pixels along the edge of a detector block
    angles : (n,) float64, middle of each angular range, degrees
    rate, variance : one (n, by, bx) float64 array per panel
    """

    block: int
    angles: np.ndarray
    rate: list
    variance: list

    def at(self, angle: float, exposure: float) -> tuple:
        """Expected counts and their sigma at the nearest angular range: two lists of (by, bx) arrays, one per panel."""
        distance = np.abs((self.angles - angle + 180) % 360 - 180)
        i = int(np.argmin(distance))
        counts = [rate[i] * exposure for rate in self.rate]
        sigma = [np.sqrt(variance[i]) * exposure for variance in self.variance]
        return counts, sigma


def no_background(n_panels: int) -> Background:
    """A background of zero without variance."""
    zero = [np.zeros((1, 1, 1)) for _ in range(n_panels)]
    return Background(1 << 30, np.zeros(1), zero, zero)


def measure_background(
    experiments,
    panels,
    bad: list,
    smoothing: BackgroundSmoothing,
    use_exposure: bool,
    progress=lambda items, n, label: items,
) -> Background:
    """Average background images.

    Parameters
    ----------
    experiments : dxtbx experiments without crystals, on the same detector as the data
    panels : PanelGeometry of the data
    bad : (ny, nx) uint8 per panel, nonzero = masked
    use_exposure : divide by the exposure times

    Raises
    ------
    DiffuseError
        If the detector differs from that of the data.
    """
    block = smoothing.block
    per_range: dict = {}
    for experiment in experiments:
        shapes = [p.get_image_size()[::-1] for p in experiment.detector]
        if [tuple(s) for s in shapes] != [p.shape for p in panels]:
            raise DiffuseError(
                f"background {experiment.imageset.get_path(0)}: panels of {shapes} pixels, the data have "
                f"{[p.shape for p in panels]}; use background images of the same detector"
            )
        scan = experiment.scan
        n_images = len(experiment.imageset)
        exposures = np.array(scan.get_exposure_times()) if scan is not None else np.ones(0)
        for i in progress(range(n_images), n_images, "Background"):
            angle = scan.get_angle_from_array_index(scan.get_array_range()[0] + i + 0.5) if scan is not None else 0.0
            exposure = exposures[i] if use_exposure and i < len(exposures) and exposures[i] > 0 else 1.0
            key = int(np.rint((angle % 360) / smoothing.angle)) % math.ceil(360 / smoothing.angle)
            sums = per_range.setdefault(key, [[np.zeros(_blocks(p.shape, block)) for p in panels] for _ in range(3)])
            shadows = image_mask(experiment.imageset, i)
            for p, (raw, panel) in enumerate(zip(read_image(experiment.imageset, i), panels)):
                mask = bad[p] if shadows is None else bad[p] | ~shadows[p]
                before = sums[1][p].copy()
                block_sums(raw, mask, *panel.trusted, panel.pedestal, panel.gain, block, sums[0][p], sums[1][p])
                sums[2][p] += (sums[1][p] - before) * exposure
    keys = sorted(per_range)
    rates, variances = [], []
    for p in range(len(panels)):
        counts = np.array([per_range[k][0][p] for k in keys])
        norm = np.array([per_range[k][2][p] for k in keys])
        measured = norm > 0
        safe = np.where(measured, norm, 1.0)
        rates.append(np.where(measured, counts / safe, 0.0) * smoothing.scale)
        variances.append(np.where(measured, np.maximum(counts, 1.0) / safe**2, 0.0) * smoothing.scale**2)
    return Background(block, np.array(keys) * smoothing.angle, rates, variances)


def _blocks(shape, block: int) -> tuple:
    return tuple(-(-n // block) for n in shape)
