"""Coordinate files: what is read in spite of what does not matter, what is filled in, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import logging

import numpy as np
import pytest
from cctbx import miller
from helpers.programs import fails, model_of
from helpers.structures import ATOMS, CRYST1
from iotbx.cif import reader as cif_reader
from iotbx.pdb import input as iotbx_input

from dials_diffuse.cli.model import run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_models, load_structure
from dials_diffuse.structure.coordinate_file import read_coordinates
from dials_diffuse.structure.tls import load_tls
from dials_diffuse.structure.trajectory import load_trajectory
from dials_diffuse.structure.transform import direct_transform

MMCIF = """\
data_model
_struct.title 'one of 1.5 A'
_cell.length_a 20
_cell.length_b 21
_cell.length_c 22
_cell.angle_alpha 90
_cell.angle_beta 95.00
_cell.angle_gamma ?
_symmetry.space_group_name_H-M 'P 1 21 1'
_symmetry.Int_Tables_number 4
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.B_iso_or_equiv
_atom_site.pdbx_formal_charge
_atom_site.auth_asym_id
_atom_site.auth_seq_id
_atom_site.pdbx_PDB_model_num
ATOM 1 N N . GLY X 1 ? 1.000 2.000 3.000 1.00 10.00 ? A 1 1
ATOM 2 C CA A GLY X 1 ? 2.000 2.500 3.500 0.60 11.00 ? A 1 1
ATOM 3 C CA B GLY X 1 ? 2.100 2.700 3.300 0.40 12.00 ? A 1 1
ATOM 4 O O . GLY X 1 A 4.000 2.500 5.500 1.00 13.00 -1 A 1 1
ATOM 5 H H . GLY X 1 A 4.500 2.500 6.200 1.00 14.00 0 A 1 1
HETATM 6 ZN ZN . ZN Y . ? 9.000 8.000 7.000 1.00 15.00 2 B 5 1
loop_
_atom_site_anisotrop.id
_atom_site_anisotrop.U[1][1]
_atom_site_anisotrop.U[2][2]
_atom_site_anisotrop.U[3][3]
_atom_site_anisotrop.U[1][2]
_atom_site_anisotrop.U[1][3]
_atom_site_anisotrop.U[2][3]
1 0.1 0.2 0.3 0.01 0.02 -0.03
"""


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="dials.diffuse")
    return caplog


def warnings(log) -> list:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def same_atoms(one, other, tolerance=1e-12):
    """All arrays agree, names apart from blanks."""
    assert one.hall_symbol == other.hall_symbol
    np.testing.assert_allclose(one.unit_cell, other.unit_cell, rtol=1e-12)
    for key in ("site_frac", "occupancy", "u_cart", "multiplicity"):
        np.testing.assert_allclose(getattr(one, key), getattr(other, key), atol=tolerance, err_msg=key)
    for key in ("element", "scattering_type", "chain", "residue", "residue_name", "name", "altloc", "hetero"):
        a, b = ([str(x).strip() for x in getattr(s, key)] for s in (one, other))
        assert a == b, key


# ------------------------------------------------------------------------------------------------- what does not matter


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_characters_that_are_not_ascii(write, log, kind, encoding):
    """The Å of a resolution in a remark or a title; in UTF-8 it has two bytes."""
    if kind == "pdb":
        text = "REMARK   3  RESOLUTION 1.5 Å, µ-focus\n" + CRYST1 + ATOMS
    else:
        text = MMCIF.replace("1.5 A", "1.5 Å, µ-focus")
    same_atoms(load_structure(write(text.encode(encoding), f"model.{kind}")), load_structure(write(CRYST1 + ATOMS)))
    assert not log.records


@pytest.mark.parametrize("text", [CRYST1 + ATOMS, MMCIF], ids=["pdb", "cif"])
@pytest.mark.parametrize("change", ["gz", "bz2", "cr", "crlf", "comment"])
def test_compressed_files_and_ends_of_lines(write, log, text, change):
    data = {
        "gz": gzip.compress(text.encode()),
        "bz2": bz2.compress(text.encode()),
        "cr": text.replace("\n", "\r"),
        "crlf": text.replace("\n", "\r\n"),
        "comment": "# a comment\n\n" + text,
    }[change]
    same_atoms(load_structure(write(data, "file")), load_structure(write(CRYST1 + ATOMS)))
    assert not log.records


def test_pdb_and_mmcif_say_the_same(write):
    same_atoms(load_structure(write(MMCIF, "model.cif")), load_structure(write(CRYST1 + ATOMS)))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("_atom_site.group_PDB", "_atom_site.footnote").replace(
            "_atom_site.B_iso", "_atom_site.B_iso"
        ),
        lambda t: t.replace("_atom_site.label_alt_id", "_atom_site.auth_alt_id").replace(" A GLY", " . GLY"),
        lambda t: t.replace("_atom_site.auth_asym_id", "_atom_site.footnote"),
    ],
    ids=["group", "altloc", "author's chain"],
)
def test_mmcif_items_that_may_be_missing(write, change):
    text = change(MMCIF)
    assert text != MMCIF and load_structure(write(text, "model.cif")).n_atoms == 6


def test_displacements_of_mmcif_in_other_items(write):
    """U in the place of B, and tensors as B."""
    expected = load_structure(write(MMCIF, "model.cif"))
    u = MMCIF.replace("B_iso_or_equiv", "U_iso_or_equiv")
    for b in (10, 11, 12, 13, 14, 15):
        u = u.replace(f" {b}.00 ", f" {b / (8 * np.pi**2):.12f} ")
    same_atoms(load_structure(write(u, "u.cif")), expected)
    six = " ".join(f"{x * 8 * np.pi**2:.12f}" for x in (0.1, 0.2, 0.3, 0.01, 0.02, -0.03))
    b = MMCIF.replace("anisotrop.U[", "anisotrop.B[").replace("0.1 0.2 0.3 0.01 0.02 -0.03", six)
    same_atoms(load_structure(write(b, "b.cif")), expected)
    columns = MMCIF.split("loop_\n_atom_site_anisotrop")[0]
    for i, j in ("11", "22", "33", "12", "13", "23"):
        columns = columns.replace("_atom_site.auth_asym_id", f"_atom_site.aniso_U[{i}][{j}]\n_atom_site.auth_asym_id")
    rows = {"-1": "? ? ? ? ? ? A", "0": "? ? ? ? ? ? A", "2": "? ? ? ? ? ? B"}
    for charge, text in rows.items():
        columns = columns.replace(f" {charge} {text[-1]} ", f" {charge} {text} ")
    columns = columns.replace("10.00 ? A", "10.00 ? 0.1 0.2 0.3 0.01 0.02 -0.03 A")
    for b in ("11.00", "12.00"):
        columns = columns.replace(f"{b} ? A", f"{b} ? ? ? ? ? ? ? A")
    same_atoms(load_structure(write(columns, "columns.cif")), expected)


def test_atoms_stay_in_the_order_of_the_file(write):
    """iotbx sorts the atoms of a residue; trajectories and matrices of covariances have the order of the file."""
    lines = ATOMS.splitlines()
    turned = [lines[4], lines[3], lines[5], lines[0], lines[1], lines[2], lines[6]]
    structure = load_structure(write(CRYST1 + "\n".join(turned)))
    assert [name.strip() for name in structure.name] == ["O", "CA", "H", "N", "CA", "ZN"]
    assert structure.altloc.tolist() == ["", "B", "", "", "A", ""]
    assert structure.select("altloc B").tolist() == [False, True, False, False, False, False]
    np.testing.assert_allclose(structure.u_cart[3, 0, 0], 0.1)


def test_block_of_mmcif_that_has_the_atoms(write):
    restraints = "data_comp_list\nloop_\n_chem_comp.id\n_chem_comp.name\nLIG 'some ligand'\n"
    same_atoms(load_structure(write(restraints + MMCIF, "a.cif")), load_structure(write(MMCIF, "b.cif")))


def test_names_that_iotbx_cannot_hold(write):
    """Residue names with five characters, as new ligands have, and long chains and atom names."""
    text = (
        MMCIF.replace(" ZN Y . ", " A1LNX Y . ").replace(" ZN ZN . ", " ZN ZN1234 . ").replace(" B 5 1", " LONGER 5 1")
    )
    structure = load_structure(write(text, "model.cif"))
    assert structure.residue_name[5] == "A1LNX" and structure.chain[5] == "LONGER" and structure.name[5] == "ZN1234"
    assert structure.select("chain LONGER").tolist() == [False] * 5 + [True]
    assert structure.element[5] == "Zn"


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("cut", range(30, len(MMCIF), 41))
def test_cut_mmcif_files_do_not_end_the_process(write, cut):
    """iotbx's reader crashes on a loop without values. A file that is cut in a row, or after one, is another matter."""
    text = MMCIF[:cut]
    try:
        structure = load_structure(write(text, "model.cif"))
    except DiffuseError as error:
        assert str(error).startswith(str(write(text, "model.cif")))
    else:
        assert structure.n_atoms == text.count("\nATOM") + text.count("\nHETATM")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("data_a\nloop_\n_x.a\n_x.b\n", "a loop_ without values.*is the file cut off"),
        ("data_a\nloop_\n_x.a\nloop_\n_y.b\n1\n", "a loop_ without values"),
        ("data_a\n_x.text\n;some\n;\nloop_\n_x.a\n'open\n", "a text that is not closed"),
        ("data_a\n_x.text\n;some\n;\nloop_\n 1 2\n", "a loop_ without values"),
        ("data_a\nloop_\n_x.a\n_x.b\n1 2 3\n", "cannot be read as mmCIF .*loop"),
        ("data_a\n_cell.length_a 9\n", "contains no atoms"),
    ],
)
def test_broken_mmcif_files(write, text, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        load_structure(write(text, "model.cif"))


@pytest.mark.parametrize("number", ["x", "1.5", "100000000", "99999999999999999999"])
def test_residue_numbers_that_are_none(write, number):
    text = MMCIF.replace("1.00 10.00 ? A 1 1", f"1.00 10.00 ? A {number} 1", 1)
    with pytest.raises(DiffuseError, match=rf"'{number}' is no residue number"):
        load_structure(write(text, "model.cif"))


def test_loops_in_texts_and_comments_are_none(write):
    text = MMCIF.replace(
        "_struct.title 'one of 1.5 A'", "_struct.title\n;a loop_\nloop_\n_x\n;\n# loop_\n_x.y 'loop_ a'\n"
    )
    assert load_structure(write(text, "model.cif")).n_atoms == 6


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.replace("   7.000  1.00", "          1.00"), r"'HETATM    6 ZN    ZN B   5', has no z coordinate"),
        (lambda t: t[: t.index("   8.000   7.000")], "has no y coordinate; is the file cut off"),
        (
            lambda t: t.replace("HETATM    6 ", "HETATM     6 "),
            r"line 8, .* has '0   8.00' as y, in columns 39-46; is the line",
        ),
        (lambda t: t.replace("   7.000", "     nan"), "has '     nan' as z"),
        (lambda t: t.replace(" 15.00  ", " ******  "), r"\*' as B factor, in columns 61-66"),
        (lambda t: "ATOM 1 N GLY A 1 1.0 2.0 3.0\n" + t, "contains|line 2"),
        (
            lambda t: t.replace("ATOM      1  N   GLY A   1       1.000", "ATOM      1  N   GLY A   1       1,000"),
            "as x",
        ),
    ],
    ids=["no z", "cut", "shifted", "nan", "stars", "free format", "comma"],
)
def test_columns_that_are_shifted_or_empty(write, change, complaint):
    """iotbx takes blank coordinates as 0, and the last digit of one number as the first of the next."""
    text = change(ATOMS)
    assert text != ATOMS
    with pytest.raises(DiffuseError, match=complaint):
        load_structure(write(CRYST1 + text))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (gzip.compress((CRYST1 + ATOMS).encode())[:-20], "cannot be read .*copy it again"),
        ((CRYST1 + ATOMS).encode("utf-16"), "is no text"),
        (b"\x89HDF\r\n\x1a\n\0\0", "is no text"),
        (b"<!DOCTYPE html>\n<html>not found</html>\n", "contains no atoms"),
        (b"", "contains no atoms"),
        ((CRYST1.replace("95.00", "00.00") + ATOMS).encode(), "is no crystal|no unit cell"),
        ((CRYST1.replace("P 1 21 1   ", "P 21 21 21 ") + ATOMS).encode(), r"'CRYST1.*P 21 21 21.*is no crystal"),
        ((CRYST1.replace("P 1 21 1   ", "           ") + ATOMS).encode(), "has no space group"),
    ],
)
def test_files_that_are_none(write, content, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        load_structure(write(content))


# ---------------------------------------------------------------------------------------------------------- the crystal


@pytest.mark.parametrize(
    ("cell", "symbol", "expected"),
    [
        ("   20.000   20.000   30.000  90.00  90.00 120.00", "H 3", "R 3 :H"),
        ("   20.000   20.000   30.000  90.00  90.00 120.00", "R 3", "R 3 :H"),
        ("   20.000   20.000   20.000  80.00  80.00  80.00", "R 3", "R 3 :R"),
        ("   20.000   20.000   30.000  90.00  90.00 120.00", "H 3 2", "R 3 2 :H"),
        ("   20.000   21.000   30.000  90.00  90.00  95.00", "P 1 1 21", "P 1 1 21"),
        ("   20.000   21.000   30.000  90.00  90.00  95.00", "P 21", "P 1 1 21"),
        ("   20.000   21.000   30.000  90.00  95.00  90.00", "P 21", "P 1 21 1"),
        ("   20.000   21.000   30.000  90.00  95.00  90.00", "I 1 2 1", "I 1 2 1"),
        ("   20.000   21.000   30.000  90.00  90.00  90.00", "P 21 2 2", "P 21 2 2"),
        ("   20.000   21.000   30.000  90.00  95.00  90.00", "P1211", "P 1 21 1"),
    ],
)
@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_settings_of_space_groups(write, kind, cell, symbol, expected):
    """Also without Z; what mmCIF says of the number of the group does not replace the setting of its symbol."""
    if kind == "pdb":
        path = write(f"CRYST1{cell} {symbol}\n{ATOMS}")
    else:
        items = ("length_a 20", "length_b 21", "length_c 22", "angle_alpha 90", "angle_beta 95.00", "angle_gamma ?")
        text = MMCIF.replace("P 1 21 1", symbol).replace("Int_Tables_number 4", "Int_Tables_number 146")
        for item, value in zip(items, cell.split()):
            text = text.replace(f"_cell.{item}", f"_cell.{item.split()[0]} {value}")
        path = write(text, "model.cif")
    assert load_structure(path).space_group.type().lookup_symbol() == expected


def test_operators_rule_over_symbols(write):
    """Of mmCIF files that have both, and of another setting than the number's."""
    operators = "loop_\n_space_group_symop.id\n_space_group_symop.operation_xyz\n1 x,y,z\n2 -x,-y,z+1/2\n"
    text = MMCIF.replace("_cell.angle_beta 95.00", "_cell.angle_beta 90").replace(
        "loop_\n_atom_site.g", operators + "loop_\n_atom_site.g"
    )
    assert load_structure(write(text, "model.cif")).space_group.type().lookup_symbol() == "P 1 1 21"
    text = MMCIF.replace("_symmetry.space_group_name_H-M 'P 1 21 1'\n", "")
    assert load_structure(write(text, "model.cif")).space_group.type().lookup_symbol() == "P 1 21 1"
    text = MMCIF.replace("'P 1 21 1'", "'P 21 21 21'")
    with pytest.raises(DiffuseError, match="space group P 21 21 21 does not fit the cell 20, 21, 22, 90, 95, 90"):
        load_structure(write(text, "model.cif"))


def test_scale_records_that_are_none(write, log):
    bad = "SCALE1      0.050000  0.000000  0.000000        0.00000\nSCALE2      0.0x\nSCALE3      0.0\n"
    same_atoms(load_structure(write(CRYST1 + bad + ATOMS)), load_structure(write(CRYST1 + ATOMS)))
    assert "the SCALE records are ignored" in warnings(log)[0]


# ------------------------------------------------------------------------------------------- B factors and occupancies


@pytest.mark.parametrize("kind", ["pdb", "cif", "cif ."])
def test_missing_b_factors_are_the_mean_of_the_others(write, log, kind):
    """Of those that are selected; a tensor is a displacement too."""
    if kind == "pdb":
        text, name = ATOMS.replace("1.00 13.00", "1.00      ").replace("1.00 10.00", "1.00      "), "model.pdb"
        text = CRYST1 + text
    else:
        text = MMCIF.replace(" 13.00 ", " ? ").replace(" 10.00 ", f" {'.' if '.' in kind else '?'} ")
        name = "model.cif"
    structure = load_structure(write(text, name))
    known = np.array([0.2 * 8 * np.pi**2, 11, 12, 14, 15])
    assert structure.u_iso[3] * 8 * np.pi**2 == pytest.approx(known.mean())
    np.testing.assert_allclose(np.delete(structure.u_iso, 3) * 8 * np.pi**2, known)
    assert warnings(log) == [
        f"{write(text, name)}: 1 of 6 atoms have no B factor, such as O GLY A 1A; they have the mean of the others, "
        f"{known.mean():.1f} Å²; write B factors (columns 61-66, or _atom_site.B_iso_or_equiv)"
    ]
    chosen = load_structure(write(text, name), selection="not element ZN")
    assert chosen.u_iso[3] * 8 * np.pi**2 == pytest.approx(known[:-1].mean())


def test_files_without_b_factors(write, log):
    """Blank in all atoms, 0 in all atoms, and 0 in some: said, and taken at rest."""
    lines = [line for line in ATOMS.splitlines() if not line.startswith("ANISOU")]
    blank = "\n".join(f"{line[:60]}      {line[66:]}" for line in lines)
    zero = "\n".join(f"{line[:60]}  0.00{line[66:]}" for line in lines)
    some = "\n".join([f"{lines[4][:60]}  0.00{lines[4][66:]}", *lines[:4], lines[5]])
    for text, complaint in (
        (blank, "has no B factors, so that all atoms are taken at rest"),
        (zero, "all B factors are 0, so that all atoms are taken at rest"),
        (some, "1 of 6 atoms have a B factor of 0, such as H GLY A 1A; they are taken at rest"),
    ):
        log.clear()
        structure = load_structure(write(CRYST1 + text))
        assert structure.u_cart.any() == (text == some)
        assert len(warnings(log)) == 1 and complaint in warnings(log)[0]


@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_missing_occupancies(write, log, kind):
    """They are 1, but of alternate conformers."""
    if kind == "pdb":
        text, name = CRYST1 + ATOMS.replace("  1.00 13.00", "       13.00"), "model.pdb"
        alternate = text.replace("  0.40 12.00", "       12.00")
    else:
        text, name = MMCIF.replace("1.00 13.00", "? 13.00"), "model.cif"
        alternate = text.replace("0.40 12.00", ". 12.00")
    assert load_structure(write(text, name)).occupancy.tolist() == [1, 0.6, 0.4, 1, 1, 1]
    assert "1 of 6 atoms have no occupancy, such as O GLY A 1A; it is taken as 1" in warnings(log)[0]
    with pytest.raises(DiffuseError, match=r"atom CA GLY A 1 is one of several alternate ones \(altloc B\) and has no"):
        load_structure(write(alternate, name))
    assert load_structure(write(alternate, name), selection="not altloc B").n_atoms == 5


# ---------------------------------------------------------------------------------------- residual B factors and groups

TLS = """\
REMARK   3  TLS DETAILS
REMARK   3   NUMBER OF TLS GROUPS  :    2
{statement}
REMARK   3
REMARK   3   TLS GROUP :     1
REMARK   3    NUMBER OF COMPONENTS GROUP :    1
REMARK   3    COMPONENTS        C SSSEQI   TO  C SSSEQI
REMARK   3    RESIDUE RANGE :   A     1        A     1
REMARK   3    ORIGIN FOR THE GROUP (A):   2.0000   1.0000   4.0000
REMARK   3    T TENSOR
REMARK   3      T11:   0.0445 T22:   0.0594
REMARK   3      T33:   0.0759 T12:   0.0073
REMARK   3      T13:  -0.0019 T23:  -0.0026
REMARK   3    L TENSOR
REMARK   3      L11:  20.4084 L22:  18.4087
REMARK   3      L33:  30.4695 L12:   5.0456
REMARK   3      L13:   3.0685 L23:  -4.0388
REMARK   3    S TENSOR
REMARK   3      S11:  -0.0063 S12:   0.2233 S13:   0.0890
REMARK   3      S21:   0.1417 S22:  -0.0071 S23:   0.0132
REMARK   3      S31:  -0.0808 S32:  -0.2002 S33:   0.0134
REMARK   3
REMARK   3   TLS GROUP :     2
REMARK   3    NUMBER OF COMPONENTS GROUP :    1
REMARK   3    COMPONENTS        C SSSEQI   TO  C SSSEQI
REMARK   3    RESIDUE RANGE :   b     1        b     9
REMARK   3    ORIGIN FOR THE GROUP (A):   9.0000   9.0000   9.0000
REMARK   3    T TENSOR
REMARK   3      T11:   0.0412 T22:   0.0318
REMARK   3      T33:   0.1002 T12:  -0.0082
REMARK   3      T13:  -0.0117 T23:  -0.0290
REMARK   3    L TENSOR
REMARK   3      L11:   0.3189 L22:   0.3849
REMARK   3      L33:   0.8975 L12:   0.0578
REMARK   3      L13:  -0.0398 L23:   0.1013
REMARK   3    S TENSOR
REMARK   3      S11:   0.0000 S12:   0.0000 S13:   0.0000
REMARK   3      S21:   0.0000 S22:   0.0000 S23:   0.0000
REMARK   3      S31:   0.0000 S32:   0.0000 S33:   0.0000
REMARK   3
"""
PLAIN = "".join(line for line in ATOMS.splitlines(keepends=True) if "ANISOU" not in line).replace("ZN B", "ZN b")
PLAIN += "HETATM    7  O   HOH A 301      12.000   3.000   9.000  1.00 20.00           O\n"
STATEMENTS = {
    "tlsanl": "REMARK   3  ATOM RECORD CONTAINS RESIDUAL B FACTORS ONLY",
    "refmac": "REMARK   3   U VALUES      : RESIDUAL ONLY",
    "annotator": "REMARK   3   B VALUE TYPE : LIKELY RESIDUAL",
    "sum": "REMARK   3  ATOM RECORD CONTAINS SUM OF TLS AND RESIDUAL B FACTORS",
    "sum of refmac": "REMARK   3   U VALUES      : WITH TLS ADDED\nREMARK   3   B VALUE TYPE : LIKELY RESIDUAL",
}


def written_out(text: str) -> str:
    """The file with mmtbx's sum of both motions in ANISOU records."""
    from mmtbx.tls.tools import tlso, u_cart_from_tls

    source = iotbx_input(source_info=None, lines=text)
    root = source.construct_hierarchy(sort_atoms=False)
    groups = [g for g in source.extract_tls_params(root).tls_params] or None
    if groups is None:  # chains in upper and lower case, which iotbx refuses
        return written_out(text.replace("b     1        b", "B     1        B").replace("ZN b", "ZN B")).replace(
            "ZN B", "ZN b"
        )
    cache, atoms = root.atom_selection_cache(), root.atoms()
    sums = u_cart_from_tls(
        sites_cart=atoms.extract_xyz(),
        selections=[cache.iselection(g.selection_string) for g in groups],
        tlsos=[tlso(t=g.t, l=g.l, s=g.s, origin=g.origin) for g in groups],
    )
    for atom, six in zip(atoms, sums):
        residual = atom.b / (8 * np.pi**2)
        atom.set_uij(tuple(x + (residual if k < 3 else 0) for k, x in enumerate(six)))
    return CRYST1 + root.as_pdb_string()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_residual_b_factors(write, log, statement):
    """Against the file written out; without the groups' motion the intensity of rigid bodies is about half."""
    text = TLS.format(statement=STATEMENTS[statement]) + CRYST1 + PLAIN
    structure = load_structure(write(text))
    assert not warnings(log)
    if statement.startswith("sum"):
        assert not log.records
        same_atoms(structure, load_structure(write(CRYST1 + PLAIN)))
        return
    expected = load_structure(write(written_out(text), "whole.pdb"))
    np.testing.assert_allclose(structure.u_cart, expected.u_cart, atol=1.5e-4)  # the digits of ANISOU records
    assert structure.isotropic.tolist() == [False] * 6 + [True]
    assert structure.u_iso[-1] * 8 * np.pi**2 == pytest.approx(20)  # in no group
    mean = np.mean([structure.u_iso[i] - b / (8 * np.pi**2) for i, b in enumerate((10, 11, 12, 13, 14, 15))])
    assert f"the motion of 2 TLS groups is added to 6 of 7 atoms, on the average {mean:.3f} Å²" in log.text


def test_residual_b_factors_in_another_frame(write):
    """SCALE records turn the crystal against the coordinates; tensors of the groups turn with them."""
    cell = "CRYST1   20.000   21.000   22.000  90.00  90.00  90.00 P 1           1\n"
    scale = (
        "SCALE1      0.000000  0.050000  0.000000        0.00000\n"
        "SCALE2      0.000000  0.000000  0.047619        0.00000\n"
        "SCALE3      0.045455  0.000000  0.000000        0.25000\n"
    )
    head = TLS.format(statement=STATEMENTS["tlsanl"])
    turned = load_structure(write(head + cell + scale + PLAIN)).u_cart
    plain = load_structure(write(head + cell + PLAIN)).u_cart
    np.testing.assert_allclose(turned, plain[:, [1, 2, 0]][:, :, [1, 2, 0]], atol=1e-6)


def test_residual_b_factors_of_mmcif(write, log):
    """The flag of the PDB, or the remark; groups by residues of chains as the authors call them."""
    items = [f"T[{i}][{j}]" for i, j in ("11", "22", "33", "12", "13", "23")]
    items += [item.replace("T", "L") for item in items] + [f"S[{i}][{j}]" for i in "123" for j in "123"]
    numbers = "0.0445 0.0594 0.0759 0.0073 -0.0019 -0.0026 20.4084 18.4087 30.4695 5.0456 3.0685 -4.0388 "
    numbers += "-0.0063 0.2233 0.0890 0.1417 -0.0071 0.0132 -0.0808 -0.2002 0.0134"
    groups = "_pdbx_refine_tls.id 1\n" + "".join(
        f"_pdbx_refine_tls.{item} {x}\n" for item, x in zip(items, numbers.split())
    )
    groups += "_pdbx_refine_tls.origin_x 2\n_pdbx_refine_tls.origin_y 1\n_pdbx_refine_tls.origin_z 4\n"
    for item, x in (("id", 1), ("refine_tls_id", 1), ("beg_auth_asym_id", "A"), ("beg_auth_seq_id", 1)):
        groups += f"_pdbx_refine_tls_group.{item} {x}\n"
    groups += "_pdbx_refine_tls_group.end_auth_asym_id A\n_pdbx_refine_tls_group.end_auth_seq_id 1\n"
    atoms = MMCIF.split("loop_\n_atom_site_anisotrop")[0]
    flag = "_refine.pdbx_TLS_residual_ADP_flag 'LIKELY RESIDUAL'\n"
    path = write(atoms + groups + flag, "model.cif")
    text = TLS.format(statement=STATEMENTS["tlsanl"]) + CRYST1 + PLAIN
    expected = load_structure(write(text), selection="chain A and resseq 1")
    np.testing.assert_allclose(load_structure(path, "chain A").u_cart, expected.u_cart, atol=1e-9)
    assert len(load_tls(path)) == 1 and not warnings(log)
    remark = "_refine.details\n;HYDROGENS ADDED\nATOM RECORD CONTAINS RESIDUAL B\n FACTORS ONLY\n;\n"
    remark = write(atoms + groups + remark, "remark.cif")
    np.testing.assert_allclose(load_structure(remark, "chain A").u_cart, expected.u_cart, atol=1e-9)
    plain = load_structure(write(atoms + groups, "plain.cif"), "chain A")
    np.testing.assert_allclose(plain.u_iso * 8 * np.pi**2, [10, 11, 12, 13, 14])


def test_residual_b_factors_without_groups(write, log):
    head = TLS.format(statement=STATEMENTS["tlsanl"])
    others = head.replace("A     1        A     1", "X     1        X     1")
    others = others.replace("b     1        b", "y     1        y")
    for text in (head.split("REMARK   3   TLS GROUP")[0], head.replace("T11:   0.0445", "T11:   NULL"), others):
        log.clear()
        same_atoms(load_structure(write(text + CRYST1 + PLAIN)), load_structure(write(CRYST1 + PLAIN)))
        assert "says that its B factors are residual" in warnings(log)[0]
        assert "displacements are too small by that" in warnings(log)[0]


def test_tensors_beside_residual_b_factors(write):
    """A tensor that agrees with its B factor is residual too, one that is larger is the sum."""
    residual = f"ANISOU    1  N   GLY A   1  {1266:7d}{1266:7d}{1266:7d}      0      0      0       N\n"
    total = f"ANISOU    5  H   GLY A   1A {3000:7d}{3000:7d}{3000:7d}      0      0      0       H\n"
    lines = PLAIN.splitlines(keepends=True)
    text = TLS.format(statement=STATEMENTS["tlsanl"]) + CRYST1
    plain = load_structure(write(text + PLAIN))
    structure = load_structure(write(text + lines[0] + residual + "".join(lines[1:5]) + total + "".join(lines[5:])))
    np.testing.assert_allclose(structure.u_cart[4], 0.3 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(structure.u_cart[0], plain.u_cart[0], atol=1e-4)


# --------------------------------------------------------------------------------------- copies that MTRIX records add

ANGLE = np.radians(70.0)
R = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
SHIFT = np.array([3.0, -2.0, 11.0])


def mtrix(rotation=R, shift=SHIFT, serial=2, given=" ") -> str:
    text = "".join(
        f"MTRIX{i + 1} {serial:3d}" + "%10.6f" * 3 % tuple(r) + f"     {t:10.5f}    {given}\n"
        for i, (r, t) in enumerate(zip(rotation, shift))
    )
    return text


IDENTITY = mtrix(np.eye(3), np.zeros(3), 1, "1")


def copied(text: str, rotation=R, shift=SHIFT, chains=("C", "D")) -> str:
    """Records of the rotated atoms, tensors included."""
    root = iotbx_input(source_info=None, lines=CRYST1 + text).construct_hierarchy(sort_atoms=False)
    for atom in root.atoms():
        atom.set_xyz(tuple(rotation @ np.array(atom.xyz) + shift))
        if atom.uij_is_defined():
            a, b, c, d, e, f = atom.uij
            u = rotation @ np.array([[a, d, e], [d, b, f], [e, f, c]]) @ rotation.T
            atom.set_uij(tuple(u[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]))
    for chain, name in zip(root.chains(), chains):
        chain.id = name
    return root.as_pdb_string()


def test_mtrix_records_complete_the_asymmetric_unit(write, log):
    structure = load_structure(write(CRYST1 + IDENTITY + mtrix() + ATOMS))
    assert "complete the asymmetric unit: 1 copies are added to 6 atoms, as chains C, D" in log.text
    assert not warnings(log)
    expected = load_structure(write(CRYST1 + ATOMS + copied(ATOMS)))
    same_atoms(structure, expected, tolerance=1e-3)  # of coordinates, and of tensors to 1e-4 Å²
    assert load_structure(write(CRYST1 + IDENTITY + mtrix() + ATOMS), "chain A").n_atoms == 5
    assert load_structure(write(CRYST1 + IDENTITY + mtrix() + ATOMS), "chain C").n_atoms == 5


@pytest.mark.parametrize("records", [IDENTITY, IDENTITY + mtrix(given="1"), mtrix(np.eye(3), np.zeros(3), 1), ""])
def test_mtrix_records_that_add_nothing(write, log, records):
    same_atoms(load_structure(write(CRYST1 + records + ATOMS)), load_structure(write(CRYST1 + ATOMS)))
    assert not log.records


def test_copies_that_are_there_although_the_file_does_not_say_so(write, log):
    whole = ATOMS + copied(ATOMS)
    structure = load_structure(write(CRYST1 + IDENTITY + mtrix() + whole))
    same_atoms(structure, load_structure(write(CRYST1 + whole)))
    assert "do not say that the copies by 2 are in the file, but they are; they are not added" in warnings(log)[0]


def test_mtrix_records_that_are_refused(write):
    with pytest.raises(DiffuseError, match="MTRIX records of operator 2 are no rotation"):
        load_structure(write(CRYST1 + IDENTITY + mtrix(1.1 * R) + ATOMS))
    with pytest.raises(DiffuseError, match="MTRIX records of operator 2 are no rotation"):
        load_structure(write(CRYST1 + IDENTITY + mtrix(-R) + ATOMS))
    with pytest.raises(DiffuseError, match="copies by the MTRIX records 2 are in the file, those by 3 are not"):
        load_structure(write(CRYST1 + IDENTITY + mtrix(given="1") + mtrix(R.T, serial=3) + ATOMS))
    with pytest.raises(DiffuseError, match="MTRIX records cannot be read"):
        load_structure(write(CRYST1 + IDENTITY + mtrix().splitlines()[0] + "\n" + ATOMS))


def test_copies_of_mmcif_files(write):
    """Looped or not; generate and given."""
    items = [f"matrix[{i}][{j}]" for i in "123" for j in "123"] + [f"vector[{i}]" for i in "123"]
    numbers = [*R.reshape(-1), *SHIFT]
    single = "_struct_ncs_oper.id 1\n_struct_ncs_oper.code generate\n" + "".join(
        f"_struct_ncs_oper.{item} {x:.9f}\n" for item, x in zip(items, numbers)
    )
    loop = "loop_\n" + "".join(f"_struct_ncs_oper.{item}\n" for item in ("id", "code", *items))
    loop += "1 given 1 0 0 0 1 0 0 0 1 0 0 0\n2 generate " + " ".join(f"{x:.9f}" for x in numbers) + "\n"
    expected = load_structure(write(CRYST1 + ATOMS + copied(ATOMS)))
    for text in (single, loop):
        same_atoms(load_structure(write(MMCIF + text, "model.cif")), expected, tolerance=1e-3)
    same_atoms(
        load_structure(write(MMCIF + loop.replace("generate", "given"), "model.cif")),
        load_structure(write(MMCIF, "m.cif")),
    )


def test_biological_assemblies_are_not_made(write, log):
    """REMARK 350: the copies are made by the crystal, or not at all."""
    remark = "".join(
        f"REMARK 350   BIOMT{i + 1}   2" + "%10.6f" * 3 % tuple(row) + f"     {t:10.5f}\n"
        for i, (row, t) in enumerate(zip(R, SHIFT))
    )
    same_atoms(load_structure(write(remark + CRYST1 + ATOMS)), load_structure(write(CRYST1 + ATOMS)))
    assert not log.records


def test_groups_and_copies(write):
    """Residual B factors are completed before atoms are copied; groups of a rigid body would lack the copies."""
    head = TLS.format(statement=STATEMENTS["tlsanl"]) + CRYST1
    path = write(head + IDENTITY + mtrix() + PLAIN)
    structure, single = load_structure(path), load_structure(write(head + PLAIN, "single.pdb"))
    np.testing.assert_allclose(structure.u_cart[7:], R @ single.u_cart @ R.T, atol=1e-6)
    assert len(load_tls(write(head + PLAIN))) == 2
    with pytest.raises(
        DiffuseError, match="TLS groups are those of the atoms in the file, but MTRIX records add copies"
    ):
        load_tls(write(head + IDENTITY + mtrix() + PLAIN))


def test_copies_of_each_model(write):
    models = "".join(f"MODEL     {k:4d}\n{ATOMS}ENDMDL\n" for k in (1, 2))
    assert [m.n_atoms for m in load_models(write(CRYST1 + IDENTITY + mtrix() + models))] == [12, 12]


def test_what_a_file_says_is_kept(write):
    """Before anything is made of it: blank, shifted and unknown as they are."""
    file = read_coordinates(write(CRYST1 + IDENTITY + mtrix() + ATOMS.replace("1.00 13.00", "          ")))
    assert len(file.models) == 1 and file.models[0].n_atoms == 6
    assert [operator.given for operator in file.content.operators] == [True, False]
    assert np.isnan(file.models[0].u_iso).tolist() == [False, False, False, True, False, False]
    assert np.isnan(file.models[0].occupancy).tolist() == [False, False, False, True, False, False]
    assert file.models[0].charge.tolist() == ["", "", "", "1-", "", "2+"]
    np.testing.assert_allclose(file.position((1, 2, 3)), (1, 2, 3))


# ----------------------------------------------------------------------------------------------- what is made of a file


def uncorrelated(structure) -> np.ndarray:
    """Diffuse intensity of atoms that move independently, on a small grid; electrons² per cell."""
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 2.0)
    return compute_model(structure, grid, Uncorrelated()).map.intensity


def test_intensity_of_completed_files(write):
    """Right values: those of the files written out. What the records alone would give is far from it."""
    head = TLS.format(statement=STATEMENTS["tlsanl"])
    residual = uncorrelated(load_structure(write(head + CRYST1 + PLAIN)))
    whole = uncorrelated(load_structure(write(written_out(head + CRYST1 + PLAIN))))
    bare = uncorrelated(load_structure(write(CRYST1 + PLAIN)))
    np.testing.assert_allclose(residual, whole, rtol=1e-3)
    assert np.min(bare[1:] / whole[1:]) == pytest.approx(0.67, abs=0.01)  # at low angles, where it is U
    half = uncorrelated(load_structure(write(CRYST1 + ATOMS)))
    expanded = uncorrelated(load_structure(write(CRYST1 + IDENTITY + mtrix() + ATOMS)))
    whole = uncorrelated(load_structure(write(CRYST1 + ATOMS + copied(ATOMS))))
    np.testing.assert_allclose(expanded, whole, rtol=1e-3)
    assert half.mean() / whole.mean() == pytest.approx(0.5, abs=0.001)


def test_frames_of_a_trajectory_belong_to_the_atoms_in_the_order_of_the_file(write, tmp_path):
    """Also where iotbx would sort them, and of a selection; atoms of unknown element are in the frames, too."""
    mdtraj = pytest.importorskip("mdtraj", reason="TRAJECTORIES NOT CHECKED: install mdtraj")
    lines = [line for line in ATOMS.splitlines() if "ANISOU" not in line and "BGLY" not in line]
    lines = [lines[2], lines[1].replace(" CA AGLY", " CA  GLY"), lines[0], lines[3]]
    unknown = "HETATM    9  X   UNX C   1       5.000   6.000   7.000  1.00 15.00           X"
    path = write("\n".join([CRYST1 + lines[0], *lines[1:3], unknown, lines[3]]))
    sites = np.array([[float(line[k : k + 8]) for k in (30, 38, 46)] for line in path.read_text().splitlines()[1:]])
    frames = sites + 0.3 * np.random.default_rng(0).normal(size=(4, 5, 3))
    with mdtraj.open(str(tmp_path / "frames.dcd"), "w") as handle:
        handle.write(frames.astype(np.float32))
    with pytest.raises(DiffuseError, match="selection='not resname UNX'"):
        load_trajectory(tmp_path / "frames.dcd", path)
    members = load_trajectory(tmp_path / "frames.dcd", path, selection="not resname UNX")
    assert [name.strip() for name in members[0].name] == ["O", "CA", "N", "H"]
    np.testing.assert_allclose([m.site_cart for m in members], frames[:, [0, 1, 2, 4]], atol=1e-5)


# ------------------------------------------------------------------------------------------------------ small molecules

MOLECULE = """\
data_complex
_cell_length_a 9.1234(5)
_cell_length_b 11.5678(7)
_cell_length_c 13.2345(8)
_cell_angle_alpha 90
_cell_angle_beta 101.234(3)
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 21/c'
_symmetry_Int_Tables_number 14
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
'-x, y+1/2, -z+1/2'
'-x, -y, -z'
'x, -y-1/2, z-1/2'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
_atom_site_adp_type
_atom_site_occupancy
_atom_site_calc_flag
_atom_site_disorder_group
Fe1 Fe2+ 0.0000 0.0000 0.0000 0.0250(2) Uani 1 d .
Cl1 Cl 0.2345(2) 0.1234(1) 0.0567(1) 0.0450(3) Uani 1 d .
C1 C 0.3456(3) 0.4567(2) 0.2345(2) 0.0350(4) Uiso 1 d .
H1A H 0.4012 0.4890 0.1789 0.042 Uiso 1 calc .
O1A O 0.1234 0.6789 0.3456 0.0550 Uiso 0.63(2) d 1
O1B O 0.1456 0.6900 0.3300 0.0550 Uiso 0.37(2) d 2
Na1 Na 0.5000 0.5000 0.0000 0.0400 Uiso 0.5 d .
X1 . 0.7 0.7 0.7 0.05 Uiso 1 dum .
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
_atom_site_aniso_U_22
_atom_site_aniso_U_33
_atom_site_aniso_U_12
_atom_site_aniso_U_13
_atom_site_aniso_U_23
Fe1 0.021(1) 0.028(1) 0.026(1) 0.003(1) 0.006(1) -0.002(1)
Cl1 0.035(2) 0.050(2) 0.047(2) -0.008(2) 0.012(2) 0.005(2)
"""


def test_small_molecules(write, log):
    """Structure factors are those of cctbx's own reader; atoms on special positions count as often as the sites."""
    structure = load_structure(write(MOLECULE, "molecule.cif"))
    assert not log.records
    assert structure.name.tolist() == ["Fe1", "Cl1", "C1", "H1A", "O1A", "O1B", "Na1"]
    assert structure.scattering_type.tolist() == ["Fe2+", "Cl", "C", "H", "O", "O", "Na"]
    assert structure.altloc.tolist() == ["", "", "", "", "1", "2", ""]
    assert structure.multiplicity.tolist() == [2, 4, 4, 4, 4, 4, 2]
    assert structure.space_group.type().lookup_symbol() == "P 1 21/c 1"
    text = "\n".join(line for line in MOLECULE.splitlines() if not line.startswith("X1"))
    (expected,) = cif_reader(input_string=text).build_crystal_structures().values()
    expected.scattering_type_registry(table="wk1995")
    indices = miller.build_set(expected, anomalous_flag=True, d_min=1.0)
    f = indices.structure_factors_from_scatterers(expected, algorithm="direct").f_calc().data().as_numpy_array()
    mine = direct_transform(structure.expand(), np.array(indices.indices()))
    np.testing.assert_allclose(mine, f, atol=1e-6 * np.abs(f).max())


def test_small_molecules_with_b_factors_and_without_symbols(write):
    """B in the place of U, elements from labels, and a group by its symbol alone."""
    expected = load_structure(write(MOLECULE, "molecule.cif"), selection="not element Na and not element Fe")
    lines = [line for line in MOLECULE.splitlines() if not line.startswith(("Na1", "Fe1", "X1", "'"))]
    text = (
        "\n".join(lines)
        .replace("_symmetry_equiv_pos_as_xyz", "_x.y\n1")
        .replace("_atom_site_type_symbol", "_atom_site_z")
    )
    factor = 8 * np.pi**2
    text = text.replace("U_iso_or_equiv", "B_iso_or_equiv").replace("aniso_U", "aniso_B")
    for u in ("0.0450(3)", "0.0350(4)", "0.042", "0.0550"):
        text = text.replace(f" {u} U", f" {float(u.split('(')[0]) * factor:.9f} U")
    tensor = "0.035(2) 0.050(2) 0.047(2) -0.008(2) 0.012(2) 0.005(2)"
    text = text.replace(tensor, " ".join(f"{float(x.split('(')[0]) * factor:.9f}" for x in tensor.split()))
    same_atoms(load_structure(write(text, "b.cif")), expected, tolerance=1e-8)


def test_program_with_a_selection(write, monkeypatch, tmp_path, capsys):
    """Of a compressed file with an atom of unknown element and an Å in Latin-1."""
    monkeypatch.chdir(tmp_path)
    unknown = "HETATM    9  X   UNX C   1       5.000   6.000   7.000  1.00 15.00           X\n"
    text = "REMARK   3  1.5 Å\n" + CRYST1 + ATOMS + unknown
    write(gzip.compress(text.encode("latin-1")), "model.pdb.gz")
    arguments = ["model.pdb.gz", "model=uncorrelated", "d_min=3", "grid.subdivide=1,1,1", "output.png=None"]
    assert "by selection='not resname UNX'" in fails(run, arguments, capsys)
    run([*arguments, "selection=not resname UNX"])
    structure = load_structure(write(CRYST1 + ATOMS))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 3.0)
    expected = compute_model(structure, grid, Uncorrelated()).map
    np.testing.assert_allclose(read_map("diffuse_model.nxs").intensity, expected.intensity, rtol=1e-6)


def test_selection_reaches_members_and_origins(write):
    """Of ensembles and of the body that rotates: atoms that are left out need no element."""
    unknown = "HETATM    9  X   UNX C   1       5.000   6.000   7.000  1.00 15.00           X\n"
    models = "".join(f"MODEL     {k:4d}\n{ATOMS}{unknown}ENDMDL\n" for k in (1, 2))
    path = str(write(CRYST1 + models))
    with pytest.raises(DiffuseError, match="X UNX C 1 is unknown"):
        model_of("model=ensemble", coordinates=path)
    model = model_of("model=ensemble", coordinates=path, selection="not resname UNX")
    assert [m.n_atoms for m in model.members] == [6, 6]
    words = ["model=rigid_body", "rigid_body.body=tls", "rigid_body.tls.L=9,9,9,0,0,0"]
    body = model_of(*words, coordinates=path, selection="chain A")
    np.testing.assert_allclose(body.tls[0].origin, load_structure(path, "chain A").site_cart.mean(axis=0))
