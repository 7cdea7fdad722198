"""dials.diffuse_integrate as a user meets it: files in, files out, and an error that helps when they are wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.format.FormatCBFMini import FormatCBFMini
from dxtbx.model import Beam, Goniometer, ScanFactory
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from helpers.checkout import environment
from helpers.programs import fails
from helpers.synthetic import GaussianProfile, make_crystal, make_detector

from dials_diffuse.cli import integrate as program
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.observations import ObservationFile

N_IMAGES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with mini-CBF images, integrated.expt and integrated.refl."""
    folder = tmp_path_factory.mktemp("data")
    detector = make_detector(size=(90, 80), pixel=0.3, parallax=False)
    detector[0].set_mu(0)
    detector[0].set_thickness(0)
    beam, goniometer = Beam((0, 0, 1), 1.0), Goniometer((1, 0, 0))
    rng = np.random.default_rng(0)
    names = []
    for i in range(N_IMAGES):
        scan = ScanFactory.make_scan((i + 1, i + 1), 0.1, (float(i), 1.0), {i + 1: 0})
        image = flumpy.from_numpy(rng.poisson(20, size=(80, 90)).astype(np.int32))
        names.append(str(folder / f"image_{i + 1:05d}.cbf"))
        FormatCBFMini.as_file(detector, beam, goniometer, scan, image, names[-1])
    experiments = ExperimentListFactory.from_filenames(names)
    experiment = experiments[0]
    experiment.crystal = make_crystal()
    experiment.profile = GaussianProfile(None, 3, 0.05, 0.1, deg=True)
    experiment.identifier = "crystal-one"
    experiments.as_file(str(folder / "integrated.expt"))
    table = flex.reflection_table.from_predictions(experiment, dmin=3)
    table["id"] = flex.int(len(table), 0)
    table.experiment_identifiers()[0] = "crystal-one"
    table["xyzobs.px.value"] = table["xyzcal.px"]
    x, y, z = (np.array(v).astype(int) for v in table["xyzcal.px"].parts())
    low = [np.maximum(v - w, 0) for v, w in ((x, 2), (y, 2), (z, 1))]
    box = [low[0], x + 3, low[1], y + 3, low[2], z + 2]
    table["bbox"] = flex.int6(*(flumpy.from_numpy(b.astype(np.int32)) for b in box))
    table.as_file(str(folder / "integrated.refl"))
    return folder


