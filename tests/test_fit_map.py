"""The fit as a function: from plain objects, without phil; the program does what it does."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fits import noisy_map
from helpers.structures import small_molecule

from dials_diffuse.cli.fit import run
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.files.nexus import read_map, write_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.fitting.data import Selection
from dials_diffuse.fitting.fit_parameters import FitOptions, FitParameters, PairParameters
from dials_diffuse.fitting.pairs.fit_pairs import PairFit
from dials_diffuse.fitting.request import FitRequest, Part
from dials_diffuse.fitting.result import ModelFit
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.fitting.setting_search import reindex
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.maps.units import ELECTRONS
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure

LIQUID, BODY = LiquidLikeMotions(sigma=0.3, gamma=6.0), RigidBody(sigma=0.3)
QUICK = FitOptions(starts=1, profile=False)


@pytest.fixture(scope="module")
def structure():
    return small_molecule()


@pytest.fixture(scope="module")
def data(structure):
    """A map of a liquid with a background and noise."""
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    clean = model_map(LIQUID, structure, grid)
    noisy = noisy_map(grid, clean.index, clean.intensity, 0.3)
    return replace(noisy, at_centres=True)


@pytest.fixture(scope="module")
def everything(structure, data):
    """The map in the wrong setting; a model, a sum, and the covariances of all pairs of atoms."""
    asked = []

    def progress(items, total, label):
        asked.append((label, total))
        return items

    requests = [
        FitRequest.of(LIQUID),
        FitRequest.of(BODY, Uncorrelated()),
        FitRequest.of(Covariance(sigma=0.3, gamma=6.0), pairs=True),
    ]
    parameters = FitParameters(Selection(free_fraction=0.1), QUICK, PairParameters((0.1,), max_iterations=5))
    other = reindex(data, alternative_settings(data.grid)[1])
    before = [getattr(other, f.name) for f in fields(other)]
    columns = other.intensity.copy(), other.index.copy()
    result = fit_map(other, structure, requests, parameters, progress)
    assert all(getattr(other, f.name) is value for f, value in zip(fields(other), before))
    assert np.array_equal(other.intensity, columns[0]) and np.array_equal(other.index, columns[1])
    assert ("preparing", 3) in asked and ("models", 3) in asked
    return result


def test_result(everything, data):
    """Fits in the order of the requests, that of pairs at the end, and what was done with the map."""
    result = everything
    assert [fit.name for fit in result.models] == ["llm", "rigid_body+uncorrelated", "covariance"]
    assert [fit.name for fit in result.fits] == [*(fit.name for fit in result.models), "covariance/pairs"]
    assert result.best is result.choice.best and result.best.name in ("llm", "covariance/pairs")
    for estimate, truth in zip(result.models[0].estimates, (0.3, 6.0)):
        assert abs(estimate.value - truth) < 4 * estimate.esd
    given, found = data.grid.key(data.index), result.map.grid.key(result.map.index)
    np.testing.assert_array_equal(np.sort(given), np.sort(found))
    np.testing.assert_array_equal(
        data.intensity[np.argsort(given)], result.map.intensity[np.argsort(found)]
    )  # back in the setting of the structure
    np.testing.assert_array_equal(result.map.intensity[result.data.row], result.data.intensity)
    assert [setting.operator == "h,k,l" for setting in result.settings] == [False, True]
    assert result.settings[0].cc_anisotropic > result.settings[1].cc_anisotropic
    assert any("it is reindexed by" in text for text in result.warnings)
    told = [text for fit in result.fits for text in fit.warnings]
    assert told == list(result.warnings[-len(told) :])
    assert [len(compared) for compared in result.displacements] == [1, 1, 1, 1]
    assert result.parameters.options == QUICK
    for fit in result.fits:
        assert not fit.means  # the map is one of centres
        np.testing.assert_allclose(fit.fitted, fit.scale.value * fit.intensity + fit.background)


def test_pairs_have_a_result_of_their_own(everything):
    """No parameters with names: the covariances, and what the data say about them."""
    (pairs,) = everything.pairs
    assert isinstance(pairs, PairFit) and all(isinstance(fit, ModelFit) for fit in everything.models)
    assert not {f.name for f in fields(PairFit)} & {"estimates", "correlations", "eigenvalues", "loosest", "minimum"}
    assert pairs.covariance.shape == pairs.freedom.esd.shape == (6, 6)
    assert pairs.strength == 0.1 and [trial[0] for trial in pairs.trials] == [0.1]
    (model,) = pairs.models
    assert model.kernel == "free"
    np.testing.assert_array_equal(model.matrix, pairs.covariance)
    assert all(text.startswith("covariance/pairs: ") for text in pairs.warnings)


def test_a_result_can_be_sent(everything):
    again = pickle.loads(pickle.dumps(everything))
    assert [fit.name for fit in again.fits] == [fit.name for fit in everything.fits]
    for mine, other in zip(again.models, everything.models):
        assert repr(mine.estimates) == repr(other.estimates)  # with their NaN
        np.testing.assert_equal(mine.statistics, other.statistics)
        np.testing.assert_array_equal(mine.fitted, other.fitted)
    assert again.best.name == everything.best.name and again.data.grid == everything.data.grid
    np.testing.assert_array_equal(again.pairs[0].covariance, everything.pairs[0].covariance)
    assert again.models[0].models == everything.models[0].models


def test_the_program_does_what_the_function_does(structure, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    structure.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=structure.crystal_symmetry)
    write_map("map.nxs", data, Provenance("test", "", ""))
    words = ["starts=1", "profile=False", "output.png=None", "output.html=None", "d_max=8", "weights=shell"]
    run(["map.nxs", "model.pdb", "model=llm/overall,rigid_body+uncorrelated", "llm.sigma=0.4", *words])
    record = json.loads(Path("diffuse_fit.json").read_text())
    liquid = Part(LiquidLikeMotions(sigma=0.4, gamma=10.0, adp="overall"), frozenset({"sigma"}))
    requests = [
        FitRequest("llm/overall", (liquid,)),
        FitRequest("rigid_body+uncorrelated", (Part(BODY, frozenset()), Part(Uncorrelated()))),
    ]
    parameters = FitParameters(Selection(d_max=8), replace(QUICK, weights="shell"))
    result = fit_map(read_map("map.nxs"), load_structure("model.pdb"), requests, parameters)
    assert record["best"] == result.best.name
    assert [model["model"] for model in record["models"]] == [fit.name for fit in result.fits]
    for model, fit in zip(record["models"], result.fits):
        values = {name: estimate["value"] for name, estimate in model["parameters"].items()}
        assert values == {estimate.name: estimate.value for estimate in fit.estimates}
        assert model["scale"]["value"] == fit.scale.value
        assert model["statistics"]["chi2"] == fit.statistics["chi2"]
        assert model.get("orders", []) == [part.orders for part in fit.models if part.orders is not None]
        assert model["warnings"] == list(fit.warnings)


def test_orders_are_chosen_or_kept(structure):
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    truth = LiquidLikeMotions(sigma=0.55, gamma=6.0, adp="overall", orders=12)
    clean = model_map(truth, structure, grid)
    data = replace(noisy_map(grid, clean.index, clean.intensity, 0.3), at_centres=True)
    parameters = FitParameters(options=QUICK, indexing="given")
    few = replace(truth, sigma=0.3, orders=2)
    requests = [FitRequest.of(few), FitRequest("kept", (Part(few, choose_orders=False),))]
    chosen, kept = fit_map(data, structure, requests, parameters).models
    assert chosen.models[0].orders == chosen.models[0].enough_orders(2.5) > 2
    assert kept.models[0].orders == 2 and any("orders=2 leaves out" in text for text in kept.warnings)


def test_displacements_of_lattice_dynamics_are_compared(structure, data):
    requests = [FitRequest.of(LatticeDynamics(sigma=0.9))]
    (fit,) = fit_map(data, structure, requests, FitParameters(Selection(d_min=4.0), QUICK, indexing="given")).models
    (compared,) = fit.displacements
    assert compared.model == "lattice_dynamics" and compared.n_atoms == structure.n_atoms
    assert compared.u_model == pytest.approx(fit.estimates[0].value ** 2, rel=1e-6)


def test_what_is_refused(structure, data):
    absolute = FitParameters(options=replace(QUICK, scale=1.0))
    with pytest.raises(DiffuseError) as stopped:
        fit_map(data, structure, [FitRequest.of(BODY)], absolute, source="mine.nxs")
    text = str(stopped.value)
    assert text.startswith("scale=absolute: the intensities of mine.nxs are in a.u., not in electron^2 per unit cell, ")
    assert "with scattering_table=wk1995 are; use scale=refine, or scale the data with" in text
    electrons = FitRequest.of(replace(BODY, table="electron"))
    with pytest.raises(DiffuseError, match=r"the map are in electron\^2 per unit cell, not in angstrom\^2"):
        fit_map(replace(data, units=ELECTRONS), structure, [electrons], absolute)
    with pytest.raises(CommandLineError, match="a model is given twice"):
        fit_map(data, structure, [FitRequest.of(BODY)] * 2)
    with pytest.raises(DiffuseError, match=r"d_min=1: the map ends at 2\.5"):
        fit_map(data, structure, [FitRequest.of(BODY)], FitParameters(Selection(d_min=1.0)))


def test_symmetry_that_the_structure_lacks_is_told(structure):
    grid = MapGrid(structure.unit_cell, " P 4 2", (2, 2, 2), 3.0)
    index = np.concatenate(list(possible_voxels(grid)))
    clean = model_map(BODY, structure, grid)
    data = noisy_map(grid, clean.index, clean.intensity, 0.3)
    assert len(index) == len(data.index)
    result = fit_map(data, structure, [FitRequest.of(BODY)], FitParameters(options=QUICK, voxels="centre"))
    assert "the map has symmetry (P 4 2 2) that the structure (P 41) lacks" in result.warnings[0]
