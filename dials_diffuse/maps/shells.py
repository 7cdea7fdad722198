"""Shells of resolution: their limits, what is isotropic in them, and correlations of the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid

#: more shells than these tell nothing, and take memory and time
MAX_SHELLS = 10_000

#: width in |s| of the shells whose values are isotropic but for a line, 1/Å
BIN_WIDTH = 0.004

#: voxels in such a shell, at least, and the number of which thinner ones are made
_FEWEST, _PER_THIN_SHELL = 8, 40

#: relative; voxels whose centres lie on a limit belong to the map (MapGrid.inside allows half of this)
TOLERANCE = 2e-12


def isotropic_residual(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Subtract from each value what is isotropic: the straight line through those of its thin shell of |s|.

    Shells hold equal numbers. They are BIN_WIDTH wide where they then hold enough voxels, and thinner where these are
    many: where a solvent ring is steep, what is left of it in a wide shell looks like signal that half sets share.

    values : (n,) float64, finite; s : (n,) float64, 1/Å
    """
    n = len(values)
    wide = min(round(float(np.ptp(s)) / BIN_WIDTH), n // _FEWEST) if n else 0
    return equal_count_residual(values, s, max(wide, n // _PER_THIN_SHELL, 1))


def less_group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Subtract from each value the mean of its group; group : (n,) integers from 0."""
    return values - group_means(values, group)


def group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(n,) float64, the mean of the group that each value is in."""
    if not len(values):
        return np.zeros(0)
    return (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]


def anisotropic_correlation(a, b, s, d_max=math.inf, d_min=0.0) -> float:
    """Pearson correlation of two maps after subtracting from both what is isotropic, see :func:`isotropic_residual`.

    Parameters
    ----------
    a, b : (n,) float64, intensities of the same voxels; NaN where not measured, such voxels are left out
    s : (n,) float64, |s| in 1/Å
    d_max, d_min : range of resolution in Å

    Returns
    -------
    float, NaN if there are fewer than three common voxels or one map is flat
    """
    a, b, s = (np.asarray(x, dtype=float) for x in (a, b, s))
    use = np.isfinite(a) & np.isfinite(b) & (s * d_min < 1 + TOLERANCE) & (s >= (1 - TOLERANCE) / d_max)
    if np.count_nonzero(use) < 3:
        return math.nan
    x = isotropic_residual(a[use], s[use])
    y = isotropic_residual(b[use], s[use])
    return correlation(x, y)


def resolution_range(grid: MapGrid, d_max=None, d_min=None, scope: str = "statistics.") -> tuple:
    """``(d_max, d_min)`` in Å, where None or more than the grid has stands for the limit of the grid.

    scope : of the two parameters, for the message

    Raises
    ------
    DiffuseError
        If nothing of the range lies inside the grid.
    """
    high = grid.d_max if d_max is None else min(d_max, grid.d_max)
    low = grid.d_min if d_min is None else max(d_min, grid.d_min)
    if not low < high:
        raise DiffuseError(
            f"{scope}d_max={d_max}, {scope}d_min={d_min}: no such part of the map, which reaches from "
            f"{grid.d_max:g} to {grid.d_min:g} Å; choose limits inside"
        )
    return high, low


def _check_number(n_shells: int) -> None:
    if not 1 <= n_shells <= MAX_SHELLS:
        raise DiffuseError(f"statistics.n_shells={n_shells}: a number from 1 to {MAX_SHELLS} is needed")


def shell_limits(d_max: float, d_min: float, n_shells: int) -> np.ndarray:
    """(n_shells + 1,) resolution in Å, descending, that bounds shells of equal volume."""
    _check_number(n_shells)
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


@dataclass(frozen=True)
class IsotropicPart:
    """The isotropic part of a map as straight lines in |s|, one in each of m shells.

    limits : (m - 1,) float64, 1/Å, between the shells; never where a voxel is
    offset, slope : (m,) float64, the line of a shell is offset + slope |s|
    """

    limits: np.ndarray
    offset: np.ndarray
    slope: np.ndarray

    def at(self, s: np.ndarray) -> np.ndarray:
        """(n,) float64, its value at s : (n,) 1/Å."""
        shell = np.searchsorted(self.limits, s)
        return self.offset[shell] + self.slope[shell] * s


def isotropic_part(values: np.ndarray, s: np.ndarray, n_bins: int = N_BINS) -> IsotropicPart:
    """Straight lines through the values of shells that hold about equal numbers, at least _PER_BIN each.

    As :func:`equal_count_residual`, but voxels of one |s| are in one shell, so that it can be told from |s| alone.

    values : (n,) float64, finite; s : (n,) float64, 1/Å
    """
    ordered = np.sort(s)
    starts = np.arange(1, min(n_bins, len(s) // _PER_BIN)) * len(s) // max(min(n_bins, len(s) // _PER_BIN), 1)
    starts = np.unique(np.searchsorted(ordered, ordered[starts] * (1 - 1e-9)))
    starts = starts[starts > 0]
    limits = 0.5 * (ordered[starts - 1] + ordered[starts])
    shell = np.searchsorted(limits, s)
    x, y = less_group_means(s, shell), less_group_means(values, shell)
    number = np.maximum(np.bincount(shell, minlength=len(limits) + 1), 1)
    variance, product = (np.bincount(shell, x * z, len(limits) + 1) / number for z in (x, y))
    slope = np.divide(product, variance, out=np.zeros(len(limits) + 1), where=variance > 1e-18)
    mean_s, mean = (np.bincount(shell, z, len(limits) + 1) / number for z in (s, values))
    return IsotropicPart(limits, mean - slope * mean_s, slope)


def shell_residual(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Subtract from each value the straight line through those of its thin shell of |s|: what is isotropic.

    Shells hold equal numbers and are BIN_WIDTH wide on the average, wider where voxels are few.
    """
    n_bins = min(round(float(np.ptp(s)) / BIN_WIDTH), len(s) // _PER_BIN)
    return equal_count_residual(values, s, max(n_bins, 1))


#: width in |s| of the shells in which a pattern smooth in direction is taken off, 1/Å
_SMOOTH_WIDTH = 0.04

#: degree of that pattern: lobes as wide as 45 degrees
_SMOOTH_DEGREE = 4

#: voxels for each of its coefficients, at least; in emptier shells only the mean is taken off
_PER_COEFFICIENT = 5


def fine_residual(values: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Subtract from each value what is isotropic, and what varies slowly with direction.

    Errors of scales, absorption and background vary slowly with direction, and half sets share them; diffuse scattering
    varies from voxel to voxel. What is taken off in shells of |s| is the isotropic part times a polynomial of the
    direction, of even degree up to four: under Friedel's law odd ones are zero.

    Parameters
    ----------
    values : (n,) float64, finite
    s : (n, 3) float64, Cartesian, 1/Å, none of them zero

    Returns
    -------
    (n,) float64
    """
    length = np.linalg.norm(s, axis=1)
    direction = s / length[:, None]
    degrees = range(_SMOOTH_DEGREE + 1)
    powers = [(i, j, _SMOOTH_DEGREE - i - j) for i in degrees for j in degrees if i + j <= _SMOOTH_DEGREE]
    basis = np.stack([np.prod(direction**power, axis=1) for power in powers], axis=1)
    result = isotropic_residual(values, length)
    profile = values - equal_count_residual(values, length, max(len(values) // (10 * _PER_THIN_SHELL), 1))
    # what the thin shells take from the values of few directions, they take from the pattern too
    basis = np.stack([isotropic_residual(column, length) for column in basis.T * profile], axis=1)
    shell = np.floor(length / _SMOOTH_WIDTH).astype(int)
    for number in np.unique(shell):
        mine = shell == number
        if np.count_nonzero(mine) < _PER_COEFFICIENT * len(powers):
            result[mine] -= result[mine].mean()
            continue
        coefficients = np.linalg.lstsq(basis[mine], result[mine], rcond=None)[0]
        result[mine] -= basis[mine] @ coefficients
    return result


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
