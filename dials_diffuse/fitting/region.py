"""Where the parameters of a fit may be: numbers between bounds, tensors with eigenvalues between bounds."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
from scipy.linalg import orth

from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import TensorComponents
from dials_diffuse.structure.tensors import ELEMENTS

#: fractions of the interval between bounds: a start is at least so far away from them, the search for a step begins so
#: far away, and what ended nearer than the last one reached them
_INSIDE = 1e-6
_WELL_INSIDE = 1e-3
_AT_BOUND = 1e-4

#: of the barrier: factor from one weight to the next, steps for one of them, and what ends these
_WEAKER = 0.1
_MAX_STEPS = 60
_CENTRED = 1e-2
#: relative to what a step without bounds would gain, the error that rounding leaves
_EXACT = 1e-12


class Region:
    """Bounds of numbers, and of the eigenvalues of tensors.

    The bounds of a tensor's diagonal are those of its eigenvalues, so that no frame is preferred.

    Parameters
    ----------
    prepared : its p parameters and tensors
    """

    def __init__(self, prepared: Prepared):
        self._parameters = prepared.parameters
        numbers = np.arange(len(self._parameters))
        self.lower = np.array([p.lower for p in self._parameters], dtype=float)
        self.upper = np.array([p.upper for p in self._parameters], dtype=float)
        self._tensors = [_Tensor(numbers[part], c, self.lower, self.upper) for part, c in prepared.tensors]
        in_tensors = np.concatenate([t.part for t in self._tensors]) if self._tensors else numbers[:0]
        self._numbers = np.setdiff1d(numbers, in_tensors)

    def contains(self, values: np.ndarray) -> bool:
        """Are they inside, not on the border?"""
        own = self._numbers
        inside = np.all(values[own] > self.lower[own]) and np.all(values[own] < self.upper[own])
        return bool(inside) and all(t.contains(values[t.part]) for t in self._tensors)

    def nearest(self, values, inside: float = _INSIDE) -> np.ndarray:
        """(p,) float64, the nearest values that are inside by this fraction of the interval."""
        values = np.array(values, dtype=float)
        own, margin = self._numbers, inside * (self.upper - self.lower)[self._numbers]
        values[own] = np.clip(values[own], self.lower[own] + margin, self.upper[own] - margin)
        for tensor in self._tensors:
            values[tensor.part] = tensor.nearest(values[tensor.part], inside)
        return values

    def minimum(self, matrix: np.ndarray, gradient: np.ndarray, values, moving, enough: float) -> np.ndarray:
        """(k,) float64, the step d inside the region that minimises g·d + d·M·d / 2, to within ``enough`` of it.

        Parameters
        ----------
        matrix : (k, k) float64, positive definite
        gradient : (k,) float64
        values : (p,) float64, inside; moving : (p,) bool, the k parameters that may change

        Notes
        -----
        A logarithmic barrier, weaker and weaker, with damped Newton steps, which never leave the region (the function
        is self-concordant: Boyd & Vandenberghe 2004, Convex Optimization, §9.6 and §11.3).
        """
        scale = np.sqrt(np.diag(matrix))
        matrix, gradient = matrix / np.outer(scale, scale), gradient / scale
        begin, values = values, np.where(moving, self.nearest(values, _WELL_INSIDE), values)
        n_terms = 2 * len(self._numbers) + 6 * len(self._tensors)
        most = 0.5 * float(gradient @ np.linalg.solve(matrix, gradient))
        enough = max(enough, _EXACT * most)
        weight = max(most, enough) / n_terms
        while True:
            for _ in range(_MAX_STEPS):
                first, second = self._barrier(values)
                first, second = first[moving] / scale, second[np.ix_(moving, moving)] / np.outer(scale, scale)
                step = (values - begin)[moving] * scale
                first, second = first + (gradient + matrix @ step) / weight, second + matrix / weight
                newton = -np.linalg.solve(second, first)
                decrement = math.sqrt(max(-float(first @ newton), 0.0))
                newton /= 1 + decrement if decrement > 0.25 else 1.0
                trial = values.copy()
                trial[moving] += newton / scale
                if not self.contains(trial):  # by rounding, at the border
                    return (values - begin)[moving]
                values = trial
                if decrement < _CENTRED:
                    break
            if weight * n_terms <= enough:
                return (values - begin)[moving]
            weight *= _WEAKER

    def reached(self, values: np.ndarray) -> np.ndarray:
        """(m, p) float64, the directions that lead through the bounds at which the values lie."""
        rows = [np.eye(len(values))[self._at_bounds(values)]]
        for tensor in self._tensors:
            normals = tensor.normals(values[tensor.part])
            rows.append(np.zeros((len(normals), len(values))))
            rows[-1][:, tensor.part] = normals
        return np.concatenate(rows)

    def warnings(self, values: np.ndarray) -> list:
        """A sentence for each number and each eigenvalue that ended at a bound."""
        ends = []
        for i in self._at_bounds(values):
            p = self._parameters[i]
            ends.append((p.name, f"{values[i]:.4g} {p.unit}".rstrip(), p.lower, p.upper))
        for tensor in self._tensors:
            p = self._parameters[tensor.part[0]]
            for value, direction in tensor.at_bounds(values[tensor.part]):
                along = ", ".join(f"{x:.2f}" for x in direction)
                name = "an eigenvalue of " + re.sub(r"\d\d(_\d+)?$", r"\1", p.name)
                ends.append((name, f"{value:.4g} {p.unit} along ({along})", tensor.lower, tensor.upper))
        return [
            f"{name} ended at a bound, {value} (allowed: {lower:.4g} to {upper:.4g}): the data do not determine it, or "
            "the model is wrong"
            for name, value, lower, upper in ends
        ]

    def _at_bounds(self, values: np.ndarray) -> np.ndarray:
        """Which of the numbers, not tensors, lie at a bound."""
        width = _AT_BOUND * (self.upper - self.lower)
        near = np.minimum(values - self.lower, self.upper - values) < width
        return self._numbers[near[self._numbers]]

    def _barrier(self, values: np.ndarray) -> tuple:
        """First, (p,), and second derivatives, (p, p), of minus the logarithms of the distances from the bounds."""
        first, second = np.zeros(len(values)), np.zeros((len(values),) * 2)
        own = self._numbers
        below, above = 1 / (values - self.lower)[own], 1 / (self.upper - values)[own]
        first[own] = above - below
        second[own, own] = above**2 + below**2
        for t in self._tensors:
            first[t.part], second[np.ix_(t.part, t.part)] = t.barrier(values[t.part])
        return first, second


class _Tensor:
    """One tensor among the parameters.

    Parameters
    ----------
    part : (k,) integers, its free elements among all parameters
    components : TensorComponents
    lower, upper : (p,) float64, bounds of all parameters
    """

    def __init__(self, part: np.ndarray, components: TensorComponents, lower: np.ndarray, upper: np.ndarray):
        self.part, self._components = part, components
        diagonal = part[[name in ELEMENTS[:3] for name in components.names]]
        self.lower, self.upper = lower[diagonal].min(), upper[diagonal].max()
        self._units = np.array([components.tensor(unit) for unit in np.eye(len(part))])

    def contains(self, values: np.ndarray) -> bool:
        sizes = np.linalg.eigvalsh(self._components.tensor(values))
        return bool(sizes[0] > self.lower and sizes[-1] < self.upper)

    def nearest(self, values: np.ndarray, inside: float) -> np.ndarray:
        """It keeps the point group, as every function of a tensor does."""
        sizes, directions = np.linalg.eigh(self._components.tensor(values))
        margin = inside * (self.upper - self.lower)
        allowed = np.clip(sizes, self.lower + margin, self.upper - margin)
        if np.array_equal(allowed, sizes):
            return values
        return self._components.elements((directions * allowed) @ directions.T)

    def barrier(self, values: np.ndarray) -> tuple:
        """Derivatives of -log det(T - lower) - log det(upper - T): -tr(A E_k), tr(A E_k A E_l), A the inverse."""
        tensor = self._components.tensor(values)
        below = np.linalg.inv(tensor - self.lower * np.eye(3)) @ self._units
        above = np.linalg.inv(self.upper * np.eye(3) - tensor) @ self._units
        first = np.trace(above - below, axis1=1, axis2=2)
        return first, sum(np.einsum("kab,lba->kl", x, x) for x in (below, above))

    def at_bounds(self, values: np.ndarray) -> list:
        """(eigenvalue, eigenvector) of those at a bound."""
        sizes, directions = np.linalg.eigh(self._components.tensor(values))
        width = _AT_BOUND * (self.upper - self.lower)
        near = np.minimum(sizes - self.lower, self.upper - sizes) < width
        return list(zip(sizes[near], directions.T[near]))

    def normals(self, values: np.ndarray) -> np.ndarray:
        """(m, k) float64, orthonormal: changes of what the eigenvectors at one bound have among each other.

        What those at the lower bound have with those at the upper one turns them, along both borders.
        """
        sides: tuple[list, list] = ([], [])
        for size, vector in self.at_bounds(values):
            sides[int(size - self.lower > self.upper - size)].append(vector)
        pairs = itertools.chain(*(itertools.combinations_with_replacement(side, 2) for side in sides))
        products = [self._units @ b @ a for a, b in pairs]
        return orth(np.transpose(products)).T if products else np.zeros((0, len(self.part)))
