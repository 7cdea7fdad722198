"""How well are the parameters of a fit determined? Errors, profiles, and what to warn of."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import null_space

from dials_diffuse.fitting.minimise import Minimum, minimise
from dials_diffuse.fitting.region import Region
from dials_diffuse.models.prepared import Prepared

#: correlations of parameters from here on are reported
_STRONG = 0.95
#: where the profile likelihood is computed, in e.s.d.
_PROFILE_AT = (-2.0, -1.0, 1.0, 2.0)


def errors(hessian: np.ndarray, held: np.ndarray, chi2: float) -> tuple:
    """Covariance of the estimates, their correlations, eigenvalues and the loosest combination.

    The inverse of half the Hessian of chi², times the reduced chi²: errors of the data that are all wrong by a factor
    do not matter.

    Parameters
    ----------
    hessian : (size, size) float64, of parameters and scale
    held : (m, p) float64, independent directions through bounds that were reached: there is no change along them.
        Parameters that are fixed by them have an error of NaN.
    """
    size = len(hessian)
    covariance, correlations = np.full((size, size), np.nan), np.full((size, size), np.nan)
    diagonal = np.diag(hessian)
    root = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    rows = np.zeros((len(held), size))
    rows[:, : held.shape[1]] = held / root[: held.shape[1]]
    free = null_space(rows) if len(rows) else np.eye(size)
    if not free.size:
        return covariance, correlations, np.zeros(0), np.zeros(size)
    values, vectors = np.linalg.eigh(free.T @ (hessian / np.outer(root, root)) @ free)
    if values[0] > 1e-12:
        inverse = (free @ (vectors / values) @ vectors.T @ free.T) / np.outer(root, root)
        known = np.sum(free**2, axis=1) > 1e-12
        spread = np.sqrt(np.diag(inverse)[known])
        covariance[np.ix_(known, known)] = chi2 * inverse[np.ix_(known, known)]
        correlations[np.ix_(known, known)] = inverse[np.ix_(known, known)] / np.outer(spread, spread)
    return covariance, correlations, values, free @ vectors[:, 0]


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


def warnings(prepared: Prepared, minimum: Minimum, estimates, scale, correlations: np.ndarray) -> list:
    """What a user should know of the parameters.

    Parameters
    ----------
    estimates, scale : Estimates of the parameters and of the scale
    correlations : of :func:`errors`
    """
    found = []
    if not minimum.converged:
        found.append(f"no minimum after {minimum.iterations} steps; start from other values")
    found += Region(prepared).warnings(minimum.values)
    if scale.value <= 0:
        found.append("the scale is not positive: the data contradict the model")
    names = [e.name for e in estimates] + ["scale"]
    for i in range(len(correlations)):
        for j in range(i):
            if abs(correlations[i, j]) > _STRONG:
                found.append(
                    f"{names[j]} and {names[i]} are correlated, {correlations[i, j]:.3f}: the data determine little "
                    "more than one combination of them"
                )
    if estimates and not np.all(np.isfinite([e.esd for e in estimates if not e.at_bound])):
        found.append("the Hessian is not positive definite, errors are not known")
    return found


def other_minima(reached: int, starts: int) -> list:
    """What to tell a user if not all starts reached the best minimum."""
    return [f"{reached} of {starts} starts reached the best minimum, it has others"] if reached < starts else []


def end_of_strengths(trials: tuple, strength: float) -> list:
    """What to tell a user if the strongest or the weakest prior that was tried fits best.

    trials : (strength, ...) tuples, the strongest first
    """
    if len(trials) < 2 or strength not in (trials[0][0], trials[-1][0]):
        return []
    side = "strongest" if strength == trials[0][0] else "weakest"
    return [f"the {side} prior predicts best, {strength:g}: try more strengths on that side"]
