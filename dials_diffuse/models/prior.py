"""What holds parameters where no data determine them: near 0, with a strength that a fit chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Prior:
    """A weighted sum of squares of p parameters.

    Attributes
    ----------
    metric : (p,) float64, weights of the squares; 0 for parameters that are free
    level : (m, p) float64, changes that a scale that is known determines, such as a common factor of all stiffnesses:
        then nothing holds them
    """

    metric: np.ndarray
    level: np.ndarray

    @property
    def n_held(self) -> int:
        """Parameters that are not free."""
        return int(np.count_nonzero(self.metric))

    def rows(self, scale_is_known: bool) -> np.ndarray:
        """(p, p) float64 L: the prior is the sum of squares of L times the values."""
        root = np.sqrt(self.metric)
        if not (scale_is_known and len(self.level)):
            return np.diag(root)
        weighted = self.level * self.metric
        left = np.eye(len(root)) - self.level.T @ np.linalg.solve(weighted @ self.level.T, weighted)
        return root[:, None] * left


def joined(priors, sizes) -> Prior | None:
    """The prior of the parameters of several models one after another; None if none has one.

    Parameters
    ----------
    priors : Prior of each model, or None
    sizes : numbers of their parameters
    """
    if all(prior is None for prior in priors):
        return None
    total, begin, metrics, levels = sum(sizes), 0, [], []
    for prior, size in zip(priors, sizes):
        metrics.append(np.zeros(size) if prior is None else prior.metric)
        if prior is not None:
            level = np.zeros((len(prior.level), total))
            level[:, begin : begin + size] = prior.level
            levels.append(level)
        begin += size
    return Prior(np.concatenate(metrics), np.concatenate(levels))
