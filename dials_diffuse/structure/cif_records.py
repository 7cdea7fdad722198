"""The atoms of an mmCIF file, or of a CIF file of a small molecule, from iotbx's dictionary of its items."""

from __future__ import annotations

import re

import iotbx.cif
import numpy as np
from cctbx import adptbx, crystal, sgtbx, uctbx
from iotbx.pdb import hy36encode
from iotbx.pdb.cryst1_interpretation import categorize
from iotbx.pdb.mmcif import extract_tls_from_cif_block, format_pdb_atom_name

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.pdb_records import IOTBX_ERRORS, in_one_line, says_residual
from dials_diffuse.structure.records import Content, NcsOperator, Records
from dials_diffuse.structure.tensors import ELEMENTS, six_elements, symmetric_tensor

#: in this order there are text fields, texts in quotes, comments; and what was begun and does not end
_QUOTED = re.compile(
    r"""^;.*?^;|(?<!\S)'[^\n]*?'(?=\s|\Z)|(?<!\S)"[^\n]*?"(?=\s|\Z)|(?<!\S)\#[^\n]*|^;.*\Z|(?<!\S)['"][^\n]*""",
    re.MULTILINE | re.DOTALL,
)
#: a loop without a name or without a value
_EMPTY_LOOP = re.compile(r"(?<!\S)loop_(?!\S)(?!(?:\s+_\S+)+\s+(?!loop_|data_|save_|global_|stop_|_)\S)", re.IGNORECASE)

#: element and charge, as in Fe3+, O1-, Cl-, D
_TYPE = re.compile(r"([A-Za-z]{1,2})(\d*[+-])?")


def cif_content(path, text: str) -> Content:
    """Read a CIF file: the first block that has atoms.

    Raises
    ------
    DiffuseError
        If the file is cut off or otherwise no CIF, has no atoms, or values that are no numbers.
    """
    # iotbx's reader ends the process when it meets a loop without values.
    if _EMPTY_LOOP.search(_QUOTED.sub(_masked, text)):
        raise DiffuseError(
            f"{path}: cannot be read as mmCIF: a loop_ without values, or a text that is not closed; is the file cut "
            "off? Copy it again"
        )
    try:
        blocks = [Block(path, block) for block in iotbx.cif.reader(input_string=text).model().values()]
    except IOTBX_ERRORS as error:
        raise DiffuseError(f"{path}: cannot be read as mmCIF ({in_one_line(error)})") from None
    for block in blocks:
        if block.column("_atom_site.Cartn_x", "_atom_site.fract_x") is not None:
            return _macromolecule(block)
        if block.column("_atom_site_fract_x") is not None:
            return _small_molecule(block)
    raise DiffuseError(f"{path}: contains no atoms; give a PDB or mmCIF file with coordinates")


def _masked(match) -> str:
    """A value in the place of a text, nothing in that of a comment, and a loop without values for what does not end."""
    text = match.group()
    if text.startswith("#"):
        return ""
    return " v " if len(text) > 1 and text[0] == text[-1] else " loop_ "


class Block:
    """The items of a data block, looped or not.

    Parameters
    ----------
    path : for messages
    block : of iotbx
    """

    def __init__(self, path, block):
        self.path, self.block = path, block

    def column(self, *names) -> list | None:
        """The values of the first of some items that is there, as texts, or None."""
        for name in names:
            if name in self.block:
                return list(self.block.get_looped_item(name))
        return None

    def texts(self, *names, n: int, default: str = "") -> list:
        """The same, n of them; the default where there is nothing, or ``?`` or ``.``."""
        values = self.column(*names)
        if values is None:
            return [default] * n
        if len(values) < n or (len(values) > n > 1):
            raise DiffuseError(f"{self.path}: {names[0]} has {len(values)} values, {n} are needed; is it damaged?")
        return [default if value in ("?", ".") else value for value in values]

    def numbers(self, *names, n: int = 1) -> np.ndarray:
        """(n,) float64, NaN where there is nothing; standard uncertainties in parentheses are left out.

        Raises
        ------
        DiffuseError
            If a value is no number.
        """
        result = np.full(n, np.nan)
        for i, value in enumerate(self.texts(*names, n=n)):
            try:
                result[i] = float(value.split("(")[0]) if value else np.nan
            except ValueError:
                raise DiffuseError(
                    f"{self.path}: {names[0]} has {value!r} in row {i + 1}, which is no number; correct it"
                ) from None
        return result

    def tensors(self, names: list) -> np.ndarray | None:
        """(n, 3, 3) float64 from the items of the elements 11, 22, 33, 12, 13, 23, or None."""
        first = self.column(names[0])
        if first is None:
            return None
        return symmetric_tensor(np.stack([self.numbers(name, n=len(first)) for name in names], axis=1))


