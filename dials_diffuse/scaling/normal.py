"""Normal equations of the scale model with the intensities of the unique voxels eliminated exactly.

For a voxel with observations i, weights w, counts per unit intensity u, residuals r without anisotropic part and
derivatives J_i, the intensity J = Σ w u r / (Σ w u² + 1/τ²) minimises the sum of squares; what remains for the
parameters is Σ w J_i J_iᵀ − m mᵀ / (Σ w u² + 1/τ²) with m = Σ w u J_i (variable projection). τ is the spread expected
of the anisotropic part: it lets voxels that were seen once compare with the isotropic profile.

With a prior on J the best scales are not those of the smallest χ²: larger scales make J smaller, which the prior likes.
Integrated over J, the likelihood has the term Σ log(Σ w u² + 1/τ²) that balances this; it is part of "χ²" here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dsyrk as syrk

from dials_diffuse.kernels.scaling import add_normal, add_orbits, fill_basis, fill_dense, fill_patterns, orbit_sums
from dials_diffuse.scaling.data import Observations
from dials_diffuse.scaling.model import ScaleModel

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


def design(model: ScaleModel, data: Observations, rows: slice, prediction, q, anisotropic) -> tuple:
    """Sparse derivatives of the expected counts: index, value (n, w) and count (n,).

    prediction : Prediction of all observations; q, anisotropic : (n,) float64, Q and J of the voxel of each observation
    """
    unit, gain = prediction.unit[rows], prediction.gain[rows]
    expected = prediction.isotropic[rows] + unit * anisotropic[rows]
    x, experiment = data.coordinates[rows], data.experiment[rows]
    factors = {
        "p": unit * (1 + q[rows]),
        "b": unit * (prediction.profile[rows] + anisotropic[rows]),
        "c": gain * model.value("p", x, experiment, True),
    }
    n, width = len(experiment), sum(b.width * (b.n_sets if b.name == "q" else 1) for b in model.blocks)
    index, value = np.empty((n, width), dtype=np.int64), np.empty((n, width))
    count = np.zeros(n, dtype=np.int64)
    for b in model.blocks:
        if b.name == "q":
            patterns = data.patterns[data.orbit[rows]]
            level = unit * prediction.profile[rows]
            fill_patterns(x, b.start, b.axes, b.limits, level, patterns, index, value, count)
        elif b.name == "h":
            fill_dense(b.offset(experiment), data.harmonics[rows], expected, index, value, count)
        else:
            fill_basis(x, b.offset(experiment), b.axes, b.limits, factors.get(b.name, expected), index, value, count)
    return index, value, count


def _slope_of_logarithm(model: ScaleModel, data: Observations, rows: slice, share: np.ndarray) -> np.ndarray:
    """(p,) half the derivative of Σ log(Σ w u² + 1/τ²); share : (n,) float64, w u² / (Σ w u² + 1/τ²)."""
    x, experiment = data.coordinates[rows], data.experiment[rows]
    result = np.zeros(model.n_parameters)
    for b in model.blocks:
        if b.name in "pqc":
            continue
        index, value = np.empty((len(x), b.width), dtype=np.int64), np.empty((len(x), b.width))
        count = np.zeros(len(x), dtype=np.int64)
        if b.name == "h":
            fill_dense(b.offset(experiment), data.harmonics[rows], share, index, value, count)
        else:
            fill_basis(x, b.offset(experiment), b.axes, b.limits, share, index, value, count)
        result += np.bincount(index.ravel(), value.ravel(), minlength=model.n_parameters)
    return result


def chi2(model: ScaleModel, data: Observations, weight, prior) -> float:
    """Sum of squares that is left with the best intensities; arguments as for :func:`normal_equations`."""
    prediction = model.predict_observations(data)
    residual = data.net - prediction.isotropic - prediction.unit * prediction.profile * model.smooth_anisotropic(data)
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(data.orbit, weight, residual, prediction.unit, weight <= 0, sums)
    return _objective(weight, residual, sums, prior)


def _objective(weight, residual, sums, prior) -> float:
    total = sums[:, 1] + prior
    return float(np.sum(weight * residual**2) - np.sum(sums[:, 0] ** 2 / total) + np.sum(np.log(total / prior)))


def normal_equations(model: ScaleModel, data: Observations, weight, prior, threads: int = 1) -> Normal:
    """Normal equations of some observations.

    Parameters
    ----------
    weight : (n,) float64, 1 / variance of the counts, 0 for rejected observations
    prior : (m,) float64, 1/τ² of each voxel
    """
    prediction = model.predict_observations(data)
    q, unit = model.smooth_anisotropic(data), prediction.unit
    smooth = q * prediction.profile
    residual = data.net - prediction.isotropic - unit * smooth
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(data.orbit, weight, residual, unit, weight <= 0, sums)
    total = sums[:, 1] + prior
    anisotropic = (sums[:, 0] / total)[data.orbit] + smooth
    first = np.searchsorted(data.orbit, np.arange(0, len(data.unique) + _ORBITS, _ORBITS))

    def work(blocks):
        matrix, vector = np.zeros((model.n_parameters,) * 2), np.zeros(model.n_parameters)
        for block in blocks:
            rows, start = slice(first[block], first[block + 1]), block * _ORBITS
            index, value, count = design(model, data, rows, prediction, q, anisotropic)
            add_normal(index, value, count, weight[rows], residual[rows], matrix, vector)
            mine = slice(start, min(start + _ORBITS, len(total)))
            coupling = np.zeros((mine.stop - mine.start, model.n_parameters))
            add_orbits(index, value, count, weight[rows] * unit[rows], data.orbit[rows] - start, coupling)
            vector -= (sums[mine, 0] / total[mine]) @ coupling
            vector -= _slope_of_logarithm(model, data, rows, weight[rows] * unit[rows] ** 2 / total[data.orbit[rows]])
            coupling /= np.sqrt(total[mine])[:, None]
            syrk(-1.0, coupling.T, 1.0, matrix.T, lower=1, overwrite_c=1)
        return matrix, vector

    with ThreadPoolExecutor(threads) as pool:
        n_blocks = len(first) - 1
        parts = list(pool.map(work, [range(i, n_blocks, threads) for i in range(threads)]))
    matrix = np.triu(sum(p[0] for p in parts))  # the lower triangle lacks the sums over rows
    matrix += np.triu(matrix, 1).T
    value = _objective(weight, residual, sums, prior)
    return Normal(matrix, sum(p[1] for p in parts), value, int(np.count_nonzero(weight)))
