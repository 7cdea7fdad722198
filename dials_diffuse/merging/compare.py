"""How well does a map agree with another that is taken for the truth?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from cctbx import uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import N_BINS, correlation, equal_count_residual, shells_of
from dials_diffuse.maps.voxels import CELL_TOLERANCE, rows_of

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
    def overall(self) -> dict:
        """All shells together, with the keys of one."""
        first, last = self.shells[0], self.shells[-1]
        return {"d_max": first["d_max"], "d_min": last["d_min"], "n": self.n, "cc": self.cc, "slope": self.slope}

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
    in_b = np.lexsort(b.index.T[::-1])  # so that sums over voxels do not depend on the order of rows
    in_a = rows_of(b.index[in_b], a.index)
    in_a, in_b = in_a[in_a >= 0], in_b[in_a >= 0]
    measured = np.isfinite(a.intensity[in_a]) & np.isfinite(b.intensity[in_b])
    return in_a[measured], in_b[measured]


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


def compare_with_reference(
    data: DiffuseMap, reference: DiffuseMap, path, n_shells: int, d_max: float | None = None, d_min: float | None = None
) -> Comparison:
    """Compare a map with one that a user named.

    Parameters
    ----------
    path : file of the reference, for messages
    n_shells, d_max, d_min : as for :func:`compare_maps`; None = no limit

    Raises
    ------
    DiffuseError
        If the two are not of the same crystal form and lattice, or share too few voxels; the message names the file.
    """
    cells = [uctbx.unit_cell(m.grid.unit_cell) for m in (data, reference)]
    if not cells[0].is_similar_to(cells[1], CELL_TOLERANCE, 100 * CELL_TOLERANCE):
        raise DiffuseError(
            f"reference={path}: its unit cell {cells[1]!s} is not that of the data, {cells[0]!s}; "
            "give a map of this crystal form"
        )
    try:
        return compare_maps(data, reference, d_max or math.inf, d_min or 0.0, n_shells)
    except DiffuseError as error:
        raise DiffuseError(f"reference={path}: {error}") from None


def _agreement(x: np.ndarray, y: np.ndarray) -> dict:
    square = float(y @ y)
    return {"cc": correlation(x, y), "slope": float(x @ y) / square if square > 0 else math.nan}
