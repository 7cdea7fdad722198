"""Vectors between the atoms of a crystal that are nearest to given ones."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.structure.crystal import Structure

#: Å around the cell in which ends of vectors find atoms
_MARGIN = 6.0


@dataclass(frozen=True)
class AtomPair:
    """Two atoms and how far the vector between them is from a given one.

    Attributes
    ----------
    first : name of an atom of the asymmetric unit, such as ``A/ALA 12/CA``
    second : name of the other atom
    operator : of the second one: which symmetry copy it is, in xyz notation, its lattice translation left out
    distance : Å, between the two vectors
    """

    first: str
    second: str
    operator: str
    distance: float


@dataclass(frozen=True)
class VectorMatch:
    """The pairs of a crystal that are near to a vector.

    nearest : the nearest pairs, tuple of AtomPair
    n_pairs : pairs within the radius, for each unit cell
    """

    nearest: tuple
    n_pairs: int


def match_vectors(structure: Structure, vectors: np.ndarray, radius: float, n_nearest: int = 3) -> list:
    """Pairs of atoms whose vector, or a symmetry mate of it, is one of those given.

    Atoms of the asymmetric unit are paired with all atoms of the crystal. Hydrogens are left out where there are
    others.

    Parameters
    ----------
    structure : asymmetric unit
    vectors : (m, 3) float64, Å, Cartesian frame of the coordinates
    radius : Å, pairs that are counted
    n_nearest : pairs that are named for each vector

    Returns
    -------
    list of m VectorMatch
    """
    heavy = structure.element != "H"
    structure = structure.take(heavy) if np.any(heavy) else structure
    content = structure.expand()
    tree, atom = _with_surroundings(content, max(radius, _MARGIN))
    turns = np.array(structure.rotations)
    return [_match(structure, content, tree, atom, turns @ vector, radius, n_nearest) for vector in vectors]


def _with_surroundings(content: Structure, margin: float) -> tuple:
    """Tree of the sites in the cell and within ``margin`` Å of it, Cartesian, and the atom that each belongs to."""
    home = content.site_frac - np.floor(content.site_frac)
    reach = margin * np.linalg.norm(np.linalg.inv(content.orthogonalization), axis=1)  # over the heights of the cell
    most = np.ceil(reach).astype(int)
    sites, atoms = [], []
    for shift in itertools.product(*(range(-m, m + 1) for m in most)):
        site = home + np.array(shift)
        near = np.all((site >= -reach) & (site <= 1 + reach), axis=1)
        sites.append(site[near])
        atoms.append(np.flatnonzero(near))
    return cKDTree(np.concatenate(sites) @ content.orthogonalization.T), np.concatenate(atoms)


def _match(structure, content, tree, atom, mates: np.ndarray, radius: float, n_nearest: int) -> VectorMatch:
    """mates : (m, 3) Å, the vector under the rotation of each operator of the group"""
    ends = structure.site_cart[None, :, :] + mates[:, None, :]
    fractional = ends.reshape(-1, 3) @ np.linalg.inv(structure.orthogonalization).T
    ends = (fractional - np.floor(fractional)) @ structure.orthogonalization.T
    n_ends = tree.query_ball_point(ends, radius, return_length=True).reshape(len(mates), -1)
    distance, place = tree.query(ends)
    nearest, named = [], set()
    for i in np.argsort(distance, kind="stable"):
        first, second = i % structure.n_atoms, atom[place[i]]
        names = _name(structure, first), _name(content, second)
        if frozenset(names) in named:
            continue
        named.add(frozenset(names))
        operator = structure.space_group(int(content.copy[second])).as_xyz()
        nearest.append(AtomPair(*names, operator, float(distance[i])))
        if len(nearest) == n_nearest:
            break
    return VectorMatch(tuple(nearest), round(float((n_ends * structure.share).sum())))


def _name(structure: Structure, i: int) -> str:
    residue = f"{structure.residue_name[i].strip()} {structure.residue[i].strip()}"
    name = structure.name[i].strip() + (f".{structure.altloc[i].strip()}" if structure.altloc[i].strip() else "")
    return f"{structure.chain[i].strip()}/{residue}/{name}"
