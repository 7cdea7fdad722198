"""A structure and its models in the setting of a map."""

from __future__ import annotations

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.setting import setting_change, tell_change


def in_map_setting(structure: Structure, models, grid: MapGrid) -> tuple:
    """The structure and its models in the setting of a map; as they are if that is theirs, or the crystal another.

    Parameters
    ----------
    structure : asymmetric unit
    models : sequence of DiffuseModel of this structure
    grid : of the map

    Returns
    -------
    structure : Structure
    models : list of DiffuseModel

    Raises
    ------
    DiffuseError
        If a model cannot be turned, see :meth:`DiffuseModel.change_basis`.
    """
    models: list[DiffuseModel] = list(models)
    change = setting_change(structure, grid.unit_cell, grid.space_group)
    if change is None or change.is_identity:
        return structure, models
    tell_change(change)
    turned = [model.change_basis(structure.cell, change.operator) for model in models]
    return structure.change_basis(change.operator), turned
