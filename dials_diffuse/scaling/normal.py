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
they are part of "χ²" here. What the size of J says of a scale that all observations of a voxel share is reduced to what
its long tails allow (:func:`~dials_diffuse.scaling.intensities.held_unit`): in the gradient, the matrix has all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import dsyrk as syrk

from dials_diffuse.kernels.normal import (
    add_dense,
    add_gradient,
    add_patterns_to_parents,
    add_to_parents,
    add_upper,
    number_columns,
    voxel_sums,
)
from dials_diffuse.kernels.scaling import Design
from dials_diffuse.scaling.intensities import Level, Weights, levels_of, most_probable, sizes_tell
from dials_diffuse.scaling.layout import Rows, S
from dials_diffuse.scaling.model import Prediction, ScaleModel
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.terms.base import Acts
from dials_diffuse.scaling.terms.crystal import SmoothPart

#: observations, and unique voxels, that are multiplied together: many for the BLAS, few that touch few parameters
_TOGETHER, _VOXELS = 1024, 512

#: observations whose functions are found together
_AT_ONCE = 8192

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

    def of_columns(self, columns: np.ndarray) -> Normal:
        """Of some of the parameters, the others being fixed; columns : (k,) int"""
        return Normal(self.matrix[np.ix_(columns, columns)], self.vector[columns], self.chi2, self.n)


def add(parts) -> Normal:
    """The sum of normal equations of different voxels."""
    parts = list(parts)
    return Normal(
        sum(p.matrix for p in parts),
        sum(p.vector for p in parts),
        sum(p.chi2 for p in parts),
        sum(p.n for p in parts),
    )


def subtract(whole: Normal, part: Normal) -> Normal:
    """What is left of normal equations without a part of them."""
    return Normal(whole.matrix - part.matrix, whole.vector - part.vector, whole.chi2 - part.chi2, whole.n - part.n)


class Bases(NamedTuple):
    """The functions of all terms at n observations: derivatives by the coefficients, for a factor of 1.

    They do not change while coefficients do. Rounded to float32: matrix and gradient are of the same functions, and the
    place where the gradient is zero moves by less than 1e-6 of a standard error.

    design : of all terms but the smooth anisotropic part; along : (n, 3), of its spline along |s|, from 0
    """

    design: Design
    along: Design


def bases_of(model: ScaleModel, rows: Rows) -> Bases:
    """For :func:`normal_equations` of a model with these terms; some 8 bytes for each function that is not zero."""
    smooth = model.block(SmoothPart.key)
    blocks = [b for b in model.blocks if b is not smooth]
    n, width = len(rows.experiment), sum(b.width for b in blocks)
    bases = Bases(*(Design(np.empty((n, w), np.int32), np.empty((n, w), np.float32)) for w in (width, 3)))
    for start in range(0, n, _AT_ONCE):
        mine = slice(start, start + _AT_ONCE)
        some = rows.at(mine)
        one, at = np.ones(len(some.experiment)), 0
        part = Design(np.empty((len(one), width), dtype=np.int64), np.empty((len(one), width)))
        for b in blocks:
            b.fill(some, one, part, at)
            at += b.width
        for design, found in zip(bases, (part, smooth.along_s(some))):
            design.index[mine], design.value[mine] = found
    return bases


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


class Part(NamedTuple):
    """Observations of which normal equations are made: their Prediction, Weights and Bases belong to them."""

    prediction: Prediction
    data: Observations
    weights: Weights
    bases: Bases


def normal_equations(model: ScaleModel, parts: Iterable[Part]) -> Normal:
    """Normal equations of all parts together. Neighbourhoods end where parts do.

    An observation touches few of the parameters, and so do those that are multiplied together, if they are neighbours:
    voxels are best in the order of |s|, and of the rotation.
    """
    slopes, sums = _Slopes(model), _Sums(model)
    for part in parts:
        sums.add(part, *slopes.add(part))
    return Normal(sums.whole(), slopes.vector, slopes.chi2, slopes.n)


