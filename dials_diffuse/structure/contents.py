"""What the unit cell holds, for the absolute scale: how it scatters on the average over all directions.

Per unit cell, and averaged over directions, everything in the cell scatters

    Σ f² + Compton + Σ over pairs of atoms of f_i f_j sin(q r) / (q r)

Pairs nearer than some 3 Å are known from chemistry. Of the others it is assumed that they fill space evenly; the
sphere around each atom that they leave empty is the term -2π² (Σ Z)² / V of Krogh-Moe's equation.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
from cctbx import crystal, sgtbx
from cctbx.eltbx import tiny_pse
from iotbx import bioinformatics
from mmtbx.scaling.matthews import matthews_rupp
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import atom_form_factor, incoherent
from dials_diffuse.structure.surroundings import WATER_DENSITY, WATER_HH, WATER_OH

logger = logging.getLogger("dials.diffuse.structure")

#: Å: pairs nearer than the first count fully, those beyond the second are part of the even density
NEAR = (2.8, 3.8)

#: Å³ per dalton of protein, partial specific volume 0.73 cm³/g (Harpaz, Gerstein & Chothia 1994, Structure 2, 641)
PROTEIN_VOLUME = 1.21

#: atoms of an amino acid residue: C, H, N, O, S, Se
_RESIDUES = {
    "G": (2, 3, 1, 1, 0, 0),
    "A": (3, 5, 1, 1, 0, 0),
    "S": (3, 5, 1, 2, 0, 0),
    "P": (5, 7, 1, 1, 0, 0),
    "V": (5, 9, 1, 1, 0, 0),
    "T": (4, 7, 1, 2, 0, 0),
    "C": (3, 5, 1, 1, 1, 0),
    "L": (6, 11, 1, 1, 0, 0),
    "I": (6, 11, 1, 1, 0, 0),
    "N": (4, 6, 2, 2, 0, 0),
    "D": (4, 5, 1, 3, 0, 0),
    "Q": (5, 8, 2, 2, 0, 0),
    "K": (6, 12, 2, 1, 0, 0),
    "E": (5, 7, 1, 3, 0, 0),
    "M": (5, 9, 1, 1, 1, 0),
    "H": (6, 7, 3, 1, 0, 0),
    "F": (9, 9, 1, 1, 0, 0),
    "R": (6, 12, 4, 1, 0, 0),
    "Y": (9, 9, 1, 2, 0, 0),
    "W": (11, 10, 2, 1, 0, 0),
    "U": (3, 5, 1, 1, 0, 1),
}
_RESIDUE_ELEMENTS = ("C", "H", "N", "O", "S", "Se")

#: per cent of each residue in UniProtKB/Swiss-Prot (release statistics of 2023)
_AVERAGE = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        (8.25, 5.53, 4.06, 5.46, 1.38, 3.93, 6.72, 7.07, 2.27, 5.91)
        + (9.65, 5.80, 2.41, 3.86, 4.74, 6.65, 5.36, 1.10, 2.92, 6.86),
    )
)

#: neighbours of an atom of protein other than hydrogen, in steps of 0.1 Å from the first number: hen egg-white lysozyme
#: (PDB 193L) with its symmetry mates and bound water
_NEIGHBOURS_FROM = 1.25
_NEIGHBOURS = (
    (0.330, 0.498, 0.432, 0.757, 0.0, 0.004, 0.020, 0.0, 0.008, 0.024, 0.374, 0.370, 1.391, 0.559, 0.090)
    + (0.466, 0.348, 0.386, 0.447, 0.384, 0.496, 0.491, 0.547, 0.617, 0.805, 0.915)
)  # fmt: skip

#: hydrogens: the bond, and the neighbours of the atom that they are bound to; ordered pairs for each hydrogen
_HYDROGEN_BOND = 1.03
_HYDROGEN_NEXT = (2.10, 2.2)

#: water: the first shell of oxygens with its rms width (Å; Soper 2000, Chem. Phys. 258, 121); then the even density of
#: the liquid times this
_WATER_SHELL = (2.80, 0.12, 4.3)
_WATER_BEYOND = (3.15, 0.85)


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of atoms in a cell: ``number`` (k,) of them at distances ``r`` (k,) Å, between two elements.

    An element may be a mixture: a tuple of (element, share) pairs.
    """

    a: object
    b: object
    r: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class CellContents:
    """Everything in a unit cell.

    Attributes
    ----------
    source : where this is from and what it assumes, a sentence
    volume : Å³
    atoms : element -> number in the cell
    pairs : tuple of Pairs, neighbours within NEAR
    uncertainty : relative, of the scattering of the cell: what is not known of its contents
    """

    source: str
    volume: float
    atoms: dict
    pairs: tuple
    uncertainty: float

    @property
    def electrons(self) -> float:
        """Σ Z of the cell."""
        return sum(n * tiny_pse.table(e).atomic_number() for e, n in self.atoms.items())

    def sum_of_squares(self, s) -> np.ndarray:
        """Σ f² in electrons² per cell at |s| (m,) in 1/Å."""
        return sum(n * atom_form_factor(e, s) ** 2 for e, n in self.atoms.items())

    def compton(self, s) -> np.ndarray:
        """Incoherent scattering in electrons² per cell at |s| (m,) in 1/Å, see ``structure.factors.incoherent``."""
        return sum(n * incoherent(e, s) for e, n in self.atoms.items())

    def interference(self, s) -> np.ndarray:
        """Interference of neighbours, less that of the hole around each atom, electrons² per cell at |s| (m,) in 1/Å.

        ``Σ w(r) f_i f_j sin(qr)/(qr) - (Σ f)²/V ∫ 4π r² w(r) sin(qr)/(qr) dr`` with w falling from 1 to 0 between the
        limits NEAR. The integral of q² times this over all q is -2π² (Σ Z)² / V.
        """
        s = np.asarray(s, dtype=float)
        total = np.zeros(len(s))
        for pair in self.pairs:
            near = pair.number * _window(pair.r)
            total += _amplitude(pair.a, s) * _amplitude(pair.b, s) * (near @ np.sinc(2 * np.outer(pair.r, s)))
        r = (np.arange(400) + 0.5) * NEAR[1] / 400
        hole = (4 * math.pi * r**2 * _window(r)) @ np.sinc(2 * np.outer(r, s)) * NEAR[1] / 400
        amplitude = sum(n * atom_form_factor(e, s) for e, n in self.atoms.items())
        return total - amplitude**2 / self.volume * hole


