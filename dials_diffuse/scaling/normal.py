"""Normal equations of the scale model with the intensities of the unique voxels eliminated exactly.

For a voxel with observations i, weights w, counts per unit intensity u, residuals r without anisotropic part and
derivatives J_i, the intensity J = Σ w u r / (Σ w u² + 1/τ²) minimises the sum of squares; what remains for the
parameters is Σ w J_i J_iᵀ − m mᵀ / (Σ w u² + 1/τ²) with m = Σ w u J_i (variable projection). τ is the spread expected
of the anisotropic part: it lets voxels that were seen once compare with the isotropic profile.

Neighbouring voxels are alike. What neighbourhoods of several sizes have in common is eliminated after them in the same
way (:mod:`dials_diffuse.scaling.intensities`). Else a smooth scale takes true intensity for an error, and the
more voxels a neighbourhood has, the surer it is of it.

With a prior on J the best scales are not those of the smallest χ²: larger scales make J smaller, which the prior likes.
Integrated over J, the likelihood has the term Σ log(Σ w u² + 1/τ²), and those of neighbourhoods, that balance this;
they are part of "χ²" here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg.blas import dsyrk as syrk

from dials_diffuse.kernels.scaling import Design, add_normal, add_orbits
from dials_diffuse.scaling.intensities import Weights, levels_of, most_probable
from dials_diffuse.scaling.layout import S
from dials_diffuse.scaling.model import Prediction, ScaleModel
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.terms.base import Acts

#: unique voxels whose couplings are in memory together
_ORBITS = 2048


@dataclass(frozen=True)
class Normal:
    """χ²(θ + δ) ≈ chi2 − 2 vector·δ + δᵀ matrix δ; n observations."""

    matrix: np.ndarray
    vector: np.ndarray
    chi2: float
    n: int

    def at(self, step: np.ndarray) -> float:
        """χ² after a step (p,)."""
        return float(self.chi2 - 2 * self.vector @ step + step @ self.matrix @ step)


def add(parts) -> Normal:
    """The sum of normal equations of different voxels."""
    parts = list(parts)
    return Normal(
        sum(p.matrix for p in parts),
        sum(p.vector for p in parts),
        sum(p.chi2 for p in parts),
        sum(p.n for p in parts),
    )


def design(model: ScaleModel, data: Observations, prediction: Prediction, anisotropic) -> Design:
    """Derivatives of the expected counts by all parameters.

    anisotropic : (n,) float64, J of the voxel of each observation
    """
    unit, rows = prediction.unit, data.rows
    factors = {
        Acts.GAIN: prediction.isotropic + unit * anisotropic,
        Acts.SCALE: unit * (prediction.profile + anisotropic),
        Acts.OFFSET: prediction.gain * model.profile(rows.coordinates[:, S], True),
        Acts.PROFILE: unit * (1 + prediction.smooth),
        Acts.SMOOTH: unit * prediction.profile,
    }
    width = sum(b.width for b in model.blocks)
    design, at = Design(np.empty((data.n, width), dtype=np.int64), np.empty((data.n, width))), 0
    for b in model.blocks:
        b.fill(rows, factors[b.acts], design, at)
        at += b.width
    return design


def _neighbours(model: ScaleModel, index: np.ndarray) -> tuple:
    """An order in which rows with the same parameters are neighbours, and how many leading parameters they share.

    Terms in which hardly two rows are the same are left out; they are the last ones of the model.
    """
    key, at, n_shared = np.zeros(len(index), dtype=np.int64), 0, 0
    for b in model.blocks:
        if b.repeats:
            key = key * (b.size * b.n_sets) + index[:, at] - b.start
            at += b.width
            n_shared = at
    return np.argsort(key, kind="stable"), n_shared


def _slope_of_logarithm(model: ScaleModel, data: Observations, share: np.ndarray) -> np.ndarray:
    """(p,) half the derivative of the logarithms; share : (n,) float64, that of each row by the logarithm of u."""
    result = np.zeros(model.n_parameters)
    for b in model.blocks:
        if b.acts in (Acts.GAIN, Acts.SCALE):
            own = Design(np.empty((data.n, b.width), dtype=np.int64), np.empty((data.n, b.width)))
            b.fill(data.rows, share, own, 0)
            result += np.bincount(own.index.ravel(), own.value.ravel(), minlength=model.n_parameters)
    return result


def chi2(prediction: Prediction, data: Observations, weights: Weights) -> float:
    """Sum of squares that is left with the best intensities; prediction : of the data, see :func:`normal_equations`."""
    residual = data.net - prediction.expected
    return _objective(weights, residual, levels_of(prediction, data, weights, residual))


def _objective(weights: Weights, residual: np.ndarray, levels: list) -> float:
    result = np.sum(weights.weight * residual**2) - np.sum(np.log(weights.prior))
    for level in levels:
        result += np.sum(np.log(level.total)) - np.sum(level.net**2 / level.total)
    return float(result)


def normal_equations(model: ScaleModel, prediction: Prediction, data: Observations, weights: Weights) -> Normal:
    """Normal equations of some observations.

    prediction : of the data, by the model; weights : of the observations and priors of the voxels
    """
    weight, unit = weights.weight, prediction.unit
    smooth = prediction.smooth * prediction.profile
    residual = data.net - prediction.expected
    levels = levels_of(prediction, data, weights, residual)
    anisotropic, variance = most_probable(levels)[0]
    derivatives = design(model, data, prediction, anisotropic[data.orbit] + smooth)
    matrix, vector = np.zeros((model.n_parameters,) * 2), np.zeros(model.n_parameters)
    add_normal(derivatives, *_neighbours(model, derivatives.index), weight, residual, matrix, vector)
    vector -= _slope_of_logarithm(model, data, weight * unit**2 * variance[data.orbit])
    voxels, *others = levels
    above = np.zeros((len(others[0].net), model.n_parameters))
    for start in range(0, len(anisotropic), _ORBITS):
        mine = slice(start, min(start + _ORBITS, len(anisotropic)))
        rows = slice(*np.searchsorted(data.orbit, [mine.start, mine.stop]))
        coupling = np.zeros((mine.stop - mine.start, model.n_parameters))
        own = Design(derivatives.index[rows], derivatives.value[rows])
        add_orbits(own, weight[rows] * unit[rows], data.orbit[rows] - start, coupling)
        vector -= anisotropic[mine] @ coupling
        _add_to_parents(voxels.pull[mine], voxels.parent[mine], coupling, above)
        _subtract(coupling, voxels.total[mine], matrix)
    for level in others:
        coupling, above = above, np.zeros((int(level.parent.max()) + 1, model.n_parameters))
        _add_to_parents(level.pull, level.parent, coupling, above)
        _subtract(coupling, level.total, matrix)
    matrix += np.tril(matrix, -1).T
    matrix = np.triu(matrix)
    matrix += np.triu(matrix, 1).T
    return Normal(matrix, vector, _objective(weights, residual, levels), int(np.count_nonzero(weight)))


def _add_to_parents(pull: np.ndarray, parent: np.ndarray, coupling: np.ndarray, above: np.ndarray) -> None:
    """``above[parent] += pull coupling``; coupling : (k, p), above : (l, p) float64."""
    touched, place = np.unique(parent, return_inverse=True)
    above[touched] += sparse.csr_matrix((pull, (place.reshape(-1), np.arange(len(pull))))) @ coupling


def _subtract(coupling: np.ndarray, total: np.ndarray, matrix: np.ndarray) -> None:
    """Take what the values of a level explain from one half of the normal matrix; coupling (k, p) is overwritten."""
    coupling /= np.sqrt(total)[:, None]
    syrk(-1.0, coupling.T, 1.0, matrix.T, lower=1, overwrite_c=1)