def with_slopes(model: ScaleModel, normal: Normal, parts: Iterable[Part]) -> Normal:
    """Normal equations with the gradient and χ² of all parts together, and the matrix of others.

    That is much less work. Where the matrix is not far from their own, steps lead to the same place.
    """
    slopes = _Slopes(model)
    for part in parts:
        slopes.add(part)
    return Normal(normal.matrix, slopes.vector, slopes.chi2, slopes.n)


class _Slopes:
    """The gradient, χ² and the number of observations, while they are added up."""

    def __init__(self, model: ScaleModel):
        self.vector, self.chi2, self.n = np.zeros(model.n_parameters), 0.0, 0
        self._model, self._smooth = model, model.block(SmoothPart.key)
        self._acts = _acts_of(model)

    def add(self, part: Part) -> tuple:
        """Add some observations.

        Returns
        -------
        list of Level; (5, n) float64, factors of the derivatives, with the root of the weight
        """
        prediction, data, weights, bases = part
        weight, unit = weights.weight, prediction.unit
        residual = data.net - prediction.expected
        levels = levels_of(prediction, data, weights, residual)
        anisotropic, variance = (x[data.orbit] for x in most_probable(levels)[0])
        factors = _factors(self._model, data, prediction, anisotropic + prediction.smooth * prediction.profile)
        gradient = factors * (weight * (residual - unit * anisotropic))
        share = weight * unit**2
        held = weights.held * sizes_tell(levels) / np.maximum(levels[0].square, np.finfo(float).tiny)
        for acts in (Acts.GAIN, Acts.SCALE):  # half the derivative of the logarithms, and what sizes do not tell
            gradient[_ACTS.index(acts)] -= share * (variance + held[data.orbit])
        add_gradient(bases.design, self._acts, gradient, self.vector)
        self.vector[self._smooth.all] += self._smooth.gradient(data.rows, gradient[_ACTS.index(self._smooth.acts)])
        self.chi2 += _objective(weights, residual, levels)
        self.n += int(np.count_nonzero(weight))
        factors *= np.sqrt(weight)
        return levels, factors


def _acts_of(model: ScaleModel) -> np.ndarray:
    """(w,) int64, which of the factors belongs to each column of ``Bases.design``."""
    blocks = [b for b in model.blocks if b.key != SmoothPart.key]
    return np.repeat([_ACTS.index(b.acts) for b in blocks], [b.width for b in blocks])


