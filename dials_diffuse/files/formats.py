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
    """

    name: str
    suffix: str
    about: str
    place: str

    @property
    def write(self) -> Callable:
        """The function that writes a file."""
        return resolve_name(self.place)


#: the first one is for names whose suffix says nothing
FORMATS = (
    MapFormat("nexus", ".nxs", "NeXus in HDF5, which all programs read.", "dials_diffuse.files.nexus:write_map"),
)


def format_of(path) -> MapFormat:
    """The format that the suffix of a file name means, whether in small letters or capitals; else NeXus."""
    suffix = Path(path).suffix.lower()
    return next((row for row in FORMATS if row.suffix == suffix), FORMATS[0])


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
