"""Is the map in the setting of the structure? Where the lattice has more symmetry than the crystal, it may not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cctbx import crystal, sgtbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import correlation, shell_residual
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.indexing import Setting, alternative_settings
from dials_diffuse.maps.nexus import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, map_to_asu
from dials_diffuse.models.prepared import prepare
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.transform import check_cells

#: voxels on which settings are compared
_SAMPLE = 50000
#: difference of two correlations that decides nothing: a model with the same intensity in all settings would choose by
#: rounding errors
UNDECIDED = 1e-3


def reindex(data: DiffuseMap, setting: Setting) -> DiffuseMap:
    """The map in another setting, its voxels in the asymmetric unit again.

    Raises
    ------
    DiffuseError
        If the subdivided lattice is not mapped onto itself, because it mixes axes of unequal subdivision.
    """
    old = np.array(data.grid.subdivide)
    subdivide = tuple(int(old[np.flatnonzero(column)[0]]) for column in setting.matrix.T)
    matrix = setting.matrix / old[:, None] * np.array(subdivide)
    if np.abs(matrix - np.rint(matrix)).max() > 1e-9:
        raise DiffuseError(
            f"grid.subdivide={','.join(map(str, old))}: setting {setting.operator} mixes axes of unequal subdivision; "
            "integrate with the same along all axes"
        )
    basis = sgtbx.change_of_basis_op(_change_of_basis(setting.matrix))
    cell = crystal.symmetry(unit_cell=data.grid.unit_cell, space_group=data.grid.space_group).unit_cell()
    moved_cell = cell.change_basis(basis).parameters()
    if np.allclose(moved_cell, data.grid.unit_cell, rtol=1e-9):  # no rounding where nothing changes
        moved_cell = data.grid.unit_cell
    grid = replace(data.grid, unit_cell=moved_cell, subdivide=subdivide)
    moved = data.index.astype(np.int64) @ np.rint(matrix).astype(np.int64)
    index, _ = map_to_asu(moved, grid.space_group, data.friedel)
    return replace(data, grid=grid, index=index)


def compare_settings(data: DiffuseMap, model, structure: Structure, d_max: float, d_min: float) -> list:
    """(Setting, reindexed map, correlation with the model) of all settings, the best one first.

    The given setting is first, too, if no other is better by UNDECIDED. Of settings that the structure's own symmetry,
    higher than the map's, makes alike there is one.

    Parameters
    ----------
    model : a diffuse model with plausible parameters; its intensity decides
    d_max, d_min : Å, range of the correlation of the anisotropic parts, see :func:`agreement.shell_residual`
    """
    settings = _distinct(alternative_settings(data.grid), data.grid, structure)
    if len(settings) == 1:
        return [(settings[0], data, float("nan"))]
    rows = _sample(data, d_max, d_min)
    s = data.grid.s_magnitude(data.index[rows])  # of all settings: what is in which shell must not change by rounding
    found = []
    for setting in settings:
        candidate = reindex(data, setting)
        grid = replace(candidate.grid, d_min=d_min, d_max=np.inf)
        try:
            check_cells(structure, grid)
        except DiffuseError:  # a pseudo-symmetric lattice, whose cell is not that of the structure in this setting
            continue
        prepared = prepare(model, structure, grid, candidate.index[rows])
        calculated = prepared.intensity([p.value for p in prepared.parameters])
        x, y = (shell_residual(v, s) for v in (candidate.intensity[rows], calculated))
        found.append((setting, candidate, correlation(x, y)))
    if not found:
        raise DiffuseError("no setting of the map has the cell of the structure; use a model of this crystal form")

    def rank(item):
        given = np.array_equal(item[0].matrix, np.eye(3))
        return np.nan_to_num(item[2], nan=-2.0) + UNDECIDED * given

    return sorted(found, key=rank, reverse=True)


def _distinct(settings, grid: MapGrid, structure: Structure) -> list:
    """One of each set of settings in which the structure has the same intensity, for the first the given one."""
    laue, own = (laue_operators(g, friedel=True) for g in (grid.space_group, structure.space_group))
    found, seen = [], set()
    for setting in settings:
        if setting.matrix.tobytes() not in seen:
            found.append(setting)
            seen |= {(r @ setting.matrix @ s).tobytes() for r in laue for s in own}
    return found


def _sample(data: DiffuseMap, d_max: float, d_min: float) -> np.ndarray:
    """Rows of some voxels of a range, not on lattice points; enough to tell settings apart."""
    s = data.grid.s_magnitude(data.index)
    use = (s >= 1 / d_max) & (s <= (1 - 1e-6) / d_min) & (s > 0) & np.isfinite(data.intensity)
    use &= np.any(data.index % np.array(data.grid.subdivide) != 0, axis=1) | (np.prod(data.grid.subdivide) == 1)
    rows = np.flatnonzero(use)
    if len(rows) > _SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, _SAMPLE, replace=False))
    return rows


def _change_of_basis(matrix: np.ndarray) -> sgtbx.rt_mx:
    """The operator on coordinates that belongs to index' = index @ matrix."""
    inverse = np.rint(np.linalg.inv(matrix)).astype(int)
    return sgtbx.rt_mx(sgtbx.rot_mx([int(v) for v in inverse.reshape(-1)], 1))
