"""dials.diffuse_fit as a user meets it: what was put into a map is found again, one line for what went wrong."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import h5py
import iotbx.pdb
import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.pages import Page
from helpers.programs import fails
from helpers.structures import CELL, random_structure

import dials_diffuse
from dials_diffuse.cli.fit import run
from dials_diffuse.files.nexus import read_map, read_provenance, write_map
from dials_diffuse.fitting.setting_search import reindex
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.maps.units import ELECTRONS
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.structure.atoms import load_models, load_structure

OUTPUTS = {"diffuse_fit.nxs", "diffuse_fit.json", "diffuse_fit.html", "diffuse_fit.png", "dials.diffuse_fit.log"}
MAP = "diffuse_merged.nxs"


def data_from(model, noise=0.3, scale=0.02, units="a.u.", setting=0, halves=True):
    """A map file with what a model gives, a background and noise."""
    structure = load_structure("model.pdb")
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.5)
    data = model_map(model, structure, grid)
    s = grid.s_magnitude(data.index)
    clean = scale * data.intensity + 30 * np.exp(-3 * s)
    rng = np.random.default_rng(0)
    half_a, half_b = clean + 2**0.5 * noise * rng.normal(size=(2, len(s)))
    ones = np.ones(len(s))
    data = replace(
        data, intensity=(half_a + half_b) / 2, sigma=noise * ones, multiplicity=ones.astype(int), units=units
    )
    if halves:
        data = replace(data, half_a=half_a, half_b=half_b)
    write_map(MAP, reindex(data, alternative_settings(grid)[setting]), PROVENANCE)
    return MAP


def test_fit_and_compare(pdb):
    """The model in the data is found, with its parameters, in the setting that is not that of the map."""
    data_from(LiquidLikeMotions(sigma=0.3, gamma=6.0, adp="overall"), setting=1)
    given = [MAP, pdb, "model=llm/overall,rigid_body,llm/overall+rigid_body", "free_fraction=0.1", "d_max=10"]
    run([*given, "statistics.n_shells=4", "starts=1", "voxels=centre"])
    assert {p.name for p in Path().iterdir()} == {pdb, MAP, *OUTPUTS}
    content = json.loads(Path("diffuse_fit.json").read_text())
    assert content["schema"] == "dials.diffuse_fit/1" and content["version"] == dials_diffuse.__version__
    assert [m["model"] for m in content["models"]] == ["llm/overall", "rigid_body", "llm/overall+rigid_body"]
    assert content["best"] == "llm/overall" and content["choice"]["criterion"] == "free"
    rigid = content["choice"]["models"][1]
    assert rigid["model"] == "rigid_body" and rigid["below_highest"] > 3 * rigid["error"] > 0
    assert content["indexing"][0]["cc_anisotropic"] > content["indexing"][1]["cc_anisotropic"] + 0.3
    assert content["indexing"][0]["operator"] != "h,k,l"
    assert set(content["models"][2]["parameters"]) == {"llm.sigma", "llm.gamma", "rigid_body.sigma"}
    best = content["models"][0]
    # a sum has two more starts, where each of its parts fits alone
    assert [model["starts"]["number"] for model in content["models"]] == [1, 1, 3]
    for name, truth in (("sigma", 0.3), ("gamma", 6.0)):
        found = best["parameters"][name]
        assert found["unit"] == "Å" and 0 < found["esd"] < 0.1 * truth
        assert abs(found["value"] - truth) < 4 * found["esd"]
        assert len(found["profile"]["value"]) == 4
    assert abs(best["scale"]["value"] - 0.02) < 4 * best["scale"]["esd"]
    statistics = best["statistics"]
    assert set(statistics) == {"cc", "cc_anisotropic", "r", "chi2", "n", "free", "shells", "near", "away"}
    assert statistics["near"]["n"] + statistics["away"]["n"] == statistics["n"]
    assert statistics["near"]["free"]["n"] + statistics["away"]["free"]["n"] == statistics["free"]["n"]
    assert set(statistics["free"]) == {"cc", "cc_anisotropic", "r", "chi2", "n"}
    assert statistics["chi2"] == pytest.approx(1, abs=0.1)
    for row in statistics["shells"]:  # the model is exact: it reaches the ceiling that the half sets set
        assert row["cc_anisotropic"] == pytest.approx(row["cc_star"], abs=0.05)
    assert best["displacements"][0]["u_model"] == pytest.approx(0.09, rel=0.1)
    result = read_map("diffuse_fit.nxs")
    assert len(result.index) == statistics["n"] + statistics["free"]["n"]
    with h5py.File("diffuse_fit.nxs") as handle:
        fit = {name: item[()] for name, item in handle["entry/fit"].items()}
    assert fit["free"].sum() == statistics["free"]["n"]
    np.testing.assert_allclose(fit["model"] + fit["background"] + fit["residual"], result.intensity)
    assert read_provenance("diffuse_fit.nxs").inputs == (pdb, MAP)
    log = Path("dials.diffuse_fit.log").read_text()
    assert "it is reindexed by" in log and "The best model by free voxels: llm/overall" in log
    page = Page("diffuse_fit.html")
    names = [m["model"] for m in content["models"]]
    assert page.heads == [
        *("dials.diffuse_fit: llm/overall", "Summary", "Models", "Planes of the map", *names),
        *("Settings of the map", "Parameters that were modified"),
    ]
    assert not page.links  # everything is inside
    drawn = page.plots["fit-agreement-plot"]["traces"]
    assert [trace["name"] for trace in drawn] == [x for name in names for x in (name, f"{name}, free")] + ["CC*"]
    for trace, key in zip(drawn[::2], names):
        shells = next(m for m in content["models"] if m["model"] == key)["statistics"]["shells"]
        np.testing.assert_allclose(trace["y"], [row["cc_anisotropic"] for row in shells], rtol=1e-4)
    comparison, *tables = page.tables
    assert [row[0] for row in comparison] == ["model", *(m["model"] for m in content["models"])]
    assert comparison[1][1] == f"{statistics['cc_anisotropic']:.3f}" and "±" in comparison[2][-1]
    assert [len(table) for table in tables if table[0][0] == "d_max"] == [5, 5, 5]
    assert tables[-1][1:] == [[s["operator"], f"{s['cc_anisotropic']:.3f}"] for s in content["indexing"]]
    gamma = best["parameters"]["gamma"]
    (row,) = (row for table in tables for row in table if row[0] == "gamma" and row[2] == f"{gamma['value']:.8g}")
    assert row[1].startswith(f"{gamma['value']:.1f}") and row[1].endswith(" Å") and row[3] == f"{gamma['esd']:.2g}"
    assert "free_fraction = 0.1" in page.pre[0] and "min_multiplicity" not in page.pre[0]  # what was not modified


def test_orders(pdb):
    """As many as the fitted displacement needs, or exactly those that were given, with a warning."""
    data_from(LiquidLikeMotions(sigma=0.6, gamma=6.0, adp="overall", orders=20), noise=0.05)
    words = ["llm.sigma=0.2", "indexing=given", "starts=1", "voxels=centre", "profile=False", "output.png=None"]
    run([MAP, pdb, "model=llm/overall,llm/overall+rigid_body,rigid_body", *words, "d_min=2.6"])
    single, both, rigid = json.loads(Path("diffuse_fit.json").read_text())["models"]
    assert single["orders"] == both["orders"] == [6] and "orders" not in rigid
    assert not [text for m in (single, both) for text in m["warnings"] if "orders" in text]
    assert any("exceeds that of 6 of 6 atoms" in text for text in single["warnings"])
    for name, truth in (("sigma", 0.6), ("gamma", 6.0)):
        found = single["parameters"][name]
        assert abs(found["value"] - truth) < 4 * found["esd"] < 0.05 * truth
    log = Path("dials.diffuse_fit.log").read_text()
    assert "llm/overall: the fitted displacement needs more orders, " in log and "instead of 2; it" in log
    assert "llm.orders = 6" in log
    run([MAP, pdb, "model=llm/overall", "llm.orders=2", *words, "d_min=2.6"])
    (short,) = json.loads(Path("diffuse_fit.json").read_text())["models"]
    assert short["orders"] == [2] and len([text for text in short["warnings"] if "orders=2 leaves out" in text]) == 1
    found = short["parameters"]["sigma"]
    assert abs(found["value"] - 0.6) > 10 * found["esd"]


def test_a_first_model_that_cannot_tell_settings_apart(pdb, caplog):
    data_from(LiquidLikeMotions(sigma=0.3, gamma=6.0))
    run([MAP, pdb, "model=uncorrelated,rigid_body", "starts=1", "output.png=None", "output.volume=False"])
    content = json.loads(Path("diffuse_fit.json").read_text())
    assert content["indexing"][0]["operator"] == "h,k,l"
    assert "fits the map as well in another setting" in caplog.text


def test_start_values_and_tensors(pdb):
    """What is given of a model is where its fit starts; words after its name choose, /V makes a tensor."""
    data_from(RigidBody(V=(0.12, 0.08, 0.15, 0.02, 0.0, 0.0)), noise=0.1)
    words = ["rigid_body.sigma=0.3", "starts=1", "voxels=centre", "output.png=None", "output.json=a.json"]
    run([MAP, pdb, "model=rigid_body/V", *words])
    (model,) = json.loads(Path("a.json").read_text())["models"]
    truth = {"V11": 0.12, "V22": 0.08, "V33": 0.15, "V12": 0.02, "V13": 0.0, "V23": 0.0}
    assert set(model["parameters"]) == set(truth)
    for name, value in truth.items():
        found = model["parameters"][name]
        assert found["unit"] == "Å²" and abs(found["value"] - value) < 4 * found["esd"] < 0.1
    assert not Path("diffuse_fit.png").exists()


def test_bodies_and_pairs(pdb):
    """A motion for each of two bodies, and the covariance of each pair of atoms."""
    halves = ["rigid_body.selection=element C", "rigid_body.selection=not element C", "rigid_body.sigma=0.25"]
    data_from(RigidBody(sigma=(0.2, 0.35), body="selection", selections=("element C", "not element C")), noise=0.1)
    models = "model=rigid_body/selection/each,covariance/atom/pairs"
    words = ["covariance.gamma=3", "profile=False", "pairs.strength=0.1,0.01", "background.n_terms=10"]
    run([MAP, pdb, models, *halves, *words, "voxels=centre", "pairs.starts=3"])
    bodies, kernel, pairs = json.loads(Path("diffuse_fit.json").read_text())["models"]
    for name, truth in (("sigma_1", 0.2), ("sigma_2", 0.35)):
        assert abs(bodies["parameters"][name]["value"] - truth) < 4 * bodies["parameters"][name]["esd"] < 0.1
    assert (kernel["model"], pairs["model"]) == ("covariance/atom", "covariance/atom/pairs")
    assert pairs["n_parameters"] == round(pairs["pairs"]["n_effective"]) + 11 <= 21 + 11 and pairs["parameters"] == {}
    assert [trial["strength"] for trial in pairs["pairs"]["trials"]] == [0.1, 0.01]
    assert pairs["starts"]["number"] == 3 >= pairs["starts"]["reached"] >= 1 and kernel["starts"]["number"] == 2
    assert len(pairs["pairs"]["errors"]) == 21 >= pairs["pairs"]["n_determined"]
    errors = np.load("diffuse_fit_covariance_esd.npy", allow_pickle=False)
    assert errors.shape == (6, 6) and np.all(errors >= 0)
    assert "covariances come from the data" in Path("dials.diffuse_fit.log").read_text()
    covariance = np.load("diffuse_fit_covariance.npy", allow_pickle=False)
    assert covariance.shape == (6, 6) and np.linalg.eigvalsh(covariance)[0] > -1e-9
    assert Path("diffuse_fit_covariance.png").stat().st_size > 1000
    page = Page("diffuse_fit.html")
    size = np.sqrt(np.diag(covariance))
    assert pairs["pairs"]["groups"] == page.plots["fit-rms-plot"]["traces"][0]["text"] and len(size) == 6
    np.testing.assert_allclose(page.plots["fit-rms-plot"]["traces"][0]["y"], size, rtol=1e-4)
    drawn = page.plots["fit-covariance-plot"]["traces"][0]["z"]
    np.testing.assert_allclose(drawn, covariance / np.outer(size, size), atol=6e-4)


def test_tensors_of_pairs_and_a_robust_loss(pdb):
    data_from(RigidBody(V=(0.12, 0.08, 0.15, 0.0, 0.0, 0.0)), noise=0.1)
    data = read_map(MAP)
    spoilt = data.intensity.copy()
    spoilt[::100] += 100
    write_map(MAP, replace(data, intensity=spoilt, half_a=None, half_b=None), PROVENANCE)
    found = {}
    for loss in ("squares", "cauchy"):
        models = f"model=rigid_body{',covariance/atom/pairs/V' if loss == 'cauchy' else ''}"
        run([MAP, pdb, models, f"loss={loss}", "pairs.strength=0.1", "pairs.max_iterations=20", "output.png=None"])
        found[loss] = json.loads(Path("diffuse_fit.json").read_text())["models"]
    esd = [found[loss][0]["parameters"]["sigma"]["esd"] for loss in ("squares", "cauchy")]
    assert esd[1] < 0.2 * esd[0]
    assert [m["model"] for m in found["cauchy"]] == ["rigid_body", "covariance/atom/V", "covariance/atom/pairs/V"]
    covariance = np.load("diffuse_fit_covariance.npy", allow_pickle=False)
    assert covariance.shape == (18, 18) and np.linalg.eigvalsh(covariance)[0] > -1e-9
    assert np.load("diffuse_fit_covariance_esd.npy", allow_pickle=False).shape == (18, 18)
    assert Path("diffuse_fit_covariance.png").stat().st_size > 1000


def test_weights_of_an_ensemble(pdb, atoms):
    """Three structures with unequal probabilities, in a file of their own."""
    rng = np.random.default_rng(0)
    root = iotbx.pdb.hierarchy.root()
    for number in range(3):
        member = atoms.hierarchy.models()[0].detached_copy()
        member.id = str(number + 1)
        root.append_model(member)
        for atom in member.atoms():
            atom.xyz = tuple(np.array(atom.xyz) + 0.25 * rng.normal(size=3))
    root.write_pdb_file("ensemble.pdb", crystal_symmetry=atoms.crystal_symmetry)
    data_from(Ensemble(load_models("ensemble.pdb"), weights=(0.5, 0.3, 0.2)), noise=0.1)
    words = ["voxels=mean", "output.volume=False", "output.png=None"]
    run([MAP, "ensemble.pdb", "model=ensemble,uncorrelated", *words])
    content = json.loads(Path("diffuse_fit.json").read_text())
    assert content["best"] == "ensemble"
    ensemble, nothing = content["models"]
    assert (ensemble["voxels"], nothing["voxels"]) == ("mean", "centre")
    note = "Not averaged over voxels, but taken at their centres: uncorrelated"
    assert f"{note}\n" in Path("dials.diffuse_fit.log").read_text()
    assert f"{note}.</p>" in Path("diffuse_fit.html").read_text()
    for name, truth in (("weight_2", 0.3), ("weight_3", 0.2)):
        assert abs(ensemble["parameters"][name]["value"] - truth) < 4 * ensemble["parameters"][name]["esd"] < 0.1
    assert nothing["parameters"] == {} and nothing["statistics"]["cc_anisotropic"] < 0.5
    # a selection is one of all members
    data_from(Ensemble(load_models("ensemble.pdb"), weights=(0.5, 0.3, 0.2)).select("not element S"), noise=0.1)
    for selection, right in (("not element S", True), ("not element N", False)):
        run([MAP, "ensemble.pdb", "model=ensemble", f"selection={selection}", "voxels=centre", *words[1:]])
        (model,) = json.loads(Path("diffuse_fit.json").read_text())["models"]
        assert (model["statistics"]["chi2"] < 1.1) == right


def test_voxels_and_atoms_that_are_asked_for(pdb):
    """Each parameter that chooses voxels or atoms does, and the seed another set of free blocks."""
    data_from(RigidBody(sigma=0.3))
    data = read_map(MAP)
    multiplicity = np.random.default_rng(0).integers(1, 6, len(data.index))
    write_map(MAP, replace(data, multiplicity=multiplicity), PROVENANCE)
    s = data.grid.s_magnitude(data.index)
    hkl = data.index / 3
    distance = data.grid.s_magnitude(data.index - 3 * np.rint(hkl).astype(int))  # the axes are at right angles
    between = distance > 1e-6
    words = ["starts=1", "profile=False", "output.png=None", "output.volume=False", "indexing=given"]
    free, atoms = {}, {}
    for word, use in (
        ("seed=0", between),
        ("seed=1", between),
        ("bragg=True", s > 0),
        ("bragg_distance=0.03", distance > 0.03),
        ("min_multiplicity=3", between & (multiplicity >= 3)),
        ("d_max=8", between & (s >= 1 / 8)),
        ("selection=not element S", between),
    ):
        run([MAP, pdb, "model=rigid_body", word, *words])
        (model,) = json.loads(Path("diffuse_fit.json").read_text())["models"]
        assert model["statistics"]["n"] + model["statistics"]["free"]["n"] == np.count_nonzero(use), word
        assert 10 < np.count_nonzero(use) < len(s)
        np.testing.assert_array_equal(read_map("diffuse_fit.nxs").index, data.index[use])
        assert "profile" not in model["parameters"]["sigma"]
        atoms[word] = model["displacements"][0]["n_atoms"]
        with h5py.File("diffuse_fit.nxs") as handle:
            free[word] = handle["entry/fit/free"][()]
    assert not np.array_equal(free["seed=0"], free["seed=1"])
    assert atoms["seed=0"] == 6 and atoms["selection=not element S"] == 5


def test_names_in_the_report(pdb):
    """Names of files that look like markup are shown as they are; warnings and profiles stand beside their model."""
    data_from(RigidBody(sigma=0.3), halves=False)
    odd = Path(MAP).rename("a<b>&c.nxs").name
    run([odd, pdb, "model=uncorrelated,rigid_body", "free_fraction=0", "output.volume=False", "indexing=given"])
    text = Path("diffuse_fit.html").read_text()
    assert "a&lt;b&gt;&amp;c.nxs" in text and "<b>" not in text
    models = json.loads(Path("diffuse_fit.json").read_text())["models"]
    said = [warning.partition(": ")[2] for model in models for warning in model["warnings"]]
    assert said and all(warning in text for warning in said)
    page = Page("diffuse_fit.html")
    tables = page.tables
    assert "The best model by BIC: rigid_body." in text
    assert [row[0] for row in tables[0]] == ["model", "uncorrelated", "rigid_body"] and "-" in tables[0][1]
    assert text.index('class="best"') > text.index(">uncorrelated</td>")
    sigma = models[1]["parameters"]["sigma"]
    profile = page.plots["fit-profile-1-plot"]["traces"][0]
    drawn = dict(zip(np.round(profile["x"], 3), profile["y"]))
    for value, rise in zip(sigma["profile"]["value"], sigma["profile"]["rise"]):
        assert drawn[round((value - sigma["value"]) / sigma["esd"], 3)] == pytest.approx(rise, rel=1e-4)
    assert drawn[0] == 0


def test_pairs_beside_given_modes(pdb):
    """The prior may come from modes in a file, too: one for all atoms."""
    data_from(RigidBody(sigma=0.3), noise=0.1)
    np.save("modes.npy", np.full((1, 6), 0.25))
    words = ["model=covariance/free/pairs", "covariance.modes=modes.npy", "covariance.groups=atom", "output.png=None"]
    run([MAP, pdb, *words, "pairs.strength=0.01", "voxels=mean"])
    kernel, pairs = json.loads(Path("diffuse_fit.json").read_text())["models"]
    assert kernel["voxels"] == pairs["voxels"] == "mean"
    assert kernel["parameters"] == {} and pairs["statistics"]["chi2"] <= kernel["statistics"]["chi2"] * 1.01
    assert pairs["converged"]
    run([MAP, pdb, *words, "pairs.strength=0.01", "pairs.max_iterations=1", "pairs.minimiser=descent"])
    _, short = json.loads(Path("diffuse_fit.json").read_text())["models"]
    assert not short["converged"] and "no minimum after 1 steps; raise pairs.max_iterations" in short["warnings"][0]


def test_absolute_scale(pdb, capsys):
    data_from(RigidBody(sigma=0.3), scale=1.0, noise=10.0, units=ELECTRONS, halves=False)
    run([MAP, pdb, "model=rigid_body", "scale=absolute", "output.volume=False", "indexing=given"])
    content = json.loads(Path("diffuse_fit.json").read_text())
    assert content["models"][0]["scale"] == {"value": 1.0, "esd": 0.0, "unit": ""}
    assert content["models"][0]["parameters"]["sigma"]["value"] == pytest.approx(0.3, rel=0.02)
    assert content["models"][0]["statistics"]["shells"][0]["cc_star"] is None
    data_from(RigidBody(sigma=0.3))
    assert "scale=absolute: the intensities of diffuse_merged.nxs are in a.u." in fails(
        run, [MAP, pdb, "scale=absolute"], capsys
    )


def test_mistakes(pdb, capsys, caplog):
    caplog.set_level(logging.CRITICAL)
    data_from(RigidBody(sigma=0.3))
    for arguments, code, message in (
        ([pdb], 2, "no map given"),
        ([MAP], 2, "0 coordinate files and 1 maps given"),
        ([MAP, pdb, "model=lm"], 2, "no model 'lm'; choose from uncorrelated, rigid_body"),
        ([MAP, pdb, "model=llm/round"], 2, "'round' is no choice of llm; there is V, G, individual, overall"),
        ([MAP, pdb, "model=llm,llm"], 2, "a model is given twice"),
        ([MAP, pdb, "model=llm+covariance/pairs"], 2, "one model of all pairs can be fitted, and not in a sum"),
        ([MAP, pdb, "model=llm/V", "llm.gamma=-1"], 2, "gamma"),
        ([MAP, pdb, "model=covariance/pairs", "pairs.strength=None"], 2, "pairs.strength=None"),
        ([MAP, pdb, "model=covariance/pairs", "free_fraction=0"], 2, "free voxels choose one"),
        ([MAP, pdb, "model=covariance/pairs/V", "pairs.minimiser=newton", "pairs.strength=1"], 1, "use lbfgs"),
        ([MAP, pdb, "free_fraction=0.7"], 2, "free_fraction"),
        ([MAP, pdb, "d_min=1.5"], 1, "the map ends at 2.5"),
        ([MAP, pdb, "d_max=2.51", "d_min=2.5"], 1, "too few to fit"),
        ([MAP, pdb, "background.n_terms=2"], 1, "background.n_terms=2"),
        ([MAP, pdb, "output.map=None"], 1, "output.map=None"),
        ([MAP, pdb, f"output.map={MAP}"], 1, "the input"),
        ([MAP, pdb, "selection=element Zn"], 1, "no atoms are left"),
    ):
        assert message in fails(run, arguments, capsys, code), arguments
    assert {p.name for p in Path().iterdir()} <= {pdb, MAP, "dials.diffuse_fit.log"}


def test_a_map_of_a_model_has_no_errors(pdb, capsys):
    structure = load_structure(pdb)
    data: DiffuseMap = model_map(RigidBody(sigma=0.3), structure, MapGrid(CELL, structure.hall_symbol, (2, 2, 2), 3.0))
    write_map(MAP, data, PROVENANCE)
    assert "the map of a model has no errors" in fails(run, [MAP, pdb], capsys)


def test_a_setting_that_the_subdivision_forbids(tmp_path, monkeypatch):
    """h, -k, -h-l of this lattice needs equal steps along a* and c*: the map is fitted as it is, and that is said."""
    monkeypatch.chdir(tmp_path)
    cell = (10.0, 12.0, 14.0, 90.0, 110.925, 90.0)
    atoms = random_structure("P 1 21 1", cell, elements="CNOCSC", u=(0.15, 0.3))
    atoms.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=atoms.crystal_symmetry)
    structure = load_structure("model.pdb")
    data = model_map(RigidBody(sigma=0.3), structure, MapGrid(cell, structure.hall_symbol, (2, 2, 3), 2.5))
    ones = np.ones(len(data.index))
    noisy = data.intensity + np.random.default_rng(0).normal(size=len(ones))
    data = replace(data, intensity=noisy, sigma=ones, multiplicity=ones.astype(int))
    write_map(MAP, data, PROVENANCE)
    run([MAP, "model.pdb", "model=rigid_body", "voxels=centre", "starts=1", "profile=False", "output.png=None"])
    content = json.loads(Path("diffuse_fit.json").read_text())
    assert len(content["indexing"]) == 2
    assert [row["cc_anisotropic"] for row in content["indexing"]] == [None, None]
    assert content["indexing"][0]["operator"] == "h,k,l"
    assert content["models"][0]["parameters"]["sigma"]["value"] == pytest.approx(0.3, rel=0.02)
    log = Path("dials.diffuse_fit.log").read_text()
    assert f"no test whether the setting is {content['indexing'][1]['operator']}" in log


def test_symmetry_that_the_structure_lacks_is_told(pdb):
    structure = load_structure(pdb)
    data = model_map(RigidBody(sigma=0.3), structure, MapGrid(CELL, " P 4 2", (2, 2, 2), 2.5))
    ones = np.ones(len(data.index))
    noisy = data.intensity + np.random.default_rng(0).normal(size=len(ones))
    data = replace(data, intensity=noisy, sigma=ones, multiplicity=ones.astype(int))
    write_map(MAP, data, PROVENANCE)
    run([MAP, pdb, "model=rigid_body", "starts=1", "profile=False", "output.png=None"])
    (model,) = json.loads(Path("diffuse_fit.json").read_text())["models"]
    assert model["voxels"] == "centre"  # as the map has it
    log = Path("dials.diffuse_fit.log").read_text()
    assert "the map has symmetry (P 4 2 2) that the structure (P 41) lacks" in log
