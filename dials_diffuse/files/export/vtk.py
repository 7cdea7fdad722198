"""XML files of VTK, for ParaView and PyVista: images (.vti) of right-angled cells, structured grids (.vts) of any.

Positions are voxel centres in 1/Å, in cctbx's Cartesian frame. Arrays are intensity, sigma and multiplicity, NaN and 0
where not measured. Both are XML with raw arrays appended, first axis fastest.

Source: VTK file formats, https://docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html
"""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.export.volumes import VOLUMES, summary, volume_of
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap

#: bytes of the length before an array
_LENGTH = 8

_TYPES = {"float32": "Float32", "int32": "Int32"}


def right_angled(grid: MapGrid) -> bool:
    """Are all angles of the cell 90 degrees?"""
    return all(abs(angle - 90) < 1e-6 for angle in grid.unit_cell[3:])


def write_vti(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write an image of VTK.

    Raises
    ------
    DiffuseError
        If the cell has other angles than 90 degrees, or the file cannot be written.
    """
    if not right_angled(data.grid):
        angles = ", ".join(f"{x:g}" for x in data.grid.unit_cell[3:])
        raise DiffuseError(f"{path}: .vti is for right angles, the cell has {angles}; write .vts (format=vtk chooses)")
    spacing = np.diag(data.grid.reciprocal_matrix) / data.grid.subdivide
    origin = -spacing * data.grid.extent
    words = f'Origin="{_numbers(origin)}" Spacing="{_numbers(spacing)}"'
    _write(path, data, provenance, "ImageData", words)


def write_vts(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write a structured grid of VTK.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    _write(path, data, provenance, "StructuredGrid", "")


def _write(path, data: DiffuseMap, provenance: Provenance, kind: str, words: str) -> None:
    grid, place, lines, offset = data.grid, "", [], 0
    if kind == "StructuredGrid":
        place = f"<Points>{_array('Points', np.float32, 0, 3)}</Points>"
        offset = _LENGTH + 3 * 4 * grid.n_voxels
    for name, (_, dtype) in VOLUMES.items():
        lines.append(_array(name, dtype, offset))
        offset += _LENGTH + np.dtype(dtype).itemsize * grid.n_voxels
    extent = " ".join(f"0 {n - 1}" for n in grid.shape)
    about = "".join(f" {key}={quoteattr(value)}" for key, value in summary(data, provenance).items())
    head = (
        '<?xml version="1.0"?>\n'
        f'<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f"<!-- dials_diffuse{about.replace('--', '- -')} -->\n"
        f'<{kind} WholeExtent="{extent}" {words}>\n<Piece Extent="{extent}">\n{place}\n'
        f'<PointData Scalars="intensity">{"".join(lines)}</PointData>\n</Piece>\n</{kind}>\n'
        '<AppendedData encoding="raw">\n_'
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(head.encode("utf-8"))
        if place:
            _append(handle, 3 * 4 * grid.n_voxels, _points(grid))
        for name, how in VOLUMES.items():
            values = volume_of(data, name, *how)
            _append(handle, values.nbytes, (section.T for section in np.moveaxis(values, 2, 0)))
        handle.write(b"\n</AppendedData>\n</VTKFile>\n")


def _array(name: str, dtype, offset: int, components: int = 1) -> str:
    what = f'type="{_TYPES[np.dtype(dtype).name]}" Name="{name}" NumberOfComponents="{components}"'
    return f'<DataArray {what} format="appended" offset="{offset}"/>'


def _append(handle, length: int, sections) -> None:
    """Write an array with its length in bytes before it; sections : arrays of constant l, k before h."""
    handle.write(np.uint64(length).astype("<u8").tobytes())
    for section in sections:
        handle.write(np.ascontiguousarray(section, dtype=section.dtype.newbyteorder("<")).tobytes())


def _points(grid: MapGrid):
    """Positions of the voxels of each layer of constant l, (n_k, n_h, 3) float32, 1/Å."""
    h, k, l = grid.axes()
    layer = np.zeros((len(k), len(h), 3))
    layer[..., 0], layer[..., 1] = h[None, :], k[:, None]
    for value in l:
        layer[..., 2] = value
        yield (layer @ grid.reciprocal_matrix.T).astype(np.float32)


def _numbers(values) -> str:
    return " ".join(repr(float(x)) for x in values)
