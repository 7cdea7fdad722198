"""Atoms, form factors and structure factors against cctbx and against direct summation."""

from __future__ import annotations

import logging
import sys

import iotbx.cif.model
import iotbx.pdb
import numpy as np
import pytest
from cctbx import miller
from helpers.structures import ATOMS, CRYST1, GROUP_NAMES, GROUPS, random_structure, special_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.structure import transform as transform_module
from dials_diffuse.structure.atoms import load_structure, make_structure
from dials_diffuse.structure.factors import TABLES, compton, form_factors, sum_of_squares
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors
from dials_diffuse.structure.transform import (
    direct_transform,
    lattice_transform,
    off_lattice_transform,
    quadratic_form,
    s_squared,
    structure_factors,
    transform_at,
)


def cctbx_f_calc(structure, d_min):
    """Indices and structure factors by cctbx's own direct summation in the space group."""
    wanted = miller.build_set(structure.crystal_symmetry, anomalous_flag=True, d_min=d_min)
    atoms = structure.xray_structure.deep_copy_scatterers()
    atoms.scattering_type_registry(table="wk1995")
    f = wanted.structure_factors_from_scatterers(xray_structure=atoms, algorithm="direct").f_calc()
    return np.array(f.indices()), f.data().as_numpy_array()


def test_pdb_file(write):
    structure = load_structure(write(CRYST1 + ATOMS))
    assert structure.unit_cell == (20, 21, 22, 90, 95, 90)
    assert structure.space_group.type().lookup_symbol() == "P 1 21 1"
    assert structure.element.tolist() == ["N", "C", "C", "O", "H", "Zn"]
    assert structure.scattering_type.tolist() == ["N", "C", "C", "O1-", "H", "Zn2+"]
    assert structure.occupancy.tolist() == [1, 0.6, 0.4, 1, 1, 1]
    assert structure.altloc.tolist() == ["", "A", "B", "", "", ""]
    assert structure.residue.tolist() == ["   1 ", "   1 ", "   1 ", "   1A", "   1A", "   5 "]
    assert structure.chain.tolist() == ["A"] * 5 + ["B"]
    np.testing.assert_allclose(structure.site_cart[5], [9, 8, 7], atol=1e-12)
    expected = [[0.1, 0.01, 0.02], [0.01, 0.2, -0.03], [0.02, -0.03, 0.3]]
    np.testing.assert_allclose(structure.u_cart[0], expected, atol=1e-12)
    np.testing.assert_allclose(structure.u_cart[1], 11 / (8 * np.pi**2) * np.eye(3), atol=1e-12)
    assert structure.isotropic.tolist() == [False] + [True] * 5


def test_mmcif_file_gives_the_same_atoms(write):
    path = write(CRYST1 + ATOMS)
    source = iotbx.pdb.input(file_name=str(path))
    cif = iotbx.cif.model.cif()
    cif["model"] = source.construct_hierarchy().as_cif_block(crystal_symmetry=source.crystal_symmetry())
    first, second = load_structure(path), load_structure(write(str(cif), "model.cif"))
    for name in ("element", "scattering_type", "site_frac", "occupancy", "u_cart", "chain", "residue", "name"):
        a, b = getattr(first, name), getattr(second, name)
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
        else:
            assert a.tolist() == b.tolist(), name


def test_first_model_of_several(write, caplog):
    text = CRYST1 + "".join(f"MODEL        {i}\n{ATOMS}ENDMDL\n" for i in (1, 2))
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        structure = load_structure(write(text))
    assert structure.n_atoms == 6
    assert "2 models, only the first is used" in caplog.text


