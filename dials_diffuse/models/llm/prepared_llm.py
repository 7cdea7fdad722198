"""Liquid-like motions at fixed voxels as a function of the displacement and the correlation length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.checks import fitted
from dials_diffuse.models.llm.convolution import TAIL_NODES, Correlation
from dials_diffuse.models.llm.kernel_table import KernelTable
from dials_diffuse.models.llm.matrix_kernels import MatrixKernels
from dials_diffuse.models.llm.voxel_convolution import VoxelConvolution
from dials_diffuse.models.prepared import Prepared, Square
from dials_diffuse.models.refinable import Parameter
from dials_diffuse.models.single_atoms import displaced_at, radial, squares
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.transform import quadratic_form

#: half angle of the sector of complex lengths in which c(r) stays below 1
_ANGLES = {"exponential": 0.5 * math.pi, "gaussian": 0.25 * math.pi, "lorentzian": 0.5 * math.pi}


class PreparedLiquidLikeMotions(Prepared):
    """I = sum over l of x^l / l! C_l + incoherent part, x = qᵀVq, C_l the convolution of |F|² with Gamma_l.

    For one correlation length the C_l are tabulated over it, see :class:`KernelTable`; for a matrix G they and their
    derivatives are computed for each one. |F|² is taken as far out as the model's own correlation length asks for.

    Parameters
    ----------
    model : LiquidLikeMotions
    index : (n, 3) int64, inside 1/d_min of the grid
    means : average C_l over voxels; x and the incoherent part are those of their centres
    """

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False):
        self.origin, self.structure, self.means = model, structure, means
        self.parameters = model.parameters(structure)
        components, self._correlation_components = model.components(structure)
        self._split = 1 if components is None else len(components.names)
        self._overall = model.adp == "overall"
        structure, grid = fitted(structure, grid)
        if self._overall:
            structure = structure.without_displacements()
        s = grid.s(index)
        s2 = np.sum(s**2, axis=1)
        self._square = Square(2 * np.pi * s, components)
        self._constant = self._own = 0.0
        if model.incoherent:
            self._constant = squares(structure, s2, model.table)
            self._own = self._constant if self._overall else displaced_at(structure.expand(), grid, index, model.table)
        self._q = 2 * np.pi * np.sqrt(s2)
        self._local = radial(lambda x: model.decay(structure, x), s2) if model.local_form_factor else None
        work = model.work_grid(structure, grid)
        correlation, strength, source, mean = model.strength(structure, work)
        self._beyond = 2 * np.pi / source.d_min, mean
        self._tail_nodes = np.linspace(0, 2 * np.pi / grid.d_min, TAIL_NODES)
        index = index * (np.array(work.subdivide) // np.array(grid.subdivide))
        width = np.divide(source.unit_cell[:3], grid.unit_cell[:3]) / grid.subdivide if means else None
        convolution = VoxelConvolution(strength, source, work, index, model.operators(grid), self._dtype, width)
        if self._correlation_components is None:
            gamma = self.parameters[-1]
            self._kernels = LengthKernels(correlation, model.orders, convolution, source, gamma, self._tail)
        else:
            components = self._correlation_components
            self._kernels = MatrixKernels(correlation, model.orders, convolution, source, components, self._tail)

    @property
    def _dtype(self):
        """Of the transforms: tables are smooth whatever their nodes, repeated convolutions are not."""
        return np.float32 if self._correlation_components is None else np.float64

    def _tail(self, correlation: Correlation, order: int) -> np.ndarray:
        """(n,) float64, what the reflections beyond those of the strength would add."""
        q_max, mean = self._beyond
        return np.interp(self._q, self._tail_nodes, correlation.tail(self._tail_nodes, q_max, mean, order))

    @cached_property
    def tensors(self) -> list:
        found = []
        if self._square.components is not None:
            found.append((slice(0, self._split), self._square.components))
        if self._correlation_components is not None:
            found.append((slice(self._split, None), self._correlation_components))
        return found

    def intensity(self, values) -> np.ndarray:
        values = self._checked(values)
        x, _ = self._square(values[: self._split])
        factors, rest = self._by_square(x, 0)
        return rest + np.einsum("ln,ln->n", factors, self._kernels.values(values[self._split :]))

    def jacobian(self, values) -> tuple:
        values = self._checked(values)
        x, first = self._square(values[: self._split])
        kernels, slopes = self._kernels.first(values[self._split :])
        factors, rest = self._by_square(x, 0)
        derivatives, rest_derivative = self._by_square(x, 1)
        jacobian = np.empty((len(x), len(values)))
        by_x = rest_derivative + np.einsum("ln,ln->n", derivatives, kernels)
        jacobian[:, : self._split] = by_x[:, None] * first
        jacobian[:, self._split :] = np.einsum("ln,lkn->nk", factors, slopes)
        return rest + np.einsum("ln,ln->n", factors, kernels), jacobian

    def second(self, values, weights) -> np.ndarray:
        values = self._checked(values)
        x, first = self._square(values[: self._split])
        kernels, slopes = self._kernels.first(values[self._split :])
        zeroth, one, two = (self._by_square(x, d) for d in range(3))
        by_x = weights * (one[1] + np.einsum("ln,ln->n", one[0], kernels))
        by_xx = weights * (two[1] + np.einsum("ln,ln->n", two[0], kernels))
        result = np.empty((len(values),) * 2)
        here, there = slice(0, self._split), slice(self._split, None)
        result[here, here] = (first.T * by_xx) @ first + self._square.second(by_x)
        result[here, there] = first.T @ (weights[:, None] * np.einsum("ln,lkn->nk", one[0], slopes))
        result[there, here] = result[here, there].T
        result[there, there] = self._kernels.second(values[self._split :], weights * zeroth[0])
        return result

    def _by_square(self, x: np.ndarray, derivative: int) -> tuple:
        """A derivative by x of the factors of the C_l, (orders, n), and of what does not depend on the C_l, (n,)."""
        orders = self.origin.orders
        powers = [np.zeros_like(x)] * 2 + [np.ones_like(x)]  # x^l / l! from l = -2
        for order in range(1, orders + 1):
            powers.append(powers[-1] * x / order)
        powers = np.array(powers)

        def derived(d):
            return powers[3 - d : 3 - d + orders], powers[2 : 3 - d + orders].sum(axis=0)

        if self._overall:  # times exp(-x): the derivatives of f exp(-x) are (f' - f), (f'' - 2 f' + f) times exp(-x)
            signs = [[1], [-1, 1], [1, -2, 1]][derivative]
            parts = [derived(d) for d in range(derivative + 1)]
            damping = np.exp(-x)
            factors, own = (sum(s * p[k] for s, p in zip(signs, parts)) * damping for k in range(2))
        else:
            factors, own = derived(derivative)
        if self._local is not None:
            factors = factors * self._local
        constant = self._constant if derivative == 0 else 0.0
        return factors, constant - self._own * own


class LengthKernels:
    """The C_l for one correlation length gamma, from tables.

    Parameters
    ----------
    correlation : its kernel; the length is ignored
    gamma : Parameter
    tail : function of a Correlation and an order that gives what to add to the convolution, (n,)
    """

    def __init__(
        self,
        correlation: Correlation,
        orders: int,
        convolution: VoxelConvolution,
        source: MapGrid,
        gamma: Parameter,
        tail: Callable,
    ):
        metric = (2 * math.pi) ** 2 * source.reciprocal_matrix.T @ source.reciprocal_matrix

        def convolved(length: float, order: int) -> np.ndarray:
            changed = replace(correlation, matrix=length * np.eye(3))

            def kernel(axes):
                return changed.transform(quadratic_form(axes, (length**2 * metric).astype(axes[0].dtype)), order)

            return convolution(kernel) + tail(changed, order)

        angle = _ANGLES[correlation.kernel]
        orders = range(1, orders + 1)
        self._bounds = gamma.lower, gamma.upper
        if correlation.kernel == "lorentzian":
            self._tables = [
                KernelTable(lambda x, order=order: convolved(x, order), [1.0], angle, *self._bounds) for order in orders
            ]
        else:  # c^l is c of a shorter length
            power = -1.0 if correlation.kernel == "exponential" else -0.5
            fractions = [order**power for order in orders]
            self._tables = [KernelTable(lambda x: convolved(x, 1), fractions, angle, *self._bounds)]

    def _all(self, values) -> np.ndarray:
        """(orders, 3, n), the C_l and their first and second derivatives."""
        length = float(values[0])
        if not self._bounds[0] <= length <= self._bounds[1]:
            raise DiffuseError(
                f"llm.gamma={length:g}: outside its bounds, {self._bounds[0]:g} ... {self._bounds[1]:g} Å"
            )
        return np.concatenate([table(length) for table in self._tables])

    def values(self, values) -> np.ndarray:
        """(orders, n) float64"""
        return self._all(values)[:, 0]

    def first(self, values) -> tuple:
        """(orders, n) float64, the C_l, and (orders, 1, n), their derivatives by gamma."""
        everything = self._all(values)
        return everything[:, 0], everything[:, 1:2]

    def second(self, values, weights) -> np.ndarray:
        """(1, 1), sum of weights, (orders, n), times the second derivatives."""
        return np.full((1, 1), np.einsum("ln,ln->", weights, self._all(values)[:, 2]))
