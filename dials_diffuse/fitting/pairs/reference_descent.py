"""The reference for the minimisers of the covariances of pairs: plain gradient descent, simple and slow."""

from __future__ import annotations

import numpy as np

from dials_diffuse.fitting.pairs.pair_minimum import PairMinimum, nearest_semidefinite
from dials_diffuse.fitting.pairs.pair_objective import PairObjective

#: a step is kept if it gains this fraction of what the slope promises
_ARMIJO = 1e-4
#: the end: relative gain of a step, per voxel. Short steps gain little long before the end.
_TOLERANCE = 1e-8


def reference_descent(objective: PairObjective, v: np.ndarray, strength: float, max_iterations: int) -> PairMinimum:
    """v <- v - t dO/dv for every element, negative eigenvalues of V set to 0; t doubled or halved as it goes.

    v : (m, m) float64, Å², to start from
    """
    v = nearest_semidefinite(v)
    value, slope = objective.slope(v, strength)
    t = 0.01 * np.abs(v).max() / max(np.abs(slope).max(), 1e-300)
    for iteration in range(max_iterations):
        while True:
            trial = nearest_semidefinite(v - t * slope)
            moved = float(np.sum((trial - v) ** 2))
            found = objective.value(trial, strength)
            if found <= value - _ARMIJO * moved / t:
                break
            t *= 0.5
            if moved <= 1e-30 * float(np.sum(v**2)):
                return PairMinimum(v, value, iteration, True)
        gained = value - found
        v = trial
        value, slope = objective.slope(v, strength)
        if gained <= _TOLERANCE * value / objective.n:
            return PairMinimum(v, value, iteration + 1, True)
        t *= 2
    return PairMinimum(v, value, max_iterations, False)