def test_scale_records_of_another_frame_are_honoured(write):
    """A file whose axes are permuted against the cell's standard frame describes the same crystal."""
    cell = "CRYST1   20.000   21.000   22.000  90.00  90.00  90.00 P 1           1\n"
    scale = (
        "SCALE1      0.000000  0.050000  0.000000        0.00000\n"
        "SCALE2      0.000000  0.000000  0.047619        0.00000\n"
        "SCALE3      0.045455  0.000000  0.000000        0.25000\n"
    )
    turned = load_structure(write(cell + scale + ATOMS))
    plain = load_structure(write(cell + ATOMS))
    np.testing.assert_allclose(turned.site_cart[0], [2, 3, 1 + 5.5], atol=1e-4)
    np.testing.assert_allclose(turned.u_cart[0], plain.u_cart[0][np.ix_([1, 2, 0], [1, 2, 0])], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ATOMS, "has no unit cell"),
        ("CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n" + ATOMS, "has no unit cell"),
        (CRYST1.replace("P 1 21 1", "P 7 8 9 ") + ATOMS, "space group|cannot be read"),
        (CRYST1, "no atoms"),
        ("hello\n", "no atoms|cannot be read"),
        (CRYST1 + ATOMS.replace("          ZN2+", "          QQ  ").replace("ZN    ZN", "QQ    QQ"), "element"),
    ],
    ids=["no-cryst1", "dummy-cryst1", "no-space-group", "no-atoms", "not-pdb", "unknown-element"],
)
def test_bad_files_are_refused(write, text, complaint):
    path = write(text)
    with pytest.raises(DiffuseError, match=complaint) as error:
        load_structure(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.replace("5.500  1.00 13.00", "5.500 -1.00 13.00"), "atom O GLY A 1A has an occupancy of -1"),
        (
            lambda t: t.replace("  1.00 ", "  0.00 ").replace("  0.60 ", "  0.00 ").replace("  0.40 ", "  0.00 "),
            "all 0",
        ),
    ],
)
def test_occupancies_that_no_atoms_have(write, change, complaint):
    text = change(ATOMS)
    assert text != ATOMS
    with pytest.raises(DiffuseError, match=complaint.replace("all 0", "all occupancies are 0")):
        load_structure(write(CRYST1 + text))


