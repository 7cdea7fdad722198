"""How good is a map? Completeness, agreement of half sets and of symmetry mates, in shells of resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.counting import count_unique
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import (
    TOLERANCE,
    anisotropic_correlation,
    isotropic_residual,
    resolution_range,
    shell_limits,
)
from dials_diffuse.maps.symmetry import unique_voxels

COLUMNS = (
    "d_max",
    "d_min",
    "n",
    "possible",
    "completeness",
    "multiplicity",
    "mean",
    "mean_sigma",
    "rms_anisotropic",
    "cc_half",
    "cc_friedel",
    "r_sym",
    "chi2_sym",
)


#: χ² of mates, and their difference relative to the intensity, which are both small in good data: at high dose only the
#: latter is
_MOST_CHI2, _MOST_R_SYM = 4.0, 0.05

#: photons²; a fraction of a photon has more
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Mates:
    """Sums over each voxel before symmetry averaging, m voxels.

    Attributes
    ----------
    unique : (m,) int, row of the merged map
    inverted : (m,) bool, reached with an inversion
    net : (m,) float64, counts less background
    norm : (m,) float64, > 0
    floor : (m,) float64, what the background and its own variance add to the variance of ``net``
    """

    unique: np.ndarray
    inverted: np.ndarray
    net: np.ndarray
    norm: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True)
class ShellTable:
    """Statistics by shell, columns of equal length named as in ``COLUMNS``, and of all shells together.

    n, possible : symmetry-unique voxels measured, and voxels whose centres lie inside the limits
    multiplicity : observations per measured voxel
    mean, mean_sigma : of the merged intensity
    rms_anisotropic : root mean square of the intensity without what is isotropic in it, noise included
    cc_half, cc_friedel : correlation of this anisotropic part between half sets and between Friedel mates
    r_sym : sum |I_mate - I_merged| / sum I_mate over voxels with two mates or more
    chi2_sym : the same differences squared, over the variance expected from the merged intensity, per degree of freedom

    What cannot be computed is NaN. Intensities of mates are always counts over norm, whichever estimator made the map.
    """

    shells: dict
    overall: dict

    def rows(self) -> list:
        """The shells as a list of dictionaries."""
        return [dict(zip(self.shells, values)) for values in zip(*self.shells.values())]


def shell_statistics(data: DiffuseMap, mates: Mates, n_shells: int = 20, d_max=None, d_min=None) -> ShellTable:
    """Statistics of a merged map in shells of equal volume, and overall.

    Parameters
    ----------
    d_max, d_min : range in Å, see :func:`resolution_range`

    Raises
    ------
    DiffuseError
        If nothing of the range lies inside the grid.
    """
    d_max, d_min = resolution_range(data.grid, d_max, d_min)
    limits = shell_limits(d_max, d_min, n_shells)
    edges = 1 / limits
    edges[:-1] *= 1 - TOLERANCE  # so that rounding does not decide about voxels on a limit
    edges[-1] *= 1 + TOLERANCE
    possible = count_unique(data.grid, data.friedel, edges)
    s = data.grid.s_magnitude(data.index)
    tests = _SymmetryTests(mates, len(s))
    plus, minus, s_pair = _friedel_pairs(data, mates)
    unknown = np.full(len(s), np.nan)
    half_a, half_b = (unknown if half is None else half for half in (data.half_a, data.half_b))

    def row(first, last) -> dict:
        use = (s >= edges[first]) & (s < edges[last])
        pair = (s_pair >= edges[first]) & (s_pair < edges[last])
        n, n_possible = np.count_nonzero(use), possible[first:last].sum()
        r_sym, chi2_sym = tests.result(use)
        values = (
            limits[first],
            limits[last],
            n,
            n_possible,
            n / n_possible if n_possible else math.nan,
            _mean(data.multiplicity[use]),
            _mean(data.intensity[use]),
            _mean(data.sigma[use]),
            math.sqrt(_mean(isotropic_residual(data.intensity[use], s[use]) ** 2)),
            anisotropic_correlation(half_a[use], half_b[use], s[use]),
            anisotropic_correlation(plus[pair], minus[pair], s_pair[pair]),
            r_sym,
            chi2_sym,
        )
        return dict(zip(COLUMNS, values))

    rows = [row(i, i + 1) for i in range(n_shells)]
    return ShellTable({name: np.array([r[name] for r in rows]) for name in COLUMNS}, row(0, n_shells))


def shells_away_from_bragg(data: DiffuseMap, shells: Sequence) -> list:
    """Intensity and agreement of half sets in voxels that hold no lattice point: no Bragg peak has left traces in them.

    Parameters
    ----------
    shells : rows with ``d_max`` and ``d_min``, as of :class:`ShellTable`

    Returns
    -------
    list of dict : of each shell d_max, d_min, n, mean, mean_sigma, rms_anisotropic, cc_half, as in ShellTable; empty
        where all voxels hold lattice points
    """
    away = np.any(data.index % np.array(data.grid.subdivide), axis=1)
    if not away.any():
        return []
    s = data.grid.s_magnitude(data.index)
    unknown = np.full(len(s), np.nan)
    half_a, half_b = (unknown if half is None else half for half in (data.half_a, data.half_b))
    rows = []
    for shell in shells:
        use = away & (s >= 1 / shell["d_max"] * (1 - TOLERANCE)) & (s < 1 / shell["d_min"] * (1 + TOLERANCE))
        rows.append(
            {
                "d_max": shell["d_max"],
                "d_min": shell["d_min"],
                "n": int(np.count_nonzero(use)),
                "mean": _mean(data.intensity[use]),
                "mean_sigma": _mean(data.sigma[use]),
                "rms_anisotropic": math.sqrt(_mean(isotropic_residual(data.intensity[use], s[use]) ** 2)),
                "cc_half": anisotropic_correlation(half_a[use], half_b[use], s[use]),
            }
        )
    return rows


def mates_in_words(overall: dict) -> list:
    """A sentence where symmetry mates differ by more than counting allows, and by more than a good scale leaves.

    overall : of a ShellTable
    """
    chi2, r_sym = overall["chi2_sym"] or 0, overall["r_sym"] or 0
    if not (chi2 >= _MOST_CHI2 and r_sym >= _MOST_R_SYM):
        return []
    return [
        f"symmetry mates disagree (χ² {chi2:.3g}, {100 * r_sym:.0f} % of the intensity): is the space group too high, "
        "are the scales wrong, or the data unscaled, or Bragg peaks not where the masks are?"
    ]


class _SymmetryTests:
    """Agreement of mates with their mean, summed for each unique voxel.

    The variance of a mate is its share of that of the whole voxel, in proportion to what the merged intensity and the
    background let expect, as in Pearson's chi-square: its own counts would make it small where they happen to be few.
    """

    def __init__(self, mates: Mates, n_unique: int):
        def total(weights):
            return np.bincount(mates.unique, weights, minlength=n_unique)

        merged = (total(mates.net) / np.maximum(total(mates.norm), 1e-300))[mates.unique]
        share = np.maximum(merged * mates.norm, 0) + mates.floor
        variance = np.maximum(total(mates.net + mates.floor), 0) / np.maximum(total(share), 1e-300)
        expected_variance = share * variance[mates.unique]
        difference = mates.net - merged * mates.norm
        number = np.bincount(mates.unique, minlength=n_unique)
        several = number[mates.unique] > 1
        known = several & (
            expected_variance > _LEAST_VARIANCE
        )  # else nothing is expected there, and nothing can be said
        self._absolute = total(np.where(several, np.abs(difference) / mates.norm, 0))
        self._intensity = total(np.where(several, mates.net / mates.norm, 0))
        chi2 = np.divide(difference**2, expected_variance, out=np.zeros(len(difference)), where=known)
        self._chi2 = total(chi2)
        self._freedom = total(known.astype(float)) * (1 - 1 / np.maximum(number, 1))

    def result(self, use) -> tuple:
        """R_sym and chi-square per degree of freedom of a selection of unique voxels."""
        intensity, freedom = self._intensity[use].sum(), self._freedom[use].sum()
        r_sym = self._absolute[use].sum() / intensity if intensity > 0 else math.nan
        return float(r_sym), float(self._chi2[use].sum() / freedom) if freedom > 0 else math.nan


def _friedel_pairs(data: DiffuseMap, mates: Mates) -> tuple:
    """Intensity of + mates, of - mates and |s| for each unique voxel of the Laue group, NaN where not measured.

    In a centrosymmetric group the - mates are + mates too and all of them are NaN.
    """
    orbit, inverted, index = mates.unique, mates.inverted, data.index
    if not data.friedel:
        voxels = unique_voxels(data.index, data.grid.space_group, friedel=True)
        orbit, inverted, index = voxels.inverse[orbit], voxels.inverted[orbit], voxels.index
    result = []
    for use in (~inverted, inverted):
        net, norm = (np.bincount(orbit[use], x[use], minlength=len(index)) for x in (mates.net, mates.norm))
        result.append(np.divide(net, norm, out=np.full(len(index), np.nan), where=norm > 0))
    return *result, data.grid.s_magnitude(index)


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else math.nan
