"""Least squares with few parameters and many voxels: Levenberg-Marquardt within bounds, in the end by the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.linear import Projection, reduced
from dials_diffuse.fitting.region import Region
from dials_diffuse.models.prepared import Prepared

#: converged when a step would lower the objective by less than this fraction of its value per voxel: parameters are
#: then within a small part of their errors
_TOLERANCE = 1e-5
_MAX_ITERATIONS = 200
#: steps by the Gauss-Newton matrix. It lacks what residuals and second derivatives make, so that its steps crawl where
#: no model fits, or few data tell many parameters; later ones are by the whole Hessian
_GAUSS_NEWTON = 10
#: of the objective of no model at all: what sums of squares are exact to
_ROUNDING = 1e-14
_MAX_DAMPING = 1e12
#: a step so damped promises what all can gain
_UNDAMPED = 1e-4
#: of that, the error of steps that bounds limit
_EXACT = 0.1


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
    """Lower the objective from a start, within the bounds of the parameters.

    Parameters
    ----------
    prepared : or what has its ``intensity``, ``jacobian``, ``second``, ``parameters`` and ``tensors``
    start : (p,) float64; what lies outside the bounds is moved inside
    fixed : (p,) bool, numbers that stay, elements of tensors not; None: none does

    Notes
    -----
    Each step minimises the quadratic model, with Marquardt's damping in units of the Gauss-Newton matrix's diagonal,
    inside the bounds, see :class:`Region`. Where the Hessian bends down, steps are as long as if it bent up as much. At
    the end no step inside the bounds, damped or not, would lower the objective.
    """
    region = Region(prepared)
    moving = np.ones(len(prepared.parameters), dtype=bool) if fixed is None else ~np.asarray(fixed)
    values = np.where(moving, region.nearest(start), start)
    if not moving.any():
        return Minimum(values, projection.objective(prepared.intensity(values)), 0, True)
    damping, iterations = 1e-3, 0
    intensity = prepared.intensity(values)
    n, noise = max(len(intensity), 1), _ROUNDING * projection.objective(np.zeros_like(intensity))
    while iterations < _MAX_ITERATIONS:
        intensity, jacobian = prepared.jacobian(values)
        objective = projection.objective(intensity)
        if not np.isfinite(objective):
            raise DiffuseError("the model's intensity is not finite; start from smaller displacements")
        gradient, matrix = projection.normal(intensity, jacobian[:, moving])
        little, diagonal = 0.5 * max(_TOLERANCE * objective / n, noise), np.diag(matrix)
        matrices = [matrix]
        if iterations >= _GAUSS_NEWTON:
            hessian = projection.hessian(intensity, jacobian, partial(prepared.second, values))
            matrices = [reduced(hessian, len(values))[np.ix_(moving, moving)], matrix]
        here = diagonal, gradient, region, values, moving, little
        # beside a curved valley the Hessian promises less than there is, the other matrix where residuals are large
        if all(_step(m, *here, min(damping, _UNDAMPED))[1] <= little for m in matrices):
            return Minimum(values, objective, iterations, True)
        while damping < _MAX_DAMPING:
            step, promised = _step(matrices[0], *here, damping)
            trial = values.copy()
            trial[moving] += step
            found = projection.objective(prepared.intensity(trial))
            if found < objective:
                gain = (objective - found) / (2 * promised)
                damping = damping / 10 if gain > 0.5 else damping * (4 if gain < 0.1 else 1)
                damping = max(damping, 1e-12)
                values = trial
                iterations += 1
                break
            damping *= 10
        else:
            return Minimum(values, objective, iterations, False)
    return Minimum(values, objective, iterations, False)


def _step(matrix, diagonal, gradient, region: Region, values, moving, little: float, damping: float) -> tuple:
    """The d inside the region that minimises g·d + d·(|M| + damping diag)·d / 2, and how much g·d + d·M·d / 2 falls.

    |M| is M with the signs of its eigenvalues, in units of the diagonal, taken away. A step that bounds limit is exact
    to a part of ``little``.
    """
    scale = np.sqrt(np.maximum(diagonal, max(1e-24 * diagonal.max(), 1e-280)))
    sizes, vectors = np.linalg.eigh(matrix / np.outer(scale, scale))
    sizes = np.maximum(np.abs(sizes) + damping, 1e-14)
    step = -(vectors @ ((vectors.T @ (gradient / scale)) / sizes)) / scale
    trial = values.copy()
    trial[moving] += step
    if not region.contains(trial):
        damped = (vectors * sizes) @ vectors.T * np.outer(scale, scale)
        step = region.minimum(damped, gradient, values, moving, _EXACT * little)
    return step, -(gradient @ step) - 0.5 * step @ matrix @ step
