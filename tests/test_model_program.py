"""dials.diffuse_model as a user meets it: a map of the model, its agreement with data, one line for what went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cctbx import sgtbx
from helpers.builders import PROVENANCE, edited
from helpers.programs import fails, model_of
from helpers.structures import CELL

import dials_diffuse
from dials_diffuse import memory
from dials_diffuse.cli import fit
from dials_diffuse.cli.model import run
from dials_diffuse.files.nexus import read_map, read_provenance, write_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.table import all_models
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure

OUTPUTS = {"diffuse_model.nxs", "diffuse_model.json", "diffuse_model.png", "diffuse_model.html"}
OUTPUTS |= {"dials.diffuse_model.log"}


def data_from(
    model, structure, name="diffuse_merged.nxs", space_group=None, d_min=2.2, friedel=True, scale=1.0, means=False
):
    """A map file that holds what a model gives, on some scale, with an isotropic background; half is missing."""
    grid = MapGrid(structure.unit_cell, space_group or structure.hall_symbol, (4, 4, 4), d_min)
    data = model_map(model, structure, grid, friedel, means=means)
    keep = np.random.default_rng(0).uniform(size=len(data.index)) < 0.5
    s = grid.s_magnitude(data.index[keep])
    values = scale * data.intensity[keep] + 100 * np.exp(-s)
    ones = np.ones(len(values))
    data = DiffuseMap(grid, friedel, data.index[keep], values, ones, ones.astype(int), at_centres=data.at_centres)
    write_map(name, data, PROVENANCE)
    return name


def test_model_without_a_map(pdb):
    run([pdb])
    assert {p.name for p in Path().iterdir()} == {pdb, *OUTPUTS}
    result = read_map("diffuse_model.nxs")
    structure = load_structure(pdb)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.0)
    assert result.grid == grid and result.units == "electron^2 per unit cell"
    expected = model_map(LiquidLikeMotions(sigma=0.3, gamma=10.0, orders=4), structure, grid)
    np.testing.assert_array_equal(result.index, expected.index)
    np.testing.assert_allclose(result.intensity, expected.intensity, rtol=1e-9)
    assert read_provenance("diffuse_model.nxs").inputs == (pdb,)
    content = json.loads(Path("diffuse_model.json").read_text())
    assert content["schema"] == "dials.diffuse_model/1" and content["version"] == dials_diffuse.__version__
    assert content["model"]["name"] == "llm" and content["model"]["gamma"] == 10.0
    assert content["subdivide"] == [3, 3, 3] and "comparison" not in content
    log = Path("dials.diffuse_model.log").read_text()
    assert log.index("memory about") < log.index("Saving the map to diffuse_model.nxs")
    assert "orders=4 leaves out at most" in log and "Warning: llm" not in log
    assert content["model"]["orders"] == 4


def test_orders_that_were_given(pdb):
    """They are those of the model, however many it needs; the log says what is missing."""
    run([pdb, "llm.sigma=0.6", "llm.orders=2", "d_min=3", "output.png=None"])
    assert json.loads(Path("diffuse_model.json").read_text())["model"]["orders"] == 2
    result = read_map("diffuse_model.nxs")
    expected = model_map(LiquidLikeMotions(sigma=0.6, gamma=10.0, orders=2), load_structure(pdb), result.grid)
    np.testing.assert_allclose(result.intensity, expected.intensity, rtol=1e-9)
    log = Path("dials.diffuse_model.log").read_text()
    assert "Warning: llm.orders=2 leaves out 26.6 % of exp(qVq) - 1 at 3.00 Å; llm.orders=5 is enough" in log
    run([pdb, "llm.sigma=0.6", "d_min=3", "output.png=None"])
    assert json.loads(Path("diffuse_model.json").read_text())["model"]["orders"] == 5


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
    log = Path("dials.diffuse_model.log").read_text()
    assert all((w in log) == (group != "P 1") for w in ("(P 4 2 2) that the structure (P 41) lacks", "space_group=P41"))
    grid = replace(result.grid, hall_symbol=structure.hall_symbol)
    volume = RigidBody(sigma=0.3).intensity(structure, grid)
    operators = laue_operators(result.grid.space_group, friedel=True)
    index = result.index[::7]
    expected = np.mean([volume.reshape(-1)[grid.key(index @ r)] for r in operators], axis=0)
    np.testing.assert_allclose(result.intensity[::7], expected, rtol=1e-9)


@pytest.mark.parametrize("group", ["P 2 2 2", "P 1 2 1"])
def test_map_in_a_group_that_contradicts_the_structure(pdb, group, capsys):
    """Either has an axis that the other one lacks: an average over both would be neither's."""
    hall = sgtbx.space_group_info(group).type().hall_symbol()
    grid = MapGrid(CELL, hall, (2, 2, 2), 3.0)
    index = np.concatenate(list(possible_voxels(grid)))
    ones = np.ones(len(index))
    write_map("other.nxs", DiffuseMap(grid, True, index, ones, ones, ones.astype(int)), PROVENANCE)
    words = [f"structure, P 41, and of the map, {group}, contradict", "space_group=", "dials.reindex"]
    fails(run, [pdb, "other.nxs", "model=rigid_body"], capsys, words=words)
    fails(fit.run, [pdb, "other.nxs", "model=rigid_body"], capsys, words=words)
    fails(fit.run, [pdb, "other.nxs", "model=rigid_body", "indexing=given"], capsys, words=words)


