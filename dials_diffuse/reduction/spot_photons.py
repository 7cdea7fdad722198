"""Photons of predicted Bragg reflections: measured, by symmetry mates, or by Wilson's distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from dials_diffuse.experiment.bragg_photons import BraggPhotons
from dials_diffuse.experiment.spot_prediction import PredictedSpots
from dials_diffuse.maps.symmetry import unique_voxels

MATCH_IMAGES = 3.0  # a measured reflection this close in rotation to a prediction is the predicted one
MEASURED_SIGMA = 5.0  # intensities above so many sigma are taken as they are
MATE_ERROR = 0.1  # relative, of an intensity as an estimate of its mates'
N_WILSON = 20  # resolution ranges for the mean intensity
WILSON_LIMIT = 3.0  # 95 % of the acentric intensities lie below this multiple of their mean


@dataclass(frozen=True)
class SpotPhotons:
    """Photons of predicted reflections, and where they come from.

    Attributes
    ----------
    photons : (n,) float64, of the whole reflection, positive; of one without a measured mate what it hardly exceeds
    expected : (n,) float64, the same, but of one without a measured mate the mean of its resolution shell
    certain : (n,) bool, strong ones that were measured well
    measured, mates, wilson : how many of the n
    """

    photons: np.ndarray
    expected: np.ndarray
    certain: np.ndarray
    measured: int
    mates: int
    wilson: int


def spot_photons(spots: PredictedSpots, good: BraggPhotons, all_measured: BraggPhotons, factor, space_group):
    """Photons of every predicted reflection.

    A strong one is as strong as measured. Others get the expectation of French & Wilson (1978) from the weighted mean
    of their mates, themselves included. Overloaded, overlapped and otherwise bad ones get the larger of their mates'
    and their own. Where no mate was measured, the reflection gets what 95 % of Wilson's distribution stay below.

    Parameters
    ----------
    good, all_measured : the reflections that are good, and all that have an intensity
    factor : (n,) photons for a unit of |F|², relative
    space_group : sgtbx.space_group

    Returns
    -------
    SpotPhotons
    """
    n = len(spots)
    of_group = unique_voxels(spots.hkl, space_group).inverse
    value, sigma = _matched(spots, good)
    known = np.isfinite(value)
    shell = _equal_shells(spots.s, N_WILSON)
    mean_shell = _group_mean(shell, value / factor, known, N_WILSON)
    mean_shell = np.where(np.isfinite(mean_shell), np.maximum(mean_shell, 0), np.nan)
    filled = np.interp(
        np.arange(N_WILSON), np.flatnonzero(np.isfinite(mean_shell)), mean_shell[np.isfinite(mean_shell)]
    )
    wilson = np.maximum(filled[shell], 1e-12 * filled.max())
    f2, error = value / factor, np.hypot(sigma, MATE_ERROR * value) / factor
    weight = np.where(known, 1 / np.where(known, error, 1) ** 2, 0.0)
    total = np.bincount(of_group, weight, n)[of_group]
    mean = np.bincount(of_group, weight * np.where(known, f2, 0), n)[of_group] / np.where(total > 0, total, 1)
    expected = _french_wilson(mean, 1 / np.sqrt(np.where(total > 0, total, 1)), wilson)
    strong = known & (value > MEASURED_SIGMA * sigma)
    photons = np.where(total > 0, expected, WILSON_LIMIT * wilson) * factor
    photons = np.where(strong, value, photons)
    bad, _ = _matched(spots, all_measured)
    photons = np.where(~known & np.isfinite(bad), np.maximum(photons, np.nan_to_num(bad)), photons)
    mates = (total > 0) & ~known
    surely = np.where((total > 0) | np.isfinite(bad), photons, wilson * factor)
    return SpotPhotons(photons, surely, strong, int(known.sum()), int(mates.sum()), int((total <= 0).sum()))


def _matched(spots: PredictedSpots, measured: BraggPhotons) -> tuple:
    """(n,) photons and their sigma of the predicted reflections, NaN where not measured."""
    base = 1 + 2 * int(max(np.abs(spots.hkl).max(initial=0), np.abs(measured.hkl).max(initial=0)))
    span = 2.0 * (1 + max(np.abs(spots.centre[:, 2]).max(initial=0), np.abs(measured.centre[:, 2]).max(initial=0)))
    theirs, mine = (_key(x.hkl, base) * span + x.centre[:, 2] for x in (measured, spots))
    order = np.argsort(theirs)
    theirs = theirs[order]
    value, sigma = np.full(len(spots), np.nan), np.full(len(spots), np.nan)
    if not len(theirs):
        return value, sigma
    after = np.searchsorted(theirs, mine)
    best = np.clip(after, 0, len(theirs) - 1)
    before = np.maximum(after - 1, 0)
    best = np.where(np.abs(theirs[before] - mine) < np.abs(theirs[best] - mine), before, best)
    near = np.abs(theirs[best] - mine) < MATCH_IMAGES
    value[near] = measured.photons[order[best[near]]]
    sigma[near] = np.sqrt(measured.variance[order[best[near]]])
    return value, sigma


def _key(hkl: np.ndarray, base: int) -> np.ndarray:
    h, k, m = hkl.astype(float).T
    return (h * base + k) * base + m


def _equal_shells(s: np.ndarray, n: int) -> np.ndarray:
    """(n,) shell of equal numbers of reflections."""
    rank = np.empty(len(s), dtype=np.int64)
    rank[np.argsort(s, kind="stable")] = np.arange(len(s))
    return rank * n // max(len(s), 1)


def _group_mean(group, value, known, n: int) -> np.ndarray:
    count = np.bincount(group[known], minlength=n)
    total = np.bincount(group[known], value[known], minlength=n)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _french_wilson(mean, sigma, wilson) -> np.ndarray:
    """Expectation of an acentric intensity that was measured with an error, with Wilson's distribution as prior."""
    centre = mean - sigma**2 / wilson
    t = centre / sigma
    return centre + sigma * np.exp(-0.5 * t**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(t))
