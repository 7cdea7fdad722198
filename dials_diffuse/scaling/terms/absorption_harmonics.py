"""a as spherical harmonics of the directions of the incident and the diffracted beam in the crystal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from dials_diffuse.kernels.scaling import Design, fill_dense
from dials_diffuse.scaling.layout import DIFFRACTED, Rows
from dials_diffuse.scaling.patterns import absorption, degrees_of
from dials_diffuse.scaling.terms.absorption import RINGS, AbsorptionOptions, overlaps
from dials_diffuse.scaling.terms.base import Acts, Extent, Term, rings

#: a harmonic of which other terms can make more than this share of the variance is theirs
_ALIKE_SHARE = 0.998


@dataclass(frozen=True)
class AbsorptionHarmonics(Term):
    """Harmonics for each sweep, the mean of those at the two directions.

    degree : the highest

    Source: docs/theory.md, Scaling; Blessing 1995, Acta Cryst. A51, 33
    """

    degree: int

    name = "a"
    key = "h"
    label = "absorption (harmonics)"
    words = "absorption, over detector and rotation"
    options = AbsorptionOptions
    each_sweep = True
    usual = True
    expected = 0.03
    repeats = True

    @classmethod
    def fits(cls, extent: Extent) -> bool:
        return extent.of(AbsorptionOptions).form == "harmonics" and extent.layout.orientation is not None

    @classmethod
    def make(cls, extent: Extent, start: int) -> AbsorptionHarmonics:
        return cls(start, extent.n_sweeps, extent.of(AbsorptionOptions).degree)

    @property
    def size(self) -> int:
        return (self.degree + 1) ** 2 - 1

    @property
    def width(self) -> int:
        return self.size

    def _own(self, coefficients: np.ndarray) -> np.ndarray:
        """(e, size) coefficients of each sweep."""
        return coefficients[self.all].reshape(-1, self.size)

    def value(self, coefficients: np.ndarray, rows: Rows) -> np.ndarray:
        own = self._own(coefficients)
        if rows.harmonics is None:
            return absorption(rows.coordinates[:, DIFFRACTED:], own, rows.experiment, self.degree)
        return np.einsum("nk,nk->n", rows.harmonics, own[rows.experiment])

    def fill(self, rows: Rows, factor: np.ndarray, design: Design, at: int) -> None:
        fill_dense(self.offset(rows.experiment), rows.harmonics, factor, design, at)

    def penalty(self) -> np.ndarray:
        """The mean square of the Laplacian on the sphere."""
        degree = degrees_of(self.degree)
        return np.diag((degree * (degree + 1.0)) ** 2)

    def gauge(self, rows: Rows, terms: dict) -> np.ndarray:
        """No part that functions of |s| and the scale over the rotation can make."""
        result = [np.zeros((0, self.size * self.n_sets))]
        for number in range(self.n_sets):
            mine = rows.at(np.flatnonzero(rows.experiment == number))
            if len(mine.experiment):
                alike = combinations_of(mine.harmonics, _simpler(mine, terms))
                full = np.zeros((len(alike), self.size * self.n_sets))
                full[:, number * self.size : (number + 1) * self.size] = alike
                result.append(full)
        return np.concatenate(result)

    def record(self, coefficients, layout, number) -> dict:
        return {"degree": self.degree, "harmonics": self._own(coefficients)[number]}


def combinations_of(basis: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(k, m) combinations of functions (n, m) that others (n, p) can make, almost, see ``absorption.overlaps``."""
    size, vectors = linalg.eigh(others.T @ others)
    known = size > 1e-12 * size[-1]
    made = (vectors[:, known] / np.sqrt(size[known])).T @ (others.T @ basis)  # along orthonormal functions
    return overlaps(basis.T @ basis / len(basis), made.T @ made / len(basis), _ALIKE_SHARE)


def _simpler(rows: Rows, terms: dict) -> np.ndarray:
    """(n, k) functions of |s|, and those that scale the crystal."""
    radial = np.zeros((len(rows.experiment), RINGS))
    for k, ring in enumerate(rings(rows, RINGS)):
        radial[ring, k] = 1
    return np.hstack([radial, *(t.basis(rows).toarray() for t in terms.values() if t.acts is Acts.SCALE)])