def _window(r: np.ndarray) -> np.ndarray:
    """1 below NEAR[0], 0 beyond NEAR[1], half a cosine between."""
    t = np.clip((r - NEAR[0]) / (NEAR[1] - NEAR[0]), 0, 1)
    return 0.5 * (1 + np.cos(math.pi * t))


def _amplitude(element, s: np.ndarray) -> np.ndarray:
    if isinstance(element, str):
        return atom_form_factor(element, s)
    return sum(share * atom_form_factor(e, s) for e, share in element)


def contents_of_structure(structure: Structure, bulk_solvent: bool = True, hydrogens: bool | None = None):
    """Contents from the atoms of a model.

    Parameters
    ----------
    structure : asymmetric unit with its space group; occupancies count
    bulk_solvent : fill with water what the atoms leave of the cell, PROTEIN_VOLUME for each dalton of them
    hydrogens : add those that a protein of this composition has; None: where the model has none

    Returns
    -------
    CellContents

    Raises
    ------
    DiffuseError
        If the atoms need more room than the cell has.
    """
    weight = structure.occupancy * structure.multiplicity
    atoms = {e: float(weight[structure.element == e].sum()) for e in sorted(set(structure.element.tolist()))}
    pairs = list(_pairs_of_structure(structure))
    notes = [f"{sum(atoms.values()):.0f} atoms of the model"]
    missing = hydrogens if hydrogens is not None else "H" not in atoms and "D" not in atoms
    if missing:
        # water molecules of the model have two each, the rest 1.57 for each carbon
        water = structure.residue_name == "HOH"
        oxygens = float(weight[water & (structure.element == "O")].sum())
        bound = 2 * oxygens + average_residue()["H"] / average_residue()["C"] * atoms.get("C", 0.0)
        pairs += _hydrogen_pairs(atoms, bound)
        atoms = {**atoms, "H": atoms.get("H", 0.0) + bound}
        notes.append(f"{bound:.0f} hydrogens that it lacks")
    volume = structure.cell.volume()
    contents = CellContents("; ".join(notes), volume, atoms, tuple(pairs), 0.02 if bulk_solvent else 0.01)
    return _add_water(contents, "absolute_scale.model") if bulk_solvent else contents


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
    letters = _letters(sequence)
    symmetry = _symmetry(unit_cell, hall_symbol)
    if copies is None:
        copies = matthews_rupp(symmetry, n_residues=len(letters), n_bases=0, out=StringIO()).n_copies
        guess = f"{copies} in the asymmetric unit by Matthews' statistics"
    else:
        guess = f"{copies} in the asymmetric unit"
    if copies < 1:
        raise DiffuseError(f"absolute_scale.copies={copies}: at least one is needed")
    number = copies * symmetry.space_group().order_z()
    table = np.sum([_RESIDUES[x] for x in letters], axis=0) * number
    atoms = {e: float(n) for e, n in zip(_RESIDUE_ELEMENTS, table) if n}
    atoms["H"] += 2 * number  # ends of the chain
    atoms["O"] += number
    return _protein(atoms, symmetry, f"sequence of {len(letters)} residues, {guess}", "absolute_scale.sequence", 0.02)


