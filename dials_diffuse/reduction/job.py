"""One experiment, ready to be reduced: data that are prepared once and that every worker receives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from dxtbx.imageset import ImageSequence

from dials_diffuse.experiment.detector import DetectorSetup, PanelGeometry
from dials_diffuse.experiment.scan import ScanGeometry
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction.background import Background
from dials_diffuse.reduction.corrections import pixel_corrections, varying
from dials_diffuse.reduction.outliers import ShellSample, UsualProfile, sample_shells
from dials_diffuse.reduction.reduction_parameters import ReductionParameters


@dataclass(frozen=True)
class Job:
    """One experiment, ready to be reduced. It can be pickled, with the images by their file names.

    Attributes
    ----------
    number : row of the experiments table
    images : (n,) int, positions of the images to use, counted from the start of the scan
    corrections : (ny, nx) float32 per panel, those of pixels in the middle of the scan
    varying : (ny, nx) per panel, the part of these that changes from image to image; None if nothing does
    exposures : (n_images,) float64, the corrections of all images of the scan
    bad : (ny, nx) uint8 per panel, nonzero = never used
    shells, sample : resolution shells of the outlier guard, equal steps in |s| up to ``shell_limit``, 1/Å
    spots : PredictedSpots of all crystals on these images
    masks : for each of them the AdaptiveMask, or None where the mask is the same for all reflections
    n_sub_steps : rotation sub-steps of an image
    reference : (N_SHELLS,) resolution profile of the sweep, (C - b)/c; None = the flux is not corrected
    usual : what the profiles of the images are held against; None = they are not compared
    mask_reports : what became of the reflections, for each crystal whose masks follow its peaks
    ice_rings : IceRing whose bands are masked
    warnings : what the user should know
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

    def corrections_at(self, image: int) -> list:
        """Pixel corrections of one image, (ny, nx) float32 per panel."""
        if self.varying is None:
            return self.corrections
        rows = varying(self.scan, self.parameters.corrections)
        now = [pixel_corrections(panel, self.scan, image + 0.5, rows) for panel in self.panels]
        return [(c * f / middle).astype(np.float32) for c, f, middle in zip(self.corrections, now, self.varying)]
