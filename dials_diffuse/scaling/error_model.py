"""Weights of observations, from the model and never from their counts, and outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.kernels.scaling import Residuals, deviations, orbit_sums, worst_deviation
from dials_diffuse.scaling.layout import S
from dials_diffuse.scaling.model import Prediction
from dials_diffuse.scaling.sample import Observations

N_SHELLS = 20

#: median of χ² with one degree of freedom
_MEDIAN_CHI2 = 0.4549

_LEAST_COUNTS = 0.05

#: of the anisotropic part, relative to the isotropic
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class ErrorModel:
    """Variance of counts that the model expects: Poisson, background, and a share of the signal.

    Attributes
    ----------
    shells : (k + 1,) float64, |s| from shell to shell
    excess : (k,) float64, relative error that comes from sampling: a voxel's observations see different parts of it
    spread : (k,) float64, standard deviation of the anisotropic part relative to the isotropic
    """

    shells: np.ndarray
    excess: np.ndarray
    spread: np.ndarray

    def shell(self, s: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.shells, s, side="right") - 1, 0, len(self.spread) - 1)

    def expected(self, prediction: Prediction, background: np.ndarray) -> np.ndarray:
        """(n,) expected counts without anisotropic part, never from the observed ones: that would bias weak data."""
        return np.maximum(prediction.isotropic + background, _LEAST_COUNTS)

    def variance(self, prediction: Prediction, background, background_variance, s) -> np.ndarray:
        """(n,) variance of the counts of observations."""
        relative = self.excess[self.shell(s)] * prediction.unit * prediction.profile
        return self.expected(prediction, background) + background_variance + relative**2

    def prior(self, s: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """(m,) 1 / variance of the anisotropic part of voxels at |s| where the isotropic part is ``profile``."""
        level = np.maximum(profile, 1e-3 * float(np.mean(np.abs(profile))) + 1e-300)
        return (self.spread[self.shell(s)] * level) ** -2.0


@dataclass(frozen=True)
class Weights:
    """Weights of observations (n,), zero when rejected, and the priors of voxels (m,)."""

    weight: np.ndarray
    prior: np.ndarray


def first_error_model(data: Observations) -> ErrorModel:
    """Equal numbers of observations in each shell, an anisotropic part of a fifth."""
    shells = np.quantile(data.coordinates[:, S], np.linspace(0, 1, N_SHELLS + 1))
    return ErrorModel(shells, np.zeros(N_SHELLS), np.full(N_SHELLS, 0.2))


def weigh(prediction: Prediction, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> Weights:
    """Weights from the present model; prediction : of the data by it; rejected : (n,) bool."""
    variance = errors.variance(prediction, data.background, data.background_variance, data.coordinates[:, S])
    first = np.searchsorted(data.orbit, np.arange(len(data.unique)))
    prior = errors.prior(data.s_voxel[first], prediction.profile_at_voxel[first])
    return Weights(np.where(rejected, 0.0, 1 / variance), prior)


def update_errors(prediction: Prediction, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> ErrorModel:
    """Excess from the median of squared deviations in each shell, spread from the variance between voxels.

    Arguments as for :func:`weigh`.
    """
    weights = weigh(prediction, data, errors, rejected)
    w, unit = weights.weight, prediction.unit
    residual = data.net - prediction.expected
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(Residuals(data.orbit, w, residual, unit), rejected, sums)
    measured = sums[:, 1] > 0
    anisotropic = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=measured)
    error = np.divide(1, sums[:, 1], out=np.zeros(len(sums)), where=measured)
    first = np.searchsorted(data.orbit, np.arange(len(data.unique)))
    level = np.maximum(prediction.profile_at_voxel[first], 1e-12)
    shell_of_voxel, shell = errors.shell(data.s_voxel[first]), errors.shell(data.coordinates[:, S])
    leverage = w * unit**2 * error[data.orbit]
    usable = (w > 0) & (leverage < 0.7)
    r2 = (residual - unit * anisotropic[data.orbit]) ** 2 / np.maximum(1 - leverage, 0.1)
    poisson = errors.expected(prediction, data.background) + data.background_variance
    signal = (unit * prediction.profile) ** 2
    excess, spread = errors.excess.copy(), errors.spread.copy()
    for k in range(len(spread)):
        mine = usable & (shell == k)
        if np.count_nonzero(mine) > 100:
            excess[k] = _excess(r2[mine], poisson[mine], signal[mine])
        voxels = measured & (shell_of_voxel == k)
        if np.count_nonzero(voxels) > 100:  # a step of expectation maximisation: never negative, stable
            inverse = sums[voxels, 1] + weights.prior[voxels]
            mean = sums[voxels, 0] / inverse
            spread[k] = np.sqrt(np.clip(np.mean((mean**2 + 1 / inverse) / level[voxels] ** 2), _LEAST_SPREAD**2, 1.0))
    return replace(errors, excess=excess, spread=spread)


def _excess(r2, poisson, signal) -> float:
    """Relative error for which the median of r² / variance is that of χ²; 0 where Poisson noise explains it all."""
    low, high = 0.0, 1.0
    if np.median(r2 / poisson) <= _MEDIAN_CHI2:
        return 0.0
    for _ in range(20):
        middle = (low + high) / 2
        if np.median(r2 / (poisson + middle**2 * signal)) > _MEDIAN_CHI2:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def find_outliers(prediction: Prediction, data: Observations, errors: ErrorModel, n_sigma: float) -> np.ndarray:
    """(n,) bool, observations that deviate by more than ``n_sigma`` from what the others of their voxel predict.

    In each round only the worst observation of a voxel goes: a wrong one makes its mates look wrong. What was rejected
    before comes back when it fits.
    """
    if n_sigma == 0:
        return np.zeros(data.n, dtype=bool)
    weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
    residual = data.net - prediction.isotropic
    return reject(data.orbit, weights.weight, residual, prediction.unit, data.counts, weights.prior, n_sigma)


def reject(orbit, weight, residual, unit, counts, prior, n_sigma: float, rounds: int = 4) -> np.ndarray:
    """The rounds of :func:`find_outliers` on plain arrays, see ``kernels.scaling.deviations``."""
    residuals, rejected = Residuals(orbit, weight, residual, unit), np.zeros(len(orbit), dtype=bool)
    deviation = np.empty(len(orbit), dtype=np.float32)
    for _ in range(rounds):
        sums = np.zeros((len(prior), 2))
        orbit_sums(residuals, rejected, sums)
        deviations(residuals, rejected, counts, _LEAST_COUNTS, prior, sums, deviation)
        worst = np.zeros(len(prior), dtype=np.float32)
        worst_deviation(orbit, deviation, rejected, n_sigma, worst)
        bad = np.flatnonzero(deviation > n_sigma)
        bad = bad[rejected[bad] | (deviation[bad] >= worst[orbit[bad]])]
        if np.count_nonzero(rejected) == len(bad) and rejected[bad].all():
            break
        rejected[:] = False
        rejected[bad] = True
    return rejected
