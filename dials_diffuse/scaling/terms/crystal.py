"""What belongs to the crystal and not to the experiment: its isotropic part, and the smooth one with its symmetry."""

from __future__ import annotations

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.scaling import (
    Design,
    Patterns,
    Tensor,
    evaluate_block,
    evaluate_patterns,
    fill_basis,
    fill_patterns,
)
from dials_diffuse.scaling.layout import Rows, S
from dials_diffuse.scaling.terms.base import Acts, Extent
from dials_diffuse.scaling.terms.spline import Axis, Spline

#: distance of nodes of the isotropic profile in |s|, 1/Å, and how many there may be
PROFILE_STEP = 0.004
PROFILE_NODES = (12, 250)

#: strength of its smoothing, relative to its mean: only where there are no data
_PROFILE_SMOOTHING = 1e2

#: nodes in |s| of the smooth anisotropic part
_PATTERN_NODES = 6


class Profile(Spline):
    """The isotropic part P of what the crystal scatters, over |s|."""

    name = key = "p"
    label = "isotropic profile"
    acts = Acts.PROFILE
    repeats = True
    smoothing = _PROFILE_SMOOTHING

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        low, high = extent.s_range
        return (Axis(S, int(np.clip((high - low) / PROFILE_STEP, *PROFILE_NODES)) + 2, low, high),)

    def at_s(self, coefficients: np.ndarray, s: np.ndarray) -> np.ndarray:
        """(n,) float64, its value at |s| (n,)."""
        result, offset = np.empty(len(s)), np.full(len(s), self.start)
        tensor = Tensor(np.array([[0, self.size]]), self.tensor.limits)
        evaluate_block(np.asarray(s, dtype=float)[:, None], offset, tensor, coefficients, result)
        return result

    def roughness(self, reference: np.ndarray) -> np.ndarray:
        return super().roughness(reference) / np.mean(reference[self.all] ** 2)

    def ridge(self, spread: float) -> float:
        return 0.0

    def gauge(self, rows, terms) -> np.ndarray:
        return np.zeros((0, self.size))

    def first(self, s: np.ndarray, net: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """(size,) coefficients: mean rate around each node; empty stretches are bridged.

        s, net, norm : (n,) float64 of observations

        Raises
        ------
        DiffuseError
            If there is no signal anywhere.
        """
        (low, step), n = self.tensor.limits[0], self.size
        node = np.clip(np.rint((s - low) / step + 0.5).astype(int), 0, n - 1)
        net, norm = (np.bincount(node, x, minlength=n) for x in (net, norm))
        filled = np.flatnonzero((norm > 0) & (net > 0))
        if not len(filled):
            raise DiffuseError(
                "the background is larger than the signal at all resolutions; check background= and the beam"
            )
        return np.interp(np.arange(n), filled, net[filled] / norm[filled])


class SmoothPart(Spline):
    """The part Q of the anisotropic scattering that is a smooth function of the direction, relative to P.

    A spline in |s| for each of the patterns, smooth functions of the direction that have the symmetry of the crystal:
    a set of coefficients belongs to a pattern, and every observation touches all sets.
    """

    name = key = "q"
    label = "smooth anisotropic part"
    acts = Acts.SMOOTH
    repeats = True
    smoothing = 0.0

    @classmethod
    def shape(cls, extent: Extent) -> tuple:
        return (Axis(S, _PATTERN_NODES, *extent.s_range),)

    @classmethod
    def make(cls, extent: Extent, start: int) -> SmoothPart:
        one = super().make(extent, start)
        return cls(start, extent.n_patterns, one.tensor)

    @property
    def width(self) -> int:
        return 3 * self.n_sets

    def value(self, coefficients: np.ndarray, rows: Rows) -> np.ndarray:
        result = np.zeros(len(rows.experiment))
        patterns = Patterns(rows.patterns, rows.orbit)
        evaluate_patterns(rows.coordinates, self.start, self.tensor, coefficients, patterns, result)
        return result

    def fill(self, rows: Rows, factor: np.ndarray, design: Design, at: int) -> None:
        patterns = Patterns(rows.patterns, rows.orbit)
        fill_patterns(rows.coordinates, self.start, self.tensor, factor, patterns, design, at)

    def gradient(self, rows: Rows, slope: np.ndarray) -> np.ndarray:
        """Σ slope times the functions; slope : (n,) float64."""
        nodes, value = self.along_s(rows)
        m = len(rows.patterns)
        key = (rows.orbit[:, None] * self.size + nodes).ravel()
        by_voxel = np.bincount(key, (value * slope[:, None]).ravel(), m * self.size).reshape(m, self.size)
        return (rows.patterns.T @ by_voxel).ravel()

    def along_s(self, rows: Rows) -> Design:
        """(n, 3) nodes in |s|, from 0, and the values of the spline: one set of coefficients, with a pattern of 1."""
        n = len(rows.experiment)
        design = Design(np.empty((n, 3), dtype=np.int64), np.empty((n, 3)))
        fill_basis(rows.coordinates, np.zeros(n, dtype=np.int64), self.tensor, np.ones(n), design, 0)
        return design

    def ridge(self, spread: float) -> float:
        return spread**-2.0

    def gauge(self, rows, terms) -> np.ndarray:
        return np.zeros((0, self.size * self.n_sets))
