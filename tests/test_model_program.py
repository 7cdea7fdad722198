"""dials.diffuse_model as a user meets it: a map of the model, its agreement with data, one line for what went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from libtbx.phil import parse
from structures import random_structure

import dials_diffuse
from dials_diffuse.cli.model import phil_scope, run
from dials_diffuse.cli.model_scope import model_from_phil
from dials_diffuse.maps.files import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.nexus import DiffuseMap, read_map, read_provenance, write_map
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models import MODELS, Covariance, LiquidLikeMotions, RigidBody, Uncorrelated, compute
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.elastic_network import ElasticNetwork
from dials_diffuse.structure.atoms import load_structure

CELL = (14.0, 14.0, 17.0, 90.0, 90.0, 90.0)
OUTPUTS = {"diffuse_model.nxs", "diffuse_model.json", "diffuse_model.png", "dials.diffuse_model.log"}


@pytest.fixture(scope="module")
def atoms():
    return random_structure("P 41", CELL, elements="CNOCSC", u=(0.15, 0.3), radius=3.5)


@pytest.fixture
def pdb(atoms, tmp_path, monkeypatch):
    """A folder with a coordinate file, made the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    atoms.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=atoms.crystal_symmetry)
    return "model.pdb"


def data_from(model, structure, name="diffuse_merged.nxs", space_group=None, d_min=2.2, friedel=True, scale=1.0):
    """A map file that holds what a model gives, on some scale, with an isotropic background; half is missing."""
    grid = MapGrid(structure.unit_cell, space_group or structure.hall_symbol, (4, 4, 4), d_min)
    data = model_map(model, structure, grid, friedel)
    keep = np.random.default_rng(0).uniform(size=len(data.index)) < 0.5
    s = grid.s_magnitude(data.index[keep])
    values = scale * data.intensity[keep] + 100 * np.exp(-s)
    data = DiffuseMap(grid, friedel, data.index[keep], values, np.ones(len(values)), np.ones(len(values), dtype=int))
    write_map(name, data, Provenance("test", "", ""))
    return name


def fails(args, code, capsys) -> str:
    """Run, check the exit code and that there is no traceback, and return what was printed last on stderr."""
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in args])
    assert stopped.value.code == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    if code == 1:
        assert len(lines) == 1
    return lines[-1]


def test_model_without_a_map(pdb):
    run([pdb])
    assert {p.name for p in Path().iterdir()} == {pdb, *OUTPUTS}
    result = read_map("diffuse_model.nxs")
    structure = load_structure(pdb)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.0)
    assert result.grid == grid and result.units == "electron^2 per unit cell"
    expected = model_map(LiquidLikeMotions(sigma=0.3, gamma=10.0), structure, grid)
    np.testing.assert_array_equal(result.index, expected.index)
    np.testing.assert_allclose(result.intensity, expected.intensity, rtol=1e-9)
    assert read_provenance("diffuse_model.nxs").inputs == (pdb,)
    content = json.loads(Path("diffuse_model.json").read_text())
    assert content["schema"] == "dials.diffuse_model/1" and content["version"] == dials_diffuse.__version__
    assert content["model"]["name"] == "llm" and content["model"]["gamma"] == 10.0
    assert content["subdivide"] == [3, 3, 3] and "comparison" not in content
    log = Path("dials.diffuse_model.log").read_text()
    assert log.index("memory about") < log.index("Saving the map to diffuse_model.nxs")
    assert "orders=3 leaves out at most" in log


def test_model_is_found_again_in_the_data(pdb, atoms):
    """The same model agrees, another does not; the slope is the scale of the data."""
    structure = load_structure(pdb)
    data = data_from(RigidBody(sigma=0.3), structure, scale=0.01)
    agreement = {}
    for name, arguments in (("rigid_body", ["rigid_body.sigma=0.3"]), ("llm", ["llm.gamma=3", "llm.sigma=0.3"])):
        run([pdb, f"map={data}", f"model={name}", *arguments])
        assert {p.name for p in Path().iterdir()} == {pdb, data, *OUTPUTS}
        result = read_map("diffuse_model.nxs")
        assert result.grid == read_map(data).grid
        content = json.loads(Path("diffuse_model.json").read_text())
        agreement[name] = content["comparison"]["overall"]
        assert content["comparison"]["map"] == data and len(content["comparison"]["shells"]) == 10
        assert all(np.isfinite(row["d_max"]) for row in content["comparison"]["shells"])
    assert agreement["rigid_body"]["cc"] > 0.999 > 0.9 > agreement["llm"]["cc"]
    assert agreement["rigid_body"]["slope"] == pytest.approx(0.01, rel=0.01)
    assert "Agreement of diffuse_merged.nxs" in Path("dials.diffuse_model.log").read_text()
    run([data, pdb, "model=rigid_body", "d_min=3.5", "statistics.n_shells=4", "output.png=None", "output.volume=False"])
    assert read_map("diffuse_model.nxs").grid == replace(result.grid, d_min=3.5)
    content = json.loads(Path("diffuse_model.json").read_text())
    assert len(content["comparison"]["shells"]) == 4 and content["comparison"]["overall"]["cc"] > 0.99


