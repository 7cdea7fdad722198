"""Structures from arrays, and from PDB and mmCIF files read by iotbx."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import iotbx.pdb
import numpy as np
from cctbx import adptbx, crystal, sgtbx
from cctbx.array_family import flex
from cctbx.eltbx import xray_scattering
from iotbx.pdb import hierarchy as pdb_hierarchy
from libtbx.utils import Sorry

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import SPECIAL_POSITION_DISTANCE, Structure
from dials_diffuse.structure.tensors import symmetric_tensor

logger = logging.getLogger("dials.diffuse.structure")

#: a smaller cell is the dummy CRYST1 record of a file without a crystal (Å³)
_SMALLEST_CELL = 8.0

#: SCALE records that stretch the axes given by CRYST1 by more than this are wrong
_SCALE_TOLERANCE = 0.02

#: displacement tensors may have eigenvalues so little below 0 by the rounding of ANISOU records, Å²
_ROUNDING = 2e-4

#: atoms nearer than this, Å, that are there at the same time, are one atom given twice
_SAME_ATOM = 0.3


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
    hetero=False,
) -> Structure:
    """A Structure from arrays; everything but elements and sites may be one value for all atoms.

    Parameters
    ----------
    unit_cell : six floats, Å and degrees
    space_group : Hermann-Mauguin symbol, or ``Hall: ...``
    element : sequence of n chemical symbols
    site_frac : (n, 3), fractional coordinates; atoms very near to special positions are moved onto them
    u : Å²; a number, (n,) numbers, or (n, 3, 3) Cartesian tensors
    occupancy, chain, residue, residue_name, name, altloc, hetero, scattering_type : a value or n values; the default of
        the scattering type is the element, that of the name too
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
        hetero=np.broadcast_to(np.asarray(hetero, dtype=bool), (n,)).copy(),
    )
    _check_occupancies(structure, "structure")
    lowest = np.linalg.eigvalsh(structure.u_cart)[:, 0]
    if lowest.min() < -_ROUNDING:
        raise DiffuseError(f"structure.u: atom {lowest.argmin()} has a negative eigenvalue, {lowest.min():.3g} Å²")
    return _settle_special_positions(structure)


def load_structure(path) -> Structure:
    """Read the atoms of a PDB or mmCIF file: of the first model, hydrogens and alternate conformers included.

    Occupancies stay as they are. An atom nearer than half an ångström to a special position is moved onto it when its
    occupancy is 1; with a lower one it is taken as cctbx and the PDB take it, as one of several partial copies.
    Displacement tensors with negative eigenvalues are replaced by the nearest ones without, with a warning.

    Parameters
    ----------
    path : coordinate file

    Raises
    ------
    DiffuseError
        If the file cannot be read, or lacks atoms, the unit cell, the space group, or the element of an atom, or if
        occupancies are negative or all 0.
    """
    root, symmetry, scale = _read(path)
    if root.models_size() > 1:
        logger.warning("%s: %d models, only the first is used", path, root.models_size())
    structure = _from_hierarchy(_one_model(root, 0), symmetry, scale, path)
    _warn_of_doubles(structure, path)
    return structure


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
        hetero=np.array([atom.hetero for atom in labels]),
    )
    _check_occupancies(structure, path)
    return _settle_special_positions(replace(structure, u_cart=_without_negative(structure, path)))


def _check_occupancies(structure: Structure, source) -> None:
    lowest = structure.occupancy.argmin()
    if structure.occupancy[lowest] < 0:
        raise DiffuseError(
            f"{source}: atom {_label(structure, lowest)} has an occupancy of {structure.occupancy[lowest]:g}; "
            "correct or remove it"
        )
    if not structure.occupancy.any():
        raise DiffuseError(f"{source}: all occupancies are 0, so that nothing scatters; correct them")


def _without_negative(structure: Structure, path) -> np.ndarray:
    """(n, 3, 3) float64, Å², the displacement tensors with negative eigenvalues set to 0."""
    values, vectors = np.linalg.eigh(structure.u_cart)
    wrong = values[:, 0] < 0
    if not wrong.any():
        return structure.u_cart
    lowest = values[:, 0].argmin()
    if values[lowest, 0] < -_ROUNDING:
        logger.warning(
            "%s: %d atoms have negative mean square displacements (the lowest, %.3g Å², %s); they are taken as 0",
            path,
            np.count_nonzero(values[:, 0] < -_ROUNDING),
            values[lowest, 0],
            _label(structure, lowest),
        )
    nearest = (vectors * np.maximum(values, 0)[:, None, :]) @ vectors.transpose(0, 2, 1)
    return np.where(wrong[:, None, None], nearest, structure.u_cart)


def _warn_of_doubles(structure: Structure, path) -> None:
    """Say so when atoms, or symmetry copies of them, are in the same place at the same time."""
    table = structure.xray_structure.pair_asu_table(distance_cutoff=_SAME_ATOM).extract_pair_sym_table()
    occupancy, altloc = structure.occupancy, structure.altloc
    doubles = [
        (i, j)
        for i, partners in enumerate(table)
        for j, _ in partners.items()
        if occupancy[i] + occupancy[j] > 1.01 and (altloc[i] == altloc[j] or not altloc[i] or not altloc[j])
    ]
    if doubles:
        logger.warning(
            "%s: %d pairs of atoms are less than %g Å apart, symmetry copies included, such as %s and %s; "
            "are atoms given twice, or more than the asymmetric unit?",
            path,
            len(doubles),
            _SAME_ATOM,
            *(_label(structure, k) for k in doubles[0]),
        )


def _label(structure: Structure, i: int) -> str:
    parts = (structure.name, structure.residue_name, structure.chain, structure.residue)
    return " ".join(str(part[i]).strip() for part in parts)


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