@pytest.fixture
def work(data, tmp_path, monkeypatch):
    """A fresh folder with copies of the data; the images are referred to there."""
    for path in data.iterdir():
        shutil.copy(path, tmp_path)
    text = (tmp_path / "integrated.expt").read_text().replace(str(data), str(tmp_path))
    (tmp_path / "integrated.expt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ["integrated.expt", "integrated.refl"]


def rewrite(change) -> None:
    """Load integrated.expt, apply ``change`` to its experiments and write it back."""
    experiments = ExperimentList.from_file("integrated.expt", check_format=False)
    change(experiments)
    experiments.as_file("integrated.expt")


def test_default_run(work):
    program.run(FILES)
    with ObservationFile("diffuse_integrated.h5") as result:
        assert result.n_rows > 1000
        assert result.grid.subdivide == (3, 3, 3)
        assert result.experiments[0].identifier == "crystal-one"
        assert result.provenance.program == "dials.diffuse_integrate"
        assert "n_sigma" in result.provenance.phil
        rows = result.read("counts", "norm")
        # 20 counts in 0.1 s and pixels of up to 25 microsteradian
        assert 8 < rows["counts"].sum() / rows["norm"].sum() < 11
    summary = json.loads(Path("diffuse_integrated.json").read_text())
    assert summary["schema"] == "dials.diffuse_integrate/1"
    assert summary["n_images_used"] == N_IMAGES
    fate = summary["experiments"][0]
    named = ("never_used", "used", "untrusted", "bragg", "outlier", "off_grid", "unpredicted")
    assert sum(fate[name] for name in named) == N_IMAGES * 80 * 90
    assert fate["images"].pop("image") == list(range(1, N_IMAGES + 1))
    assert {name: sum(counts) for name, counts in fate["images"].items()} == {name: fate[name] for name in named[1:]}
    assert Path("dials.diffuse_integrate.log").is_file()
    assert not list(Path().glob(".*h5"))


def test_reflections_are_optional_with_a_profile_model(work):
    program.run(["integrated.expt"])
    program.run([*FILES, "output.observations=both.h5"])
    with ObservationFile("diffuse_integrated.h5") as a, ObservationFile("both.h5") as b:
        np.testing.assert_array_equal(a.read("counts")["counts"], b.read("counts")["counts"])


def test_spot_size_is_measured_when_there_is_no_profile_model(work, capsys):
    rewrite(lambda experiments: setattr(experiments[0], "profile", None))
    program.run(FILES)
    assert "strong reflections" in capsys.readouterr().out
    Path("diffuse_integrated.h5").unlink()
    Path("diffuse_integrated.json").unlink()
    fails(program.run, ["integrated.expt"], capsys, words=["no profile model", ".refl", "sigma_b"])


def test_exclude_images_and_processes(work):
    program.run([*FILES, "exclude_images=0:1:3", "nproc=2", "output.observations=a.h5", "corrections.flux=False"])
    program.run([*FILES, "exclude_images=1:3", "nproc=1", "output.observations=b.h5", "corrections.flux=False"])
    with ObservationFile("a.h5") as a, ObservationFile("b.h5") as b:
        assert a.experiments[0].n_images_used == N_IMAGES - 3
        assert a.read("xyz")["xyz"][:, 2].min() > 3
        np.testing.assert_array_equal(a.read("norm")["norm"], b.read("norm")["norm"])


def test_valid_image_ranges(work):
    rewrite(lambda experiments: experiments[0].scan.set_valid_image_ranges("crystal-one", [(3, 5)]))
    program.run(FILES)
    with ObservationFile("diffuse_integrated.h5") as result:
        assert result.experiments[0].n_images_used == 3


def images_marked(value: int, prefix: str) -> None:
    """Write the images again under another name, the first pixel with a value that is not trusted."""
    experiments = ExperimentList.from_file("integrated.expt")
    imageset = experiments[0].imageset
    for i in range(N_IMAGES):
        image = imageset.get_raw_data(i)[0].deep_copy()
        image[0, 0] = value
        scan = ScanFactory.make_scan((i + 1, i + 1), 0.1, (float(i), 1.0), {i + 1: 0})
        models = imageset.get_detector(), imageset.get_beam(), imageset.get_goniometer()
        FormatCBFMini.as_file(*models, scan, image, f"{prefix}{i + 1:05d}.cbf")
    Path("integrated.expt").write_text(Path("integrated.expt").read_text().replace("image_#", f"{prefix}#"))


def test_two_crystals_in_two_files(work):
    """Two sets of images that differ in nothing but a pixel that is not used."""
    text = Path("integrated.expt").read_text()
    images_marked(-2, "second_")
    rewrite(lambda experiments: setattr(experiments[0], "identifier", "crystal-two"))
    shutil.copy("integrated.expt", "second.expt")
    Path("integrated.expt").write_text(text)
    images_marked(-3, "first_")
    table = flex.reflection_table.from_file("integrated.refl")
    del table.experiment_identifiers()[0]
    table.experiment_identifiers()[0] = "crystal-two"
    table.as_file("second.refl")
    rewrite(lambda experiments: setattr(experiments[0], "identifier", "crystal-one"))
    four = ["integrated.expt", "second.expt", "integrated.refl", "second.refl"]
    loaded = load_input(four).reflections
    assert [(loaded["id"] == i).count(True) for i in (0, 1)] == [len(loaded) // 2] * 2
    program.run(four)
    with ObservationFile("diffuse_integrated.h5") as result:
        assert [e.identifier for e in result.experiments] == ["crystal-one", "crystal-two"]
        rows = result.read("experiment", "counts")
    first, second = (rows["counts"][rows["experiment"] == i].sum() for i in (0, 1))
    assert first == pytest.approx(second, rel=1e-12)


def test_background_is_subtracted_with_its_variance(work):
    program.run([*FILES, "background=integrated.expt", "corrections.flux=False"])
    with ObservationFile("diffuse_integrated.h5") as result:
        rows = result.read("counts", "background", "background_variance")
    counts, background = rows["counts"].sum(), rows["background"].sum()
    # the images are their own background here: nothing remains
    assert counts == pytest.approx(background, rel=0.01)
    assert np.all(rows["background_variance"] > 0)


def test_missing_image(work, capsys):
    Path("image_00003.cbf").unlink()
    fails(program.run, FILES, capsys, words=["image_00003.cbf", "not found", "integrated.expt"])


@pytest.mark.parametrize("size", [3000, 700, 0])
def test_truncated_image(work, capsys, size):
    content = Path("image_00005.cbf").read_bytes()
    assert len(content) > 3000
    Path("image_00005.cbf").write_bytes(content[:size])
    fails(program.run, FILES, capsys, words=["image_00005.cbf", "truncated"])


def test_truncated_image_with_processes(work, capsys):
    content = Path("image_00005.cbf").read_bytes()
    Path("image_00005.cbf").write_bytes(content[:3000])
    fails(
        program.run,
        [*FILES, "nproc=2", "mask.persistent=False", "corrections.flux=False"],
        capsys,
        words=["image_00005.cbf"],
    )


def test_mismatched_files(work, capsys):
    table = flex.reflection_table.from_file("integrated.refl")
    del table.experiment_identifiers()[0]
    table.experiment_identifiers()[0] = "another"
    table.as_file("other.refl")
    fails(
        program.run,
        ["integrated.expt", "other.refl"],
        capsys,
        words=["other.refl", "does not belong to integrated.expt", "another"],
    )
    table["id"] = flex.int(len(table), 3)
    del table.experiment_identifiers()[0]
    table.as_file("other.refl")
    fails(program.run, ["integrated.expt", "other.refl"], capsys, words=["other.refl", "id 3"])
    table["id"] = flex.int(len(table), 0)
    x, y, z = table["xyzcal.px"].parts()
    table["xyzcal.px"] = flex.vec3_double(x, y, z + 500)
    *box, low, high = table["bbox"].parts()
    table["bbox"] = flex.int6(*box, low + 500, high + 500)
    table.as_file("other.refl")
    fails(program.run, ["integrated.expt", "other.refl"], capsys, words=["other.refl", "images 1..8"])


def test_reflections_that_lack_columns(work, capsys):
    table = flex.reflection_table.from_file("integrated.refl")
    for column in ("id", "panel"):
        part = table.copy()
        del part[column]
        part.as_file("part.refl")
        fails(program.run, ["integrated.expt", "part.refl"], capsys, words=["part.refl", f"no column {column}"])
    rewrite(lambda experiments: setattr(experiments[0], "profile", None))
    for column in ("s1", "xyzobs.px.value"):
        part = table.copy()
        del part[column]
        part.as_file("part.refl")
        fails(program.run, ["integrated.expt", "part.refl"], capsys, words=[f"no column {column}", "sigma_b"])
    part = table.copy()
    del part["miller_index"]
    part.as_file("part.refl")
    program.run(["integrated.expt", "part.refl"])


def test_the_same_experiment_twice(work, capsys):
    fails(
        program.run, ["integrated.expt", "integrated.expt"], capsys, words=["integrated.expt", "twice", "crystal-one"]
    )


def test_a_killed_worker(work, capsys, monkeypatch):
    from dials_diffuse.reduction import voxel_sums

    monkeypatch.setattr(voxel_sums, "reduce_block", lambda job, images: os._exit(9))
    monkeypatch.setattr(voxel_sums, "BLOCK_ANGLE", 2.0)
    fails(program.run, [*FILES, "nproc=2"], capsys, words=["nproc=2", "memory"])


def test_reflections_without_experiments(work, capsys):
    fails(program.run, ["integrated.refl"], capsys, words=["integrated.refl", ".expt"])


def test_no_crystal(work, capsys):
    rewrite(lambda experiments: setattr(experiments[0], "crystal", None))
    fails(program.run, FILES, capsys, words=["integrated.expt", "no crystal", "dials.index"])


def test_stills(work, capsys):
    experiments = ExperimentList.from_file("integrated.expt", check_format=False)
    experiments[0].scan.set_oscillation((0.0, 0.0))
    experiments.as_file("integrated.expt")
    fails(program.run, FILES, capsys, words=["integrated.expt", "still", "dials.import"])


@pytest.mark.parametrize("kind", ["ExperimentType.TOF", "ExperimentType.LAUE"])
def test_time_of_flight_and_laue(kind):
    from dials_diffuse.experiment.load import _check_experiment

    with pytest.raises(DiffuseError, match=r"a\.expt.*not supported"):
        _check_experiment(SimpleNamespace(get_type=lambda: kind), "a.expt")


def test_no_observations(work, capsys):
    fails(program.run, [*FILES, "d_max=3.0", "d_min=2.9"], capsys, words=["d_min"])
    fails(program.run, [*FILES, "exclude_images=1:8"], capsys, words=["exclude_images"])
    fails(program.run, [*FILES, "d_min=100"], capsys, words=["d_min=100"])


def test_exclusions_that_name_nothing(work, capsys):
    fails(program.run, [*FILES, "exclude_images=7:1:3"], capsys, words=["exclude_images=7:1:3", "only 1"])
    fails(program.run, [*FILES, "exclude_images=100:200"], capsys, words=["exclude_images=100:200", "1:8"])


def test_bad_files(work, capsys):
    Path("bad.expt").write_text("not json")
    fails(program.run, ["bad.expt"], capsys, words=["bad.expt"])
    Path("bad.refl").write_text("nonsense")
    fails(program.run, ["integrated.expt", "bad.refl"], capsys, words=["bad.refl"])
    fails(program.run, ["absent.expt"], capsys, words=["absent.expt", "no such file"])
    fails(program.run, ["image_00001.cbf"], capsys, words=["image_00001.cbf", "integrated.expt"])
    Path("old.pickle").write_bytes(b"\x80\x04anything")
    fails(program.run, ["integrated.expt", "old.pickle"], capsys, words=["old.pickle", "pickle"])


def test_unwritable_output(work, capsys):
    fails(program.run, [*FILES, "output.observations=absent/a.h5"], capsys, words=["absent/a.h5", "does not exist"])
    fails(program.run, [*FILES, "output.observations=/proc/a.h5"], capsys, words=["/proc/a.h5"])
    fails(program.run, [*FILES, "output.log=absent/a.log"], capsys, words=["absent/a.log"])
    Path("taken").mkdir()
    fails(program.run, [*FILES, "output.observations=taken"], capsys, words=["taken", "folder"])


def test_old_output_survives_a_failure(work, capsys):
    Path("diffuse_integrated.h5").write_text("precious")
    content = Path("image_00005.cbf").read_bytes()
    Path("image_00005.cbf").write_bytes(content[:3000])
    fails(program.run, FILES, capsys)
    assert Path("diffuse_integrated.h5").read_text() == "precious"


@pytest.mark.parametrize("limit", [2_000, 60_000, 200_000])
def test_full_disk(work, limit):
    """A limit on the size of files fails writes as a full disk does."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from dials_diffuse.cli.integrate import run; run(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *FILES, "output.log=None", "nproc=1"],
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1, result.stderr
    assert "diffuse_integrated.h5" in result.stderr and "disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(work.glob("*.h5")) and not list(work.glob(".*.h5"))


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["integrated.expt", "nonsense=1"],
        ["integrated.expt", "d_min=abc"],
        ["integrated.expt", "grid.subdivide=3,3"],
        ["integrated.expt", "grid.subdivide=0,1,1"],
        ["integrated.expt", "mask.bragg.n_sigma=-1"],
        ["integrated.expt", "nproc=0"],
        ["integrated.expt", "--nonsense"],
        ["integrated.expt", "exclude_images=5:1"],
        ["integrated.expt", "exclude_images=a:b"],
    ],
)
def test_bad_command_lines(work, capsys, args):
    fails(program.run, args, capsys, code=2)


@pytest.mark.parametrize(
    "parameter",
    [
        "grid.subdivide",
        "sampling.pixel",
        "mask.bragg.leak",
        "mask.outlier.n_sigma",
        "mask.shadow",
        "background_average.block",
        "output.observations",
    ],
)
def test_none_where_a_value_is_needed(work, capsys, parameter):
    fails(program.run, [*FILES, f"{parameter}=None"], capsys, words=[parameter.split(".")[-1]])


def test_a_grid_beyond_all_bounds(work, capsys):
    fails(program.run, [*FILES, "grid.subdivide=1000000,1000000,1000000"], capsys, words=["grid.subdivide"])


def test_no_input_shows_the_help(work, capsys):
    assert "diffuse_merge" in fails(program.run, [], capsys, code=2)


def test_help_and_configuration(capsys):
    for option in ("-h", "-c"):
        with pytest.raises(SystemExit) as error:
            program.run([option])
        assert error.value.code in (0, None)
        assert "n_sigma" in capsys.readouterr().out


def test_unequal_subdivision_of_mixed_axes(work, capsys):
    rewrite(lambda experiments: setattr(experiments[0], "crystal", make_crystal((20, 20, 30), "P4")))
    fails(program.run, ["integrated.expt", "grid.subdivide=2,3,3"], capsys, words=["subdivide=2,3,3", "P 4"])
    program.run(["integrated.expt", "grid.subdivide=2,2,3"])


def test_parsing_of_exclude_images():
    parse = program.parse_exclude_images
    assert parse(None) == []
    assert parse([["1:4"]]) == [(None, 1, 4)]
    assert parse([["0:1:4,2:7:9"], ["5:5"]]) == [(0, 1, 4), (2, 7, 9), (None, 5, 5)]
    with pytest.raises(CommandLineError, match="0:5"):
        parse([["0:5:"]])


def test_parameters_reach_the_reduction():
    working = program.phil_scope.fetch(
        program.parse("mask.bragg.n_sigma=2\nsampling.oscillation=4\ncorrections.air=False\nd_min=2.5")
    )
    parameters = program.parameters_from_phil(working.extract())
    assert parameters.masking.n_sigma == 2
    assert parameters.sampling.oscillation == 4
    assert not parameters.corrections.air and parameters.corrections.solid_angle
    assert parameters.d_min == 2.5
    assert program.parameters_from_phil(program.phil_scope.extract()).sampling.oscillation is None


@pytest.mark.parametrize(
    ("text", "follows_peaks", "n_sigma", "ice_rings"),
    [
        ("", True, 3, None),
        ("mask.bragg.mode=fixed", False, 3, None),
        ("mask.bragg.mode=fixed mask.ice_rings=True", False, 3, True),
        ("mask.bragg.mode=adaptive mask.bragg.n_sigma=4 mask.ice_rings=False", False, 4, False),
        ("mask.bragg.sigma_b=0.1 mask.bragg.sigma_m=0.2 mask.ice_rings=Auto", False, 3, None),
        ("mask.bragg.enable=False", False, 3, None),
    ],
)
def test_masks_that_follow_the_peaks_and_ice_rings_can_be_chosen(text, follows_peaks, n_sigma, ice_rings):
    working = program.phil_scope.fetch(program.parse("\n".join(text.split())))
    masking = program.parameters_from_phil(working.extract()).masking
    assert (masking.follows_peaks, masking.fixed_n_sigma) == (follows_peaks, n_sigma)
    assert masking.ice_rings is ice_rings


def test_peaks_that_are_not_predicted_are_masked_unless_they_shall_not_be():
    for text, wanted in (("", True), ("mask.unpredicted=False", False)):
        working = program.phil_scope.fetch(program.parse(text))
        assert program.parameters_from_phil(working.extract()).masking.unpredicted is wanted


def test_inputs_load_into_plain_objects(work):
    loaded = load_input(FILES)
    assert len(loaded.experiments) == 1
    assert set(loaded.reflections["id"]) == {0}
