"""How well are the parameters of a fit determined? Errors, profiles, and what to warn of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dials_diffuse.fitting.minimise import Minimum, minimise
from dials_diffuse.models import LiquidLikeMotions

#: correlations of parameters from here on are reported
_STRONG = 0.95
#: a minimum within this relative distance of a bound lies on it
_AT_BOUND = 1e-4
#: a liquid that lacks more than this of exp(qᵀVq) - 1 at the high resolution limit is not the model that it says
_MISSING = 0.02
#: where the profile likelihood is computed, in e.s.d.
_PROFILE_AT = (-2.0, -1.0, 1.0, 2.0)


def errors(hessian: np.ndarray, bound: np.ndarray, chi2: float) -> tuple:
    """Covariance of the estimates, their correlations, eigenvalues and the loosest combination.

    The inverse of half the Hessian of chi², times the reduced chi²: errors of the data that are all wrong by a factor
    do not matter. Parameters at a bound are held there, with an error of NaN.
    """
    size = len(hessian)
    covariance, correlations = np.full((size, size), np.nan), np.full((size, size), np.nan)
    free = np.ones(size, dtype=bool)
    free[: len(bound)] = ~bound
    diagonal = np.diag(hessian)[free]
    loosest = np.zeros(size)
    if not free.any() or not np.all(diagonal > 0):
        return covariance, correlations, np.zeros(0), loosest
    root = np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(hessian[np.ix_(free, free)] / np.outer(root, root))
    loosest[free] = vectors[:, 0]
    if values[0] > 1e-12:
        inverse = np.linalg.inv(hessian[np.ix_(free, free)] / np.outer(root, root)) / np.outer(root, root)
        covariance[np.ix_(free, free)] = chi2 * inverse
        spread = np.sqrt(np.diag(inverse))
        correlations[np.ix_(free, free)] = inverse / np.outer(spread, spread)
    return covariance, correlations, values, loosest


def profile(work, projection, minimum: Minimum, i: int, esd: float, chi2: float) -> tuple:
    """The objective with one parameter held at some values and all others fitted anew."""
    if not math.isfinite(esd) or esd <= 0:
        return ()
    points = []
    fixed = np.zeros(len(minimum.values), dtype=bool)
    fixed[i] = True
    for t in _PROFILE_AT:
        start = minimum.values.copy()
        start[i] += t * esd
        if work.parameters[i].lower < start[i] < work.parameters[i].upper:
            found = minimise(work, projection, start, fixed)
            points.append((float(start[i]), (found.objective - minimum.objective) / chi2))
    return tuple(points)


def kind(name: str) -> str:
    """llm.V of llm.V11, sigma of sigma_2"""
    return name.rstrip("0123456789_")


def at_bound(parameter, value: float) -> bool:
    width = _AT_BOUND * (parameter.upper - parameter.lower)
    return value - parameter.lower < width or parameter.upper - value < width


def warnings(candidate, minimum, estimates, scale, correlations, reached, starts) -> list:
    found = []
    if not minimum.converged:
        found.append(f"{candidate.name}: no minimum after {minimum.iterations} steps; start from other values")
    for parameter, estimate in zip(candidate.prepared.parameters, estimates):
        if estimate.at_bound:
            found.append(
                f"{candidate.name}: {estimate.name} ended at a bound, {estimate.value:.4g} {estimate.unit} (allowed: "
                f"{parameter.lower:.4g} to {parameter.upper:.4g}): the data do not determine it, or the model is wrong"
            )
    if scale.value <= 0:
        found.append(f"{candidate.name}: the scale is not positive: the data contradict the model")
    names = [e.name for e in estimates] + ["scale"]
    for i in range(len(correlations)):
        for j in range(i):
            if abs(correlations[i, j]) > _STRONG:
                found.append(
                    f"{candidate.name}: {names[j]} and {names[i]} are correlated, {correlations[i, j]:.3f}: the data "
                    "determine little more than one combination of them"
                )
    if estimates and not np.all(np.isfinite([e.esd for e in estimates if not e.at_bound])):
        found.append(f"{candidate.name}: the Hessian is not positive definite, errors are not known")
    if reached < starts:
        found.append(f"{candidate.name}: {reached} of {starts} starts reached the best minimum, it has others")
    return found


def missing_orders(name: str, model, d_min: float) -> list:
    """Warnings of fitted liquids, whose sum over l ends too early for their displacements."""
    found = []
    for part in model if isinstance(model, tuple) else (model,):
        if isinstance(part, LiquidLikeMotions) and (missing := part.missing_orders(d_min)) > _MISSING:
            enough = part.orders
            while replace(part, orders=enough).missing_orders(d_min) > _MISSING:
                enough += 1
            found.append(
                f"{name}: llm.orders={part.orders} leaves out {100 * missing:.0f} % of exp(qVq) - 1 at {d_min:.2f} Å, "
                f"which changes the parameters; use llm.orders={enough}"
            )
    return found
