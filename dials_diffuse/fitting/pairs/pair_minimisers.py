"""Ways to the lowest value of the objective of all pairs of groups: all end at the same minimum."""

from __future__ import annotations

import logging

import numpy as np
from scipy.optimize import minimize

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.pairs.pair_minimum import PairMinimum, nearest_semidefinite
from dials_diffuse.fitting.pairs.pair_objective import PairObjective
from dials_diffuse.fitting.pairs.reference_descent import reference_descent

logger = logging.getLogger("dials.diffuse.fit")

#: newton: Levenberg-Marquardt steps by the elements of V, then lbfgs where these become short, as V is singular;
#: lbfgs: L-BFGS by the elements of L; descent: the reference, down the gradient by the elements of V; auto: newton
#: where its matrix is affordable, else lbfgs
MINIMISERS = ("auto", "newton", "lbfgs", "descent")

#: elements of V up to which newton is affordable: it makes a matrix of their second derivatives at each step
MOST_ELEMENTS = 1000

#: elements of V up to which auto takes newton: with 40 groups at the border of the cone it is slower than lbfgs
_AUTO_ELEMENTS = 465

#: V starts this much more definite than it is given, relative to its mean variance: L of a singular V has no derivative
_RIDGE = 1e-3
#: converged when the objective would fall by less than this fraction of its value per voxel
_TOLERANCE = 1e-4
#: damping, as a strength of the prior, below which there is none; above which nothing can be gained
_SOME_DAMPING = 1e-9
_MAX_DAMPING = 1e9
#: splittings of a step into the free minimum and the nearest semidefinite matrix; they end when both differ by less
#: than a fraction of the step
_MAX_SPLITTINGS = 300
_SPLIT = 1e-3
#: relative gain of a step below which, if its splittings did not end, L-BFGS goes on
_SMALL_GAIN = 0.1


def chosen(minimiser: str, objective: PairObjective) -> str:
    """The minimiser that ``auto`` stands for, or the one given.

    Raises
    ------
    DiffuseError
        If it is unknown, or ``newton`` for tensors or too many groups.
    """
    choice("pairs.minimiser", minimiser, MINIMISERS)
    possible = objective.axes == 1 and len(objective.triangle[0]) <= MOST_ELEMENTS
    if minimiser == "newton" and not possible:
        raise DiffuseError(
            f"pairs.minimiser=newton: for isotropic displacements with at most {MOST_ELEMENTS} covariances; use lbfgs"
        )
    if minimiser != "auto":
        return minimiser
    return "newton" if possible and len(objective.triangle[0]) <= _AUTO_ELEMENTS else "lbfgs"


def minimise_pairs(
    objective: PairObjective,
    start: np.ndarray,
    strength: float,
    minimiser: str,
    max_iterations: int,
    ftol: float = 1e-10,
) -> PairMinimum:
    """Lower the objective from a V.

    Parameters
    ----------
    start : (m, m) float64, Å², positive semidefinite
    minimiser : ``newton``, ``lbfgs`` or ``descent``
    ftol : relative gain of a step at which ``lbfgs`` ends
    """
    if minimiser == "descent":
        return reference_descent(objective, start, strength, max_iterations)
    done = 0
    if minimiser == "newton":
        found = _newton(objective, start, strength, max_iterations)
        if found.converged or found.iterations >= max_iterations:
            return found
        start, done = found.covariance, found.iterations  # on the border of the cone, where L is the better coordinate
    steps = max_iterations - done
    result = minimize(
        objective.slope_by_root,
        objective.start(start, _RIDGE),
        args=(strength,),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 30, "ftol": ftol, "gtol": 0.0},
    )
    return PairMinimum(objective.covariance(result.x), result.fun, done + result.nit, result.nit < steps)


