"""Groups of atoms whose displacements have isotropic covariances: products of amplitudes, interpolated in q²."""

from __future__ import annotations

import numpy as np

from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.group_scattering import GroupScattering
from dials_diffuse.models.covariance.motion import lagrange_weights, shells
from dials_diffuse.models.covariance.pair_kernel import PairKernel

#: shells of x are made for covariances this much larger than V, and made anew when V has shrunk below the second
_GROW = 1.5
_SHRINK = 0.1


class IsotropicGroups(GroupCovariance):
    """V are numbers, (g, g), Å².

    The products of amplitudes are summed over the copies, n g²/2 numbers; K is interpolated in x = q² in shells, within
    ``tolerance`` x |v| exp(x |v|) for each pair, see :func:`motion.chebyshev_form`.

    Means over voxels: the products are averaged over the points, so that evaluations cost what they cost without. What
    varies slowly, K/x, form and Debye-Waller factors, follows the mean square of an atom's scattering.

    Parameters
    ----------
    free : see ``adp`` of :class:`GroupCovariance`
    tolerance : of the interpolation
    dtype : of the products
    keep : keep the products, instead of making them anew each time
    """

    def __init__(self, scattering: GroupScattering, free: bool, tolerance: float, dtype, keep: bool):
        super().__init__(scattering, free)
        self._tolerance, self._dtype = tolerance, dtype
        self._kernel = PairKernel(self._g, free)
        self._covered, self._shells = 0.0, []
        single = scattering.single.sum(axis=0)
        self._kept = self._amplitudes = None
        if not keep:
            self._amplitudes, self._own = scattering.all_amplitudes(), single
            return
        self._own = single * scattering.slow.mean(axis=0)[:, None]
        self._kept = np.empty((self.n, len(self._first)), dtype=dtype)
        for rows in scattering.blocks():
            self._kept[rows] = self._products(scattering.amplitudes(rows), self._own[rows])

    @property
    def shape(self) -> tuple:
        return (self._g, self._g)

    def intensity(self, v) -> np.ndarray:
        v = self._checked(v)
        return self._restored(self._constant + self._forward(v, lambda x: self._kernel.values(x, v)))

    def jvp(self, v, dv) -> np.ndarray:
        v, dv = self._checked(v), self._checked(dv)
        return self._restored(self._forward(v, lambda x: self._kernel.change(x, v, dv)))

    def gradient_of_pairs(self, v, r) -> np.ndarray:
        v = self._checked(v)
        return self._backward(v, r, lambda x, h: self._kernel.gradient(x, v, h))

    def hvp(self, v, r, dv) -> np.ndarray:
        v, dv = self._checked(v), self._checked(dv)
        return self._as_matrix(self._backward(v, r, lambda x, h: self._kernel.curvature(x, v, dv, h)))

    def jacobian(self, v, rows=slice(None)) -> np.ndarray:
        return self._kernel.jacobian(self._x[rows][:, None], self._checked(v), self._block(rows).astype(float))

    def _second_derivatives(self, v, r) -> np.ndarray:
        v = self._checked(v)
        return self._kernel.hessian(*self._backward(v, r, lambda x, h: self._kernel.second(x, v, h)))

    def _forward(self, v: np.ndarray, kernel) -> np.ndarray:
        """Sum over pairs of products times kernel (P,) at each x, in the order of x."""
        result = np.zeros(self.n)
        for rows, points, weights in self._plan(v):
            matrix = np.array([kernel(x) for x in points]).T.astype(self._dtype)
            for block in self._blocks(rows.start, rows.stop):
                part = weights[:, block.start - rows.start : block.stop - rows.start]
                result[block] = np.einsum("rm,mr->m", part, self._block(block) @ matrix)
        return result * self._x

    def _backward(self, v: np.ndarray, r, part) -> np.ndarray:
        """Sum over x of part(x, h): h, (P,), the sum over points of r times the products, as far as it belongs to x."""
        r = np.asarray(r, dtype=float)[self._order] * self._x
        total = 0.0
        for rows, points, weights in self._plan(v):
            h = np.zeros((len(self._first), len(points)))
            for block in self._blocks(rows.start, rows.stop):
                share = weights[:, block.start - rows.start : block.stop - rows.start] * r[block]
                h += self._block(block).T @ share.T.astype(self._dtype)
            for x, column in zip(points, h.T):
                total = total + part(x, column)
        return total

    def _plan(self, v: np.ndarray) -> list:
        """Shells of x for covariances as large as these: rows, nodes (k,), interpolation weights (k, rows)."""
        largest = max(np.abs(v).max() * (2 if self._free else 1), 1e-6)
        if not _SHRINK * self._covered <= largest <= self._covered:  # else as it was: smooth while V is refined
            self._covered = _GROW * largest
            self._shells = []
            x = self._x
            nodes, half_width = shells(self.n, self._g, x[-1] - x[0], self._covered, self._tolerance)
            start = 0
            while start < self.n:
                stop = int(np.searchsorted(x, x[start] + 2 * half_width, side="right"))
                points, weights = lagrange_weights(x[start:stop], nodes)
                self._shells.append((slice(start, stop), np.maximum(points, 1e-9), weights))
                start = stop
        return self._shells

    def _block(self, rows: slice) -> np.ndarray:
        if self._kept is not None:
            return self._kept[rows]
        return self._products(self._amplitudes[:, rows], self._own[rows]).astype(self._dtype)

    def _products(self, amplitudes: np.ndarray, own: np.ndarray) -> np.ndarray:
        """(rows, P): 2 Re F_a conj(F_b), summed over the copies; on the diagonal what goes with K_aa.

        amplitudes : (copies, rows, g) complex128; own : (rows, g) float64, of single atoms
        """
        a = amplitudes.transpose(1, 0, 2)
        parts = np.concatenate([a.real, a.imag], axis=1)
        products = (parts.transpose(0, 2, 1) @ parts)[:, self._first, self._second]
        off = self._first != self._second
        products[:, off] *= 2
        products[:, ~off] += own
        return products
