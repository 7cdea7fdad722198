"""Absolute scale from the shapes of curves: what is the crystal's, and what air and liquid around it scatter.

Bragg intensities are the crystal's alone. The diffuse intensity is what its moving atoms, its solvent, Compton
scattering, and air and liquid around it make. Atoms interfere in both alike, and what Bragg reflections lose by
displacements is diffuse. Both are fitted together, with what is known beforehand of the amounts, of which none is
negative, and of the errors of the curves.

Source: docs/theory.md, Absolute scale
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.scaling.scatterers import APART_ESD, Amounts, Curves, amounts_of, not_more_than_measured
from dials_diffuse.scaling.totals import Shells
from dials_diffuse.scaling.wilson import (
    BRAGG_LEVEL,
    LEAST_SHELLS,
    LOST_ATOMS,
    SPREAD,
    SPREAD_ESD,
    Wilson,
    alike,
    bragg_noise,
    fit_wilson,
    interference_covariance,
)
from dials_diffuse.structure.expectation import Expectation

#: shells narrower than this (1/Å) are taken in pairs: curves do not change much within
_NARROW = 0.012

#: relative errors of what water scatters: alike over the second (1/Å), and everywhere; and of |s| of its ring
_WATER, _WATER_ALIKE, _WATER_LEVEL, _RING = 0.025, 0.03, 0.04, 0.02

#: relative error of what air scatters
_AIR_LEVEL = 0.02

#: relative errors of the diffuse intensity besides counting: of a shell, alike over the third (1/Å), and everywhere
_SHELL, _SMOOTH, _SMOOTH_ALIKE, _LEVEL = 0.01, 0.01, 0.05, 0.005

#: of the mean B factor, Å²: nothing is known beforehand
_B_ESD = 200.0

#: standard deviations by which the scales of Bragg reflections and of the diffuse intensity may differ
_CONFLICT = 3.0

#: chi2 for each shell, beyond which the curves are not those of a crystal
_MISFIT = 10.0


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
    chi2 : misfit of both for each shell, in units of what is known of the errors
    conflict : what to tell where Bragg reflections and the diffuse intensity do not agree, else ""
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


@dataclass(frozen=True)
class _Data:
    """What is fitted, in n shells: diffuse intensity in all, Bragg reflections where they have signal.

    s, diffuse, with_bragg : (n,); bragg, noise : (b,) for each lattice point, and relative error
    """

    s: np.ndarray
    diffuse: np.ndarray
    with_bragg: np.ndarray
    bragg: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, shells: Shells, expectation: Expectation) -> _Data:
        use = (shells.s > expectation.known_from) & (shells.n_measured > 0)
        if not np.all(shells.diffuse[use] > 0):
            raise DiffuseError("there is more background than signal: what the cell scatters cannot be told from it")
        bragg = shells.bragg > 3 * np.sqrt(np.maximum(shells.bragg_variance, 0.0))
        both = use & bragg
        return cls(
            shells.s[use],
            shells.diffuse[use],
            bragg[use],
            (shells.bragg / np.maximum(shells.points, 1e-9))[both],
            bragg_noise(shells)[both] / shells.bragg[both],
        )

    @property
    def number(self) -> int:
        return len(self.diffuse) + len(self.bragg)


def separate(shells: Shells, expectation: Expectation, subtracted: bool, surroundings: bool = False) -> Separation:
    """Find the scale, and how much air and liquid scatter.

    Parameters
    ----------
    subtracted : were images without crystal subtracted?
    surroundings : did they show its liquid, too? Otherwise air alone

    Raises
    ------
    DiffuseError
        If the Bragg reflections, or all that scatters, are not those of a crystal with these contents.
    """
    wilson = _wilson_of(shells, expectation)
    data = _Data.of(_in_pairs(shells), expectation)
    curves = Curves.of(expectation, wilson, data.s)
    amounts = amounts_of(expectation, subtracted, subtracted and surroundings)
    chunks = [_fit(data, curves, wilson, part, expectation) for part in amounts.parts()]
    alone, both = (tuple(np.concatenate(x) for x in zip(*fits)) for fits in zip(*chunks))

    known = amounts.log_prior + not_more_than_measured(shells, alone[0], amounts, expectation)
    chance = _normalised(known + alone[3])
    diffuse, by_diffuse = _moments(chance, alone[0], alone[1])
    bragg, by_bragg = _moments(chance, wilson.log_k + np.log(amounts.factor), wilson.variance)
    apart, conflict = bragg - diffuse, ""
    if apart**2 > _CONFLICT**2 * (by_diffuse + by_bragg):
        # Bragg reflections are the more easily wrong ones, but nobody knows
        fit, number, doubt = alone, len(data.s), apart / 4
        conflict = (
            f"Bragg reflections ({math.exp(bragg):.4g} electrons^2 per unit cell) and the diffuse intensity "
            f"({math.exp(diffuse):.4g}) do not agree on the absolute scale, which is that of the latter: are the Bragg "
            "intensities those of whole reflections?"
        )
    else:
        fit, number, doubt = both, data.number, 0.0
        known = amounts.log_prior + not_more_than_measured(shells, both[0], amounts, expectation)
        chance = _normalised(known + both[3])
    chi2 = float(fit[2][np.argmax(chance)]) / (number - 2)
    if chi2 > _MISFIT:
        raise DiffuseError(
            "what is on the images has not the shape of the scattering of such a crystal with air and liquid (chi2 "
            f"{chi2:.1f}): are these the right contents, and was the right background subtracted?"
        )
    mean, variance = _moments(chance, fit[0], fit[1])
    # where the curves fit worse than they are thought to, and than chance makes them, the scale is worse as well
    variance = variance * max(1.0, chi2 / (1 + 2 * math.sqrt(2 / number))) + doubt**2

    def amount(x):
        centre, square = _moments(chance, x, 0.0)
        return centre, math.sqrt(square)

    factor, bulk, liquid, length = (float(chance @ x) for x in amounts.all)
    return Separation(
        k=math.exp(mean),
        esd=math.exp(mean) * math.sqrt(variance),
        wilson=wilson,
        s=data.s,
        crystal=factor * (curves.moving + curves.bragg + curves.compton) + bulk * curves.water,
        liquid=liquid * curves.water,
        air=length * curves.air,
        amounts={"molecules": amount(amounts.factor), "liquid": amount(amounts.liquid), "air": amount(amounts.air)},
        chi2=chi2,
        conflict=conflict,
    )


def _wilson_of(shells: Shells, expectation: Expectation) -> Wilson:
    use = (shells.s > expectation.known_from) & (shells.n_measured > 0)
    if np.count_nonzero(use) < LEAST_SHELLS:
        raise DiffuseError(
            f"the data end at {1 / shells.edges[-1]:.2f} Å, too early for an absolute scale without a model, which "
            f"needs them beyond {1 / expectation.known_from:.1f} Å"
        )
    return fit_wilson(shells, expectation)


def _in_pairs(shells: Shells) -> Shells:
    """The shells, every two of them together where they are narrow: curves do not change much within."""
    if shells.edges[1] - shells.edges[0] > _NARROW:
        return shells
    n = len(shells.s) // 2 * 2
    points = shells.points[:n].reshape(-1, 2)

    def mean(x, power=1):
        return x[:n].reshape(-1, 2).sum(axis=1) / 2**power

    return Shells(
        edges=shells.edges[: n + 1 : 2],
        diffuse=mean(shells.diffuse),
        bragg=mean(shells.bragg / np.maximum(shells.points, 1e-9)) * points.mean(axis=1),
        bragg_variance=mean(shells.bragg_variance, 2),
        bragg_lost=mean(shells.bragg_lost),
        n_possible=mean(shells.n_possible, 0),
        n_measured=mean(shells.n_measured, 0),
        points=points.mean(axis=1),
    )


def _fit(data: _Data, curves: Curves, wilson: Wilson, amounts: Amounts, expectation: Expectation) -> tuple:
    """(log k, variance, χ², log of the probability), (m,) each for some amounts: of the diffuse intensity, and of both.

    Errors of the curves are small, so that their logarithms are linear in them.
    """
    factor, bulk, liquid, length = (x[:, None] for x in amounts.all)
    wet, air_part = (bulk + liquid) * curves.water, length * curves.air
    total = factor * (curves.moving + curves.compton) + wet + air_part
    n_bragg = np.count_nonzero(data.with_bragg)

    def error(of_diffuse, of_bragg):
        """(m, n) change of both logarithms, from that of the diffuse intensity and that of Bragg reflections."""
        left = of_diffuse / total
        right = np.broadcast_to(of_bragg * np.ones(len(curves.s)), left.shape)[:, data.with_bragg]
        return np.concatenate([left, right], axis=1)

    s = np.append(data.s, data.s[data.with_bragg])
    fallen = -factor * curves.bragg
    interfering = factor * curves.squares * (curves.kept - curves.fall) * (1 + curves.correlation)
    apart = factor * curves.squares * curves.correlation * curves.kept * data.s**2 / 2
    by_b, by_spread = wilson.derivatives(data.s)
    by_spread = SPREAD_ESD * error(fallen * by_spread, by_spread)
    level = np.ones((len(s), len(s)))
    errors = (
        (error(interfering, 1.0), interference_covariance(s, expectation.known_from)),
        (error(fallen, 1.0), LOST_ATOMS**2 * level),
        (error(fallen * by_b, by_b), _B_ESD**2 * level),
        (by_spread, level),
        (error(apart, 0.0), APART_ESD**2 * level),
        (error(0 * total, 1.0), BRAGG_LEVEL**2 * level),
        (error(wet, 0.0), _WATER**2 * alike(s, _WATER_ALIKE) + _WATER_LEVEL**2),
        (error(wet * curves.ring, 0.0), _RING**2 * level),
        (error(air_part, 0.0), _AIR_LEVEL**2 * level),
        (error(total, 0.0), _SMOOTH**2 * alike(s, _SMOOTH_ALIKE) + _LEVEL**2),
    )
    covariance = sum(v[:, :, None] * v[:, None, :] * k for v, k in errors)
    covariance += np.diag(np.append(np.full(len(data.s), _SHELL), data.noise) ** 2 + 1e-6)
    logs = np.log(total) - np.log(data.diffuse)
    bragg = np.log(factor) + np.log(curves.bragg[data.with_bragg] / data.bragg)
    # the spread of B is known beforehand, the curves are those of the one that was found
    logs = np.concatenate([logs, bragg], axis=1) + (SPREAD - wilson.spread) / SPREAD_ESD * by_spread
    n = logs.shape[1] - n_bragg
    return _levels(logs[:, :n], covariance[:, :n, :n]), _levels(logs, covariance)


def _levels(logs: np.ndarray, covariance: np.ndarray) -> tuple:
    """Weighted means of rows (m, n) with the covariances (m, n, n).

    Returns
    -------
    (m,) each: means, their variances, χ² about them, and the logarithms of the probability of the rows with any mean
    """
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, np.stack([np.ones(logs.shape), logs], axis=-1))
    ones, rows = white[..., 0], white[..., 1]
    variance = 1 / np.sum(ones**2, axis=1)
    means = np.sum(ones * rows, axis=1) * variance
    chi2 = np.sum((rows - means[:, None] * ones) ** 2, axis=1)
    size = np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
    return means, variance, chi2, np.log(variance) / 2 - chi2 / 2 - size


def _normalised(log_chance: np.ndarray) -> np.ndarray:
    chance = np.exp(log_chance - log_chance.max())
    return chance / chance.sum()


def _moments(chance: np.ndarray, x: np.ndarray, variance) -> tuple:
    """Mean and variance of normal distributions around x (m,), each with its chance."""
    mean = float(chance @ x)
    return mean, float(chance @ (variance + (x - mean) ** 2))
