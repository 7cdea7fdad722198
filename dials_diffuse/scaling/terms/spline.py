"""Terms that are tensor products of splines and of numbered categories."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.scaling import Design, Tensor, evaluate_block, fill_basis
from dials_diffuse.scaling.layout import Rows
from dials_diffuse.scaling.terms.base import Extent, Term


class Axis(NamedTuple):
    """A uniform quadratic B-spline over low … high with n coefficients, or n numbered categories where both are equal.

    column : of the positions, see :meth:`Spline.positions`
    """

    column: int
    n: int
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Spline(Term):
    """A tensor product of one to three axes.

    Attributes
    ----------
    tensor : its axes, columns of the positions; a step of zero: numbered categories
    """

    tensor: Tensor

    @classmethod
    @abstractmethod
    def shape(cls, extent: Extent) -> tuple:
        """Its axes, one to three Axis."""

    @classmethod
    def make(cls, extent: Extent, start: int) -> Spline:
        shape = cls.shape(extent)
        axes = np.array([(a.column, a.n) for a in shape], dtype=np.int64)
        limits = np.array([(a.low, (a.high - a.low) / (a.n - 2) if a.high > a.low else 0.0) for a in shape])
        return cls(start, extent.n_sweeps if cls.each_sweep else 1, Tensor(axes, limits))

    @property
    def size(self) -> int:
        return math.prod(self.tensor.axes[:, 1].tolist())

    @property
    def width(self) -> int:
        return math.prod(1 if step == 0 else 3 for step in self.tensor.limits[:, 1])

    def positions(self, coordinates: np.ndarray) -> np.ndarray:
        """(n, m) float64, columns that the axes refer to: by default the coordinates themselves."""
        return coordinates

    def value(self, coefficients: np.ndarray, rows: Rows) -> np.ndarray:
        result, x = np.empty(len(rows.experiment)), self.positions(rows.coordinates)
        evaluate_block(x, self.offset(rows.experiment), self.tensor, coefficients, result)
        return result

    def fill(self, rows: Rows, factor: np.ndarray, design: Design, at: int) -> None:
        fill_basis(self.positions(rows.coordinates), self.offset(rows.experiment), self.tensor, factor, design, at)

    def penalty(self) -> np.ndarray:
        """Sum of squared second differences along each axis; of squares for numbered categories."""
        result = np.zeros((self.size, self.size))
        number, steps = self.tensor.axes[:, 1], self.tensor.limits[:, 1]
        for k, (n, step) in enumerate(zip(number, steps)):
            d = np.eye(n) if step == 0 else np.diff(np.eye(n), 2, axis=0)
            factors = [np.eye(m) for m in number]
            factors[k] = d.T @ d
            product = factors[0]
            for f in factors[1:]:
                product = np.kron(product, f)
            result += product
        return result
