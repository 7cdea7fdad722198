"""Which reflections belong to which crystal, whatever their order, and which images must be there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList
from helpers.datasets import (
    PHOTONS,
    import_images,
    make_sweep,
    reflections_of,
    scan_dict,
    write_experiments,
    write_images,
    write_table,
)
from helpers.programs import fails
from helpers.synthetic import make_crystal, make_detector, make_experiment

from dials_diffuse.cli import integrate as program
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import experiments_from_file
from dials_diffuse.experiment.load import load_input
from dials_diffuse.experiment.spot_prediction import spot_size
from dials_diffuse.files.observations import ObservationFile

NAMES = ("a", "b", "c")
QUIET = ["mask.persistent=False", "corrections.flux=False", "output.log=None", "output.html=None"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder with three sweeps of crystals in different orientations; joint and separate files."""
    folder = tmp_path_factory.mktemp("source")
    experiments = [make_sweep(folder, name, i, angles=(10 + 25 * i, 20, 30)) for i, name in enumerate(NAMES)]
    for i, (name, experiment) in enumerate(zip(NAMES, experiments)):
        write_experiments(folder / f"{name}.expt", experiment)
        write_table(folder / f"{name}.refl", [reflections_of(experiment, 0, PHOTONS * (i + 1))], {0: name})
    write_experiments(folder / "joint.expt", *experiments)
    tables = [reflections_of(e, i, PHOTONS * (i + 1)) for i, e in enumerate(experiments)]
    write_table(folder / "joint.refl", tables, dict(enumerate(NAMES)))
    return folder


@pytest.fixture
def work(source, tmp_path, monkeypatch):
    """A fresh folder with copies of the data; the images are referred to there."""
    for path in source.iterdir():
        shutil.copy(path, tmp_path)
        if path.suffix == ".expt":
            copy = tmp_path / path.name
            copy.write_text(copy.read_text().replace(str(source), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def joint_tables() -> list:
    """The reflections of each data set, with ids 0, 1, 2 and without identifiers."""
    tables = [flex.reflection_table.from_file(f"{name}.refl") for name in NAMES]
    for i, table in enumerate(tables):
        del table.experiment_identifiers()[0]
        table["id"] = flex.int(len(table), i)
    return tables


def drop(name: str) -> None:
    """As dials.scale drops a data set: it is no longer in joint.expt, but joint.refl keeps all ids."""
    experiments = ExperimentList.from_file("joint.expt", check_format=False)
    write_experiments("joint.expt", *(e for e in experiments if e.identifier != name))


def bragg(path="diffuse_integrated.h5") -> dict:
    """For each experiment, by identifier, its Bragg reflections: {hkl: intensity}."""
    with ObservationFile(path) as result:
        names = [e.identifier for e in result.experiments]
        rows = result.read_bragg()
    found: dict = {name: {} for name in names}
    for hkl, experiment, intensity in zip(rows["hkl"], rows["experiment"], rows["intensity"]):
        found[names[experiment]][tuple(int(x) for x in hkl)] = float(intensity)
    return found


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """The Bragg reflections of each crystal, integrated alone: what is right."""
    folder = tmp_path_factory.mktemp("expected")
    result = {}
    for name in NAMES:
        path = str(folder / f"{name}.h5")
        files = [str(source / f"{name}.expt"), str(source / f"{name}.refl")]
        program.run([*files, *QUIET, f"output.observations={path}", "output.json=None"])
        result.update(bragg(path))
    assert all(len(rows) > 15 for rows in result.values())
    return result


def summary() -> dict:
    return json.loads(Path("diffuse_integrated.json").read_text())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)], ids=str)
def test_identifiers_decide_not_ids(work, expected, order):
    """The map of the .refl in another order: each intensity stays on its crystal (three times as many photons on c)."""
    tables = joint_tables()
    for table, number in zip(tables, order):
        table["id"] = flex.int(len(table), number)
    write_table("joint.refl", tables, dict(zip(order, NAMES)))
    program.run(["joint.expt", "joint.refl", *QUIET])
    found = bragg()
    assert found == {name: pytest.approx(expected[name]) for name in NAMES}