def test_negative_displacements_are_replaced(write, caplog):
    """Of a tensor only what is negative; what is rounding of the file without a warning."""
    text = ATOMS.replace("ANISOU    1  N   GLY A   1     1000 ", "ANISOU    1  N   GLY A   1    -1000 ")
    text = text.replace("5.500  1.00 13.00", "5.500  1.00-13.00")
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        structure = load_structure(write(CRYST1 + text))
    assert "2 atoms have negative mean square displacements (the lowest, -0.165 Å², O GLY A 1A)" in caplog.text
    tensor = np.array([[-0.1, 0.01, 0.02], [0.01, 0.2, -0.03], [0.02, -0.03, 0.3]])
    values, vectors = np.linalg.eigh(tensor)
    np.testing.assert_allclose(structure.u_cart[0], (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12)
    np.testing.assert_array_equal(structure.u_cart[3], np.zeros((3, 3)))
    caplog.clear()
    flat = "ANISOU    1  N   GLY A   1     1000   1000   1000   1001      0      0       N"
    lines = [flat if line.startswith("ANISOU") else line for line in ATOMS.splitlines()]
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        structure = load_structure(write(CRYST1 + "\n".join(lines) + "\n"))
    assert not caplog.records
    assert np.linalg.eigvalsh(structure.u_cart[0])[0] == pytest.approx(0, abs=1e-12)


def test_arrays_that_no_atoms_have():
    cell = (9, 9, 9, 90, 90, 90)
    with pytest.raises(DiffuseError, match=r"atom 1 has a negative eigenvalue, -0\.1"):
        make_structure(cell, "P 1", ["C", "C"], np.zeros((2, 3)), u=[0.1, -0.1])
    with pytest.raises(DiffuseError, match=r"occupancy of -0\.5"):
        make_structure(cell, "P 1", ["C"], np.zeros((1, 3)), occupancy=-0.5)


def test_atoms_given_twice_are_reported(write, caplog):
    """The same records twice, and a symmetry copy beside the asymmetric unit; not alternate or partial atoms."""
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        load_structure(write(CRYST1 + ATOMS.replace("2.100  2.700  3.300", "2.000  2.500  3.500")))
    assert not caplog.records
    copy = [line.replace(" A   1 ", " C   1 ") for line in ATOMS.splitlines() if "  N   GLY" in line]
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        load_structure(write(CRYST1 + ATOMS + "\n".join(copy) + "\n"))
    assert "1 pairs of atoms are less than 0.3 Å apart" in caplog.text and "N GLY C 1" in caplog.text
    caplog.clear()
    whole = load_structure(write(CRYST1 + ATOMS)).expand().hierarchy.as_pdb_string()
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        load_structure(write(CRYST1 + whole))
    assert "5 pairs" in caplog.text  # of the alternate conformers one has less than half


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(DiffuseError, match="no such file"):
        load_structure(tmp_path / "absent.pdb")


def test_selection(write):
    structure = load_structure(write(CRYST1 + ATOMS))
    assert structure.select("element C and altloc A").tolist() == [False, True, False, False, False, False]
    assert structure.select("chain B or resseq 1 and not element H").sum() == 5
    assert structure.take(structure.select("name CA")).n_atoms == 2
    assert structure.select("element ZN").tolist() == [False] * 5 + [True]
    assert structure.select("hetatm").tolist() == [False] * 5 + [True]
    assert structure.select("anisou").tolist() == [True] + [False] * 5
    with pytest.raises(DiffuseError, match="selection='chain A and"):
        structure.select("chain A and (")
    with pytest.raises(DiffuseError, match="no atoms"):
        structure.take(structure.select("element Fe"))


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_expansion_gives_the_structure_factors_of_the_space_group(symbol, cell):
    structure = random_structure(symbol, cell, anisotropic=True)
    hkl, expected = cctbx_f_calc(structure, 1.5)
    content = structure.expand()
    assert content.n_atoms == structure.n_atoms * structure.space_group.order_z()
    np.testing.assert_allclose(direct_transform(content, hkl), expected, atol=1e-9 * np.abs(expected).max())


def test_copies_are_whole_and_in_the_cell():
    structure = random_structure("P 31 2 1", GROUPS[6][1])
    content = structure.expand()
    distances = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)
    for copy in range(6):
        sites = content.site_cart[content.copy == copy]
        np.testing.assert_allclose(np.linalg.norm(sites[:, None] - sites, axis=-1), distances, atol=1e-9)
        centre = content.site_frac[content.copy == copy].mean(axis=0)
        assert np.all((centre >= -1e-6) & (centre < 1))


def test_special_positions_as_cctbx_has_them():
    structure = special_structure()
    assert structure.multiplicity.tolist() == [1, 4, 4, 4]
    np.testing.assert_allclose(structure.site_frac[0], [0, 0, 0.2], atol=1e-12)
    content = structure.expand()
    assert content.n_atoms == 13 == structure.xray_structure.expand_to_p1().scatterers().size()
    assert content.copy[content.element == "Zn"].tolist() == [0]
    hkl, expected = cctbx_f_calc(structure, 1.5)
    np.testing.assert_allclose(direct_transform(content, hkl), expected, atol=1e-9 * np.abs(expected).max())
    one = structure.molecule()
    assert one.occupancy.tolist() == [0.25, 1, 0.5, 0.7]
    np.testing.assert_allclose(one.occupancy.sum() * 4, content.occupancy.sum())


def test_anisotropic_tensor_on_an_axis_becomes_symmetric():
    tensor = np.diag([0.1, 0.3, 0.2])
    structure = make_structure((9, 9, 11, 90, 90, 90), "P 4", ["C"], [(0, 0, 0.1)], u=tensor[None])
    np.testing.assert_allclose(structure.u_cart[0], np.diag([0.2, 0.2, 0.2]), atol=1e-12)


def test_form_factors_are_those_of_cctbx():
    structure = make_structure((9, 9, 9, 90, 90, 90), "P 1", ["C", "O", "Fe"], np.eye(3) / 3, 0.1)
    s = np.linspace(0, 2, 9)
    for table in TABLES:
        registry = structure.xray_structure.deep_copy_scatterers().scattering_type_registry(table=table)
        f = form_factors(structure, s, table)
        assert structure.types == ("C", "Fe", "O")
        for row, label in zip(f, structure.types):
            expected = [registry.gaussian(label).at_d_star_sq(x) for x in s**2]
            np.testing.assert_allclose(row, expected, rtol=1e-10)
    with pytest.raises(DiffuseError, match="table=xray"):
        form_factors(structure, s, "xray")


