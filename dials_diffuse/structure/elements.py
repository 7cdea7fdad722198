"""The chemical element of each atom: from its column, else from what its residue is, else from its name."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np
from cctbx.eltbx import chemical_elements
from iotbx.pdb import common_residue_names_get_class

from dials_diffuse.structure.records import Records

logger = logging.getLogger("dials.diffuse.structure")

#: symbols of elements in capitals; with D and T for hydrogen
_SYMBOLS = frozenset(chemical_elements.proper_and_isotopes_upper_set())

#: where an element is from
COLUMN, RESIDUE, NAME, CONTRADICTED = range(4)

#: names of water whose fourth letter stands in the column before that of the chain
FOUR_LETTER_WATERS = frozenset(("TIP2", "TIP3", "TIP4", "TIP5", "SPCE"))

# what iotbx's tables of residues lack: names in programs of simulation
_WATERS = FOUR_LETTER_WATERS | {"TIP", "TP3", "TP4", "TP5", "T4P", "T5P", "SOL", "SPC", "OPC", "DOD"}
_AMINO_ACIDS = re.compile(
    "HS[DEP]|HI[DEP]|HIS[ABDEHP]|CY[XMN]|CYS[2H]|LYN|LSN|LYSH|ASH|ASPH|GLH|GLUH|ARGN|NLE|ACE|NME|NMA|NH2"
)
_NUCLEOTIDES = re.compile(r"[DR]?[ACGTUI][53N]?|URA")
_IONS = {
    "SOD": "Na",
    "CLA": "Cl",
    "POT": "K",
    "CAL": "Ca",
    "CES": "Cs",
    "RUB": "Rb",
    "LIT": "Li",
    "BAR": "Ba",
    "CAD": "Cd",
    "IOD": "I",
}

#: what names begin with in each kind of residue, and the element
_ORGANIC = {letter: letter for letter in "HCNOS"} | {"D": "H", "P": "P"}
_LETTERS = {
    "amino acid": _ORGANIC,
    "nucleotide": _ORGANIC,
    "small molecule": _ORGANIC,
    "water": {"O": "O", "H": "H", "D": "H"},
}
_BACKBONE = ({"N", "CA", "C", "O"}, {"N", "CA", "C", "OT1"}, {"N", "CA", "C", "OXT"}, {"N", "CA", "C", "O1"})
_SUGAR = ({"C1'", "C4'", "O4'"}, {"C1*", "C4*", "O4*"})
_WATER_ATOMS = frozenset(("O", "OW", "OH2", "H1", "H2", "HW1", "HW2", "D1", "D2", "1HW", "2HW", "MW", "M", "EPW", "EP"))

#: elements with two letters that are likely at the beginning of a name with four letters, and in ligands at all
_LIKELY = frozenset(("CL", "BR", "FE", "ZN", "MG", "MN", "CU", "SE", "SI", "LI", "AL"))


@dataclass(frozen=True, eq=False)
class Elements:
    """Elements of some atoms.

    Attributes
    ----------
    symbol : (n,) str, such as ``C`` or ``Zn``, deuterium as ``H``; empty where it is unknown
    origin : (n,) int64, COLUMN, RESIDUE, NAME (guessed), or CONTRADICTED (from the residue, against the column)
    """

    symbol: np.ndarray
    origin: np.ndarray

    def take(self, atoms) -> Elements:
        """Some of the atoms; atoms : (n,) bool"""
        return Elements(self.symbol[atoms], self.origin[atoms])


def find_elements(records: Records) -> Elements:
    """The elements of the atoms of a model.

    Where the element's column is blank, atoms of amino acids, nucleotides, water, ions and the molecules that iotbx
    knows have the element with which their names begin in these: HG11 of a valine is hydrogen, CA is carbon but in an
    ion CA. So do residues of unknown names that have the atoms of a backbone. In other residues it is guessed from the
    name and its alignment. In standard residues a column that contradicts them, such as CA for the carbon CA, is wrong.
    """
    column = [_from_column(text) for text in records.element.tolist()]
    symbol, origin = np.array(column, dtype="U2"), np.full(records.n_atoms, COLUMN)
    blank = records.element == ""
    aligned = _are_aligned(records.name)
    for rows in _residues(records):
        residue = records.residue_name[rows[0]].strip().upper()
        standard = _standard_kind(residue)
        if not blank[rows].any() and standard is None:
            continue
        names = [records.name[i].strip().upper() for i in rows]
        kind = standard or _kind_by_atoms(residue, set(names))
        for i, name in zip(rows, names):
            found = _in_residue(name, residue, kind, len(set(names)))
            if blank[i] and found:
                symbol[i], origin[i] = found, RESIDUE
            elif blank[i]:
                symbol[i], origin[i] = _from_name(records.name[i], aligned), NAME
            elif standard and found and symbol[i] != found and symbol[i].upper() == name[:2]:
                symbol[i], origin[i] = found, CONTRADICTED
    return Elements(symbol, origin)


def report_elements(elements: Elements, records: Records, path) -> None:
    """Say which elements were inferred, which guessed; of atoms that are used.

    elements, records : of the same atoms
    """

    def example(chosen) -> str:
        i = np.flatnonzero(chosen)[0]
        return f"{elements.symbol[i]} for {records.label(i)}"

    known = elements.symbol != ""
    inferred, guessed, wrong = (known & (elements.origin == kind) for kind in (RESIDUE, NAME, CONTRADICTED))
    if inferred.any():
        logger.info(
            "%s: %d of %d atoms have no element column; their residues tell the element, such as %s",
            path,
            np.count_nonzero(inferred),
            records.n_atoms,
            example(inferred),
        )
    if guessed.any():
        logger.warning(
            "%s: %d of %d atoms have no element column and are in residues that are not known; their elements are "
            "guessed from their names, such as %s. Write element columns (77-78) if that is wrong",
            path,
            np.count_nonzero(guessed),
            records.n_atoms,
            example(guessed),
        )
    if wrong.any():
        logger.warning(
            "%s: the element columns of %d atoms contradict their residues, whose elements are used, such as %s",
            path,
            np.count_nonzero(wrong),
            example(wrong),
        )


def _from_column(text: str) -> str:
    text = text.upper()
    if text in ("D", "T"):
        return "H"
    return text.capitalize() if text in _SYMBOLS else ""


def _residues(records: Records):
    """Rows of each residue; in files of a crystal's whole cell, residues of the same name may be taken together."""
    rows: dict = {}
    keys = zip(records.chain.tolist(), records.residue.tolist(), records.residue_name.tolist())
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    return rows.values()


