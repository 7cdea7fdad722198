"""Is the map in the setting of the structure? Where the lattice has more symmetry than the crystal, it may not be."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, replace
from itertools import compress

import numpy as np
from cctbx import crystal, sgtbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.settings import Setting, alternative_settings, untested_in_words
from dials_diffuse.maps.shells import correlation, shell_residual
from dials_diffuse.maps.symmetry import laue_operators, map_to_asu
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.prepared import prepare
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.transform import cells_agree, check_cells

logger = logging.getLogger("dials.diffuse.fit")

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
    moved = setting.on_lattice(data.grid.subdivide)
    if moved is None:
        raise DiffuseError(
            f"grid.subdivide={','.join(map(str, data.grid.subdivide))}: setting {setting.operator} mixes axes of "
            "unequal subdivision; integrate with the same along all axes"
        )
    matrix, subdivide = moved
    grid = replace(data.grid, unit_cell=_moved_cell(data.grid, setting), subdivide=subdivide)
    index, _ = map_to_asu(data.index.astype(np.int64) @ matrix, grid.space_group, data.friedel)
    return replace(data, grid=grid, index=index)


@dataclass(frozen=True)
class SettingComparison:
    """How well the model fits the map in a setting.

    Attributes
    ----------
    operator : as in Setting
    cc_anisotropic : correlation of the anisotropic parts, see :func:`shells.shell_residual`; NaN if it is not known
    """

    operator: str
    cc_anisotropic: float

    def record(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class SettingSearch:
    """The setting in which a model fits the map.

    Attributes
    ----------
    data : the map in this setting
    compared : tuple of SettingComparison, the best first, those that cannot be tested last
    warnings : tuple of str
    """

    data: DiffuseMap
    compared: tuple
    warnings: tuple


def find_setting(
    data: DiffuseMap, model: DiffuseModel, structure: Structure, d_max: float, d_min: float
) -> SettingSearch:
    """The setting of a map; what :func:`compare_settings` finds, with what a user should know."""
    found = compare_settings(data, model, structure, d_max, d_min)
    untested = untested_settings(data.grid, structure)
    compared = [SettingComparison(setting.operator, cc) for setting, _, cc in found]
    best, _, cc = found[0]
    warnings = [untested_in_words(untested, data.grid.subdivide)] if untested else []
    if len(found) > 1:
        lines = [f"  {one.operator:<14}{one.cc_anisotropic:8.3f}" for one in compared]
        logger.info("Settings of the map, and correlation with the first model:\n%s", "\n".join(lines))
    if not _is_given(best):
        warnings.append(
            f"The map is indexed otherwise than the structure: it is reindexed by {best.operator} (indexing=given does "
            "not)"
        )
    elif len(found) > 1 and not cc - found[1][2] >= UNDECIDED:
        warnings.append(
            "the first model fits the map as well in another setting; the map is taken as it is indexed. Name a model "
            "first that can tell the settings apart, such as llm"
        )
    compared += [SettingComparison(setting.operator, math.nan) for setting in untested]
    return SettingSearch(found[0][1], tuple(compared), tuple(warnings))


def compare_settings(data: DiffuseMap, model: DiffuseModel, structure: Structure, d_max: float, d_min: float) -> list:
    """(Setting, reindexed map, correlation with the model) of all settings that can be tested, the best one first.

    The given setting is first, too, if no other is better by UNDECIDED, or if none correlates positively. Of settings
    that the structure's own symmetry, higher than the map's, makes alike there is one. If there is one setting only the
    correlation is NaN.

    Parameters
    ----------
    model : with plausible parameters; its intensity decides
    d_max, d_min : Å, range of the correlation of the anisotropic parts, see :func:`shells.shell_residual`

    Raises
    ------
    DiffuseError
        If the map has the cell of the structure in no setting that can be tested.
    """
    settings, untested = _settings(data.grid, structure)
    if not settings:
        raise DiffuseError(
            "the cell of the map, as it is indexed, is not that of the structure; "
            f"{untested_in_words(untested, data.grid.subdivide)}"
        )
    if len(settings) == 1 and _is_given(settings[0]):
        return [(settings[0], data, math.nan)]
    rows = _sample(data, d_max, d_min)
    s = data.grid.s_magnitude(data.index[rows])  # of all settings: what is in which shell must not change by rounding
    found = []
    for setting in settings:
        candidate = reindex(data, setting)
        grid = replace(candidate.grid, d_min=d_min, d_max=np.inf)
        prepared = prepare(model, structure, grid, candidate.index[rows])
        calculated = prepared.intensity([p.value for p in prepared.parameters])
        x, y = (shell_residual(v, s) for v in (candidate.intensity[rows], calculated))
        found.append((setting, candidate, correlation(x, y)))

    def rank(one) -> tuple:
        """Of correlations below 0 none is a reason to reindex."""
        cc = np.nan_to_num(one[2], nan=-2.0)
        return max(cc, 0.0) + UNDECIDED * _is_given(one[0]), cc

    return sorted(found, key=rank, reverse=True)


def untested_settings(grid: MapGrid, structure: Structure) -> list:
    """Settings that a map on this grid cannot be brought to, because they mix axes of unequal subdivision."""
    return _settings(grid, structure)[1]


def _settings(grid: MapGrid, structure: Structure) -> tuple:
    """Distinct settings in which the map has the cell of the structure: those that can be tested, and the others.

    Raises
    ------
    DiffuseError
        If there is none: the structure is of another crystal.
    """
    fitting = [s for s in alternative_settings(grid) if cells_agree(structure, _moved_cell(grid, s))]
    if not fitting:
        check_cells(structure, grid)
    settings = _distinct(fitting, grid, structure)
    testable = [setting.on_lattice(grid.subdivide) is not None for setting in settings]
    return list(compress(settings, testable)), list(compress(settings, np.logical_not(testable)))


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


def _is_given(setting: Setting) -> bool:
    return np.array_equal(setting.matrix, np.eye(3))


def _moved_cell(grid: MapGrid, setting: Setting) -> tuple:
    """The unit cell of a grid in another setting."""
    basis = sgtbx.change_of_basis_op(_change_of_basis(setting.matrix))
    cell = crystal.symmetry(unit_cell=grid.unit_cell, space_group=grid.space_group).unit_cell()
    moved = cell.change_basis(basis).parameters()
    return grid.unit_cell if np.allclose(moved, grid.unit_cell, rtol=1e-9) else moved  # no rounding without a change


def _change_of_basis(matrix: np.ndarray) -> sgtbx.rt_mx:
    """The operator on coordinates that belongs to index' = index @ matrix."""
    inverse = np.rint(np.linalg.inv(matrix)).astype(int)
    return sgtbx.rt_mx(sgtbx.rot_mx([int(v) for v in inverse.reshape(-1)], 1))