def test_dispersion():
    structure = make_structure((9, 9, 9, 90, 90, 90), "P 1", ["Fe", "H"], np.zeros((2, 3)), 0.1)
    f = form_factors(structure, np.zeros(1), wavelength=1.5418)[:, 0] - form_factors(structure, np.zeros(1))[:, 0]
    assert f[0] == pytest.approx(-1.13 + 3.20j, abs=0.1)  # International Tables C, table 4.2.6.8, Cu K alpha
    assert f[1] == 0
    with pytest.raises(DiffuseError, match="wavelength=100"):
        form_factors(structure, np.zeros(1), wavelength=100.0)


def test_sum_of_squares_counts_the_cell():
    structure = special_structure()
    content = structure.expand()
    s = np.array([0.0, 0.2, 0.5])
    f = form_factors(content, s)[content.type_index]
    weight = content.occupancy[:, None] ** 2
    np.testing.assert_allclose(sum_of_squares(structure, s), np.sum(weight * f**2, axis=0), rtol=1e-12)
    factor = np.exp(-content.u_iso[:, None] * (2 * np.pi * s) ** 2)
    np.testing.assert_allclose(
        sum_of_squares(structure, s, displaced=True), np.sum(weight * f**2 * factor, axis=0), rtol=1e-12
    )


def test_compton_goes_from_zero_to_all_electrons():
    structure = special_structure()
    s = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 12.0])
    values = compton(structure, s)
    electrons = 1 * 30 + 4 * 6 + 4 * 0.5 * 16 + 4 * 0.7 * 8
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert np.all(np.diff(values) > 0)
    assert electrons * 0.97 < values[-1] < electrons * 1.001


@pytest.mark.parametrize(("element", "expected"), [("H", 0.769), ("C", 2.61), ("N", 2.86), ("O", 2.80)])
def test_compton_of_single_atoms(element, expected):
    """At sin(theta)/lambda = 0.2; the tables of Hubbell et al. 1975 differ from Balyuzi's by up to 12 %."""
    structure = make_structure((9, 9, 9, 90, 90, 90), "P 1", [element], np.zeros((1, 3)), 0.1)
    assert compton(structure, np.array([0.4]))[0] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("subdivide", [(1, 1, 1), (3, 2, 4)])
@pytest.mark.parametrize("u", [(0.0, 0.0), (0.05, 0.3), (1.5, 3.0)], ids=["at-rest", "displaced", "wide"])
def test_lattice_transform_against_direct_summation(subdivide, u):
    structure = random_structure(elements="CNOSCHZ".replace("Z", "C"), u=u, anisotropic=u[1] > 0, seed=3)
    grid = MapGrid(structure.unit_cell, "P 1", subdivide, 1.1)
    f = lattice_transform(structure, grid)
    s2 = s_squared(grid)
    assert np.array_equal(np.isnan(f), s2 > 1.1**-2 * (1 + 1e-9))
    voxels = np.argwhere(~np.isnan(f))
    expected = direct_transform(structure, (voxels - np.array(grid.extent)) / np.array(subdivide))
    error = np.abs(f[tuple(voxels.T)] - expected)
    s2 = s2[tuple(voxels.T)]
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 1)):
        shell = (s2 * 1.1**2 >= low) & (s2 * 1.1**2 <= high)
        assert np.sqrt(np.mean(error[shell] ** 2)) < 5e-5 * np.sqrt(np.mean(np.abs(expected[shell]) ** 2))