@pytest.mark.parametrize("friedel", [True, False])
@pytest.mark.parametrize("group", ["P 1", "P 4 2 2"])
def test_map_with_other_symmetry_than_the_structure(pdb, group, friedel, caplog):
    """Unmerged data are compared voxel by voxel; symmetry that the structure lacks is averaged over, with a warning."""
    structure = load_structure(pdb)
    hall = {"P 1": " P 1", "P 4 2 2": " P 4 2"}[group]
    data = data_from(Uncorrelated(), structure, space_group=hall, friedel=friedel)
    run([pdb, data, "model=rigid_body", "output.png=None"])
    result = read_map("diffuse_model.nxs")
    assert result.grid.space_group_symbol == group and result.friedel == friedel
    assert ("the structure (P 41) lacks" in Path("dials.diffuse_model.log").read_text()) == (group != "P 1")
    grid = replace(result.grid, hall_symbol=structure.hall_symbol)
    volume = RigidBody(sigma=0.3).intensity(structure, grid)
    operators = laue_operators(result.grid.space_group, friedel=True)
    index = result.index[::7]
    expected = np.mean([volume.reshape(-1)[grid.key(index @ r)] for r in operators], axis=0)
    np.testing.assert_allclose(result.intensity[::7], expected, rtol=1e-9)


def test_selection_of_atoms(pdb):
    run([pdb, "selection=not element S", "model=uncorrelated", "d_min=3", "grid.subdivide=1,1,2"])
    structure = load_structure(pdb)
    structure = structure.take(structure.element != "S")
    result = read_map("diffuse_model.nxs")
    expected = model_map(Uncorrelated(), structure, result.grid)
    np.testing.assert_allclose(result.intensity, expected.intensity)
    assert result.grid.subdivide == (1, 1, 2)


def from_phil(*arguments):
    return model_from_phil(phil_scope.fetch(sources=[parse(a) for a in arguments]).extract())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], LiquidLikeMotions(sigma=0.3, gamma=10.0)),
        (["model=uncorrelated"], Uncorrelated()),
        (["model=rigid_body", "rigid_body.V=1,2,3,0,0,0"], RigidBody(V=(1.0, 2.0, 3.0, 0.0, 0.0, 0.0))),
        (["llm.G=3,4,5,0,0,0", "llm.orders=2"], LiquidLikeMotions(sigma=0.3, G=(3.0, 4.0, 5.0, 0, 0, 0), orders=2)),
    ],
)
def test_models_from_phil(arguments, expected):
    assert from_phil(*arguments) == expected


def test_covariance_from_phil(tmp_path):
    model = from_phil("model=covariance")
    assert (model.kernel, model.sigma, model.gamma, model.groups) == ("exponential", 0.3, 10.0, "atom")
    model = from_phil(
        "model=covariance", "covariance.V=1,2,3,0,0,0", "covariance.kernel=lorentzian", "covariance.core=0.5"
    )
    assert (model.sigma, model.V, model.core) == (None, (1, 2, 3, 0, 0, 0), 0.5)
    model = from_phil(
        "model=covariance",
        "covariance.kernel=elastic_network",
        "covariance.network.type=anisotropic",
        "covariance.network.cutoff=9",
        "covariance.groups=selection",
        "covariance.selection=chain A",
        "covariance.selection=chain B",
    )
    assert (model.sigma, model.gamma) == (None, None)
    assert model.network == ElasticNetwork("anisotropic", 9.0, True) and model.selections == ("chain A", "chain B")
    np.save(tmp_path / "v.npy", np.eye(4))
    model = from_phil("model=covariance", "covariance.kernel=free", f"covariance.file={tmp_path}/v.npy")
    np.testing.assert_array_equal(model.matrix, np.eye(4))
    assert (model.sigma, model.gamma) == (None, None)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ensemble"])  # that needs several structures
def test_every_model_runs(pdb, name):
    run([pdb, f"model={name}", "d_min=4", "grid.subdivide=2,2,2", "output.png=None"])
    assert np.all(np.isfinite(read_map("diffuse_model.nxs").intensity))


def test_covariance_of_a_file(pdb):
    structure = load_structure(pdb)
    matrix = 0.02 * (np.eye(structure.n_atoms) + 1)
    np.save("v.npy", matrix)
    run([pdb, "model=covariance", "covariance.kernel=free", "covariance.file=v.npy", "d_min=3", "output.png=None"])
    result = read_map("diffuse_model.nxs")
    expected = model_map(Covariance(kernel="free", matrix=matrix), structure, result.grid)
    np.testing.assert_allclose(result.intensity, expected.intensity, rtol=1e-9)
    assert "matrix" not in json.loads(Path("diffuse_model.json").read_text())["model"]


def change_line(start, old, new):
    """In the lines of the coordinate file that begin with ``start``."""
    lines = Path("model.pdb").read_text().splitlines()
    Path("model.pdb").write_text("\n".join(x.replace(old, new) if x.startswith(start) else x for x in lines) + "\n")


