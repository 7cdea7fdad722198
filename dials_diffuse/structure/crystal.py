"""The atoms of a crystal as plain arrays, and what follows from its symmetry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from cctbx import adptbx, crystal, sgtbx, uctbx, xray
from cctbx.array_family import flex
from iotbx.pdb import hierarchy as pdb_hierarchy

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.hierarchy import make_hierarchy, selected
from dials_diffuse.structure.tensors import six_elements, symmetric_tensor

#: per-atom arrays of a Structure
ARRAYS = (
    "element",
    "scattering_type",
    "site_frac",
    "occupancy",
    "u_cart",
    "multiplicity",
    "copy",
    "chain",
    "residue",
    "residue_name",
    "name",
    "altloc",
    "hetero",
)

#: two symmetry mates of an atom that are closer than this (Å) are one atom on a special position, as in cctbx
SPECIAL_POSITION_DISTANCE = 0.5


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms in a unit cell; all arrays have one entry per atom.

    Attributes
    ----------
    unit_cell : six floats, Å and degrees
    hall_symbol : space group that generates the rest of the cell from these atoms, in any setting
    element : (n,) str, chemical symbol as in ``C``, ``Zn``
    scattering_type : (n,) str, label in cctbx's tables of form factors, e.g. ``O1-``
    site_frac : (n, 3) float64, fractional coordinates
    occupancy : (n,) float64
    u_cart : (n, 3, 3) float64, Å², displacement tensor in cctbx's Cartesian frame (PDB convention); isotropic: U 1
    multiplicity : (n,) int64, distinct copies of the atom in the whole cell; below the order of the group on a special
        position, 1 after :meth:`expand`
    copy : (n,) int64, which symmetry copy of the molecule the atom belongs to: number of the operator in the space
        group of the structure it was expanded from; 0 before
    chain, residue, residue_name, name, altloc : (n,) str; residue = number and insertion code
    hetero : (n,) bool, is it a HETATM record?

    Raises
    ------
    DiffuseError
        If there are no atoms, or an array has the wrong shape or values that are not finite.
    """

    unit_cell: tuple
    hall_symbol: str
    element: np.ndarray
    scattering_type: np.ndarray
    site_frac: np.ndarray
    occupancy: np.ndarray
    u_cart: np.ndarray
    multiplicity: np.ndarray
    copy: np.ndarray
    chain: np.ndarray
    residue: np.ndarray
    residue_name: np.ndarray
    name: np.ndarray
    altloc: np.ndarray
    hetero: np.ndarray

    def __post_init__(self):
        n = len(self.element)
        if n == 0:
            raise DiffuseError("structure: no atoms are left; check the file and the selection")
        for key, tail in [(key, ()) for key in ARRAYS if key not in ("site_frac", "u_cart")] + [
            ("site_frac", (3,)),
            ("u_cart", (3, 3)),
        ]:
            if getattr(self, key).shape != (n, *tail):
                raise DiffuseError(f"structure.{key}: shape {getattr(self, key).shape}, needed {(n, *tail)}")
        for key in ("site_frac", "occupancy", "u_cart"):
            if not np.all(np.isfinite(getattr(self, key))):
                raise DiffuseError(f"structure.{key}: has values that are not finite; correct the coordinate file")

    @property
    def n_atoms(self) -> int:
        return len(self.element)

    @cached_property
    def cell(self) -> uctbx.unit_cell:
        return uctbx.unit_cell(self.unit_cell)

    @cached_property
    def space_group(self) -> sgtbx.space_group:
        """The group of ``hall_symbol``, whose operators keep their order: the copies of atoms are numbered by it."""
        group = sgtbx.space_group(self.hall_symbol)
        group.make_tidy()  # many functions of cctbx do so, and by that sort the operators
        return group

    @cached_property
    def orthogonalization(self) -> np.ndarray:
        """(3, 3) float64 O: ``r = O x`` in Å for a column of fractional coordinates x; ``s = h O^-1`` for a row h."""
        return np.array(self.cell.orthogonalization_matrix()).reshape(3, 3)

    @cached_property
    def rotations(self) -> list:
        """(3, 3) float64 Cartesian rotation of each operator of the space group, in its order."""
        o = self.orthogonalization
        inverse = np.linalg.inv(o)
        return [o @ np.array(op.r().as_double()).reshape(3, 3) @ inverse for op in self.space_group]

    @property
    def site_cart(self) -> np.ndarray:
        """(n, 3) float64, Å, cctbx's Cartesian frame."""
        return self.site_frac @ self.orthogonalization.T

    @cached_property
    def isotropic(self) -> np.ndarray:
        """(n,) bool, is the displacement tensor a multiple of 1?"""
        u = self.u_cart
        return np.all(np.abs(u - self.u_iso[:, None, None] * np.eye(3)) <= 1e-9, axis=(1, 2))

    @cached_property
    def u_iso(self) -> np.ndarray:
        """(n,) float64, Å², one third of the trace of U."""
        return np.trace(self.u_cart, axis1=1, axis2=2) / 3

    @cached_property
    def types(self) -> tuple:
        """Scattering types that occur, sorted."""
        return tuple(sorted(set(self.scattering_type.tolist())))

    @cached_property
    def type_index(self) -> np.ndarray:
        """(n,) int64, position of each atom's scattering type in :attr:`types`."""
        return np.searchsorted(np.array(self.types), self.scattering_type)

    @cached_property
    def share(self) -> np.ndarray:
        """(n,) float64, atoms in the cell for each atom and operator: 1, less on a special position."""
        return self.multiplicity / self.space_group.order_z()

    @property
    def crystal_symmetry(self) -> crystal.symmetry:
        return crystal.symmetry(unit_cell=self.cell, space_group=self.space_group)

    @cached_property
    def xray_structure(self) -> xray.structure:
        """The atoms, in this order, as a cctbx structure (do not modify it)."""
        scatterers = []
        for i in range(self.n_atoms):
            u = self.u_cart[i]
            if self.isotropic[i]:
                displacement = float(self.u_iso[i])
            else:
                displacement = adptbx.u_cart_as_u_star(self.cell, tuple(map(float, six_elements(u))))
            scatterers.append(
                xray.scatterer(
                    label=str(self.name[i]),
                    site=tuple(map(float, self.site_frac[i])),
                    u=displacement,
                    occupancy=float(self.occupancy[i]),
                    scattering_type=str(self.scattering_type[i]),
                )
            )
        return xray.structure(
            special_position_settings=self.crystal_symmetry.special_position_settings(
                min_distance_sym_equiv=0.0 if self.space_group.order_z() == 1 else SPECIAL_POSITION_DISTANCE
            ),
            scatterers=flex.xray_scatterer(scatterers),
            non_unit_occupancy_implies_min_distance_sym_equiv_zero=True,
        )

    def take(self, atoms) -> Structure:
        """A structure of some of the atoms.

        atoms : (n,) bool or integer array
        """
        return replace(self, **{key: getattr(self, key)[atoms] for key in ARRAYS})

    def without_displacements(self) -> Structure:
        """The atoms at rest: U = 0."""
        return replace(self, u_cart=np.zeros_like(self.u_cart))

    def in_cell(self, unit_cell) -> Structure:
        """The structure in another cell (six floats, Å, degrees), with its fractional coordinates and Cartesian U."""
        return replace(self, unit_cell=tuple(float(x) for x in unit_cell))

    def change_basis(self, operator: sgtbx.change_of_basis_op) -> Structure:
        """The same crystal in another setting: other axes, another origin, a primitive or a centred cell.

        Where the cell becomes larger or smaller the group gains or loses lattice translations, so that the atoms stay
        the same, as do their intensities per atom. The Cartesian frame turns with the axes, see :func:`turn_of_frame`.

        Raises
        ------
        DiffuseError
            If lattice translations of the new cell are no symmetry of the crystal.
        """
        cell = self.cell.change_basis(operator)
        try:
            group = self.space_group.change_basis(operator)
        except RuntimeError:
            group = None
        ratio = cell.volume() / self.cell.volume()
        if group is None or group.order_z() != round(self.space_group.order_z() * ratio, 6):
            raise DiffuseError(
                f"change of basis {operator.as_abc()}: the new cell of {cell.volume():.1f} Å³ is none of the crystal "
                f"with {self.cell.volume():.1f} Å³ in {self.space_group.info()}"
            )
        turn = turn_of_frame(self.cell, operator)
        matrix = np.array(operator.c().r().as_double()).reshape(3, 3)
        return replace(
            self,
            unit_cell=tuple(cell.parameters()),
            hall_symbol=group.type().hall_symbol(),
            site_frac=self.site_frac @ matrix.T + np.array(operator.c().t().as_double()),
            u_cart=turn @ self.u_cart @ turn.T,
            multiplicity=self.multiplicity * group.order_z() // self.space_group.order_z(),
        )

    def molecule(self) -> Structure:
        """The atoms as one symmetry copy in P 1; of an atom on a special position each copy has its share."""
        return replace(
            self,
            hall_symbol="P 1",
            occupancy=self.occupancy * self.share,
            multiplicity=np.ones_like(self.multiplicity),
        )

    def select(self, selection: str) -> np.ndarray:
        """(n,) bool, the atoms that a selection names.

        Parameters
        ----------
        selection : in cctbx's atom selection syntax, e.g. ``chain A and resseq 1:20 and not element H``

        Raises
        ------
        DiffuseError
            If the selection cannot be understood.
        """
        return selected(self.hierarchy, selection)

    @cached_property
    def hierarchy(self) -> pdb_hierarchy.root:
        """An iotbx hierarchy whose atoms come in the order of the arrays."""
        anisotropic = np.where(self.isotropic[:, None, None], np.nan, self.u_cart)
        return make_hierarchy(self, self.site_cart, self.copy, self.u_iso, anisotropic)

    def expand(self) -> Structure:
        """All atoms of the unit cell as a structure in P1.

        The copies come one after another in the order of the operators; each is moved as a whole by a lattice vector so
        that the mean of its sites lies in the cell. Of the mates that coincide on a special position only the first is
        kept, as cctbx does.
        """
        sites, tensors, atoms, copies = [], [], [], []
        special = np.flatnonzero(self.multiplicity < self.space_group.order_z())
        taken: dict = {i: [] for i in special}
        for number, operator in enumerate(self.space_group):
            r = np.array(operator.r().as_double()).reshape(3, 3)
            rotation = self.rotations[number]
            site = self.site_frac @ r.T + np.array(operator.t().as_double())
            site -= np.floor(site.mean(axis=0) + 1e-9)
            keep = np.ones(self.n_atoms, dtype=bool)
            for i in special:
                if len(taken[i]) == self.multiplicity[i] or self._coincides(site[i], taken[i]):
                    keep[i] = False
                else:
                    taken[i].append(site[i])
            sites.append(site[keep])
            tensors.append((rotation @ self.u_cart @ rotation.T)[keep])
            atoms.append(np.flatnonzero(keep))
            copies.append(np.full(np.count_nonzero(keep), number))
        chosen = np.concatenate(atoms)
        return replace(
            self.take(chosen),
            hall_symbol="P 1",
            site_frac=np.concatenate(sites),
            u_cart=np.concatenate(tensors),
            multiplicity=np.ones(len(chosen), dtype=np.int64),
            copy=np.concatenate(copies),
        )

    def _coincides(self, site, others) -> bool:
        for other in others:
            difference = site - other
            difference = difference - np.rint(difference)
            if np.linalg.norm(self.orthogonalization @ difference) < SPECIAL_POSITION_DISTANCE:
                return True
        return False


def turn_of_frame(cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> np.ndarray:
    """(3, 3) float64, rotation from the Cartesian frame of a cell to that of the same cell with other axes."""
    old, new = (np.array(c.orthogonalization_matrix()).reshape(3, 3) for c in (cell, cell.change_basis(operator)))
    u, _, vt = np.linalg.svd(new @ np.array(operator.c().r().as_double()).reshape(3, 3) @ np.linalg.inv(old))
    return u @ vt


def turned_elements(six, turn: np.ndarray) -> tuple:
    """Six elements of a symmetric tensor, or a tuple of such, in a frame that is turned by :func:`turn_of_frame`."""
    if np.ndim(six) > 1:
        return tuple(turned_elements(one, turn) for one in six)
    return tuple(six_elements(turn @ symmetric_tensor(six) @ turn.T).tolist())
