"""Formats in which a map can be written, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap


@dataclass(frozen=True)
class MapFormat:
    """How to write a map.

    Attributes
    ----------
    name : in the programs
    suffix : of file names, with its dot, in lower case
    about : one sentence for users
    place : ``module:function`` of what writes a file. It is called like :func:`save_map` and leaves out what the format
        has no place for; the module is imported when it is needed.
    needs : a package that has to be installed, which does not come with DIALS; empty for none
    """

    name: str
    suffix: str
    about: str
    place: str
    needs: str = ""

    @property
    def write(self) -> Callable:
        """The function that writes a file."""
        return resolve_name(self.place)


_EXPORT = "dials_diffuse.files.export"

#: the first one is for names whose suffix says nothing
FORMATS = (
    MapFormat("nexus", ".nxs", "NeXus in HDF5, which all programs read.", "dials_diffuse.files.nexus:write_map"),
    MapFormat("mtz", ".mtz", "Whole Miller indices, beside Bragg data.", f"{_EXPORT}.mtz:write_mtz"),
    MapFormat("mtz_grid", ".supercell.mtz", "All voxels, as those of a supercell.", f"{_EXPORT}.mtz:write_mtz_grid"),
    MapFormat("ccp4", ".ccp4", "CCP4 map of reciprocal space, 100 Å for 1/Å.", f"{_EXPORT}.ccp4:write_ccp4"),
    MapFormat("mrc", ".mrc", "The same, by its other name.", f"{_EXPORT}.ccp4:write_ccp4"),
    MapFormat("vti", ".vti", "VTK image, for right-angled cells.", f"{_EXPORT}.vtk:write_vti"),
    MapFormat("vts", ".vts", "VTK structured grid, for any cell.", f"{_EXPORT}.vtk:write_vts"),
    MapFormat("npz", ".npz", "Arrays of numpy.", f"{_EXPORT}.arrays:write_npz"),
    MapFormat("csv", ".csv", "Text, a line for each unique voxel.", f"{_EXPORT}.tables:write_csv"),
    MapFormat("parquet", ".parquet", "The same as Parquet.", f"{_EXPORT}.tables:write_parquet", "pyarrow"),
    MapFormat("yell", ".yell.h5", "HDF5 of Yell and Meerkat.", f"{_EXPORT}.yell:write_yell"),
    MapFormat("lunus", ".lat", "Lattice of lunus.", f"{_EXPORT}.lunus:write_lat"),
)


def format_of(path) -> MapFormat:
    """The format that the end of a file name means, whether in small letters or capitals; else NeXus."""
    name = Path(path).name.lower()
    found = [row for row in FORMATS if name.endswith(row.suffix)]
    return max(found, key=lambda row: len(row.suffix), default=FORMATS[0])


def save_map(path, data: DiffuseMap, provenance: Provenance, volume: bool | None = True, collections=None) -> None:
    """Write a map in the format of its file's name; it appears under ``path`` only when complete.

    Parameters
    ----------
    volume : also write three-dimensional arrays, where the format has both these and unique voxels; None: if they are
        not too large for this computer
    collections : what else belongs to the map, name -> {name: array, or such a dictionary}

    Raises
    ------
    DiffuseError
        If the file cannot be written.

    Examples
    --------
    >>> from dials_diffuse.files.nexus import read_map, read_provenance
    >>> data, provenance = read_map("diffuse_merged.nxs"), read_provenance("diffuse_merged.nxs")
    >>> save_map("copy.nxs", data, provenance, volume=False)
    """
    format_of(path).write(path, data, provenance, volume, collections)


def formats_in_words() -> str:
    """Suffixes and what they mean, for the help of a parameter."""
    return " ".join(f"{row.suffix}: {row.about}" for row in FORMATS)
