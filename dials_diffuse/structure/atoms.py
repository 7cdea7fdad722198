"""Structures from arrays, and from coordinate files."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from cctbx import crystal, sgtbx
from cctbx.array_family import flex
from cctbx.eltbx import xray_scattering

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.coordinate_file import CoordinateFile, read_coordinates
from dials_diffuse.structure.crystal import SPECIAL_POSITION_DISTANCE, Structure
from dials_diffuse.structure.elements import find_elements, report_elements
from dials_diffuse.structure.ncs import operators_to_apply, with_copies
from dials_diffuse.structure.records import Records
from dials_diffuse.structure.thermal import with_all_displacements, with_tls

logger = logging.getLogger("dials.diffuse.structure")

#: displacement tensors may have eigenvalues so little below 0 by the rounding of ANISOU records, Å²
_ROUNDING = 2e-4

#: an atom as near to a special position, Å, is on it
_ON_SPECIAL_POSITION = 0.05

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


def load_structure(path, selection: str | None = None) -> Structure:
    """Read the atoms of a PDB or mmCIF file: of the first model, hydrogens and alternate conformers included.

    What is read, ignored and refused is in docs/input.md. An atom nearer than half an ångström to a special position is
    moved onto it when its occupancy is 1; with a lower one it is taken as cctbx and the PDB take it, as one of several
    partial copies. Displacement tensors with negative eigenvalues are replaced by the nearest ones without, with a
    warning.

    Parameters
    ----------
    path : coordinate file
    selection : the atoms that are wanted, in cctbx's syntax; the others may be what they like

    Raises
    ------
    DiffuseError
        If the file cannot be read, or lacks atoms, the unit cell, or the space group; if the element of a selected atom
        is not known, occupancies of them are negative or all 0, or the selection holds nothing.
    """
    file = read_coordinates(path)
    if len(file.models) > 1:
        logger.warning("%s: %d models, only the first is used", path, len(file.models))
    structure, _ = structure_of_model(file, 0, selection)
    _warn_of_doubles(structure, path)
    return structure


def load_models(path, selection: str | None = None) -> tuple:
    """Read all models of a PDB or mmCIF file, each as by :func:`load_structure`.

    Returns
    -------
    tuple of Structure
    """
    file = read_coordinates(path)
    return tuple(structure_of_model(file, number, selection)[0] for number in range(len(file.models)))


def structure_of_model(file: CoordinateFile, number: int, selection: str | None = None) -> tuple:
    """One of the models of a coordinate file, with the copies that its MTRIX records make.

    Returns
    -------
    structure : Structure
    chosen : (n,) bool, which of the atoms, copies included, it has

    Raises
    ------
    DiffuseError
        See :func:`load_structure`.
    """
    path, records = file.path, file.models[number]
    if file.content.residual:
        records = with_tls(records, file)
    operators = operators_to_apply(file.content.operators, path)
    if operators:
        records = with_copies(records, operators, path)
    elements = find_elements(records)
    chosen = np.ones(records.n_atoms, dtype=bool)
    if selection is not None:
        known = np.where(elements.symbol == "", records.element, elements.symbol)
        chosen = replace(records, element=known).select(selection)
        if not chosen.any():
            raise DiffuseError(f"{path}: selection={selection!r}: no atoms are left of {records.n_atoms}")
    records, elements = records.take(chosen), elements.take(chosen)
    types = _scattering_types(elements.symbol, records.charge)
    _check_elements(elements.symbol, types, records, selection, path)
    report_elements(elements, records, path)
    records = with_all_displacements(_with_occupancies(records, path), path)
    return _structure(file, records, elements.symbol, types), chosen


def _structure(file: CoordinateFile, records: Records, element, scattering_type) -> Structure:
    matrix, shift = file.fractional_frame
    u_iso = records.u_iso[:, None, None] * np.eye(3)
    u_aniso = file.rotation @ records.u_aniso @ file.rotation.T
    n, group = records.n_atoms, file.space_group
    structure = Structure(
        unit_cell=tuple(file.cell.parameters()),
        hall_symbol=group.type().hall_symbol(),
        element=element,
        scattering_type=scattering_type,
        site_frac=records.site @ matrix.T + shift,
        occupancy=records.occupancy,
        u_cart=np.where(np.isfinite(u_aniso), u_aniso, u_iso),
        multiplicity=np.full(n, group.order_z(), dtype=np.int64),
        copy=np.zeros(n, dtype=np.int64),
        chain=records.chain,
        residue=records.residue,
        residue_name=records.residue_name,
        name=records.name,
        altloc=records.altloc,
        hetero=records.hetero,
    )
    _check_occupancies(structure, file.path)
    structure = replace(structure, u_cart=_without_negative(structure, file.path))
    return _settle_special_positions(structure, file.content.shared_positions)


def _with_occupancies(records: Records, path) -> Records:
    """Occupancies that the file leaves out are 1, if the atom has no alternate ones."""
    missing = ~np.isfinite(records.occupancy)
    if not missing.any():
        return records
    shared = np.flatnonzero(missing & (records.altloc != ""))
    if len(shared):
        raise DiffuseError(
            f"{path}: atom {records.label(shared[0])} is one of several alternate ones (altloc "
            f"{records.altloc[shared[0]]}) and has no occupancy; write occupancies, which add up to 1"
        )
    logger.warning(
        "%s: %d of %d atoms have no occupancy, such as %s; it is taken as 1",
        path,
        np.count_nonzero(missing),
        records.n_atoms,
        records.label(np.flatnonzero(missing)[0]),
    )
    return replace(records, occupancy=np.where(missing, 1.0, records.occupancy))


def _scattering_types(elements, charges) -> np.ndarray:
    """(n,) str, labels in the tables of form factors: the element, with its charge where the tables know the ion.

    Empty where there are no form factors.
    """
    known = {}
    for key in set(zip(elements.tolist(), charges.tolist())):
        element, charge = key
        digits, signs = charge.strip("+-"), charge.strip("0123456789")
        labels = [element]
        if len(signs) == 1 and (digits or charge):
            labels.insert(0, f"{element}{digits or '1'}{signs}")
        found = [xray_scattering.get_standard_label(label, exact=True, optional=True) for label in labels if element]
        known[key] = next((label for label in found if label is not None), "")
    return np.array([known[key] for key in zip(elements.tolist(), charges.tolist())])


def _check_elements(elements, types, records: Records, selection, path) -> None:
    """Raise DiffuseError if there are no form factors for an atom, with the selection that leaves out all of these."""
    unknown = types == ""
    if not unknown.any():
        return
    if unknown.all():
        raise DiffuseError(
            f"{path}: the elements of all {records.n_atoms} atoms are unknown, such as that of {records.label(0)} "
            f"(element {records.element[0]!r}); write them into columns 77-78"
        )
    i = np.flatnonzero(unknown)[0]
    if elements[i]:
        what = f"there are no form factors for {elements[i]}, the element of atom {records.label(i)}"
    else:
        what = (
            f"the chemical element of atom {records.label(i)} is unknown (its column has {str(records.element[i])!r})"
        )
    words = sorted({_words(records, unknown, k) for k in np.flatnonzero(unknown)})
    others = f"not ({' or '.join(words)})" if len(words) > 1 else f"not {words[0]}"
    wanted = others if selection is None else f"({selection}) and {others}"
    raise DiffuseError(
        f"{path}: {what}; {np.count_nonzero(unknown)} of {records.n_atoms} atoms are like that. Correct the file, or "
        f"remove them from it, or leave them out by selection={wanted!r}"
    )


def _words(records: Records, unknown, i: int) -> str:
    """A selection of an unknown atom: its residues, if they have no other atoms."""
    residue = records.residue_name == records.residue_name[i]
    name = f"resname {str(records.residue_name[i]).strip()}"
    if not records.residue_name[i].strip():
        name = f"element {records.element[i]}"
    elif not unknown[residue].all():
        name = f"({name} and name {str(records.name[i]).strip()})"
    return name


def _check_occupancies(structure: Structure, source) -> None:
    lowest = int(structure.occupancy.argmin())
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
    lowest = int(values[:, 0].argmin())
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


def _settle_special_positions(structure: Structure, shared: bool = False) -> Structure:
    """Move atoms near special positions onto them and set their multiplicity, as cctbx does.

    shared : do so too with atoms of lower occupancies that are on special positions already
    """
    settings = crystal.special_position_settings(
        structure.crystal_symmetry, min_distance_sym_equiv=SPECIAL_POSITION_DISTANCE
    )
    sites, tensors = structure.site_frac.copy(), structure.u_cart.copy()
    multiplicity = structure.multiplicity.copy()
    candidates = np.arange(structure.n_atoms) if shared else np.flatnonzero(structure.occupancy == 1)
    table = settings.site_symmetry_table(sites_frac=flex.vec3_double(structure.site_frac[candidates].tolist()))
    frac = np.linalg.inv(structure.orthogonalization)
    for k in table.special_position_indices():
        i, symmetry = candidates[k], table.get(k)
        site = np.array(symmetry.special_op() * tuple(structure.site_frac[i]))
        way = structure.orthogonalization @ (site - structure.site_frac[i])
        if structure.occupancy[i] != 1 and np.linalg.norm(way) > _ON_SPECIAL_POSITION:
            continue
        sites[i] = site
        u_star = frac @ tensors[i] @ frac.T
        rotations = [np.array(op.r().as_double()).reshape(3, 3) for op in symmetry.matrices()]
        u_star = np.mean([r @ u_star @ r.T for r in rotations], axis=0)
        tensors[i] = structure.orthogonalization @ u_star @ structure.orthogonalization.T
        multiplicity[i] = symmetry.multiplicity()
    return replace(structure, site_frac=sites, u_cart=tensors, multiplicity=multiplicity)
