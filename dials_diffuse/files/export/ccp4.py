"""CCP4 and MRC maps: of reciprocal space, with 1 Å in the file for 0.01 1/Å; and of real space in Å.

Both formats are one: a header of 1024 bytes, a line of symmetry, then float32 with the first axis fastest.

Source: MRC2014, Cheng et al. 2015, J. Struct. Biol. 192, 146; https://www.ccpem.ac.uk/mrc_format/mrc2014.php
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cctbx import uctbx

from dials_diffuse import __version__
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.export.volumes import volume_of
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap

#: Å in a file for 1/Å
SCALE = 100.0

_HEADER = np.dtype(
    [
        ("n", "<i4", 3),  # columns, rows, sections
        ("mode", "<i4"),
        ("start", "<i4", 3),
        ("intervals", "<i4", 3),  # along the cell
        ("cell", "<f4", 6),
        ("axes", "<i4", 3),  # of columns, rows, sections: 1, 2, 3 = x, y, z
        ("minimum", "<f4"),
        ("maximum", "<f4"),
        ("mean", "<f4"),
        ("space_group", "<i4"),
        ("symmetry_bytes", "<i4"),
        ("extra", "S8"),
        ("extended", "S4"),
        ("version", "<i4"),
        ("unused", "S84"),
        ("origin", "<f4", 3),
        ("map", "S4"),
        ("machine", "u1", 4),
        ("rms", "<f4"),
        ("n_labels", "<i4"),
        ("labels", "S80", 10),
    ]
)
_FLOAT32, _NO_SYMMETRY, _MRC2014 = 2, 1, 20140


def write_ccp4(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write the intensity as a map of reciprocal space; voxels that were not measured are 0.

    The point (i, j, k) of the file is the voxel with this index: 0, 0, 0 is the origin of reciprocal space, whatever
    the first point of the file is. See :func:`reciprocal_cell` for the cell.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    grid = data.grid
    labels = [
        f"dials_diffuse {__version__}: diffuse scattering, reciprocal space",
        f"1 Angstrom here = {1 / SCALE:g} 1/Angstrom; point i,j,k = voxel i,j,k; 0 = no value",
        f"Miller indices: h,k,l = i,j,k / {','.join(map(str, grid.subdivide))}",
        f"cell {' '.join(f'{x:.4f}' for x in grid.unit_cell)}",
        f"space group {grid.space_group_symbol}; the file has all voxels, as P 1",
        f"units {data.units}",
    ]
    start = tuple(-m for m in grid.extent)
    write_points(path, volume_of(data, fill=0), reciprocal_cell(grid), grid.shape, start, labels)


def reciprocal_cell(grid: MapGrid) -> tuple:
    """Six floats, Å and degrees: the box that the whole map fills, 100 Å for 1/Å.

    Its edges are a*, b*, c* times the number of voxels over the subdivision, its angles those of the reciprocal cell:
    a voxel is a step of 1 on the file's grid.
    """
    reciprocal = uctbx.unit_cell(grid.unit_cell).reciprocal_parameters()
    edges = [SCALE * length * n / m for length, n, m in zip(reciprocal[:3], grid.shape, grid.subdivide)]
    return (*edges, *reciprocal[3:])


def write_points(
    path, points: np.ndarray, cell: Sequence, intervals: Sequence, start: Sequence, labels: Sequence[str]
) -> None:
    """Write a CCP4 map.

    Parameters
    ----------
    points : (nx, ny, nz) numbers
    cell : six floats, Å and degrees
    intervals : three int, steps along the edges of the cell
    start : three int, of the first point
    labels : up to ten lines of 80 characters

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    header = np.zeros((), _HEADER)
    header["n"], header["mode"], header["start"], header["intervals"] = points.shape, _FLOAT32, start, intervals
    header["cell"], header["axes"], header["space_group"] = cell, (1, 2, 3), _NO_SYMMETRY
    header["minimum"], header["maximum"] = points.min(), points.max()
    header["mean"], header["rms"] = points.mean(dtype=float), points.std(dtype=float)
    symmetry = f"{'X,  Y,  Z':80}".encode("ascii")
    header["symmetry_bytes"], header["extended"], header["version"] = len(symmetry), b"CCP4", _MRC2014
    header["map"], header["machine"] = b"MAP ", (0x44, 0x44, 0, 0)
    header["n_labels"] = len(labels)
    header["labels"][: len(labels)] = [f"{_ascii(label):80.80}".encode("ascii") for label in labels]
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(header.tobytes() + symmetry)
        for section in np.moveaxis(points, 2, 0):
            handle.write(np.asarray(section.T, dtype="<f4", order="C").tobytes())


def _ascii(text: str) -> str:
    return text.replace("Å", "A").replace("²", "^2").encode("ascii", "replace").decode("ascii")