class _Sums:
    """The upper half of a normal matrix, while it is added up.

    The smooth anisotropic part has many parameters, which every observation touches: patterns of the voxel times a
    spline in |s|. Its part of the matrix is that of one pattern, summed for each voxel, times the patterns.
    """

    def __init__(self, model: ScaleModel):
        p, smooth = model.n_parameters, model.block(SmoothPart.key)
        self.matrix, self.smooth, self._acts = np.zeros((p, p)), smooth, _acts_of(model)
        self._acts_and_smooth = np.append(self._acts, 3 * [_ACTS.index(smooth.acts)])
        self._place, self._columns, self._buffer = np.empty(p, np.int64), np.empty(p, np.int64), np.empty(_TOGETHER * p)
        self._node_place = np.empty(smooth.size, np.int64)
        # of the patterns and nodes: with the other parameters, and with each other
        self._cross = np.zeros((smooth.n_sets, smooth.size, p))
        self._square = np.zeros((smooth.n_sets, smooth.size, smooth.n_sets, smooth.size))

    def add(self, part: Part, levels: list, factors: np.ndarray) -> None:
        """Add some observations; levels, factors : see :meth:`_Slopes.add`."""
        prediction, data, weights, bases = part
        self._add_rows(data, bases, factors)
        unit = np.sqrt(weights.weight) * prediction.unit
        above = self._subtract_voxels(data, bases, factors, unit, levels[0])
        for level in levels[1:]:
            above = self._subtract(level, above)

    def _touched(self, design: Design, rows: np.ndarray, place: np.ndarray) -> np.ndarray:
        """(c,) parameters that some rows of a design touch; ``place`` is given their numbers."""
        return self._columns[: number_columns(design.index, rows, place, self._columns)].copy()

    def _add_rows(self, data: Observations, bases: Bases, factors: np.ndarray) -> None:
        """Σ J Jᵀ of all but the smooth part; factors : of J, with the root of the weight."""
        design = bases.design
        for start in range(0, data.n, _TOGETHER):
            mine = data.alike[start : start + _TOGETHER]
            columns, n = self._touched(design, mine, self._place), len(mine)
            rows = self._buffer[: n * len(columns)].reshape(n, len(columns))
            rows[:] = 0.0
            add_dense(design, mine, self._acts, factors, self._place, rows)
            add_upper(syrk(1.0, rows.T, lower=1).T, columns, self.matrix)

    def _subtract_voxels(
        self, data: Observations, bases: Bases, factors: np.ndarray, unit: np.ndarray, level: Level
    ) -> np.ndarray:
        """Take off what intensities of voxels explain, and add Σ J Jᵀ of the smooth part.

        factors : of J, with the root of the weight; unit : (n,) with it, counts per unit of intensity

        Returns
        -------
        (l, p) float64, couplings of the next level
        """
        above = np.zeros((int(level.parent.max()) + 1, len(self.matrix)))
        by_pattern = np.zeros((len(above), *self._cross.shape[:2]))
        places = self._place, self._node_place
        for start in range(0, len(level.net), _VOXELS):
            mine = slice(start, min(start + _VOXELS, len(level.net)))
            ends = np.array([mine.start, mine.stop, *np.searchsorted(data.orbit, [mine.start, mine.stop])])
            columns, nodes = (self._touched(d, np.arange(*ends[2:]), x) for d, x in zip(bases, places))
            m, c, k = mine.stop - start, len(columns), len(nodes)
            coupling, products = np.zeros((m, c + k)), np.zeros((m, k, c + k))
            voxel_sums(
                bases,
                places,
                self._acts_and_smooth,
                factors,
                unit,
                data.orbit,
                ends,
                level.total[mine],
                coupling,
                products,
            )
            pattern, own, along = data.patterns[mine], np.ascontiguousarray(coupling[:, :c]), coupling[:, c:]
            self._add_products(pattern, products, columns, nodes)
            pull, parent = level.pull[mine], level.parent[mine]
            add_to_parents(pull, parent, columns, own, above)
            add_patterns_to_parents(pull, parent, nodes, along, pattern, by_pattern)
            own /= np.sqrt(level.total[mine])[:, None]
            add_upper(syrk(-1.0, own.T, lower=1).T, columns, self.matrix)
        above[:, self.smooth.all] = by_pattern.reshape(len(above), -1)
        return above

    def _add_products(self, pattern: np.ndarray, products: np.ndarray, columns: np.ndarray, nodes: np.ndarray) -> None:
        """Sums over voxels of products, with one pattern, times the patterns (m, n)."""
        (m, k, both), c = products.shape, len(columns)
        cross = (pattern.T @ products.reshape(m, -1)).reshape(-1, k, both)
        self._cross[:, nodes[:, None], columns] += cross[:, :, :c]
        for a in range(k):
            for b in range(a, k):
                square = (pattern * products[:, a, c + b, None]).T @ pattern
                self._square[:, nodes[a], :, nodes[b]] += square
                if a != b:
                    self._square[:, nodes[b], :, nodes[a]] += square

    def _subtract(self, level: Level, coupling: np.ndarray) -> np.ndarray:
        """Take off what a level of neighbourhoods explains; coupling : (k, p) float64, is overwritten.

        Returns
        -------
        (l, p) float64, couplings of the next level
        """
        above = np.zeros((int(level.parent.max()) + 1, len(self.matrix)))
        add_to_parents(level.pull, level.parent, np.arange(len(self.matrix)), coupling, above)
        coupling /= np.sqrt(level.total)[:, None]
        syrk(-1.0, coupling.T, 1.0, self.matrix.T, lower=1, overwrite_c=1)
        return above

    def whole(self) -> np.ndarray:
        """(p, p) float64, the symmetric matrix."""
        matrix, own = np.triu(self.matrix) + np.triu(self.matrix, 1).T, self.smooth.all
        n = own.stop - own.start
        cross = self._cross.reshape(n, -1)
        matrix[own] += cross
        matrix[:, own] += cross.T
        matrix[own, own] += self._square.reshape(n, n)
        return matrix
