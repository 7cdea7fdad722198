"""Where a minimisation over covariances of pairs ends, and the cone that it stays in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PairMinimum:
    """Where a minimisation ended.

    Attributes
    ----------
    covariance : (m, m) float64, Å², V; of tensors (3g, 3g)
    value : of the objective
    iterations : int
    converged : bool
    """

    covariance: np.ndarray
    value: float
    iterations: int
    converged: bool


def nearest_semidefinite(v: np.ndarray) -> np.ndarray:
    """The positive semidefinite matrix nearest to a symmetric one; v, result : (m, m) float64"""
    values, vectors = np.linalg.eigh(v)
    return v if values[0] >= 0 else (vectors * np.maximum(values, 0)) @ vectors.T
