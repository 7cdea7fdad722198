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

import numpy as np
from cctbx.eltbx import tiny_pse
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import atom_form_factor, incoherent
from dials_diffuse.structure.residues import average_residue
from dials_diffuse.structure.surroundings import WATER_DENSITY, WATER_HH, WATER_OH

logger = logging.getLogger("dials.diffuse.structure")

#: Å: pairs nearer than the first count fully, those beyond the second are part of the even density
NEAR = (2.8, 3.8)

#: Å³ per dalton of protein, partial specific volume 0.73 cm³/g (Harpaz, Gerstein & Chothia 1994, Structure 2, 641)
PROTEIN_VOLUME = 1.21

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
    water : molecules of bulk water among the atoms
    alternatives : (factor, probability) pairs: so many times the atoms besides the water may be there, water filling
        the rest
    protein : are the atoms besides the water those of a protein, or of small molecules?
    """

    source: str
    volume: float
    atoms: dict
    pairs: tuple
    uncertainty: float
    water: float = 0.0
    alternatives: tuple = ((1.0, 1.0),)
    protein: bool = True

    @property
    def molecules(self) -> dict:
        """The atoms without the bulk water, element -> number."""
        bulk = {"O": self.water, "H": 2 * self.water}
        return {e: n - bulk.get(e, 0.0) for e, n in self.atoms.items() if n > bulk.get(e, 0.0)}

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
        pairs += hydrogen_pairs(atoms, bound)
        atoms = {**atoms, "H": atoms.get("H", 0.0) + bound}
        notes.append(f"{bound:.0f} hydrogens that it lacks")
    volume = structure.cell.volume()
    contents = CellContents(
        "; ".join(notes), volume, atoms, tuple(pairs), 0.02 if bulk_solvent else 0.01, protein=bulk_solvent
    )
    return add_water(contents, "absolute_scale.model") if bulk_solvent else contents


def hydrogen_pairs(heavy: dict, number: float) -> list:
    """Ordered pairs of ``number`` hydrogens with what they are bound to."""
    total = sum(n for e, n in heavy.items() if e != "H")
    mean = tuple((e, n / total) for e, n in heavy.items() if e != "H")
    r, n = zip((_HYDROGEN_BOND, 1.0), _HYDROGEN_NEXT)
    return [Pairs("H", mean, np.array(r), 2 * number * np.array(n))]


def mass_of(atoms: dict) -> float:
    return sum(n * tiny_pse.table(e).weight() for e, n in atoms.items())


def water_molecules(volume: float, mass: float) -> float:
    """Molecules of water that fill what molecules of ``mass`` daltons leave of ``volume`` Å³."""
    return WATER_DENSITY * max(volume - PROTEIN_VOLUME * mass, 0.0)


def add_water(contents: CellContents, name: str) -> CellContents:
    """Water in what the atoms leave of the cell, with its own neighbours."""
    mass = mass_of(contents.atoms)
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
    return replace(contents, source=source, atoms=atoms, pairs=pairs, water=n)


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
