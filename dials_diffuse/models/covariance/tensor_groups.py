"""Groups of atoms whose displacements have tensors for covariances: the pair sum as it stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.group_pairs import pair_gradient, pair_jacobian, pair_values
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.group_scattering import GroupScattering
from dials_diffuse.parallel import cores, in_threads, row_ranges
from dials_diffuse.structure.tensors import six_elements, slope_tensor, square_features

#: points that a thread takes at a time
_ROWS = 1024


class TensorGroups(GroupCovariance):
    """V are tensors, (g, g, 3, 3), Å².

    Means over voxels: the sum goes over all points. What varies slowly, form and Debye-Waller factors, follows the mean
    square of an atom's scattering; what single atoms add is that of the centre.

    Parameters
    ----------
    free : see ``adp`` of :class:`GroupCovariance`
    """

    elements = 6

    def __init__(self, scattering: GroupScattering, free: bool):
        super().__init__(scattering, free)
        shape = (scattering.copies, self.n, self._g)
        self._features = [
            square_features(2 * math.pi * (scattering.s + o) @ turn)
            for turn in scattering.turns
            for o in scattering.points
        ]
        self._amplitudes = scattering.all_amplitudes()
        slow = scattering.slow[:, :, None] / len(scattering.points)
        self._own = (scattering.single[:, None] * slow).reshape(shape) + np.abs(self._amplitudes) ** 2

    @property
    def shape(self) -> tuple:
        return (self._g, self._g, 3, 3)

    def intensity(self, v) -> np.ndarray:
        v = self._checked(v)
        return self._values(v, np.zeros_like(v))[0]

    def jvp(self, v, dv) -> np.ndarray:
        return self._values(self._checked(v), self._checked(dv))[1]

    def gradient_of_pairs(self, v, r) -> np.ndarray:
        v = self._checked(v)
        return self._gradient(v, r, np.zeros_like(v), False)

    def hvp(self, v, r, dv) -> np.ndarray:
        return self._as_matrix(self._gradient(self._checked(v), r, self._checked(dv), True))

    def jacobian(self, v, rows=slice(None)) -> np.ndarray:
        six = self._six(self._checked(v))
        out = np.zeros((len(self._x[rows]), *six.shape))

        def part(mine):
            for features, amplitudes, own in zip(self._features, self._amplitudes, self._own):
                pair_jacobian(features[rows][mine], amplitudes[rows][mine], own[rows][mine], six, self._free, out[mine])

        threads = cores()
        list(in_threads(part, row_ranges(len(out), threads), threads))
        return out.reshape(len(out), -1)

    def _second_derivatives(self, v, r) -> np.ndarray:
        raise DiffuseError("normal_matrix: second derivatives of isotropic displacements only; use hvp")

    def _values(self, v: np.ndarray, dv: np.ndarray) -> tuple:
        """The intensity, and its change along dv."""
        total = [self._constant.copy(), np.zeros(self.n)]
        six, change = self._six(v), self._six(dv)

        def part(task):
            number, rows = task
            out, slope = np.empty(rows.stop - rows.start), np.empty(rows.stop - rows.start)
            data = self._features[number][rows], self._amplitudes[number, rows], self._own[number, rows]
            pair_values(*data, six, change, self._free, out, slope)
            return rows, out, slope

        for rows, out, slope in self._of_all_rows(part):
            total[0][rows] += out
            total[1][rows] += slope
        return self._restored(total[0]), self._restored(total[1])

    def _gradient(self, v, r, dv, directional: bool) -> np.ndarray:
        six, change = self._six(v), self._six(dv)
        r = np.asarray(r, dtype=float)[self._order]

        def part(task):
            number, rows = task
            out = np.zeros_like(six)
            data = self._amplitudes[number, rows], self._own[number, rows]
            pair_gradient(self._features[number][rows], r[rows], *data, six, change, self._free, directional, out)
            return out

        return sum(self._of_all_rows(part))

    def _of_all_rows(self, part) -> Iterator:
        """``part((copy, rows))`` of all copies and points."""
        parts = row_ranges(self.n, math.ceil(self.n / _ROWS))  # not one for each thread: sums shall not depend on them
        return in_threads(part, product(range(len(self._features)), parts), cores())

    def _six(self, v: np.ndarray) -> np.ndarray:
        """(P, 6), elements of the symmetric part of V_ab, a >= b."""
        tensors = v[self._first, self._second]
        return np.ascontiguousarray(six_elements(0.5 * (tensors + tensors.transpose(0, 2, 1))))

    def _as_matrix(self, pairs: np.ndarray) -> np.ndarray:
        return super()._as_matrix(slope_tensor(pairs))