@pytest.mark.parametrize(
    ("name", "model", "wavelength"),
    [
        ("llm", LiquidLikeMotions(sigma=0.3, gamma=5.0), None),
        ("llm", LiquidLikeMotions(sigma=0.3, gamma=5.0), 1.7),
        ("rigid_body", RigidBody(sigma=0.3), None),
    ],
)
def test_a_measured_map_is_compared_with_means(pdb, name, model, wavelength):
    """As the fit does; on the map of a model at centres, or without a map, the model is at centres, too."""
    structure = load_structure(pdb)
    own = [f"{name}.sigma=0.3", *(["llm.gamma=5", "llm.orders=3"] if name == "llm" else [])]
    words = [pdb, f"model={name}", *own, f"wavelength={wavelength}", "output.png=None", "output.volume=False"]
    measured, computed = (data_from(model, structure, f"{m}.nxs", means=m == "mean") for m in ("mean", "centre"))
    run([*words, measured])
    result, content = read_map("diffuse_model.nxs"), json.loads(Path("diffuse_model.json").read_text())
    assert not result.at_centres and content["voxels"] == "mean"
    prepared = prepare_dispersive(model, structure, result.grid, result.index, True, wavelength)
    expected = prepared.intensity([p.value for p in prepared.parameters])
    np.testing.assert_allclose(result.intensity, expected, rtol=1e-9)
    cc = [content["comparison"]["overall"]["cc"]]
    centre = model_map(model, structure, result.grid, wavelength=wavelength)
    for option in ([measured, "voxels=centre"], [computed]):
        run([*words, *option])
        result, content = read_map("diffuse_model.nxs"), json.loads(Path("diffuse_model.json").read_text())
        assert result.at_centres and content["voxels"] == "centre"
        np.testing.assert_allclose(result.intensity, centre.intensity, rtol=1e-9)
        cc.append(content["comparison"]["overall"]["cc"])
    if wavelength is None:
        assert min(cc[0], cc[2]) > 1 - 1e-8 > 1 - 1e-6 > cc[1]
    assert np.abs(centre.intensity - expected).max() > 0.01 * expected.std()
    run([*words, "voxels=mean", "grid.subdivide=4,4,4", "d_min=2.2"])
    np.testing.assert_allclose(read_map("diffuse_model.nxs").intensity, expected, rtol=1e-9)


def test_means_have_the_symmetry_of_the_map(pdb):
    """Of a map that has been merged in a higher group: the mean over what the structure tells apart."""
    structure, model = load_structure(pdb), RigidBody(sigma=0.3)
    grid = MapGrid(structure.unit_cell, " P 4 2", (2, 2, 2), 3.0)
    result = model_map(model, structure, grid, means=True)
    own = replace(grid, hall_symbol=structure.hall_symbol)
    mates = [result.index @ r for r in laue_operators(grid.space_group, friedel=True)]
    prepared = [prepare(model, structure, own, mate, means=True) for mate in mates]
    np.testing.assert_allclose(result.intensity, np.mean([p.intensity([0.3]) for p in prepared], axis=0), rtol=1e-9)


