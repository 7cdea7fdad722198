"""Pickles that a data set names, or that lie beside it: nothing in them is run, by any program."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from dxtbx.model.experiment_list import ExperimentListFactory
from helpers.datasets import (
    import_images,
    noise,
    reflections_of,
    write_experiments,
    write_images,
    write_map,
    write_table,
)
from helpers.harmful import Harmful
from helpers.jobs import job_of, rows_of
from helpers.programs import fails

from dials_diffuse.cli import export, fit, integrate, merge, model, process, report, scale, show, simulate
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.background_search import Series, open_first, open_series, series_beside
from dials_diffuse.experiment.expt_file import MAPS
from dials_diffuse.experiment.load import load_input

QUIET = ["corrections.flux=False", "output.log=None", "output.html=None"]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Names of eight images in the current folder, with no other folder beside it."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    return write_images(".", "one_", noise(0))


def write_data(images, **maps):
    """The experiment of the images as one.expt with one.refl; maps : name -> file"""
    experiment = import_images(images, "one")
    write_table("one.refl", [reflections_of(experiment)], {0: "one"})
    for name, file in maps.items():
        getattr(experiment.imageset.external_lookup, name).filename = str(Path(file).resolve())
    write_experiments("one.expt", experiment)
    return experiment


def harmful(path) -> str:
    Path(path).write_bytes(pickle.dumps(Harmful()))
    return str(path)


def unharmed() -> bool:
    return not list(Path().rglob("harm"))


def test_the_harm_is_done_by_dxtbx(images):
    """What the other tests look for does happen where the file is read without care."""
    write_data(images, mask=harmful("pixels.mask"))
    ExperimentListFactory.from_json_file("one.expt")
    assert not unharmed()


@pytest.mark.parametrize("name", MAPS)
def test_maps(images, capsys, name):
    write_data(images, **{name: harmful("some.map")})
    words = ["some.map", f"cannot be read as the {name}", "mkdir"]
    fails(integrate.run, ["one.expt", "one.refl", "nproc=2", *QUIET], capsys, words=words)
    assert unharmed()


def test_maps_of_background_images(images, capsys):
    write_data(images, dx=harmful("some.map"))
    Path("one.expt").rename("empty.expt")
    write_data(images)
    fails(integrate.run, ["one.expt", "background=empty.expt", *QUIET], capsys, words=["some.map", "mkdir"])
    assert unharmed()


def test_maps_of_an_imageset_in_a_file_of_its_own(images, capsys):
    write_data(images, gain=harmful("some.map"))
    content = json.loads(Path("one.expt").read_text())
    Path("imageset.json").write_text(json.dumps(content["imageset"][0]))
    content["imageset"], content["experiment"][0]["imageset"] = [], "imageset.json"
    Path("one.expt").write_text(json.dumps(content))
    fails(integrate.run, ["one.expt", *QUIET], capsys, words=["some.map", "mkdir"])
    assert unharmed()


PROGRAMS = {
    program.__name__.rsplit(".", 1)[1]: program
    for program in (export, fit, integrate, merge, model, process, report, scale, show, simulate)
}
SIMULATED = ["structure=lysozyme", "d_min=5", "nproc=1", "output.truth=None"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(images, name):
    """They refuse such files, or have no use for the maps that they name."""
    write_data(images, **{kind: harmful(f"{kind}.map") for kind in MAPS})
    words = ["one.expt"] + (["one.refl"] if name in ("integrate", "process") else [])
    words += SIMULATED if name == "simulate" else []
    try:
        PROGRAMS[name].run(words)
    except SystemExit as stop:
        assert stop.code == (2 if name in ("export", "fit") else 1)  # 2: what else they need is not given
    else:
        assert name in ("simulate", "show")
    assert unharmed()


def test_workers(images):
    """What travels to a worker has the maps in it: their files are not read again."""
    experiment = write_data(images, mask=write_map("pixels.mask", np.arange(90 * 80).reshape(80, 90) % 5 > 0))
    job = job_of(load_input(["one.expt"]).experiments, d_min=4.0)
    travelled = pickle.dumps(job)
    harmful("pixels.mask")
    there = pickle.loads(travelled)
    assert unharmed()
    np.testing.assert_array_equal(there.bad[0], job.bad[0])
    assert np.count_nonzero(there.bad[0]) >= 90 * 80 / 5 and experiment.imageset is not there.imageset
    np.testing.assert_array_equal(rows_of(there), rows_of(job))
    assert unharmed()


@pytest.mark.parametrize("protocol", range(6))
def test_images(images, capsys, protocol):
    """In place of the images, under a name of a packed file too."""
    write_data(images)
    for path in map(Path, images):
        path.write_bytes(pickle.dumps({"DATA": Harmful()}, protocol))
    line = fails(integrate.run, ["one.expt", *QUIET], capsys, words=["one_00001.cbf", "image"])
    assert unharmed()
    assert protocol <= 1 or "a pickle in place of an image" in line


@pytest.mark.parametrize("protocol", range(6))
def test_files_beside_the_images(images, protocol):
    """Background images are looked for in these folders: a pickle there is none, whatever its name."""
    write_data(images)
    Path("other").mkdir()
    for name in ("empty_0001.cbf", "other/notes_01.pkl", "other/a.001"):
        Path(name).write_bytes(pickle.dumps({"DATA": Harmful()}, protocol))
    series = series_beside(load_input(["one.expt"]).experiments)
    assert series == [] and unharmed()
    given = Series("empty_####.cbf", "empty_0001.cbf")
    for function in (open_first, open_series):
        with pytest.raises(DiffuseError, match=r"empty_0001\.cbf"):
            function(given)
    assert unharmed()