def _newton(objective: PairObjective, v, strength: float, max_iterations: int) -> PairMinimum:
    """Levenberg-Marquardt steps by the elements of V inside the cone of positive semidefinite matrices."""
    damping, dual = objective.stiff(1.0), None
    value, slope = objective.slope(v, strength)
    curvature = Curvature(objective, v)
    for iteration in range(max_iterations):
        while True:
            trial, dual, promise, exact = _step(objective, curvature, v, slope, strength, damping, dual)
            if promise <= _TOLERANCE * value / objective.n:
                return PairMinimum(v, value, iteration, True)
            with np.errstate(over="ignore", invalid="ignore"):  # steps that go too far
                found = objective.value(trial, strength)
            if found < value:
                break
            damping = 10 * max(damping, objective.stiff(_SOME_DAMPING))
            if damping > _MAX_DAMPING:
                return PairMinimum(v, value, iteration, True)
        gain = (value - found) / promise
        if gain > 0.25:
            damping = damping / 10 if damping > objective.stiff(_SOME_DAMPING) else 0.0
        logger.debug("objective %.10g after step %d, promised %.3g more (%.3g)", found, iteration, promise, damping)
        v = trial
        if not exact and value - found < _SMALL_GAIN * value:  # many such steps would be needed
            return PairMinimum(v, found, iteration + 1, False)
        value, slope = objective.slope(v, strength)
        curvature = Curvature(objective, v)
    return PairMinimum(v, value, max_iterations, False)


class Curvature:
    """Gauss-Newton matrix of the data's part of the objective at some V, and its eigenvectors.

    By the elements of V divided by those of ``size``, times √2 off the diagonal: there the prior is a multiple of 1.
    """

    def __init__(self, objective: PairObjective, v: np.ndarray):
        unit = objective.relative_unit
        matrix = objective.curvature(v)
        matrix *= 2 / objective.unit * unit[:, None]
        matrix *= unit
        self.values, self.vectors = np.linalg.eigh(matrix)
        self.values = np.maximum(self.values, 0)


def _step(objective, curvature: Curvature, v, slope, strength: float, damping: float, dual) -> tuple:
    """The V at which the quadratic model is lowest, the dual variable there, and what the model promises to gain.

    minimum of g.d + d.H.d/2 over d with V + d positive semidefinite: by splitting it into the free minimum and the
    nearest semidefinite matrix (ADMM, Boyd et al. 2011), unless the free minimum is semidefinite.
    """
    first, second = objective.triangle
    off = np.where(first == second, 1.0, 2**0.5)
    scale = off / objective.size[objective.triangle]

    def element(z):
        """V of relative elements."""
        result = np.zeros_like(v)
        result[first, second] = z / scale
        return result + np.tril(result, -1).T

    def relative(matrix):
        return matrix[first, second] * scale

    inner = np.sqrt(np.diag(objective.size))
    z, g = relative(v), slope[first, second] * off**2 / scale
    vectors, values = curvature.vectors, curvature.values + objective.stiff(strength) + damping
    values = np.maximum(values, 1e-14 * values[-1])
    turned = vectors.T @ g

    def promised(d):
        along = vectors.T @ d
        return -float(g @ d) - 0.5 * float(along @ (values * along))

    lowest = z - vectors @ (turned / values)
    if np.linalg.eigvalsh(element(lowest))[0] >= 0:
        return element(lowest), None, promised(lowest - z), True

    def projected(z):
        matrix = element(z) / np.outer(inner, inner)  # the cone is the same for relative elements
        return relative(nearest_semidefinite(matrix) * np.outer(inner, inner))

    rho = float(np.sqrt(max(values[0], 1e-6 * values[-1]) * values[-1]))
    y = z
    u = np.zeros_like(z) if dual is None else dual / rho
    target = vectors.T @ z * values - turned
    for _ in range(_MAX_SPLITTINGS):
        x = vectors @ ((target + rho * (vectors.T @ (y - u))) / (values + rho))
        mixed = 1.6 * x - 0.6 * y
        before = y
        y = projected(mixed + u)
        u += mixed - y
        primal, moved = np.linalg.norm(x - y), np.linalg.norm(y - before)
        if max(primal, moved) <= _SPLIT * np.linalg.norm(y - z):
            return element(y), u * rho, promised(y - z), True
        if primal > 10 * moved:
            rho, u = 2 * rho, u / 2
        elif moved > 10 * primal:
            rho, u = rho / 2, u * 2
    return element(y), u * rho, promised(y - z), False