# ------------------------------------------------------------------------------------------------------ macromolecules


def _macromolecule(block: Block) -> Content:
    symmetry = _symmetry(block)
    site = _sites(block, symmetry, "_atom_site.Cartn_", "_atom_site.fract_")
    n = len(site)
    name, element = (block.texts(*items, n=n) for items in (_items("atom_id"), ["_atom_site.type_symbol"]))
    chain = block.texts(*_items("asym_id"), n=n)
    number = block.texts(*_items("seq_id"), n=n, default="0")
    insertion = block.texts("_atom_site.pdbx_PDB_ins_code", n=n, default=" ")
    records = Records(
        name=np.array([format_pdb_atom_name(a, e) if a else "" for a, e in zip(name, element)]),
        altloc=np.array(block.texts("_atom_site.label_alt_id", n=n)),
        chain=np.array(chain),
        residue=np.array([_residue(block, *both) for both in zip(number, insertion)]),
        residue_name=np.array(block.texts(*_items("comp_id"), n=n)),
        element=np.array(element),
        charge=np.array([_charge(text) for text in block.texts("_atom_site.pdbx_formal_charge", n=n)]),
        hetero=np.array([text == "HETATM" for text in block.texts("_atom_site.group_PDB", n=n)]),
        site=site,
        occupancy=block.numbers("_atom_site.occupancy", n=n),
        u_iso=_isotropic(block, "_atom_site.", n),
        u_aniso=_anisotropic(block, n),
    )
    model = np.array(block.texts("_atom_site.pdbx_PDB_model_num", n=n, default="1"))
    _, first = np.unique(model, return_index=True)
    return Content(
        models=tuple(records.take(model == model[i]) for i in np.sort(first)),
        symmetry=symmetry,
        scale=_scale(block),
        operators=_operators(block),
        residual=_residual(block),
        tls=lambda hierarchy: extract_tls_from_cif_block(block.block, hierarchy).tls_params,
    )


def _items(name: str) -> list:
    """What the authors call something before what the data bank calls it."""
    return [f"_atom_site.auth_{name}", f"_atom_site.label_{name}"]


def _sites(block: Block, symmetry, cartesian: str, fractional: str) -> np.ndarray:
    for prefix in (cartesian, fractional):
        column = block.column(f"{prefix}x")
        if column is None:
            continue
        xyz = np.stack([block.numbers(f"{prefix}{axis}", n=len(column)) for axis in "xyz"], axis=1)
        missing = np.flatnonzero(~np.isfinite(xyz).all(axis=1))
        if len(missing):
            raise DiffuseError(f"{block.path}: atom {missing[0] + 1} has no coordinates; remove it, or write them")
        if prefix == cartesian:
            return xyz
        if symmetry.unit_cell() is None:
            raise DiffuseError(f"{block.path}: has fractional coordinates, but no unit cell; add the _cell items")
        return xyz @ np.array(symmetry.unit_cell().orthogonalization_matrix()).reshape(3, 3).T
    raise DiffuseError(f"{block.path}: contains no atoms; give a PDB or mmCIF file with coordinates")


def _residue(block: Block, number: str, insertion: str) -> str:
    try:
        return hy36encode(width=4, value=int(number)) + insertion[:1]
    except (ValueError, OverflowError):
        raise DiffuseError(f"{block.path}: {number!r} is no residue number; correct _atom_site.auth_seq_id") from None


