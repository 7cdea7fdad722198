"""What scatters on the images: the curves of crystal, liquid and air, and how much there may be of each.

Source: docs/theory.md, Absolute scale
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.scaling.totals import Shells
from dials_diffuse.scaling.wilson import Wilson
from dials_diffuse.structure.expectation import Expectation
from dials_diffuse.structure.surroundings import AIR_DENSITY, WATER_DENSITY, air, water

#: B of the displacements of neighbours relative to each other, Å²
APART, APART_ESD = 3.5, 2.0

#: means of exponential distributions, beforehand: liquid around the crystal relative to its volume; length of air
#: relative to the thickness of the crystal, where no background was subtracted, and where one was
_LIQUID = 0.4
_AIR = (100.0, 3.0)

#: standard deviation of the liquid where it was subtracted: too much of it, or too little
_LIQUID_LEFT = 0.05

#: points of the distributions: of liquid, of air
_POINTS = (25, 17)

#: of these, as many at once
_AT_ONCE = 400


@dataclass(frozen=True)
class Curves:
    """What scatters at |s| (n,), electrons² per unit cell.

    squares, compton : of the molecules; fall : of the Bragg reflections; correlation : interference relative to squares
    kept : what is left of it by displacements of neighbours against each other; water, air : as much of either as
        fills the cell; ring : derivative of log water by log |s|
    """

    s: np.ndarray
    squares: np.ndarray
    compton: np.ndarray
    correlation: np.ndarray
    fall: np.ndarray
    kept: np.ndarray
    water: np.ndarray
    air: np.ndarray
    ring: np.ndarray

    @classmethod
    def of(cls, expectation: Expectation, wilson: Wilson, s: np.ndarray) -> Curves:
        fall = wilson.damping(s)
        return cls(
            s=s,
            squares=expectation.at("molecules", s),
            compton=expectation.at("molecules_compton", s),
            correlation=expectation.at("correlation", s),
            fall=fall,
            kept=np.maximum(np.exp(-APART * s**2 / 2), fall),
            water=expectation.volume * WATER_DENSITY * water(s),
            air=expectation.volume * AIR_DENSITY * air(s),
            ring=(np.log(water(1.01 * s)) - np.log(water(0.99 * s))) / 0.02,
        )

    @property
    def bragg(self) -> np.ndarray:
        return self.squares * (1 + self.correlation) * self.fall

    @property
    def moving(self) -> np.ndarray:
        """Elastic diffuse scattering of the molecules."""
        return self.squares * (1 - self.fall + self.correlation * (self.kept - self.fall))


@dataclass(frozen=True)
class Amounts:
    """Points of a grid, (m,) each: times the molecules; bulk water in volumes of the cell, liquid in volumes of the
    crystal, air in its thicknesses; and the logarithm of their probability beforehand."""

    factor: np.ndarray
    bulk: np.ndarray
    liquid: np.ndarray
    air: np.ndarray
    log_prior: np.ndarray

    @property
    def all(self) -> tuple:
        return self.factor, self.bulk, self.liquid, self.air

    def parts(self) -> list:
        """The grid in pieces: each point has a covariance of its own."""
        pieces = np.array_split(np.arange(len(self.factor)), max(1, len(self.factor) // _AT_ONCE))
        return [Amounts(*(x[piece] for x in (*self.all, self.log_prior))) for piece in pieces]


def amounts_of(expectation: Expectation, subtracted: bool, surroundings: bool) -> Amounts:
    """The grid; what was subtracted may leave less than nothing of the liquid."""
    factor, probability = np.array(expectation.alternatives).T
    liquid, of_liquid = _exponential(_LIQUID, _POINTS[0])
    if surroundings:
        sigmas = np.linspace(-3, 3, _POINTS[0])
        liquid, of_liquid = _LIQUID_LEFT * sigmas, np.exp(-(sigmas**2) / 2)
    length, of_length = _exponential(_AIR[subtracted], _POINTS[1])
    grid = [x.ravel() for x in np.meshgrid(factor, liquid, length, indexing="ij")]
    prior = probability[:, None, None] * of_liquid[:, None] * of_length
    bulk = np.maximum(1 - grid[0] * (1 - expectation.water_share), 0.0)
    return Amounts(grid[0], bulk, grid[1], grid[2], np.log(prior.ravel() + 1e-300))


def _exponential(mean: float, n: int) -> tuple:
    """n values of an exponential distribution and their probabilities: not all alike, for large values to be there."""
    u = np.linspace(0, 1, n) ** 2 * 6
    density = np.exp(-u) * np.gradient(u)
    density[0] /= 2
    return mean * u, density


def not_more_than_measured(shells: Shells, log_k, amounts: Amounts, expectation: Expectation) -> np.ndarray:
    """(m,) log of the chance that the diffuse intensity near the beam is no less than what air and water scatter."""
    s = shells.s[(shells.s > 0.05) & (shells.s < 0.15)][::3]
    if not len(s):
        return np.zeros(len(log_k))
    measured = np.interp(s, shells.s, shells.diffuse)
    around = amounts.liquid[:, None] * expectation.volume * WATER_DENSITY * water(s)
    around = around + amounts.air[:, None] * expectation.volume * AIR_DENSITY * air(s)
    excess = around / (np.exp(log_k)[:, None] * np.maximum(measured, 1e-300)) - 1
    return -((np.maximum(excess, 0.0).max(axis=1) / 0.1) ** 2) / 2
