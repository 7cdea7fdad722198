"""Atoms of a crystal structure as plain arrays, read by iotbx."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import iotbx.pdb
import numpy as np
from cctbx import adptbx, crystal, sgtbx, uctbx, xray
from cctbx.array_family import flex
from cctbx.eltbx import xray_scattering
from iotbx.pdb import hierarchy as pdb_hierarchy
from libtbx.utils import Sorry

from dials_diffuse.errors import DiffuseError

logger = logging.getLogger("dials.diffuse.structure")

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
)

#: two symmetry mates of an atom that are closer than this (Å) are one atom on a special position, as in cctbx
SPECIAL_POSITION_DISTANCE = 0.5

#: a smaller cell is the dummy CRYST1 record of a file without a crystal (Å³)
_SMALLEST_CELL = 8.0

#: SCALE records that stretch the axes given by CRYST1 by more than this are wrong
_SCALE_TOLERANCE = 0.02


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
        return sgtbx.space_group(self.hall_symbol)

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
        """The same atoms in the same order as a cctbx structure (do not modify it)."""
        scatterers = []
        for i in range(self.n_atoms):
            u = self.u_cart[i]
            if self.isotropic[i]:
                displacement = float(self.u_iso[i])
            else:
                six = (u[0, 0], u[1, 1], u[2, 2], u[0, 1], u[0, 2], u[1, 2])
                displacement = adptbx.u_cart_as_u_star(self.cell, tuple(map(float, six)))
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
        """The same atoms at rest: U = 0."""
        return replace(self, u_cart=np.zeros_like(self.u_cart))

    def in_cell(self, unit_cell) -> Structure:
        """The same fractional coordinates and Cartesian displacements in another cell (six floats, Å, degrees)."""
        return replace(self, unit_cell=tuple(float(x) for x in unit_cell))

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
        try:
            chosen = self.hierarchy.atom_selection_cache().selection(selection)
        except (Sorry, RuntimeError, ValueError) as error:  # cctbx's syntax errors share no class below these
            raise DiffuseError(f"selection={selection!r}: not understood ({str(error).splitlines()[0]})") from None
        return chosen.as_numpy_array()

    @cached_property
    def hierarchy(self) -> pdb_hierarchy.root:
        """An iotbx hierarchy whose atoms come in the order of the arrays."""
        root, model = pdb_hierarchy.root(), pdb_hierarchy.model()
        sites = self.site_cart.tolist()
        root.append_model(model)
        chain = residue = atoms = None
        last = (None, None, None)
        for i in range(self.n_atoms):
            key = ((self.copy[i], self.chain[i]), self.residue[i], (self.altloc[i], self.residue_name[i]))
            if chain is None or key[0] != last[0]:
                chain = pdb_hierarchy.chain(id=str(self.chain[i]))
                model.append_chain(chain)
            if key[:2] != last[:2]:
                text = str(self.residue[i])
                residue = pdb_hierarchy.residue_group(resseq=text[:-1], icode=text[-1])
                chain.append_residue_group(residue)
            if key != last:
                atoms = pdb_hierarchy.atom_group(altloc=str(self.altloc[i]), resname=str(self.residue_name[i]))
                residue.append_atom_group(atoms)
            last = key
            atom = pdb_hierarchy.atom()
            atom.set_name(str(self.name[i]))
            atom.set_element(str(self.element[i]).upper())
            atom.set_xyz(tuple(sites[i]))
            atom.set_occ(float(self.occupancy[i]))
            atom.set_b(float(adptbx.u_as_b(self.u_iso[i])))
            atoms.append_atom(atom)
        root.atoms_reset_serial()
        return root

    def expand(self) -> Structure:
        """All atoms of the unit cell as a structure in P1.

        The copies come one after another in the order of the operators; each is moved as a whole by a lattice vector so
        that the mean of its sites lies in the cell. Of the mates that coincide on a special position only the first is
        kept, as cctbx does.
        """
        sites, tensors, atoms, copies = [], [], [], []
        special = np.flatnonzero(self.multiplicity < self.space_group.order_z())
        taken = {i: [] for i in special}
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
        atoms = np.concatenate(atoms)
        return replace(
            self.take(atoms),
            hall_symbol="P 1",
            site_frac=np.concatenate(sites),
            u_cart=np.concatenate(tensors),
            multiplicity=np.ones(len(atoms), dtype=np.int64),
            copy=np.concatenate(copies),
        )

    def _coincides(self, site, others) -> bool:
        for other in others:
            difference = site - other
            difference = difference - np.rint(difference)
            if np.linalg.norm(self.orthogonalization @ difference) < SPECIAL_POSITION_DISTANCE:
                return True
        return False


def make_structure(
    unit_cell,
    space_group: str,
    element,
    site_frac,
    u=0.2,
    occupancy=1.0,
    scattering_type=None,
    chain="A",
    residue="   1 ",
    residue_name="UNK",
    name=None,
    altloc="",
) -> Structure:
    """A Structure from arrays; everything but elements and sites may be one value for all atoms.

    Parameters
    ----------
    unit_cell : six floats, Å and degrees
    space_group : Hermann-Mauguin symbol, or ``Hall: ...``
    element : sequence of n chemical symbols
    site_frac : (n, 3), fractional coordinates; atoms very near to special positions are moved onto them
    u : Å²; a number, (n,) numbers, or (n, 3, 3) Cartesian tensors
    occupancy, chain, residue, residue_name, name, altloc, scattering_type : a value or n values; the default of the
        scattering type is the element, that of the name too
    """
    element = np.array([str(e).strip().capitalize() for e in element])
    n = len(element)
    group = sgtbx.space_group_info(space_group).group()
    u = np.asarray(u, dtype=float)
    if u.ndim < 3:
        u = np.broadcast_to(u, (n,))[:, None, None] * np.eye(3)

    def text(value):
        return np.broadcast_to(np.asarray(value, dtype=str), (n,)).copy()

    structure = Structure(
        unit_cell=tuple(float(x) for x in unit_cell),
        hall_symbol=group.type().hall_symbol(),
        element=element,
        scattering_type=text(element if scattering_type is None else scattering_type),
        site_frac=np.array(site_frac, dtype=float).reshape(n, 3),
        occupancy=np.broadcast_to(np.asarray(occupancy, dtype=float), (n,)).copy(),
        u_cart=np.array(u, dtype=float),
        multiplicity=np.full(n, group.order_z(), dtype=np.int64),
        copy=np.zeros(n, dtype=np.int64),
        chain=text(chain),
        residue=text(residue),
        residue_name=text(residue_name),
        name=text(element if name is None else name),
        altloc=text(altloc),
    )
    return _settle_special_positions(structure)


def load_structure(path) -> Structure:
    """Read the atoms of a PDB or mmCIF file: of the first model, hydrogens and alternate conformers included.

    Occupancies stay as they are. An atom nearer than half an ångström to a special position is moved onto it when its
    occupancy is 1; with a lower one it is taken as cctbx and the PDB take it, as one of several partial copies.

    Parameters
    ----------
    path : coordinate file

    Raises
    ------
    DiffuseError
        If the file cannot be read, or lacks atoms, the unit cell, the space group, or the element of an atom.
    """
    root, symmetry, scale = _read(path)
    if root.models_size() > 1:
        logger.warning("%s: %d models, only the first is used", path, root.models_size())
    return _from_hierarchy(_one_model(root, 0), symmetry, scale, path)


def load_models(path) -> tuple:
    """Read all models of a PDB or mmCIF file, each as by :func:`load_structure`.

    Returns
    -------
    tuple of Structure
    """
    root, symmetry, scale = _read(path)
    return tuple(_from_hierarchy(_one_model(root, i), symmetry, scale, path) for i in range(root.models_size()))


def file_frame(path) -> tuple:
    """From the Cartesian frame of a file to that of a Structure read from it, which differ where SCALE records say so.

    Returns
    -------
    rotation : (3, 3) float64, for tensors
    position : function of a (3,) point in the file's frame, Å
    """
    _, symmetry, (matrix, shift) = _read(path)
    orthogonalization = np.array(symmetry.unit_cell().orthogonalization_matrix()).reshape(3, 3)
    return _nearest_rotation(orthogonalization @ matrix), lambda point: orthogonalization @ (matrix @ point + shift)


def fractional_frame(path) -> tuple:
    """(3, 3) and (3,) float64 from the Cartesian coordinates of a file, Å, to the fractional ones of a Structure."""
    return _read(path)[2]


def _read(path) -> tuple:
    """The hierarchy and the crystal symmetry of a file, and how its coordinates become fractional ones."""
    path = Path(path)
    if not path.is_file():
        raise DiffuseError(f"{path}: no such file; give a PDB or mmCIF file")
    try:
        source = iotbx.pdb.input(file_name=str(path))
        root = source.construct_hierarchy()
        symmetry = source.crystal_symmetry()
    except (Sorry, RuntimeError, ValueError, KeyError, AssertionError) as error:  # whatever iotbx meets in a bad file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DiffuseError(f"{path}: cannot be read as PDB or mmCIF ({reason[0]})") from None
    if root.models_size() == 0 or root.atoms_size() == 0:
        raise DiffuseError(f"{path}: contains no atoms; give a PDB or mmCIF file with coordinates")
    if symmetry is None or symmetry.unit_cell() is None or symmetry.unit_cell().volume() < _SMALLEST_CELL:
        raise DiffuseError(f"{path}: has no unit cell; add a CRYST1 record (PDB) or _cell items (mmCIF)")
    if symmetry.space_group() is None:
        raise DiffuseError(f"{path}: has no space group that cctbx knows; correct the CRYST1 record or _symmetry items")
    return root, symmetry, _scale(source, symmetry.unit_cell(), path)


def _one_model(root, number: int):
    """A hierarchy of one of the models."""
    single = pdb_hierarchy.root()
    single.append_model(root.models()[number].detached_copy())
    return single


def _from_hierarchy(root, symmetry, scale, path) -> Structure:
    atoms = root.atoms()
    labels = [atom.fetch_labels() for atom in atoms]
    cell = symmetry.unit_cell()
    u_iso = atoms.extract_b().as_numpy_array() / adptbx.u_as_b(1.0)
    u_cart = u_iso[:, None, None] * np.eye(3)
    matrix, shift = scale
    frame = _nearest_rotation(np.array(cell.orthogonalization_matrix()).reshape(3, 3) @ matrix)
    for i, atom in enumerate(atoms):
        if atom.uij_is_defined():
            u_cart[i] = frame @ symmetric_tensor(atom.uij) @ frame.T
    sites = atoms.extract_xyz().as_numpy_array().reshape(-1, 3) @ matrix.T + shift
    n = len(labels)
    structure = Structure(
        unit_cell=tuple(cell.parameters()),
        hall_symbol=symmetry.space_group().type().hall_symbol(),
        element=np.array([_element(atom, path) for atom in labels]),
        scattering_type=np.array([_scattering_type(atom, path) for atom in labels]),
        site_frac=sites,
        occupancy=atoms.extract_occ().as_numpy_array(),
        u_cart=u_cart,
        multiplicity=np.full(n, symmetry.space_group().order_z(), dtype=np.int64),
        copy=np.zeros(n, dtype=np.int64),
        chain=np.array([atom.chain_id for atom in labels]),
        residue=np.array([f"{atom.resseq}{atom.icode}" for atom in labels]),
        residue_name=np.array([atom.resname for atom in labels]),
        name=np.array([atom.name for atom in labels]),
        altloc=np.array([atom.altloc for atom in labels]),
    )
    return _settle_special_positions(structure)


def _scale(source, cell, path) -> tuple:
    """(3, 3) and (3,) from the file's coordinates to fractional ones: its SCALE records where they fit the cell."""
    own = np.array(cell.fractionalization_matrix()).reshape(3, 3)
    scale = source.scale_matrix()
    if scale is None or None in scale[0] or None in scale[1]:
        return own, np.zeros(3)
    matrix, shift = np.array(scale[0], dtype=float).reshape(3, 3), np.array(scale[1], dtype=float)
    if np.abs(matrix - own).max() < 1e-6:  # the precision of the records: CRYST1 is the more precise
        return own, shift
    rotation = np.linalg.inv(own) @ matrix
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _SCALE_TOLERANCE:
        logger.warning("%s: the SCALE records contradict CRYST1 and are ignored", path)
        return own, np.zeros(3)
    return matrix, shift