@pytest.mark.parametrize("dropped", NAMES)
def test_a_data_set_that_dials_scale_dropped(work, expected, dropped, capsys):
    drop(dropped)
    program.run(["joint.expt", "joint.refl", *QUIET])
    found = bragg()
    assert found == {name: pytest.approx(expected[name]) for name in NAMES if name != dropped}
    count = len(flex.reflection_table.from_file(f"{dropped}.refl"))
    assert f"{count} reflections left out, no experiment {dropped}" in capsys.readouterr().out
    left_out = summary()["reflections"]["left_out"]
    assert left_out == [{"file": "joint.refl", "reason": f"no experiment {dropped}", "count": count}]


def test_joint_reflections_with_separate_experiments(work, expected):
    program.run(["c.expt", "a.expt", "joint.refl", *QUIET])
    assert bragg() == {name: pytest.approx(expected[name]) for name in ("c", "a")}


def test_pairs_in_any_order(work, expected):
    program.run(["a.expt", "b.expt", "b.refl", "a.refl", *QUIET])
    assert bragg() == {name: pytest.approx(expected[name]) for name in ("a", "b")}


def test_separate_reflections_with_joint_experiments(work, expected):
    program.run(["joint.expt", "c.refl", "a.refl", "b.refl", *QUIET])
    assert bragg() == {name: pytest.approx(expected[name]) for name in NAMES}


def test_an_experiment_without_reflections(work, expected):
    """dials renumbers ids that way when it joins tables; here the gap stays, and b's are not given to a."""
    _, b, c = joint_tables()
    write_table("joint.refl", [b, c], {1: "b", 2: "c"})
    program.run(["joint.expt", "joint.refl", *QUIET])
    found = bragg()
    assert found == {"a": {}, "b": pytest.approx(expected["b"]), "c": pytest.approx(expected["c"])}


def test_tables_without_identifiers_go_by_position(work, expected, capsys):
    tables = joint_tables()
    write_table("joint.refl", tables, {})
    program.run(["joint.expt", "joint.refl", *QUIET])
    assert bragg() == {name: pytest.approx(expected[name]) for name in NAMES}
    Path("diffuse_integrated.h5").unlink()
    write_table("fewer.refl", tables[:2], {})
    fails(
        program.run, ["joint.expt", "fewer.refl"], capsys, words=["fewer.refl", "joint.expt", "id 1", "3 experiments"]
    )
    drop("b")
    fails(program.run, ["joint.expt", "joint.refl"], capsys, words=["joint.refl", "id 2", "2 experiments"])
    fails(program.run, ["a.expt", "b.expt", "joint.refl"], capsys, words=["joint.refl", "one .refl for each .expt"])


def test_experiments_without_identifiers_go_by_position(work, expected):
    experiments = ExperimentList.from_file("joint.expt", check_format=False)
    for experiment in experiments:
        experiment.identifier = ""
    experiments.as_file("joint.expt")
    loaded = load_input(["joint.expt", "joint.refl"]).reflections
    photons = np.array(loaded["intensity.sum.value"])
    np.testing.assert_array_equal(photons, PHOTONS * (1 + np.array(loaded["id"])))


def test_the_same_identifier_twice(work, capsys):
    write_table("twice.refl", joint_tables(), {0: "a", 1: "b", 2: "b"})
    fails(program.run, ["joint.expt", "twice.refl"], capsys, words=["twice.refl", "identifier b", "two ids"])
    fails(program.run, ["joint.expt", "a.refl", "joint.refl"], capsys, words=["joint.refl", "a.refl", "experiment 0"])
    fails(program.run, ["a.expt", "joint.expt"], capsys, words=["joint.expt", "experiment a", "twice"])


