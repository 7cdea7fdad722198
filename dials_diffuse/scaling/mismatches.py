"""Are all sweeps indexed alike? Where the lattice has more symmetry than the crystal, they may not be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.maps.shells import less_group_means
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.scaling.apply import Predictions, sums_by_sweep

#: voxels x sweeps that are compared, those of lowest |s|
_MAX_ENTRIES = 1_000_000

#: another setting has to agree better by this correlation, and by this many standard errors
_BETTER, _N_SIGMA = 0.1, 5

_N_SHELLS = 100
_FEWEST = 50


@dataclass(frozen=True)
class Mismatch:
    """A sweep that agrees better with another one when it is reindexed.

    Attributes
    ----------
    sweep, reference : numbers of both
    operator : change of basis, such as ``k,h,-l``
    cc, cc_as_given : correlation of the anisotropic parts in that setting, and as they are
    """

    sweep: int
    reference: int
    operator: str
    cc: float
    cc_as_given: float


def find_mismatches(
    predictions: Predictions, rejected: np.ndarray, profile: np.ndarray, grid: MapGrid, index: np.ndarray, n_sweeps: int
) -> list:
    """Compare all sweeps with the one that has most voxels, in all settings of the lattice.

    Parameters
    ----------
    rejected : (n,) bool
    profile : (u,) float64, isotropic part at the unique voxels; index : (u, 3) int, where they are

    Returns
    -------
    list of Mismatch

    Notes
    -----
    Settings in which the voxels are on another lattice are left out, see :func:`untested_settings`.
    """
    settings, _ = _settings(grid)
    if not settings or n_sweeps < 2:
        return []
    s = grid.s_magnitude(index)
    order = np.argsort(s)[: _MAX_ENTRIES // n_sweeps]
    order = order[(s[order] > 0) & (profile[order] > 0)]
    voxel = np.full(len(index), -1)
    voxel[order] = np.arange(len(order))
    sums = sums_by_sweep(predictions, rejected, voxel, n_sweeps)
    seen = sums[..., 1] > 0
    value = np.divide(sums[..., 0], sums[..., 1] * profile[order, None], out=np.zeros(seen.shape), where=seen)
    shell = np.searchsorted(np.linspace(s[order].min(), s[order].max(), _N_SHELLS), s[order])
    for e in range(n_sweeps):
        mine = seen[:, e]
        value[mine, e] = less_group_means(value[mine, e], shell[mine])
    reference = int(np.argmax(np.count_nonzero(seen, axis=0)))
    places = [np.arange(len(order)), *(_reindexed(index[order], grid, x.matrix) for x in settings)]
    result = []
    for e in range(n_sweeps):
        if e == reference:
            continue
        cc, esd = zip(*(_agreement(value, seen, e, reference, place) for place in places))
        best = int(np.nanargmax(cc)) if not np.all(np.isnan(cc)) else 0
        if best and cc[best] - np.nan_to_num(cc[0]) > max(_BETTER, _N_SIGMA * esd[best]):
            result.append(Mismatch(e, reference, settings[best - 1].operator, cc[best], cc[0]))
    return result


def untested_settings(grid: MapGrid) -> list:
    """Settings that :func:`find_mismatches` leaves out, because they mix axes of unequal subdivision."""
    return _settings(grid)[1]


def _settings(grid: MapGrid) -> tuple:
    """Alternative settings that leave the subdivided lattice as it is, and those that do not."""
    kept, others = [], []
    for setting in alternative_settings(grid)[1:]:
        moved = setting.on_lattice(grid.subdivide)
        (kept if moved is not None and moved[1] == tuple(grid.subdivide) else others).append(setting)
    return kept, others


def _reindexed(index: np.ndarray, grid: MapGrid, matrix: np.ndarray) -> np.ndarray:
    """(m,) int, which of the voxels each one becomes, -1 where it is none of them."""
    moved, _ = map_to_asu(index.astype(np.int64) @ matrix, grid.space_group, True)
    return rows_of(moved, index)


def _agreement(value, seen, sweep: int, reference: int, place: np.ndarray) -> tuple:
    """(correlation, its standard error) of the sweep, with its voxels at ``place``, and the reference."""
    both = (place >= 0) & seen[:, sweep] & seen[place, reference]
    n = np.count_nonzero(both)
    if n < _FEWEST:
        return np.nan, np.nan
    return float(np.corrcoef(value[both, sweep], value[place[both], reference])[0, 1]), n**-0.5