@pytest.mark.parametrize("name", ["uncorrelated", "covariance"])
def test_means_of_other_models(pdb, name):
    """Against the values at many points of a voxel; those at the centre are not near enough."""
    words = [pdb, f"model={name}", *(["covariance.gamma=5"] if name == "covariance" else []), "output.png=None"]
    found = {}
    for voxels in ("mean", "centre"):
        run([*words, f"voxels={voxels}", "grid.subdivide=1,1,1", "d_min=3"])
        found[voxels] = read_map("diffuse_model.nxs")
    assert not found["mean"].at_centres
    structure, model = load_structure(pdb), model_of(*words[1:-1])
    grid, chosen = found["mean"].grid, slice(5, 60, 5)
    nodes, weights = np.polynomial.legendre.leggauss(6)
    points = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3) / 2
    weight = np.einsum("i,j,k->ijk", weights, weights, weights).reshape(-1) / 8
    fractional = found["mean"].index[chosen][:, None] + points
    values = model.intensity_at(structure, fractional.reshape(-1, 3) @ grid.reciprocal_matrix.T)
    truth = values.reshape(-1, len(points)) @ weight
    error = {voxels: np.std(m.intensity[chosen] - truth) for voxels, m in found.items()}
    assert error["mean"] < 0.2 * error["centre"] and error["centre"] > 1e-3 * np.std(truth)


def test_models_without_means(pdb):
    run([pdb, "model=lattice_dynamics", "voxels=mean", "d_min=4", "output.png=None"])
    assert read_map("diffuse_model.nxs").at_centres
    assert json.loads(Path("diffuse_model.json").read_text())["voxels"] == "centre"
    assert "has no means over voxels" in Path("dials.diffuse_model.log").read_text()


def test_means_that_do_not_fit_into_memory(pdb, capsys, monkeypatch):
    """They are computed on a grid of 8 times as many voxels."""
    structure = load_structure(pdb)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 3.0)
    Path("memory.max").write_text(str(2 * RigidBody(sigma=0.3).memory_estimate(structure, grid)))
    monkeypatch.setattr(memory, "_LIMIT", Path("memory.max"))
    words = [pdb, "model=rigid_body", "d_min=3", "output.png=None"]
    fails(run, [*words, "voxels=mean"], capsys, words=["or voxels=centre"])
    run(words)


def test_maps_of_older_versions_hold_means(pdb):
    data_from(Uncorrelated(), load_structure(pdb))
    assert read_map("diffuse_merged.nxs").at_centres
    with edited("diffuse_merged.nxs") as handle:
        del handle["entry/grid/at_centres"]
    assert not read_map("diffuse_merged.nxs").at_centres


def test_selection_of_atoms(pdb):
    run([pdb, "selection=not element S", "model=uncorrelated", "d_min=3", "grid.subdivide=1,1,2"])
    structure = load_structure(pdb)
    structure = structure.take(structure.element != "S")
    result = read_map("diffuse_model.nxs")
    expected = model_map(Uncorrelated(), structure, result.grid)
    np.testing.assert_allclose(result.intensity, expected.intensity)
    assert result.grid.subdivide == (1, 1, 2)


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
    assert model_of(*arguments) == expected