def test_reflections_of_other_experiments(work, capsys):
    fails(program.run, ["a.expt", "b.refl"], capsys, words=["b.refl does not belong to a.expt", "identifier b"])
    strong = joint_tables()[0]
    strong["id"] = flex.int(len(strong), -1)
    write_table("strong.refl", [strong], {})
    fails(program.run, ["a.expt", "strong.refl"], capsys, words=["strong.refl", "no reflection is indexed"])


def test_unindexed_reflections_are_counted(work, expected):
    table = flex.reflection_table.from_file("a.refl")
    spots = table.select(flex.size_t(range(5)))
    spots["id"] = flex.int(5, -1)
    del spots.experiment_identifiers()[0]
    write_table("a.refl", [joint_tables()[0], spots], {0: "a"})
    program.run(["a.expt", "a.refl", *QUIET])
    assert bragg() == {"a": pytest.approx(expected["a"])}
    assert summary()["reflections"]["left_out"] == [{"file": "a.refl", "reason": "not indexed", "count": 5}]


def shift(table, images: int, boxes: bool, which=slice(None)) -> None:
    """Move predicted centres, and boxes as well or not."""
    centre = np.array(table["xyzcal.px"]).reshape(-1, 3)
    centre[which, 2] += images
    table["xyzcal.px"] = flex.vec3_double(centre.copy())
    if boxes:
        box = np.array([np.array(part) for part in table["bbox"].parts()])
        box[4:, which] += images
        table["bbox"] = flex.int6(*(flex.int(part.tolist()) for part in box))


