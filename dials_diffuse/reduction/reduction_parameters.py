"""Parameters of the reduction, validated where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from dials_diffuse.checks import choice, fraction, not_negative, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.reduction.corrections import Corrections

GEOMETRY_CHECKS = ("error", "warn", "none")

DEFAULT_N_SIGMA = 3.0
DEFAULT_LEAK = 0.5


@dataclass(frozen=True)
class Masking:
    """What is left out besides untrusted pixels and the masks that come with the images.

    Attributes
    ----------
    bragg : mask Bragg peaks
    adaptive : masks follow the peaks where intensities are known and no size is given below; else all are alike
    leak : of such masks: what is left of a reflection in any pixel, before that is subtracted, is at most this multiple
        of the diffuse intensity's rms
    n_sigma : radius of a mask that is the same for all reflections, in units of the profile model's sigma_b and
        sigma_m; None = DEFAULT_N_SIGMA
    sigma_b, sigma_m : override the profile model, degrees (None: use it)
    persistent : find pixels that are wrong on most images (hot, dead, shadowed)
    shadow : a pixel below this fraction of its resolution shell on the average image is in a shadow
    ice_rings : mask ice rings; None = those that are found, True = all that ice has
    unpredicted : mask peaks that no crystal predicts
    outlier_n_sigma : two-sided guard within a resolution shell of one image; 0 = off
    """

    bragg: bool = True
    adaptive: bool = True
    leak: float = DEFAULT_LEAK
    n_sigma: float | None = None
    sigma_b: float | None = None
    sigma_m: float | None = None
    persistent: bool = True
    shadow: float = 0.6
    ice_rings: bool | None = None
    unpredicted: bool = True
    outlier_n_sigma: float = 6.0

    def __post_init__(self):
        positive("mask.bragg.leak", self.leak)
        if self.n_sigma is not None:
            positive("mask.bragg.n_sigma", self.n_sigma)
        for name in ("sigma_b", "sigma_m"):
            if getattr(self, name) is not None:
                positive(f"mask.bragg.{name}", getattr(self, name))
        if (self.sigma_b is None) != (self.sigma_m is None):
            raise DiffuseError("mask.bragg.sigma_b and mask.bragg.sigma_m: set both or neither (degrees)")
        fraction("mask.shadow", self.shadow)
        not_negative("mask.outlier.n_sigma", self.outlier_n_sigma)

    @property
    def follows_peaks(self) -> bool:
        """Are masks adapted to the reflections, where their intensities are known?"""
        return self.bragg and self.adaptive and self.n_sigma is None and self.sigma_b is None

    @property
    def fixed_n_sigma(self) -> float:
        """Radius of masks that are not."""
        return DEFAULT_N_SIGMA if self.n_sigma is None else self.n_sigma


@dataclass(frozen=True)
class Sampling:
    """Sub-division of images and pixels before they are assigned to voxels.

    Attributes
    ----------
    oscillation : sub-steps of each image's rotation; None chooses them from step and voxel size
    pixel : sub-pixels along each edge of a pixel
    """

    oscillation: int | None = None
    pixel: int = 1

    def __post_init__(self):
        if self.oscillation is not None:
            positive("sampling.oscillation", self.oscillation)
        positive("sampling.pixel", self.pixel)


@dataclass(frozen=True)
class BackgroundSmoothing:
    """How background images are averaged: over squares of ``block`` pixels and ranges of ``angle`` degrees."""

    block: int = 16
    angle: float = 20.0
    scale: float = 1.0

    def __post_init__(self):
        positive("background_average.block", self.block)
        positive("background_average.angle", self.angle)
        positive("background_average.scale", self.scale)


@dataclass(frozen=True)
class ReductionParameters:
    """Everything that decides how pixels become voxel sums.

    Attributes
    ----------
    d_min, d_max : resolution limits in Å, None = detector corner and no limit
    subdivide : voxels per reciprocal-lattice step along a*, b*, c*
    geometry_check : what to do about images whose peaks are not where the models predict spots, one of GEOMETRY_CHECKS
    """

    d_min: float | None = None
    d_max: float | None = None
    subdivide: tuple = (3, 3, 3)
    corrections: Corrections = field(default_factory=Corrections)  # type: ignore[valid-type]  # made of a table
    masking: Masking = field(default_factory=Masking)
    sampling: Sampling = field(default_factory=Sampling)
    background: BackgroundSmoothing = field(default_factory=BackgroundSmoothing)
    images_per_block: int | None = None
    geometry_check: str = "error"

    def __post_init__(self):
        choice("geometry.check", self.geometry_check, GEOMETRY_CHECKS)
        for name in ("d_min", "d_max"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.images_per_block is not None:
            positive("images_per_block", self.images_per_block)
