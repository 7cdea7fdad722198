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
    _write(path, data, provenance, "ImageData", words, [])


def write_vts(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write a structured grid of VTK.

    Raises
    ------
    DiffuseError
        If the file cannot be written, or there is not enough memory.
    """
    axes = np.meshgrid(*reversed(data.grid.axes()), indexing="ij")
    points = np.stack(axes[::-1], axis=-1) @ data.grid.reciprocal_matrix.T
    _write(path, data, provenance, "StructuredGrid", "", [("Points", points.astype("<f4"), 3)])


def _write(path, data: DiffuseMap, provenance: Provenance, kind: str, words: str, points: list) -> None:
    arrays = [(n, volume_of(data, n, *how).transpose(2, 1, 0), 1) for n, how in VOLUMES.items()]
    offset, lines = 0, {}
    for name, values, components in [*points, *arrays]:
        size = f' NumberOfComponents="{components}"' if components > 1 else ""
        kept = f'type="{_TYPES[values.dtype.name]}" Name="{name}"{size} format="appended" offset="{offset}"'
        lines[name] = f"<DataArray {kept}/>"
        offset += 8 + values.nbytes
    extent = " ".join(f"0 {n - 1}" for n in data.grid.shape)
    about = "".join(f" {key}={quoteattr(value)}" for key, value in summary(data, provenance).items())
    place = f"<Points>{lines.pop('Points')}</Points>" if points else ""
    head = (
        '<?xml version="1.0"?>\n'
        f'<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f"<!-- dials_diffuse{about.replace('--', '- -')} -->\n"
        f'<{kind} WholeExtent="{extent}" {words}>\n<Piece Extent="{extent}">\n{place}\n'
        f'<PointData Scalars="intensity">{"".join(lines.values())}</PointData>\n</Piece>\n</{kind}>\n'
        '<AppendedData encoding="raw">\n_'
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        handle.write(head.encode("utf-8"))
        for _, values, _ in [*points, *arrays]:
            handle.write(np.uint64(values.nbytes).astype("<u8").tobytes())
            for section in values:
                handle.write(np.ascontiguousarray(section, dtype=values.dtype.newbyteorder("<")).tobytes())
        handle.write(b"\n</AppendedData>\n</VTKFile>\n")


def _numbers(values) -> str:
    return " ".join(repr(float(x)) for x in values)
