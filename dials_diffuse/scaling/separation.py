"""Absolute scale from the shapes of curves: what is the crystal's, and what air and liquid around it scatter.

Bragg intensities are the crystal's alone: their fall with |s| (Wilson's plot) gives a scale that no background changes.
All that is on the images must be what the cell scatters and some air and water, of which neither is negative. Both
together, and what is known beforehand of the amounts and of the errors of the curves, give the scale.

Source: docs/theory.md, Absolute scale; Wilson 1942, Nature 150, 152
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from dials_diffuse.errors import DiffuseError
from dials_diffuse.scaling.totals import Shells
from dials_diffuse.structure.expectation import Expectation
from dials_diffuse.structure.surroundings import AIR_DENSITY, WATER_DENSITY, air, water

#: errors of the curves grow to so many times more, within such a distance (1/Å), where they begin to be known
_WORSE = (3.0, 0.025)

#: relative errors of the curves of all that scatters, and of Bragg reflections: in regions of such a width (1/Å), and
#: everywhere alike
_TOTAL, _BRAGG = (0.03, 0.01), (0.08, 0.04)
_ALIKE = 0.025

#: relative error of the diffuse intensity of a shell, besides counting
_PROFILE = 0.01

#: B factors of atoms: their rms relative to the mean, and what of the mean all have
_SPREAD, _SPREAD_ESD, _LEAST_B = 0.5, 0.15, 0.5

#: how much of their interference atoms have that move: all where neighbours move together, none where they do not
_TOGETHER, _TOGETHER_ESD = 0.75, 0.25

#: means of exponential distributions, beforehand: liquid around the crystal relative to its volume; length of air
#: relative to the thickness of the crystal, where no background was subtracted, and where one was
_LIQUID = 0.35
_AIR = (100.0, 3.0)

#: points of the distributions
_POINTS = 25

#: B s²/2, beyond which Bragg reflections say nothing about the mean B
_MOST_FALL = 4.0

#: shells with Bragg reflections, and how significant together, that a scale needs
_LEAST_SHELLS, _LEAST_SIGNAL = 6, 10.0

#: standard deviations by which the scales of Bragg reflections and of all that scatters may differ
_CONFLICT = 3.0

#: chi2 for each shell of all that scatters, and relative misfit of Bragg reflections besides their noise, beyond which
#: the curves are not those of a crystal
_MISFIT, _BRAGG_MISFIT = 4.0, 0.25


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
        return np.exp(_log_damping(self.b, self.spread, s))


@dataclass(frozen=True)
class Separation:
    """The scale, and what is on the images besides the crystal.

    Attributes
    ----------
    k, esd : electrons² per unit cell for each unit of the scale model
    wilson : Wilson; from the Bragg intensities alone
    s : (n,) 1/Å of the shells that were fitted
    crystal, liquid, air : (n,) their parts, electrons² per unit cell
    amounts : {"molecules": relative to the contents, "liquid": relative to the crystal's volume, "air": length relative
        to the crystal's thickness} -> (mean, standard deviation)
    chi2 : misfit of all that scatters for each shell, in units of what is known of the errors
    conflict : what to tell where Bragg reflections and all that scatters do not agree, else ""
    """

    k: float
    esd: float
    wilson: Wilson
    s: np.ndarray
    crystal: np.ndarray
    liquid: np.ndarray
    air: np.ndarray
    amounts: dict
    chi2: float
    conflict: str

    @property
    def share_around(self) -> float:
        """Of all that scatters, weighted with s² as in the sum rule, what is not the crystal's."""
        around, all_of_it = (self.s**2 @ x for x in (self.liquid + self.air, self.crystal + self.liquid + self.air))
        return float(around / all_of_it)

    @property
    def details(self) -> dict:
        """For the record."""
        names = {"liquid": "liquid_to_crystal", "air": "air_to_crystal_length", "molecules": "molecules_to_contents"}
        return {
            "k_wilson": math.exp(self.wilson.log_k),
            "esd_wilson": math.exp(self.wilson.log_k) * math.sqrt(self.wilson.variance),
            "b_wilson": self.wilson.b,
            **{names[n]: {"value": value, "esd": esd} for n, (value, esd) in self.amounts.items()},
            "share_around": self.share_around,
            "chi2": self.chi2,
        }


def separate(shells: Shells, expectation: Expectation, subtracted: bool) -> Separation:
    """Find the scale, and how much air and liquid scatter.

    subtracted : were images without crystal subtracted? They hold air, but no liquid.

    Raises
    ------
    DiffuseError
        If the Bragg reflections, or all that scatters, are not those of a crystal with these contents.
    """
    use = (shells.s > expectation.known_from) & (shells.n_measured > 0)
    if np.count_nonzero(use) < _LEAST_SHELLS:
        raise DiffuseError(
            f"the data end at {1 / shells.edges[-1]:.2f} Å, too early for an absolute scale without a model, which "
            f"needs them beyond {1 / expectation.known_from:.1f} Å"
        )
    s, level = shells.s[use], shells.total[use]
    wilson = fit_wilson(shells, expectation)
    if not np.all(level > 0):
        raise DiffuseError("there is more background than signal: what the cell scatters cannot be told from it")

    factor, liquid, length, prior = _amounts(expectation, subtracted)
    parts = _curves(expectation, wilson, s)
    bulk = np.maximum(1 - factor * (1 - expectation.water_share), 0.0)
    crystal = factor[:, None] * parts["molecules"] + bulk[:, None] * parts["water"]
    around = liquid[:, None] * parts["water"], length[:, None] * parts["air"]
    curve = crystal + around[0] + around[1]

    number = (shells.points[use] - 1) * shells.bragg[use]
    noise = np.sqrt(_bragg_variance(shells, use) + number**2) / level + _PROFILE
    together = _TOGETHER_ESD * (parts["together"] / parts["molecules"])
    covariance = _covariance(s, noise, _TOTAL) + np.outer(together, together)
    total, variance, misfit = _levels(np.log(curve) - np.log(level), covariance)
    # log k by both: normal distributions for given amounts
    bragg = wilson.log_k + np.log(factor)
    weight = np.array([1 / wilson.variance, 1 / variance])
    log_k = (weight[0] * bragg + weight[1] * total) / weight.sum()
    apart = (bragg - total) ** 2 / np.sum(1 / weight)
    chance = np.log(prior) - misfit / 2 + _not_more_than_measured(shells, log_k, liquid, length, expectation)
    alone = float(_normalised(chance) @ total)  # without what Bragg reflections say of the scale
    chance = _normalised(chance - apart / 2)

    best = int(np.argmax(chance))
    chi2 = float(misfit[best]) / (len(s) - 1)
    if chi2 > _MISFIT:
        raise DiffuseError(
            "what is on the images has not the shape of the scattering of such a crystal with air and liquid (chi2 "
            f"{chi2:.1f}): are these the right contents, and was the right background subtracted?"
        )
    mean = float(chance @ log_k)
    variance = 1 / weight.sum() + float(chance @ (log_k - mean) ** 2)
    # where the curves fit worse than they are thought to, the scale is worse as well
    variance *= max(1.0, chi2)
    difference = float(chance @ (total - bragg))
    conflict = ""
    if difference**2 > _CONFLICT**2 * np.sum(1 / weight):
        # one of them is wrong, nobody knows which
        variance += ((mean - alone) / 2) ** 2
        mean = (mean + alone) / 2
        conflict = (
            f"Bragg reflections ({math.exp(wilson.log_k):.4g} electrons^2 per unit cell) and all that scatters "
            f"({math.exp(alone):.4g}) do not agree on the absolute scale: are the Bragg intensities those of whole "
            "reflections?"
        )

    def moments(x):
        centre = float(chance @ x)
        return centre, math.sqrt(float(chance @ (x - centre) ** 2))

    return Separation(
        k=math.exp(mean),
        esd=math.exp(mean) * math.sqrt(variance),
        wilson=wilson,
        s=s,
        crystal=chance @ crystal,
        liquid=chance @ around[0],
        air=chance @ around[1],
        amounts={"molecules": moments(factor), "liquid": moments(liquid), "air": moments(length)},
        chi2=chi2,
        conflict=conflict,
    )


def _levels(logs: np.ndarray, covariance: np.ndarray) -> tuple:
    """Weighted means of rows (m, n) with the covariance (n, n): (m,) means, their variance, and (m,) χ² about them."""
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    ones, rows = whiten @ np.ones(len(covariance)), logs @ whiten.T
    variance = 1 / (ones @ ones)
    means = (rows @ ones) * variance
    return means, variance, np.sum((rows - np.outer(means, ones)) ** 2, axis=1)


def fit_wilson(shells: Shells, expectation: Expectation) -> Wilson:
    """Scale of the Bragg intensities, k I = Σf² (1 + correlation) ⟨exp(-B s²/2)⟩ with B distributed around its mean.

    Raises
    ------
    DiffuseError
        If there is no signal in them.
    """
    known = (shells.s > expectation.known_from) & (shells.n_measured > 0)
    error = np.sqrt(np.maximum(shells.bragg_variance, 0.0))
    use = known & (shells.bragg > 3 * error)
    signal = math.sqrt(np.sum((shells.bragg[use] / np.maximum(error[use], 1e-12)) ** 2))
    if np.count_nonzero(use) < _LEAST_SHELLS or signal < _LEAST_SIGNAL:
        raise DiffuseError(
            f"the Bragg reflections beyond {1 / expectation.known_from:.1f} Å hold no signal (in "
            f"{np.count_nonzero(use)} shells of {np.count_nonzero(known)}), which an absolute scale without a model "
            "needs"
        )
    s = shells.s[use]
    curve = expectation.at("molecules", s) * (1 + expectation.at("correlation", s))
    data = np.log(shells.bragg[use] / shells.points[use] / curve)
    noise = np.sqrt(_bragg_variance(shells, use)) / shells.bragg[use]
    wilson = _fit_fall(s, data, noise)
    # far out, the atoms with the smallest B are all that is left
    near = (wilson.b * s**2 / 2 < _MOST_FALL) | (np.arange(len(s)) < _LEAST_SHELLS)
    if not near.all():
        s, data, noise = s[near], data[near], noise[near]
        wilson = _fit_fall(s, data, noise)
    left = data + wilson.log_k - _log_damping(wilson.b, wilson.spread, s)
    excess = math.sqrt(max(np.mean(left**2 - noise**2), 0.0))
    if excess > _BRAGG_MISFIT:
        raise DiffuseError(
            f"the Bragg intensities do not fall with |s| as those of such a crystal do ({100 * excess:.0f} % misfit): "
            "are they those of whole reflections?"
        )
    return wilson


def _fit_fall(s: np.ndarray, data: np.ndarray, noise: np.ndarray) -> Wilson:
    """Fit of the logarithms of Bragg intensities relative to their curve, (n,) each."""
    whiten = np.linalg.inv(np.linalg.cholesky(_covariance(s, noise, _BRAGG)))

    def residuals(x):
        left = data + x[0] - _log_damping(x[1], x[2], s)
        return np.append(whiten @ left, (x[2] - _SPREAD) / _SPREAD_ESD)

    slope, level = np.polyfit(s**2, data, 1)
    first = [-level, max(-2 * slope, 1.0), _SPREAD]
    fit = least_squares(residuals, first, bounds=([-np.inf, 0.0, 0.05], [np.inf, 500.0, 1.2]), x_scale=[1, 10, 1])
    chi2 = 2 * fit.cost / (len(s) - 2)
    variance = np.linalg.inv(fit.jac.T @ fit.jac)[0, 0] * max(1.0, chi2)
    return Wilson(float(fit.x[0]), float(variance), float(fit.x[1]), float(fit.x[2]), chi2)


def _log_damping(b: float, spread: float, s: np.ndarray) -> np.ndarray:
    """Logarithm of ⟨exp(-B s²/2)⟩: B is _LEAST_B of its mean, and the rest has a gamma distribution."""
    rest = (1 - _LEAST_B) * b
    relative = (spread / (1 - _LEAST_B)) ** 2
    return -_LEAST_B * b * s**2 / 2 - np.log1p(relative * rest * s**2 / 2) / relative


def _normalised(log_chance: np.ndarray) -> np.ndarray:
    chance = np.exp(log_chance - log_chance.max())
    return chance / chance.sum()


def _amounts(expectation: Expectation, subtracted: bool) -> tuple:
    """(n,) of each: factor of the molecules, liquid, length of air; and their probability beforehand."""
    factor, probability = np.array(expectation.alternatives).T
    # points of equal probability would leave large amounts out
    u = (np.arange(_POINTS) / (_POINTS - 1)) ** 2 * 6
    density = np.exp(-u) * np.gradient(u)
    density[0] /= 2
    grid = np.meshgrid(factor, u * _LIQUID, u * _AIR[subtracted], indexing="ij")
    prior = probability[:, None, None] * density[:, None] * density
    return (*(x.ravel() for x in grid), prior.ravel() + 1e-300)


def _curves(expectation: Expectation, wilson: Wilson, s: np.ndarray) -> dict:
    """(n,) of molecules, of water and air of the cell's volume, electrons² per unit cell; and what may change."""
    squares, correlation = expectation.at("molecules", s), expectation.at("correlation", s)
    still = wilson.damping(s)
    moving = squares * correlation * (1 - still)
    return {
        "molecules": squares * (1 + correlation * still) + _TOGETHER * moving + expectation.at("molecules_compton", s),
        "together": moving,
        "water": expectation.volume * WATER_DENSITY * water(s),
        "air": expectation.volume * AIR_DENSITY * air(s),
    }


def _covariance(s: np.ndarray, noise: np.ndarray, curve: tuple) -> np.ndarray:
    """(n, n) of relative errors: of the curves, which neighbouring shells share, and of the data."""
    near = np.exp(-(((s[:, None] - s) / _ALIKE) ** 2) / 2)
    error = curve[0] * (1 + _WORSE[0] * np.exp(-(((s - s[0]) / _WORSE[1]) ** 2) / 2))
    return error[:, None] * error * near + curve[1] ** 2 + np.diag(noise**2 + 1e-6)


def _bragg_variance(shells: Shells, use: np.ndarray) -> np.ndarray:
    """(n,) variance of the Bragg intensity: counting, overloads, and that a shell holds so few reflections."""
    few = shells.bragg[use] ** 2 / np.maximum(shells.n_measured[use], 1)
    return shells.bragg_variance[use] + (shells.bragg_lost[use] / 2) ** 2 + few


def _not_more_than_measured(shells, log_k, liquid, length, expectation) -> np.ndarray:
    """(n,) log of the chance that the diffuse intensity near the beam is no less than what air and liquid scatter."""
    s = shells.s[(shells.s > 0.05) & (shells.s < 0.15)][::3]
    if not len(s):
        return np.zeros(len(log_k))
    measured = np.interp(s, shells.s, shells.diffuse)
    around = liquid[:, None] * expectation.volume * WATER_DENSITY * water(s)
    around = around + length[:, None] * expectation.volume * AIR_DENSITY * air(s)
    excess = around / (np.exp(log_k)[:, None] * np.maximum(measured, 1e-300)) - 1
    return -((np.maximum(excess, 0.0).max(axis=1) / 0.1) ** 2) / 2
