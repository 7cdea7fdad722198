"""Which of several fitted models is the best?"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Fit
from dials_diffuse.maps.shells import shell_residual

logger = logging.getLogger("dials.diffuse.fit")


@dataclass(frozen=True)
class Choice:
    """The best of several models, and why.

    Attributes
    ----------
    best : Fit
    criterion : ``free``: correlations on free voxels, the BIC among equals; ``bic``: no voxel is free
    below : for each model, how far its free correlation is below the highest; NaN without free voxels
    errors : of these differences; NaN if there are fewer than two free blocks to tell
    """

    best: Fit
    criterion: str
    below: tuple
    errors: tuple

    def record(self, fits) -> dict:
        """What ``diffuse_fit.json`` says about it."""
        models = [
            {"model": fit.name, "below_highest": below, "error": error}
            for fit, below, error in zip(fits, self.below, self.errors)
        ]
        return {"criterion": self.criterion, "models": models}


def choose(fits, data: FitData) -> Choice:
    """The model with the highest correlation of the anisotropic part on free voxels.

    Of models that are less than one standard error of the difference below it, or where no voxel is free, the one with
    the lowest BIC. A model with a scale that is not positive is the best only if all are so.

    Notes
    -----
    The error of the difference of two correlations is that of the delete-one jackknife (Efron & Stein 1981) over the
    free blocks: what both models miss alike cancels, and voxels of one block need not be independent.
    """
    fits = list(fits)
    sums = np.array([_sums(data, fit.fitted) for fit in fits])
    free = _correlation(sums.sum(axis=1))
    possible = np.array([fit.scale.value > 0 for fit in fits])
    if not possible.any():
        logger.warning("Warning: the scales of all models are negative or 0: the data contradict all of them")
        possible[:] = True
    if not np.isfinite(free[possible]).any():
        chosen = [fit for fit, use in zip(fits, possible) if use]
        nothing = (math.nan,) * len(fits)
        return Choice(min(chosen, key=lambda f: f.criteria["bic"]), "bic", nothing, nothing)
    highest = int(np.argmax(np.where(possible & np.isfinite(free), free, -np.inf)))
    errors = np.array([jackknife_error(sums[highest], own) for own in sums])
    errors[highest] = 0.0
    below = free[highest] - free
    # differences whose error nobody knows are within it
    near = possible & (~np.isfinite(errors) | (below <= errors)) & np.isfinite(free)
    best = min((fit for fit, use in zip(fits, near) if use), key=lambda f: f.criteria["bic"])
    return Choice(best, "free", tuple(below.tolist()), tuple(errors.tolist()))


def jackknife_error(first: np.ndarray, second: np.ndarray) -> float:
    """Standard error of the difference of two correlations; NaN of fewer than two blocks.

    first, second : (B, 3) float64, for each block the sums of x², xy and y²
    """
    number = len(first)
    if number < 2:
        return math.nan
    left_out = [_correlation(sums.sum(axis=0) - sums) for sums in (first, second)]
    differences = left_out[0] - left_out[1]
    return math.sqrt((number - 1) / number * float(np.sum((differences - differences.mean()) ** 2)))


def _sums(data: FitData, fitted: np.ndarray) -> np.ndarray:
    """(B, 3) float64, sums of x², xy, y² over each free block, x and y the anisotropic parts of data and model."""
    x, y = (shell_residual(values, data.s)[data.free] for values in (data.intensity, fitted))
    _, block = np.unique(data.block[data.free], return_inverse=True)
    return np.array([np.bincount(block.reshape(-1), product) for product in (x * x, x * y, y * y)]).T


def _correlation(sums: np.ndarray) -> np.ndarray:
    """(...) of (..., 3) sums of x², xy, y²; NaN where there is nothing to correlate."""
    xx, xy, yy = np.moveaxis(sums, -1, 0)
    product = xx * yy
    return np.divide(xy, np.sqrt(np.maximum(product, 0)), out=np.full(np.shape(xy), np.nan), where=product > 0)
