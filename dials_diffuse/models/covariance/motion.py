"""Joint displacements of atoms or groups: their covariance, and the pair sum over them at any points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import lambertw

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.pair_sum import (
    amplitudes,
    displaced_squares,
    exponential_matrix,
    pair_form,
    pair_form_isotropic,
)
from dials_diffuse.parallel import cores, in_threads, row_ranges
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors

#: a covariance may be this far from symmetric and positive semidefinite, relative to its largest element
_ROUNDING = 1e-7

#: amplitudes that are in memory together
_TERMS = 1 << 21

#: multiplications and additions of a matrix product in the time of one exponential; measured, of use for choices only
_PRODUCTS_PER_EXPONENTIAL = 150
#: multiplications and additions of a matrix product in the time of one pair of the pair sum
_PRODUCTS_PER_PAIR = 250

#: rows of amplitudes that are multiplied by a matrix together
_ROWS = 1024
#: columns of the matrix in a block of its triangle
_COLUMNS = 128


def checked_covariance(name: str, values, n: int) -> np.ndarray:
    """A covariance of n bodies as (n, n) float64, isotropic, or (n, n, 3, 3) float64, in Å².

    Parameters
    ----------
    name : of the parameter, for messages
    values : (n, n), (3n, 3n) with x, y, z of each body together, or (n, n, 3, 3)

    Raises
    ------
    DiffuseError
        If the shape is another, a value is not finite, or V is not symmetric and positive semidefinite.
    """
    values = np.asarray(values, dtype=float)
    if values.shape == (3 * n, 3 * n) and n > 0:
        values = values.reshape(n, 3, n, 3).transpose(0, 2, 1, 3)
    if values.shape not in ((n, n), (n, n, 3, 3)):
        raise DiffuseError(f"{name}: shape {values.shape}; {n} bodies need ({n}, {n}) or ({3 * n}, {3 * n})")
    if not np.all(np.isfinite(values)):
        raise DiffuseError(f"{name}: has values that are not finite")
    flat = flattened(values)
    tolerance = _ROUNDING * max(np.abs(flat).max(), 1e-300)
    if np.abs(flat - flat.T).max() > tolerance:
        raise DiffuseError(
            f"{name}: is not symmetric (differs from its transpose by {np.abs(flat - flat.T).max():.3g})"
        )
    flat = 0.5 * (flat + flat.T)
    try:
        np.linalg.cholesky(flat + tolerance * len(flat) ** 0.5 * np.eye(len(flat)))
    except np.linalg.LinAlgError:
        eigenvalues = np.linalg.eigvalsh(flat)
        raise DiffuseError(
            f"{name}: is not positive semidefinite, so that no displacements have this covariance; its lowest "
            f"eigenvalue is {eigenvalues[0]:.3g} Å², the highest {eigenvalues[-1]:.3g} Å²"
        ) from None
    return flat if values.ndim == 2 else np.ascontiguousarray(flat.reshape(n, 3, n, 3).transpose(0, 2, 1, 3))


def flattened(values: np.ndarray) -> np.ndarray:
    """(n, n) or (n, n, 3, 3) as one symmetric matrix, (n, n) or (3n, 3n)."""
    if values.ndim == 2:
        return values
    n = len(values)
    return values.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)


class Motion(ABC):
    """Atoms whose displacements have a joint normal distribution.

    A subclass has the attributes ``structure``, the atoms without symmetry; ``labels``, (n,) int64, the body of each;
    ``soft``: each atom has its own U from the structure, of which the body's displacement is a part, otherwise it has
    the body's displacement alone.
    """

    structure: Structure
    labels: np.ndarray
    soft: bool

    @abstractmethod
    def between(self, i, j) -> np.ndarray:
        """(m, 3, 3) float64, Å², covariance that the atoms i and j, (m,) integers each, have from their bodies."""

    @cached_property
    def shared(self) -> np.ndarray:
        """(n, 3, 3) float64, Å², covariance of each atom's displacement with its body."""
        return self.between(np.arange(len(self.labels)), np.arange(len(self.labels)))

    @cached_property
    def own(self) -> np.ndarray:
        """(n, 3, 3) float64, Å², U in the Debye-Waller factor of each atom."""
        return self.structure.u_cart if self.soft else self.shared

    @property
    def mean_square(self) -> float:
        """Å², of an atom's displacement along a line, the mean over atoms."""
        return float(np.trace(self.own, axis1=1, axis2=2).mean() / 3)

    def with_shared(self, structure: Structure) -> Structure:
        """The structure whose atoms have the displacements of their bodies instead of their own."""
        return replace(structure, u_cart=self.shared)


