"""The records of a PDB file, by iotbx, and what iotbx does not tell: which columns are blank, or shifted."""

from __future__ import annotations

import logging
import re

import iotbx.pdb
import numpy as np
from cctbx import adptbx
from iotbx.pdb.remark_3_interpretation import extract_tls_parameters
from libtbx.utils import Sorry

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.elements import FOUR_LETTER_WATERS
from dials_diffuse.structure.records import Content, NcsOperator, Records
from dials_diffuse.structure.tensors import symmetric_tensor

logger = logging.getLogger("dials.diffuse.structure")

#: how lines of atoms begin, for iotbx
ATOMS = ("ATOM", "HETATM")

#: name, columns (from 0), and whether the field may be blank
_NUMBERS = (
    ("x", slice(30, 38), False),
    ("y", slice(38, 46), False),
    ("z", slice(46, 54), False),
    ("occupancy", slice(54, 60), True),
    ("B factor", slice(60, 66), True),
)

#: what remarks say where B factors lack the motion of the TLS groups (refmac, tlsanl), where they do not, and where the
#: PDB's annotators think so
_RESIDUAL = re.compile(r"RESIDUAL\s+B\s+FACTORS\s+ONLY|U\s+VALUES\s*:\s*RESIDUAL\s+ONLY", re.IGNORECASE)
_SUM = re.compile(r"SUM\s+OF\s+TLS\s+AND\s+RESIDUAL|U\s+VALUES\s*:\s*WITH\s+TLS\s+ADDED", re.IGNORECASE)
_LIKELY = re.compile(r"LIKELY\s+RESIDUAL", re.IGNORECASE)

#: what iotbx raises when it meets a bad file
IOTBX_ERRORS = (Sorry, RuntimeError, ValueError, KeyError, AssertionError, IndexError, AttributeError, TypeError)


def pdb_content(path, lines: list) -> Content:
    """Read a PDB file.

    Parameters
    ----------
    path : for messages
    lines : its text; there is a record of an atom

    Raises
    ------
    DiffuseError
        If a record cannot be read.
    """
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.startswith(ATOMS)]
    blank = np.array([_blank_fields(path, number, line) for number, line in rows])
    try:
        source = iotbx.pdb.input(source_info=str(path), lines=lines)
        atoms = source.atoms_with_labels()
    except IOTBX_ERRORS as error:  # whatever iotbx meets in a bad file
        raise DiffuseError(f"{path}: cannot be read as PDB ({in_one_line(error)}); correct it") from None
    if len(atoms) != len(rows):
        raise DiffuseError(f"{path}: {len(rows)} records of atoms, of which iotbx reads {len(atoms)}; correct the file")
    records = _records(atoms, blank)
    limits = np.concatenate([[0], np.array(source.model_indices(), dtype=int)])
    remarks = list(source.extract_remark_iii_records(3))

    def tls(hierarchy) -> list:
        # The chains are not needed, and iotbx refuses what are named in upper and lower case or by digits.
        return extract_tls_parameters(remark_3_records=remarks, chain_ids=[], pdb_hierarchy=hierarchy).tls_params

    return Content(
        models=tuple(records.take(slice(a, b)) for a, b in zip(limits, limits[1:]) if b > a),
        symmetry=_symmetry(source, path),
        scale=_scale(source, path),
        operators=_operators(source, path),
        residual=says_residual(" ".join(line[10:] for line in remarks)),
        tls=tls,
    )


def says_residual(remarks: str) -> bool:
    """Do the remarks on a refinement say that B factors are what the motion of TLS groups leaves over?"""
    return bool(_RESIDUAL.search(remarks) or (_LIKELY.search(remarks) and not _SUM.search(remarks)))


def in_one_line(error: Exception) -> str:
    """The message of an error: what went wrong, and where."""
    lines = [line.strip(" -^:.") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line) or type(error).__name__


