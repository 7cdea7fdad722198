"""Images and what belongs to them: maps of gain, pedestal and mask, background images, the same images twice."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dxtbx.format.image import ImageBool, ImageDouble
from dxtbx.imageset import ImageSetFactory
from dxtbx.model import Experiment
from dxtbx.model.experiment_list import ExperimentList
from helpers.builders import edited
from helpers.datasets import (
    SIZE,
    import_images,
    make_sweep,
    noise,
    reflections_of,
    write_experiments,
    write_images,
    write_map,
    write_table,
)
from helpers.jobs import job_for, poisson_images, rows_of
from helpers.programs import fails
from helpers.synthetic import flumpy, make_detector, make_experiment

from dials_diffuse.cli import integrate as program
from dials_diffuse.cli import merge, scale
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.identity import chosen_positions, image_checksums
from dials_diffuse.experiment.images import image_readings, read_image
from dials_diffuse.experiment.imagesets import read_map_file
from dials_diffuse.files.identity import same_lattice
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.reduction.reduction_parameters import Masking

GUARDED = Masking(bragg=False, persistent=False)
QUIET = ["corrections.flux=False", "output.log=None", "output.html=None"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gradient(low: float, high: float) -> np.ndarray:
    """(ny, nx) values that grow along both axes."""
    ny, nx = SIZE[::-1]
    return low + (high - low) * np.add.outer(np.arange(ny), np.arange(nx)) / (ny + nx - 2)


def with_maps(path, experiment, **maps) -> None:
    """Write an .expt as dials.import lookup.*= does; maps : name -> file."""
    for name, file in maps.items():
        getattr(experiment.imageset.external_lookup, name).filename = file
    write_experiments(path, experiment)


def rows(path="diffuse_integrated.h5", *columns) -> dict:
    with ObservationFile(path) as result:
        return result.read(*(columns or ("index", "counts", "norm", "pixels", "background", "background_variance")))


# gain, pedestal, mask


def test_maps_of_gain_and_pedestal_give_photons(work):
    """The images of a charge-integrating detector, and the photons that they stand for: the same rows.

    The panel says gain 3 and pedestal 7, which the maps replace (without them counts would be 2.5 times too large).
    """
    photons = noise(0)
    gain, pedestal = gradient(2.0, 3.0), np.rint(gradient(100.0, 140.0))
    raw = [np.rint(p * gain + pedestal) for p in photons]
    exact = [(r - pedestal) / gain for r in raw]
    with_maps(
        "maps.expt",
        import_images(write_images(".", "raw_", raw), "maps"),
        gain=write_map("gain.pickle", gain),
        pedestal=write_map("pedestal.pickle", pedestal),
    )
    content = json.loads(Path("maps.expt").read_text())
    content["detector"][0]["panels"][0].update(gain=3.0, pedestal=7.0)
    Path("maps.expt").write_text(json.dumps(content))
    write_experiments("plain.expt", import_images(write_images(".", "photons_", photons), "plain"))
    for name in ("maps", "plain"):
        program.run([f"{name}.expt", *QUIET, f"output.observations={name}.h5", "output.json=None"])
    found, right = rows("maps.h5"), rows("plain.h5")
    np.testing.assert_array_equal(found["index"], right["index"])
    np.testing.assert_array_equal(found["norm"], right["norm"])
    assert found["counts"].sum() == pytest.approx(sum(map(np.sum, photons)), rel=0.01)  # some Bragg peaks are masked
    np.testing.assert_allclose(found["counts"], right["counts"], atol=0.25 * found["pixels"].max())
    imageset = ExperimentList.from_file("maps.expt")[0].imageset
    np.testing.assert_allclose(imageset.get_corrected_data(3)[0].as_numpy_array(), exact[3])


@pytest.mark.parametrize("lookup", ["gain", "pedestal"])
def test_one_map_leaves_the_other_to_the_panel(lookup):
    """As dxtbx corrects the same image."""
    detector = make_detector(size=SIZE)
    detector[0].set_gain(2.0)
    detector[0].set_pedestal(10.0)
    experiment = make_experiment(poisson_images(detector, 2, mean=100), detector=detector)
    values = flumpy.from_numpy(gradient(1.5, 4.0))
    getattr(experiment.imageset.external_lookup, lookup).data = ImageDouble(values)
    (found,) = read_image(experiment.imageset, 1)
    np.testing.assert_allclose(found, experiment.imageset.get_corrected_data(1)[0].as_numpy_array())
    assert image_readings(experiment.imageset) == [(-np.inf, np.inf, 0, 1)]


def test_the_trusted_range_is_that_of_raw_values(work):
    """A pixel at the limit stays, one above is not trusted, whatever the maps make of them."""
    detector = make_detector(size=SIZE)
    detector[0].set_trusted_range((-1, 500))
    images = poisson_images(detector, 2, mean=100)
    for (image,) in images:
        image[40, 40:43] = 499, 501, -5
    experiment = make_experiment(images, detector=detector)
    experiment.imageset.external_lookup.gain.data = ImageDouble(flumpy.from_numpy(np.full(SIZE[::-1], 100.0)))
    (found,) = read_image(experiment.imageset, 0)
    np.testing.assert_array_equal(np.isnan(found[40, 39:44]), [False, False, True, True, False])
    assert np.count_nonzero(np.isnan(found)) == 2


def test_pixels_without_gain_are_not_used(work):
    gain = gradient(2.0, 3.0)
    gain[10:20] = 0.0
    experiment = make_experiment(poisson_images(make_detector(size=SIZE), 2, 100), detector=make_detector(size=SIZE))
    experiment.imageset.external_lookup.gain.data = ImageDouble(flumpy.from_numpy(gain))
    (found,) = read_image(experiment.imageset, 0)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), gain[:, 0] == 0)


def test_outliers_are_those_of_photons():
    """Ten photons counted as a thousand units: the noise of 3 photons is usual, not 30 sigma."""
    detector = make_detector(size=(200, 180), pixel=0.2)
    photons = poisson_images(detector, 4, mean=10)
    photons[0][0][30, 30] = 60
    raw = [[(image * 100 + 50).astype(np.int32)] for (image,) in photons]
    experiment = make_experiment(raw, detector=detector)
    maps = experiment.imageset.external_lookup
    maps.gain.data = ImageDouble(flumpy.from_numpy(np.full((180, 200), 100.0)))
    maps.pedestal.data = ImageDouble(flumpy.from_numpy(np.full((180, 200), 50.0)))
    found = rows_of(job_for(experiment, masking=GUARDED))
    right = make_experiment(photons, detector=detector)
    np.testing.assert_allclose(found["counts"], rows_of(job_for(right, masking=GUARDED))["counts"])
    assert 0.9 < rows_of(job_for(right))["pixels"].sum() - found["pixels"].sum() < 3


def test_background_images_have_maps_of_their_own(work):
    """40 photons in the data, of which 20 are background, taken with another gain: 20 remain."""
    write_experiments("data.expt", import_images(write_images(".", "data_", noise(0, mean=40.0)), "data"))
    gain = gradient(4.0, 6.0)
    raw = [np.rint(image * gain) for image in noise(1, 16, mean=20.0)]
    empty = import_images(write_images(".", "empty_", raw), "empty", angles=None, profile=None)
    with_maps("empty.expt", empty, gain=write_map("gain.pickle", gain))
    program.run(["data.expt", "background=empty.expt", *QUIET])
    found = rows()
    net = (found["counts"].sum() - found["background"].sum()) / found["pixels"].sum()
    assert net == pytest.approx(20, rel=0.02)


def test_the_mask_of_the_imageset(work):
    """The file of dials.generate_mask, joined to what the format masks."""
    usable = np.ones(SIZE[::-1], dtype=bool)
    usable[:, 60:] = False
    experiment = import_images(write_images(".", "data_", noise(0)), "data")
    with_maps("data.expt", experiment, mask=write_map("pixels.mask", usable))
    program.run(["data.expt", *QUIET])
    assert rows("diffuse_integrated.h5", "xyz")["xyz"][:, 0].max() < 60
    imageset = ExperimentList.from_file("data.expt")[0].imageset
    never = json.loads(Path("diffuse_integrated.json").read_text())["experiments"][0]["never_used"]
    assert never >= 8 * np.count_nonzero(~imageset.get_mask(0)[0].as_numpy_array())


def test_maps_of_another_size_are_refused(work, capsys):
    experiment = import_images(write_images(".", "data_", noise(0)), "data")
    with_maps("data.expt", experiment, gain=write_map("gain.pickle", np.ones((10, 20))))
    fails(program.run, ["data.expt"], capsys, words=["gain.pickle", "(10, 20)", "(80, 90)", "make a new one"])


def test_maps_that_are_not_there(work, capsys):
    """Later versions of dxtbx leave them out without a word; the counts would be wrong."""
    experiment = import_images(write_images(".", "data_", noise(0)), "data")
    with_maps("data.expt", experiment, pedestal=str(work / "absent.pickle"))
    fails(program.run, ["data.expt"], capsys, words=["absent.pickle", "not found", "data.expt", "lookup.pedestal"])


def test_maps_that_are_no_pickles(work):
    Path("text.mask").write_text("mask")
    with pytest.raises(DiffuseError, match=r"text\.mask.*cannot be read as the mask"):
        read_map_file("text.mask", "mask", "data.expt")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_maps_of_all_protocols(work, protocol):
    values = flumpy.from_numpy(gradient(1.0, 2.0))
    Path("gain.pickle").write_bytes(pickle.dumps((values,), protocol))
    (found,) = read_map_file("gain.pickle", "gain", "data.expt")
    np.testing.assert_array_equal(found.as_numpy_array(), gradient(1.0, 2.0))
    ones = flumpy.from_numpy(np.ones((3, 4), dtype=bool))
    Path("pixels.mask").write_bytes(pickle.dumps(ones, protocol))
    assert ImageBool(read_map_file("pixels.mask", "mask", "data.expt")).tile(0).data().all() == (3, 4)


# background images


def test_background_of_another_wavelength(work, capsys):
    write_experiments("data.expt", make_sweep(".", "data", 0))
    empty = make_sweep(".", "empty", 1, angles=None, profile=None)
    empty.beam.set_wavelength(1.03)
    write_experiments("empty.expt", empty)
    fails(
        program.run,
        ["data.expt", "background=empty.expt"],
        capsys,
        words=["empty_00001.cbf", "1.0300 Å", "1.0000 Å", "same wavelength"],
    )


@pytest.mark.parametrize("what", ["distance", "pixel"])
def test_background_of_another_distance_or_pixel_size(work, capsys, what):
    write_experiments("data.expt", make_sweep(".", "data", 0))
    empty = make_sweep(".", "empty", 1, angles=None, profile=None)
    panel = empty.detector[0]
    if what == "distance":
        x, y, z = panel.get_origin()
        panel.set_frame(panel.get_fast_axis(), panel.get_slow_axis(), (x, y, 1.04 * z))
    else:
        panel.set_pixel_size((0.31, 0.31))
    write_experiments("empty.expt", empty)
    fails(program.run, ["data.expt", "background=empty.expt"], capsys, words=["empty_00001.cbf", "same detector"])


def test_background_with_a_mask_of_its_own(work, capsys):
    """What the data see and the background does not, is left out and said; the rest is right."""
    write_experiments("data.expt", import_images(write_images(".", "data_", noise(0, mean=40.0)), "data"))
    usable = np.ones(SIZE[::-1], dtype=bool)
    usable[:, 64:] = False
    empty = import_images(write_images(".", "empty_", noise(1, 16)), "empty", angles=None, profile=None)
    with_maps("empty.expt", empty, mask=write_map("pixels.mask", usable))
    program.run(["data.expt", "background=empty.expt", *QUIET])
    lost = np.count_nonzero(~usable)
    (warning,) = json.loads(Path("diffuse_integrated.json").read_text())["warnings"]
    assert f"{lost} pixels (" in warning and "masked in the background images" in warning
    found = rows()
    assert (found["counts"].sum() - found["background"].sum()) / found["pixels"].sum() == pytest.approx(20, rel=0.02)
    assert rows("diffuse_integrated.h5", "xyz")["xyz"][:, 0].max() < 64


@pytest.mark.parametrize("stills", [True, False])
def test_exposure_times_that_are_known_of_one_only(work, stills):
    """Stills have none, nor has a scan that nobody told: background and data were exposed as long."""
    write_experiments("data.expt", import_images(write_images(".", "data_", noise(0, mean=40.0)), "data"))
    empty = import_images(write_images(".", "empty_", noise(1, 16)), "empty", angles=None, profile=None)
    if stills:
        images = ImageSetFactory.make_imageset([str(p.absolute()) for p in sorted(Path().glob("empty_*.cbf"))])
        empty = Experiment(imageset=images, beam=empty.beam, detector=empty.detector, identifier="empty")
    write_experiments("empty.expt", empty)
    if not stills:
        content = json.loads(Path("data.expt").read_text())
        for scan in content["scan"]:
            scan.get("properties", scan)["exposure_time"] = [0.0] * 8
        Path("data.expt").write_text(json.dumps(content))
    program.run(["data.expt", "background=empty.expt", *QUIET])
    (warning,) = json.loads(Path("diffuse_integrated.json").read_text())["warnings"]
    assert "exposure times" in warning and "equal" in warning
    found = rows()
    assert (found["counts"].sum() - found["background"].sum()) / found["pixels"].sum() == pytest.approx(20, rel=0.02)


def test_a_lost_background_image(work, capsys):
    write_experiments("data.expt", make_sweep(".", "data", 0))
    write_experiments("empty.expt", make_sweep(".", "empty", 1, angles=None, profile=None))
    Path("empty_00003.cbf").unlink()
    fails(
        program.run,
        ["data.expt", "background=empty.expt"],
        capsys,
        words=["empty_00003.cbf", "not found", "empty.expt"],
    )


# the same images twice


def reprocessed(name: str, images: str, first: int = 1, n_images: int = 8, **options) -> None:
    """Another .expt, and .refl, of some images."""
    experiment = import_images([f"{images}_{i:05d}.cbf" for i in range(first, first + n_images)], name, **options)
    write_experiments(f"{name}.expt", experiment)
    write_table(f"{name}.refl", [reflections_of(experiment)], {0: name})


def copies(source: str, target: str, make) -> None:
    for path in sorted(Path().glob(f"{source}_*.cbf")):
        make(path, Path(path.name.replace(source, target)))


@pytest.fixture
def sweep(work):
    make_sweep(".", "one", 0)
    reprocessed("one", "one")
    return work


WAYS = {
    "copied": shutil.copy,
    "linked": lambda path, new: new.symlink_to(path),
    "hard-linked": lambda path, new: os.link(path, new),
}


@pytest.mark.parametrize("how", WAYS)
def test_the_same_images_under_another_name(sweep, capsys, how):
    copies("one", "two", WAYS[how])
    reprocessed("two", "two", angles=(10.1, 20, 30))
    fails(
        program.run,
        ["one.expt", "two.expt"],
        capsys,
        words=["experiment 1", "two_00001.cbf", "same images as experiment 0", "one_00001.cbf", "exclude_images"],
    )


def test_copies_with_other_numbers(sweep, capsys):
    """Images 5 to 8 of the sweep as images 1 to 4, at their angles."""
    for i in range(5, 9):
        shutil.copy(f"one_{i:05d}.cbf", f"two_{i - 4:05d}.cbf")
    reprocessed("two", "two", n_images=4)
    fails(program.run, ["one.expt", "two.expt"], capsys, words=["two_00001.cbf", "one_00001.cbf"])


def test_the_same_sweep_processed_again(sweep, capsys):
    """Also where the crystal has been indexed otherwise: the lattice is the same."""
    reprocessed("again", "one")
    experiments = ExperimentList.from_file("again.expt", check_format=False)
    a = np.array(experiments[0].crystal.get_A()).reshape(3, 3)
    experiments[0].crystal.set_A(tuple((a @ [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]).ravel()))
    experiments.as_file("again.expt")
    fails(program.run, ["one.expt", "again.expt"], capsys, words=["experiment 1", "experiment 0", "same crystal"])


def test_overlapping_parts_of_a_sweep(sweep, capsys):
    reprocessed("late", "one", first=6, n_images=3)
    fails(program.run, ["one.expt", "late.expt"], capsys, words=["experiment 1", "experiment 0", "same images"])
    program.run(["one.expt", "late.expt", *QUIET, "exclude_images=0:6:8"])
    program.run(["one.expt", *QUIET, "output.observations=whole.h5"])
    assert rows()["counts"].sum() == pytest.approx(rows("whole.h5")["counts"].sum(), rel=1e-6)


def test_two_crystals_on_the_same_images(sweep):
    """A split crystal: both count, and the peaks of both are masked for each."""
    reprocessed("other", "one", angles=(70, -10, 5))
    program.run(["one.expt", "other.expt", *QUIET])
    program.run(["one.expt", *QUIET, "output.observations=alone.h5"])
    together, alone = rows("diffuse_integrated.h5", "experiment", "pixels"), rows("alone.h5", "pixels")
    sums = [together["pixels"][together["experiment"] == i].sum() for i in (0, 1)]
    assert max(sums) < alone["pixels"].sum() and min(sums) > 0.9 * alone["pixels"].sum()


def test_images_that_saw_nothing_are_not_the_same(work):
    blank = [np.zeros(SIZE[::-1], dtype=np.int32) for _ in range(4)]
    for image in blank:
        image[5, 5:20] = 100  # hot
    images = import_images(write_images(".", "dark_", blank), "dark").imageset
    assert image_checksums(images, images.get_scan(), np.arange(4)) == ()
    images = import_images(write_images(".", "lit_", noise(0, 4)), "lit").imageset
    assert len(set(image_checksums(images, images.get_scan(), np.arange(4)))) == 4


@pytest.mark.parametrize("start", [0.0, -12.3, 30.0])
@pytest.mark.parametrize(("first", "last"), [(0, 100), (30, 130), (50, 150), (0, 40)])
def test_sweeps_that_overlap_by_half_have_chosen_images_in_common(start, first, last):
    chosen = [
        set((round(10 * start) + a + chosen_positions((start + 0.1 * a, 0.1), np.arange(b - a))).tolist())
        for a, b in ((0, 100), (first, last))
    ]
    assert chosen[0] & chosen[1]
    assert all(len(c) <= 10 for c in chosen)


def test_lattices():
    a = np.array([[0.05, 0.01, 0.0], [0.0, 0.04, 0.003], [0.002, 0.0, 0.03]])
    turned = a @ [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    centred = a @ np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]])  # basis of a primitive cell of it
    angle = np.deg2rad(3.0)
    rotated = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) @ a
    for other, same in (
        (a, True),
        (turned, True),
        (centred, True),
        (1.005 * a, True),
        (rotated, False),
        (1.1 * a, False),
    ):
        assert same_lattice(tuple(a.ravel()), tuple(other.ravel())) is same
        assert same_lattice(tuple(other.ravel()), tuple(a.ravel())) is same


@pytest.fixture
def two_files(sweep):
    """Observation files of a sweep and of a copy of it."""
    copies("one", "two", shutil.copy)
    reprocessed("two", "two")
    for name in ("one", "two"):
        program.run([f"{name}.expt", *QUIET, f"output.observations={name}.h5", "output.json=None"])
    return ["one.h5", "two.h5"]


@pytest.mark.parametrize("run", [merge.run, scale.run], ids=["merge", "scale"])
def test_observations_of_the_same_images(two_files, capsys, run):
    fails(run, two_files, capsys, words=["two.h5 (experiment 0)", "same images as one.h5 (experiment 0)"])


def without_images(path) -> None:
    """As older versions wrote it: it does not say which images it is from."""
    with edited(path) as handle:
        experiments = json.loads(handle.attrs["experiments"])
        assert all(len(e.pop("images")) >= 3 for e in experiments)
        handle.attrs["experiments"] = json.dumps(experiments)
    with ObservationFile(path) as file:
        assert file.experiments[0].images == ()


def test_observations_of_older_versions_of_the_same_images(two_files, capsys):
    """Their counts tell."""
    for path in two_files:
        without_images(path)
    fails(merge.run, two_files, capsys, words=["two.h5 (experiment 0)", "one.h5 (experiment 0)"])


def test_observations_of_older_versions_are_merged(sweep):
    reprocessed("other", "one", angles=(70, -10, 5))
    for name in ("one", "other"):
        program.run([f"{name}.expt", *QUIET, f"output.observations={name}.h5", "output.json=None"])
        without_images(f"{name}.h5")
    merge.run(["one.h5", "other.h5", "statistics.n_shells=3", "symmetry.check=none"])  # the images are noise


def test_observations_of_different_crystals_on_the_same_images_are_merged(sweep):
    reprocessed("other", "one", angles=(70, -10, 5))
    for name in ("one", "other"):
        program.run([f"{name}.expt", *QUIET, f"output.observations={name}.h5", "output.json=None"])
    merge.run(["one.h5", "other.h5", "statistics.n_shells=3"])


def test_summaries_keep_their_images_when_they_are_changed(sweep):
    program.run(["one.expt", *QUIET])
    with ObservationFile("diffuse_integrated.h5") as file:
        (summary,) = file.experiments
    assert replace(summary, n_images_used=3).images == summary.images and len(summary.images) >= 3