def _charge(text: str) -> str:
    """``2+`` from ``2``, ``+2`` or ``2+``, ``1-`` from ``-``; nothing from ``0``."""
    digits = "".join(c for c in text if c.isdigit()) or ("1" if text else "")
    return f"{digits}{'-' if '-' in text else '+'}" if digits.strip("0") else ""


def _isotropic(block: Block, prefix: str, n: int) -> np.ndarray:
    """(n,) float64, Å², from B or U."""
    b = block.numbers(f"{prefix}B_iso_or_equiv", n=n) / adptbx.u_as_b(1.0)
    return np.where(np.isfinite(b), b, block.numbers(f"{prefix}U_iso_or_equiv", n=n))


def _anisotropic(block: Block, n: int) -> np.ndarray:
    """(n, 3, 3) float64, Å², of the loop for tensors, or beside the coordinates."""
    result = np.full((n, 3, 3), np.nan)
    for prefix in ("_atom_site_anisotrop.", "_atom_site.aniso_"):
        for kind, factor in (("U", 1.0), ("B", adptbx.u_as_b(1.0))):
            found = block.tensors([f"{prefix}{kind}[{i}][{j}]" for i, j in ELEMENTS])
            if found is None:
                continue
            if prefix == "_atom_site.aniso_":
                return found / factor
            row = {text: i for i, text in enumerate(block.texts("_atom_site.id", n=n))}
            for text, tensor in zip(block.texts("_atom_site_anisotrop.id", n=len(found)), found):
                if text in row:
                    result[row[text]] = tensor / factor
            return result
    return result


def _residual(block: Block) -> bool:
    items = ("_refine.pdbx_TLS_residual_ADP_flag", "_refine.details")
    return says_residual(" ".join(text for item in items for text in block.column(item) or []))


def _scale(block: Block) -> tuple | None:
    matrix = [block.numbers(f"_atom_sites.fract_transf_matrix[{i}][{j}]")[0] for i in "123" for j in "123"]
    shift = np.nan_to_num([block.numbers(f"_atom_sites.fract_transf_vector[{i}]")[0] for i in "123"])
    return (np.reshape(matrix, (3, 3)), shift) if np.all(np.isfinite(matrix)) else None


def _operators(block: Block) -> tuple:
    codes = block.column("_struct_ncs_oper.code", "_struct_ncs_oper.id")
    if codes is None:
        return ()
    n = len(codes)
    names = block.texts("_struct_ncs_oper.id", n=n)
    given = [text.lower() != "generate" for text in block.texts("_struct_ncs_oper.code", n=n)]
    prefix = "_struct_ncs_oper."
    rotation = [block.numbers(f"{prefix}matrix[{i}][{j}]", n=n) for i in "123" for j in "123"]
    shift = [block.numbers(f"{prefix}vector[{i}]", n=n) for i in "123"]
    rows = zip(names, np.transpose(rotation).reshape(n, 3, 3), np.transpose(shift), given)
    return tuple(NcsOperator(*row) for row in rows)


# ------------------------------------------------------------------------------------------------------ small molecules


def _small_molecule(block: Block) -> Content:
    """The atoms as one residue MOL of chain A; occupancies on special positions are those of the site."""
    symmetry = _symmetry(block)
    site = _sites(block, symmetry, "_atom_site_Cartn_", "_atom_site_fract_")
    n = len(site)
    label = block.texts("_atom_site_label", n=n)
    symbols = block.texts("_atom_site_type_symbol", n=n)
    types = [_TYPE.fullmatch(symbol) for symbol in symbols]
    tensors = _tensors_by_label(block, symmetry, label)
    disorder = [text.lstrip("-")[:1] for text in block.texts("_atom_site_disorder_group", n=n)]
    records = Records(
        name=np.array(label),
        altloc=np.array(["" if text == "0" else text for text in disorder]),
        chain=np.array(["A"] * n),
        residue=np.array(["   1 "] * n),
        residue_name=np.array(["MOL"] * n),
        element=np.array([found.group(1) if found else symbol for found, symbol in zip(types, symbols)]),
        charge=np.array([_charge(found.group(2) or "") if found else "" for found in types]),
        hetero=np.ones(n, dtype=bool),
        site=site,
        occupancy=np.nan_to_num(block.numbers("_atom_site_occupancy", n=n), nan=1.0),  # as CIF says
        u_iso=_isotropic(block, "_atom_site_", n),
        u_aniso=tensors,
    )
    dummy = np.array([text == "dum" for text in block.texts("_atom_site_calc_flag", n=n)])
    if dummy.all():
        raise DiffuseError(f"{block.path}: contains dummy atoms only; give a file with coordinates")
    return Content((records.take(~dummy),), symmetry, None, (), False, lambda hierarchy: [], shared_positions=True)


