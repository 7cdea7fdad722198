"""Does a map hold anisotropic signal, and to what resolution? Asked of its half sets, without what errors share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import correlation, fine_residual, less_group_means, shells_of

#: shells of equal volume in which the signal is followed
N_SHELLS = 12

#: a correlation that exceeds that of permuted maps by so many of their standard deviations is no accident
SIGNIFICANT = 5.0

#: and it has to be this large: where counts are high, errors of the profile within voxels correlate by some per cent
LEAST_CC = 0.05

#: permuted maps, and the width in |s| of the shells in which voxels change places, 1/Å
_N_CONTROLS, _CONTROL_WIDTH = 24, 0.01

#: a shell of fewer voxels says nothing
_FEWEST = 60


@dataclass(frozen=True)
class Shell:
    """Agreement of half sets in a shell of resolution.

    d_max, d_min : Å; n : voxels; cc_half : of what varies from voxel to voxel; z : in standard deviations of chance
    """

    d_max: float
    d_min: float
    n: int
    cc_half: float
    z: float


@dataclass(frozen=True)
class Significance:
    """How much of a map is anisotropic signal.

    Attributes
    ----------
    n : voxels in both halves, away from Bragg positions where the grid has such
    cc_half : correlation of what varies from voxel to voxel in both halves
    cc_star : sqrt(2 cc / (1 + cc)), the correlation of the whole map with the truth; NaN where cc is negative
    cc_smooth : correlation of the halves before what is smooth in direction is taken off
    control, control_esd : mean and standard deviation of the correlation with voxels permuted at equal |s|
    z : (cc_half - control) / control_esd
    d_min : Å, end of the last shell with signal; NaN where there is none
    shells : tuple of Shell
    """

    n: int
    cc_half: float
    cc_star: float
    cc_smooth: float
    control: float
    control_esd: float
    z: float
    d_min: float
    shells: tuple

    @property
    def significant(self) -> bool:
        return self.z > SIGNIFICANT and self.cc_half > LEAST_CC


def signal_of(data: DiffuseMap, seed: int = 0) -> Significance:
    """Compare the half sets of a map with each other, and with maps whose voxels are permuted.

    Voxels at Bragg positions are left out where the lattice is subdivided: what the masks leave of the peaks is in
    both halves. Patterns that are smooth in direction are taken off, see :func:`fine_residual`.

    Parameters
    ----------
    data : a map with half sets
    seed : of the permutations

    Source: docs/theory.md, Is there signal?
    """
    s = data.grid.s(data.index)
    length = np.linalg.norm(s, axis=1)
    use = (length > 0) & _measured(data.half_a, len(s)) & _measured(data.half_b, len(s))
    if max(data.grid.subdivide) > 1:
        use &= np.any(data.index % np.array(data.grid.subdivide) != 0, axis=1)
    n = int(np.count_nonzero(use))
    if n < _FEWEST:
        return Significance(n, *5 * (math.nan,), 0.0, math.nan, ())
    s, length, a, b = s[use], length[use], data.half_a[use], data.half_b[use]
    bins = np.floor(length / _CONTROL_WIDTH).astype(int)
    smooth = correlation(less_group_means(a, bins), less_group_means(b, bins))
    a, b = fine_residual(a, s), fine_residual(b, s)
    cc = correlation(a, b)
    controls = _controls(a, b, bins, np.random.default_rng(seed))
    mean, esd = float(np.mean(controls)), float(np.std(controls, ddof=1))
    shells = _shells(a, b, length, esd * math.sqrt(n))
    z = (cc - mean) / esd if esd > 0 and math.isfinite(cc) else 0.0
    star = math.sqrt(2 * cc / (1 + cc)) if cc > 0 else math.nan
    found = Significance(n, cc, star, smooth, mean, esd, z, _limit(shells), shells)
    return found if found.significant else replace(found, d_min=math.nan)


def _measured(half, n: int) -> np.ndarray:
    return np.zeros(n, dtype=bool) if half is None else np.isfinite(half)


def _controls(a: np.ndarray, b: np.ndarray, bins: np.ndarray, rng) -> list:
    """Correlations with the voxels of each bin of |s| in random order: what chance makes of the same values."""
    order = np.argsort(bins, kind="stable")
    result = []
    for _ in range(_N_CONTROLS):
        place = np.empty(len(b), dtype=np.int64)
        place[order] = np.lexsort((rng.random(len(b)), bins))
        result.append(correlation(a, b[place]))
    return result


def _shells(a: np.ndarray, b: np.ndarray, length: np.ndarray, spread: float) -> tuple:
    """spread : standard deviation of a chance correlation times the square root of its voxels; 1 for Gaussian values"""
    number, limits = shells_of(length, N_SHELLS)
    result = []
    for i in range(N_SHELLS):
        mine = number == i
        n = int(np.count_nonzero(mine))
        cc = correlation(a[mine] - a[mine].mean(), b[mine] - b[mine].mean()) if n >= _FEWEST else math.nan
        z = cc * math.sqrt(n) / spread if spread > 0 and math.isfinite(cc) else math.nan
        result.append(Shell(float(limits[i]), float(limits[i + 1]), n, float(cc), float(z)))
    return tuple(result)


def _limit(shells: tuple) -> float:
    """Resolution where the signal ends; one shell without signal before another with it does not end it."""
    limit, missed = math.nan, 0
    for shell in shells:
        if shell.z > 3:
            limit, missed = shell.d_min, 0
        elif math.isfinite(limit):
            missed += 1
        if missed > 1:
            break
    return limit
