"""Bragg and diffuse intensity together, averaged over directions: what the absolute scale is found from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from cctbx import crystal, miller, sgtbx
from cctbx.array_family import flex
from scipy.special import xlogy

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import rows_of

#: shells of |s|: at least so wide (1/Å), and with so many unique reflections
_STEP, _PER_SHELL = 0.008, 40

#: of the strongest reflections of a shell; with more missing the others say too little about them
_MOST_LOST = 0.9

#: points in a shell at which curves are averaged
_POINTS = 10

#: standard errors of what is no noise, and of what is none whatever the errors of single reflections are
_SIGNIFICANT, _BEYOND_DOUBT = 5.0, 30.0

#: Bragg intensities of so many times what is usual at their |s| are mistakes: exponentially distributed ones are not
_OUTLIER = 100.0


@dataclass(frozen=True)
class Bragg:
    """n Bragg reflections on the scale of the scale model, see ``files.observations.BRAGG_DTYPE``.

    hkl : (n, 3) int; intensity, variance : (n,) float64
    """

    hkl: np.ndarray
    intensity: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class Shells:
    """Mean intensities in shells of |s|, in units of the scale model; (n,) arrays.

    Attributes
    ----------
    edges : (n + 1,) 1/Å
    diffuse : isotropic part of the scale model
    bragg, bragg_variance : sum over reflections per reciprocal cell; unmeasured ones count as the mean of their shell
    bragg_lost : part of it, what was added because the strongest ones seem to be missing
    n_possible, n_measured : unique reflections
    points : lattice points per reciprocal cell, 1 but for chance where there are few
    """

    edges: np.ndarray
    diffuse: np.ndarray
    bragg: np.ndarray
    bragg_variance: np.ndarray
    bragg_lost: np.ndarray
    n_possible: np.ndarray
    n_measured: np.ndarray
    points: np.ndarray

    @property
    def s(self) -> np.ndarray:
        return (self.edges[1:] + self.edges[:-1]) / 2

    def mean(self, curve) -> np.ndarray:
        """(n,) means over the shells' volume of a function of (m,) |s|."""
        return shell_means(self.edges, curve)

    @property
    def total(self) -> np.ndarray:
        return self.diffuse + self.bragg


@dataclass(frozen=True)
class UniqueBragg:
    """Unique reflections that can be there, absences left out; (n,) arrays.

    Attributes
    ----------
    hkl : (n, 3) int, in cctbx's asymmetric unit
    s : 1/Å
    orbit : equivalent reflections, Friedel mates among them
    measured : bool
    intensity, variance : mean of the equivalents, 0 where not measured
    """

    hkl: np.ndarray
    s: np.ndarray
    orbit: np.ndarray
    measured: np.ndarray
    intensity: np.ndarray
    variance: np.ndarray


def shell_means(edges: np.ndarray, curve) -> np.ndarray:
    """(n,) means over the volume of shells between (n + 1,) ``edges`` of a function of (m,) |s|."""
    steps = (np.arange(_POINTS) + 0.5) / _POINTS
    s = edges[:-1, None] + np.diff(edges)[:, None] * steps
    return np.average(np.asarray(curve(s.ravel())).reshape(s.shape), axis=1, weights=s**2)