@dataclass(frozen=True, eq=False)
class BodyMotion(Motion):
    """Bodies that translate and rotate, each by itself.

    Attributes
    ----------
    labels : -1 for atoms in no body, which stand still unless ``soft``
    modes : (n, 3, k) float64, displacement of each atom by the coordinates of its body
    covariances : (g, k, k) float64, of the coordinates of each body
    """

    structure: Structure
    labels: np.ndarray
    modes: np.ndarray
    covariances: np.ndarray
    soft: bool = False

    def between(self, i, j) -> np.ndarray:
        together = (self.labels[i] == self.labels[j]) & (self.labels[i] >= 0)
        covariance = np.where(together[:, None, None], self.covariances[self.labels[i]], 0.0)
        return self.modes[i] @ covariance @ self.modes[j].transpose(0, 2, 1)

    @property
    def normal_modes(self) -> np.ndarray:
        """(g k, n, 3) float64, Å: V_ij is the sum over modes of v_i v_jᵀ."""
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        result = np.zeros((len(roots), roots.shape[2], len(self.labels), 3))
        for number, root in enumerate(roots):
            mine = self.labels == number
            result[number][:, mine] = np.moveaxis(self.modes[mine] @ root, 2, 0)
        return result.reshape(-1, len(self.labels), 3)


