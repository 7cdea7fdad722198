"""Elements of atoms: from columns, residues and names; the intensity is that of the same file with element columns."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.atoms import load_models, load_structure
from dials_diffuse.structure.factors import sum_of_squares
from dials_diffuse.structure.transform import direct_transform

CRYST1 = "CRYST1   20.000   21.000   22.000  90.00  95.00  90.00 P 1 21 1      2\n"

# name as programs of simulation write it, and element; residues with names of CHARMM, AMBER, GROMACS and the PDB
RESIDUES = {
    "VAL": " N  N| H  H| CA C| HA H| CB C| HB H| CG1C|HG11H|HG12H|1HG2H| C  C| O  O",
    "HSD": " N  N| HN H| CA C| CB C| ND1N| HD1H| CG C| CE1C| HE1H| NE2N| CD2C| HD2H| C  C| O  O",
    "HIE": " N  N| CA C| CB C| NE2N| HE2H| CE1C| C  C| O  O",
    "GLN": " N  N| CA C| CB C| CG C| CD C| OE1O| NE2N|HE21H|HE22H| C  C| O  O",
    "LEU": " N  N| CA C| CB C| CG C| CD1C|HD11H|HD12H|HD13H| CD2C|HD21H| C  C| OT1O| OT2O",
    "ARG": " N  N| CA C| NE N| HE H| CZ C| NH1N|HH11H|HH12H| NH2N|HH21H| C  C| O  O",
    "CYX": " N  N| CA C| CB C| SG S| C  C| O  O",
    "MSE": " N  N| CA C| CB C| CG C|SE  Se| CE C| HE1H| C  C| O  O",
    "SEP": " N  N| CA C| CB C| OG O| P  P| O1PO|HO3PH| C  C| O  O",
    "NALA": " N  N| H1 H| CA C|HB1 H|HB2 H| C  C| O  O",
    "DA5": " O5'O|HO5'H| C5'C|H5''H| C4'C| O4'O| C1'C| N9 N| C8 C| HO3H",
    "G": " P  P| O1PO| C5*C| C4*C| O4*O| C1*C| N9 N|H5*1H| C8 C",
    "XYZ": " N  N| CA C| CB C| CD C| HG H| C  C| O  O",  # an amino acid that nobody knows
    "TIP3": " OH2O| H1 H| H2 H",
    "SOL": " OW O| HW1H| HW2H",
    "WAT": " O  O| H1 H| H2 H",
    "DOD": " O  O| D1 H| D2 H",
    "GOL": " C1 C| O1 O| HO1H|HO2 H| C2 C",
    "CA": "CA  Ca",
    "SOD": " SODNa",
    "CLA": " CLACl",
    "POT": " POTK",
    "ZN2": " ZN Zn",
    "MG": " MG Mg",
    "Na+": " Na+Na",
    "K": " K  K",
}


def rows(residues=RESIDUES, seed=0) -> list:
    """(name, residue name, number, element, site, B) of each atom."""
    rng = np.random.default_rng(seed)
    found = []
    for number, (residue, text) in enumerate(residues.items(), 1):
        for atom in text.split("|"):
            found.append((atom[:4], residue, number, atom[4:], rng.uniform(0, 19, 3), rng.uniform(5, 20)))
    return found


def pdb(atoms, elements=True, head=CRYST1) -> str:
    lines = []
    for serial, (name, residue, number, element, (x, y, z), b) in enumerate(atoms, 1):
        line = f"ATOM  {serial:5d} {name:4s} {residue:<4s}A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{1:6.2f}{b:6.2f}"
        lines.append(line + (f"          {element.upper():>2s}" if elements else ""))
    return head + "\n".join(lines) + "\n"


@pytest.fixture
def load(tmp_path):
    def load(text, name="model.pdb", **options):
        (tmp_path / name).write_text(text)
        return load_structure(tmp_path / name, **options)

    return load


def same_intensity(one, other):
    hkl = np.random.default_rng(0).uniform(-9, 9, (60, 3))
    s = np.linspace(0, 1, 20)
    np.testing.assert_allclose(sum_of_squares(one, s), sum_of_squares(other, s), rtol=1e-12)
    np.testing.assert_allclose(direct_transform(one, hkl), direct_transform(other, hkl), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("residue", RESIDUES)
def test_elements_are_those_of_the_residue(load, residue, caplog):
    atoms = rows({residue: RESIDUES[residue]})
    with caplog.at_level(logging.INFO, logger="dials.diffuse"):
        structure = load(pdb(atoms, elements=False))
    assert structure.element.tolist() == [row[3] for row in atoms]
    assert f"{len(atoms)} of {len(atoms)} atoms have no element column; their residues tell" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_intensity_of_a_file_without_elements(load):
    """With iotbx's rule alone, HG11 is mercury, HE21 helium and the ion a carbon."""
    whole, bare = load(pdb(rows())), load(pdb(rows(), elements=False))
    same_intensity(whole, bare)
    assert whole.residue_name.tolist()[-13:-10] == bare.residue_name.tolist()[-13:-10]


