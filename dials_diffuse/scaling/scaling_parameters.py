"""Parameters of scaling, validated where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dials_diffuse.errors import DiffuseError

#: b: scale of a sweep over the rotation; c: isotropic offset over |s| and rotation; a: absorption over detector and
#: rotation; d: response of the detector
TERMS = ("a", "b", "c", "d")

#: of a, for each sweep: harmonics of the directions of incident and diffracted beam in the crystal; spline over the
#: detector and the rotation
FORMS = ("harmonics", "spline")

#: of the harmonics
MAX_DEGREE = 10

_PHIL_NAMES = {
    "max_observations": "refinement.max_observations",
    "degree_a": "scale_model.a.degree",
    "nodes_a": "scale_model.a.nodes",
    "nodes_d": "scale_model.d.nodes",
    "nodes_c": "scale_model.c.nodes",
    "n_folds": "refinement.n_folds",
    "n_cycles": "refinement.n_cycles",
    "seed": "refinement.seed",
}


@dataclass(frozen=True)
class ScalingParameters:
    """What to scale how.

    Attributes
    ----------
    terms : subset of ``TERMS`` to try; "d" is one factor for each module where there are several, and a smooth function
        where there is no "a", which contains it
    automatic : keep only terms that predict held-out voxels better
    space_group : symbol of the group whose mates should agree; None: that of the files
    outlier_n_sigma : two-sided limit; 0: keep everything
    max_observations : the model is refined on at most so many observations, of unique voxels chosen at random
    form_a : one of ``FORMS``; "spline" where the files lack the orientation
    degree_a : highest degree of the harmonics
    angle_b, angle_a, angle_c : degrees of rotation between spline nodes
    nodes_a, nodes_d : spline coefficients along each edge of the detector; nodes_c along |s|
    n_folds : parts of the voxels for cross-validation
    n_cycles : most Gauss-Newton steps after the strengths of the smoothing are chosen
    seed : of the choice of voxels
    """

    terms: tuple = ("a", "b", "c", "d")
    automatic: bool = True
    space_group: str | None = None
    outlier_n_sigma: float = 6.0
    max_observations: int = 400_000
    form_a: str = "harmonics"
    degree_a: int = 4
    angle_b: float = 5.0
    angle_a: float = 20.0
    angle_c: float = 20.0
    nodes_a: int = 6
    nodes_d: int = 8
    nodes_c: int = 30
    n_folds: int = 6
    n_cycles: int = 10
    seed: int = 0

    def __post_init__(self):
        unknown = [t for t in self.terms or () if t not in TERMS]
        if unknown:
            raise DiffuseError(f"model={','.join(self.terms)}: no term {unknown[0]}; choose from {', '.join(TERMS)}")
        if self.form_a not in FORMS:
            raise DiffuseError(f"scale_model.a.form={self.form_a}: choose from {', '.join(FORMS)}")
        if self.outlier_n_sigma is None or not self.outlier_n_sigma >= 0:
            raise DiffuseError(f"outlier.n_sigma={self.outlier_n_sigma}: must not be negative (0 = off)")
        for name in ("angle_b", "angle_a", "angle_c"):
            value = getattr(self, name)
            if value is None or not (value > 0 and math.isfinite(value)):
                raise DiffuseError(
                    f"{name.replace('angle_', 'scale_model.')}.angle={value}: a positive number is needed"
                )
        for name, least in (
            ("max_observations", 3000),
            ("degree_a", 1),
            ("nodes_a", 3),
            ("nodes_d", 3),
            ("nodes_c", 3),
            ("n_folds", 2),
            ("n_cycles", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if value is None or value < least:
                raise DiffuseError(f"{_PHIL_NAMES[name]}={value}: at least {least} is needed")
        if self.degree_a > MAX_DEGREE:
            raise DiffuseError(f"scale_model.a.degree={self.degree_a}: at most {MAX_DEGREE}")
