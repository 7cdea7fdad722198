"""A model's intensity as a map: one value for each symmetry-unique voxel."""

from __future__ import annotations

import logging
import os

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.nexus import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models import DiffuseModel
from dials_diffuse.models.common import laue_average
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.transform import check_cells

logger = logging.getLogger("dials.diffuse.model")

UNITS = "electron^2 per unit cell"


def model_map(model: DiffuseModel, structure: Structure, grid: MapGrid, friedel: bool = True) -> DiffuseMap:
    """Compute a model on the voxels of a grid that are unique under the grid's own symmetry.

    Where the grid has symmetry that the structure lacks, the intensity is averaged over it, as merged data are.

    Parameters
    ----------
    structure : asymmetric unit
    grid : of the same cell within 1 %
    friedel : are Friedel mates one voxel?

    Returns
    -------
    DiffuseMap, in electrons² per unit cell, without errors

    Raises
    ------
    DiffuseError
        If structure and grid do not fit together, or the computer has too little memory.
    """
    check_cells(structure, grid)
    _check_memory(model.memory_estimate(structure, grid), grid)
    volume = model.intensity(structure, grid)
    own, wanted = (_operators(group) for group in (structure.space_group, grid.space_group))
    if not wanted <= own:
        logger.warning(
            "Warning: the map has symmetry (%s) that the structure (%s) lacks; the model is averaged over it",
            grid.space_group_symbol,
            structure.space_group.info().type().lookup_symbol(),
        )
        volume = laue_average(volume, grid)
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    return DiffuseMap(
        grid=grid,
        friedel=friedel,
        index=index,
        intensity=volume.reshape(-1)[grid.key(index)],
        sigma=np.zeros(len(index)),
        multiplicity=np.zeros(len(index), dtype=np.int32),
        units=UNITS,
    )


def _operators(space_group) -> set:
    return {operator.tobytes() for operator in laue_operators(space_group, friedel=True)}


def _check_memory(needed: int, grid: MapGrid) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = "x".join(map(str, grid.shape))
    if needed > total:
        raise DiffuseError(
            f"grid.subdivide={','.join(map(str, grid.subdivide))}, d_min={grid.d_min:g}: {shape} voxels need about "
            f"{needed / 1e9:.1f} GB, this computer has {total / 1e9:.1f} GB; choose a smaller grid.subdivide or a "
            "larger d_min"
        )
    logger.info("Grid of %s voxels to d_min = %.2f Å, memory about %.2f GB", shape, grid.d_min, needed / 1e9)