def test_names_are_guessed_in_unknown_residues(load, caplog):
    atoms = rows({"LIG": "CL1 Cl| C1 C| CL C|FE  Fe| NA N|HO31H|BR12Br| F1 F|C123C|HG1 H", "VAL": RESIDUES["VAL"]})
    with caplog.at_level(logging.INFO, logger="dials.diffuse"):
        structure = load(pdb(atoms, elements=False))
    assert structure.element.tolist() == [row[3] for row in atoms]
    assert "10 of 22 atoms have no element column and are in residues that are not known" in caplog.text
    assert "guessed from their names, such as Cl for CL1 LIG A 1" in caplog.text
    assert "12 of 22 atoms have no element column; their residues tell the element" in caplog.text


def test_names_that_begin_in_the_first_column(load):
    """The rule of PDB files for two letters says nothing there: CA is carbon."""
    names = {"N": "N", "CA": "C", "CB": "C", "NE": "N", "OS": "O", "H1": "H", "CL1": "Cl", "FE": "Fe", "ZN1": "Zn"}
    atoms = [(f"{name:4s}", "LIG", 1, e, (k, 2 * k, 3), 9) for k, (name, e) in enumerate(names.items())]
    assert load(pdb(atoms, elements=False)).element.tolist() == list(names.values())


def test_unknown_elements_stop_only_what_uses_them(load):
    atoms = [
        *rows({"VAL": RESIDUES["VAL"]}),
        (" X  ", "UNX", 7, "X", (1, 2, 3), 9),
        (" X2 ", "UNX", 8, "X", (4, 5, 6), 9),
    ]
    with pytest.raises(DiffuseError, match=r"element of atom X UNX A 7 is unknown \(its column has 'X'\)") as error:
        load(pdb(atoms))
    assert "2 of 14 atoms are like that" in str(error.value)
    assert "selection='not resname UNX'" in str(error.value)
    chosen = load(pdb(atoms), selection="not resname UNX")
    same_intensity(chosen, load(pdb(atoms[:-2])))
    assert load(pdb(atoms), selection="not element X").n_atoms == 12
    with pytest.raises(DiffuseError, match=r"selection='\(chain A\) and not resname UNX'"):
        load(pdb(atoms), selection="chain A")
    with pytest.raises(DiffuseError, match=r"selection='resname LIG': no atoms are left of 14"):
        load(pdb(atoms), selection="resname LIG")
    with pytest.raises(DiffuseError, match="selection='chain A and': not understood"):
        load(pdb(atoms), selection="chain A and")


def test_the_selection_that_is_suggested_works(load):
    """Of a residue with known atoms only the unknown ones are left out; the massless point of TIP4P is one."""
    atoms = rows({"VAL": RESIDUES["VAL"], "SOL": " OW O| HW1H| HW2H| MW ", "DUM": " Q  Q", "LIG": " C1 C| X1 X"})
    with pytest.raises(DiffuseError) as error:
        load(pdb(atoms))
    selection = str(error.value).split("selection=")[1].strip("'")
    assert selection == "not ((resname LIG and name X1) or (resname SOL and name MW) or resname DUM)"
    chosen = load(pdb(atoms), selection=selection)
    same_intensity(chosen, load(pdb([row for row in atoms if row[3] not in ("", "Q", "X")])))


def test_elements_without_form_factors(load):
    atoms = [*rows({"VAL": RESIDUES["VAL"]}), ("ES  ", "ES", 7, "Es", (1, 2, 3), 9)]
    with pytest.raises(DiffuseError, match=r"no form factors for Es, the element of atom ES ES A 7; 1 of 13"):
        load(pdb(atoms))
    assert load(pdb(atoms), selection="not resname ES").n_atoms == 12


def test_a_file_in_which_no_element_is_known(load):
    with pytest.raises(DiffuseError, match=r"elements of all 1 atoms are unknown, such as that of Q DUM A 1"):
        load(pdb([(" Q  ", "DUM", 1, "Q", (1, 2, 3), 9)]))


def test_left_out_atoms_neither_stop_nor_warn(load, caplog):
    """Negative and missing occupancies, alternate ones, missing B factors, guessed elements, negative tensors."""
    text = pdb(rows({"VAL": RESIDUES["VAL"]}))
    bad = (
        "ATOM     90  C1  LIG B   1       1.000   2.000   3.000 -1.00 10.00           C\n"
        "ATOM     91 CL2  LIG B   1       1.500   2.000   3.000  1.00\n"
        "ATOM     92  C3 ALIG B   1       2.500   2.000   3.000                       C\n"
        "ATOM     93  C4  LIG B   1       3.500   2.000   3.000  1.00 10.00           C\n"
        "ANISOU   93  C4  LIG B   1    -1000   1000   1000      0      0      0       C\n"
    )
    with caplog.at_level(logging.INFO, logger="dials.diffuse"):
        same_intensity(load(text + bad, selection="chain A"), load(text))
    assert not caplog.records


