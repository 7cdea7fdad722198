"""What the writers of three-dimensional arrays share."""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.memory import check_memory

#: an array, and the copies that are made of it on the way to the file
_COPIES = 6

#: three-dimensional arrays of a map: name of the column, value of voxels not measured, type
VOLUMES = {
    "intensity": (np.nan, np.float32),
    "sigma": (np.nan, np.float32),
    "multiplicity": (0, np.int32),
}


def volume_of(data: DiffuseMap, name: str = "intensity", fill=np.nan, dtype=np.float32) -> np.ndarray:
    """(``grid.shape``) array, axes h, k, l: a column of a map copied to all symmetry mates.

    Raises
    ------
    DiffuseError
        If this computer has not enough memory for it.
    """
    shape = "x".join(map(str, data.grid.shape))
    needed = _COPIES * data.grid.n_voxels * np.dtype(dtype).itemsize
    check_memory(needed, f"{shape} voxels of a whole map", "use format=csv, parquet, mtz or mtz_grid, which keep lists")
    return data.volume(getattr(data, name), fill, dtype)


def summary(data: DiffuseMap, provenance: Provenance) -> dict:
    """What files say about themselves where their format has a place for words."""
    grid = data.grid
    return {
        "unit_cell": " ".join(f"{x:.6g}" for x in grid.unit_cell),
        "space_group": grid.space_group_symbol,
        "subdivide": " ".join(map(str, grid.subdivide)),
        "d_min": f"{grid.d_min:.6g}",
        "d_max": f"{grid.d_max:.6g}",
        "friedel": str(data.friedel),
        "units": data.units,
        "program": provenance.program,
        "inputs": " ".join(map(str, provenance.inputs)),
    }
