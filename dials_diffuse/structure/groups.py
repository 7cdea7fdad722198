"""Groups of atoms that move together: residues, chains, stretches of a chain, or what selections name."""

from __future__ import annotations

import numpy as np
from iotbx.pdb import resseq_decode

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure

#: segment: a stretch of a chain without a gap in the residue numbers; molecule: all atoms together
GROUPS = ("atom", "residue", "segment", "chain", "molecule", "selection")


def group_labels(structure: Structure, groups: str, selections=()) -> np.ndarray:
    """The group of each atom.

    Parameters
    ----------
    groups : one of GROUPS
    selections : for ``selection``: one text in cctbx's syntax for each group

    Returns
    -------
    (n,) int64, numbered from 0 in the order of the groups' first atoms, or of the selections

    Raises
    ------
    DiffuseError
        If ``groups`` is not known, or the selections leave atoms out, overlap, or hold nothing.
    """
    choice("groups", groups, GROUPS)
    if groups != "selection":
        if len(selections):
            raise DiffuseError(
                f"groups={groups}: selections are given too; use groups=selection (of rigid_body: body=selection), or "
                "leave them out"
            )
        return _by_labels(structure, groups)
    if not len(selections):
        raise DiffuseError("groups=selection: give one selection for each group")
    labels = np.full(structure.n_atoms, -1)
    for number, text in enumerate(selections):
        chosen = structure.select(text)
        if not chosen.any():
            raise DiffuseError(f"selection={text!r}: holds no atoms")
        if np.any(labels[chosen] >= 0):
            other = selections[labels[chosen].max()]
            raise DiffuseError(f"selections {other!r} and {text!r} share atoms; each atom belongs to one group")
        labels[chosen] = number
    if np.any(labels < 0):
        raise DiffuseError(
            f"{np.count_nonzero(labels < 0)} of {structure.n_atoms} atoms are in none of the {len(selections)} "
            "selections; add one for the rest, such as 'not (...)'"
        )
    return labels


def group_names(structure: Structure, groups: str, selections=()) -> tuple:
    """A name of each group, such as ``A 12`` for a residue or ``A 12 CA`` for an atom, in the order of the labels.

    groups, selections : as for :func:`group_labels`
    """
    if groups == "selection":
        return tuple(selections)
    if groups == "molecule":
        return ("molecule",)
    labels = group_labels(structure, groups)
    chain, residue, name = (np.char.strip(x.astype(str)) for x in (structure.chain, structure.residue, structure.name))
    first = np.unique(labels, return_index=True)[1]
    last = len(labels) - 1 - np.unique(labels[::-1], return_index=True)[1]
    if groups == "chain":
        return tuple(str(chain[i]) for i in first)
    if groups == "segment":
        return tuple(f"{chain[i]} {residue[i]}-{residue[j]}" for i, j in zip(first, last))
    return tuple(f"{chain[i]} {residue[i]}" + (f" {name[i]}" if groups == "atom" else "") for i in first)


def group_centres(structure: Structure, labels: np.ndarray) -> np.ndarray:
    """(groups, 3) float64, Å, mean position of the atoms of each group; labels: as from :func:`group_labels`."""
    number = np.bincount(labels)
    return np.stack([np.bincount(labels, x) for x in structure.site_cart.T], axis=1) / number[:, None]


def _by_labels(structure: Structure, groups: str) -> np.ndarray:
    n = structure.n_atoms
    if groups == "atom":
        return np.arange(n)
    if groups == "molecule":
        return np.zeros(n, dtype=np.int64)
    keys: list = [(int(copy), str(chain)) for copy, chain in zip(structure.copy, structure.chain)]
    if groups == "residue":
        keys = [(*key, str(residue)) for key, residue in zip(keys, structure.residue)]
    elif groups == "segment":
        keys = _segments(keys, structure.residue)
    first: dict = {}
    return np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)


def _segments(keys: list, residue: np.ndarray) -> list:
    """The keys of the chains with the number of the stretch that each atom is in."""
    segment, last, result = 0, None, []
    for key, text in zip(keys, residue):
        number = resseq_decode(text[:-1])
        if last is not None and (key != last[0] or number - last[1] not in (0, 1)):
            segment += 1
        last = key, number
        result.append((*key, segment))
    return result