def test_bad_input(pdb, capsys):
    structure = load_structure(pdb)
    data = data_from(Uncorrelated(), structure)
    assert "no input files" in fails([], 2, capsys)
    assert "2 coordinate files and 0 maps" in fails([pdb, pdb], 2, capsys)
    assert "1 coordinate files and 2 maps" in fails([pdb, data, f"map={data}"], 2, capsys)
    assert "grid.subdivide=3,3,3: the map has 4,4,4" in fails([pdb, data, "grid.subdivide=3,3,3"], 2, capsys)
    assert "d_min=2: the map ends at 2.2" in fails([pdb, data, "d_min=2"], 1, capsys)
    assert "llm.sigma is given, but model=rigid_body" in fails([pdb, "model=rigid_body", "llm.sigma=1"], 2, capsys)
    assert "missing.nxs" in fails([pdb, "map=missing.nxs"], 1, capsys)
    assert "selection='nonsense ('" in fails([pdb, "selection=nonsense ("], 1, capsys)
    assert "mixes axes" in fails([pdb, "grid.subdivide=1,2,3"], 1, capsys)
    covariance = [pdb, "model=covariance"]
    assert "a file belongs to kernel=free" in fails([*covariance, "covariance.kernel=free"], 2, capsys)
    np.save("v.npy", -np.eye(structure.n_atoms))
    free = [*covariance, "covariance.kernel=free", "d_min=4"]
    assert "not positive semidefinite" in fails([*free, "covariance.file=v.npy"], 1, capsys)
    assert "cannot be read as a .npy array" in fails([*free, "covariance.file=model.pdb"], 1, capsys)
    assert "cannot be read as a .npy array" in fails([*free, "covariance.file=none.npy"], 1, capsys)
    assert not Path("diffuse_model.nxs").exists()


@pytest.mark.parametrize(
    "other", ["llm.orders=2", "covariance.network.cutoff=5", "rigid_body.selection=chain A", "ensemble.soft=True"]
)
def test_parameters_of_other_models_are_not_ignored(pdb, capsys, other):
    name = other.split("=")[0]
    assert f"{name} is given, but model=uncorrelated" in fails([pdb, "model=uncorrelated", other], 2, capsys)


def test_bad_rotations(pdb, capsys):
    tls = [pdb, "model=rigid_body", "rigid_body.body=tls"]
    assert "none.pdb: no such file" in fails([*tls, "rigid_body.tls.file=none.pdb"], 1, capsys)
    assert "tls.T is given without" in fails([*tls, "rigid_body.tls.T=0.1,0.1,0.1,0,0,0"], 2, capsys)
    assert "tls.origin is given without" in fails([*tls, "rigid_body.tls.origin=1,2,3"], 2, capsys)
    given = [*tls, "rigid_body.tls.L=1,1,1,0,0,0", "rigid_body.selection=chain A"]
    assert "leave out rigid_body.sigma, rigid_body.V and rigid_body.selection" in fails(given, 1, capsys)
    other = [pdb, "model=rigid_body", "rigid_body.sigma=0.2", "rigid_body.tls.T=0.1,0.1,0.1,0,0,0"]
    assert "tls.T is given, but rigid_body.body=asu" in fails(other, 2, capsys)


def test_memory_of_a_control_group(pdb, capsys, monkeypatch):
    Path("memory.max").write_text("100000\n")
    monkeypatch.setattr(compute, "_MEMORY_LIMIT", Path("memory.max"))
    assert "there are 0.0 GB; choose a smaller grid.subdivide" in fails([pdb], 1, capsys)
    block = [pdb, "model=covariance", "covariance.supercell=1,1,2", "d_min=8"]
    assert "or a smaller supercell" in fails(block, 1, capsys)
    Path("memory.max").write_text("max\n")
    run([pdb, "d_min=8", "model=uncorrelated", "output.png=None"])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ensemble"])
def test_a_map_of_the_origin_alone(pdb, name):
    run([pdb, f"model={name}", "d_min=100", "grid.subdivide=1,1,1", "output.png=None"])
    assert len(read_map("diffuse_model.nxs").index) == 1


def test_grid_that_does_not_fit_into_memory(pdb, capsys, monkeypatch):
    monkeypatch.setattr(compute.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 20)
    assert "choose a smaller grid.subdivide" in fails([pdb], 1, capsys)


@pytest.mark.parametrize(
    ("start", "old", "new", "complaint"),
    [
        ("CRYST1", "CRYST1", "REMARK", "has no unit cell"),
        ("CRYST1", "14.000   14.000", "14.300   14.300", "differ by more than 1 %"),
        ("ATOM      5", "S", "Q", "the chemical element of atom"),
    ],
)
def test_bad_coordinates(pdb, capsys, start, old, new, complaint):
    data = data_from(Uncorrelated(), load_structure(pdb))
    before = Path(pdb).read_text()
    change_line(start, old, new)
    assert Path(pdb).read_text() != before
    assert complaint in fails([pdb, data], 1, capsys)
