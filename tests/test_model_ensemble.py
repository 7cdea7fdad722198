"""Ensembles: against direct sums, random displacements, cctbx.diffuse, and blocks of several cells."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cctbx.command_line import diffuse as cctbx_diffuse
from helpers.pair_sums import at, close, oracle, some_voxels, vectors
from helpers.structures import GROUPS, random_structure
from iotbx.pdb import hierarchy as pdb_hierarchy

from dials_diffuse.cli.model import run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_models, load_structure
from dials_diffuse.structure.transform import direct_transform


def displaced_members(structure, n, size=0.3, seed=0):
    rng = np.random.default_rng(seed)
    inverse = np.linalg.inv(structure.orthogonalization).T
    steps = rng.normal(size=(n, structure.n_atoms, 3)) * size
    return tuple(replace(structure, site_frac=structure.site_frac + step @ inverse) for step in steps)


def variance(amplitudes, p):
    """Unbiased, of (members, m) amplitudes with probabilities p."""
    mean = p @ amplitudes
    return p @ np.abs(amplitudes - mean) ** 2 / (1 - p @ p)


def write_models(path, members):
    root = pdb_hierarchy.root()
    for number, member in enumerate(members):
        model = member.hierarchy.models()[0].detached_copy()
        model.id = str(number + 1)
        root.append_model(model)
    root.write_pdb_file(str(path), crystal_symmetry=members[0].crystal_symmetry)


@pytest.mark.parametrize("body", ["asu", "cell"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.0, 2.0, 2.0)])
def test_variance_of_structure_factors(body, soft, weights):
    """Direct sums over the members, and over the Laue group."""
    members = displaced_members(random_structure("P 31 2 1", GROUPS[6][1]), 5)
    grid = MapGrid(GROUPS[6][1], members[0].hall_symbol, (2, 2, 3), 1.8)
    index = some_voxels(grid, 20)
    p = np.ones(5) / 5 if weights is None else np.array(weights) / 8
    expected = np.zeros(len(index))
    operators = laue_operators(members[0].space_group, friedel=True)
    for operator in operators:
        hkl = (index @ operator) / np.array(grid.subdivide)
        bodies = [m.expand() if body == "cell" else m.molecule() for m in members]
        if not soft:
            bodies = [b.without_displacements() for b in bodies]
        part = variance(np.array([direct_transform(b, hkl) for b in bodies]), p)
        expected += part * (1 if body == "cell" else members[0].space_group.order_z()) / len(operators)
    if soft:
        expected += sum(w * at(Uncorrelated().intensity(m, grid), grid, index) for w, m in zip(p, members))
    model = Ensemble(members, weights=weights, body=body, soft=soft)
    close(at(model.intensity(members[0], grid), grid, index), expected, 1e-3)
    close(model.intensity_at(members[0], vectors(members[0], grid, index)), expected, 1e-6)


def test_few_members_are_right_on_average():
    """The mean over many pairs of members is the intensity of the distribution they come from: N / (N - 1)."""
    structure = random_structure(elements="CNO", u=(0.04, 0.04))
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.5)
    index = some_voxels(grid, 30)
    expected = oracle(structure, vectors(structure, grid, index), 0.04 * np.eye(3))
    volumes = []
    for seed in range(60):
        pair = displaced_members(structure, 2, 0.2, seed)
        volumes.append(at(Ensemble(pair).intensity(structure, grid), grid, index))
    mean, error = np.mean(volumes, axis=0).mean(), np.mean(volumes, axis=1).std() / np.sqrt(60)
    assert abs(mean - expected.mean()) < 4 * error
    assert error < 0.1 * expected.mean()


def test_equal_members_scatter_nothing():
    structure = random_structure("P 41", GROUPS[5][1])
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    assert np.nanmax(np.abs(Ensemble((structure,) * 3).intensity(structure, grid))) < 1e-9


class Exact:
    """A cctbx structure whose structure factors are summed directly: the default is 10 % off in cells this small."""

    def __init__(self, structure):
        self.structure = structure
        structure.scattering_type_registry(table="wk1995")

    def structure_factors(self, d_min):
        return self.structure.structure_factors(d_min=d_min, algorithm="direct")


def test_same_as_cctbx_diffuse(tmp_path):
    """cctbx.diffuse leaves out N / (N - 1), draws the cell as a whole, and rounds down to integers when it writes."""
    structure = random_structure("P 21 21 21", GROUPS[4][1], elements="CNOCS", u=(0.1, 0.2))
    write_models(tmp_path / "models.pdb", displaced_members(structure, 4))
    ensemble = cctbx_diffuse.ensemble(pdb_file_name=str(tmp_path / "models.pdb"), probabilities=None)
    ensemble.get_models()
    for model in ensemble.models:
        model.xray_structure_p1 = Exact(model.xray_structure_p1)
        model.initialize(d_min=2.0)
    theirs = cctbx_diffuse.diffuse(models=ensemble.models, crystal_symmetry=ensemble.symmetry, scale_factor=1)
    signal = theirs.diffuse_signal
    hkl = np.array(signal.indices())
    members = load_models(tmp_path / "models.pdb")
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 1.99)
    model = Ensemble(members, body="cell", soft=True)
    ours = at(model.intensity(members[0], grid), grid, 2 * hkl) * 3 / 4
    own = np.mean([Uncorrelated().intensity(m, grid) for m in members], axis=0)
    ours -= at(own, grid, 2 * hkl) * 3 / 4
    close(ours, signal.data().as_numpy_array(), 1e-3)


def test_blocks_of_cells():
    """A block of 2 x 1 x 3 cells in P 1, its intensity per cell at the points of its own lattice."""
    cell = (7.0, 8.0, 6.0, 85.0, 95.0, 100.0)
    block = random_structure(unit_cell=(14.0, 8.0, 18.0, *cell[3:]), elements="CNOCCNOS", radius=5.0)
    members = displaced_members(block, 3)
    grid = MapGrid(cell, "P 1", (2, 1, 3), 1.8)
    index = some_voxels(grid, 40)
    f = np.array([direct_transform(m.without_displacements(), index) for m in members])  # whole indices of the block
    expected = variance(f, np.ones(3) / 3) / 6
    model = Ensemble(members, supercell=(2, 1, 3))
    assert model.crystal_form.unit_cell == pytest.approx(cell)
    close(at(model.intensity(model.crystal_form, grid), grid, index), expected, 1e-3)
    with pytest.raises(DiffuseError, match=r"grid.subdivide=2,2,3: blocks of 2,1,3 cells"):
        model.intensity(model.crystal_form, replace(grid, subdivide=(2, 2, 3)))
    with pytest.raises(DiffuseError, match="differ by more than 1 %"):
        replace(model, supercell=(1, 1, 1)).intensity(block, grid)


def test_copies_at_the_edge_of_the_cell_stay_where_they_are():
    """A molecule whose centre lies on the cell's edge: members on both sides of it, and the same shifted inside."""
    structure = random_structure("P 1 21 1", GROUPS[1][1], elements="CNO")
    centre = structure.site_frac.mean(axis=0)
    grid = MapGrid(GROUPS[1][1], structure.hall_symbol, (2, 2, 2), 2.5)
    inside = displaced_members(structure, 3)
    volumes = []
    for shift in (np.zeros(3), np.array([0.0, -centre[1], 0.0])):  # along the polar axis any origin is as good
        members = tuple(replace(m, site_frac=m.site_frac + shift) for m in inside)
        volumes.append(Ensemble(members, body="cell").intensity(members[0], grid))
    means = [m.site_frac.mean(axis=0)[1] for m in members]
    assert min(means) < 0 < max(means)
    # the two copies may lie in other cells relative to each other, which is seen only between whole l and h
    whole = tuple(slice(m % 2, None, 2) for m in grid.extent)
    known = np.isfinite(volumes[0])
    close(volumes[1][whole][known[whole]], volumes[0][whole][known[whole]], 1e-3)
    assert np.nanmean(volumes[1]) < 1.2 * np.nanmean(volumes[0])


