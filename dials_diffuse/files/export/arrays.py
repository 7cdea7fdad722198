"""Arrays of numpy (.npz): the map as unique voxels and as a volume."""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.export.volumes import VOLUMES, summary, volume_of
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap


def write_npz(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write arrays that ``numpy.load(path, allow_pickle=False)`` reads.

    Volumes ``intensity``, ``sigma``, ``multiplicity`` with their axes ``h``, ``k``, ``l``, unless ``volume`` is False;
    ``unique_*`` has one row per unique voxel; the rest says what the map is.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    grid = data.grid
    arrays = {
        "unit_cell": np.array(grid.unit_cell, dtype=float),
        "hall_symbol": np.array(grid.hall_symbol),
        "subdivide": np.array(grid.subdivide),
        "reciprocal_matrix": grid.reciprocal_matrix,
        "unique_index": np.asarray(data.index, dtype=np.int32),
        **{name: np.array(text) for name, text in summary(data, provenance).items() if name in _WORDS},
        "d_min": np.array(grid.d_min),
        "d_max": np.array(grid.d_max),
        "friedel": np.array(data.friedel),
    }
    for name in ("intensity", "sigma", "multiplicity", "half_a", "half_b"):
        values = getattr(data, name)
        if values is not None:
            arrays[f"unique_{name}"] = np.asarray(values)
    if volume is not False:
        arrays.update(zip("hkl", grid.axes()))
        arrays.update({name: volume_of(data, name, *how) for name, how in VOLUMES.items()})
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, **arrays)


_WORDS = ("space_group", "units", "program", "inputs")
