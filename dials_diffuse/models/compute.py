"""A model's intensity as a map: one value for each symmetry-unique voxel."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.nexus import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models import DiffuseModel
from dials_diffuse.models.common import laue_average
from dials_diffuse.structure.atoms import Structure
from dials_diffuse.structure.factors import Dispersive, dispersion
from dials_diffuse.structure.transform import check_cells

logger = logging.getLogger("dials.diffuse.model")

UNITS = "electron^2 per unit cell"
#: bytes, or ``max``
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
#: of the table of form factors for electrons
ELECTRON_UNITS = "angstrom^2 per unit cell"


def model_map(
    model: DiffuseModel, structure: Structure, grid: MapGrid, friedel: bool = True, wavelength: float | None = None
) -> DiffuseMap:
    """Compute a model on the voxels of a grid that are unique under the grid's own symmetry.

    Where the grid has symmetry that the structure lacks, the intensity is averaged over it, as merged data are.

    Parameters
    ----------
    structure : asymmetric unit
    grid : of the same cell within 1 %
    friedel : are Friedel mates one voxel? The intensity is their mean in either case
    wavelength : Å; form factors with f', f'' at it, see :func:`structure.factors.dispersion`

    Returns
    -------
    DiffuseMap, in electrons² per unit cell (``table=electron``: Å²), without errors

    Raises
    ------
    DiffuseError
        If structure and grid do not fit together, the computer has too little memory, or the displacements are so
        large that the intensity is not finite.
    """
    check_cells(structure, grid)
    _check_memory(model, structure, grid)
    volume = _intensity(model, structure, grid, wavelength)
    own, wanted = (_operators(group) for group in (structure.space_group, grid.space_group))
    if not wanted <= own:
        logger.warning(
            "Warning: the map has symmetry (%s) that the structure (%s) lacks; the model is averaged over it",
            grid.space_group_symbol,
            structure.space_group.info().type().lookup_symbol(),
        )
        volume = laue_average(volume, grid)
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    intensity = volume.reshape(-1)[grid.key(index)]
    if not np.all(np.isfinite(intensity)):
        raise DiffuseError(
            f"the model's intensity is no finite number at {np.count_nonzero(~np.isfinite(intensity))} of {len(index)} "
            "voxels; choose smaller displacements, or a larger d_min"
        )
    return DiffuseMap(
        grid=grid,
        friedel=friedel,
        index=index,
        intensity=intensity,
        sigma=np.zeros(len(index)),
        multiplicity=np.zeros(len(index), dtype=np.int32),
        units=ELECTRON_UNITS if model.table == "electron" else UNITS,
    )


def _intensity(model: DiffuseModel, structure: Structure, grid: MapGrid, wavelength: float | None) -> np.ndarray:
    if wavelength is None:
        return model.intensity(structure, grid)
    volume = replace(model, table=Dispersive(model.table, wavelength)).intensity(structure, grid)
    if any(dispersion(label, wavelength).imag for label in structure.types):
        imaginary = replace(model, table=Dispersive(model.table, wavelength, imaginary=True))
        if getattr(model, "k_sol", 0.0):  # solvent scatters with the real parts
            imaginary = replace(imaginary, k_sol=0.0)
        volume += imaginary.intensity(structure, grid)
    return volume


def _operators(space_group) -> set:
    return {operator.tobytes() for operator in laue_operators(space_group, friedel=True)}


def _check_memory(model: DiffuseModel, structure: Structure, grid: MapGrid) -> None:
    needed, total = model.memory_estimate(structure, grid), _memory()
    shape = "x".join(map(str, grid.shape))
    if needed > total:
        raise DiffuseError(
            f"grid.subdivide={','.join(map(str, grid.subdivide))}, d_min={grid.d_min:g}: {shape} voxels need about "
            f"{needed / 1e9:.1f} GB, there are {total / 1e9:.1f} GB; choose a smaller grid.subdivide or a larger d_min"
            + (", or a smaller supercell" if getattr(model, "supercell", None) else "")
        )
    logger.info("Grid of %s voxels to d_min = %.2f Å, memory about %.2f GB", shape, grid.d_min, needed / 1e9)


def _memory() -> float:
    """Bytes that this process may have: of the computer, or of its control group if that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _MEMORY_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
