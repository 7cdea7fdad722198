"""A smooth function of a correlation length, at many voxels: tabulated once, with derivatives from then on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev

logger = logging.getLogger("dials.diffuse.models")

#: a table reaches from the length asked for by this factor up and down
_REACH = 2.0
#: bound on the error of the interpolation, relative to the largest value, for what is analytic where it should be
_ERROR = 1e-6
#: tabulated is the function divided by length to this power: of the order of 1 at both ends of a table
_POWER = 2.0


class KernelTable:
    """Values at n voxels as a function of one or several lengths that are fixed fractions of one length.

    The function is interpolated in the logarithm of the length between Chebyshev nodes. If it is analytic for
    complex lengths with an argument below ``angle``, the error with K nodes falls as r^-K, r = a + sqrt(1 + a²),
    a = angle / half the logarithmic range; K is chosen for an error of 1e-6. Tables are made as lengths are asked for.

    Parameters
    ----------
    function : of a length in Å, gives (n,) float64
    fractions : lengths are ``fraction * length`` for each of these
    angle : radian; pi/2 for exponentials exp(-r/length), pi/4 for Gaussians
    lower, upper : of the length, Å; no table goes beyond
    """

    def __init__(self, function: Callable, fractions, angle: float, lower: float, upper: float):
        self._function = function
        self._fractions = np.array(fractions, dtype=float)
        self._angle = angle
        self._limits = lower, upper
        self._low = self._high = math.nan

    def __call__(self, length: float) -> np.ndarray:
        """(fractions, 3, n) float64, the values and the first and second derivatives by the length."""
        if not self._low <= length <= self._high:
            self._make(length)
        weights = np.concatenate([self._weights(fraction, length) for fraction in self._fractions])
        return (weights @ self._values).reshape(len(self._fractions), 3, -1)

    def _make(self, length: float) -> None:
        """A table around a length."""
        self._low = max(self._limits[0], length / _REACH)
        self._high = min(self._limits[1], length * _REACH)
        low, high = math.log(self._low * self._fractions.min()), math.log(self._high * self._fractions.max())
        self._middle, self._half = 0.5 * (low + high), max(0.5 * (high - low), 1e-3)
        a = self._angle / self._half
        number = math.ceil(-math.log(_ERROR) / math.log(a + math.hypot(1, a))) + 1
        logger.debug("table of %d kernels for lengths %.3g ... %.3g Å", number, math.exp(low), math.exp(high))
        nodes = chebyshev.chebpts1(number)
        self._inverse = np.linalg.inv(chebyshev.chebvander(nodes, number - 1))
        rows = []
        for node in nodes:
            x = math.exp(self._middle + self._half * node)
            rows.append(self._function(x) * x**-_POWER)
        self._values = np.array(rows)

    def _weights(self, fraction: float, length: float) -> np.ndarray:
        """(3, K): from the nodes to the value at fraction * length and its derivatives by the length.

        The function is length^p g(u), u = log(length); its derivatives by the length are length^(p-1) (p g + g') and
        length^(p-2) (p (p-1) g + (2p-1) g' + g'').
        """
        x = fraction * length
        t = (math.log(x) - self._middle) / self._half
        number = len(self._inverse)
        unit = np.eye(number)
        g, g1, g2 = (
            np.array([chebyshev.chebval(t, chebyshev.chebder(c, m)) for c in unit]) / self._half**m for m in range(3)
        )
        p = _POWER
        first = x ** (p - 1) * (p * g + g1)
        second = x ** (p - 2) * (p * (p - 1) * g + (2 * p - 1) * g1 + g2)
        return np.stack([x**p * g, fraction * first, fraction**2 * second]) @ self._inverse
