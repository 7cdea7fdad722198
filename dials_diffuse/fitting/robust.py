"""Losses that outliers cannot rule: weights that fall with the residual, by iteration (IRLS), and errors with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError

#: of a residual t in units of the threshold: psi(t) / t, the weight, and psi'(t); the losses are those of
#: scipy.optimize.least_squares
_FUNCTIONS = {
    "huber": (lambda t: 1 / np.maximum(np.abs(t), 1.0), lambda t: (np.abs(t) < 1).astype(float)),
    "soft_l1": (lambda t: (1 + t**2) ** -0.5, lambda t: (1 + t**2) ** -1.5),
    "cauchy": (lambda t: 1 / (1 + t**2), lambda t: (1 - t**2) / (1 + t**2) ** 2),
}
#: thresholds in standard deviations, with which errors of normal noise are 1/0.95 times the variance of least squares
THRESHOLDS = {"huber": 1.345, "soft_l1": 1.287, "cauchy": 2.385}
LOSSES = ("squares", *THRESHOLDS)
#: median of the absolute value of normal noise
_MEDIAN = 0.6745


@dataclass(frozen=True)
class Robust:
    """Weights of voxels for one set of residuals.

    Attributes
    ----------
    factors : (n,) float64, of the weights, 1 where a residual is small
    adjustment : what to multiply the reduced chi² of the weighted fit by to have variances of parameters from its
        Hessian: E[psi²] E[w] / (E[psi']² E[w e²]), of the residuals e that are fitted
    """

    factors: np.ndarray
    adjustment: float


def robust(loss: str, residual: np.ndarray, work: np.ndarray) -> Robust:
    """Weights for a loss.

    Parameters
    ----------
    loss : one of THRESHOLDS
    residual : (n,) float64, in units that make them equally large everywhere but for outliers; their size is
        estimated from the median of those that are fitted
    work : (n,) bool, the voxels that are fitted

    Source: Huber (1981), Robust Statistics, §7.6
    """
    if loss not in THRESHOLDS:
        raise DiffuseError(f"loss={loss}: choose from {', '.join(LOSSES)}")
    size = float(np.median(np.abs(residual[work]))) / _MEDIAN
    if size == 0:  # an exact fit has no outliers that could be told from the rest
        return Robust(np.ones(len(residual)), 1.0)
    weight, slope = _FUNCTIONS[loss]
    t = residual / (THRESHOLDS[loss] * size)
    w, e = weight(t), residual / size
    adjustment = np.mean((w * e)[work] ** 2) * np.mean(w[work])
    adjustment /= np.mean(slope(t)[work]) ** 2 * np.mean((w * e**2)[work])
    return Robust(w, float(adjustment))