def test_columns_that_contradict_the_residue(load, caplog):
    """Some programs write the first two letters of the name: the carbon CA becomes calcium, HG mercury."""
    wrong = {" CA ": "CA", " CD ": "CD", " NE ": "NE", " CE ": "CE"}
    atoms = rows({"ARG": RESIDUES["ARG"], "GLN": RESIDUES["GLN"], "CA": RESIDUES["CA"]})
    written = [(*row[:3], wrong.get(row[0], row[3]), *row[4:]) for row in atoms]
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        structure = load(pdb(written))
    same_intensity(structure, load(pdb(atoms)))
    assert (
        "the element columns of 4 atoms contradict their residues, whose elements are used, such as C for CA ARG"
        in (caplog.text)
    )


def test_columns_of_old_files_and_small_letters(load):
    """Columns 73-80 had a code and the number of the line; and symbols in lower case, on the left, with charges."""
    atoms = rows({"VAL": RESIDUES["VAL"]})
    lines = pdb(atoms, elements=False).splitlines()
    old = [lines[0]] + [f"{line:72s}1ABC{k:4d}" for k, line in enumerate(lines[1:], 996)]
    same_intensity(load("\n".join(old)), load(pdb(atoms)))
    left = [lines[0]] + [f"{line:76s}{row[3].lower():2s}" for line, row in zip(lines[1:], atoms)]
    same_intensity(load("\n".join(left)), load(pdb(atoms)))
    zinc = pdb([("ZN  ", "ZN", 1, "Zn", (1, 2, 3), 9), (" O  ", "OXY", 2, "O", (5, 5, 5), 9)])
    charged = zinc.replace("          ZN", "          ZN2+").replace("           O", "           O-1")
    assert load(charged).scattering_type.tolist() == ["Zn2+", "O1-"]
    nonsense = zinc.replace("          ZN", "          ZNab").replace("           O", "           O 1")
    assert load(nonsense).scattering_type.tolist() == ["Zn", "O"]


def test_deuterium_and_tritium_are_hydrogen(load):
    atoms = [(" D1 ", "DOD", 1, "D", (1, 2, 3), 9), (" T1 ", "HOH", 2, "T", (4, 5, 6), 9)]
    structure = load(pdb(atoms))
    assert structure.element.tolist() == ["H", "H"] == structure.scattering_type.tolist()


def test_models_with_other_elements(tmp_path):
    """As in files of NMR: each model has its own atoms; what one selection leaves out, it leaves out of all."""
    first, second = rows({"VAL": RESIDUES["VAL"]}), rows({"HSD": RESIDUES["HSD"]}, seed=1)
    unknown = (" X  ", "UNX", 9, "X", (1, 2, 3), 9)
    text = CRYST1 + "".join(
        f"MODEL     {k:4d}\n{pdb(atoms, elements=k == 2, head='')}ENDMDL\n"
        for k, atoms in enumerate((first, [*second, unknown]), 1)
    )
    path = tmp_path / "models.pdb"
    path.write_text(text)
    assert load_structure(path).n_atoms == len(first)
    with pytest.raises(DiffuseError, match="atom X UNX A 9"):
        load_models(path)
    members = load_models(path, "not resname UNX")
    assert [m.element.tolist() for m in members] == [[row[3] for row in atoms] for atoms in (first, second)]


def test_segments_are_chains_where_there_are_no_others(load):
    atoms = rows({"VAL": RESIDUES["VAL"]})
    lines = pdb(atoms).splitlines()[1:]
    segments = ["PROA"] * 6 + ["PROB"] * 6
    text = "\n".join(f"{line[:21]} {line[22:72]}{segment}{line[76:]}" for line, segment in zip(lines, segments))
    structure = load(CRYST1 + text)
    assert structure.chain.tolist() == segments
    assert structure.select("chain PROB").sum() == 6


def test_elements_of_mmcif_files_without_symbols(load):
    atoms = rows({"VAL": RESIDUES["VAL"], "CA": RESIDUES["CA"]})
    items = ["id", "type_symbol", "label_atom_id", "label_comp_id", "label_asym_id", "label_seq_id"]
    items += ["Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv"]
    head = (
        "data_m\n_cell.length_a 20\n_cell.length_b 21\n_cell.length_c 22\n_cell.angle_beta 95\n"
        "_symmetry.space_group_name_H-M 'P 1 21 1'\nloop_\n"
    )
    lines = [
        f"{k} ? {name.strip()} {residue} A {number} {x:.3f} {y:.3f} {z:.3f} 1.0 {b:.2f}"
        for k, (name, residue, number, _, (x, y, z), b) in enumerate(atoms, 1)
    ]
    text = head + "".join(f"_atom_site.{item}\n" for item in items) + "\n".join(lines) + "\n"
    same_intensity(load(text, "model.cif"), load(pdb(atoms)))
