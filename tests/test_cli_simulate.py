"""dials.diffuse_simulate as a user meets it: files in, images out, and an error that helps when something is wrong."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from helpers.checkout import environment
from helpers.programs import fails
from helpers.simulations import CELL, GROUP, QUICK, SMALL, write_structure
from helpers.synthetic import experiment_list, make_crystal, make_experiment
from libtbx.phil import parse

import dials_diffuse
from dials_diffuse.cli import integrate, merge
from dials_diffuse.cli.model_scope import model_from_phil
from dials_diffuse.cli.simulate import geometry_from_phil, parameters_from_phil, phil_scope, run, sort_files
from dials_diffuse.compat import trusted_bounds
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map, read_provenance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.simulation import simulate as simulation
from dials_diffuse.simulation.simulation_parameters import Background, Defects, Scales, SimulationParameters, Source
from dials_diffuse.simulation.spots import SpotShape

BASE = ["tiny.pdb", *SMALL, *QUICK]

OUTPUTS = {"simulated.expt", "simulated.refl", "truth.nxs", "dials.diffuse_simulate.log"}
OUTPUTS |= {"diffuse_simulate.json", "diffuse_simulate.html"}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A fresh folder with a structure of ten atoms, made the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_structure("tiny.pdb")
    return folder


def images(prefix="simulated_1", n=4) -> set:
    return {f"{prefix}_{i + 1:05d}.cbf" for i in range(n)}


def names() -> set:
    return {p.name for p in Path().iterdir()}


def pixels(path, image: int = 0, number: int = 0) -> np.ndarray:
    """(ny, nx) of an image of an .expt file."""
    experiment = ExperimentList.from_file(str(path))[number]
    return np.array(read_image(experiment.imageset, image)[0])


# ---- what comes out


def test_default_outputs(work):
    run(BASE)
    assert names() == {"tiny.pdb"} | OUTPUTS | images()
    log = Path("dials.diffuse_simulate.log").read_text()
    for text in ("tiny.pdb", "Diffuse intensity: RigidBody", "Sweep 1: 4 images", "Saving the true map to truth.nxs"):
        assert text in log
    assert "Next: dials.import simulated_1_*.cbf" in log
    assert log.index("GB") < log.index("Counts per pixel")


def test_json(work):
    run([*BASE, "seed=3", "background.images=2", "output.ideal=ideal.nxs"])
    content = json.loads(Path("diffuse_simulate.json").read_text())
    assert content["schema"] == "dials.diffuse_simulate/1" and content["version"] == dials_diffuse.__version__
    assert content["inputs"] == ["tiny.pdb"] and "seed = 3" in content["parameters"]
    assert content["model"]["name"] == "rigid_body" and content["model"]["sigma"] == 0.3
    assert content["d_min"] == 3.0
    sweep, empty = content["sweeps"]
    assert (sweep["n_images"], sweep["crystals"], sweep["sub_steps"], sweep["sub_pixels"]) == (4, 1, 1, 1)
    assert (empty["n_images"], empty["crystals"], empty["mean_diffuse"], empty["mean_bragg"]) == (2, 0, 0, 0)
    assert min(sweep[f"mean_{kind}"] for kind in ("diffuse", "background", "bragg")) > 0
    raw = pixels("simulated.expt", 2)
    assert sweep["highest"] >= raw.max()
    listed = {item["path"] for item in content["outputs"]}
    assert listed == {
        "simulated_1_#####.cbf",
        "background_1_#####.cbf",
        "simulated.expt",
        "simulated.refl",
        "truth.nxs",
        "ideal.nxs",
        "diffuse_simulate.json",
        "diffuse_simulate.html",
    }
    assert all({"path", "kind", "importance"} == set(item) for item in content["outputs"])


def test_the_images_are_those_of_the_models(work):
    """What dials.import makes of the images are the models in simulated.expt, but for the crystal."""
    run([*BASE, "scan.start=17.5", "detector.beam_centre=28.5,27.25", "source.wavelength=0.9"])
    true = ExperimentList.from_file("simulated.expt", check_format=False)[0]
    imported = ExperimentListFactory.from_filenames(sorted(str(p) for p in Path().glob("*.cbf")))[0]
    assert imported.beam == true.beam and imported.goniometer == true.goniometer
    assert imported.detector == true.detector
    assert imported.scan.get_oscillation() == pytest.approx((17.5, 2.0)) == true.scan.get_oscillation()
    assert imported.scan.get_image_range() == (1, 4)
    assert true.detector[0].get_beam_centre_px(true.beam.get_s0()) == pytest.approx((28.5, 27.25), abs=0.3)  # parallax
    assert true.crystal.get_unit_cell().parameters() == pytest.approx(CELL, abs=0.01)
    assert str(true.crystal.get_space_group().info()) == GROUP
    assert true.identifier == "simulated-1" and true.profile is not None


def test_the_truth_is_a_map_on_the_merged_grid(work):
    run([*BASE, "grid.subdivide=2,3,1", "output.ideal=ideal.nxs"])
    truth, ideal = read_map("truth.nxs"), read_map("ideal.nxs")
    assert truth.grid.subdivide == ideal.grid.subdivide == (2, 3, 1)
    assert truth.grid.d_min == 3.0 and truth.grid.space_group_symbol == GROUP
    assert truth.units == ideal.units == "electron^2 per unit cell"
    assert np.all(truth.intensity > 0) and len(ideal.index) < len(truth.index)
    provenance = read_provenance("truth.nxs")
    assert provenance.program == "dials.diffuse_simulate" and provenance.inputs == ("tiny.pdb",)
    assert "rigid_body" in provenance.phil


def test_our_own_programs_take_the_outputs(work):
    run([*BASE, "scan.n_images=8"])
    integrate.run(["simulated.expt", "simulated.refl", "d_min=3"])
    merge.run(["diffuse_integrated.h5", "output.png=None"])
    data, truth = read_map("diffuse_merged.nxs"), read_map("truth.nxs")
    assert set(map(tuple, data.index.tolist())) <= set(map(tuple, truth.index.tolist()))


def test_nothing_but_images(work):
    run([*BASE, *(f"output.{name}=None" for name in ("experiments", "reflections", "truth", "json", "html", "log"))])
    assert names() == {"tiny.pdb"} | images()


def test_switches(work):
    quiet = ["background.air=0", "background.liquid=0", "background.solvent=False", "background.compton=False"]
    dark = [*BASE, *quiet, "noise=False", "detector.hot_pixels=0"]
    run([*dark, "bragg=False", "diffuse=False", "output.prefix=neither"])
    assert "truth.nxs" not in names() and "simulated.refl" not in names()
    assert pixels("simulated.expt").max() == 0
    run([*dark, "bragg=False", "output.prefix=diffuse"])
    diffuse = [pixels("simulated.expt", i) for i in range(4)]
    run([*dark, "diffuse=False", "output.prefix=bragg"])
    bragg = [pixels("simulated.expt", i) for i in range(4)]
    run([*dark, "output.prefix=both"])
    for i in range(4):
        assert np.abs(pixels("simulated.expt", i) - diffuse[i] - bragg[i]).max() <= 1  # counts are rounded
    assert np.mean(np.array(diffuse) > 5) > 0.2 and np.median(bragg) == 0 and np.max(bragg) > 1000


def test_selection_of_atoms(work, capsys):
    """Images and truth are those of a file that holds nothing else; what is no selection is an error."""
    lines = Path("tiny.pdb").read_text().splitlines(keepends=True)
    chosen = [line for line in lines if not line.startswith(("ATOM", "HETATM")) or line[76:78].strip() != "C"]
    assert 2 < len(lines) - len(chosen) < 9
    Path("chosen.pdb").write_text("".join(chosen))
    run(["chosen.pdb", *BASE[1:], "output.prefix=file"])
    expected = read_map("truth.nxs").intensity
    run([*BASE, "selection=not element C", "output.prefix=selection"])
    np.testing.assert_array_equal(read_map("truth.nxs").intensity, expected)
    for i in range(4):
        np.testing.assert_array_equal(*(cbf_pixels(f"{n}_1_{i + 1:05d}.cbf") for n in ("file", "selection")))
    assert "selection='element Q'" in fails(run, [*BASE, "selection=element Q"], capsys)


def cbf_pixels(path) -> np.ndarray:
    """(ny, nx) of an image."""
    return np.array(read_image(ExperimentListFactory.from_filenames([path])[0].imageset, 0)[0])


def test_images_without_crystal(work):
    run([*BASE, "background.images=3", "noise=False", "scan.start=10", "background.air=40", "bragg=False"])
    assert images("background_1", 3) < names() and "background_2_00001.cbf" not in names()
    empty = ExperimentListFactory.from_filenames(sorted(str(p) for p in Path().glob("background_1_*.cbf")))[0]
    assert empty.scan.get_oscillation() == pytest.approx((10.0, 8.0 / 3)) and empty.crystal is None
    background, crystal = np.array(read_image(empty.imageset, 0)[0]), pixels("simulated.expt")
    lit = (background > 0) & (crystal < 20 * np.median(crystal))
    assert lit.mean() > 0.9 and np.all(crystal[lit] > background[lit])
    assert background[lit].mean() > 0.1 * crystal[lit].mean()  # it is air, the same in both


def test_several_crystals_have_sweeps_of_their_own(work):
    run([*BASE, "crystal.number=2", "crystal.thickness=0.1,0.2", "background.images=1", "noise=False", "bragg=False"])
    assert images("simulated_1") | images("simulated_2") | images("background_2", 1) < names()
    experiments = ExperimentList.from_file("simulated.expt")
    assert [e.identifier for e in experiments] == ["simulated-1", "simulated-2"]
    u = [np.array(e.crystal.get_U()).reshape(3, 3) for e in experiments]
    assert not np.allclose(u[0], u[1])
    thin, thick = (pixels("simulated.expt", 0, i).sum() for i in range(2))
    assert 1.3 < thick / thin < 2.1  # but for air and liquid
    scales = h5py.File("truth.nxs")["entry/simulation"]
    electrons = [scales[f"sweep_{i}/counts_per_electron2_steradian"][0] for i in (1, 2)]
    assert electrons[1] == pytest.approx(2 * electrons[0])


def test_orientation_is_that_of_the_first_crystal(work):
    u = [0, -1, 0, 1, 0, 0, 0, 0, 1]
    run([*BASE, "crystal.number=2", "crystal.orientation=" + ",".join(map(str, u))])
    first, second = ExperimentList.from_file("simulated.expt", check_format=False)
    assert first.crystal.get_U() == pytest.approx(u)
    assert not np.allclose(second.crystal.get_U(), u)


def test_the_same_seed_gives_the_same_bytes(work, monkeypatch):
    noisy = [*BASE, "scale.drift=0.1", "scale.absorption=0.1", "scale.module=0.05", "background.images=1"]
    results = {}
    for name, options in {"a": [], "b": ["nproc=2"], "c": ["seed=1"]}.items():
        Path(name).mkdir()
        monkeypatch.chdir(work / name)
        run(["../tiny.pdb", *noisy[1:], *options])
        results[name] = {p.name: p.read_bytes() for p in sorted(Path().glob("*.cbf"))}
        results[name]["truth"] = read_map("truth.nxs").intensity.tobytes()
        orientation = ExperimentList.from_file("simulated.expt", check_format=False)[0].crystal.get_U()
        results[name]["orientation"] = np.array(orientation).tobytes()
        monkeypatch.chdir(work)
    assert len(results["a"]) == 7
    assert results["a"] == results["b"]
    assert [key for key in results["a"] if results["a"][key] == results["c"][key]] == ["truth"]


def test_the_truth_holds_every_scale(work):
    """Images with scale factors are those without, times what the file says."""
    options = [
        "tiny.pdb",
        *QUICK,
        "detector.size=487,407",
        "detector.distance=40",
        "scan.width=5",
        "scan.n_images=4",
        "source.flux=5e12",
        "noise=False",
        "background.air=0",
        "background.liquid=0",
        "detector.hot_pixels=0",
        "detector.dead_pixels=0",
        "d_min=2.2",
    ]
    run([*options, "output.prefix=plain"])
    plain = [pixels("simulated.expt", i).astype(float) for i in range(4)]
    run([*options, "scale.drift=0.3", "scale.absorption=0.2", "scale.module=0.1", "output.prefix=scaled"])
    with h5py.File("truth.nxs") as handle:
        record = handle["entry/simulation/sweep_1"]
        assert record["image"][:].tolist() == record["absorption_image"][:].tolist() == [1, 2, 3, 4]
        assert record["angle"][:] == pytest.approx([2.5, 7.5, 12.5, 17.5])
        assert np.ptp(record["b"][:]) > 0.2 and np.ptp(np.unique(record["panel_0/response"][:])) > 0.02
        for i in range(4):
            scaled = pixels("simulated.expt", i).astype(float)
            y, x = (record[f"panel_0/{name}"][:].astype(int) for name in "yx")
            place = np.ix_(y, x)
            ratio = scaled[place] / np.maximum(plain[i][place], 1)
            known = record["b"][i] * record["panel_0/absorption"][i] * record["panel_0/response"][:][place]
            seen = (plain[i][place] > 1000) & (plain[i][place] < 5e5) & (scaled[place] < 5e5)
            assert seen.mean() > 0.5
            assert ratio[seen] == pytest.approx(known[seen], rel=2e-3)
            assert np.ptp(known[seen]) > 0.1


def test_exposure_and_flux_set_the_scale(work):
    run([*BASE, "source.flux=2e12", "source.exposure=0.3", "crystal.thickness=0.05"])
    with h5py.File("truth.nxs") as handle:
        counts = handle["entry/simulation/sweep_1/counts_per_electron2_steradian"][0]
    expected = 2e12 * 0.3 * 0.05e7 / math.prod(CELL[:3]) * 2.8179403e-5**2
    assert counts == pytest.approx(expected, rel=1e-6)
    scan = ExperimentList.from_file("simulated.expt", check_format=False)[0].scan
    assert list(scan.get_exposure_times()) == pytest.approx([0.3] * 4)


# ---- geometry from a file


def test_geometry_of_dials_import(work):
    """A file without crystals: each sweep gets one in a random orientation."""
    run([*BASE, "scan.start=30", "source.exposure=0.2", "output.prefix=first"])
    names_of_images = sorted(str(p) for p in Path().glob("first_1_*.cbf"))
    ExperimentListFactory.from_filenames(names_of_images).as_file("imported.expt")
    for path in [*names_of_images, "truth.nxs"]:
        Path(path).unlink()  # images are not needed
    run(["tiny.pdb", "imported.expt", *QUICK, "seed=4"])
    given = ExperimentList.from_file("imported.expt", check_format=False)[0]
    result = ExperimentList.from_file("simulated.expt")[0]
    assert result.detector == given.detector and result.beam == given.beam and result.goniometer == given.goniometer
    assert result.scan.get_oscillation() == given.scan.get_oscillation() == pytest.approx((30, 2))
    assert list(result.scan.get_exposure_times()) == pytest.approx([0.2] * 4)
    assert result.crystal.get_unit_cell().parameters() == pytest.approx(CELL, abs=0.01)
    assert pixels("simulated.expt", 3).max() > 0 and Path("truth.nxs").exists()


def write_experiments(path, *experiments) -> None:
    for experiment in experiments:
        experiment.imageset = None
    experiment_list(*experiments).as_file(path)


def own_crystal(*angles):
    return make_crystal(CELL[:3], "P212121", angles)


def test_crystals_on_the_same_images(work):
    run([*BASE, "crystal.number=2", "output.prefix=first", "noise=False"])
    experiments = ExperimentList.from_file("simulated.expt")
    experiments[1].imageset = experiments[0].imageset  # the second crystal comes onto the images of the first
    experiments[1].scan = experiments[0].scan
    experiments.as_file("both.expt")
    experiments[:1].as_file("one.expt")
    same = ["noise=False", "detector.hot_pixels=0", "background.air=0", "background.liquid=0", "crystal.thickness=0.1"]
    run(["tiny.pdb", "both.expt", *QUICK, *same, "output.prefix=both"])
    assert images("both_1") < names() and not images("both_2") & names()
    result = ExperimentList.from_file("simulated.expt")
    assert len(result) == 2 and [e.identifier for e in result] == ["simulated-1", "simulated-2"]
    assert result[0].imageset == result[1].imageset
    both = pixels("simulated.expt", 1)
    load_input(["simulated.expt", "simulated.refl"])
    run(["tiny.pdb", "one.expt", *QUICK, *same, "output.prefix=one"])
    one = pixels("simulated.expt", 1)
    lit = one > 0
    assert np.median(both[lit] / one[lit]) == pytest.approx(2, abs=0.3)


def test_several_sweeps_of_a_file(work):
    sweeps = [make_experiment(n_images=n, crystal=own_crystal(n, 20, 30), identifier=f"sweep-{n}") for n in (2, 3)]
    write_experiments("two.expt", *sweeps)
    run(["tiny.pdb", "two.expt", *QUICK])
    assert images("simulated_1", 2) | images("simulated_2", 3) < names()
    result = ExperimentList.from_file("simulated.expt")
    assert [e.identifier for e in result] == ["sweep-2", "sweep-3"]
    for given, found in zip(sweeps, result):
        assert found.crystal.get_U() == pytest.approx(given.crystal.get_U())
        assert found.imageset.get_array_range() == given.scan.get_array_range()


def test_crystals_that_are_not_those_of_the_structure(work, capsys):
    write_structure("other.pdb", "P 2 2 21")
    write_structure("larger.pdb", GROUP, (20, 22, 26, 90, 90, 90))
    write_experiments("one.expt", make_experiment(crystal=own_crystal(10, 20, 30)))
    words = ["experiment 0", "P 21 21 21", "P 2 2 21", "reindex"]
    fails(run, ["other.pdb", "one.expt", *QUICK], capsys, words=words)
    fails(run, ["larger.pdb", "one.expt", *QUICK], capsys, words=["experiment 0", "unit cell", "26", "right model"])
    write_structure("near.pdb", GROUP, (20.1, 22.1, 23.9, 90, 90, 90))
    run(["near.pdb", "one.expt", *QUICK])


def test_files_that_have_no_geometry(work, capsys):
    some = make_experiment(crystal=own_crystal(10, 20, 30))
    none = make_experiment(identifier="none")
    none.crystal = None
    write_experiments("some.expt", some, none)
    fails(run, ["tiny.pdb", "some.expt", *QUICK], capsys, words=["some.expt", "experiment 1", "no crystal"])
    still = make_experiment(crystal=own_crystal(1, 2, 3), width=0.0)
    write_experiments("still.expt", still)
    fails(run, ["tiny.pdb", "still.expt", *QUICK], capsys, words=["still.expt", "still images"])
    lost = make_experiment(crystal=own_crystal(1, 2, 3))
    lost.goniometer = None
    write_experiments("lost.expt", lost)
    fails(run, ["tiny.pdb", "lost.expt", *QUICK], capsys, words=["lost.expt", "no goniometer"])
    Path("bad.expt").write_text("not json")
    fails(run, ["tiny.pdb", "bad.expt", *QUICK], capsys, words=["bad.expt", "not a readable experiment file"])


@pytest.mark.parametrize(
    "option",
    [
        "crystal.number=2",
        "crystal.orientation=1,0,0,0,1,0,0,0,1",
        "source.wavelength=1",
        "source.polarization=0.5",
        "detector.size=1M",
        "detector.distance=100",
        "detector.beam_centre=10,20",
        "detector.pixel_size=0.1",
        "scan.start=0",
        "scan.width=1",
        "scan.n_images=3",
    ],
)
def test_options_that_a_geometry_makes_meaningless(work, capsys, option):
    write_experiments("one.expt", make_experiment(crystal=own_crystal(10, 20, 30)))
    fails(
        run,
        ["tiny.pdb", "one.expt", *QUICK, option],
        capsys,
        2,
        [option.split("=")[0], "one.expt", "leave one of them"],
    )


# ---- parameters


def extract(text=""):
    return phil_scope.fetch(parse(text)).extract()


def test_defaults_become_parameters():
    spots = SpotShape(mosaicity=0.08, divergence=0.02, bandwidth=2e-4, spot_size=0.12)
    assert parameters_from_phil(extract()) == SimulationParameters(spots=spots)
    assert geometry_from_phil(extract()) == {
        "detector": DetectorParameters(),
        "beam": BeamParameters(),
        "scan": ScanParameters(),
        "n_crystals": 1,
        "orientation": None,
        "seed": 0,
    }
    assert model_from_phil(extract()) == LiquidLikeMotions(sigma=0.3, gamma=10.0)


#: each option with the part of the parameters that it must reach
OPTIONS = [
    ("spots.mosaicity=0.2", "spots", SpotShape(0.2, 0.02, 2e-4, 0.12)),
    ("spots.divergence=0.2", "spots", SpotShape(0.08, 0.2, 2e-4, 0.12)),
    ("spots.bandwidth=0.2", "spots", SpotShape(0.08, 0.02, 0.2, 0.12)),
    ("spots.spot_size=0.2", "spots", SpotShape(0.08, 0.02, 2e-4, 0.2)),
    ("source.flux=2", "source", Source(2.0)),
    ("source.exposure=2", "source", Source(exposure=2.0)),
    ("background.air=2", "background", Background(air=2.0)),
    ("background.liquid=2", "background", Background(liquid=2.0)),
    ("background.liquid_variation=0.2", "background", Background(liquid_variation=0.2)),
    ("background.solvent=False", "background", Background(solvent=False)),
    ("background.compton=False", "background", Background(compton=False)),
    ("background.images=2", "background_images", 2),
    ("scale.drift=0.2", "scales", Scales(drift=0.2)),
    ("scale.absorption=0.2", "scales", Scales(absorption=0.2)),
    ("scale.module=0.2", "scales", Scales(module=0.2)),
    ("detector.hot_pixels=2", "defects", Defects(hot_pixels=2)),
    ("detector.dead_pixels=2", "defects", Defects(dead_pixels=2)),
    ("beam_stop.radius=2", "defects", Defects(beam_stop=2.0)),
    ("beam_stop.arm=2", "defects", Defects(arm=2.0)),
    ("crystal.thickness=0.2,0.3", "thickness", (0.2, 0.3)),
    ("crystal.k_sol=0.2", "k_sol", 0.2),
    ("crystal.b_sol=2", "b_sol", 2.0),
    ("d_min=2", "d_min", 2.0),
    ("grid.subdivide=2,1,4", "subdivide", (2, 1, 4)),
    ("sampling.tolerance=0.2", "tolerance", 0.2),
    ("sampling.oscillation=2", "sub_steps", 2),
    ("sampling.pixel=2", "sub_pixels", 2),
    ("anomalous=True", "anomalous", True),
    ("bragg=False", "bragg", False),
    ("diffuse=False", "diffuse", False),
    ("noise=False", "noise", False),
    ("seed=2", "seed", 2),
]


@pytest.mark.parametrize("text, field, value", OPTIONS, ids=[o[0] for o in OPTIONS])
def test_options_reach_the_parameters(text, field, value):
    """The one field that an option is about has the value, and all others their defaults."""
    default, changed = (asdict(parameters_from_phil(extract(t))) for t in ("", text))
    assert getattr(parameters_from_phil(extract(text)), field) == value
    assert [name for name in default if default[name] != changed[name]] == [field]


GEOMETRY = [
    ("detector.size=300K", "detector", DetectorParameters(size="300K")),
    ("detector.size=30,40", "detector", DetectorParameters(size=(30, 40))),
    ("detector.distance=90", "detector", DetectorParameters(distance=90.0)),
    ("detector.beam_centre=9,8", "detector", DetectorParameters(beam_centre=(9.0, 8.0))),
    ("detector.pixel_size=0.3", "detector", DetectorParameters(pixel_size=0.3)),
    ("source.wavelength=1.5", "beam", BeamParameters(wavelength=1.5)),
    ("source.polarization=0.5", "beam", BeamParameters(polarization_fraction=0.5)),
    ("source.exposure=0.5", "scan", ScanParameters(exposure=0.5)),
    ("scan.start=-5", "scan", ScanParameters(start=-5.0)),
    ("scan.width=0.1", "scan", ScanParameters(width=0.1)),
    ("scan.n_images=7", "scan", ScanParameters(n_images=7)),
    ("crystal.number=3", "n_crystals", 3),
    ("crystal.orientation=1,0,0,0,1,0,0,0,1", "orientation", [1, 0, 0, 0, 1, 0, 0, 0, 1]),
    ("seed=5", "seed", 5),
]


@pytest.mark.parametrize("text, field, value", GEOMETRY, ids=[g[0] for g in GEOMETRY])
def test_options_reach_the_geometry(text, field, value):
    default, changed = geometry_from_phil(extract()), geometry_from_phil(extract(text))
    assert changed[field] == value
    assert [name for name in default if default[name] != changed[name]] == [field]


@pytest.mark.parametrize(
    "text, model",
    [
        ("model=uncorrelated", Uncorrelated()),
        ("model=rigid_body", RigidBody(sigma=0.3)),
        ("model=rigid_body\nrigid_body.sigma=0.2", RigidBody(sigma=0.2)),
        ("model=rigid_body\nrigid_body.V=1,2,3,0,0,0.5", RigidBody(V=(1, 2, 3, 0, 0, 0.5))),
        (
            "model=rigid_body\nrigid_body.body=cell\nrigid_body.soft=True",
            RigidBody(sigma=0.3, body="cell", soft=True),
        ),
        ("llm.sigma=0.2\nllm.gamma=5", LiquidLikeMotions(sigma=0.2, gamma=5.0)),
        ("llm.G=5,6,7,0,0,0", LiquidLikeMotions(sigma=0.3, G=(5, 6, 7, 0, 0, 0))),
        ("llm.V=1,2,3,0,0,0", LiquidLikeMotions(V=(1, 2, 3, 0, 0, 0), gamma=10.0)),
        (
            "llm.adp=overall\nllm.kernel=gaussian\nllm.orders=5\nllm.incoherent=False\nllm.confined_to=molecule\n"
            "llm.local_form_factor=True",
            LiquidLikeMotions(
                sigma=0.3,
                gamma=10.0,
                adp="overall",
                kernel="gaussian",
                orders=5,
                incoherent=False,
                local_form_factor=True,
                confined_to="molecule",
            ),
        ),
    ],
)
def test_options_reach_the_model(text, model):
    assert model_from_phil(extract(text)) == model


@pytest.mark.parametrize(
    "text", ["rigid_body.sigma=0.3", "model=uncorrelated\nllm.gamma=3", "rigid_body.V=1,1,1,0,0,0"]
)
def test_parameters_of_another_model(text):
    with pytest.raises(CommandLineError, match="is given, but model="):
        model_from_phil(extract(text))


def test_which_file_is_what():
    assert sort_files(["a.pdb", "b.expt"], None) == ("a.pdb", "b.expt")
    assert sort_files(["b.expt", "a.cif"], None) == ("a.cif", "b.expt")
    assert sort_files(["a.ent"], None) == ("a.ent", None)
    coordinates, geometry = sort_files(["b.expt"], "lysozyme")
    assert Path(coordinates).is_file() and geometry == "b.expt"


# ---- what goes wrong


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["no input files"]),
        (["tiny.pdb", "tiny.pdb"], ["2 coordinate files", "give one"]),
        (["one.expt"], ["0 coordinate files", "1 .expt"]),
        (["tiny.pdb", "one.expt", "one.expt"], ["2 .expt"]),
        (["structure=lysozyme", "tiny.pdb"], ["structure=lysozyme", "tiny.pdb"]),
        (["structure=myoglobin"], ["structure=myoglobin", "lysozyme"]),
        (["tiny.pdb", "nonsense=1"], ["nonsense=1"]),
        (["tiny.pdb", "model=nonsense"], ["nonsense"]),
        (["tiny.pdb", "model=None"], ["model=None", "llm"]),
        (["tiny.pdb", "source.wavelength=100"], ["source.wavelength", "100"]),
        (["tiny.pdb", "rigid_body.sigma=0.2", "model=llm"], ["rigid_body.sigma", "model=llm"]),
        (["tiny.pdb", "detector.size=60,x"], ["detector.size=60,x"]),
        (["tiny.pdb", "grid.subdivide=3,3"], ["subdivide"]),
        (["tiny.pdb", "scale.drift=1"], ["drift"]),
        (["tiny.pdb", "nproc=0"], ["nproc"]),
        (["tiny.pdb", "sampling.pixel=0"], ["sampling.pixel"]),
        (["tiny.pdb", "--fast"], ["--fast"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_command_lines(work, capsys, args, words):
    write_experiments("one.expt", make_experiment(crystal=own_crystal(10, 20, 30)))
    fails(run, args, capsys, 2, words)


@pytest.mark.parametrize(
    "option, words",
    [
        ("detector.size=9M", ["size=9M", "300K"]),
        ("detector.size=60,50,40", ["size=", "fast and slow"]),
        ("detector.pixel_size=0", ["pixel_size=0", "positive"]),
        ("scan.width=-1", ["width=-1", "positive"]),
        ("scan.width=0", ["width=0", "positive"]),
        ("source.flux=0", ["source.flux=0", "positive"]),
        ("source.exposure=0", ["source.exposure=0", "positive"]),
        ("crystal.orientation=1,0,0,0,1,0,0,0,2", ["orientation=", "rotation matrix"]),
        ("spots.mosaicity=0", ["spots.mosaicity=0", "positive"]),
        ("detector.hot_pixels=5000", ["detector.hot_pixels=5000", "3000 pixels"]),
        ("rigid_body.V=1,1,-1,0,0,0", ["rigid_body.V=", "eigenvalues"]),
        ("rigid_body.sigma=0", ["rigid_body.sigma=0", "positive"]),
        ("d_min=nan", ["d_min=nan"]),
        ("source.flux=inf", ["source.flux=inf", "positive"]),
        ("background.air=inf", ["background.air=inf", "not negative"]),
        ("crystal.thickness=0.1,nan", ["crystal.thickness=nan", "positive"]),
        ("crystal.k_sol=None", ["crystal.k_sol=None"]),
        ("output.prefix=a#b", ["output.prefix=a#b", "without #"]),
        ("output.prefix=auto", ["output.prefix=Auto", "without #"]),
        ("output.background=simulated", ["output.background=simulated", "same as output.prefix"]),
        ("absent.pdb", ["absent.pdb", "no such file"]),
        ("output.prefix=absent/a", ["output.prefix", "absent", "does not exist"]),
        ("output.truth=absent/t.nxs", ["output.truth=absent/t.nxs", "does not exist"]),
        ("output.experiments=/proc/a.expt", ["output.experiments=/proc/a.expt"]),
        ("output.json=taken", ["output.json=taken", "folder"]),
        ("crystal.thickness=None", ["crystal.thickness"]),
        ("grid.subdivide=None", ["subdivide"]),
        ("grid.subdivide=900,900,900", ["grid.subdivide=900,900,900", "GB", "larger d_min"]),
        ("seed=None", ["seed=None"]),
    ],
)
def test_user_errors(work, capsys, option, words):
    Path("taken").mkdir()
    fails(run, [*BASE, option], capsys, words=words)


def test_the_corner_of_the_detector_is_the_limit(work):
    run([*BASE, "d_min=0.3"])
    corner = ExperimentList.from_file("simulated.expt", check_format=False)[0]
    d_min = corner.detector.get_max_resolution(corner.beam.get_s0())
    assert read_map("truth.nxs").grid.d_min == pytest.approx(d_min)


def test_any_number_of_photons(work):
    run([*BASE, "source.flux=1e30"])
    raw, panel = pixels("simulated.expt"), ExperimentList.from_file("simulated.expt")[0].detector[0]
    assert np.median(raw) > trusted_bounds(panel)[1]  # an overflow


def test_structures_that_are_none(work, capsys):
    Path("text.pdb").write_text("once upon a time\n")
    fails(run, ["text.pdb", *SMALL, *QUICK], capsys, words=["text.pdb"])
    lines = Path("tiny.pdb").read_text().splitlines(keepends=True)
    Path("no_cell.pdb").write_text("".join(line for line in lines if not line.startswith(("CRYST1", "SCALE"))))
    fails(run, ["no_cell.pdb", *SMALL, *QUICK], capsys, words=["no_cell.pdb", "unit cell"])
    Path("empty.pdb").write_text("".join(line for line in lines if line.startswith("CRYST1")))
    fails(run, ["empty.pdb", *SMALL, *QUICK], capsys, words=["empty.pdb", "atoms"])


def test_help(capsys):
    for option in ("-h", "-c"):
        with pytest.raises(SystemExit) as error:
            run([option])
        assert error.value.code in (0, None)
        assert "mosaicity" in capsys.readouterr().out


def test_images_in_the_way_are_kept(work, capsys):
    Path("simulated_1_00003.cbf").write_text("precious")
    fails(run, BASE, capsys, words=["output.prefix=simulated", "simulated_1_00003.cbf", "exist already", "remove them"])
    Path("simulated_1_00003.cbf").unlink()
    Path("background_1_00007.cbf").write_text("precious")
    words = ["output.background=background", "background_1_00007.cbf", "exist already"]
    fails(run, [*BASE, "background.images=1"], capsys, words=words)
    run(BASE)  # without background images nothing is in the way
    assert Path("background_1_00007.cbf").read_text() == "precious"
    fails(run, BASE, capsys, words=["simulated_1_00001.cbf", "3 more"])


def test_a_failure_in_between_leaves_what_was_there(work, capsys, monkeypatch):
    Path("truth.nxs").write_text("precious")

    def broken(path, *_, **__):
        raise DiffuseError(f"{path}: not written, the disk is full")

    for step in ("write_map", "write_experiments", "write_reflections"):
        with monkeypatch.context() as patch:
            patch.setattr(simulation, step, broken)
            fails(run, [*BASE, "output.log=None"], capsys, words=["disk is full"])
            assert names() == {"tiny.pdb", "truth.nxs"}


def test_a_killed_worker(work, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "write_image", lambda job, image: os._exit(9))
    fails(run, [*BASE, "nproc=2"], capsys, words=["nproc=2", "memory"])


@pytest.mark.parametrize("limit, file", [(1_000, "simulated_1_00001.cbf"), (30_000, "truth.nxs")])
def test_full_disk(work, limit, file):
    """A limit on the size of files fails writes as a full disk does; the first run compiles what is compiled."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from dials_diffuse.cli.simulate import run; files = 'experiments reflections truth json html log';"
        "run([*sys.argv[1:], 'output.prefix=warm', *(f'output.{name}=None' for name in files.split())]);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "run([*sys.argv[1:], 'output.log=None'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *BASE],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("dials.diffuse_simulate:")]
    assert len(errors) == 1 and file in errors[0] and "disk is full" in errors[0]
    assert "Traceback" not in done.stderr
    assert names() == {"tiny.pdb"} | images("warm_1")


def test_sigterm_leaves_nothing(work):
    """The signal comes when the first images are written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dials_diffuse.cli.simulate", *BASE, "scan.n_images=5000", "output.log=None", "nproc=2"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        waited = time.monotonic() + 120
        while not list(Path().glob(".*/*.cbf")):
            assert process.poll() is None and time.monotonic() < waited, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, errors
    assert errors.strip() == "dials.diffuse_simulate: terminated, unfinished outputs are removed; no output written"
    assert names() == {"tiny.pdb"}
