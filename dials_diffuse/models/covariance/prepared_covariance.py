"""Covariances of few parameters at fixed voxels: kernels of the distance, elastic networks."""

from __future__ import annotations

import logging
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_centres

logger = logging.getLogger("dials.diffuse.models")

TOO_LARGE_FOR_MEANS = "covariance: too large to be averaged over voxels, taken at their centres"


class PreparedCovariance(Prepared):
    """I(V(values)), by the chain rule from the derivatives by all elements of V, those of :class:`GroupCovariance`.

    V is linear in sigma², or in the free elements of the tensor, times a matrix that depends on gamma. Without
    parameters V is that of the model.

    Parameters
    ----------
    model : Covariance
    index : (n, 3) int64, inside 1/d_min of the grid
    means : average over voxels, where that can be afforded, see :meth:`Covariance.group_covariance`
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False):
        self.origin, self.structure = model, structure
        self.parameters = model.parameters(structure)
        self.groups = model.group_covariance(structure, grid, index, means)
        self.means = self.groups.means
        if means and not self.means:
            logger.info(TOO_LARGE_FOR_MEANS)
        structure, _ = fitted(structure, grid)
        self._components = model.components(structure)
        self._fixed = model.motion(structure).covariance
        structure, labels = model.placed(structure)
        centres = group_centres(structure, labels)
        self._distances = cdist(centres, centres)
        self._network = model.kernel == "elastic_network"
        self._cells = model.cells
        self._placed = structure, labels

    @cached_property
    def tensors(self) -> list:
        if self._components is None:
            return []
        return [(slice(0, len(self._components.names)), self._components)]

    def covariance(self, values) -> np.ndarray:
        """V of the groups, Å²"""
        return self._derivatives(values)[0]

    def intensity(self, values) -> np.ndarray:
        return self.groups.intensity(self.covariance(values)) / self._cells

    def jacobian(self, values) -> tuple:
        v, first, _ = self._derivatives(values)
        jacobian = np.empty((self.groups.n, len(first)))
        for column, dv in zip(jacobian.T, first):
            column[:] = self.groups.jvp(v, dv) / self._cells
        return self.groups.intensity(v) / self._cells, jacobian

    def second(self, values, weights) -> np.ndarray:
        v, first, second = self._derivatives(values)
        result = np.zeros((len(first),) * 2)
        if not first:
            return result
        weights = weights / self._cells
        gradient = self.groups.vjp(v, weights)
        for i, dv in enumerate(first):
            curvature = self.groups.hvp(v, weights, dv)
            for j in range(i + 1):
                result[i, j] = result[j, i] = np.vdot(curvature, first[j]) + np.vdot(gradient, second[i, j])
        return result

    def _derivatives(self, values) -> tuple:
        """V, its first derivatives, and a dict of the second, [i, j] with i >= j."""
        values = self._checked(values)
        if len(values) == 0:
            return self._fixed, [], {}
        if self._network:
            network = self.model(values).network
            v, first, second = network.derivatives(*self._placed, float(values[0]), self.origin.supercell or (1, 1, 1))
            return v, first[: len(values)], second
        scales, scale_slopes, curvature = self._scales(values)
        c, dc, ddc = self.origin.correlation(self._distances, float(values[-1]))

        def product(matrix, scale):
            return matrix * scale if np.ndim(scale) == 0 else matrix[:, :, None, None] * scale

        k = len(values) - 1
        first = [product(c, slope) for slope in scale_slopes] + [product(dc, scales)]
        second = {(i, j): np.zeros_like(first[0]) for i in range(k) for j in range(i + 1)}
        if self._components is None:
            second[0, 0] = product(c, curvature)
        second.update({(k, j): product(dc, scale_slopes[j]) for j in range(k)})
        second[k, k] = product(ddc, scales)
        return product(c, scales), first, second

    def _scales(self, values) -> tuple:
        """sigma² or the tensor V, its derivatives, and the second derivative by sigma."""
        if self._components is None:
            sigma = float(values[0])
            return sigma**2, [2 * sigma], 2.0
        k = len(self._components.names)
        return self._components.tensor(values[:k]), [self._components.tensor(e) for e in np.eye(k)], None