def _tensors_by_label(block: Block, symmetry, label: list) -> np.ndarray:
    """(n, 3, 3) float64, Å², Cartesian, from components along the reciprocal axes."""
    result = np.full((len(label), 3, 3), np.nan)
    row = {text: i for i, text in enumerate(label)}
    for kind, factor in (("U", 1.0), ("B", adptbx.u_as_b(1.0))):
        found = block.tensors([f"_atom_site_aniso_{kind}_{ij}" for ij in ELEMENTS])
        for text, tensor in zip(block.texts("_atom_site_aniso_label", n=0), [] if found is None else found):
            if text in row and np.isfinite(tensor).all():
                six = tuple((six_elements(tensor) / factor).tolist())
                result[row[text]] = symmetric_tensor(adptbx.u_cif_as_u_cart(symmetry.unit_cell(), six))
    return result


# ------------------------------------------------------------------------------------------------------------- symmetry


def _symmetry(block: Block) -> crystal.symmetry:
    """Cell and space group: from operators, else a Hall symbol, a Hermann-Mauguin symbol, or the number.

    iotbx's own reader would replace what a symbol says of the setting by the standard one of the group's number.
    """
    items = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    values = [float(block.numbers(f"_cell.{item}", f"_cell_{item}")[0]) for item in items]
    values[3:] = [90.0 if np.isnan(x) else x for x in values[3:]]
    try:
        cell = None if np.isnan(values).any() else uctbx.unit_cell(values)
    except (RuntimeError, ValueError) as error:
        raise DiffuseError(f"{block.path}: its cell {values} is none ({in_one_line(error)}); correct it") from None
    group = _space_group(block, cell)
    if cell is not None and group is not None and not _fits(group, cell):
        raise DiffuseError(
            f"{block.path}: the space group {group.info()} does not fit the cell "
            f"{', '.join(f'{x:g}' for x in values)}; correct one of them"
        )
    return crystal.symmetry(unit_cell=cell, space_group=group)


def _fits(group: sgtbx.space_group, cell: uctbx.unit_cell) -> bool:
    try:
        return group.is_compatible_unit_cell(cell)
    except (RuntimeError, ValueError):  # numbers beyond all measure
        return False


def _space_group(block: Block, cell) -> sgtbx.space_group | None:
    def item(*names) -> str:
        return (block.texts(*names, n=1) or [""])[0].strip()

    operators = block.column(
        "_space_group_symop.operation_xyz",
        "_space_group_symop_operation_xyz",
        "_symmetry_equiv.pos_as_xyz",
        "_symmetry_equiv_pos_as_xyz",
    )
    hall = item(*_symmetry_items("space_group_name_Hall", "name_Hall"))
    symbol = item(*_symmetry_items("space_group_name_H-M", "name_H-M_alt"))
    number = item(*_symmetry_items("Int_Tables_number", "IT_number"))
    try:
        if operators is not None and operators != ["?"]:
            group = sgtbx.space_group()
            for operator in operators:
                group.expand_smx(sgtbx.rt_mx(operator))
            return group
        if hall:
            return sgtbx.space_group(hall)
        if symbol:
            info = categorize(symbol).space_group_info(None if cell is None else cell.parameters())
            return None if info is None else info.group()
        return sgtbx.space_group_info(number=int(number)).group() if number else None
    except (RuntimeError, ValueError):
        return None


def _symmetry_items(old: str, new: str) -> list:
    """Names of an item of the symmetry, of the new dictionaries and the old ones."""
    return [f"_space_group.{new}", f"_space_group_{new}", f"_symmetry.{old}", f"_symmetry_{old}"]
