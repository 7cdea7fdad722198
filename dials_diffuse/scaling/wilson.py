"""The fall of Bragg intensities with |s|, and the scale that it gives by itself: Wilson's plot.

Source: Wilson 1942, Nature 150, 152; docs/theory.md, Absolute scale
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from dials_diffuse.errors import DiffuseError
from dials_diffuse.scaling.totals import Shells
from dials_diffuse.structure.expectation import Expectation

#: relative error of what interference makes of Σf²: far out, and how much more where it begins to be known, within such
#: a distance (1/Å); alike over the next; and everywhere
_INTERFERENCE, _ALIKE, _INTERFERENCE_LEVEL = (0.04, 0.12, 0.05), 0.025, 0.02

#: relative error of all Bragg intensities, against the diffuse one
BRAGG_LEVEL = 0.03

#: share of the scattering, of atoms whose reflections have died away before the fit begins
LOST_ATOMS = 0.1

#: B factors of atoms: their rms relative to the mean, and what of the mean all have
SPREAD, SPREAD_ESD, _LEAST_B = 0.45, 0.18, 0.5

#: B s²/2, beyond which Bragg reflections say nothing about the mean B
_MOST_FALL = 4.0

#: shells with Bragg reflections, and how significant together, that a scale needs
LEAST_SHELLS, _LEAST_SIGNAL = 6, 10.0

#: relative misfit of Bragg reflections besides their noise, beyond which they are not those of a crystal
_MISFIT = 0.25


@dataclass(frozen=True)
class Wilson:
    """Scale of the Bragg intensities, and how they fall with |s|.

    Attributes
    ----------
    log_k, variance : of k for the contents as they are
    b : mean B factor, Å²; spread : rms of B relative to it
    chi2 : misfit for each shell, in units of what is known of the errors
    """

    log_k: float
    variance: float
    b: float
    spread: float
    chi2: float

    def damping(self, s: np.ndarray) -> np.ndarray:
        return np.exp(log_damping(self.b, self.spread, s))

    def derivatives(self, s: np.ndarray) -> tuple:
        """Of the logarithm of the damping at |s| (n,), by b and by the spread."""
        db, dspread = 0.02 * self.b + 1e-3, 0.02
        return (
            (log_damping(self.b + db, self.spread, s) - log_damping(self.b, self.spread, s)) / db,
            (log_damping(self.b, self.spread + dspread, s) - log_damping(self.b, self.spread, s)) / dspread,
        )


def log_damping(b: float, spread: float, s: np.ndarray) -> np.ndarray:
    """Logarithm of ⟨exp(-B s²/2)⟩: B is _LEAST_B of its mean, and the rest has a gamma distribution."""
    rest = (1 - _LEAST_B) * b
    relative = (spread / (1 - _LEAST_B)) ** 2
    return -_LEAST_B * b * s**2 / 2 - np.log1p(relative * rest * s**2 / 2) / relative


def alike(s: np.ndarray, distance: float) -> np.ndarray:
    """(n, n) correlation of errors at |s| (n,) that neighbours within a distance share."""
    return np.exp(-(((s[:, None] - s) / distance) ** 2) / 2)


def interference_covariance(s: np.ndarray, known_from: float) -> np.ndarray:
    """(n, n) of the relative error of 1 + correlation at |s|."""
    far, more, within = _INTERFERENCE
    error = far + more * np.exp(-(((s - known_from) / within) ** 2) / 2)
    return error[:, None] * error * alike(s, _ALIKE) + _INTERFERENCE_LEVEL**2


def bragg_noise(shells: Shells) -> np.ndarray:
    """(n,) standard deviation of the Bragg intensity: counting, overloads, and that a shell holds few reflections."""
    few = shells.bragg**2 / np.maximum(shells.n_measured, 1)
    return np.sqrt(np.maximum(shells.bragg_variance, 0.0) + (shells.bragg_lost / 2) ** 2 + few)


def _with_signal(shells: Shells, expectation: Expectation) -> np.ndarray:
    """(n,) bool, shells whose Bragg intensities the fit uses.

    Raises
    ------
    DiffuseError
        If they are too few.
    """
    known = (shells.s > expectation.known_from) & (shells.n_measured > 0)
    error = np.sqrt(np.maximum(shells.bragg_variance, 0.0))
    use = known & (shells.bragg > 3 * error)
    signal = math.sqrt(np.sum((shells.bragg[use] / np.maximum(error[use], 1e-12)) ** 2))
    if np.count_nonzero(use) < LEAST_SHELLS or signal < _LEAST_SIGNAL:
        raise DiffuseError(
            f"the Bragg reflections beyond {1 / expectation.known_from:.1f} Å hold no signal (in "
            f"{np.count_nonzero(use)} shells of {np.count_nonzero(known)}), which an absolute scale without a model "
            "needs"
        )
    return use


def fit_wilson(shells: Shells, expectation: Expectation) -> Wilson:
    """Scale of the Bragg intensities, k I = Σf² (1 + correlation) ⟨exp(-B s²/2)⟩ with B distributed around its mean.

    Raises
    ------
    DiffuseError
        If there is no signal in them, or they do not fall as those of a crystal do.
    """
    use = _with_signal(shells, expectation)
    s = shells.s[use]
    curve = expectation.at("molecules", s) * (1 + expectation.at("correlation", s))
    data = np.log(shells.bragg[use] / shells.points[use] / curve)
    noise = bragg_noise(shells)[use] / shells.bragg[use]
    wilson = _fit_fall(s, data, noise, expectation.known_from)
    # far out, the atoms with the smallest B are all that is left
    near = (wilson.b * s**2 / 2 < _MOST_FALL) | (np.arange(len(s)) < LEAST_SHELLS)
    if not near.all():
        s, data, noise = s[near], data[near], noise[near]
        wilson = _fit_fall(s, data, noise, expectation.known_from)
    left = data + wilson.log_k - log_damping(wilson.b, wilson.spread, s)
    excess = math.sqrt(max(np.mean(left**2 - noise**2), 0.0))
    if excess > _MISFIT:
        raise DiffuseError(
            f"the Bragg intensities do not fall with |s| as those of such a crystal do ({100 * excess:.0f} % misfit): "
            "are they those of whole reflections?"
        )
    return wilson


def _fit_fall(s: np.ndarray, data: np.ndarray, noise: np.ndarray, known_from: float) -> Wilson:
    """Fit of the logarithms of Bragg intensities relative to their curve, (n,) each."""
    covariance = interference_covariance(s, known_from) + BRAGG_LEVEL**2 + LOST_ATOMS**2 + np.diag(noise**2 + 1e-6)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))

    def residuals(x):
        left = data + x[0] - log_damping(x[1], x[2], s)
        return np.append(whiten @ left, (x[2] - SPREAD) / SPREAD_ESD)

    slope, level = np.polyfit(s**2, data, 1)
    first = [-level, max(-2 * slope, 1.0), SPREAD]
    fit = least_squares(residuals, first, bounds=([-np.inf, 0.0, 0.05], [np.inf, 500.0, 1.2]), x_scale=[1, 10, 1])
    chi2 = 2 * fit.cost / (len(s) - 2)
    variance = np.linalg.inv(fit.jac.T @ fit.jac)[0, 0] * max(1.0, chi2)
    return Wilson(float(fit.x[0]), float(variance), float(fit.x[1]), float(fit.x[2]), chi2)