def test_fft_and_direct_structure_factors_agree():
    structure = random_structure("P 31 2 1", GROUPS[6][1])
    grid, fft = structure_factors(structure, 1.5, algorithm="fft")
    _, direct = structure_factors(structure, 1.5, algorithm="direct")
    known = ~np.isnan(direct)
    assert np.array_equal(known, ~np.isnan(fft))
    assert np.sqrt(np.mean(np.abs(fft - direct)[known] ** 2)) < 1e-4 * np.sqrt(np.mean(np.abs(direct)[known] ** 2))
    hkl, expected = cctbx_f_calc(structure, 1.6)
    np.testing.assert_allclose(direct[tuple((hkl + np.array(grid.extent)).T)], expected, atol=1e-6)
    with pytest.raises(DiffuseError, match="algorithm=slow"):
        structure_factors(structure, 2.0, algorithm="slow")


def test_another_cell_is_refused():
    structure = random_structure()
    grid = MapGrid((9.2, 10.5, 12.0, 80.0, 95.0, 107.0), "P 1", (1, 1, 1), 2.0)
    with pytest.raises(DiffuseError, match="differ by more than 1 %"):
        lattice_transform(structure, grid)


def test_quadratic_form():
    rng = np.random.default_rng(1)
    axes = [rng.normal(size=n) for n in (3, 4, 5)]
    matrix = rng.normal(size=(3, 3))
    matrix = matrix + matrix.T
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    expected = np.einsum("...i,ij,...j", points, matrix, points)
    np.testing.assert_allclose(quadratic_form(axes, matrix), expected, atol=1e-12)


def test_bulk_solvent_only_changes_low_angles():
    structure = random_structure("P 21 21 21", (19.0, 20.5, 22.0, 90, 90, 90), elements="CNOCSCNOCC")
    hkl, f = bulk_solvent_structure_factors(structure, 1.8)
    _, dry = bulk_solvent_structure_factors(structure, 1.8, k_sol=0.0)
    expected = direct_transform(structure.expand(), hkl)
    assert np.sqrt(np.mean(np.abs(dry - expected) ** 2)) < 1e-3 * np.sqrt(np.mean(np.abs(expected) ** 2))
    s = np.linalg.norm(hkl / np.array([19.0, 20.5, 22.0]), axis=1)
    assert np.all(f[s > 1 / 3] == dry[s > 1 / 3])
    # the solvent is a sharp-edged hole where the molecule is: a few points of low angle, against the hole's transform
    assert np.mean(np.abs(f - dry)[s < 0.15]) > 5 * np.mean(np.abs(f - dry)[(s > 0.28) & (s < 1 / 3)]) > 0
    low = s < 0.1
    phase = np.real((f - dry)[low] * np.conj(dry[low]))
    assert np.mean(phase < 0) > 0.9  # by Babinet's principle


