"""Fits with other form factors: f', f'' at a wavelength, other tables, electrons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.derivatives import assert_derivative
from helpers.pair_sums import close
from helpers.programs import fails
from helpers.structures import CELL, WAVELENGTH, members, random_structure

from dials_diffuse.cli.fit import run
from dials_diffuse.files.nexus import write_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.maps.units import ELECTRON_DIFFRACTION, ELECTRONS
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure

#: half of the atoms have another f' than the others, and strong f''
ELEMENTS = ["Fe", "C", "N", "Fe", "O", "Fe"]
MAP = "diffuse_merged.nxs"


@pytest.fixture(scope="module")
def structure():
    return random_structure("P 41", CELL, elements=ELEMENTS, u=(0.15, 0.3), radius=3.5)


MODELS = {
    "uncorrelated": lambda s: Uncorrelated(),
    "rigid_body": lambda s: RigidBody(V=(0.05, 0.06, 0.04, 0.01, 0.0, -0.01)),
    "llm": lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0),
    "solvent": lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, k_sol=0.35),
    "molecule": lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, confined_to="molecule", orders=1),
    "covariance": lambda s: Covariance(sigma=0.25, gamma=4.0, engine="pair_sum"),
    "ensemble": lambda s: Ensemble(members(s), weights=(1, 2, 3, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_prepared_models_at_a_wavelength(structure, name):
    """Intensities are those of the map at this wavelength, and not those without; derivatives are theirs."""
    model = MODELS[name](structure)
    grid = MapGrid(CELL, structure.hall_symbol, (2, 2, 2), 3.0)
    index = np.concatenate(list(possible_voxels(grid)))[2::5]
    assert np.all(np.any(index != 0, axis=1))  # a rigid body has nothing there
    prepared = prepare_dispersive(model, structure, grid, index, wavelength=WAVELENGTH)
    values = np.array([p.value for p in prepared.parameters])
    whole = model_map(model, structure, grid, wavelength=WAVELENGTH)
    rows = {tuple(i): value for i, value in zip(whole.index, whole.intensity)}
    expected = np.array([rows[tuple(i)] for i in index])
    intensity, jacobian = prepared.jacobian(values)
    close(intensity, expected, 3e-5)
    close(prepared.intensity(values), intensity, 1e-9)
    without = prepare_dispersive(model, structure, grid, index).intensity(values)
    assert np.abs(without / intensity - 1).min() > 0.02
    assert prepared.origin is model and len(prepared.tensors) == (name == "rigid_body")
    weights = np.random.default_rng(1).normal(size=len(index))
    second = prepared.second(values, weights)
    for k, unit in enumerate(np.eye(len(values))):
        step = 1e-2 * max(abs(values[k]), 0.02)
        assert_derivative(prepared.intensity, values, unit, step, jacobian[:, k])
        assert_derivative(lambda x: prepared.jacobian(x)[1].T @ weights, values, unit, step, second[k])


@pytest.fixture
def pdb(structure, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    structure.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=structure.crystal_symmetry)
    return "model.pdb"


def data_from(model, wavelength=None):
    """A map file of a model on the absolute scale, with a little noise; Friedel mates are one voxel."""
    placed = load_structure("model.pdb")
    grid = MapGrid(placed.unit_cell, placed.hall_symbol, (3, 3, 3), 2.5)
    data = model_map(model, placed, grid, wavelength=wavelength)
    noise = 1e-3 * data.intensity.std()
    values = data.intensity + noise * np.random.default_rng(0).normal(size=len(data.index))
    ones = np.ones(len(values))
    write_map(
        MAP,
        replace(data, intensity=values, sigma=noise * ones, multiplicity=ones.astype(int)),
        PROVENANCE,
    )


def fitted(pdb, *words):
    run([MAP, pdb, "scale=absolute", "indexing=given", "voxels=centre", "starts=1", "output.png=None", *words])
    return json.loads(Path("diffuse_fit.json").read_text())


def test_fit_at_a_wavelength(pdb):
    """What was put in is found, on the absolute scale, at the wavelength only; in sums, too."""
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0, orders=6)
    data_from(model, WAVELENGTH)
    words = ["model=llm,llm+uncorrelated", "llm.orders=6", "profile=False"]
    content = fitted(pdb, *words, f"wavelength={WAVELENGTH}")
    llm, both = content["models"]
    for name, truth in (("sigma", 0.3), ("gamma", 6.0)):
        assert abs(llm["parameters"][name]["value"] - truth) < 4 * llm["parameters"][name]["esd"] < 0.01 * truth
    assert llm["statistics"]["chi2"] == pytest.approx(1, abs=0.1)
    assert both["statistics"]["chi2"] == pytest.approx(1, abs=0.1)  # the background takes what does not vary
    assert both["parameters"]["llm.gamma"]["value"] == pytest.approx(6.0, rel=0.01)
    other, _ = fitted(pdb, *words)["models"]
    assert other["statistics"]["chi2"] > 10 and abs(other["parameters"]["sigma"]["value"] - 0.3) > 0.01


def test_fit_with_another_table(pdb, capsys):
    """Electrons: on the scale of their maps."""
    body = RigidBody(sigma=0.3, table="electron")
    data_from(body)
    (rigid,) = fitted(pdb, "model=rigid_body", "scattering_table=electron")["models"]
    assert abs(rigid["parameters"]["sigma"]["value"] - 0.3) < 4 * rigid["parameters"]["sigma"]["esd"] < 0.003
    assert rigid["statistics"]["chi2"] == pytest.approx(1, abs=0.1)
    for name in ("diffuse_fit.json", "diffuse_fit.nxs"):
        Path(name).unlink()
    common = [MAP, pdb, "scale=absolute", "model=rigid_body"]
    text = fails(run, common, capsys)
    assert f"are in {ELECTRON_DIFFRACTION}, not in {ELECTRONS}" in text and "scattering_table=wk1995" in text
    electrons = [MAP, pdb, "scattering_table=electron"]
    assert "there is no f', f''" in fails(run, [*electrons, "wavelength=1"], capsys)
    assert "llm.k_sol=0.35" in fails(run, [*electrons, "llm.k_sol=0.35"], capsys)
    pairs = [MAP, pdb, "model=covariance/pairs", "wavelength=1"]
    assert "wavelength=1: pairs are fitted without f', f''" in fails(run, pairs, capsys, code=2)
