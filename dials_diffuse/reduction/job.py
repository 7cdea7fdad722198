"""One experiment, ready to be reduced: data that are prepared once and that every worker receives."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from dxtbx.imageset import ImageSequence

from dials_diffuse.experiment.detector import DetectorSetup, PanelGeometry, s_magnitude
from dials_diffuse.experiment.polynomials import direction_tiles
from dials_diffuse.experiment.scan import ScanGeometry
from dials_diffuse.kernels.stray_peaks import PeakTiles
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction.background import Background
from dials_diffuse.reduction.brick_table import directory_fits
from dials_diffuse.reduction.corrections import pixel_corrections, switched_on, varying
from dials_diffuse.reduction.outliers import ShellSample, UsualProfile, resolution_shells, sample_shells
from dials_diffuse.reduction.peak_result import PeakCheck
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.reduction.refl_check import ReflectionCheck
from dials_diffuse.reduction.spot_mask import pixel_angle
from dials_diffuse.reduction.tiling import least_in_tiles, shell_range, tiles_of_panel, why_row_by_row

logger = logging.getLogger("dials.diffuse.reduction")


class PixelArrays(NamedTuple):
    """What geometry and parameters alone say of each pixel, one (ny, nx) array per panel.

    s : float64, |s| in mid-scan, 1/Å; for the others see :class:`Job`
    """

    s: list
    corrections: list
    varying: list | None
    shells: list
    shell_limit: float


def pixel_arrays(
    panels: list[PanelGeometry], scan: ScanGeometry, grid: MapGrid, parameters: ReductionParameters
) -> PixelArrays:
    """The same numbers wherever they are computed, so that they need not be sent to a worker."""
    middle = scan.n_images / 2
    rows, varying_rows = switched_on(parameters.corrections), varying(scan, parameters.corrections)
    s = [s_magnitude(panel.directions, scan.s0_at(middle)) for panel in panels]
    s_max = min(max(float(values.max()) for values in s), 1 / grid.d_min + grid.diagonal / 2)
    return PixelArrays(
        s=s,
        corrections=[pixel_corrections(panel, scan, middle, rows).astype(np.float32) for panel in panels],
        varying=[pixel_corrections(panel, scan, middle, varying_rows) for panel in panels] if varying_rows else None,
        shells=resolution_shells(s, s_max),
        shell_limit=s_max,
    )


@dataclass(frozen=True)
class Job:
    """One experiment, ready to be reduced. It can be pickled, with the images by their file names.

    What travels is small: :func:`pixel_arrays` and the geometry are computed again, masks take a bit for each pixel.

    Attributes
    ----------
    number : row of the experiments table
    images : (n,) int, positions of the images to use, counted from the start of the scan
    corrections : (ny, nx) float32 per panel, those of pixels in the middle of the scan
    varying : (ny, nx) per panel, the part of these that changes from image to image; None if nothing does
    exposures : (n_images,) float64, the corrections of all images of the scan
    bad : (ny, nx) uint8 per panel, 1 = never used, else 0
    shells, sample : resolution shells of the outlier guard, equal steps in |s| up to ``shell_limit``, 1/Å
    spots : PredictedSpots of all crystals on these images
    masks : for each of them the AdaptiveMask, or None where the mask is the same for all reflections
    n_sub_steps : rotation sub-steps of an image
    reference : (N_SHELLS,) resolution profile of the sweep, (C - b)/c; None = the flux is not corrected
    usual : what the profiles of the images are held against; None = they are not compared
    mask_reports : what became of the reflections, for each crystal whose masks follow its peaks
    ice_rings : IceRing whose bands are masked
    warnings : what the user should know
    peak_check : PeakCheck of the images; None where nobody asked
    reflection_check : ReflectionCheck of the reflections; None likewise, or without predictions in them
    """

    number: int
    imageset: ImageSequence
    images: np.ndarray
    grid: MapGrid
    parameters: ReductionParameters
    detector: DetectorSetup
    scan: ScanGeometry
    corrections: list
    varying: list | None
    exposures: np.ndarray
    bad: list
    shells: list
    shell_limit: float
    sample: ShellSample
    spots: list
    masks: list
    background: Background
    n_sub_steps: int
    reference: np.ndarray | None = None
    usual: UsualProfile | None = None
    mask_reports: tuple = ()
    ice_rings: tuple = ()
    warnings: tuple = ()
    peak_check: PeakCheck | None = None
    reflection_check: ReflectionCheck | None = None

    def __getstate__(self) -> dict:
        computed = ("corrections", "varying", "shells", "_direction_tiles", "_middle_tiles", "peak_tiles")
        state = {name: value for name, value in self.__dict__.items() if name not in computed}
        return {**state, "bad": [np.packbits(bad) for bad in self.bad]}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        _, *computed, _ = pixel_arrays(self.panels, self.scan, self.grid, self.parameters)
        self.__dict__.update(zip(("corrections", "varying", "shells"), computed))
        shapes = [panel.shape for panel in self.panels]
        bad = [np.unpackbits(bits, count=y * x).reshape(y, x) for bits, (y, x) in zip(self.bad, shapes)]
        self.__dict__["bad"] = bad

    @property
    def panels(self) -> list[PanelGeometry]:
        return self.detector.panels

    def exposure(self, image: int) -> float:
        """What all pixels of an image have in common of the norm."""
        return float(self.exposures[image])

    def without(self, pixels: list) -> Job:
        """The job with more bad pixels; (ny, nx) bool per panel."""
        bad = [b | more.astype(np.uint8) for b, more in zip(self.bad, pixels)]
        return replace(self, bad=bad, sample=sample_shells(self.shells, bad, self.corrections))

    @cached_property
    def _direction_tiles(self) -> list:
        """Polynomials of the directions of every panel, for each sub-pixel."""
        if len(self.detector.sub_pixels) == 1:
            return [[panel.polynomials for panel in self.panels]]
        return [[direction_tiles(u) for u in directions] for _, directions in self.detector.sub_pixels]

    @cached_property
    def peak_tiles(self) -> list:
        """What limits the counts in the tiles of every panel, to look for peaks."""
        arrays = zip(self.corrections, self.bad, self.shells)
        return [PeakTiles(shell_range(shells), least_in_tiles(c, bad)) for c, bad, shells in arrays]

    @cached_property
    def spot_pixels(self) -> float:
        """Width sigma_b of the spots of all crystals, pixels; 0 without spots."""
        widths = [np.zeros(0)]
        for spots in self.spots:
            for p, panel in enumerate(self.panels):
                mine = np.flatnonzero(spots.panel == p)
                widths.append(spots.sigma_b[mine] / pixel_angle(spots, mine, panel))
        every = np.concatenate(widths)
        return float(np.median(every)) if len(every) else 0.0

    def _tiles(self, corrections: list) -> list:
        reason = why_row_by_row(self.background, self.panels, directory_fits(self.grid, len(self.panels)))
        if reason:
            logger.debug("Pass over the images row by row: %s", reason)
            return [[None] * len(self.panels) for _ in self.detector.sub_pixels]
        matrix, _ = self.scan.to_lattice(self.scan.n_images / 2, self.grid.subdivide)
        voxels = 1.01 * float(np.linalg.norm(matrix, axis=1).max())  # rotation does not change it, a drift hardly
        return [
            [tiles_of_panel(*panel, voxels) for panel in zip(directions, corrections, self.shells)]
            for directions in self._direction_tiles
        ]

    @cached_property
    def _middle_tiles(self) -> list:
        return self._tiles(self.corrections)

    def prepare_tiles(self) -> list:
        """What :meth:`tiles_at` starts from; computed now, processes that are forked later inherit it."""
        return self._middle_tiles if self.varying is None else self._direction_tiles

    def tiles_at(self, image: int, corrections: list) -> list:
        """Tiles of every panel for each sub-pixel, None where a panel goes row by row.

        corrections : of :meth:`corrections_at`
        """
        return self._middle_tiles if self.varying is None else self._tiles(corrections)

    def corrections_at(self, image: int) -> list:
        """Pixel corrections of one image, (ny, nx) float32 per panel."""
        if self.varying is None:
            return self.corrections
        rows = varying(self.scan, self.parameters.corrections)
        now = [pixel_corrections(panel, self.scan, image + 0.5, rows) for panel in self.panels]
        return [(c * f / middle).astype(np.float32) for c, f, middle in zip(self.corrections, now, self.varying)]
