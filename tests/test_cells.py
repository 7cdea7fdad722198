"""A structure in the setting of a map: changes of basis against cctbx, and the operator that is found."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from cctbx import crystal, miller, sgtbx, uctbx
from cctbx.array_family import flex
from helpers.structures import random_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.request import FitRequest
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.expectation import make_expectation
from dials_diffuse.structure.setting import in_setting_of, setting_change
from dials_diffuse.structure.tls import TlsGroup
from dials_diffuse.structure.transform import cells_agree, direct_transform

F_TO_P = "1/2*b+1/2*c,1/2*a+1/2*c,1/2*a+1/2*b"
RHOMBOHEDRAL = "2/3*a+1/3*b+1/3*c,-1/3*a+1/3*b+1/3*c,-1/3*a-2/3*b+1/3*c"

#: name: space group and cell of the structure, new axes, and the group of the map if it is another symbol's
CASES = {
    "P1 acute": ("P 1", (9.0, 10.5, 12.0, 80.0, 85.0, 77.0), "-a,b,-c"),
    "P1 reduced otherwise": ("P 1", (9.0, 10.5, 12.0, 80.0, 85.0, 77.0), "a,b-a,c"),
    "P-1 permuted": ("P -1", (9.0, 10.5, 12.0, 100.0, 95.0, 103.0), "b,c,a"),
    "C2 to I2": ("C 1 2 1", (19.0, 9.0, 12.0, 90.0, 105.0, 90.0), "-a-c,b,a"),
    "I2 to C2": ("I 1 2 1", (19.0, 9.0, 12.0, 90.0, 96.0, 90.0), "a+c,b,-a"),
    "C2 to A2": ("C 1 2 1", (19.0, 9.0, 12.0, 90.0, 105.0, 90.0), "c,-b,a"),
    "C2 to its primitive cell": ("C 1 2 1", (19.0, 9.0, 12.0, 90.0, 105.0, 90.0), "1/2*a-1/2*b,1/2*a+1/2*b,c"),
    "R3 H to R": ("R 3 :H", (14.0, 14.0, 17.0, 90.0, 90.0, 120.0), RHOMBOHEDRAL),
    "R32 H to R": ("R 3 2 :H", (14.0, 14.0, 17.0, 90.0, 90.0, 120.0), RHOMBOHEDRAL),
    "R3 R to H": ("R 3 :R", (11.0, 11.0, 11.0, 85.0, 85.0, 85.0), "a-b,b-c,a+b+c"),
    "P2221 permuted": ("P 2 2 21", (10.0, 11.5, 13.0, 90.0, 90.0, 90.0), "c,a,b"),
    "P21212 permuted": ("P 21 21 2", (10.0, 11.5, 13.0, 90.0, 90.0, 90.0), "b,c,a"),
    "P212121 permuted": ("P 21 21 21", (10.0, 11.5, 13.0, 90.0, 90.0, 90.0), "-a,c,b"),
    "C2221 to A2122": ("C 2 2 21", (10.0, 21.5, 13.0, 90.0, 90.0, 90.0), "b,c,a"),
    "P21 with a and c swapped": ("P 1 21 1", (9.0, 11.0, 13.0, 90.0, 103.0, 90.0), "c,-b,a"),
    "P21 with a diagonal": ("P 1 21 1", (9.0, 11.0, 13.0, 90.0, 103.0, 90.0), "-a-c,b,a"),
    "P21 along c": ("P 1 21 1", (9.0, 11.0, 13.0, 90.0, 103.0, 90.0), "c,a,b"),
    "Pnma to Pbnm": ("P n m a", (12.0, 10.0, 9.0, 90.0, 90.0, 90.0), "c,a,b"),
    "I4 to F4": ("I 4", (9.0, 9.0, 14.0, 90.0, 90.0, 90.0), "a+b,-a+b,c"),
    "F222 to its primitive cell": ("F 2 2 2", (14.0, 16.0, 18.0, 90.0, 90.0, 90.0), F_TO_P),
}
SIX = (0.2, 0.1, 0.15, 0.03, -0.02, 0.04)
TLS = TlsGroup(SIX, (20, 30, 25, 3, -2, 1), (0.1, 0, 0, 0, -0.2, 0, 0.3, 0, 0.1), (1, 2, 3))
#: in the lattice of these there is symmetry that the group lacks: two settings fit
AMBIGUOUS = ("R3 H to R", "R3 R to H", "I4 to F4")


def moved_symmetry(symbol, cell, axes):
    """Operator, unit cell and group of the other setting."""
    operator = sgtbx.change_of_basis_op(axes)
    symmetry = crystal.symmetry(cell, space_group_symbol=symbol).change_basis(operator)
    return operator, symmetry.unit_cell().parameters(), symmetry.space_group()


def intensities(structure, d_min=1.8):
    """Miller array of |F|² of the crystal by direct summation of the cell's content, per primitive cell."""
    indices = miller.build_set(structure.crystal_symmetry, anomalous_flag=True, d_min=d_min)
    f = direct_transform(structure.expand(), np.array(indices.indices())) / structure.space_group.n_ltr()
    return indices.array(data=flex.double(np.abs(f) ** 2))