def average_contents(unit_cell, hall_symbol: str) -> CellContents:
    """Contents of a crystal of which nothing is known: protein of average composition by Matthews' statistics.

    unit_cell : six floats, Å and degrees; hall_symbol : of the space group
    """
    symmetry = _symmetry(unit_cell, hall_symbol)
    residues = matthews_rupp(symmetry, out=StringIO()).n_residues * symmetry.space_group().order_z()
    atoms = {e: n * residues for e, n in average_residue().items()}
    note = f"{residues:.0f} average protein residues in the cell by Matthews' statistics"
    return _protein(atoms, symmetry, note, "unit cell", 0.04)


def average_residue() -> dict:
    """Atoms of the average residue of proteins, element -> number."""
    total = sum(_AVERAGE.values())
    table = sum(share / total * np.array(_RESIDUES[x]) for x, share in _AVERAGE.items())
    return {e: float(n) for e, n in zip(_RESIDUE_ELEMENTS, table) if n}


def _symmetry(unit_cell, hall_symbol: str):
    return crystal.symmetry(unit_cell=tuple(unit_cell), space_group=sgtbx.space_group(hall_symbol))


def _letters(sequence: str) -> str:
    path = Path(sequence)
    if path.is_file():
        try:
            chains, _ = bioinformatics.any_sequence_format(str(path))
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise DiffuseError(f"absolute_scale.sequence={sequence}: cannot be read ({error})") from None
        if not chains:
            raise DiffuseError(f"absolute_scale.sequence={sequence}: no sequence in this file; give FASTA")
        letters = "".join(chain.sequence for chain in chains)
    elif "." in sequence or "/" in sequence:
        raise DiffuseError(f"absolute_scale.sequence={sequence}: no such file; give a FASTA file, or the letters")
    else:
        letters = sequence
    letters = "".join(letters.split()).rstrip("*").upper()
    unknown = sorted(set(letters) - set(_RESIDUES))
    if unknown or not letters:
        what = f"{', '.join(unknown)}: no amino acid" if unknown else "no letters"
        raise DiffuseError(f"absolute_scale.sequence={sequence[:40]}: {what}; give one-letter codes of a protein")
    if bioinformatics.composition_from_sequence(letters)[1] and len(letters) > 10:
        raise DiffuseError(
            f"absolute_scale.sequence={sequence[:40]}: this is a nucleic acid; give coordinates (absolute_scale.model)"
        )
    return letters


def _protein(atoms: dict, symmetry, note: str, name: str, uncertainty: float) -> CellContents:
    heavy = {e: n for e, n in atoms.items() if e != "H"}
    total = sum(heavy.values())
    mean = tuple((e, n / total) for e, n in heavy.items())
    r = _NEIGHBOURS_FROM + 0.1 * np.arange(len(_NEIGHBOURS))
    pairs = [Pairs(mean, mean, r, total * np.array(_NEIGHBOURS)), *_hydrogen_pairs(heavy, atoms["H"])]
    return _add_water(CellContents(note, symmetry.unit_cell().volume(), atoms, tuple(pairs), uncertainty), name)