def test_covariance_from_phil(tmp_path):
    model = model_of("model=covariance")
    assert (model.kernel, model.sigma, model.gamma, model.groups) == ("exponential", 0.3, 10.0, "atom")
    model = model_of(
        "model=covariance", "covariance.V=1,2,3,0,0,0", "covariance.kernel=lorentzian", "covariance.core=0.5"
    )
    assert (model.sigma, model.V, model.core) == (None, (1, 2, 3, 0, 0, 0), 0.5)
    model = model_of(
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
    model = model_of("model=covariance", "covariance.kernel=free", f"covariance.file={tmp_path}/v.npy")
    np.testing.assert_array_equal(model.matrix, np.eye(4))
    assert (model.sigma, model.gamma) == (None, None)


@pytest.mark.parametrize("name", [name for name in all_models() if name != "ensemble"])  # that needs several structures
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
    assert "no input files" in fails(run, [], capsys, 2)
    assert "2 coordinate files and 0 maps" in fails(run, [pdb, pdb], capsys, 2)
    assert "1 coordinate files and 2 maps" in fails(run, [pdb, data, f"map={data}"], capsys, 2)
    assert "grid.subdivide=3,3,3: the map has 4,4,4" in fails(run, [pdb, data, "grid.subdivide=3,3,3"], capsys, 2)
    assert "d_min=2: the map ends at 2.2" in fails(run, [pdb, data, "d_min=2"], capsys)
    assert "llm.sigma is given, but model=rigid_body" in fails(run, [pdb, "model=rigid_body", "llm.sigma=1"], capsys, 2)
    assert "missing.nxs" in fails(run, [pdb, "map=missing.nxs"], capsys)
    assert "selection='nonsense ('" in fails(run, [pdb, "selection=nonsense ("], capsys)
    assert "mixes axes" in fails(run, [pdb, "grid.subdivide=1,2,3"], capsys)
    covariance = [pdb, "model=covariance"]
    assert "a file belongs to kernel=free" in fails(run, [*covariance, "covariance.kernel=free"], capsys, 2)
    np.save("v.npy", -np.eye(structure.n_atoms))
    free = [*covariance, "covariance.kernel=free", "d_min=4"]
    assert "not positive semidefinite" in fails(run, [*free, "covariance.file=v.npy"], capsys)
    assert "cannot be read as a .npy array" in fails(run, [*free, "covariance.file=model.pdb"], capsys)
    assert "cannot be read as a .npy array" in fails(run, [*free, "covariance.file=none.npy"], capsys)
    assert not Path("diffuse_model.nxs").exists()


@pytest.mark.parametrize(
    "other", ["llm.orders=2", "covariance.network.cutoff=5", "rigid_body.selection=chain A", "ensemble.soft=True"]
)
def test_parameters_of_other_models_are_not_ignored(pdb, capsys, other):
    name = other.split("=")[0]
    assert f"{name} is given, but model=uncorrelated" in fails(run, [pdb, "model=uncorrelated", other], capsys, 2)


def test_bad_rotations(pdb, capsys):
    tls = [pdb, "model=rigid_body", "rigid_body.body=tls"]
    assert "none.pdb: no such file" in fails(run, [*tls, "rigid_body.tls.file=none.pdb"], capsys)
    assert "tls.T is given without" in fails(run, [*tls, "rigid_body.tls.T=0.1,0.1,0.1,0,0,0"], capsys, 2)
    assert "tls.origin is given without" in fails(run, [*tls, "rigid_body.tls.origin=1,2,3"], capsys, 2)
    given = [*tls, "rigid_body.tls.L=1,1,1,0,0,0", "rigid_body.selection=chain A"]
    assert "leave out rigid_body.sigma, rigid_body.V and rigid_body.selection" in fails(run, given, capsys)
    other = [pdb, "model=rigid_body", "rigid_body.sigma=0.2", "rigid_body.tls.T=0.1,0.1,0.1,0,0,0"]
    assert "tls.T is given, but rigid_body.body=asu" in fails(run, other, capsys, 2)


def test_memory_of_a_control_group(pdb, capsys, monkeypatch):
    Path("memory.max").write_text("100000\n")
    monkeypatch.setattr(memory, "_LIMIT", Path("memory.max"))
    assert "there are 0.0 GB; choose a smaller grid.subdivide" in fails(run, [pdb], capsys)
    block = [pdb, "model=covariance", "covariance.supercell=1,1,2", "d_min=8"]
    assert "or a smaller supercell" in fails(run, block, capsys)
    Path("memory.max").write_text("max\n")
    run([pdb, "d_min=8", "model=uncorrelated", "output.png=None"])


@pytest.mark.parametrize("name", [name for name in all_models() if name != "ensemble"])
def test_a_map_of_the_origin_alone(pdb, name):
    run([pdb, f"model={name}", "d_min=100", "grid.subdivide=1,1,1", "output.png=None"])
    assert len(read_map("diffuse_model.nxs").index) == 1


def test_grid_that_does_not_fit_into_memory(pdb, capsys, monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 20)
    assert "choose a smaller grid.subdivide" in fails(run, [pdb], capsys)


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
    assert complaint in fails(run, [pdb, data], capsys)
