"""How well is the scale of an observation known? From what data and priors say of the coefficients of the terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.kernels.normal import quadratic_forms
from dials_diffuse.kernels.scaling import Design
from dials_diffuse.scaling.layout import S, T, X, Y
from dials_diffuse.scaling.model import Prediction, ScaleModel
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.terms.base import Acts

#: expected counts, of their mean, that errors are relative to at least
_LEAST = 1e-3

#: cells along the rotation of a sweep and along each edge of the detector, and observations in which they are filled
_CELLS = (24, 8, 8)
_ROWS = 30_000


@dataclass(frozen=True)
class ScaleErrors:
    """Relative variance of the scale, of gain, scale of the crystal and offset together, in cells of each sweep.

    Attributes
    ----------
    variance : (e, t, y, x) float64, over rotation and detector
    rms : of the observations, its root of the mean
    """

    variance: np.ndarray
    rms: float

    def at(self, coordinates: np.ndarray, experiment: np.ndarray) -> np.ndarray:
        """(n,) float64, relative variance; coordinates : (n, N_COORDINATES), experiment : (n,) int, see Rows."""
        return self.variance[(experiment, *_cells(coordinates))]


def no_scale_errors(n_sweeps: int) -> ScaleErrors:
    """Of a model without terms."""
    return ScaleErrors(np.zeros((n_sweeps, 1, 1, 1)) + np.zeros(_CELLS), 0.0)


def scale_errors(
    model: ScaleModel, data: Observations, prediction: Prediction, covariance: np.ndarray, n_sweeps: int
) -> ScaleErrors:
    """Variances of a choice of observations, averaged in cells; a cell without any gets the mean of its sweep.

    Parameters
    ----------
    prediction : of the data, by the model
    covariance : (p, p) float64, of the coefficients

    Source: docs/theory.md, Scaling
    """
    if not model.of_experiment:
        return no_scale_errors(n_sweeps)
    some = np.arange(0, data.n, max(1, data.n // _ROWS))
    relative = _relative(model, data, prediction, some, covariance)
    shape = (n_sweeps, *_CELLS)
    cell = np.ravel_multi_index((data.experiment[some], *_cells(data.coordinates[some])), shape)
    number = np.bincount(cell, minlength=np.prod(shape)).reshape(shape)
    total = np.bincount(cell, relative, np.prod(shape)).reshape(shape)
    mean = total.sum(axis=(1, 2, 3)) / np.maximum(number.sum(axis=(1, 2, 3)), 1)
    variance = np.where(number > 0, total / np.maximum(number, 1), mean[:, None, None, None])
    return ScaleErrors(variance, float(np.sqrt(relative.mean())))


def _cells(coordinates: np.ndarray) -> tuple:
    return tuple(np.clip((coordinates[:, c] * n).astype(int), 0, n - 1) for c, n in zip((T, Y, X), _CELLS))


def _relative(model: ScaleModel, data: Observations, prediction: Prediction, some, covariance) -> np.ndarray:
    """(k,) relative variance of the expected counts of some observations, at a given isotropic part of the crystal."""
    rows, isotropic = data.rows.at(some), prediction.isotropic[some]
    # a model that expects nothing somewhere, or less, is wrong there, and an error relative to it means nothing
    isotropic = np.maximum(isotropic, max(_LEAST * float(np.mean(np.abs(isotropic))), np.finfo(float).tiny))
    factors = {
        Acts.GAIN: np.ones(len(some)),
        Acts.SCALE: prediction.unit[some] * prediction.profile[some] / isotropic,
        Acts.OFFSET: prediction.gain[some] * model.profile(rows.coordinates[:, S], True) / isotropic,
    }
    width, at = sum(b.width for b in model.of_experiment), 0
    design = Design(np.empty((len(some), width), dtype=np.int64), np.empty((len(some), width)))
    for block in model.of_experiment:
        block.fill(rows, factors[block.acts], design, at)
        at += block.width
    result = np.empty(len(some))
    quadratic_forms(design, covariance, result)
    return result
