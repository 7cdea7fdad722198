"""A correlation that falls as exp(-r/gamma)/r, whose transform is a Lorentzian, as of acoustic vibrations."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline

#: points of the tables, in log(1 + k)
_NODES = 160
#: the tables end at this many l/core; the transform falls as k^-4 from there, within 0.1 %
_END = 40.0
#: where integrals over distance end, in units of gamma
_FAR = 45.0
#: panels of these integrals in units of 1/k, and nodes in each
_PANEL = 6.0
_PANEL_NODES = 12


def lorentzian(r: np.ndarray, gamma: float, core: float) -> np.ndarray:
    """Correlation that falls as exp(-r/gamma)/r, made finite at r = 0 by taking away the same with a shorter length.

    c(r) = (exp(-r/gamma) - exp(-r/core)) / (r (1/core - 1/gamma)). Its transform is the difference of two Lorentzians,
    4 pi (1/(1/gamma² + Q²) - 1/(1/core² + Q²)) / (1/core - 1/gamma), positive everywhere.

    Parameters
    ----------
    r : float64, Å; gamma, core : Å, 0 < core < gamma
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.exp(-r / gamma) * -np.expm1(-r * (1 / core - 1 / gamma)) / (r * (1 / core - 1 / gamma))
    return np.where(r > 0, value, 1.0)


def lorentzian_derivatives(r: np.ndarray, gamma: float, core: float) -> tuple:
    """:func:`lorentzian` and its first and second derivatives by gamma."""
    k = 1 / gamma
    c, e, m = lorentzian(r, gamma, core), np.exp(-r * k), 1 / core - k
    by_k = (c - e) / m
    by_kk = (2 * by_k + r * e) / m
    return c, -(k**2) * by_k, k**4 * by_kk + 2 * k**3 * by_k


def lorentzian_transform(square: np.ndarray, core: float, order: int) -> np.ndarray:
    """Integral of c(r)^l exp(iQr) over space for gamma = 1.

    square : float64, Q²; core : below 1; order : l
    """
    if order == 1:
        return 4 * math.pi / (1 / core - 1) * (1 / (1 + square) - 1 / (core**-2 + square))
    spline, end, _ = _table(core, order)
    k = np.sqrt(square)
    result = np.exp(spline(np.log1p(np.minimum(k, end))))
    return np.where(k > end, result * (end / np.maximum(k, end)) ** 4, result)


def lorentzian_flux(k: np.ndarray, core: float, order: int) -> np.ndarray:
    """Integral of the transform times k' over 0 < k' < k, for gamma = 1; k : float64, not negative."""
    if order == 1:
        return 2 * math.pi / (1 / core - 1) * (np.log1p(k**2) - np.log1p((core * k) ** 2))
    spline, end, flux = _table(core, order)
    x = np.minimum(k, end)
    rest = math.exp(spline(math.log1p(end))) * end**4 * 0.5 * (end**-2.0 - np.maximum(k, end) ** -2.0)
    return flux(np.log1p(x)) + rest


@lru_cache(maxsize=64)
def _table(core: float, order: int) -> tuple:
    """Spline of the logarithm of the transform in log(1 + k), the end of the table, and the flux as such a spline."""
    end = _END * order / core
    u = np.linspace(0, math.log1p(end), _NODES)
    values = _integrals(np.expm1(u), core, order)
    spline = CubicSpline(u, np.log(values))
    fine = np.linspace(0, u[-1], 20 * _NODES)
    k = np.expm1(fine)
    return spline, end, CubicSpline(fine, np.exp(spline(fine)) * k * (1 + k)).antiderivative()


def _integrals(k: np.ndarray, core: float, order: int) -> np.ndarray:
    """Integrals of c(r)^l exp(ikr) over space by Gauss-Legendre quadrature in panels that resolve the largest k."""
    far = _FAR / order
    panels = math.ceil(far * k[-1] / _PANEL)
    unit, weight = np.polynomial.legendre.leggauss(_PANEL_NODES)
    width = 0.5 * far / panels
    r = (2 * width * np.arange(panels)[:, None] + width * (1 + unit)).reshape(-1)
    power = 4 * math.pi * lorentzian(r, 1.0, core) ** order * r**2 * np.tile(width * weight, panels)
    return np.array([np.sinc(x * r / math.pi) @ power for x in k])
