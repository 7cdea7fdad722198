"""What a coordinate file says of its atoms and its crystal, before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from cctbx import crystal
from iotbx.pdb import hierarchy as pdb_hierarchy

from dials_diffuse.structure.hierarchy import make_hierarchy, selected


@dataclass(frozen=True, eq=False)
class Records:
    """The atoms of one model in the order of the file; all arrays have one entry per atom.

    Attributes
    ----------
    name, altloc, chain, residue, residue_name : (n,) str, as of :class:`Structure`
    element, charge : (n,) str, what the file has there, without blanks; empty if it has nothing
    hetero : (n,) bool
    site : (n, 3) float64, Å, Cartesian frame of the file
    occupancy : (n,) float64, NaN where the file has none
    u_iso : (n,) float64, Å², from B; NaN where the file has none
    u_aniso : (n, 3, 3) float64, Å², Cartesian frame of the file; NaN where the file has none
    """

    name: np.ndarray
    altloc: np.ndarray
    chain: np.ndarray
    residue: np.ndarray
    residue_name: np.ndarray
    element: np.ndarray
    charge: np.ndarray
    hetero: np.ndarray
    site: np.ndarray
    occupancy: np.ndarray
    u_iso: np.ndarray
    u_aniso: np.ndarray

    @property
    def n_atoms(self) -> int:
        return len(self.name)

    def take(self, atoms) -> Records:
        """Some of the atoms; atoms : (n,) bool or integer array, or a slice"""
        return Records(**{field.name: getattr(self, field.name)[atoms] for field in fields(self)})

    @classmethod
    def joined(cls, parts) -> Records:
        """The atoms of several, one after another."""
        return cls(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(cls)})

    @cached_property
    def hierarchy(self) -> pdb_hierarchy.root:
        """An iotbx hierarchy whose atoms come in the order of the arrays; for selections."""
        return make_hierarchy(self, self.site, np.zeros(self.n_atoms, int), np.nan_to_num(self.u_iso), self.u_aniso)

    def select(self, selection: str) -> np.ndarray:
        """(n,) bool, the atoms that a selection names, see :meth:`Structure.select`."""
        return selected(self.hierarchy, selection)

    def label(self, i: int) -> str:
        """An atom in words: name, residue name, chain and residue number."""
        parts = (self.name, self.residue_name, self.chain, self.residue)
        return " ".join(str(part[i]).strip() for part in parts if str(part[i]).strip())


@dataclass(frozen=True, eq=False)
class NcsOperator:
    """A copy of the atoms by non-crystallographic symmetry, r' = rotation r + shift.

    Attributes
    ----------
    name : its number in the file
    rotation : (3, 3) float64; shift : (3,) float64, Å; Cartesian frame of the file
    given : does the file say that it has the copy's coordinates?
    """

    name: str
    rotation: np.ndarray
    shift: np.ndarray
    given: bool

    @property
    def is_identity(self) -> bool:
        return np.allclose(self.rotation, np.eye(3), atol=1e-5) and np.allclose(self.shift, 0, atol=1e-4)


@dataclass(frozen=True, eq=False)
class Content:
    """A coordinate file, read.

    Attributes
    ----------
    models : tuple of Records
    symmetry : unit cell and space group; either may be None
    scale : (3, 3) and (3,) float64 from Cartesian to fractional coordinates as the file has them, or None
    operators : tuple of NcsOperator
    residual : does the file say that its B factors lack the motion of the TLS groups in its header?
    tls : function from an iotbx hierarchy of the first model to iotbx's TLS parameters (t, l, s, origin,
        selection_string), or nothing; errors of iotbx pass through
    shared_positions : is an occupancy below 1 on a special position that of the site, as in small-molecule CIF files,
        not that of each of several copies as in PDB files?
    """

    models: tuple
    symmetry: crystal.symmetry
    scale: tuple | None
    operators: tuple
    residual: bool
    tls: Callable
    shared_positions: bool = False
