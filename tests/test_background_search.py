"""dials.diffuse_process finds images without crystal beside the data, and takes nothing else for such."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
from dials.algorithms.shoebox import MaskCode
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from helpers.processing import OPTIONS, small_run
from helpers.programs import fails
from libtbx.phil import parse

from dials_diffuse.cli import process as program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.background_search import Series, median_spots, open_first, series_beside
from dials_diffuse.experiment.load import load_input
from dials_diffuse.pipeline.choices import choose_backgrounds

#: pixels that are fine enough for spots to be told from their surroundings
FINE = ("detector.size=300,300", "detector.pixel_size=0.3")


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    """A folder of a visit: data with background images, another crystal, another detector, and other files."""
    folder = tmp_path_factory.mktemp("visit")
    small_run(folder / "data", *FINE, "background.images=4")
    small_run(folder / "crystal", *FINE, "seed=9", "scan.n_images=3")
    small_run(folder / "detector", *FINE, "detector.size=280,300", "scan.n_images=2", "background.images=2")
    (folder / "data" / "notes_001.txt").write_text("shutter open\n")
    (folder / "data" / "broken_0001.cbf").write_text("###CBF: VERSION 1.5\n")
    return folder


def data_of(folder):
    experiments = list(load_input([str(folder / "integrated.expt")]).experiments)
    return experiments, [range(len(e.imageset)) for e in experiments]


def test_series_beside_the_data(visit):
    experiments, _ = data_of(visit / "data")
    found = series_beside(experiments)
    names = [series.name for series in found]
    assert names[0] == str(visit / "data" / "background_1_#####.cbf")
    assert found[0].first == str(visit / "data" / "background_1_00001.cbf")
    assert str(visit / "data" / "simulated_1_#####.cbf") not in names  # the data themselves
    assert {str(visit / name / "simulated_1_#####.cbf") for name in ("crystal", "detector")} < set(names)
    assert not any("notes" in name for name in names)


def test_spots_are_those_of_dials(visit):
    """Spots of dials.find_spots go on from image to image; of each image those with two pixels in it count."""
    from dials.array_family import flex
    from dials.command_line.find_spots import phil_scope
    from scipy.ndimage import label

    experiments, (positions,) = data_of(visit / "data")
    told = """
        threshold { algorithm = dispersion
          dispersion.global_threshold = 0 }
        filter { min_spot_size = 1
          max_separation = 1e6 }
        """
    parameters = phil_scope.fetch(parse(f"spotfinder {{ {told} }}")).extract()
    spots = flex.reflection_table.from_observations(ExperimentList(experiments), parameters)
    (ny, nx) = experiments[0].detector[0].get_image_size()[::-1]
    strong = np.zeros((len(positions), ny, nx), bool)
    for box in spots["shoebox"]:
        x0, x1, y0, y1, z0, z1 = box.bbox
        strong[z0:z1, y0:y1, x0:x1] |= (box.mask.as_numpy_array() & MaskCode.Foreground) > 0
    counts = [int(np.sum(np.bincount(label(image, np.ones((3, 3)))[0].ravel())[1:] >= 2)) for image in strong]
    # dials.find_spots drops a few by their shape, and keeps those that stand out little
    own = [median_spots(experiments[0].imageset, [i]) for i in (2, 5, 7)]
    assert all(0.7 * counts[i] < n < 1.05 * counts[i] for n, i in zip(own, (2, 5, 7))) and min(own) > 100
    assert median_spots(experiments[0].imageset, [2, 5, 7]) == np.median(own)
    assert median_spots(open_first(series_beside(experiments)[0])[0].imageset, [0]) < 5


def test_only_images_without_crystal_are_chosen(visit):
    series, choice = choose_backgrounds(*data_of(visit / "data"))
    assert [item.name for item in series] == [str(visit / "data" / "background_1_#####.cbf")]
    assert choice.name == "background" and choice.value == series[0].name
    assert re.search(r"[0-3] spots on an image where the data have \d\d\d", choice.reason)
    series, choice = choose_backgrounds(*data_of(visit / "detector"))
    assert [item.name for item in series] == [str(visit / "detector" / "background_1_#####.cbf")]


def test_none_where_there_are_none(visit, tmp_path):
    small_run(tmp_path / "first", *FINE, "seed=2", "scan.n_images=2")
    small_run(tmp_path / "second", *FINE, "seed=3", "scan.n_images=2")
    series, choice = choose_backgrounds(*data_of(tmp_path / "first"))
    assert series == () and choice.value == "None" and "none is of the same detector" in choice.reason


def test_nothing_is_decided_where_the_data_have_few_spots(visit, tmp_path):
    small_run(tmp_path / "weak", *FINE, "bragg=False", "background.images=2")
    series, choice = choose_backgrounds(*data_of(tmp_path / "weak"))
    assert series == () and "look alike" in choice.reason


def test_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a_01.cbf").write_text("no image")
    with pytest.raises(DiffuseError, match=r"a_01\.cbf: no image of a detector"):
        open_first(Series("a_##.cbf", str(tmp_path / "a_01.cbf")))


def test_found_images_are_used_like_those_of_an_expt(visit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [str(visit / "data" / name) for name in ("integrated.expt", "integrated.refl")]
    # masks that follow the peaks make their tails a part of the background
    data = [*files, *OPTIONS, "integrate.mask.bragg.mode=fixed"]
    program.run([*data, "background=auto", "output.directory=found"])
    template = str(visit / "data" / "background_1_#####.cbf")
    ExperimentListFactory.from_templates([template]).as_json("bg.expt")
    program.run([*data, "background=bg.expt", "output.directory=told"])
    program.run([*data, "output.directory=without"])
    columns = {}
    for name in ("found", "told", "without"):
        with h5py.File(f"{name}/diffuse_integrated.h5") as file:
            columns[name] = file["observations/background"][()]
    np.testing.assert_array_equal(columns["found"], columns["told"])
    assert np.all(columns["without"] == 0) and columns["found"].mean() > 0
    record = json.loads((tmp_path / "found" / "dials.diffuse_process.json").read_text())
    assert {c["name"]: c["value"] for c in record["choices"]}["background"] == template


def test_files_and_auto_exclude_each_other(visit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = [str(visit / "data" / "integrated.expt")]
    error = fails(program.run, [*data, "background=auto", "background=bg.expt"], capsys, code=2)
    assert "give either files or auto" in error
