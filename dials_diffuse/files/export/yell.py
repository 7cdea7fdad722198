"""Files of Yell, the program for 3D-ΔPDF refinement, which Meerkat and DensityViewer share (HDF5, "Yell 1.0").

Source: Simonov, Weber & Steurer 2014, J. Appl. Cryst. 47, 1146; the manual of Yell, "Yell data format for arrays"
"""

from __future__ import annotations

import numpy as np
from cctbx import uctbx

from dials_diffuse.files.export.volumes import summary, volume_of
from dials_diffuse.files.hdf5 import create_hdf5
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap

_FORMAT = "Yell 1.0"


def write_yell(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write the intensity for Yell, ``experiment.h5``; with ``column=weight`` it is ``weights.h5``.

    Yell transforms grids with an even number of points and the origin in the middle: a plane without values is added
    in front of each axis. Not measured is 0, as weights have to be; ``measured`` is 1 where there is a value.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    grid = data.grid
    values = np.pad(volume_of(data), [(1, 0)] * 3, constant_values=np.nan)
    step = 1 / np.array(grid.subdivide, dtype=float)
    with create_hdf5(path, "Yell") as handle:
        handle.attrs["filetype"] = _FORMAT
        handle.attrs.update(summary(data, provenance))
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        handle.create_dataset("data", data=np.nan_to_num(values, nan=0.0).astype(np.float64), **packed)
        handle.create_dataset("measured", data=np.isfinite(values).astype(np.uint8), **packed)
        handle["format"] = _FORMAT
        handle["is_direct"] = False
        handle["lower_limits"] = -step * (np.array(grid.extent) + 1)
        handle["step_sizes"] = step
        handle["unit_cell"] = np.array(grid.unit_cell, dtype=float)
        handle["metric_tensor"] = _metric(grid.unit_cell)
        handle["space_group_nr"] = grid.space_group.info().type().number()


def _metric(unit_cell) -> np.ndarray:
    g11, g22, g33, g12, g13, g23 = uctbx.unit_cell(unit_cell).metrical_matrix()
    return np.array([[g11, g12, g13], [g12, g22, g23], [g13, g23, g33]])