def _without_outliers(bragg: Bragg, s: np.ndarray) -> Bragg:
    """Reflections less those that are much stronger, of either sign, than most at their |s|.

    The innermost ones are too few, and differ too much, for that.
    """
    good = np.isfinite(bragg.intensity) & np.isfinite(bragg.variance)
    for part in np.array_split(np.argsort(s), max(1, len(s) // 500))[1:]:
        size = np.abs(bragg.intensity[part])
        usual = np.sort(size)[: max(1, int(0.8 * len(part)))].mean()
        good[part] &= size < _OUTLIER * usual + 6 * np.sqrt(np.maximum(bragg.variance[part], 0))
    return Bragg(bragg.hkl[good], bragg.intensity[good], bragg.variance[good])


def merge_bragg(grid: MapGrid, bragg: Bragg) -> UniqueBragg:
    """Mean over symmetry mates of every reflection that can be there, to the resolution of those measured."""
    if len(bragg.intensity) < 100:
        raise DiffuseError(
            f"{len(bragg.intensity)} Bragg reflections are too few for an absolute scale; integrate with a .refl that "
            "holds more, or set absolute_scale.method=none"
        )
    bragg = _without_outliers(bragg, np.linalg.norm(bragg.hkl @ grid.reciprocal_matrix.T, axis=1))
    symmetry = crystal.symmetry(unit_cell=grid.unit_cell, space_group=sgtbx.space_group(grid.hall_symbol))
    columns = np.ascontiguousarray(np.asarray(bragg.hkl).T, dtype=np.int32)
    indices = flex.miller_index(*(flex.int(column) for column in columns))
    measured = miller.set(symmetry, indices, anomalous_flag=False).map_to_asu().indices()
    s_max = float(np.linalg.norm(bragg.hkl @ grid.reciprocal_matrix.T, axis=1).max())
    possible = miller.build_set(symmetry, anomalous_flag=False, d_min=(1 - 1e-6) / s_max)
    hkl = np.array(possible.indices().as_vec3_double()).reshape(-1, 3).astype(int)
    rows = np.array(measured.as_vec3_double()).reshape(-1, 3).astype(int)
    row = rows_of(rows, hkl)
    known = row >= 0  # absences are not among those possible
    row = row[known]
    n = np.bincount(row, minlength=len(hkl))
    divisor = np.maximum(n, 1)
    return UniqueBragg(
        hkl=hkl,
        s=1 / possible.d_spacings().data().as_numpy_array(),
        orbit=possible.multiplicities().data().as_numpy_array().astype(float),
        measured=n > 0,
        intensity=np.bincount(row, bragg.intensity[known], len(hkl)) / divisor,
        variance=np.bincount(row, bragg.variance[known], len(hkl)) / divisor**2,
    )


def only_noise(unique: UniqueBragg) -> str:
    """A sentence if the Bragg reflections are not more than their errors, else empty: noise has no scale.

    Those of a crystal are positive in the mean, and differ from each other at equal |s| by as much as they are strong.
    """
    use = unique.measured & (unique.variance > 0)
    intensity, variance = unique.intensity[use], unique.variance[use]
    order = np.argsort(unique.s[use])
    if len(order) < _PER_SHELL:
        return ""
    mean, excess, freedom = 0.0, 0.0, 0
    for part in np.array_split(order, max(1, len(order) // _PER_SHELL)):
        weight = 1 / variance[part]
        middle = float(weight @ intensity[part] / weight.sum())
        mean += float(weight @ intensity[part])
        excess += float(weight @ (intensity[part] - middle) ** 2)
        freedom += len(part) - 1
    significance = mean / math.sqrt(float(np.sum(1 / variance)))
    chi2, error = excess / freedom, math.sqrt(2 / freedom)
    if significance < _SIGNIFICANT or (significance < _BEYOND_DOUBT and chi2 < 1 + _SIGNIFICANT * error):
        return (
            f"the Bragg reflections are no more than noise: their mean is {significance:.1f} times its error, and they "
            f"differ by {math.sqrt(chi2):.2f} times their errors; are they those of a crystal on these images?"
        )
    return ""


def _lost_strong(seen: np.ndarray, possible: np.ndarray, n_unique: np.ndarray) -> np.ndarray:
    """(n,) share of the reflections of a shell that are missing in excess of the most complete shells further out."""
    # over so many shells that chance does not matter
    groups = np.array_split(np.arange(len(seen)), max(1, min(8, int(n_unique.sum() // 400))))
    of_group = np.array([seen[g].sum() / max(possible[g].sum(), 1) for g in groups])
    best = int(np.argmax(of_group))
    # the innermost shells hold few reflections each
    run = np.cumsum(n_unique) // _PER_SHELL
    run = np.unique(run, return_inverse=True)[1].reshape(-1)
    n, n_seen, n_possible = (np.bincount(run, x)[run] for x in (n_unique, seen, possible))
    error = np.sqrt((1 - of_group[best]) / (max(of_group[best], 1e-9) * np.maximum(n, 1)))
    share = 1 - n_seen / np.maximum(n_possible, 1) / max(of_group[best], 1e-9)
    inner = (np.arange(len(seen)) < groups[best][0]) & (share > 3 * error + 0.02)
    return np.where(inner, np.clip(share, 0.0, _MOST_LOST), 0.0)


def _mean_below(share: np.ndarray) -> np.ndarray:
    """Mean of an exponential distribution without its largest values, that share of all, relative to the whole mean."""
    return (1 - share + xlogy(share, share)) / (1 - share)


def mean_intensities(grid: MapGrid, unique: UniqueBragg, profile, s_range: tuple) -> Shells:
    """Diffuse and Bragg intensity in shells from the origin to where both are known.

    Below the first shell with measurements (beam stop) the intensities of that shell are taken: q² makes it little.
    Where inner shells are less complete than those further out, overloads are missing, which are the strongest. With
    the exponential distribution of intensities (Wilson 1949, Acta Cryst. 2, 318) the mean of all follows from that of
    the others.
    """
    s_max = min(s_range[1], float(unique.s[unique.measured].max()))
    n_shells = int(np.clip(s_max / _STEP, 5, max(5, np.count_nonzero(unique.s < s_max) / _PER_SHELL)))
    edges = np.linspace(0, s_max, n_shells + 1)
    shell = np.searchsorted(edges, unique.s, side="right") - 1

    def total(values, chosen):
        mine = chosen & (shell < n_shells)
        return np.bincount(shell[mine], (values * np.ones(len(shell)))[mine], n_shells)

    everywhere = np.ones(len(shell), dtype=bool)
    possible, seen = total(unique.orbit, everywhere), total(unique.orbit, unique.measured)
    summed = total(unique.orbit * unique.intensity, unique.measured)
    variance = total(unique.orbit**2 * unique.variance, unique.measured)
    known = np.flatnonzero(seen)
    truncated = _lost_strong(seen, possible, total(1.0, everywhere))
    plain = summed[known] / seen[known]
    fill = np.interp(np.arange(n_shells), known, plain)  # mean of a reflection
    spread = total(unique.orbit * (unique.intensity - fill[np.minimum(shell, n_shells - 1)]) ** 2, unique.measured)
    spread = np.divide(spread, seen, out=np.zeros(n_shells), where=seen > 0)
    missing = possible - seen
    estimated = possible * np.interp(np.arange(n_shells), known, plain / _mean_below(truncated[known]))
    strong = np.where(np.any(truncated), np.maximum(estimated - summed - missing * fill, 0.0), 0.0)
    cells = 4 / 3 * math.pi * np.diff(edges**3) / abs(np.linalg.det(grid.reciprocal_matrix))
    return Shells(
        edges=edges,
        diffuse=shell_means(edges, lambda s: profile(np.clip(s, *s_range))),
        bragg=(summed + missing * fill + strong) / cells,
        bragg_variance=(variance + missing * np.mean(unique.orbit) * spread) / cells**2,
        bragg_lost=strong / cells,
        n_possible=total(1.0, everywhere).astype(int),
        n_measured=total(1.0, unique.measured).astype(int),
        points=possible / cells,
    )