def _nearest_rotation(matrix) -> np.ndarray:
    u, _, vt = np.linalg.svd(matrix)
    return u @ vt


def symmetric_tensor(six) -> np.ndarray:
    """(3, 3) float64 from its elements 11, 22, 33, 12, 13, 23."""
    a, b, c, d, e, f = (float(x) for x in six)
    return np.array([[a, d, e], [d, b, f], [e, f, c]])


def _element(atom, path) -> str:
    element = atom.determine_chemical_element_simple()
    if element is None:
        raise DiffuseError(
            f"{path}: the chemical element of atom {atom.id_str().strip()} is unknown (element={atom.element!r}); "
            "correct its element column"
        )
    element = element.strip().capitalize()
    return "H" if element == "D" else element


def _scattering_type(atom, path) -> str:
    """Label of the atom in the tables of form factors: the element, with its charge where the tables know the ion."""
    element = _element(atom, path)
    charge = atom.charge.strip()
    if charge:
        digits, sign = "".join(c for c in charge if c.isdigit()) or "1", "-" if "-" in charge else "+"
        ion = xray_scattering.get_standard_label(f"{element}{digits}{sign}", exact=True, optional=True)
        if ion is not None:
            return ion
    label = xray_scattering.get_standard_label(element, exact=True, optional=True)
    if label is None:
        raise DiffuseError(f"{path}: no form factors for element {element}; remove or rename atom {atom.name.strip()}")
    return label