def _standard_kind(residue: str) -> str | None:
    """What a residue is whose name belongs to nothing else: a kind of _LETTERS."""
    if residue in _WATERS:
        return "water"
    found = _iotbx_class(residue)
    if found in ("common_amino_acid", "d_amino_acid") or _AMINO_ACIDS.fullmatch(residue):
        return "amino acid"
    if len(residue) == 4 and residue[0] in "NC" and _standard_kind(residue[1:]) == "amino acid":
        return "amino acid"  # at either end of a chain, as amber names it
    if found == "common_rna_dna":
        return "nucleotide"
    if found == "common_water":
        return "water"
    return "small molecule" if found in ("common_small_molecule", "common_saccharide") else None


def _kind_by_atoms(residue: str, names: set) -> str | None:
    """What a residue is by the names of its atoms, or by a name that may belong to something else too."""
    if any(backbone <= names for backbone in _BACKBONE):
        return "amino acid"
    if any(sugar <= names for sugar in _SUGAR):
        return "nucleotide"
    if names <= _WATER_ATOMS and names & {"O", "OW", "OH2"} and len(names) > 1:
        return "water"
    if len(names) > 1:
        found = _iotbx_class(residue)
        if found == "modified_amino_acid":
            return "amino acid"
        if found == "modified_rna_dna" or _NUCLEOTIDES.fullmatch(residue):
            return "nucleotide"
    return None


def _iotbx_class(residue: str) -> str:
    """iotbx's class of a residue; it has no residues with more than three letters."""
    return common_residue_names_get_class(residue) if len(residue) <= 3 else "other"


def _in_residue(name: str, residue: str, kind: str | None, n_names: int) -> str:
    """The element that an atom has in a residue, or nothing; name and residue in capitals, without blanks."""
    if kind is None:
        return _ion(name, residue) if n_names == 1 else ""
    letters = name.lstrip("0123456789'\"*")
    if letters[:2] == "SE":
        return "Se"
    if letters[:2] in _LIKELY and _iotbx_class(residue) in ("modified_amino_acid", "modified_rna_dna", "other"):
        return ""  # chlorine in a modified residue, or a carbon: a guess
    return _LETTERS[kind].get(letters[:1], "")


def _ion(name: str, residue: str) -> str:
    """The element of a residue of a single atom that is named by it, such as ZN, MG2 or Na+; or nothing."""
    if residue in _IONS:
        return _IONS[residue]
    if _iotbx_class(residue) == "common_element":
        return residue.capitalize()
    both = {re.sub(r"[^A-Z]", "", text) for text in (name, residue)}
    symbol = both.pop()
    return _from_column(symbol) if not both else ""


def _are_aligned(names: np.ndarray) -> bool:
    """Do names begin in the second column, as those of elements with one letter should?"""
    short = [name for name in names.tolist() if len(name) == 4 and name[3] == " " and name.strip()[:1] in set("CNOH")]
    return sum(name[0] == " " for name in short) * 2 >= len(short)


def _from_name(name: str, aligned: bool) -> str:
    """A guess from a name of four columns; nothing if no element's symbol is like it.

    aligned : do the names of the file have their elements in the first two columns?
    """
    text = name.strip().upper().lstrip("0123456789'\"*")
    one, two = _from_column(text[:1]), _from_column(text[:2]) if text[:2].isalpha() and len(text) > 1 else ""
    if text[:1] in ("H", "D") and text != "HG":
        return "H"
    if aligned and len(name.strip()) < 4:  # by the rule of PDB files
        in_place = not name.startswith(" ") and not name[0].isdigit()
        return two if in_place and two and not text[2:3].isalpha() else one
    return two if two.upper() in _LIKELY or not one else one
