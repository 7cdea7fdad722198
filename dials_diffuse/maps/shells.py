"""Shells of resolution: their limits, what is isotropic in them, and correlations of the rest."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid

#: width in |s| of the bins whose mean is the isotropic part of a map, 1/Å
BIN_WIDTH = 0.004


#: relative; voxels whose centres lie on a limit belong to the map (MapGrid.inside allows half of this)
TOLERANCE = 2e-12


def isotropic_residual(values: np.ndarray, s: np.ndarray, bin_width: float = BIN_WIDTH) -> np.ndarray:
    """Subtract from each value the mean of its bin in |s|.

    values : (n,) float64, finite; s : (n,) float64, 1/Å
    """
    return less_group_means(values, np.floor(s / bin_width).astype(np.int64))


def less_group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Subtract from each value the mean of its group; group : (n,) integers from 0."""
    return values - group_means(values, group)


def group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) float64, the mean of the group that each value is in."""
    if not len(values):
        return np.zeros(0)
    return (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]


def anisotropic_correlation(a, b, s, d_max=math.inf, d_min=0.0, bin_width: float = BIN_WIDTH) -> float:
    """Pearson correlation of two maps after subtracting from both their means in fine bins of |s|.

    Parameters
    ----------
    a, b : (n,) float64, intensities of the same voxels; NaN where not measured, such voxels are left out
    s : (n,) float64, |s| in 1/Å
    d_max, d_min : range of resolution in Å
    bin_width : 1/Å

    Returns
    -------
    float, NaN if there are fewer than three common voxels or one map is flat
    """
    a, b, s = (np.asarray(x, dtype=float) for x in (a, b, s))
    use = np.isfinite(a) & np.isfinite(b) & (s * d_min < 1 + TOLERANCE) & (s >= (1 - TOLERANCE) / d_max)
    if np.count_nonzero(use) < 3:
        return math.nan
    x = isotropic_residual(a[use], s[use], bin_width)
    y = isotropic_residual(b[use], s[use], bin_width)
    return correlation(x, y)


def resolution_range(grid: MapGrid, d_max=None, d_min=None) -> tuple:
    """``(d_max, d_min)`` in Å, where None or more than the grid has stands for the limit of the grid.

    Raises
    ------
    DiffuseError
        If nothing of the range lies inside the grid.
    """
    high = grid.d_max if d_max is None else min(d_max, grid.d_max)
    low = grid.d_min if d_min is None else max(d_min, grid.d_min)
    if not low < high:
        raise DiffuseError(
            f"statistics.d_max={d_max}, statistics.d_min={d_min}: no such part of the map, which reaches from "
            f"{grid.d_max:g} to {grid.d_min:g} Å; choose limits inside"
        )
    return high, low


def shell_limits(d_max: float, d_min: float, n_shells: int) -> np.ndarray:
    """(n_shells + 1,) resolution in Å, descending, that bounds shells of equal volume."""
    with np.errstate(divide="ignore"):
        limits = np.linspace(d_max**-3, d_min**-3, n_shells + 1) ** (-1 / 3)
    limits[0], limits[-1] = d_max, d_min
    return limits


#: equal-count bins of |s| whose mean is the isotropic part: finer than any feature of a solvent ring
N_BINS = 400


def equal_count_residual(values: np.ndarray, s: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Subtract from each value the straight line through those of its bin in |s|; the bins hold equal numbers.

    A line and not only a mean: at low resolution a bin is wide, and the background falls steeply within it.
    """
    order = np.argsort(s, kind="stable")
    bins = np.empty(len(s), dtype=np.int64)
    bins[order] = np.arange(len(s)) * n_bins // max(len(s), 1)

    x, y = less_group_means(s, bins), less_group_means(values, bins)
    variance = group_means(x * x, bins)
    slope = np.divide(group_means(x * y, bins), variance, out=np.zeros(len(s)), where=variance > 0)
    return y - slope * x


#: small maps have wider bins, so that one holds at least this many voxels on the average
_PER_BIN = 20


def shell_residual(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Subtract from each value the straight line through those of its thin shell of |s|: what is isotropic.

    Shells hold equal numbers and are BIN_WIDTH wide on the average, wider where voxels are few.
    """
    n_bins = min(round(float(np.ptp(s)) / BIN_WIDTH), len(s) // _PER_BIN)
    return equal_count_residual(values, s, max(n_bins, 1))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of centred values, NaN where one of them does not vary."""
    return float(correlation_of_sums(a @ a, a @ b, b @ b))


def correlation_of_sums(aa, ab, bb) -> np.ndarray:
    """Of sums over centred values, arrays of one shape: of a², a b and b²; NaN where one of them does not vary."""
    square = np.asarray(aa * bb)
    return np.divide(ab, np.sqrt(np.maximum(square, 0)), out=np.full(square.shape, np.nan), where=square > 0)


def shells_of(s: np.ndarray, n_shells: int) -> tuple:
    """Shell of equal volume of each voxel, and the limits in Å."""
    limits = shell_limits(1 / s.min(), 1 / s.max(), n_shells)
    return np.clip(np.searchsorted(1 / limits, s, side="right") - 1, 0, n_shells - 1), limits
