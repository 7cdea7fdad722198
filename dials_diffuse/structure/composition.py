"""What a unit cell holds when no coordinates are known: a protein of a sequence, or what cells of its size hold."""

from __future__ import annotations

import math
from dataclasses import replace
from io import StringIO

import numpy as np
from cctbx import crystal, sgtbx
from mmtbx.scaling.matthews import matthews_rupp, p_solc_calc

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.contents import PROTEIN_VOLUME, CellContents, Pairs, add_water, hydrogen_pairs, mass_of
from dials_diffuse.structure.residues import RESIDUE_ELEMENTS, RESIDUES, average_residue, letters_of

#: neighbours of an atom of protein other than hydrogen, in steps of 0.1 Å from the first number: hen egg-white lysozyme
#: (PDB 193L) with its symmetry mates and bound water
_NEIGHBOURS_FROM = 1.25
_NEIGHBOURS = (
    (0.330, 0.498, 0.432, 0.757, 0.0, 0.004, 0.020, 0.0, 0.008, 0.024, 0.374, 0.370, 1.391, 0.559, 0.090)
    + (0.466, 0.348, 0.386, 0.447, 0.384, 0.496, 0.491, 0.547, 0.617, 0.805, 0.915)
)  # fmt: skip

#: shares of the cell that a protein of which nothing is known may take
_SHARES = np.linspace(0.2, 0.8, 13)

#: Å³: smaller asymmetric units hold no protein, but organic molecules of the average composition, this volume for each
#: of their atoms but hydrogens (Hofmann 2002, Acta Cryst. B58, 489)
_SMALL = 3000.0
_ORGANIC_VOLUME = 18.0
_ORGANIC = {"C": 0.74, "H": 0.90, "N": 0.09, "O": 0.15, "S": 0.01, "Cl": 0.01}


def contents_of_sequence(sequence: str, unit_cell, hall_symbol: str, copies: int | None = None) -> CellContents:
    """Contents from the sequence of a protein.

    Parameters
    ----------
    sequence : path of a sequence file (FASTA, PIR …; all chains together are one copy), or one-letter codes
    unit_cell : six floats, Å and degrees
    hall_symbol : of the space group
    copies : in the asymmetric unit; None: the most probable number by Matthews' statistics

    Raises
    ------
    DiffuseError
        If the sequence cannot be read, holds letters that are no amino acids, or does not fit into the cell.
    """
    letters = letters_of(sequence)
    symmetry = _symmetry(unit_cell, hall_symbol)
    known = copies is not None
    if not known:
        copies = matthews_rupp(symmetry, n_residues=len(letters), n_bases=0, out=StringIO()).n_copies
        guess = f"{copies} in the asymmetric unit by Matthews' statistics"
    else:
        guess = f"{copies} in the asymmetric unit"
    if copies < 1:
        raise DiffuseError(f"absolute_scale.copies={copies}: at least one is needed")
    number = copies * symmetry.space_group().order_z()
    table = np.sum([RESIDUES[x] for x in letters], axis=0) * number
    atoms = {e: float(n) for e, n in zip(RESIDUE_ELEMENTS, table) if n}
    atoms["H"] += 2 * number  # ends of the chain
    atoms["O"] += number
    note = f"sequence of {len(letters)} residues, {guess}"
    contents = _protein(atoms, symmetry, note, "absolute_scale.sequence", 0.02)
    if known:
        return contents
    one = PROTEIN_VOLUME * mass_of(atoms) / copies / contents.volume
    return replace(
        contents, alternatives=_probable(np.arange(1, max(math.floor(1 / one), copies) + 1) / copies, one * copies)
    )


def average_contents(unit_cell, hall_symbol: str) -> CellContents:
    """Contents of a crystal of which nothing is known.

    A protein of average composition by Matthews' statistics; organic molecules where the cell is small.

    unit_cell : six floats, Å and degrees; hall_symbol : of the space group
    """
    symmetry = _symmetry(unit_cell, hall_symbol)
    volume = symmetry.unit_cell().volume()
    if volume / symmetry.space_group().order_z() < _SMALL:
        return _organic(volume)
    residues = matthews_rupp(symmetry, out=StringIO()).n_residues * symmetry.space_group().order_z()
    atoms = {e: n * residues for e, n in average_residue().items()}
    note = f"{residues:.0f} average protein residues in the cell by Matthews' statistics"
    contents = _protein(atoms, symmetry, note, "unit cell", 0.04)
    share = PROTEIN_VOLUME * mass_of(atoms) / volume
    return replace(contents, alternatives=_probable(_SHARES / share, share))


def _probable(factors: np.ndarray, share: float) -> tuple:
    """(factor, probability) pairs of multiples of contents that take a share of the cell.

    Source: Kantardjieff & Rupp 2003, Protein Sci. 12, 1865 (distribution of solvent contents)
    """
    probability = np.array([p_solc_calc(min(max(1 - x, 0.0), 1.0)) for x in factors * share])
    return tuple(zip(factors.tolist(), (probability / probability.sum()).tolist()))


def _organic(volume: float) -> CellContents:
    number = volume / _ORGANIC_VOLUME
    total = sum(n for e, n in _ORGANIC.items() if e != "H")
    atoms = {e: n / total * number for e, n in _ORGANIC.items()}
    note = (
        f"a small cell: organic molecules of average composition, {number:.0f} atoms of {_ORGANIC_VOLUME:g} Å³ and "
        "their hydrogens (give absolute_scale.model= or absolute_scale.sequence= if it holds something else)"
    )
    return CellContents(note, volume, atoms, neighbours(atoms), 0.1, protein=False)


def _symmetry(unit_cell, hall_symbol: str):
    return crystal.symmetry(unit_cell=tuple(unit_cell), space_group=sgtbx.space_group(hall_symbol))


def _protein(atoms: dict, symmetry, note: str, name: str, uncertainty: float) -> CellContents:
    volume = symmetry.unit_cell().volume()
    return add_water(CellContents(note, volume, atoms, neighbours(atoms), uncertainty), name)


def neighbours(atoms: dict) -> tuple:
    """Pairs of molecules of this composition, as many as in protein."""
    heavy = {e: n for e, n in atoms.items() if e != "H"}
    total = sum(heavy.values())
    mean = tuple((e, n / total) for e, n in heavy.items())
    r = _NEIGHBOURS_FROM + 0.1 * np.arange(len(_NEIGHBOURS))
    return Pairs(mean, mean, r, total * np.array(_NEIGHBOURS)), *hydrogen_pairs(heavy, atoms["H"])
