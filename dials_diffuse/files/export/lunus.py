"""Lattices of lunus (.lat).

Three uint32, the voxels along h, k, l; the lower and the upper bound along each as float32; then float32, h fastest.
Little-endian, without anything on cell or symmetry. lunus takes (upper - lower)/voxels for the step, and the voxel
nearest to 0 for the origin; bounds are Miller indices here. Not measured is -32768, its mask tag.

Source: lreadlt.c and lwritelt.c of lunus, https://github.com/lanl/lunus
"""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.export.volumes import volume_of
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap

MASK_TAG = -32768.0


def write_lat(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write the intensity as a lattice of lunus.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    grid, values = data.grid, volume_of(data, fill=MASK_TAG)
    bounds = [(-m / n, (m + 1) / n) for m, n in zip(grid.extent, grid.subdivide)]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(np.array(grid.shape, dtype="<u4").tobytes() + np.array(bounds, dtype="<f4").tobytes())
        for section in np.moveaxis(values, 2, 0):
            handle.write(np.asarray(section.T, dtype="<f4", order="C").tobytes())
