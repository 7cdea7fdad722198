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
from scipy.linalg.blas import dsyrk as syrk

from dials_diffuse.kernels.scaling import Design, add_dense, add_gradient, add_to_parents, add_upper, number_columns
from dials_diffuse.scaling.intensities import Level, Weights, levels_of, most_probable
from dials_diffuse.scaling.layout import Rows, S
from dials_diffuse.scaling.model import Prediction, ScaleModel
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.terms.base import Acts

#: observations, and unique voxels, that are multiplied together: many for the BLAS, few that touch few parameters
_TOGETHER = 1024

#: order of the factors
_ACTS = list(Acts)


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


def basis_of(blocks, rows: Rows) -> Design:
    """The functions of some terms at some observations: derivatives by the coefficients, for a factor of 1."""
    n, width = len(rows.experiment), sum(b.width for b in blocks)
    design, at, one = Design(np.empty((n, width), dtype=np.int64), np.empty((n, width))), 0, np.ones(n)
    for b in blocks:
        b.fill(rows, one, design, at)
        at += b.width
    return design


def _factors(model: ScaleModel, data: Observations, prediction: Prediction, anisotropic) -> np.ndarray:
    """(5, n) float64, derivatives of the expected counts by the value of terms, one row for each of ``Acts``.

    anisotropic : (n,) float64, J of the voxel of each observation
    """
    unit = prediction.unit
    factors = {
        Acts.GAIN: prediction.isotropic + unit * anisotropic,
        Acts.SCALE: unit * (prediction.profile + anisotropic),
        Acts.OFFSET: prediction.gain * model.profile(data.coordinates[:, S], True),
        Acts.PROFILE: unit * (1 + prediction.smooth),
        Acts.SMOOTH: unit * prediction.profile,
    }
    return np.stack([factors[acts] for acts in _ACTS])


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

    An observation touches few of the parameters, and so do those that are multiplied together, if they are neighbours:
    voxels are best in the order of |s|.

    prediction : of the data, by the model; weights : of the observations and priors of the voxels
    """
    weight, unit = weights.weight, prediction.unit
    residual = data.net - prediction.expected
    levels = levels_of(prediction, data, weights, residual)
    anisotropic, variance = (x[data.orbit] for x in most_probable(levels)[0])
    factors = _factors(model, data, prediction, anisotropic + prediction.smooth * prediction.profile)
    gradient = factors * (weight * (residual - unit * anisotropic))
    for acts in (Acts.GAIN, Acts.SCALE):  # half the derivative of the logarithms
        gradient[_ACTS.index(acts)] -= weight * unit**2 * variance
    sums = _Sums(model)
    sums.add_rows(data, factors * np.sqrt(weight), gradient)
    above = sums.subtract_voxels(data, factors * (weight * unit), levels[0], len(levels[1].net))
    for level in levels[1:]:
        above = sums.subtract(level, above)
    return Normal(sums.whole(), sums.vector, _objective(weights, residual, levels), int(np.count_nonzero(weight)))


class _Sums:
    """The upper half of a normal matrix, and the gradient, while they are added up."""

    def __init__(self, model: ScaleModel):
        p = model.n_parameters
        self.blocks, self.matrix, self.vector = model.blocks, np.zeros((p, p)), np.zeros(p)
        self._acts = np.repeat([_ACTS.index(b.acts) for b in model.blocks], [b.width for b in model.blocks])
        self._place, self._columns, self._buffer = np.empty(p, np.int64), np.empty(p, np.int64), np.empty(_TOGETHER * p)

    def _dense(self, design: Design, factors: np.ndarray, slot: np.ndarray, n: int) -> tuple:
        """(n, c) float64, sums of rows of a design with the same slot, and (c,) parameters that are touched."""
        columns = self._columns[: number_columns(design.index, self._place, self._columns)]
        rows = self._buffer[: n * len(columns)].reshape(n, len(columns))
        rows[:] = 0.0
        add_dense(design, self._acts, factors, slot, self._place, rows)
        return rows, columns

    def add_rows(self, data: Observations, factors: np.ndarray, gradient: np.ndarray) -> None:
        """Σ J Jᵀ and Σ g J; factors : of J, the root of the weight included; gradient : those with g."""
        order, alike = data.alike
        factors, gradient = (np.ascontiguousarray(x[:, order]) for x in (factors, gradient))
        for start in range(0, data.n, _TOGETHER):
            mine = slice(start, start + _TOGETHER)
            design = basis_of(self.blocks, alike.at(mine))
            n = len(design.index)
            rows, columns = self._dense(design, factors[:, mine], np.arange(n), n)
            add_gradient(design, self._acts, gradient[:, mine], self.vector)
            add_upper(syrk(1.0, rows.T, lower=1).T, columns, self.matrix)

    def subtract_voxels(self, data: Observations, factors: np.ndarray, level: Level, n_above: int) -> np.ndarray:
        """Take off what intensities of voxels explain; returns (n_above, p) float64, couplings of the next level.

        factors : of J times the weight and the counts per unit of intensity
        """
        above = np.zeros((n_above, len(self.vector)))
        for start in range(0, len(level.net), _TOGETHER):
            mine = slice(start, min(start + _TOGETHER, len(level.net)))
            rows = slice(*np.searchsorted(data.orbit, [mine.start, mine.stop]))
            design = basis_of(self.blocks, data.rows.at(rows))
            slot = data.orbit[rows] - start
            coupling, columns = self._dense(design, factors[:, rows], slot, mine.stop - start)
            add_to_parents(level.pull[mine], level.parent[mine], columns, coupling, above)
            coupling /= np.sqrt(level.total[mine])[:, None]
            add_upper(syrk(-1.0, coupling.T, lower=1).T, columns, self.matrix)
        return above

    def subtract(self, level: Level, coupling: np.ndarray) -> np.ndarray:
        """The same of a level of neighbourhoods; coupling : (k, p) float64, is overwritten."""
        above = np.zeros((int(level.parent.max()) + 1, len(self.vector)))
        add_to_parents(level.pull, level.parent, np.arange(len(self.vector)), coupling, above)
        coupling /= np.sqrt(level.total)[:, None]
        syrk(-1.0, coupling.T, 1.0, self.matrix.T, lower=1, overwrite_c=1)
        return above

    def whole(self) -> np.ndarray:
        """(p, p) float64, the symmetric matrix."""
        return np.triu(self.matrix) + np.triu(self.matrix, 1).T
