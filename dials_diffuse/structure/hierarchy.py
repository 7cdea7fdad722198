"""Hierarchies of iotbx from arrays, and what atom selections find in them."""

from __future__ import annotations

import numpy as np
from cctbx import adptbx
from iotbx.pdb import hierarchy as pdb_hierarchy
from libtbx.utils import Sorry

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.tensors import six_elements


def make_hierarchy(atoms, site_cart, copy, u_iso, u_aniso) -> pdb_hierarchy.root:
    """A hierarchy whose atoms come in the order of the arrays.

    Names are cut where they are longer than iotbx can keep them: those of residues after three characters or, in later
    versions, five.

    Parameters
    ----------
    atoms : has the arrays chain, residue, residue_name, altloc, name, element, hetero, occupancy of n atoms
    site_cart : (n, 3) float64, Å
    copy : (n,) int64, symmetry copy; a change begins another chain
    u_iso : (n,) float64, Å²
    u_aniso : (n, 3, 3) float64, Å²; isotropic where it is NaN
    """
    root, model = pdb_hierarchy.root(), pdb_hierarchy.model()
    root.append_model(model)
    sites, b = site_cart.tolist(), (u_iso * adptbx.u_as_b(1.0)).tolist()
    tensors, six = np.isfinite(u_aniso).all(axis=(1, 2)), six_elements(u_aniso).tolist()
    longest = _longest_residue_name()
    chain = residue = group = None
    last = (None, None, None)
    for i, text in enumerate(atoms.residue):
        key = (copy[i], atoms.chain[i]), text, (atoms.altloc[i], atoms.residue_name[i])
        if chain is None or key[0] != last[0]:
            chain = pdb_hierarchy.chain(id=str(atoms.chain[i]))
            model.append_chain(chain)
        if key[:2] != last[:2]:
            residue = pdb_hierarchy.residue_group(resseq=str(text[:-1]), icode=str(text[-1]))
            chain.append_residue_group(residue)
        if key != last:
            name = str(atoms.residue_name[i])[:longest]
            group = pdb_hierarchy.atom_group(altloc=str(atoms.altloc[i])[:1], resname=name)
            residue.append_atom_group(group)
        last = key
        atom = pdb_hierarchy.atom()
        atom.set_name(str(atoms.name[i])[:4])
        atom.set_element(str(atoms.element[i])[:2].upper())
        atom.set_xyz(tuple(sites[i]))
        atom.set_occ(float(atoms.occupancy[i]))
        atom.set_b(b[i])
        atom.set_hetero(bool(atoms.hetero[i]))
        if tensors[i]:
            atom.set_uij(tuple(six[i]))
        group.append_atom(atom)
    root.atoms_reset_serial()
    return root


def selected(root, selection: str) -> np.ndarray:
    """(n,) bool, the atoms of a hierarchy that a selection names; see :meth:`Structure.select`."""
    try:
        chosen = root.atom_selection_cache().selection(selection)
    except (Sorry, RuntimeError, ValueError) as error:  # cctbx's syntax errors share no class below these
        reason = str(error).splitlines() or [type(error).__name__]
        raise DiffuseError(f"selection={selection!r}: not understood ({reason[0]})") from None
    return chosen.as_numpy_array()


def _longest_residue_name() -> int:
    try:
        pdb_hierarchy.atom_group(altloc="", resname="ABCDE")
    except (RuntimeError, ValueError):
        return 3
    return 5
