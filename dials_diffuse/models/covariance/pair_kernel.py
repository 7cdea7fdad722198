"""How strongly two groups scatter together, as a function of their covariances, with derivatives."""

from __future__ import annotations

import numpy as np


class PairKernel:
    """K_ab(x; V) of all pairs of groups with isotropic covariances, x = q².

    K_ab = exp(x v_ab) - 1; or, if ``free``, exp(x (v_ab - m)) - exp(-x m) with m = (v_aa + v_bb) / 2, and
    K_aa = 1 - exp(-x v_aa). Pairs are those of np.tril_indices: P = g (g + 1) / 2. All but :meth:`jacobian` give
    values and derivatives divided by x, which stay finite for small x.

    Parameters
    ----------
    g : number of groups
    free : do Debye-Waller factors change with V?
    """

    def __init__(self, g: int, free: bool):
        self._g, self._free = g, free
        self._first, self._second = np.tril_indices(g)
        self._off = self._first != self._second

    def values(self, x: float, v: np.ndarray) -> np.ndarray:
        """(P,) K; x : 1/Å², positive; v : (g, g) float64, Å²"""
        pairs = self._pairs(v)
        if not self._free:
            return np.expm1(x * pairs) / x
        damping = np.exp(-x * self._mean(v))
        return np.where(self._off, damping * np.expm1(x * pairs), -np.expm1(-x * pairs)) / x

    def change(self, x: float, v: np.ndarray, dv: np.ndarray) -> np.ndarray:
        """(P,) change of K along dv."""
        pairs, change = self._pairs(v), self._pairs(dv)
        if not self._free:
            return np.exp(x * pairs) * change
        damping, dm = np.exp(-x * self._mean(v)), self._mean(dv)
        off = damping * (np.exp(x * pairs) * (change - dm) + dm)
        return np.where(self._off, off, np.exp(-x * pairs) * change)

    def gradient(self, x: float, v: np.ndarray, h: np.ndarray) -> np.ndarray:
        """(P,) derivatives of h @ K by the covariances of the pairs; h : (P,)"""
        pairs = self._pairs(v)
        if not self._free:
            return h * np.exp(x * pairs)
        damping = h * np.exp(-x * self._mean(v))
        result = np.where(self._off, damping * np.exp(x * pairs), h * np.exp(-x * pairs))
        return self._to_diagonal(result, -0.5 * damping * np.expm1(x * pairs))

    def curvature(self, x: float, v: np.ndarray, dv: np.ndarray, h: np.ndarray) -> np.ndarray:
        """(P,) change of :meth:`gradient` along dv."""
        pairs, change = self._pairs(v), self._pairs(dv)
        if not self._free:
            return h * x * np.exp(x * pairs) * change
        damping, dm = h * x * np.exp(-x * self._mean(v)), self._mean(dv)
        shared = damping * np.exp(x * pairs) * (change - dm)
        result = np.where(self._off, shared, -h * x * np.exp(-x * pairs) * change)
        return self._to_diagonal(result, -0.5 * (shared + damping * dm))

    def second(self, x: float, v: np.ndarray, h: np.ndarray) -> np.ndarray:
        """(2, P) second derivatives of h K: by v_ab twice, and, where a differs from b, by two of v_aa and v_bb."""
        pairs = self._pairs(v)
        if not self._free:
            return np.stack([h * x * np.exp(x * pairs), np.zeros_like(h)])
        damping = h * x * np.exp(-x * self._mean(v))
        own = np.where(self._off, damping * np.exp(x * pairs), -h * x * np.exp(-x * pairs))
        return np.stack([own, 0.25 * damping * np.expm1(x * pairs)])

    def hessian(self, own: np.ndarray, both: np.ndarray) -> np.ndarray:
        """(P, P) second derivatives from a sum of what :meth:`second` gives."""
        result = np.diag(own)
        if self._free:
            off = self._off
            p, diagonal = np.flatnonzero(off), np.flatnonzero(~off)
            ends = diagonal[self._first[off]], diagonal[self._second[off]]
            for one in ends:  # by v_ab and v_aa: K depends on v_ab - v_aa / 2
                result[p, one] = result[one, p] = -0.5 * own[off]
                for other in ends:
                    np.add.at(result, (one, other), both[off])
        return result

    def jacobian(self, x: np.ndarray, v: np.ndarray, products: np.ndarray) -> np.ndarray:
        """(n, P) derivatives of products @ K, not divided by x; x : (n, 1); products : (n, P)"""
        pairs, off = self._pairs(v), self._off
        if not self._free:
            return products * x * np.exp(x * pairs)
        m = np.where(off, self._mean(v), 0.0)
        shared = np.exp(x * np.where(off, pairs - m, -pairs))
        result = products * x * shared
        both = (-0.5 * products * x * (shared - np.exp(-x * m)))[:, off]
        for k, column in enumerate(np.flatnonzero(~off)):
            result[:, column] += both[:, (self._first[off] == k) | (self._second[off] == k)].sum(axis=1)
        return result

    def _pairs(self, v: np.ndarray) -> np.ndarray:
        return v[self._first, self._second]

    def _mean(self, v: np.ndarray) -> np.ndarray:
        diagonal = np.diag(v)
        return 0.5 * (diagonal[self._first] + diagonal[self._second])

    def _to_diagonal(self, result: np.ndarray, both: np.ndarray) -> np.ndarray:
        """Add what each pair of different groups gives to the diagonal elements of both."""
        off = self._off
        for ends in (self._first[off], self._second[off]):
            result[~off] += np.bincount(ends, both[off], self._g)
        return result
