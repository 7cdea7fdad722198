"""How well do scaled observations agree? By rotation, and between crystals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.kernels.scaling import Residuals, orbit_sums
from dials_diffuse.maps.shells import correlation, less_group_means
from dials_diffuse.scaling.error_model import ErrorModel, weigh, whole_prior
from dials_diffuse.scaling.layout import T
from dials_diffuse.scaling.model import Prediction
from dials_diffuse.scaling.sample import Observations

#: rotation that a batch spans at least, degrees
BATCH_ANGLE = 1.0


@dataclass(frozen=True)
class Batch:
    """Agreement of the observations of some images with the others of their voxels.

    Attributes
    ----------
    experiment : int; first, last : image numbers, inclusive
    n : observations; chi2 : per observation; outliers : fraction rejected
    """

    experiment: int
    first: int
    last: int
    n: int
    chi2: float
    outliers: float


def residuals_by_batch(
    prediction: Prediction, data: Observations, errors: ErrorModel, experiments, rejected: np.ndarray
) -> list:
    """Residuals of the refined observations in batches of at least BATCH_ANGLE degrees.

    Parameters
    ----------
    prediction : of the data
    experiments : ExperimentSummary of each
    rejected : (n,) bool

    Returns
    -------
    list of Batch, without those that have no observations
    """
    weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
    residual, unit = data.net - prediction.isotropic, prediction.unit
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(Residuals(data.orbit, weights.weight, residual, unit), rejected, sums)
    total = (sums[:, 1] + whole_prior(data, prediction, errors))[data.orbit]
    leverage = np.where(rejected, 0.0, weights.weight * unit**2 / total)
    r2 = weights.weight * (residual - unit * sums[data.orbit, 0] / total) ** 2 / np.maximum(1 - leverage, 0.05)
    batches = []
    for number, e in enumerate(experiments):
        first, last = e.image_range
        n_images = last - first + 1
        size = max(1, round(BATCH_ANGLE / abs(e.oscillation[1])))
        mine = data.experiment == number
        image = np.clip((data.coordinates[mine, T] * n_images).astype(int), 0, n_images - 1)
        n_batches = -(-n_images // size)
        good = ~rejected[mine]
        n = np.bincount(image // size, minlength=n_batches)
        used = np.bincount(image[good] // size, minlength=n_batches)
        chi2 = np.bincount(image[good] // size, r2[mine][good], minlength=n_batches)
        for k in np.flatnonzero(n):
            batches.append(
                Batch(
                    experiment=number,
                    first=first + int(k) * size,
                    last=min(first + (int(k) + 1) * size - 1, last),
                    n=int(n[k]),
                    chi2=float(chi2[k] / max(used[k], 1)),
                    outliers=float(1 - used[k] / n[k]),
                )
            )
    return batches


def crystal_correlations(
    prediction: Prediction, data: Observations, errors: ErrorModel, n_experiments: int, rejected: np.ndarray
) -> np.ndarray:
    """(e, e) correlation of the anisotropic part of the scaled intensities between experiments, on common voxels.

    Means in shells of |s| are taken off on both sides: what is left of the isotropic part is no agreement. Arguments
    as for :func:`residuals_by_batch`.
    """
    weights = weigh(prediction, data, errors, rejected)
    residual, unit = data.net - prediction.isotropic, prediction.unit
    n = len(data.unique)
    sums = np.zeros((n * n_experiments, 2))
    orbit = data.orbit * n_experiments + data.experiment
    orbit_sums(Residuals(orbit, weights.weight, residual, unit), rejected, sums)
    seen = sums[:, 1] > 0
    values = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=seen)
    values, seen = values.reshape(n, -1), seen.reshape(n, -1)
    first = np.searchsorted(data.orbit, np.arange(n))
    shell = errors.shell(data.s_voxel[first])
    result = np.full((n_experiments, n_experiments), np.nan)
    for i in range(n_experiments):
        result[i, i] = 1.0
        for j in range(i):
            both = seen[:, i] & seen[:, j]
            if np.count_nonzero(both) < 10:
                continue
            x, y = (less_group_means(values[both, k], shell[both]) for k in (i, j))
            result[i, j] = result[j, i] = correlation(x, y)
    return result
