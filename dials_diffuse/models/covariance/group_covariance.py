"""Intensity as a function of the covariance of groups of atoms, with derivatives by all of its elements."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.group_pairs import pair_gradient, pair_jacobian, pair_values
from dials_diffuse.kernels.pair_sum import displaced_squares
from dials_diffuse.models.covariance.motion import JointMotion, in_threads, lagrange_weights, shells
from dials_diffuse.models.covariance.pair_kernel import PairKernel
from dials_diffuse.models.refinable import ELEMENTS, TensorComponents
from dials_diffuse.models.voxel_means import relative_scattering
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors

ADPS = ("held", "free")

#: products of amplitudes that are kept, bytes; beyond it they are made anew each time
_MEMORY = 2.5e9
#: pairs of groups at all points and copies, beyond which tensors are not averaged: seconds for each evaluation
_MOST_PAIRS = 3e8
#: numbers in the blocks in which they are made
_BLOCK = 1 << 23
#: shells of x are made for covariances this much larger than V, and made anew when V has shrunk below the second
_GROW = 1.5
_SHRINK = 0.1
_ROWS = np.array([int(e[0]) - 1 for e in ELEMENTS])
_COLUMNS = np.array([int(e[1]) - 1 for e in ELEMENTS])


class GroupCovariance:
    """I(q; V) at fixed q, where atoms move with the displacement of their group, <d_a d_bᵀ> = V_ab.

    I = sum over symmetry copies of the molecule of sum_ab F_a conj(F_b) K_ab + uncorrelated part, with V turned by the
    operator of the copy. Nothing is correlated between copies.

    - ``adp=held``: atoms have the displacements U of the structure, of which V_aa is the part that their group shares.
      F with Debye-Waller factors; K = exp(q V_ab q) - 1; each atom's own term stays |f|² (1 - exp(-qUq)).
    - ``adp=free``: U of the structure is what an atom has besides its group; all Debye-Waller factors change with V.
      K = exp(q (V_ab - V_aa/2 - V_bb/2) q) - exp(-q (V_aa + V_bb) q / 2).

    With one atom in each group and no U in the structure the latter is the plain pair sum.

    Derivatives by the matrix V are matrices D of the same shape with dI = sum over all a, b of D_ab dV_ab, symmetric
    as V is; of tensors only the symmetric part acts on I, and D is symmetric in both pairs of indices.

    Isotropic V: the products of amplitudes are summed over the copies and kept, n g²/2 numbers; K is interpolated in
    x = q² in shells, within ``tolerance`` x |v| exp(x |v|) for each pair, see :func:`motion.chebyshev_form`.
    Tensors: the pair sum as it stands.

    Means over voxels: F has the phases of points around each s. Of isotropic V the products are averaged over these,
    so that evaluations cost what they cost without; of tensors the sum goes over all points. What varies slowly, x K/x,
    form and Debye-Waller factors, follows the mean square of an atom's scattering; what single atoms add is that of
    the centre.

    Parameters
    ----------
    structure : asymmetric unit
    labels : (atoms,) int64, the group of each atom, from 0
    s : (n, 3) float64, 1/Å, Cartesian frame of the structure
    adp : ``held`` or ``free``
    tensor : V are tensors, (g, g, 3, 3), instead of numbers, (g, g); Å²
    table : see :func:`factors.form_factors`
    tolerance : of the interpolation
    dtype : of the products kept; by default float64 if they take less than 1 GB, else float32
    points : (k, 3) float64, 1/Å, average over these points around each s, see :func:`voxel_means.gauss_points`. None:
        no means. Nor are there any (attribute ``means``) where memory or time would not allow them: for products that
        are not kept, and for more than _MOST_PAIRS pairs of tensors
    u : Å², mean square displacement of an atom along a line, for these means

    Source: THEORY.md §1 and §4
    """

    def __init__(
        self,
        structure: Structure,
        labels: np.ndarray,
        s: np.ndarray,
        adp: str = "held",
        tensor: bool = False,
        table: str = "wk1995",
        tolerance: float = 1e-6,
        dtype=None,
        points: np.ndarray | None = None,
        u: float = 0.0,
    ):
        if adp not in ADPS:
            raise DiffuseError(f"adp={adp}: choose from {', '.join(ADPS)}")
        self._free, self._tensor, self._tolerance = adp == "free", tensor, tolerance
        s = np.asarray(s, dtype=float).reshape(-1, 3)
        g = int(labels.max()) + 1
        self.n = len(s)
        self.shape = (g, g, 3, 3) if tensor else (g, g)
        self._first, self._second = np.tril_indices(g)
        self._kernel = PairKernel(g, self._free)
        self._order = np.argsort(np.sum(s**2, axis=1), kind="stable")
        s = s[self._order]
        self._x = (2 * math.pi) ** 2 * np.sum(s**2, axis=1)
        motion = JointMotion(structure.molecule(), np.asarray(labels), np.zeros((g, g)), soft=True)
        turns = structure.rotations
        size = self.n * len(self._first)
        self._dtype = dtype or (np.float64 if 8 * size < 1e9 else np.float32)
        keep = not tensor and size * np.dtype(self._dtype).itemsize <= _MEMORY
        self.means = points is not None and (keep or self._affordable(len(turns) * len(points)))
        points = points if self.means else np.zeros((1, 3))
        self._constant, single = self._of_single_atoms(structure, motion, s, table)
        self._kept = self._amplitudes = None
        self._covered, self._shells = 0.0, []
        self._features = []
        if tensor:
            features = TensorComponents(ELEMENTS, np.eye(6)).features
            self._features = [features(2 * math.pi * (s + o) @ turn) for turn in turns for o in points]
        # of tensors K has x, and Debye-Waller factors if they are free
        slow = relative_scattering(structure, s, points, 0.0 if tensor and self._free else u, not tensor, table)

        def amplitudes(rows):
            """(copies, rows, g) complex128, times the roots of the weights of points."""
            if not self.means:
                return np.array([motion.amplitudes(s[rows] @ turn, table) for turn in turns])
            roots = np.sqrt(slow[:, rows, None] / len(points))
            parts = (motion.amplitudes(s[rows] @ turn, table, points @ turn) for turn in turns)
            return np.concatenate([roots * part for part in parts])

        copies = len(turns) * len(points)
        step = max(1, _BLOCK // max(g * g, 8 * structure.n_atoms, 2 * copies * g))
        blocks = [slice(first, first + step) for first in range(0, self.n, step)]
        if keep:
            self._own = single.sum(axis=0) * slow.mean(axis=0)[:, None]
            self._kept = np.empty((self.n, len(self._first)), dtype=self._dtype)
            for rows in blocks:
                self._kept[rows] = self._products(amplitudes(rows), self._own[rows])
            return
        self._amplitudes = np.empty((copies, self.n, g), dtype=np.complex128)
        for rows in blocks:
            self._amplitudes[:, rows] = amplitudes(rows)
        if tensor:
            weighted = (single[:, None] * slow[:, :, None] / len(points)).reshape(copies, self.n, g)
            self._own = weighted + np.abs(self._amplitudes) ** 2
        else:
            self._own = single.sum(axis=0)

    def _affordable(self, copies: int) -> bool:
        """Tensors at so many copies of each point, in memory and in time."""
        g = self.shape[0]
        return self._tensor and 16 * copies * self.n * g <= _MEMORY and copies * self.n * g**2 / 2 <= _MOST_PAIRS

    def _of_single_atoms(self, structure: Structure, motion: JointMotion, s: np.ndarray, table: str) -> tuple:
        """:meth:`_single` for all copies: the sum of what does not depend on V, (n,), and the rest, (copies, n, g)."""
        turned = [s @ turn for turn in structure.rotations]
        if structure.isotropic.all():  # the same for all copies
            constant, own = self._single(motion, s, structure.share, table)
            return len(turned) * constant, np.broadcast_to(own, (len(turned), *own.shape))
        constants, owns = zip(*(self._single(motion, t, structure.share, table) for t in turned))
        return sum(constants), np.array(owns)

    def _single(self, motion: JointMotion, s, share, table: str) -> tuple:
        """Sums over single atoms: what does not depend on V, (n,), and what goes with K_aa besides |F_a|², (n, g)."""
        structure, q = motion.structure, 2 * math.pi * s
        f2 = form_factors(structure, np.linalg.norm(s, axis=1), table) ** 2
        squared = structure.occupancy**2

        def displaced(weight):
            """(n, g), sums of weight f² exp(-qUq) over the atoms of each group."""
            result = np.zeros((len(s), self.shape[0]))
            for group in np.unique(motion.labels[weight != 0]):
                mine = motion.labels == group
                arrays = structure.u_cart[mine], weight[mine]
                in_threads(
                    lambda q, rows, out, kind=structure.type_index[mine], arrays=arrays: displaced_squares(
                        q, kind, np.ascontiguousarray(f2[:, rows]), *arrays, out
                    ),
                    (q, np.arange(len(q))),
                    (),
                    out := np.empty(len(s)),
                )
                result[:, group] = out
            return result

        total = displaced(squared / share)
        own = displaced(squared / share - squared)  # on special positions: the copies of an atom are one atom
        constant = np.bincount(structure.type_index, squared / share, len(structure.types)) @ f2 - total.sum(axis=1)
        return constant, own if self._free else own - total

    # ------------------------------------------------------------------------------------------------- derivatives

    def intensity(self, v) -> np.ndarray:
        """(n,) float64, electrons² per unit cell"""
        v = self._checked(v)
        if self._tensor:
            return self._tensor_values(v, np.zeros_like(v))[0]
        return self._restored(self._constant + self._forward(v, lambda x: self._kernel.values(x, v)))

    def jvp(self, v, dv) -> np.ndarray:
        """(n,) float64, change of the intensity along dv, symmetric, of the shape of V."""
        v, dv = self._checked(v), self._checked(dv)
        if self._tensor:
            return self._tensor_values(v, dv)[1]
        return self._restored(self._forward(v, lambda x: self._kernel.change(x, v, dv)))

    def gradient_of_pairs(self, v, r) -> np.ndarray:
        """Derivatives of the sum of r I by V_ab with a >= b, V_ba changing with it.

        r : (n,) float64

        Returns
        -------
        (g (g + 1) / 2,) float64, or (g (g + 1) / 2, 6) by the elements of tensors; order of np.tril_indices
        """
        v = self._checked(v)
        if self._tensor:
            return self._tensor_gradient(v, r, np.zeros_like(v), False)
        return self._backward(v, r, lambda x, h: self._kernel.gradient(x, v, h))

    def vjp(self, v, r) -> np.ndarray:
        """The same as a matrix of the shape of V."""
        return self._as_matrix(self.gradient_of_pairs(v, r))

    def hvp(self, v, r, dv) -> np.ndarray:
        """Change of :meth:`vjp` along dv: the second derivatives of the sum of r I times dv."""
        v, dv = self._checked(v), self._checked(dv)
        if self._tensor:
            return self._as_matrix(self._tensor_gradient(v, r, dv, True))
        return self._as_matrix(self._backward(v, r, lambda x, h: self._kernel.curvature(x, v, dv, h)))

    def gauss_newton(self, v, w, dv) -> np.ndarray:
        """Jᵀ w J dv, J the derivatives of I by V; w : (n,) float64"""
        return self.vjp(v, w * self.jvp(v, dv))

    def jacobian(self, v, rows=slice(None)) -> np.ndarray:
        """(n, P) float64, derivatives of I by v_ab, a >= b, P = g (g + 1) / 2; of tensors by six elements of each.

        rows : of the points in ascending order of |s|
        """
        v = self._checked(v)
        if self._tensor:
            return self._tensor_jacobian(v, rows)
        return self._kernel.jacobian(self._x[rows][:, None], v, self._block(rows).astype(float))

    def normal_matrix(self, v, w, r=None) -> np.ndarray:
        """Sum over n of w J Jᵀ, J as in :meth:`jacobian`, plus that of r times the second derivatives.

        For few groups: (P, P) float64, or (6 P, 6 P) of tensors, which have no r.
        """
        number = len(self._first) * (6 if self._tensor else 1)
        result = np.zeros((number, number))
        w = np.asarray(w)[self._order]
        for rows in self._blocks(0, self.n):
            part = self.jacobian(v, rows)
            result += (part.T * w[rows]) @ part
        if r is not None:
            if self._tensor:
                raise DiffuseError("normal_matrix: second derivatives of isotropic displacements only; use hvp")
            v = self._checked(v)
            result += self._kernel.hessian(*self._backward(v, r, lambda x, h: self._kernel.second(x, v, h)))
        return result

    # ---------------------------------------------------------------------------------------- isotropic: shells of x

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
            nodes, half_width = shells(self.n, self.shape[0], x[-1] - x[0], self._covered, self._tolerance)
            start = 0
            while start < self.n:
                stop = int(np.searchsorted(x, x[start] + 2 * half_width, side="right"))
                points, weights = lagrange_weights(x[start:stop], nodes)
                self._shells.append((slice(start, stop), np.maximum(points, 1e-9), weights))
                start = stop
        return self._shells

    def _blocks(self, start: int, stop: int):
        step = max(1, _BLOCK // self.shape[0] ** 2)
        for first in range(start, stop, step):
            yield slice(first, min(first + step, stop))

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

    # ------------------------------------------------------------------------------------------------------- tensors

    def _tensor_values(self, v: np.ndarray, dv: np.ndarray) -> tuple:
        total = [self._constant.copy(), np.zeros(self.n)]
        six, change = self._six(v), self._six(dv)

        def part(number, rows):
            out, slope = np.empty(rows.stop - rows.start), np.empty(rows.stop - rows.start)
            data = self._features[number][rows], self._amplitudes[number, rows], self._own[number, rows]
            pair_values(*data, six, change, self._free, out, slope)
            return rows, out, slope

        for rows, out, slope in self._in_threads(part):
            total[0][rows] += out
            total[1][rows] += slope
        return self._restored(total[0]), self._restored(total[1])

    def _tensor_gradient(self, v, r, dv, directional: bool) -> np.ndarray:
        six, change = self._six(v), self._six(dv)
        r = np.asarray(r, dtype=float)[self._order]

        def part(number, rows):
            out = np.zeros_like(six)
            data = self._amplitudes[number, rows], self._own[number, rows]
            pair_gradient(self._features[number][rows], r[rows], *data, six, change, self._free, directional, out)
            return out

        return sum(self._in_threads(part))

    def _tensor_jacobian(self, v, rows: slice) -> np.ndarray:
        six = self._six(v)
        out = np.zeros((len(self._x[rows]), *six.shape))

        def part(mine):
            for features, amplitudes, own in zip(self._features, self._amplitudes, self._own):
                pair_jacobian(features[rows][mine], amplitudes[rows][mine], own[rows][mine], six, self._free, out[mine])

        limits = np.linspace(0, len(out), available_cores() + 1).astype(int)
        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(part, [slice(a, b) for a, b in zip(limits, limits[1:])]))
        return out.reshape(len(out), -1)

    def _in_threads(self, part) -> list:
        limits = np.linspace(0, self.n, available_cores() + 1).astype(int)
        tasks = [(number, slice(a, b)) for number in range(len(self._features)) for a, b in zip(limits, limits[1:])]
        with ThreadPoolExecutor(available_cores()) as pool:
            return list(pool.map(lambda task: part(*task), tasks))

    def _six(self, v: np.ndarray) -> np.ndarray:
        """(P, 6), elements of the symmetric part of V_ab, a >= b."""
        tensors = v[self._first, self._second]
        return np.ascontiguousarray(0.5 * (tensors + tensors.transpose(0, 2, 1))[:, _ROWS, _COLUMNS])

    # --------------------------------------------------------------------------------------------------------- shapes

    def _as_matrix(self, pairs: np.ndarray) -> np.ndarray:
        """Derivatives by pairs as a symmetric matrix of the shape of V: half of each to V_ab, half to V_ba."""
        if self._tensor:
            tensors = np.zeros((len(pairs), 3, 3))
            half = np.where(_ROWS == _COLUMNS, 1.0, 0.5)
            tensors[:, _ROWS, _COLUMNS] = tensors[:, _COLUMNS, _ROWS] = pairs * half
            pairs = tensors
        matrix = np.zeros(self.shape)
        np.add.at(matrix, (self._first, self._second), 0.5 * pairs)
        np.add.at(matrix, (self._second, self._first), 0.5 * pairs)
        return matrix

    def _restored(self, values: np.ndarray) -> np.ndarray:
        """In the order of the points given."""
        result = np.empty_like(values)
        result[self._order] = values
        return result

    def _checked(self, v) -> np.ndarray:
        v = np.asarray(v, dtype=float)
        if v.shape != self.shape:
            raise DiffuseError(f"covariance: shape {v.shape}, needed {self.shape}")
        return v
