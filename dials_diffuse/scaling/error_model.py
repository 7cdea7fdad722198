"""Weights of observations, from the model and never from their counts, and outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.kernels.scaling import Residuals, deviations, orbit_sums, worst_deviation
from dials_diffuse.scaling.intensities import Weights, levels_of, own_squares, sizes_tell
from dials_diffuse.scaling.layout import S
from dials_diffuse.scaling.model import Prediction
from dials_diffuse.scaling.sample import TIMES, Observations

N_SHELLS = 20

#: median of χ² with one degree of freedom
_MEDIAN_CHI2 = 0.4549

_LEAST_COUNTS = 0.05

#: of the anisotropic part, relative to the isotropic
_LEAST_SPREAD = 1e-3

#: standard deviations of the anisotropic part that count as one for outliers
_TAILS = 3.0

#: width of a band of |s|, 1/Å, and the number of blocks in it that count as much as the mean of all bands
_BAND, _FEW = 0.1, 5


@dataclass(frozen=True)
class ErrorModel:
    """Variance of counts that the model expects: Poisson, background, and a share of the signal.

    Attributes
    ----------
    shells : (k + 1,) float64, |s| from shell to shell
    excess : (k,) float64, relative error that comes from sampling: a voxel's observations see different parts of it
    spread : (k,) float64, standard deviation of the own part of a voxel's anisotropic part, relative to the isotropic
    bands : (l + 1,) float64, |s| from band to band: there are fewer blocks than voxels
    common : (3, l) float64, standard deviation of what neighbourhoods have in common, the smallest first, each without
        what the next larger one has, relative to the isotropic part
    tails : (k,) float64, 0 … 1, how much the size of the anisotropic part tells of the scale, of what it would tell if
        its distribution were normal
    """

    shells: np.ndarray
    excess: np.ndarray
    spread: np.ndarray
    bands: np.ndarray
    common: np.ndarray
    tails: np.ndarray

    def shell(self, s: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.shells, s, side="right") - 1, 0, len(self.spread) - 1)

    def band(self, s: np.ndarray) -> np.ndarray:
        return np.clip(np.searchsorted(self.bands, s, side="right") - 1, 0, len(self.bands) - 2)

    def expected(self, prediction: Prediction, background: np.ndarray) -> np.ndarray:
        """(n,) expected counts without anisotropic part, never from the observed ones: that would bias weak data."""
        return np.maximum(prediction.isotropic + background, _LEAST_COUNTS)

    def variance(self, prediction: Prediction, background, background_variance, s) -> np.ndarray:
        """(n,) variance of the counts of observations."""
        relative = self.excess[self.shell(s)] * prediction.unit * prediction.profile
        return self.expected(prediction, background) + background_variance + relative**2

    @property
    def size(self) -> float:
        """Standard deviation of the anisotropic part, relative to the isotropic, in a usual shell."""
        return float(np.median(self._relative((self.shells[1:] + self.shells[:-1]) / 2)))

    def _relative(self, s: np.ndarray) -> np.ndarray:
        return np.sqrt(self.spread[self.shell(s)] ** 2 + np.sum(self.common**2, axis=0)[self.band(s)])

    def prior(self, s: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """(m,) 1 / variance of the anisotropic part of voxels at |s| where the isotropic part is ``profile``."""
        return (self._relative(s) * _floor(profile)) ** -2.0

    def outlier_prior(self, s: np.ndarray, profile: np.ndarray) -> np.ndarray:
        """(m,) 1 / variance of the anisotropic part that outliers are measured by; arguments as for :meth:`prior`.

        The anisotropic part is not normal: it has few values, of many times its rms, which are most of what the map is
        made for. Where no other observation vouches for them, they must not be taken for outliers.
        """
        return self.prior(s, profile) / _TAILS**2


def _floor(profile: np.ndarray) -> np.ndarray:
    return np.maximum(profile, 1e-3 * float(np.mean(np.abs(profile))) + 1e-300)


def first_error_model(data: Observations) -> ErrorModel:
    """Equal numbers of observations in each shell, an anisotropic part of a fifth."""
    shells = np.quantile(data.coordinates[:, S], np.linspace(0, 1, N_SHELLS + 1))
    low, high = shells[0], shells[-1]
    n_bands = int(np.clip((high - low) / _BAND, 1, N_SHELLS))
    bands, common = np.linspace(low, high, n_bands + 1), np.full((len(TIMES), n_bands), 0.05)
    return ErrorModel(shells, np.zeros(N_SHELLS), np.full(N_SHELLS, 0.2), bands, common, np.ones(N_SHELLS))


def weigh(prediction: Prediction, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> Weights:
    """Weights from the present model; prediction : of the data by it; rejected : (n,) bool."""
    variance = errors.variance(prediction, data.background, data.background_variance, data.coordinates[:, S])
    first = data.first
    s = data.s_voxel[first]
    spread = errors.spread[errors.shell(s)]
    prior = (spread * _floor(prediction.profile_at_voxel[first])) ** -2.0
    common, own = [], spread
    for above, band, parent in zip(errors.common, _bands(data, errors, s), data.parents):
        common.append(above[band][parent] / own)
        own = above[band]
    held = 1 - errors.tails[errors.shell(s)]
    return Weights(np.where(rejected, 0.0, 1 / variance), prior, tuple(common), prediction.unit, held)


def _bands(data: Observations, errors: ErrorModel, s: np.ndarray) -> list:
    """[(k,) int, band of each neighbourhood, by the mean |s| of its members] of each size; s : (m,) of voxels."""
    result = []
    for parent in data.parents:
        s = np.bincount(parent, s) / np.bincount(parent)
        result.append(errors.band(s))
    return result


def update_errors(prediction: Prediction, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> ErrorModel:
    """Excess from the median of squared deviations in each shell, spread from the variance between voxels.

    Arguments as for :func:`weigh`.
    """
    weights = weigh(prediction, data, errors, rejected)
    w, unit = weights.weight, prediction.unit
    residual = data.net - prediction.expected
    levels = levels_of(prediction, data, weights, residual)
    net, square = levels[0].net, levels[0].square
    measured = square > 0
    anisotropic, error = (np.divide(x, square, out=np.zeros(len(net)), where=measured) for x in (net, measured))
    first = data.first
    level = np.maximum(prediction.profile_at_voxel[first], 1e-12)
    shell_of_voxel, shell = errors.shell(data.s_voxel[first]), errors.shell(data.coordinates[:, S])
    leverage = w * unit**2 * error[data.orbit]
    usable = (w > 0) & (leverage < 0.7)
    r2 = (residual - unit * anisotropic[data.orbit]) ** 2 / np.maximum(1 - leverage, 0.1)
    poisson = errors.expected(prediction, data.background) + data.background_variance
    signal = (unit * prediction.profile) ** 2
    own, *others = own_squares(levels)  # a step of expectation maximisation: never negative, stable
    known, told = square / (square + whole_prior(data, prediction, errors)), sizes_tell(levels)
    excess, spread, tails = errors.excess.copy(), errors.spread.copy(), errors.tails.copy()
    for k in range(len(spread)):
        mine = usable & (shell == k)
        if np.count_nonzero(mine) > 100:
            excess[k] = _excess(r2[mine], poisson[mine], signal[mine])
        voxels = measured & (shell_of_voxel == k)
        if np.count_nonzero(voxels) > 100:
            spread[k] = np.sqrt(np.clip(np.mean(own[voxels] / level[voxels] ** 2), _LEAST_SPREAD**2, 1.0))
            tails[k] = min(2 * np.mean(known[voxels] ** 2) / np.mean(told[voxels] ** 2), 1.0)
    growth = [
        _growth(x, band, errors.common.shape[1]) for x, band in zip(others, _bands(data, errors, data.s_voxel[first]))
    ]
    common = np.clip(errors.common * np.sqrt(growth), _LEAST_SPREAD, 1.0)
    return replace(errors, excess=excess, spread=spread, common=common, tails=tails)


def _growth(square: np.ndarray, band: np.ndarray, n_bands: int) -> np.ndarray:
    """(l,) mean of (k,) squares in each band; one with few of them takes something of the mean of all."""
    number, total = np.bincount(band, minlength=n_bands), np.bincount(band, square, n_bands)
    return (total + _FEW * square.mean()) / (number + _FEW)


def _excess(r2, poisson, signal) -> float:
    """Relative error for which the median of r² / variance is that of χ²; 0 where Poisson noise explains it all.

    Each r² has a relative error at which its share of the variance is the wanted one; half of these are larger.
    """
    square = np.median((r2 / _MEDIAN_CHI2 - poisson) / np.maximum(signal, 1e-300))
    return float(np.sqrt(np.clip(square, 0.0, 1.0)))


def find_outliers(prediction: Prediction, data: Observations, errors: ErrorModel, n_sigma: float) -> np.ndarray:
    """(n,) bool, observations that deviate by more than ``n_sigma`` from what the others of their voxel predict.

    In each round only the worst observation of a voxel goes: a wrong one makes its mates look wrong. What was rejected
    before comes back when it fits.
    """
    if n_sigma == 0:
        return np.zeros(data.n, dtype=bool)
    weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
    residual = data.net - prediction.isotropic
    return reject(
        data.orbit,
        weights.weight,
        residual,
        prediction.unit,
        data.counts,
        whole_prior(data, prediction, errors),
        n_sigma,
    )


def whole_prior(data: Observations, prediction: Prediction, errors: ErrorModel) -> np.ndarray:
    """(m,) ErrorModel.prior of the voxels."""
    first = data.first
    return errors.prior(data.s_voxel[first], prediction.profile_at_voxel[first])


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