def _hydrogen_pairs(heavy: dict, number: float) -> list:
    """Ordered pairs of ``number`` hydrogens with what they are bound to."""
    total = sum(n for e, n in heavy.items() if e != "H")
    mean = tuple((e, n / total) for e, n in heavy.items() if e != "H")
    r, n = zip((_HYDROGEN_BOND, 1.0), _HYDROGEN_NEXT)
    return [Pairs("H", mean, np.array(r), 2 * number * np.array(n))]


def _mass(atoms: dict) -> float:
    return sum(n * tiny_pse.table(e).weight() for e, n in atoms.items())


def water_molecules(volume: float, mass: float) -> float:
    """Molecules of water that fill what molecules of ``mass`` daltons leave of ``volume`` Å³."""
    return WATER_DENSITY * max(volume - PROTEIN_VOLUME * mass, 0.0)


def _add_water(contents: CellContents, name: str) -> CellContents:
    """Water in what the atoms leave of the cell, with its own neighbours."""
    mass = _mass(contents.atoms)
    left = contents.volume - PROTEIN_VOLUME * mass
    if left < -0.1 * contents.volume:
        raise DiffuseError(
            f"{name}: {mass / 1000:.1f} kDa need more room than the unit cell has, "
            f"{contents.volume:.0f} Å³; check the space group and the number of copies"
        )
    n = water_molecules(contents.volume, mass)
    source = (
        f"{contents.source}; water fills the {100 * max(left, 0) / contents.volume:.0f} % of the cell that "
        f"{PROTEIN_VOLUME} Å³ for each dalton leave"
    )
    if n == 0:
        return replace(contents, source=source)
    atoms = dict(contents.atoms)
    atoms["O"] = atoms.get("O", 0.0) + n
    atoms["H"] = atoms.get("H", 0.0) + 2 * n
    r, width, neighbours = _WATER_SHELL
    offsets = np.linspace(-2.5, 2.5, 11)
    share = np.exp(-(offsets**2) / 2)
    beyond = np.arange(_WATER_BEYOND[0] + 0.025, NEAR[1], 0.05)
    pairs = (
        *contents.pairs,
        Pairs("O", "H", np.array([WATER_OH]), np.array([4 * n])),
        Pairs("H", "H", np.array([WATER_HH]), np.array([2 * n])),
        Pairs("O", "O", r + width * offsets, n * neighbours * share / share.sum()),
        Pairs("O", "O", beyond, n * _WATER_BEYOND[1] * WATER_DENSITY * 4 * math.pi * beyond**2 * 0.05),
    )
    return replace(contents, source=source, atoms=atoms, pairs=pairs)


def _pairs_of_structure(structure: Structure):
    """Neighbours within NEAR among all atoms of the crystal, by elements, in steps of 0.02 Å."""
    atoms = structure.expand()
    site = atoms.site_frac - np.floor(atoms.site_frac)
    inverse = np.linalg.inv(structure.orthogonalization)
    margin = NEAR[1] * np.linalg.norm(inverse, axis=1)
    steps = [range(-math.ceil(m), math.ceil(m) + 1) for m in margin]
    around, which = [], []
    for shift in itertools.product(*steps):
        moved = site + np.array(shift)
        near = np.all((moved > -margin) & (moved < 1 + margin), axis=1)
        around.append(moved[near])
        which.append(np.flatnonzero(near))
    trees = [cKDTree(x @ structure.orthogonalization.T) for x in (site, np.concatenate(around))]
    found = trees[0].sparse_distance_matrix(trees[1], NEAR[1], output_type="coo_matrix")
    i, j, distance = found.row, np.concatenate(which)[found.col], found.data
    conformers = (atoms.altloc[i] != atoms.altloc[j]) & (atoms.altloc[i] != "") & (atoms.altloc[j] != "")
    real = (distance > 0.7) & ~conformers  # nearer ones are alternatives of one another
    i, j, distance = i[real], j[real], distance[real]
    number = atoms.occupancy[i] * atoms.occupancy[j]
    elements, kind = np.unique(atoms.element, return_inverse=True)
    edges = np.arange(0.7, NEAR[1] + 0.02, 0.02)
    for a, b in itertools.product(range(len(elements)), repeat=2):
        mine = (kind[i] == a) & (kind[j] == b)
        counts, sums = (
            np.histogram(distance[mine], edges, weights=x)[0] for x in (number[mine], (number * distance)[mine])
        )
        used = counts > 0
        if used.any():
            yield Pairs(str(elements[a]), str(elements[b]), sums[used] / counts[used], counts[used])