def _blank_fields(path, number: int, line: str) -> tuple:
    """Are occupancy and B factor blank? DiffuseError where a number is none, or a coordinate is missing.

    iotbx leaves out blanks inside of numbers, and takes what is missing as 0: in a line that is shifted by a column,
    the last digit of x would become the first one of y.
    """
    blank = []
    for name, columns, optional in _NUMBERS:
        text = line[columns].strip()
        if not text and not optional:
            what = f"has no {name} coordinate; is the file cut off?"
        elif text and not _is_number(text):
            what = (
                f"has {line[columns]!r} as {name}, in columns {columns.start + 1}-{columns.stop}; "
                "is the line shifted, or no PDB record?"
            )
        else:
            blank.append(not text)
            continue
        raise DiffuseError(f"{path}: line {number}, {line[:27].rstrip()!r}, {what} Correct it")
    return tuple(blank[-2:])


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _records(atoms, blank) -> Records:
    u_iso = np.array([atom.b for atom in atoms]) / adptbx.u_as_b(1.0)
    tensors = np.full((len(atoms), 3, 3), np.nan)
    for i, atom in enumerate(atoms):
        if atom.uij_is_defined():
            tensors[i] = symmetric_tensor(atom.uij)
    names = [_residue_and_chain(atom) for atom in atoms]
    return Records(
        name=np.array([atom.name for atom in atoms]),
        altloc=np.array([atom.altloc.strip() for atom in atoms]),
        chain=_chains(atoms, [chain for _, chain in names]),
        residue=np.array([f"{atom.resseq}{atom.icode}" for atom in atoms]),
        residue_name=np.array([residue for residue, _ in names]),
        # Files of before 1996 have numbers of lines there.
        element=np.array(["" if atom.element.strip().isdigit() else atom.element.strip() for atom in atoms]),
        charge=np.array([atom.charge.strip() for atom in atoms]),
        hetero=np.array([atom.hetero for atom in atoms]),
        site=np.array([atom.xyz for atom in atoms], dtype=float),
        occupancy=np.where(blank[:, 0], np.nan, [atom.occ for atom in atoms]),
        u_iso=np.where(blank[:, 1], np.nan, u_iso),
        u_aniso=tensors,
    )


def _residue_and_chain(atom) -> tuple:
    """Residue name and chain; the fourth letter of TIP3 stands where some programs write the first one of a chain."""
    residue, chain = atom.resname, atom.chain_id
    if len(chain) == 2 and residue + chain[0] in FOUR_LETTER_WATERS:
        return residue + chain[0], chain[1]
    return residue, chain


def _chains(atoms, chains: list) -> np.ndarray:
    """(n,) str, the chains; segments, where chains have no names and there are several segments."""
    unnamed = [not chain.strip() for chain in chains]
    segments = [atom.segid.strip() for atom in atoms]
    if len({s for s, needed in zip(segments, unnamed) if needed}) < 2:
        return np.array(chains)
    return np.array([s if needed and s else chain for s, needed, chain in zip(segments, unnamed, chains)])


def _symmetry(source, path):
    try:
        return source.crystal_symmetry()
    except IOTBX_ERRORS as error:
        record = [line.rstrip() for line in source.crystallographic_section() if line.startswith("CRYST1")]
        raise DiffuseError(
            f"{path}: {' '.join(record[:1])!r} is no crystal ({in_one_line(error)}); correct it"
        ) from None


def _scale(source, path) -> tuple | None:
    try:
        scale = source.scale_matrix()
        if scale is None or None in scale[0] or None in scale[1]:
            return None
        return np.array(scale[0], dtype=float).reshape(3, 3), np.array(scale[1], dtype=float)
    except IOTBX_ERRORS as error:
        logger.warning("%s: the SCALE records are ignored (%s)", path, in_one_line(error))
        return None


def _operators(source, path) -> tuple:
    try:
        found = source.process_MTRIX_records()
        return tuple(
            NcsOperator(
                str(name).strip(), np.array(r, dtype=float).reshape(3, 3), np.array(t, dtype=float), bool(given)
            )
            for name, r, t, given in zip(found.serial_number, found.r, found.t, found.coordinates_present)
        )
    except IOTBX_ERRORS as error:
        raise DiffuseError(f"{path}: its MTRIX records cannot be read ({in_one_line(error)}); correct them") from None
