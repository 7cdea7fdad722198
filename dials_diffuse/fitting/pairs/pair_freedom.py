"""Which covariances of pairs of groups do the data determine, and which does the prior?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.pairs.pair_minimisers import Curvature
from dials_diffuse.fitting.pairs.pair_objective import PairObjective
from dials_diffuse.structure.tensors import symmetric_tensor

#: a combination of relative covariances is determined if its error is below this
DETERMINED = 0.1
#: eigenvalues below this fraction of the largest are rounding
_ROUNDING = 1e-13


@dataclass(frozen=True)
class PairFreedom:
    """What the data say about V, from the Gauss-Newton matrix at the minimum.

    Covariances are relative to the geometric mean of the prior's variances. The positive definiteness of V, which may
    determine more, does not count. Of tensors it is about the symmetric part of V_ab: the rest does not scatter.

    Attributes
    ----------
    esd : (g, g) or (g, g, 3, 3) float64, Å², errors of V that come from those of the data; they do not contain what the
        prior does to V
    share : of the same shape, how much of an element comes from the data: 1 all, 0 nothing, all from the prior
    errors : (P,) float64, ascending, of the eigenvectors of the data's matrix, the best determined combinations first;
        P = g (g + 1) / 2, of tensors six times as many
    n_determined : number of these below DETERMINED
    n_effective : sum of the shares: the number of parameters that the data fit
    """

    esd: np.ndarray
    share: np.ndarray
    errors: np.ndarray
    n_determined: int
    n_effective: float


def pair_freedom(objective: PairObjective, v: np.ndarray, strength: float, chi2: float, factor=None) -> PairFreedom:
    """At a minimum of an objective.

    Parameters
    ----------
    v : (g, g) or (3g, 3g) float64, Å²
    chi2 : there
    factor : square of what the data's errors are too small by; by default chi² over the degrees of freedom

    Notes
    -----
    With A the matrix of the data and R that of the prior, dV = (A + R)^-1 A dV_true + (A + R)^-1 noise: the shares are
    the diagonal of the first matrix, and the errors' covariance is (A + R)^-1 A (A + R)^-1.
    """
    curvature = Curvature(objective, v)
    values = 0.5 * objective.unit * np.maximum(curvature.values, _ROUNDING * curvature.values[-1])
    r = 0.5 * objective.unit * objective.stiff(strength)
    squared = curvature.vectors**2
    share = squared @ (values / (values + r))
    n_effective = float(share.sum())
    if factor is None:
        factor = chi2 / max(objective.n - n_effective - objective.projection.n_linear, 1.0)
    variance = factor * squared @ (values / (values + r) ** 2)
    errors = np.sqrt(factor / values[::-1])
    return PairFreedom(
        esd=_square(objective, np.sqrt(variance) * objective.relative_unit),
        share=_square(objective, share),
        errors=errors,
        n_determined=int(np.count_nonzero(errors < DETERMINED)),
        n_effective=n_effective,
    )


def _square(objective: PairObjective, elements: np.ndarray) -> np.ndarray:
    """Of elements a >= b, (P,), a symmetric matrix; of tensors all blocks."""
    g = len(objective.prior) // objective.axes
    first, second = np.tril_indices(g)
    blocks = elements
    if objective.axes == 3:
        blocks = np.array([symmetric_tensor(six) for six in elements.reshape(-1, 6)])
    result = np.zeros((g, g, *blocks.shape[1:]))
    result[first, second] = result[second, first] = blocks
    return result
