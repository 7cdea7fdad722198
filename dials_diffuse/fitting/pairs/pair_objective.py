"""What is minimised when the covariance of every pair of groups is fitted, with slopes and curvature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.motion import flattened


@dataclass(frozen=True)
class Sample:
    """Some of the voxels that are fitted, from which curvatures are estimated.

    Attributes
    ----------
    rows : (m,) int64, of the data, none of them free
    groups : at these voxels alone
    """

    rows: np.ndarray
    groups: GroupCovariance


class PairObjective:
    """O(V) = chi²(V) / chi²(prior) + strength times the mean square deviation from the prior; scale, background best.

    The deviation of each element is relative to the geometric mean of the prior's variances. V may be given as such,
    or as its root L, V = L Lᵀ with L a lower triangle, so that it is positive semidefinite whatever the elements of L.
    Tensors V_ab are put together into one (3g, 3g) matrix, x, y, z of each group side by side.

    Parameters
    ----------
    groups : at all n voxels of the data
    projection : of the voxels that are fitted
    weights : (n,) float64
    work : (n,) bool, the voxels that are fitted
    prior : (g, g) or (g, g, 3, 3) float64, Å²
    background : at all voxels; needed for :meth:`curvature` only, as is
    sample : for the curvature; by default all voxels that are fitted
    """

    def __init__(
        self,
        groups: GroupCovariance,
        projection: Projection,
        weights: np.ndarray,
        work: np.ndarray,
        prior: np.ndarray,
        background: Background | None = None,
        sample: Sample | None = None,
    ):
        self.groups, self.projection, self._work = groups, projection, work
        self._weights, self._background = weights, background
        self._sample = sample
        self.prior = flattened(prior)
        self.axes = 1 if prior.ndim == 2 else 3
        self.triangle = np.tril_indices(len(self.prior))
        variance = np.trace(prior, axis1=-2, axis2=-1) / 3 if self.axes == 3 else prior
        root = np.repeat(np.sqrt(np.diag(variance)), self.axes)
        self.size = np.outer(root, root)  # Å², what deviations are relative to
        self.n = int(np.count_nonzero(work))
        self.unit = projection.objective(groups.intensity(self.unfolded(self.prior))[work])

    # ------------------------------------------------------------------------------------------------------- value

    def unfolded(self, v: np.ndarray) -> np.ndarray:
        """V as the model wants it: (g, g), or (g, g, 3, 3) of a (3g, 3g)."""
        if self.axes == 1:
            return v
        g = len(v) // 3
        return np.ascontiguousarray(v.reshape(g, 3, g, 3).transpose(0, 2, 1, 3))

    def value(self, v: np.ndarray, strength: float) -> float:
        """O of a symmetric V."""
        chi2 = self.projection.objective(self.groups.intensity(self.unfolded(v))[self._work])
        return chi2 / self.unit + strength * float(np.mean(((v - self.prior) / self.size) ** 2))

    def slope(self, v: np.ndarray, strength: float) -> tuple:
        """O and the symmetric matrix D of its derivatives: dO = sum over all a, b of D_ab dV_ab."""
        solved = self.projection.solve(self.groups.intensity(self.unfolded(v))[self._work])
        r = np.zeros(self.groups.n)
        r[self._work] = -2 * solved.scale * self._weights[self._work] * solved.residual / self.unit
        deviation = (v - self.prior) / self.size
        slope = flattened(self.groups.vjp(self.unfolded(v), r)) + 2 * strength * deviation / self.size / v.size
        return solved.objective / self.unit + strength * float(np.mean(deviation**2)), slope

    # --------------------------------------------------------------------------------------------------- by the root

    def root(self, x: np.ndarray) -> np.ndarray:
        """L, a lower triangle of the elements x."""
        root = np.zeros(self.prior.shape)
        root[self.triangle] = x
        return root

    def start(self, v: np.ndarray, ridge: float) -> np.ndarray:
        """Elements of the root of V, made more definite by a fraction of its mean variance."""
        return np.linalg.cholesky(v + ridge * np.trace(v) / len(v) * np.eye(len(v)))[self.triangle]

    def covariance(self, x: np.ndarray) -> np.ndarray:
        root = self.root(x)
        return root @ root.T

    def slope_by_root(self, x: np.ndarray, strength: float) -> tuple:
        """O and its derivatives by the elements of L."""
        root = self.root(x)
        value, slope = self.slope(root @ root.T, strength)
        return value, (2 * slope @ root)[self.triangle]

    # ----------------------------------------------------------------------------------------------------- curvature

    def curvature(self, v: np.ndarray) -> np.ndarray:
        """(P, P), half the Gauss-Newton matrix of chi² by v_ab, a >= b; scale and background best.

        Of tensors by the six elements of each, of the symmetric part, which alone scatters.

        Of a sample of the voxels it is an estimate: that of the sample times the ratio of the numbers.
        """
        v = self.unfolded(v)
        rows = np.flatnonzero(self._work) if self._sample is None else self._sample.rows
        groups = self.groups if self._sample is None else self._sample.groups
        scale = self.projection.solve(self.groups.intensity(v)[self._work]).scale

        def spread(values):
            """At all points of ``groups``, 0 at those that are not used."""
            if self._sample is not None:
                return values
            everywhere = np.zeros(groups.n)
            everywhere[rows] = values
            return everywhere

        w = self._weights[rows]
        matrix = groups.normal_matrix(v, spread(w))
        columns = []
        if self.projection.scale is None:
            intensity = groups.intensity(v)
            columns.append(intensity if self._sample is not None else intensity[rows])
        if self._background is not None and self._background.n_terms:
            columns += list(self._background.at(rows).matrix.toarray().T)
        if columns:
            design = np.array(columns)
            cross = np.array([groups.gradient_of_pairs(v, spread(w * c)).reshape(-1) for c in design])
            # a column that touches no voxel, or an intensity that the background can follow, has nothing to take away
            matrix = matrix - cross.T @ np.linalg.pinv((design * w) @ design.T, rcond=1e-12, hermitian=True) @ cross
        return scale**2 * self.n / len(rows) * matrix

    @property
    def relative_unit(self) -> np.ndarray:
        """(P,) float64, Å²: unit of V_ab, a >= b, in which the prior is a sum of squares, as in :meth:`curvature`."""
        first, second = np.tril_indices(len(self.prior) // self.axes)
        unit = self.size[first * self.axes, second * self.axes] / np.where(first == second, 1.0, 2**0.5)
        if self.axes == 1:
            return unit
        return (unit[:, None] / np.sqrt([1, 1, 1, 2, 2, 2])).reshape(-1)

    def stiff(self, strength: float) -> float:
        """Second derivative of the prior's part of O by each element of V divided by ``relative_unit``."""
        return 2 * strength / self.prior.size