def test_bounding_boxes_decide_not_centres(work):
    """Of fine slices many centres lie outside the scan; each reflection whose box is on an image belongs."""
    table = flex.reflection_table.from_file("a.refl")
    shift(table, 40, boxes=False, which=slice(0, len(table) // 2))
    table.as_file("a.refl")
    program.run(["a.expt", "a.refl", *QUIET])
    assert summary()["reflections"] == {"used": len(table), "left_out": []}


def test_reflections_on_none_of_the_images(work, capsys):
    table = flex.reflection_table.from_file("a.refl")
    shift(table, 40, boxes=True, which=slice(0, 7))
    box = np.array([np.array(part) for part in table["bbox"].parts()])
    box[5, 7:10] = box[4, 7:10]
    table["bbox"] = flex.int6(*(flex.int(part.tolist()) for part in box))
    table.as_file("a.refl")
    program.run(["a.expt", "a.refl", *QUIET])
    assert summary()["reflections"]["used"] == len(table) - 10
    reasons = {item["reason"]: item["count"] for item in summary()["reflections"]["left_out"]}
    assert reasons == {"on none of the images": 7, "no bounding box": 3}
    Path("diffuse_integrated.h5").unlink()
    shift(table, 40, boxes=True)
    table.as_file("a.refl")
    fails(program.run, ["a.expt", "a.refl"], capsys, words=["a.refl", "does not belong to a.expt", "images 1..8"])


def test_a_table_without_boxes_goes_by_centres(work):
    table = flex.reflection_table.from_file("a.refl")
    del table["bbox"]
    shift(table, 40, boxes=False, which=slice(0, 7))
    table.as_file("a.refl")
    assert len(load_input(["a.expt", "a.refl"]).reflections) == len(table) - 7


# images that are not there


def counts_of(*excluded: str, files=("a.expt", "a.refl")) -> tuple:
    """Counts and images used of a run that excludes some images."""
    program.run([*files, *QUIET, *(f"exclude_images={e}" for e in excluded), "output.observations=run.h5"])
    with ObservationFile("run.h5") as result:
        return result.read("counts")["counts"].sum(), [e.n_images_used for e in result.experiments]


@pytest.mark.parametrize("image", [1, 4, 8])
@pytest.mark.parametrize("harm", ["lost", "empty", "cut", "header", "folder"])
def test_excluded_images_need_not_be_there(work, image, harm, capsys):
    """The sums are those of a run in which the image is there but left out."""
    path = Path(f"a_{image:05d}.cbf")
    right = counts_of(f"{image}:{image}")
    content = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    elif harm != "lost":
        path.write_bytes({"empty": b"", "cut": content[:3000], "header": content[:400]}[harm])
    assert counts_of(f"{image}:{image}") == right
    Path("run.h5").unlink()
    Path("diffuse_integrated.json").unlink()
    fix = ["not found", "a.expt", f"exclude_images=0:{image}:{image}"] if harm in ("lost", "folder") else []
    fails(program.run, ["a.expt", "a.refl"], capsys, words=[path.name, *fix])


def test_all_images_of_an_excluded_experiment_are_lost(work, expected):
    for path in Path().glob("b_*.cbf"):
        path.unlink()
    program.run(["joint.expt", "joint.refl", *QUIET, "exclude_images=1:1:8"])
    found = bragg()
    assert found == {"a": pytest.approx(expected["a"]), "b": {}, "c": pytest.approx(expected["c"])}


def test_an_excluded_experiment_needs_no_crystal(work, expected, capsys):
    experiments = ExperimentList.from_file("joint.expt", check_format=False)
    experiments[1].crystal = experiments[1].profile = None
    experiments.as_file("joint.expt")
    write_table("joint.refl", [t for t in joint_tables() if t["id"][0] != 1], {0: "a", 2: "c"})
    fails(program.run, ["joint.expt", "joint.refl"], capsys, words=["joint.expt (experiment 1)", "no crystal"])
    program.run(["joint.expt", "joint.refl", *QUIET, "exclude_images=1:1:8"])
    found = bragg()
    assert found == {"a": pytest.approx(expected["a"]), "b": {}, "c": pytest.approx(expected["c"])}
    with ObservationFile("diffuse_integrated.h5") as result:
        assert result.experiments[1].orientation is None and result.experiments[0].orientation is not None


def test_an_excluded_crystal_does_not_count_for_the_grid(work):
    """Neither its space group nor its cell: it may be excluded just because of them."""
    experiments = ExperimentList.from_file("joint.expt", check_format=False)
    experiments[1].crystal = make_crystal((31, 24, 30), "P1")
    experiments.as_file("joint.expt")
    program.run(["joint.expt", *QUIET, "exclude_images=1:1:8"])
    with ObservationFile("diffuse_integrated.h5") as result:
        assert result.grid.unit_cell[:3] == pytest.approx((20, 24, 30))


def test_an_excluded_crystal_on_the_same_images_is_masked(work):
    """Its peaks are there all the same, though nothing but its orientation is known."""
    experiments = ExperimentList.from_file("a.expt", check_format=False)
    other = import_images([f"a_{i:05d}.cbf" for i in range(1, 9)], "other", angles=(70, -10, 5), profile=None)
    write_experiments("two.expt", experiments[0], other)
    program.run(["two.expt", "a.refl", *QUIET, "exclude_images=1:1:8"])
    alone = counts_of()[0]
    with ObservationFile("diffuse_integrated.h5") as result:
        assert 0.9 * alone < result.read("counts")["counts"].sum() < 0.999 * alone


def test_experiments_on_parts_of_one_image_set(work):
    """Two crystals found on different images of a sweep that the .expt file describes once: each has its own images."""
    images = [np.full((80, 90), 100 * (i // 4 + 1), dtype=np.int32) for i in range(8)]
    whole = import_images(write_images(".", "d_", images), "first")
    second = import_images([f"d_{i:05d}.cbf" for i in range(1, 9)], "second", angles=(70, -10, 5))
    write_experiments("parts.expt", whole, second)
    content = json.loads(Path("parts.expt").read_text())
    if "properties" in content["scan"][0]:
        pytest.skip("SCANS OF NEWER DIALS: dxtbx does not read two scans on one image set in the old form")
    content["scan"] = [scan_dict(1, 4), scan_dict(5, 8)]
    for number, experiment in enumerate(content["experiment"]):
        experiment.update(imageset=0, scan=number)
    Path("parts.expt").write_text(json.dumps(content))
    program.run(["parts.expt", *QUIET, "mask.outlier.n_sigma=0", "mask.bragg.enable=False"])
    with ObservationFile("diffuse_integrated.h5") as result:
        rows = result.read("experiment", "counts", "pixels")
    for number, level in enumerate((100, 200)):
        mine = rows["experiment"] == number
        assert rows["counts"][mine].sum() / rows["pixels"][mine].sum() == pytest.approx(level)


def test_the_rocking_width_is_that_of_whole_boxes():
    """A narrow wedge cuts most boxes off; those that it does not say how wide they are."""
    crystal, width, sigma_m = make_crystal((40, 48, 60)), 0.1, 0.1
    detector = make_detector(size=(400, 400), pixel=0.2, parallax=False)
    experiment = make_experiment(n_images=12, width=width, detector=detector, crystal=crystal, profile=None)
    table = flex.reflection_table.from_predictions(experiment, dmin=1.5, padding=2.0)
    table["xyzobs.px.value"] = table["xyzcal.px"]
    s1, s0 = np.array(table["s1"]).reshape(-1, 3), np.array(experiment.beam.get_s0())
    cross = np.cross(s1, s0)
    zeta = np.abs(cross @ np.array(experiment.goniometer.get_rotation_axis())) / np.linalg.norm(cross, axis=1)
    z = np.array(table["xyzcal.px"].parts()[2])
    half = 3 * sigma_m / np.maximum(zeta, 0.05) / width
    low, high = np.clip([np.floor(z - half), np.ceil(z + half)], 0, 12).astype(int)
    size = [np.zeros(len(z), int), np.full(len(z), 4)] * 2
    table["bbox"] = flex.int6(*(flex.int(part.tolist()) for part in (*size, low, high)))
    seen = table.select(flex.bool((high > low).tolist()))
    whole = np.count_nonzero((low > 0) & (high < 12) & (high > low))
    assert 20 < whole < len(seen) / 2
    found = np.degrees(spot_size(experiment, seen).sigma_m[0])
    all_boxes = np.median((high - low)[high > low] * zeta[high > low]) * width / 6
    assert all_boxes < 0.8 * sigma_m
    assert found == pytest.approx(sigma_m, rel=0.2)  # boxes are rounded outwards


def test_files_that_are_not_there(work, capsys):
    fails(program.run, ["a.expt", "background=no.expt"], capsys, words=["no.expt: no such file; check the path"])
    with pytest.raises(DiffuseError, match=r"no\.expt: no such file"):
        experiments_from_file("no.expt")


@pytest.mark.parametrize("limits", [[-(2**31), 5], [1, 2**31 - 1], [1], [1.5, 4], "ab"])
def test_impossible_numbers_of_images(work, limits, capsys):
    """With the first of these dxtbx ends the process by a segmentation fault."""
    content = json.loads(Path("a.expt").read_text())
    content["scan"][0]["image_range"] = limits
    Path("bad.expt").write_text(json.dumps(content))
    fails(
        program.run, ["bad.expt", "a.refl"], capsys, words=["bad.expt: not a readable experiment file", "image_range"]
    )
    with pytest.raises(DiffuseError, match=r"bad\.expt: not a readable experiment file .*image_range"):
        experiments_from_file("bad.expt")  # as the simulator does


@pytest.mark.parametrize("name", [b"identifier-1", b"some_column"])
def test_names_in_reflections_that_are_no_text(work, name, capsys):
    """One damaged byte of an identifier, or of a name of a column."""
    table = flex.reflection_table.from_file("a.refl")
    table.experiment_identifiers()[0] = "identifier-1"
    table["some_column"] = flex.int(len(table), 0)
    table.as_file("bad.refl")
    content = Path("bad.refl").read_bytes()
    assert name in content
    Path("bad.refl").write_bytes(content.replace(name, b"\xe5" + name[1:]))
    words = ["bad.refl: not a readable reflection file", "write it again"]
    fails(program.run, ["a.expt", "bad.refl"], capsys, words=words)
