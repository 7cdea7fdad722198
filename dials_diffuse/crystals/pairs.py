"""Correlations of crystals in all settings of the lattice, with their errors.

The contrast of crystal i at voxel v is h_i j(v) + noise, with the j of the crystal's kind, of variance 1 in every shell
of |s|. What the noise leaves of the variance of a crystal is h². Divided by h, the covariance of two crystals over
their common voxels is the correlation ρ of their j: noise makes it scatter, not smaller. ρ is 1 where both are of one
kind and in the same setting. The scatter between parts of reciprocal space is its error, which tells what a weak
crystal can say.

Source: docs/theory.md, Which crystals belong together
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dials_diffuse.crystals.contrast import Contrasts
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import blocks_of_voxels, rows_of

#: voxels x crystals that are compared, those of lowest |s|
_MAX_ENTRIES = 4_000_000

#: shells in which the size of the contrast is found
_N_SHELLS = 10

#: parts of reciprocal space, made of blocks of voxels at least so wide, whose scatter tells errors
_N_PARTS, _BLOCK_WIDTH = 40, 6

#: parts with common voxels that it takes for that, and common voxels that it takes to compare two crystals
_LEAST_PARTS, FEWEST = 10, 50

#: columns that are multiplied together
_COLUMNS = 64

#: a crystal is taken to show at least this share of the usual contrast
_LEAST_CONTRAST = 0.2


class Maps(NamedTuple):
    """j of e crystals, (n, e) float64 each: value, 0 where not measured, and variance, infinite there."""

    value: np.ndarray
    variance: np.ndarray

    @property
    def weighted(self) -> tuple:
        """(n, e) weighted values and weights, for covariances with the smallest scatter."""
        weight = 1 / (self.variance + 1)
        return self.value * weight, weight

    def at(self, crystals) -> Maps:
        """Some of them."""
        return Maps(self.value[:, crystals], self.variance[:, crystals])


class Likeness(NamedTuple):
    """ρ between maps, its variance (infinite where not known), and the number of common voxels."""

    rho: np.ndarray
    variance: np.ndarray
    common: np.ndarray


@dataclass(frozen=True)
class Voxels:
    """Where maps are compared.

    Attributes
    ----------
    first : (p,) int, first voxel of each part of reciprocal space
    source : (m, n) int, the voxel that takes the place of each one in each setting, -1 where none does
    dependence : variances are so many times those of independent voxels
    """

    first: np.ndarray
    source: np.ndarray
    dependence: float = 1.0

    def moved(self, maps: Maps, setting: int) -> Maps:
        """Maps in another setting."""
        source = self.source[setting]
        there = source >= 0
        value, variance = np.zeros(maps.value.shape), np.full(maps.value.shape, np.inf)
        value[there], variance[there] = maps.value[source[there]], maps.variance[source[there]]
        return Maps(value, variance)

    def compare(self, a: Maps, b: Maps) -> Likeness:
        """(m, p, q) each: of the p maps of ``a``, in every setting, with the q maps of ``b`` as they are."""
        n_settings, p, right = len(self.source), a.value.shape[1], b.weighted
        together = max(1, _COLUMNS // p)
        found = []
        for k in range(0, n_settings, together):
            moved = [self.moved(a, setting).weighted for setting in range(k, min(k + together, n_settings))]
            found.append(self._compared([np.hstack(x) for x in zip(*moved)], right))
        return Likeness(*(np.concatenate(x).reshape(n_settings, p, -1) for x in zip(*found)))

    def _compared(self, a, b) -> Likeness:
        rho, weight, between = self._covariance(a, b)
        within = np.divide(self.dependence, weight, out=np.full(weight.shape, np.inf), where=weight > 0)
        common = np.rint((a[1] > 0).astype(float).T @ (b[1] > 0)).astype(int)
        variance = np.where(common >= FEWEST, np.maximum(between, within), np.inf)
        excess = np.maximum(np.abs(rho), 1.0)  # beyond 1 the contrast of a weak crystal was taken to be too small
        return Likeness(rho / excess, variance / excess**2, common)

    def _covariance(self, a, b) -> tuple:
        """(p, q) each: ρ, its inverse variance if voxels were independent, and its variance by the scatter of parts.

        a, b : see ``Maps.weighted``
        """
        parts = [slice(*limits) for limits in zip(self.first, [*self.first[1:], len(a[0])])]
        covariance, weight = (np.array([x[part].T @ y[part] for part in parts]) for x, y in zip(a, b))
        total, n_parts = weight.sum(axis=0), np.count_nonzero(weight > 0, axis=0)
        rho = np.divide(covariance.sum(axis=0), total, out=np.zeros(total.shape), where=total > 0)
        scatter = np.sum((covariance - rho * weight) ** 2, axis=0) * n_parts / np.maximum(n_parts - 1, 1)
        enough = n_parts >= _LEAST_PARTS
        return rho, total, np.divide(scatter, total**2, out=np.zeros(total.shape), where=enough)

    def squares(self, maps: Maps) -> tuple[np.ndarray, np.ndarray]:
        """(e,) float64, mean square of each map without that of the noise, and its standard error, perhaps infinite."""
        top, bottom = (np.add.reduceat(x, self.first) for x in _signal(maps, 1.0))
        total = bottom.sum(axis=0)
        square = np.divide(top.sum(axis=0), total, out=np.zeros(len(total)), where=total > 0)
        scatter = np.sqrt(np.sum((top - square * bottom) ** 2, axis=0))
        return square, np.divide(scatter, total, out=np.full(len(total), np.inf), where=total > 0)

    def merged(self, maps: Maps) -> Maps:
        """One map of several that agree, (n, 1): the less they do, the smaller is their mean, which is made up for."""
        both = merged(maps)
        size = usual_size(*self.squares(both), 1.0)
        return Maps(both.value / size, both.variance / size**2)

    def estimated(self, maps: Maps) -> Voxels:
        """With the dependence of neighbours that pairs of these maps show."""
        _, weight, between = self._covariance(maps.weighted, maps.weighted)
        known = (between > 0) & ~np.eye(len(weight), dtype=bool)
        ratio = (between * weight)[known]
        return replace(self, dependence=max(1.0, float(np.median(ratio))) if len(ratio) else 1.0)


@dataclass(frozen=True)
class Compared:
    """All that is known of e crystals in m settings.

    Attributes
    ----------
    maps, voxels : Maps of all crystals, and where they are compared
    likeness : Likeness, (m, e, e); [k, i, j] is crystal i in setting k against crystal j as it is
    observed : (m, e, e) float64, correlation as it is measured, which noise makes smaller; NaN where not known
    contrast : (e,) float64, rms of the anisotropic part in units of the usual one
    """

    maps: Maps
    voxels: Voxels
    likeness: Likeness
    observed: np.ndarray
    contrast: np.ndarray


def compare_crystals(contrasts: Contrasts, grid: MapGrid, settings: list) -> Compared:
    """Compare all crystals in all settings; settings : of ``maps.settings.settings_of_lattice``."""
    s = grid.s_magnitude(contrasts.index)
    lowest = np.argsort(s, kind="stable")[: _MAX_ENTRIES // contrasts.value.shape[1]]
    part = _parts(grid, contrasts.index[lowest])
    order = np.argsort(part, kind="stable")
    lowest, part = lowest[order], part[order]
    index = contrasts.index[lowest]
    source = np.array([_source(index, grid, setting.on_lattice(grid.subdivide)[0]) for setting in settings])
    voxels = Voxels(np.searchsorted(part, np.arange(part[-1] + 1)), source)
    maps, contrast = _standardised(contrasts.value[lowest], contrasts.variance[lowest], s[lowest], voxels)
    voxels = voxels.estimated(maps)
    observed = np.array([observed_correlation(voxels.moved(maps, k), maps) for k in range(len(settings))])
    return Compared(maps, voxels, voxels.compare(maps, maps), observed, contrast)


def _parts(grid: MapGrid, index: np.ndarray) -> np.ndarray:
    """(n,) int, part of reciprocal space of each voxel; blocks of neighbours are not divided."""
    block = np.unique(blocks_of_voxels(grid, index, _BLOCK_WIDTH), return_inverse=True)[1].reshape(-1)
    return np.unique(block % _N_PARTS, return_inverse=True)[1].reshape(-1)


def _source(index: np.ndarray, grid: MapGrid, matrix: np.ndarray) -> np.ndarray:
    """(n,) int, which voxel becomes each one when indices are multiplied by ``matrix``, -1 where none does."""
    moved, _ = map_to_asu(index.astype(np.int64) @ matrix, grid.space_group, True)
    place = rows_of(moved, index)
    source = np.full(len(index), -1)
    source[place[place >= 0]] = np.flatnonzero(place >= 0)
    return source


def _standardised(value: np.ndarray, variance: np.ndarray, s: np.ndarray, voxels: Voxels) -> tuple:
    """Maps of variance 1, and (e,) what the crystals were divided by besides the usual contrast in their shells."""
    shell = np.argsort(np.argsort(s, kind="stable"), kind="stable") * _N_SHELLS // len(s)
    seen = np.isfinite(variance)
    size = np.full(_N_SHELLS, np.median(variance[seen]) if np.any(seen) else 1.0)
    for _ in range(2):
        top, bottom = (
            np.bincount(shell, x.sum(axis=1), _N_SHELLS) for x in _signal(Maps(value, variance), size[shell, None])
        )
        found = np.divide(top, bottom, out=np.zeros(_N_SHELLS), where=bottom > 0)
        size = np.maximum(found, 0.05 * found.max()) if found.max() > 0 else size
    scale = np.sqrt(size)[shell][:, None]
    maps = Maps(value / scale, variance / scale**2)
    square, error = voxels.squares(maps)
    clear = square > 3 * error
    usual = float(np.median(square[clear])) if np.any(clear) else 1.0
    contrast = usual_size(square, error, usual)
    return Maps(maps.value / contrast, maps.variance / contrast**2), contrast / np.sqrt(usual)


def usual_size(square: np.ndarray, error: np.ndarray, usual: float) -> np.ndarray:
    """(e,) rms of maps: a weak one is taken to be as most are, a clear one for what it is.

    square, error : (e,) see ``Voxels.squares``; usual : of most
    """
    trust = 1 / (1 + (error / usual) ** 2)
    known = np.where(trust > 0, square, 0.0)
    return np.sqrt(np.maximum(trust * known + (1 - trust) * usual, _LEAST_CONTRAST**2 * usual))


def _signal(maps: Maps, size) -> tuple:
    """(n, e) weighted squares without those of the noise, and their weights; size : expected squares."""
    weight = (maps.variance + size) ** -2.0
    noise = np.where(np.isfinite(maps.variance), maps.variance, 0.0)
    return weight * (maps.value**2 - noise), weight


def merged(maps: Maps) -> Maps:
    """The mean of several maps, (n, 1)."""
    weight = 1 / maps.variance
    total = weight.sum(axis=1, keepdims=True)
    return ratio_map((weight * maps.value).sum(axis=1, keepdims=True), total)


def ratio_map(top: np.ndarray, weight: np.ndarray) -> Maps:
    """The map of weighted sums and sums of weights, which are 1 / variance."""
    there = weight > 0
    value = np.divide(top, weight, out=np.zeros(weight.shape), where=there)
    return Maps(value, np.divide(1.0, weight, out=np.full(weight.shape, np.inf), where=there))


def observed_correlation(a: Maps, b: Maps) -> np.ndarray:
    """(p, q) correlations as they are measured; NaN without common voxels."""
    (left, left_weight), (right, right_weight) = a.weighted, b.weighted
    squares = [(left * a.value).T @ right_weight, left_weight.T @ (right * b.value)]
    size = np.sqrt(squares[0] * squares[1])
    return np.divide(left.T @ right, size, out=np.full(size.shape, np.nan), where=size > 0)