def same_intensities(one, other, operator):
    """Reflection by reflection, after the change of basis by cctbx."""
    a, b = intensities(one).change_basis(operator).map_to_asu(), intensities(other).map_to_asu()
    a, b = a.common_sets(b)
    assert a.size() > 50
    np.testing.assert_allclose(a.data().as_numpy_array(), b.data().as_numpy_array(), rtol=1e-7, atol=1e-6)


def same(one, other) -> bool:
    """Have both the same intensities?"""
    a, b = (intensities(s).map_to_asu() for s in (one, other))
    a, b = a.common_sets(b)
    return np.allclose(a.data().as_numpy_array(), b.data().as_numpy_array(), rtol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_change_of_basis(case):
    """Structure factors agree with those in the old setting and with cctbx's own change of basis; atoms too."""
    symbol, cell, axes = CASES[case]
    structure = random_structure(symbol, cell, anisotropic=True)
    operator, _, group = moved_symmetry(symbol, cell, axes)
    moved = structure.change_basis(operator)
    assert moved.space_group == group
    same_intensities(structure, moved, operator)
    expected = structure.xray_structure.change_basis(operator)
    np.testing.assert_allclose(moved.site_frac, [s.site for s in expected.scatterers()], atol=1e-9)
    expected.scattering_type_registry(table="wk1995")
    indices = miller.build_set(expected, anomalous_flag=True, d_min=2.0)
    f = indices.structure_factors_from_scatterers(expected, algorithm="direct").f_calc().data().as_numpy_array()
    mine = direct_transform(moved.expand(), np.array(indices.indices()))
    np.testing.assert_allclose(mine, f, atol=1e-7 * np.abs(f).max())
    back = moved.change_basis(operator.inverse())
    assert back.space_group == structure.space_group
    for key in ("site_frac", "u_cart", "multiplicity"):
        np.testing.assert_allclose(getattr(back, key), getattr(structure, key), atol=1e-9)


@pytest.mark.parametrize("strain", [0.0, 0.004])
@pytest.mark.parametrize("case", CASES)
def test_operator_is_found(case, strain, caplog):
    """From cell and space group of the map alone, also when its cell is a bit different."""
    symbol, cell, axes = CASES[case]
    structure = random_structure(symbol, cell)
    operator, theirs, group = moved_symmetry(symbol, cell, axes)
    theirs = tuple(x * (1 + strain) if k < 3 else x for k, x in enumerate(theirs))
    with caplog.at_level(logging.INFO, logger="dials.diffuse"):
        moved, text = in_setting_of(structure, theirs, group)
    assert cells_agree(moved, theirs)
    assert text and f"its new axes are {text}" in caplog.text
    assert ("agree in other settings too" in caplog.text) == (case in AMBIGUOUS)
    choices = [text, *setting_change(structure, theirs, group).others]
    assert len(choices) == 1 + (case in AMBIGUOUS)
    expected = structure.change_basis(operator)
    found = [same(structure.change_basis(sgtbx.change_of_basis_op(choice)), expected) for choice in choices]
    assert found.count(True) == 1
    assert same(moved, expected) == found[0]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_changed_in_the_same_setting(case, caplog):
    symbol, cell, _ = CASES[case]
    structure = random_structure(symbol, cell)
    with caplog.at_level(logging.INFO, logger="dials.diffuse"):
        moved, text = in_setting_of(structure, structure.unit_cell, structure.space_group)
    assert moved is structure and text == "" and not caplog.records


@pytest.mark.parametrize("group", ["P 1", "P 2 2 2", "P 2 2 21"])
def test_groups_that_are_not_known_exactly(group):
    """A map that was merged in the point group, or in P 1: the cell tells the axes."""
    structure = random_structure("P 2 2 21", CASES["P2221 permuted"][1])
    operator, theirs, exact = moved_symmetry(*CASES["P2221 permuted"])
    wanted = exact if group == "P 2 2 21" else sgtbx.space_group_info(group).group()
    moved, text = in_setting_of(structure, theirs, wanted)
    assert text in ("c,a,b", "-c,-a,b", "c,-a,-b", "-c,a,-b")
    same_intensities(moved, structure.change_basis(operator), sgtbx.change_of_basis_op())


def test_symmetry_decides_where_cells_do_not():
    """Two axes of nearly one length: that with the screw is known."""
    structure = random_structure("P 2 2 21", (10.0, 12.0, 12.05, 90, 90, 90))
    group = sgtbx.space_group_info("P 2 21 2").group()
    moved, text = in_setting_of(structure, structure.unit_cell, group)
    assert text.replace("-1/4", "") in ("-a,c,b", "a,-c,b", "a,c,-b", "-a,-c,-b")
    assert moved.space_group == group  # with the origin where the map has it


def test_settings_that_the_cells_cannot_tell_apart(caplog):
    """Of P 1 with axes of one length; and a monoclinic angle near to 90 degrees, where the better fit is taken."""
    structure = random_structure("P 1", (10.0, 10.02, 13.0, 90.0, 90.0, 95.0))
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        moved, text = in_setting_of(structure, (13.0, 10.0, 10.02, 95.0, 90.0, 90.0), sgtbx.space_group("P 1"))
    assert "agree in other settings too" in caplog.text and "indexing=auto" in caplog.text
    assert cells_agree(moved, (13.0, 10.0, 10.02, 95.0, 90.0, 90.0))
    structure = random_structure("P 1 21 1", (9.0, 11.0, 13.0, 90.0, 90.4, 90.0))
    moved, text = in_setting_of(structure, (9.0, 11.0, 13.0, 90.0, 89.6, 90.0), structure.space_group)
    assert text in ("-a,-b,c", "a,-b,-c", "-a,b,c") and moved.unit_cell[4] == pytest.approx(89.6)
    moved, text = in_setting_of(structure, (9.0, 11.0, 13.0, 90.0, 90.1, 90.0), structure.space_group)
    assert text == "" and moved is structure


@pytest.mark.parametrize(
    ("cell", "group"),
    [
        ((9.0, 10.5, 12.4, 80.0, 85.0, 77.0), "P 1"),  # another length
        ((9.0, 10.5, 12.0, 84.0, 85.0, 77.0), "P 1"),  # another angle
        ((18.0, 10.5, 12.0, 80.0, 85.0, 77.0), "P 1"),  # a cell of twice the size
        ((30.0, 31.0, 32.0, 90.0, 90.0, 90.0), "P 21 21 21"),
    ],
)
def test_other_crystals_are_left_alone(cell, group):
    structure = random_structure("P 1", (9.0, 10.5, 12.0, 80.0, 85.0, 77.0))
    moved, text = in_setting_of(structure, cell, sgtbx.space_group_info(group).group())
    assert moved is structure and text == ""
    assert setting_change(structure, cell, sgtbx.space_group_info(group).group()) is None


def test_contradicting_groups_are_left_alone():
    """An orthorhombic structure and a map with a four-fold axis along its longest axis, along which it is not."""
    structure = random_structure("P 4", (10.0, 10.0, 14.0, 90, 90, 90))
    group = sgtbx.space_group_info("P 2 2 2").group()
    assert setting_change(structure, (10.0, 10.0, 14.0, 90, 90, 90), group) is None


def test_atoms_on_special_positions():
    """Their multiplicity counts the cell, which becomes larger or smaller."""
    structure = make_structure(
        (14.0, 14.0, 17.0, 90, 90, 120), "R 3 :H", ["Zn", "C", "O"], [(0, 0, 0.2), (0.1, 0.25, 0.3), (0, 0, 0.6)], 0.1
    )
    assert structure.multiplicity.tolist() == [3, 9, 3]
    operator = sgtbx.change_of_basis_op(RHOMBOHEDRAL)
    moved = structure.change_basis(operator)
    assert moved.multiplicity.tolist() == [1, 3, 1]
    assert moved.expand().n_atoms == 5
    same_intensities(structure, moved, operator)


def test_cells_that_are_none_of_the_crystal():
    structure = random_structure("C 1 2 1", CASES["C2 to I2"][1])
    for axes in ("a,b,1/2*c", "1/2*a,b,c"):
        with pytest.raises(DiffuseError, match=r"the new cell of .* is none of the crystal"):
            structure.change_basis(sgtbx.change_of_basis_op(axes))


@pytest.mark.parametrize("case", ["P1 acute", "C2 to I2", "R3 H to R", "P21 along c"])
def test_tls_groups_turn_with_the_frame(case):
    """The motion of each atom is that of the turned atom."""
    symbol, cell, axes = CASES[case]
    structure = random_structure(symbol, cell)
    operator = sgtbx.change_of_basis_op(axes)

    def motion(group, structure):
        modes = group.modes(structure)
        return modes @ group.covariance @ modes.transpose(0, 2, 1)

    expected = replace(structure, u_cart=motion(TLS, structure)).change_basis(operator)
    turned = TLS.change_basis(structure.cell, operator)
    np.testing.assert_allclose(motion(turned, expected), expected.u_cart, atol=1e-9)


# ---------------------------------------------------------------------------------------------- models, programs, data

MODELS = {
    "uncorrelated": Uncorrelated(),
    "llm": LiquidLikeMotions(V=SIX, G=(5.0, 7.0, 6.0, 0.5, -0.4, 0.3), orders=2),
    "rigid_body": RigidBody(V=SIX),
    "tls": RigidBody(
        body="tls", tls=(TlsGroup(SIX, (20, 30, 25, 3, -2, 1), (0.1, 0, 0, 0, -0.2, 0, 0.3, 0, 0.1), (1, 2, 3)),)
    ),
    "covariance": Covariance(V=SIX, gamma=4.0),
}


def ensemble(structure) -> Ensemble:
    rng = np.random.default_rng(0)
    sites = [structure.site_frac + 0.02 * rng.normal(size=structure.site_frac.shape) for _ in range(3)]
    return Ensemble(tuple(replace(structure, site_frac=site) for site in sites))


@pytest.mark.parametrize("case", ["P1 acute", "C2 to I2", "R3 H to R", "P21 along c", "F222 to its primitive cell"])
@pytest.mark.parametrize("name", [*MODELS, "ensemble"])
def test_models_are_computed_in_the_setting_of_a_map(case, name):
    """At each voxel that of the old setting, tensors turned, per unit cell."""
    symbol, cell, axes = CASES[case]
    structure = random_structure(symbol, cell, anisotropic=True, radius=3.0)
    _, theirs, group = moved_symmetry(symbol, cell, axes)
    operator = setting_change(structure, theirs, group).operator
    model = ensemble(structure) if name == "ensemble" else MODELS[name]
    grid = MapGrid(theirs, group.type().hall_symbol(), (2, 2, 2), 2.5)
    found = compute_model(structure, grid, model).map
    hkl = found.index / 2 @ np.array(operator.c().r().as_double()).reshape(3, 3)
    ratio = uctbx.unit_cell(theirs).volume() / structure.cell.volume()
    if model.on_points:
        expected = model.intensity_at(structure, hkl @ np.linalg.inv(structure.orthogonalization))
    else:
        expected = model.change_basis(structure.cell, operator).intensity(structure.change_basis(operator), grid)
        expected = expected.reshape(-1)[grid.key(found.index)] / ratio
    np.testing.assert_allclose(found.intensity, expected * ratio, atol=2e-3 * np.abs(found.intensity).max())


def test_what_cannot_be_turned_is_refused():
    symbol, cell, axes = CASES["P1 acute"]
    structure = random_structure(symbol, cell, elements="CNO")
    _, theirs, group = moved_symmetry(symbol, cell, axes)
    grid = MapGrid(theirs, group.type().hall_symbol(), (2, 2, 2), 3.0)
    with pytest.raises(DiffuseError, match=r"covariance.kernel=free: a matrix or modes are not brought"):
        compute_model(structure, grid, Covariance(kernel="free", matrix=0.1 * np.eye(3)))
    block = replace(ensemble(structure), supercell=(2, 1, 1))
    moved = replace(grid, unit_cell=moved_symmetry(symbol, block.crystal_form.unit_cell, axes)[1])
    with pytest.raises(DiffuseError, match=r"ensemble.supercell=\(2, 1, 1\): blocks are not brought"):
        compute_model(block.crystal_form, moved, block)
    with pytest.raises(DiffuseError, match=r"unit cells of the model .* differ by more than 1 %"):
        compute_model(structure, replace(grid, unit_cell=(9.0, 10.5, 12.4, 80.0, 85.0, 77.0)), Uncorrelated())


@pytest.mark.parametrize("case", ["C2 to I2", "P2221 permuted"])
def test_fit_of_a_map_in_another_setting(case, caplog):
    """The true sigma and gamma; before, the cells differed by more than 1 %."""
    symbol, cell, axes = CASES[case]
    structure = random_structure(symbol, cell, radius=4.0)
    operator, theirs, group = moved_symmetry(symbol, cell, axes)
    grid = MapGrid(theirs, group.type().hall_symbol(), (2, 2, 2), 2.0)
    truth = LiquidLikeMotions(sigma=0.3, gamma=6.0, orders=5)
    computed = compute_model(structure.change_basis(operator), grid, truth).map
    error = np.full(len(computed.index), 0.01 * computed.intensity.std())
    noise = error * np.random.default_rng(1).normal(size=len(error))
    data = replace(computed, intensity=computed.intensity + noise, sigma=error, multiplicity=np.ones(len(error), int))
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        result = fit_map(data, structure, [FitRequest.of(LiquidLikeMotions(sigma=0.4, gamma=8.0))])
    found = {e.name: e.value for e in result.models[0].estimates}
    assert found["sigma"] == pytest.approx(0.3, rel=0.02) and found["gamma"] == pytest.approx(6.0, rel=0.02)
    assert "brought into the setting of the map" in caplog.text


def test_expectation_of_a_model_in_another_setting(tmp_path):
    """The contents of the cell, and |F|² of the same reflections."""
    symbol, cell, axes = CASES["C2 to its primitive cell"]
    structure = random_structure(symbol, cell)
    operator, theirs, group = moved_symmetry(symbol, cell, axes)
    path = tmp_path / "model.pdb"
    structure.hierarchy.write_pdb_file(str(path), crystal_symmetry=structure.crystal_symmetry)
    own = MapGrid(cell, structure.hall_symbol, (1, 1, 1), 2.0)
    other = MapGrid(theirs, group.type().hall_symbol(), (1, 1, 1), 2.0)
    a, b = (make_expectation(grid, model=str(path), bulk_solvent=False) for grid in (own, other))
    np.testing.assert_allclose(a.elastic, 2 * b.elastic, rtol=1e-6)  # two lattice points in the larger cell

    def reflections(expectation, grid):
        indices = flex.miller_index(expectation.hkl.tolist())
        symmetry = crystal.symmetry(grid.unit_cell, space_group=grid.space_group)
        return miller.array(miller.set(symmetry, indices, False), flex.double(expectation.f_squared)).map_to_asu()

    one, two = reflections(a, own).change_basis(operator).map_to_asu().common_sets(reflections(b, other))
    assert one.size() > 100
    np.testing.assert_allclose(one.data().as_numpy_array(), 4 * two.data().as_numpy_array(), rtol=1e-3, atol=1.0)
