"""The one place where coordinate files are read: PDB, mmCIF, and CIF files of small molecules."""

from __future__ import annotations

import bz2
import gzip
import logging
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from cctbx import crystal, sgtbx, uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.cif_records import cif_content
from dials_diffuse.structure.pdb_records import ATOMS, IOTBX_ERRORS, in_one_line, pdb_content
from dials_diffuse.structure.records import Content
from dials_diffuse.structure.tensors import symmetric_tensor

logger = logging.getLogger("dials.diffuse.structure")

#: a smaller cell is the dummy CRYST1 record of a file without a crystal (Å³)
_SMALLEST_CELL = 8.0

#: Å, longer than any axis of a unit cell, and farther than atoms may be from the origin
_LONGEST = 1e5

#: Å², larger than any mean square displacement; B = 80 000 Å²
_LARGEST_U = 1e3

#: SCALE records that stretch the axes given by CRYST1 by more than this are wrong
_SCALE_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class HeaderTls:
    """A TLS group of a file's header, in the frame of a Structure read from it.

    Attributes
    ----------
    t : (3, 3) float64, Å²; l : the same, degrees²; s : (3, 3), Å degrees, first index the rotation
    origin : (3,) float64, Å
    selection : the atoms, in cctbx's syntax
    """

    t: np.ndarray
    l: np.ndarray
    s: np.ndarray
    origin: np.ndarray
    selection: str


@dataclass(frozen=True, eq=False)
class CoordinateFile:
    """A coordinate file with atoms, a unit cell and a space group.

    Attributes
    ----------
    path : as given
    content : what the file says
    """

    path: object
    content: Content

    @property
    def models(self) -> tuple:
        """Records of each model, at least one."""
        return self.content.models

    @property
    def cell(self) -> uctbx.unit_cell:
        return self.content.symmetry.unit_cell()

    @property
    def space_group(self) -> sgtbx.space_group:
        return self.content.symmetry.space_group()

    @cached_property
    def fractional_frame(self) -> tuple:
        """(3, 3) and (3,) float64 from the Cartesian coordinates of the file, Å, to fractional ones.

        From the SCALE records where they fit the cell.
        """
        own = np.array(self.cell.fractionalization_matrix()).reshape(3, 3)
        if self.content.scale is None:
            return own, np.zeros(3)
        matrix, shift = self.content.scale
        if np.abs(matrix - own).max() < 1e-6:  # the precision of the records: CRYST1 is the more precise
            return own, shift
        rotation = np.linalg.inv(own) @ matrix
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > _SCALE_TOLERANCE:
            logger.warning("%s: the SCALE records contradict CRYST1 and are ignored", self.path)
            return own, np.zeros(3)
        return matrix, shift

    @cached_property
    def rotation(self) -> np.ndarray:
        """(3, 3) float64 from the Cartesian frame of the file to that of a Structure, for tensors."""
        u, _, vt = np.linalg.svd(self._orthogonalization @ self.fractional_frame[0])
        return u @ vt

    def position(self, point) -> np.ndarray:
        """(3,) float64, Å, of a point in the Cartesian frame of the file."""
        matrix, shift = self.fractional_frame
        return self._orthogonalization @ (matrix @ np.asarray(point, dtype=float) + shift)

    @property
    def _orthogonalization(self) -> np.ndarray:
        return np.array(self.cell.orthogonalization_matrix()).reshape(3, 3)

    def header_tls(self) -> tuple:
        """The TLS groups of the header, maybe none.

        Raises
        ------
        DiffuseError
            If they cannot be read.
        """
        try:
            groups = self.content.tls(self.models[0].hierarchy)
            return tuple(self._header_tls(group) for group in groups)
        except IOTBX_ERRORS as error:
            raise DiffuseError(f"{self.path}: its TLS groups cannot be read ({in_one_line(error)})") from None

    def _header_tls(self, group) -> HeaderTls:
        if not group.selection_string:
            raise ValueError("a group without atoms")
        turn = self.rotation
        t, l = (turn @ symmetric_tensor(six) @ turn.T for six in (group.t, group.l))
        s = turn @ np.array(group.s, dtype=float).reshape(3, 3) @ turn.T
        return HeaderTls(t, l, s, self.position(group.origin), group.selection_string)


def read_coordinates(path) -> CoordinateFile:
    """Read a PDB or mmCIF file, or a CIF file of a small molecule; compressed by gzip or bzip2, too.

    Characters beyond ASCII, in UTF-8 or Latin-1, are replaced by question marks.

    Raises
    ------
    DiffuseError
        If the file cannot be read, or lacks atoms, a unit cell or a space group.
    """
    text = _text(path)
    if _is_cif(text):
        content = cif_content(path, text)
    else:
        lines = text.split("\n")
        if not any(line.startswith(ATOMS) for line in lines):
            raise DiffuseError(f"{path}: contains no atoms; give a PDB or mmCIF file with coordinates")
        content = pdb_content(path, lines)
    _check_symmetry(content.symmetry, path)
    _check_sizes(content, path)
    return CoordinateFile(path, content)


def _text(path) -> str:
    """The content of a file in ASCII, lines separated by newlines."""
    if not Path(path).is_file():
        raise DiffuseError(f"{path}: no such file; give a PDB or mmCIF file")
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif data.startswith(b"BZh"):
            data = bz2.decompress(data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DiffuseError(f"{path}: cannot be read ({error}); copy it again") from None
    if b"\0" in data:
        raise DiffuseError(f"{path}: is no text; give a PDB or mmCIF file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # knows every byte
    text = text.encode("ascii", "replace").decode("ascii")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_cif(text: str) -> bool:
    for line in text.split("\n"):
        words = line.split()
        if words and not words[0].startswith("#"):
            return words[0].lower().startswith(("data_", "loop_", "global_", "_"))
    return False


def _check_symmetry(symmetry: crystal.symmetry | None, path) -> None:
    if symmetry is None or symmetry.unit_cell() is None or symmetry.unit_cell().volume() < _SMALLEST_CELL:
        raise DiffuseError(f"{path}: has no unit cell; add a CRYST1 record (PDB) or _cell items (mmCIF)")
    if symmetry.space_group() is None:
        raise DiffuseError(f"{path}: has no space group that cctbx knows; correct the CRYST1 record or _symmetry items")


def _check_sizes(content: Content, path) -> None:
    """No crystal has numbers like those that a damaged file may have."""
    cell = content.symmetry.unit_cell().parameters()
    if not max(cell[:3]) < _LONGEST:
        raise DiffuseError(f"{path}: its unit cell is {', '.join(f'{x:g}' for x in cell)}; correct it")
    for number, records in enumerate(content.models):
        for what, values, limit in (
            ("coordinates", records.site, _LONGEST),
            ("mean square displacement", records.u_iso, _LARGEST_U),
            ("displacement tensor", records.u_aniso, _LARGEST_U),
        ):
            bad = np.argwhere(np.abs(np.nan_to_num(values, posinf=np.inf, neginf=-np.inf)) >= limit)
            if len(bad):
                i = bad[0][0]
                raise DiffuseError(f"{path}: atom {i + 1} of model {number + 1}: its {what} is {values[i]}; correct it")
    if content.scale is not None and not all(np.all(np.abs(part) < _LONGEST) for part in content.scale):
        raise DiffuseError(f"{path}: its SCALE records have numbers beyond all measure; correct or remove them")