def test_program_reads_the_models(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    structure = random_structure("P 41", (14.0, 14.0, 17.0, 90, 90, 90), elements="CNOCS")
    write_models("models.pdb", displaced_members(structure, 3))
    members = load_models("models.pdb")
    assert len(members) == 3
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        np.testing.assert_array_equal(load_structure("models.pdb").site_frac, members[0].site_frac)
    assert "3 models, only the first is used" in caplog.text
    run(["models.pdb", "model=ensemble", "selection=not element S", "d_min=3", "output.png=None"])
    result = read_map("diffuse_model.nxs")
    expected = Ensemble(members).select("not element S").intensity(members[0], result.grid)
    np.testing.assert_allclose(result.intensity, expected.reshape(-1)[result.grid.key(result.index)])
    assert json.loads(Path("diffuse_model.json").read_text())["model"]["members"] == 3
    assert "only the first" not in Path("dials.diffuse_model.log").read_text()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"members": 1}, "1 member; give a file with at least two models"),
        ({"body": "atom"}, "ensemble.body=atom"),
        ({"supercell": (1, 0, 1)}, "ensemble.supercell"),
        ({"supercell": (1, 2, 1)}, "the members have symmetry"),
        ({"weights": (1.0, 2.0)}, "2 numbers for 3 members"),
        ({"weights": (1.0, 2.0, -1.0)}, "none may be negative"),
        ({"weights": (1.0, 0.0, 0.0)}, "two must be positive"),
    ],
)
def test_bad_parameters_are_refused(values, complaint):
    values = dict(values)
    members = (random_structure("P 41", GROUPS[5][1]),) * values.pop("members", 3)
    with pytest.raises(DiffuseError, match=complaint):
        Ensemble(members, **values)
