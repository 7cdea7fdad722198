"""Parameters of scaling, validated where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field

from dials_diffuse.checks import at_least, choice, fraction
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.laue_check import CHECKS
from dials_diffuse.scaling.terms.table import NAMES


@dataclass(frozen=True)
class ScalingParameters:
    """What to scale how.

    Attributes
    ----------
    model_from : JSON file of another run, whose scale model is applied; ``terms``, ``options`` and what refines them
        are then not used
    terms : names of those to try, see :mod:`dials_diffuse.scaling.terms.table`; "d" is one factor for each module where
        there are several, and a smooth function where "a" is no spline, which contains it
    options : tuple of TermOptions of terms that differ from the defaults
    automatic : keep only terms that the data ask for, see :func:`dials_diffuse.scaling.solve.judge_terms`
    space_group : symbol of the group whose mates should agree; None: that of the files
    crystals : which of them to keep, and in which setting
    outlier_n_sigma : two-sided limit; 0: keep everything
    symmetry_check : what to do about a group that the data do not have, one of ``laue_check.CHECKS``
    reject_images : leave out images that do not agree with the others of their sweep
    max_rejected_fraction : of the images of a sweep; if more are bad, all are kept
    max_observations : the model is refined on at most so many observations, of unique voxels chosen at random
    n_folds : parts of the voxels, each kept out once to test the terms
    n_cycles : most Gauss-Newton steps after the terms are chosen
    seed : of the choice of voxels

    Raises
    ------
    DiffuseError
        If a value is out of range; the message names the phil parameter.
    """

    model_from: str | None = None
    terms: tuple = NAMES
    options: tuple = ()
    automatic: bool = True
    space_group: str | None = None
    crystals: CrystalParameters = field(default_factory=CrystalParameters)
    outlier_n_sigma: float = 6.0
    symmetry_check: str = "error"
    reject_images: bool = True
    max_rejected_fraction: float = 0.35
    max_observations: int = 400_000
    n_folds: int = 6
    n_cycles: int = 10
    seed: int = 0

    def __post_init__(self):
        unknown = [t for t in self.terms or () if t not in NAMES]
        if unknown:
            raise DiffuseError(f"model={','.join(self.terms)}: no term {unknown[0]}; choose from {', '.join(NAMES)}")
        if self.outlier_n_sigma is None or not self.outlier_n_sigma >= 0:
            raise DiffuseError(f"outlier.n_sigma={self.outlier_n_sigma}: must not be negative (0 = off)")
        choice("symmetry.check", self.symmetry_check, CHECKS)
        fraction("max_rejected_fraction", self.max_rejected_fraction)
        at_least("refinement.max_observations", self.max_observations, 3000)
        at_least("refinement.n_folds", self.n_folds, 2)
        at_least("refinement.n_cycles", self.n_cycles, 1)
        at_least("refinement.seed", self.seed, 0)
