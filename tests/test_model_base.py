"""What all models have in common: the table, their phil, what is optional, and what programs and workers rely on."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers.programs import model_of
from helpers.structures import members, small_molecule

from dials_diffuse.cli.model import phil_scope
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.record import write_json
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.table import all_models
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.tls import TlsGroup

V = (0.03, 0.02, 0.01, 0.005, 0, 0)
TLS = TlsGroup((0.02,) * 3 + (0.0,) * 3, (4.0,) * 3 + (0.0,) * 3, (0.0,) * 9, (2.0, 2.0, 4.0))

CASES = {
    "uncorrelated": lambda atoms: Uncorrelated(),
    "rigid_body": lambda atoms: RigidBody(V=V),
    "rigid_body, TLS": lambda atoms: RigidBody(body="tls", tls=(TLS,)),
    "llm": lambda atoms: LiquidLikeMotions(sigma=0.2, gamma=6.0),
    "llm in a molecule": lambda atoms: LiquidLikeMotions(V=V, gamma=6.0, confined_to="molecule"),
    "covariance": lambda atoms: Covariance(sigma=0.2, gamma=6.0, engine="pair_sum"),
    "covariance by FFT": lambda atoms: Covariance(sigma=0.2, gamma=6.0, engine="fft"),
    "covariance in blocks": lambda atoms: Covariance(sigma=0.2, gamma=6.0, supercell=(2, 1, 1), groups="molecule"),
    "ensemble": lambda atoms: Ensemble(members(atoms)),
    "lattice_dynamics": lambda atoms: LatticeDynamics(sigma=0.2, mesh=(2, 2, 2)),
}


@pytest.fixture(scope="module")
def atoms():
    return small_molecule()


@pytest.fixture(scope="module")
def grid(atoms):
    return MapGrid(atoms.unit_cell, atoms.hall_symbol, (2, 2, 2), 3.0)


@pytest.fixture(params=CASES)
def model(request, atoms):
    return CASES[request.param](atoms)


def test_cases_are_all_models():
    assert {name.split(",")[0].split(" ")[0] for name in CASES} == set(all_models())
    assert all(cls.name == name and issubclass(cls, DiffuseModel) for name, cls in all_models().items())


@pytest.mark.parametrize("name", all_models())
def test_words_are_parameters_of_the_scope(name):
    """Tensors stand for numbers, of which both are in the scope; the default is what a scope without both gives."""
    words = all_models()[name].words
    for word, tensor in words.tensors.items():
        paths = [definition.path for definition in phil_scope.all_definitions()]
        assert {f"{name}.{word}", f"{name}.{tensor.number}"} <= set(paths)
        assert vars(model_of(f"model={name}"))[tensor.number] == tensor.default
        assert tensor.six(None) == tensor.six(tensor.default) == [tensor.default**tensor.power] * 3 + [0.0] * 3
        assert tensor.six([1.0, 3.0]) == [2.0**tensor.power] * 3 + [0.0] * 3


def test_points_and_maps_agree(model, atoms, grid):
    """At the centres of voxels; where there are no points, that is said."""
    index = np.array([[1, 2, 3], [3, 0, 1], [5, -3, 2]])
    s = grid.s(index)
    if not model.on_points:
        with pytest.raises(DiffuseError, match="on grids only"):
            model.intensity_at(atoms, s)
        return
    volume = model.intensity(atoms, grid)
    at_voxels = np.array([volume.reshape(-1)[grid.key(i[None])][0] for i in index])
    turned = np.mean([model.intensity_at(atoms, s @ turn) for turn in atoms.rotations], axis=0)
    np.testing.assert_allclose(at_voxels, turned, rtol=2e-3, atol=1e-3 * np.nanmax(volume))


def test_prepared_models_have_the_intensity_of_the_map(model, atoms, grid):
    index = np.array([[1, 2, 3], [3, 0, 1], [5, -3, 2]])
    prepared = prepare(model, atoms, grid, index)
    values = [p.value for p in prepared.parameters]
    assert prepared.parameters == model.parameters(atoms)
    volume = model.intensity(atoms, grid)
    expected = volume.reshape(-1)[grid.key(index)]
    np.testing.assert_allclose(prepared.intensity(values), expected, rtol=2e-3, atol=1e-3 * np.nanmax(volume))
    again = prepared.model(values)
    assert type(again) is type(model) and again.parameters(atoms) == model.parameters(atoms)
    with pytest.raises(DiffuseError, match=f"{model.name}: no parameter 'nothing' can be refined"):
        model.with_values(atoms, {"nothing": 1.0})
    assert prepare(model, atoms, grid, index, means=True).means <= model.has_means


def test_shared_displacements_are_tensors_of_the_atoms(model, atoms):
    shared = model.shared_displacements(atoms)
    if model.name in ("uncorrelated", "ensemble"):
        assert shared is None
        return
    assert shared.shape == (atoms.n_atoms, 3, 3)
    np.testing.assert_allclose(shared, shared.transpose(0, 2, 1), atol=1e-15)
    assert np.linalg.eigvalsh(shared).min() >= -1e-12 and shared.max() > 0.01


def test_the_shared_displacement_is_that_of_the_parameters(atoms):
    tensor = np.array([[0.03, 0.005, 0], [0.005, 0.02, 0], [0, 0, 0.01]])
    for found in (RigidBody(V=V), LiquidLikeMotions(V=V, gamma=5.0), Covariance(V=V, gamma=5.0)):
        np.testing.assert_allclose(found.shared_displacements(atoms), np.tile(tensor, (atoms.n_atoms, 1, 1)))
    parts = RigidBody(sigma=(0.1, 0.2), body="selection", selections=("element C", "not element C"))
    mean = np.trace(parts.shared_displacements(atoms), axis1=1, axis2=2) / 3
    np.testing.assert_allclose(mean, np.where(atoms.element == "C", 0.01, 0.04))
    turning = RigidBody(body="tls", tls=(TLS,)).shared_displacements(atoms)
    arm = atoms.site_cart - TLS.origin
    turned = np.sum(arm**2, axis=1)[:, None, None] * np.eye(3) - arm[:, :, None] * arm[:, None]
    np.testing.assert_allclose(turning, 0.02 * np.eye(3) + np.radians(2.0) ** 2 * turned, rtol=1e-6, atol=1e-9)


def test_records_are_json(model, tmp_path):
    record = model.record()
    assert record["name"] == model.name and record["table"] == "wk1995"
    write_json(tmp_path / "record.json", record)
    assert set(json.loads((tmp_path / "record.json").read_text())) == set(record)


def test_models_travel_to_workers(model, atoms, grid):
    """With the structure and the grid; what comes back does, too."""
    copied = pickle.loads(pickle.dumps((atoms, grid, model)))
    found = pickle.loads(pickle.dumps(compute_model(*copied)))
    np.testing.assert_array_equal(found.map.intensity, compute_model(atoms, grid, model).map.intensity)


def test_orders_are_chosen_where_there_are_orders(model, atoms):
    strong = replace(model, **({"sigma": 0.6, "V": None} if model.name == "llm" else {}))
    chosen = strong.with_orders_for(atoms, {}, 2.0)
    if model.name == "llm":
        assert chosen.orders == 9 and strong.lack_of_orders(2.0) and not chosen.lack_of_orders(2.0)
        assert strong.with_orders_for(atoms, {"sigma": 0.3}, 2.0).orders == 4
    else:
        assert chosen is strong and model.orders is None and model.lack_of_orders(0.5) == ""


# ------------------------------------------------------------------------------------------------------- the defaults


@dataclass(frozen=True)
class Plain(DiffuseModel):
    """No more than what has to be said."""

    name = "plain"
    about = "nothing"

    strength: float = 1.0
    table: str = "wk1995"

    def intensity(self, structure, grid):
        return np.full(grid.shape, self.strength)

    def correlation_length(self, structure):
        return 5.0


def test_what_a_model_need_not_say(atoms, grid):
    model = Plain(2.0)
    assert Plain.from_scope(None) == Plain() and model.record() == {"name": "plain", "strength": 2.0, "table": "wk1995"}
    assert model.parameters(atoms) == () and model.orders is None
    assert model.with_values(atoms, {}) == model == model.for_each_body(atoms) == model.select("all")
    assert model.shared_displacements(atoms) is None and not model.on_points and not model.leaves_orders_open(None)
    with pytest.raises(DiffuseError, match="plain: computed on grids only"):
        model.intensity_at(atoms, np.zeros((1, 3)))
    for means in (False, True):
        prepared = prepare(model, atoms, grid, [[1, 2, 3]], means)
        assert prepared.means == means and prepared.intensity(()) == pytest.approx([2.0])
    found = compute_model(atoms, grid, model, voxels="mean")
    assert found.comparison is None and not found.map.at_centres and np.allclose(found.map.intensity, 2.0)
    assert model.memory_estimate(atoms, grid) > 8 * grid.n_voxels


def test_a_model_says_what_it_must():
    class Nothing(DiffuseModel):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()


def test_a_model_of_part_of_a_file(tmp_path, atoms):
    atoms.hierarchy.write_pdb_file(str(tmp_path / "atoms.pdb"), crystal_symmetry=atoms.crystal_symmetry)
    path = tmp_path / "atoms.pdb"
    assert Plain().structure(path).n_atoms == atoms.n_atoms
    assert Plain().structure(path, "element C").n_atoms == np.count_nonzero(atoms.element == "C")
    ensemble = Ensemble(members(atoms))
    assert ensemble.select("element C").structure(path).n_atoms == np.count_nonzero(atoms.element == "C")
    assert ensemble.structure(path, "element C").n_atoms == np.count_nonzero(atoms.element == "C")
    other = make_structure((9.0, 9.0, 9.0, 90.0, 90.0, 90.0), "P 1", ["C"], [[0.5, 0.5, 0.5]])
    assert ensemble.structure(path).unit_cell != other.unit_cell


def test_voxels_are_named(atoms, grid):
    with pytest.raises(DiffuseError, match="voxels=edge: choose from auto, mean, centre"):
        compute_model(atoms, grid, Plain(), voxels="edge")
