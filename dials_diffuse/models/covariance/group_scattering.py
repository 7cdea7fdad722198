"""What groups of atoms scatter at fixed points: their amplitudes, and sums over their single atoms."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dials_diffuse.kernels.pair_sum import displaced_squares
from dials_diffuse.models.covariance.motion import JointMotion, on_rows
from dials_diffuse.models.voxel_means import relative_scattering
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors

#: numbers in the blocks in which amplitudes and their products are made
BLOCK = 1 << 23


class GroupScattering:
    """Amplitudes of groups for all symmetry copies of a molecule, at points in ascending order of |s|.

    Parameters
    ----------
    structure : asymmetric unit
    labels : (atoms,) int64, the group of each atom, from 0
    s : (n, 3) float64, 1/Å, Cartesian frame of the structure, in any order
    table : see :func:`factors.form_factors`
    free : do Debye-Waller factors of the groups change with V, so that they are not in the amplitudes?
    points : (k, 3) float64, 1/Å, around each s: the copies are at these points; None: at s alone
    u : Å², mean square displacement of an atom along a line, of what varies slowly around s
    with_square : does that vary as q², too?

    Attributes
    ----------
    order : (n,) int64, from the points as they are kept to the rows of ``s``
    x : (n,) float64, q² in 1/Å²
    s : (n, 3) float64
    copies : number of symmetry copies times points
    constant : (n,) float64, what single atoms scatter whatever V
    single : (turns, n, g) float64, for each symmetry copy what goes with K_aa besides |F_a|²
    slow : (k, n) float64, scattering at the points relative to that of the centre
    """

    def __init__(
        self,
        structure: Structure,
        labels: np.ndarray,
        s: np.ndarray,
        table: str,
        free: bool,
        points: np.ndarray | None,
        u: float,
        with_square: bool,
    ):
        self.n, self.g = len(s), int(labels.max()) + 1
        self.order = np.argsort(np.sum(s**2, axis=1), kind="stable")
        self.s = s[self.order]
        self.x = (2 * math.pi) ** 2 * np.sum(self.s**2, axis=1)
        self.means = points is not None
        self.turns = structure.rotations
        self.points = np.zeros((1, 3)) if points is None else points
        self.copies = len(self.turns) * len(self.points)
        self._structure, self._table = structure, table
        self._motion = JointMotion(structure.molecule(), np.asarray(labels), np.zeros((self.g, self.g)), soft=True)
        self.constant, self.single = self._of_single_atoms(free)
        self.slow = relative_scattering(structure, self.s, self.points, u, with_square, table)

    def amplitudes(self, rows: slice) -> np.ndarray:
        """(copies, rows, g) complex128, times the roots of the weights of points."""
        s, table = self.s[rows], self._table
        if not self.means:
            return np.array([self._motion.amplitudes(s @ turn, table) for turn in self.turns])
        roots = np.sqrt(self.slow[:, rows, None] / len(self.points))
        parts = (self._motion.amplitudes(s @ turn, table, self.points @ turn) for turn in self.turns)
        return np.concatenate([roots * part for part in parts])

    def all_amplitudes(self) -> np.ndarray:
        """(copies, n, g) complex128"""
        result = np.empty((self.copies, self.n, self.g), dtype=np.complex128)
        for rows in self.blocks():
            result[:, rows] = self.amplitudes(rows)
        return result

    def blocks(self) -> Iterator[slice]:
        """Rows that are treated together."""
        step = max(1, BLOCK // max(self.g**2, 8 * self._structure.n_atoms, 2 * self.copies * self.g))
        for first in range(0, self.n, step):
            yield slice(first, min(first + step, self.n))

    def _of_single_atoms(self, free: bool) -> tuple:
        """:meth:`_single` for all copies: the sum of what does not depend on V, (n,), and the rest, (copies, n, g)."""
        turned = [self.s @ turn for turn in self.turns]
        if self._structure.isotropic.all():  # the same for all copies
            constant, own = self._single(self.s, free)
            return len(turned) * constant, np.broadcast_to(own, (len(turned), *own.shape))
        constants, owns = zip(*(self._single(s, free) for s in turned))
        return sum(constants), np.array(owns)

    def _single(self, s: np.ndarray, free: bool) -> tuple:
        """Sums over single atoms: what does not depend on V, (n,), and what goes with K_aa besides |F_a|², (n, g)."""
        structure, labels, q = self._motion.structure, self._motion.labels, 2 * math.pi * s
        f2 = form_factors(structure, np.linalg.norm(s, axis=1), self._table) ** 2
        squared, share = structure.occupancy**2, self._structure.share

        def displaced(weight):
            """(n, g), sums of weight f² exp(-qUq) over the atoms of each group."""
            result = np.zeros((len(s), self.g))
            for group in np.unique(labels[weight != 0]):
                mine = labels == group
                arrays = structure.u_cart[mine], weight[mine]
                on_rows(
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
        return constant, own if free else own - total
