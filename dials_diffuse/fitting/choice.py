"""Which of several fitted models is the best?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.agreement import anisotropic_parts
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.result import Fit
from dials_diffuse.maps.shells import correlation_of_sums


@dataclass(frozen=True)
class Choice:
    """The best of several models, and why.

    Attributes
    ----------
    best : Fit
    criterion : ``free``: correlations on free voxels, the BIC among equals; ``bic``: no voxel is free
    below : for each model, how far its free correlation is below the highest; NaN without free voxels
    errors : of these differences; NaN if there are fewer than two free blocks to tell
    warnings : tuple of str
    """

    best: Fit
    criterion: str
    below: tuple
    errors: tuple
    warnings: tuple = ()

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

    fits : of whatever kind, to the same data

    Notes
    -----
    The error of the difference of two correlations is that of the delete-one jackknife (Efron & Stein 1981) over the
    free blocks: what both models miss alike cancels, and voxels of one block need not be independent.
    """
    fits = list(fits)
    sums = np.array([_sums(data, fit.fitted) for fit in fits])
    free = correlation_of_sums(*sums.sum(axis=1).T)
    possible = np.array([fit.scale.value > 0 for fit in fits])
    warnings: tuple = ()
    if not possible.any():
        warnings = ("the scales of all models are negative or 0: the data contradict all of them",)
        possible[:] = True
    if not np.isfinite(free[possible]).any():
        chosen = [fit for fit, use in zip(fits, possible) if use]
        nothing = (math.nan,) * len(fits)
        return Choice(min(chosen, key=lambda f: f.criteria["bic"]), "bic", nothing, nothing, warnings)
    highest = int(np.argmax(np.where(possible & np.isfinite(free), free, -np.inf)))
    errors = np.array([jackknife_error(sums[highest], own) for own in sums])
    errors[highest] = 0.0
    below = free[highest] - free
    # differences whose error nobody knows are within it
    near = possible & (~np.isfinite(errors) | (below <= errors)) & np.isfinite(free)
    best = min((fit for fit, use in zip(fits, near) if use), key=lambda f: f.criteria["bic"])
    return Choice(best, "free", tuple(below.tolist()), tuple(errors.tolist()), warnings)


def jackknife_error(first: np.ndarray, second: np.ndarray) -> float:
    """Standard error of the difference of two correlations; NaN of fewer than two blocks.

    first, second : (B, 3) float64, for each block the sums of x², xy and y²
    """
    number = len(first)
    if number < 2:
        return math.nan
    left_out = [correlation_of_sums(*(sums.sum(axis=0) - sums).T) for sums in (first, second)]
    differences = left_out[0] - left_out[1]
    return math.sqrt((number - 1) / number * float(np.sum((differences - differences.mean()) ** 2)))


def _sums(data: FitData, fitted: np.ndarray) -> np.ndarray:
    """(B, 3) float64, sums of x², xy, y² over each free block, x and y the anisotropic parts of data and model."""
    x, y = (part[data.free] for part in anisotropic_parts(data, fitted))
    _, block = np.unique(data.block[data.free], return_inverse=True)
    return np.array([np.bincount(block.reshape(-1), product) for product in (x * x, x * y, y * y)]).T
