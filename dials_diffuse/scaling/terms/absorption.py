"""a: absorption by the crystal and its mount. What its two forms share: options, and what is radial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from dials_diffuse.checks import at_least, choice, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.scaling.terms.base import TermOptions

#: of a, for each sweep: harmonics of the directions of incident and diffracted beam in the crystal; spline over the
#: detector and the rotation
FORMS = ("harmonics", "spline")

#: of the harmonics
MAX_DEGREE = 10

#: rings of |s| that tell what is radial
RINGS = 30


@dataclass(frozen=True)
class AbsorptionOptions(TermOptions):
    """Form and size of the absorption.

    Attributes
    ----------
    form : one of ``FORMS``; "spline" where the files lack the orientation
    degree : highest degree of the harmonics
    angle : degrees of rotation between nodes of the spline
    nodes : spline coefficients along each edge of the detector
    """

    form: str = "harmonics"
    degree: int = 4
    angle: float = 20.0
    nodes: int = 6

    scope = "a"
    phil = """
  a {
    form = *harmonics spline
      .type = choice
      .help = "harmonics: spherical harmonics of the directions of the incident and the diffracted beam in the crystal,"
              "as in dials.scale. spline: any smooth function of detector position and rotation; takes care of shadows"
              "that turn, but needs many symmetry mates."
    degree = 4
      .type = int(value_min=1)
      .help = "Highest degree of the harmonics."
    angle = 20.0
      .type = float
      .help = "Degrees of rotation between nodes."
    nodes = 6
      .type = int(value_min=3, value_max=1000)
      .help = "Spline coefficients along each edge of the detector."
  }
"""

    def __post_init__(self):
        choice("scale_model.a.form", self.form, FORMS)
        positive("scale_model.a.angle", self.angle)
        at_least("scale_model.a.degree", self.degree, 1)
        at_least("scale_model.a.nodes", self.nodes, 3)
        if self.degree > MAX_DEGREE:
            raise DiffuseError(f"scale_model.a.degree={self.degree}: at most {MAX_DEGREE}")


def overlaps(gram: np.ndarray, part: np.ndarray, least: float) -> np.ndarray:
    """(k, m) combinations of m functions of which more than the share ``least`` of the variance is in a part of them.

    As rows that give the overlap of coefficients with these combinations.

    Parameters
    ----------
    gram, part : (m, m) float64, mean products of the functions, and of that part of each
    """
    gram = gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    share, vectors = linalg.eigh(part, gram)
    return (gram @ vectors[:, share > least]).T