def _settle_special_positions(structure: Structure) -> Structure:
    """Move atoms near special positions onto them and set their multiplicity, as cctbx does."""
    settings = crystal.special_position_settings(
        structure.crystal_symmetry, min_distance_sym_equiv=SPECIAL_POSITION_DISTANCE
    )
    sites, tensors = structure.site_frac.copy(), structure.u_cart.copy()
    multiplicity = structure.multiplicity.copy()
    whole = np.flatnonzero(structure.occupancy == 1)
    table = settings.site_symmetry_table(sites_frac=flex.vec3_double(structure.site_frac[whole].tolist()))
    frac = np.linalg.inv(structure.orthogonalization)
    for k in table.special_position_indices():
        i, symmetry = whole[k], table.get(k)
        sites[i] = symmetry.special_op() * tuple(structure.site_frac[i])
        u_star = frac @ tensors[i] @ frac.T
        rotations = [np.array(op.r().as_double()).reshape(3, 3) for op in symmetry.matrices()]
        u_star = np.mean([r @ u_star @ r.T for r in rotations], axis=0)
        tensors[i] = structure.orthogonalization @ u_star @ structure.orthogonalization.T
        multiplicity[i] = symmetry.multiplicity()
    return replace(structure, site_frac=sites, u_cart=tensors, multiplicity=multiplicity)