@dataclass(frozen=True, eq=False)
class JointMotion(Motion):
    """Bodies whose displacements have any joint normal distribution.

    Attributes
    ----------
    labels : atoms of one body share its displacement
    covariance : (g, g) or (g, g, 3, 3) float64, Å², of the bodies' displacements, Cartesian frame of the structure
    """

    structure: Structure
    labels: np.ndarray
    covariance: np.ndarray
    soft: bool = False

    @property
    def isotropic(self) -> bool:
        return self.covariance.ndim == 2

    def between(self, i, j) -> np.ndarray:
        v = self.covariance[self.labels[i], self.labels[j]]
        return v[:, None, None] * np.eye(3) if self.isotropic else v

    def blocks(self, s: np.ndarray) -> list:
        """Rows of s, (m, 3), that are in memory together, each block in ascending order of |s|.

        That is good for the shells of the Chebyshev engine. A block by itself is one block again, in the same order.
        """
        order = np.argsort(np.sum(s**2, axis=1), kind="stable")
        step = max(_ROWS, _TERMS // self.structure.n_atoms)
        return [order[start : start + step] for start in range(0, len(s), step)]

    def coherent(self, s: np.ndarray, table: str, engine: str, tolerance: float) -> np.ndarray:
        """Sum over bodies of F_g conj(F_g') (exp(q V q) - 1), F with Debye-Waller factors; (m,) float64, electrons².

        s : (m, 3) float64, 1/Å, Cartesian frame of the structure; engine : ``pair_sum`` or ``chebyshev``
        """
        result = np.empty(len(s))
        for where in self.blocks(s):
            q = 2 * math.pi * s[where]
            a = self.amplitudes(s[where], table)
            if engine == "chebyshev":
                result[where] = chebyshev_form(np.sum(q**2, axis=1), a, self.covariance, tolerance)
            elif self.isotropic:
                result[where] = on_rows(pair_form_isotropic, (np.sum(q**2, axis=1), a), (self.covariance,))
            else:
                result[where] = on_rows(pair_form, (q, a), (self.covariance,))
        return result

    def amplitudes(self, s: np.ndarray, table: str, offsets: np.ndarray | None = None) -> np.ndarray:
        """(m, g) complex128, structure factors of the bodies, with Debye-Waller factors, in electrons.

        offsets : (k, 3) float64, 1/Å; then (k, m, g), those at s + offset, but with the form factors and Debye-Waller
            factors of s
        """
        structure = self.structure
        f = form_factors(structure, np.linalg.norm(s, axis=1), table)
        order = np.argsort(self.labels, kind="stable")
        terms = np.empty((len(s), structure.n_atoms), dtype=np.complex128)
        sites, kinds, own = structure.site_cart[order], structure.type_index[order], self.own[order]
        on_rows(
            lambda q, rows, out: amplitudes(q, sites, kinds, _columns(f, rows), own, out),
            (2 * math.pi * s, np.arange(len(s))),
            (),
            terms,
        )
        terms *= structure.occupancy[order]
        first = np.searchsorted(self.labels[order], np.arange(len(self.covariance)))
        if offsets is not None:
            phases = np.exp(2j * math.pi * sites @ offsets.T)
            result = np.empty((len(offsets), len(s), len(first)), dtype=np.complex128)
            for body, (start, stop) in enumerate(zip(first, [*first[1:], len(sites)])):
                result[:, :, body] = (terms[:, start:stop] @ phases[start:stop]).T
            return result
        return terms if len(first) == structure.n_atoms else np.add.reduceat(terms, first, axis=1)

    def remainder(self, s: np.ndarray, share: np.ndarray, table: str) -> np.ndarray:
        """What the coherent part lacks to make each atom's own term share |f|² (1 - exp(-qUq)); (m,), electrons².

        share : (n,) float64, that the atom's occupancy contains: on a special position below 1
        """
        structure = self.structure
        f2 = form_factors(structure, np.linalg.norm(s, axis=1), table) ** 2
        squared = structure.occupancy**2
        q = 2 * math.pi * s
        result = np.bincount(structure.type_index, squared / share, len(structure.types)) @ f2
        out = np.empty(len(s))
        for tensor, weight in ((self.own, squared - squared / share), (self.own - self.shared, -squared)):
            if np.any(weight):
                displaced_squares(q, structure.type_index, f2, tensor, weight, out)
                result += out
        return result


def chebyshev_form(square: np.ndarray, a: np.ndarray, v: np.ndarray, tolerance: float) -> np.ndarray:
    """I = Re sum_ij a_i conj(a_j) (exp(x v_ij) - 1), x = q², by matrix products.

    (exp(xv) - 1) / x is interpolated in x between Chebyshev nodes of shells. With k nodes in a shell of half width h
    the error of each pair's term is below x |v| exp((x + 2h) v+) (|v| h)^k / (2^(k-1) (k+1)!), and by the choice of h
    below ``tolerance`` x |v| exp(x v+); v+ is the larger of v and 0. The number of nodes is the one that costs least.

    Parameters
    ----------
    square : (m,) float64, q² in 1/Å²
    a : (m, n) complex128, amplitudes with Debye-Waller factors
    v : (n, n) float64, Å², symmetric

    Returns
    -------
    (m,) float64
    """
    order = np.argsort(square, kind="stable")
    x = square[order]
    result = np.zeros(len(x))
    largest = np.abs(v).max()
    if largest == 0 or len(x) == 0:
        return result
    nodes, half_width = shells(len(x), len(v), x[-1] - x[0], largest, tolerance)
    matrix = np.zeros_like(v)
    start = 0
    while start < len(x):
        stop = np.searchsorted(x, x[start] + 2 * half_width, side="right")
        points, weights = lagrange_weights(x[start:stop], nodes)
        for point, weight in zip(points, weights):
            _fill(max(point, 1e-9), v, matrix)
            for row in range(start, stop, _ROWS):
                part = a[order[row : min(row + _ROWS, stop)]]
                values = _quadratic(part, matrix)
                result[row : row + len(part)] += weight[row - start : row - start + len(part)] * values
        start = stop
    out = np.empty(len(x))
    out[order] = result * x
    return out


def shells(m: int, n: int, span: float, largest: float, tolerance: float) -> tuple:
    """Nodes in a shell and its half width: those that cost least."""
    best = None
    for nodes in range(1, 25):
        # largest y = |v| h for which y^k exp(2y) is tolerance 2^(k-1) (k+1)!
        root = (tolerance * 2 ** (nodes - 1) * math.factorial(nodes + 1)) ** (1 / nodes)
        reach = 0.5 * nodes * float(lambertw(2 * root / nodes).real) / largest
        number = min(m, max(1, math.ceil(span / (2 * reach))))
        cost = nodes * (4 * m + number * _PRODUCTS_PER_EXPONENTIAL)
        if best is None or cost < best[0]:
            best = cost, nodes, reach
    return best[1:]


def lagrange_weights(x: np.ndarray, n: int) -> tuple:
    """Chebyshev nodes in the range of x (ascending), and the (n, len(x)) values of the Lagrange polynomials."""
    middle, half = 0.5 * (x[0] + x[-1]), 0.5 * (x[-1] - x[0])
    if half == 0:
        return np.array([middle]), np.ones((1, len(x)))
    unit = np.cos(math.pi * (np.arange(n) + 0.5) / n)
    t = (x - middle) / half
    others = [np.delete(unit, k) for k in range(n)]
    weights = [np.prod((t[:, None] - o) / (u - o), axis=1) for u, o in zip(unit, others)]
    return middle + half * unit, np.array(weights)


def _fill(x: float, v: np.ndarray, out: np.ndarray) -> None:
    """:func:`exponential_matrix` of all rows, those of each thread with equal shares of the triangle."""
    threads = cores() if len(v) > _COLUMNS else 1
    limits = np.rint(len(v) * np.sqrt(np.linspace(0, 1, threads + 1))).astype(int)
    list(in_threads(lambda i: exponential_matrix(x, v, limits[i], limits[i + 1], out), range(threads), threads))


def _quadratic(a: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """(m,) Re sum_ij a_i L_ij conj(a_j) of (m, n) complex a and a lower triangle, by blocks of columns."""
    parts = np.concatenate([a.real, a.imag])
    total = np.zeros(len(parts))
    for start in range(0, lower.shape[1], _COLUMNS):
        stop = start + _COLUMNS
        product = parts[:, start:] @ lower[start:, start:stop]
        total += np.einsum("mi,mi->m", product, parts[:, start:stop])
    return total[: len(a)] + total[len(a) :]


def cost_of_pair_form(m: int, n: int) -> float:
    """In products of numbers, for m points and n bodies."""
    return 0.5 * m * n**2 * _PRODUCTS_PER_PAIR


def cost_of_chebyshev(m: int, n: int, span: float, largest: float, tolerance: float) -> float:
    """In products of numbers, for m points and n bodies; span: range of q² in 1/Å², largest: of |v| in Å²."""
    nodes, reach = shells(m, n, span, largest, tolerance)
    number = min(m, max(1, math.ceil(span / (2 * reach))))
    return nodes * n**2 * (2 * m + 0.5 * number * _PRODUCTS_PER_EXPONENTIAL)


def on_rows(kernel, rows: tuple, rest: tuple, out: np.ndarray | None = None) -> np.ndarray:
    """Call ``kernel(*rows, *rest, out)`` with a part of the rows in each thread; it must release the lock.

    rows : arrays of equal length m; out : (m, ...) array, by default (m,) float64
    """
    m = len(rows[0])
    out = np.empty(m) if out is None else out
    threads = min(cores(), max(1, m // 16))

    def part(where):
        kernel(*(array[where] for array in rows), *rest, out[where])

    list(in_threads(part, row_ranges(m, threads), threads))
    return out


def _columns(f: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(f[:, rows])
