"""Convolutions with kernels of an anisotropic correlation, and their derivatives by its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.llm.convolution import Correlation
from dials_diffuse.models.llm.kernel_table import KernelTable
from dials_diffuse.models.llm.voxel_convolution import VoxelConvolution
from dials_diffuse.models.refinable import TensorComponents
from dials_diffuse.structure.transform import quadratic_form

#: of the table of the tail, see KernelTable; it depends on the mean length only
_TAIL_LENGTHS = (0.3, 1000.0)


class MatrixKernels:
    """The C_l for a correlation matrix G = sum_k values_k E_k: one convolution for each order and derivative.

    Gamma_l = det G g_l(z), z = |G Q|², of which the derivatives follow by the chain rule.

    Parameters
    ----------
    correlation : its kernel; the matrix is ignored
    components : its free elements
    tail : function of a Correlation and an order that gives what to add to the convolution, (n,)
    """

    def __init__(
        self,
        correlation: Correlation,
        orders: int,
        convolution: VoxelConvolution,
        source: MapGrid,
        components: TensorComponents,
        tail: Callable,
    ):
        if correlation.kernel == "lorentzian" or math.isfinite(correlation.inner):
            raise DiffuseError(
                "llm.G cannot be refined with llm.kernel=lorentzian or llm.confined_to=molecule; give llm.gamma instead"
            )
        self._gaussian = correlation.kernel == "gaussian"
        self._orders = orders
        self._convolution = convolution
        self._frame = 2 * math.pi * source.reciprocal_matrix
        self._units = [components.tensor(unit) for unit in np.eye(len(components.names))]
        self._components = components

        def function(length):
            return tail(replace(correlation, matrix=length * np.eye(3)), 1)

        power = -0.5 if self._gaussian else -1.0
        angle = math.pi * (0.25 if self._gaussian else 0.5)
        fractions = [order**power for order in range(1, orders + 1)]
        self._tails = KernelTable(function, fractions, angle, *_TAIL_LENGTHS)

    def values(self, values) -> np.ndarray:
        """(orders, n) float64"""
        g = self._matrix(values)
        tails = self._tails(float(np.linalg.det(g)) ** (1 / 3))
        return np.array([self._convolve(g, order, ()) + tails[order - 1, 0] for order in range(1, self._orders + 1)])

    def first(self, values) -> tuple:
        """(orders, n) float64, the C_l, and (orders, k, n), their derivatives by the k free elements of G."""
        g = self._matrix(values)
        traces, _ = self._traces(g)
        length = float(np.linalg.det(g)) ** (1 / 3)
        tails = self._tails(length)
        slopes = np.array(
            [
                [
                    self._convolve(g, order, (k,)) + length / 3 * traces[k] * tails[order - 1, 1]
                    for k in range(len(self._units))
                ]
                for order in range(1, self._orders + 1)
            ]
        )
        return self.values(values), slopes

    def second(self, values, weights) -> np.ndarray:
        """(k, k), sum of weights, (orders, n), times the second derivatives: by the adjoint of the convolution."""
        g = self._matrix(values)
        traces, products = self._traces(g)
        length = float(np.linalg.det(g)) ** (1 / 3)
        tails = self._tails(length)
        k = len(self._units)
        result = np.zeros((k, k))
        for order in range(1, self._orders + 1):
            w = weights[order - 1]
            slope, curvature = float(w @ tails[order - 1, 1]), float(w @ tails[order - 1, 2])
            result += slope * (length / 9 * np.outer(traces, traces) - length / 3 * products)
            result += curvature * (length / 3) ** 2 * np.outer(traces, traces)
            for axes, lags in self._convolution.lags(w):
                for i in range(k):
                    for j in range(i + 1):
                        kernel = self._convolution.mean(partial(self._kernel, g=g, order=order, by=(i, j)), axes)
                        value = float(np.vdot(lags, kernel))
                        result[i, j] += value
                        if i != j:
                            result[j, i] += value
        return result

    def _matrix(self, values) -> np.ndarray:
        g = self._components.tensor(values)
        lowest = np.linalg.eigvalsh(g)[0]
        if lowest <= 0:
            raise DiffuseError(f"llm.G: no longer positive definite (eigenvalue {lowest:.3g} Å); take shorter steps")
        return g

    def _traces(self, g: np.ndarray) -> tuple:
        """tr(G^-1 E_i), (k,), and tr(G^-1 E_i G^-1 E_j), (k, k)."""
        turned = [np.linalg.solve(g, unit) for unit in self._units]
        return np.array([np.trace(t) for t in turned]), np.array([[np.trace(a @ b) for b in turned] for a in turned])

    def _convolve(self, g: np.ndarray, order: int, by: tuple) -> np.ndarray:
        return self._convolution(lambda axes: self._kernel(axes, g, order, by))

    def _kernel(self, axes, g: np.ndarray, order: int, by: tuple) -> np.ndarray:
        """Gamma_l on the box, or its derivative by the elements numbered ``by``, none, one or two."""
        volume = float(np.linalg.det(g))
        traces, products = self._traces(g)
        form = self._form(axes, g @ g)
        derivatives = self._radial(form, order)
        units = [self._units[i] for i in by]
        slopes = [self._form(axes, e @ g + g @ e) for e in units]
        if not by:
            return volume * derivatives[0]
        if len(by) == 1:
            return volume * (traces[by[0]] * derivatives[0] + derivatives[1] * slopes[0])
        i, j = by
        result = (traces[i] * traces[j] - products[i, j]) * derivatives[0]
        result += derivatives[1] * (traces[i] * slopes[1] + traces[j] * slopes[0])
        result += derivatives[1] * self._form(axes, units[0] @ units[1] + units[1] @ units[0])
        return volume * (result + derivatives[2] * slopes[0] * slopes[1])

    def _form(self, axes, tensor: np.ndarray) -> np.ndarray:
        return quadratic_form(axes, self._frame.T @ tensor @ self._frame)

    def _radial(self, z: np.ndarray, order: int) -> list:
        """g_l(z) and its first and second derivatives."""
        if self._gaussian:
            g = (2 * math.pi / order) ** 1.5 * np.exp(z * (-0.5 / order))
            return [g, g * (-0.5 / order), g * (0.25 / order**2)]
        u = 1 / (1 + z / order**2)
        g = 8 * math.pi / order**3 * u**2
        return [g, g * u * (-2 / order**2), g * u**2 * (6 / order**4)]
