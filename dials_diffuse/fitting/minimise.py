"""Least squares with few parameters and many voxels: Levenberg-Marquardt within bounds, from normal matrices alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.linear import Projection
from dials_diffuse.models.prepared import Prepared

#: converged when a step would lower the objective by less than this fraction of its value per voxel: parameters are
#: then within a small part of their errors
_TOLERANCE = 1e-5
_MAX_ITERATIONS = 60
_MAX_DAMPING = 1e12
#: of the way to where a tensor is no longer positive definite, or to a bound
_CAUTION = 0.9


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes
    ----------
    values : (p,) float64
    objective : float
    iterations : steps that were accepted
    converged : bool
    """

    values: np.ndarray
    objective: float
    iterations: int
    converged: bool


def minimise(prepared: Prepared, projection: Projection, start, fixed=None) -> Minimum:
    """Lower the objective from a start, within the bounds of the parameters and the cone of positive tensors.

    Parameters
    ----------
    start : (p,) float64
    fixed : (p,) bool, parameters that stay; None: none does

    Notes
    -----
    Each step minimises the quadratic model, with Marquardt's damping in units of the diagonal, inside the bounds: a
    bounded linear least-squares problem in the Cholesky factor of the matrix (scipy's lsq_linear).
    """
    lower = np.array([p.lower for p in prepared.parameters], dtype=float)
    upper = np.array([p.upper for p in prepared.parameters], dtype=float)
    values = np.clip(np.asarray(start, dtype=float), lower, upper)
    moving = np.ones(len(values), dtype=bool) if fixed is None else ~np.asarray(fixed)
    if not moving.any():
        return Minimum(values, projection.objective(prepared.intensity(values)), 0, True)
    damping, iterations = 1e-3, 0
    n = max(len(projection.solve(prepared.intensity(values)).residual), 1)
    while iterations < _MAX_ITERATIONS:
        intensity, jacobian = prepared.jacobian(values)
        objective = projection.objective(intensity)
        if not np.isfinite(objective):
            raise DiffuseError("the model's intensity is not finite; start from smaller displacements")
        gradient, matrix = projection.normal(intensity, jacobian[:, moving])
        accepted = False
        while damping < _MAX_DAMPING:
            step = np.zeros(len(values))
            step[moving] = _bounded_step(
                matrix, gradient, damping, lower[moving] - values[moving], upper[moving] - values[moving]
            )
            promised = -(gradient @ step[moving]) - 0.5 * step[moving] @ matrix @ step[moving]
            if 2 * promised <= _TOLERANCE * objective / n:
                return Minimum(values, objective, iterations, True)
            step *= min(1.0, _CAUTION * prepared.largest_step(values, step))
            trial = np.clip(values + step, lower, upper)
            found = projection.objective(prepared.intensity(trial))
            if found < objective:
                gain = (objective - found) / (2 * promised)
                damping = damping / 10 if gain > 0.5 else damping * (4 if gain < 0.1 else 1)
                damping = max(damping, 1e-12)
                values, accepted = trial, True
                iterations += 1
                break
            damping *= 10
        if not accepted:
            return Minimum(values, objective, iterations, True)
    return Minimum(values, objective, iterations, False)


def _bounded_step(matrix, gradient, damping: float, lower, upper) -> np.ndarray:
    """Minimum of g·d + d·(M + damping diag M)·d / 2 within lower <= d <= upper."""
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    scaled = matrix / np.outer(scale, scale) + damping * np.eye(len(scale))
    values, vectors = np.linalg.eigh(scaled)
    values = np.maximum(values, 1e-14)
    root = (np.sqrt(values) * vectors).T  # rootᵀ root = scaled
    target = -(vectors.T @ (gradient / scale)) / np.sqrt(values)
    free = -(vectors @ ((vectors.T @ (gradient / scale)) / values))
    if np.all(free >= lower * scale) and np.all(free <= upper * scale):
        return free / scale
    width = 1e-12 + 1e-9 * np.abs(upper - lower) * scale  # lsq_linear wants a proper interval
    result = lsq_linear(root, target, (np.minimum(lower * scale, 0) - width, np.maximum(upper * scale, 0) + width))
    return np.clip(result.x / scale, lower, upper)
