"""How well does a map agree with another that is taken for the truth?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import N_BINS, correlation, equal_count_residual, shells_of

#: small maps have fewer bins, so that a bin holds at least this many voxels: a line through few would follow them
MIN_PER_BIN = 20


@dataclass(frozen=True)
class Comparison:
    """Agreement of the anisotropic parts of two maps.

    Attributes
    ----------
    n : voxels in common
    cc : Pearson correlation
    slope : of the first map against the second, least squares through the origin
    shells : one dictionary per resolution shell: d_max, d_min, n, cc, slope
    """

    n: int
    cc: float
    slope: float
    shells: list

    @property
    def slope_variation(self) -> float:
        """Largest relative deviation of a shell's slope from that of all together."""
        return max(abs(row["slope"] / self.slope - 1) for row in self.shells if math.isfinite(row["slope"]))


def common_voxels(a: DiffuseMap, b: DiffuseMap) -> tuple:
    """Rows of both maps that hold the same voxel, measured in both.

    Raises
    ------
    DiffuseError
        If the maps differ in subdivision, in space group or in what is merged.
    """
    for what, first, second in (
        ("grid.subdivide", a.grid.subdivide, b.grid.subdivide),
        ("space group", a.grid.space_group_symbol, b.grid.space_group_symbol),
        ("friedel", a.friedel, b.friedel),
    ):
        if first != second:
            raise DiffuseError(f"maps with {what} {first} and {second} cannot be compared: make both with the same")
    wide = a.grid if a.grid.d_min <= b.grid.d_min else b.grid
    keys = []
    for data in (a, b):
        fits = np.all(np.abs(data.index) <= np.array(wide.extent), axis=1) & np.isfinite(data.intensity)
        keys.append(np.where(fits, wide.key(data.index), -1))
    _, in_a, in_b = np.intersect1d(keys[0], keys[1], return_indices=True)
    found = keys[0][in_a] >= 0
    return in_a[found], in_b[found]


def compare_maps(a: DiffuseMap, b: DiffuseMap, d_max=math.inf, d_min=0.0, n_shells: int = 10, n_bins: int = N_BINS):
    """Compare the anisotropic part of map ``a`` with that of map ``b``, the truth or a model.

    Parameters
    ----------
    d_max, d_min : Å, range to compare; the voxel at the origin is left out
    n_shells : of equal volume
    n_bins : bins in |s| for the isotropic part, over the whole range; fewer if they would hold less than MIN_PER_BIN

    Returns
    -------
    Comparison

    Raises
    ------
    DiffuseError
        If the maps have no common lattice, or fewer than three common voxels in the range.
    """
    in_a, in_b = common_voxels(a, b)
    s = b.grid.s_magnitude(b.index[in_b])
    use = (s >= 1 / d_max) & (s * d_min <= 1) & (s > 0)
    if np.count_nonzero(use) < 3:
        raise DiffuseError(f"the maps share {np.count_nonzero(use)} voxels from {d_max:g} to {d_min:g} Å: too few")
    s = s[use]
    n_bins = max(1, min(n_bins, len(s) // MIN_PER_BIN))
    x = equal_count_residual(a.intensity[in_a[use]], s, n_bins)
    y = equal_count_residual(b.intensity[in_b[use]], s, n_bins)
    shell, limits = shells_of(s, n_shells)
    shells = []
    for i in range(n_shells):
        mine = shell == i
        shells.append(
            {"d_max": limits[i], "d_min": limits[i + 1], "n": int(mine.sum()), **_agreement(x[mine], y[mine])}
        )
    return Comparison(n=len(s), shells=shells, **_agreement(x, y))


def _agreement(x: np.ndarray, y: np.ndarray) -> dict:
    square = float(y @ y)
    return {"cc": correlation(x, y), "slope": float(x @ y) / square if square > 0 else math.nan}