@pytest.mark.parametrize("name", ["5zck", "2ol9", "7n2h"])
def test_real_files(shared_data, name):
    structure = load_structure(shared_data / "pdb" / f"{name}.pdb")
    hkl, expected = cctbx_f_calc(structure, 1.5)
    np.testing.assert_allclose(direct_transform(structure.expand(), hkl), expected, atol=1e-8 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------ off the lattice


@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("u", [(0.0, 0.0), (0.05, 0.6)], ids=["at rest", "displaced"])
def test_structure_factors_off_the_lattice(anisotropic, u):
    """Against direct summation at random points, phases included, in shells of resolution; wide and narrow atoms."""
    pytest.importorskip("finufft")
    structure = random_structure("P 41", (20.0, 20.0, 30.0, 90, 90, 90), "CNOSHC", u, anisotropic, radius=8.0)
    rng = np.random.default_rng(0)
    s = rng.normal(size=(3000, 3))
    s *= (rng.uniform(size=3000) ** (1 / 3) / 1.2 / np.linalg.norm(s, axis=1))[:, None]
    expected = direct_transform(structure, s @ structure.orthogonalization)
    error = np.abs(off_lattice_transform(structure, s) - expected) ** 2
    shell = (np.linalg.norm(s, axis=1) * 1.2 * 4).astype(int)
    for i in range(4):
        assert np.sqrt(error[shell == i].mean() / np.mean(np.abs(expected[shell == i]) ** 2)) < 1e-4


def test_structure_factors_at_the_origin_and_at_no_points():
    pytest.importorskip("finufft")
    structure = random_structure(elements="CNO")
    value = off_lattice_transform(structure, np.zeros((1, 3)))
    np.testing.assert_allclose(value, direct_transform(structure, np.zeros((1, 3))), rtol=1e-4)
    assert off_lattice_transform(structure, np.zeros((0, 3))).shape == (0,)


def test_choice_of_algorithm(monkeypatch):
    pytest.importorskip("finufft")
    structure = random_structure(elements="CNO")
    s = np.random.default_rng(0).uniform(-0.3, 0.3, (5, 3))
    direct = transform_at(structure, s, algorithm="direct")
    np.testing.assert_array_equal(transform_at(structure, s), direct)
    close = transform_at(structure, s, algorithm="nufft")
    assert 0 < np.abs(close - direct).max() < 1e-3 * np.abs(direct).max()
    monkeypatch.setattr(transform_module, "_CHEAP", 0)
    np.testing.assert_array_equal(transform_at(structure, s), close)
    monkeypatch.setattr(transform_module.importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(transform_at(structure, s), direct)
    with pytest.raises(DiffuseError, match="algorithm=magic"):
        transform_at(structure, s, algorithm="magic")


def test_missing_finufft_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(DiffuseError, match="pip install finufft"):
        off_lattice_transform(random_structure(), np.zeros((1, 3)))


def test_points_shared_among_threads_are_the_same(monkeypatch):
    pytest.importorskip("finufft")
    structure = random_structure(elements="CNO")
    s = np.random.default_rng(0).uniform(-0.3, 0.3, (101, 3))
    whole = off_lattice_transform(structure, s)
    monkeypatch.setattr(transform_module, "_NUFFT_POINTS", 20)
    monkeypatch.setattr(transform_module, "available_cores", lambda: 4)
    np.testing.assert_allclose(off_lattice_transform(structure, s), whole, rtol=1e-3)


@pytest.mark.parametrize("d_min", [3.5, 4.5, 8.0])
def test_atoms_that_are_wider_than_the_cell(d_min):
    """At low resolution their density is widened so much that it reaches round the cell more than once."""
    structure = random_structure(elements="CNO")
    grid = MapGrid(structure.unit_cell, "P 1", (2, 1, 1), d_min)
    f = lattice_transform(structure, grid)
    index = np.argwhere(np.isfinite(f)) - np.array(grid.extent)
    expected = direct_transform(structure, index / np.array(grid.subdivide))
    assert np.abs(f[np.isfinite(f)] - expected).max() < 1e-4 * np.abs(expected).max()


def test_box_off_the_lattice_holds_the_widest_atom():
    pytest.importorskip("finufft")
    structure = random_structure(elements="CNOS", u=(0.02, 6.0))
    s = np.random.default_rng(0).uniform(-0.3, 0.3, (200, 3))
    expected = direct_transform(structure, s @ structure.orthogonalization)
    error = np.abs(off_lattice_transform(structure, s) - expected)
    assert np.sqrt(np.mean(error**2)) < 1e-4 * np.sqrt(np.mean(np.abs(expected) ** 2))


@pytest.mark.parametrize("symbol", ["P 41", "P 43 21 2", "I 2 3", "R 3 2 :H"])
def test_operators_keep_their_order(symbol):
    """Whatever is asked of the group; copies, turns and operators of equal structures go together."""
    structure = make_structure((30, 30, 30, 90, 90, 120 if symbol[0] == "R" else 90), symbol, ["C"], [[0.1, 0.2, 0.3]])
    before = [operator.as_xyz() for operator in structure.space_group]
    structure.space_group.info().type().lookup_symbol()
    structure.space_group.build_derived_laue_group()
    assert structure.xray_structure.scatterers().size() == 1
    assert [operator.as_xyz() for operator in structure.space_group] == before
    again = structure.without_displacements().expand().site_frac
    for operator, site in zip(structure.space_group, again):
        r, t = np.array(operator.r().as_double()).reshape(3, 3), np.array(operator.t().as_double())
        step = r @ structure.site_frac[0] + t - site
        np.testing.assert_allclose(step, np.rint(step), atol=1e-9)
