"""dials.diffuse_process as a beamline runs it: the verdict one would expect, whatever it is given."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pytest
from cctbx import crystal, sgtbx
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList
from helpers.checkout import ROOT
from helpers.pages import Page
from helpers.programs import fails
from helpers.structures import random_structure
from PIL import Image
from scitbx import matrix

from dials_diffuse.cli import integrate, merge, scale, simulate
from dials_diffuse.cli.process import run
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.pipeline import choices
from dials_diffuse.pipeline.choices import choose_subdivision, memory_needed
from dials_diffuse.pipeline.record import SCHEMA_FILE, check_record
from dials_diffuse.pipeline.significance import signal_of
from dials_diffuse.pipeline.sources import find_sources, other_symmetry
from dials_diffuse.pipeline.verdict import judge

PDB = str(ROOT / "dials_diffuse" / "simulation" / "data" / "193l.pdb")

SIMULATION = [
    "structure=lysozyme",
    "model=llm",
    "scan.n_images=30",
    "scan.width=1.5",
    "detector.size=260,260",
    "detector.pixel_size=0.34",
    "detector.distance=100",
    "d_min=3.2",
    "grid.subdivide=1,1,1",
    "seed=4",
    "nproc=1",
]
#: of the page of a run: chapters, and plots of all steps
CHAPTERS = ["Verdict", "Integration", "Scaling", "Merged map", "Fit"]
PLOTS = ("process-signal", "integrate-images", "integrate-used", "scale-drift", "scale-residuals", "scale-envelope")
PLOTS += (
    "merge-agreement",
    "merge-intensity",
    "merge-coverage",
    "fit-agreement",
    "fit-profile-0",
    "fit-displacements-0-0",
)

#: what keeps the runs short; they decide the rest themselves
SHORT = ["integrate.d_min=3.2", "scale.refinement.max_observations=30000", "nproc=1"]


def simulated(folder: Path, *options) -> Path:
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run([*SIMULATION, *options])
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Images and models of a crystal with diffuse scattering."""
    return simulated(tmp_path_factory.mktemp("good") / "images")


def files(folder: Path) -> list:
    return [str(folder / "simulated.expt"), str(folder / "simulated.refl")]


def processed(*args, folder=".") -> dict:
    """Run the program; its record, which keeps to the schema."""
    run([*map(str, args), *SHORT, f"output.directory={folder}"])
    record = json.loads((Path(folder) / "dials.diffuse_process.json").read_text())
    jsonschema.validate(record, json.loads(SCHEMA_FILE.read_text()))
    for output in record["outputs"]:
        assert Path(output["path"]).is_file(), output
    return record


@pytest.fixture(scope="module")
def result(good, tmp_path_factory) -> tuple:
    """The folder and the record of a run with everything left to the program."""
    folder = tmp_path_factory.mktemp("process") / "made" / "by the program"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parents[1])
        return folder, processed(*files(good), f"pdb={PDB}", folder=folder)


def test_a_crystal_with_diffuse_scattering(result):
    folder, record = result
    assert record["verdict"] == "good" and record["limits"] == [] and "anisotropic signal" in record["reasons"][0]
    assert record["space_group"] == "P 43 21 2" and record["n_images_used"] == 30
    assert record["d_min"] == pytest.approx(3.2, abs=0.05)
    assert [step["name"] for step in record["steps"]] == ["Choices", "Integration", "Scaling", "Merging", "Fit"]
    assert all(step["repeated"] and step["peak_memory"] > 1e8 for step in record["steps"])
    (peaks,) = record["peaks"]
    assert peaks["verdict"] == "good" and peaks["share"] > 0.9 and peaks["offset"] < 0.3 and peaks["words"] == ""
    parameters = record["fit"]["parameters"]
    assert parameters["sigma"]["value"] == pytest.approx(0.3, abs=0.05)  # at this resolution nearly the same as scale
    assert parameters["gamma"]["value"] == pytest.approx(10, rel=0.05)
    assert record["absolute_scale"]["method"] == "model"
    decided = {choice["name"]: choice for choice in record["choices"]}
    assert list(decided) == ["grid.subdivide", "mask.bragg.mode", "scale.model", "images left out", "fit.d_min"]
    choice = decided["grid.subdivide"]
    assert choice["value"] == ",".join(map(str, record["subdivide"])) and "wide" in choice["reason"]
    assert decided["images left out"]["value"] == "0"
    assert "predicted better with drift" in decided["scale.model"]["reason"]
    names = {Path(output["path"]).name for output in record["outputs"]}
    assert {"diffuse_integrated.h5", "diffuse_scaled.h5", "diffuse_merged.nxs", "diffuse_fit.html"} <= names
    assert {"diffuse_integrated.html", "diffuse_scaled.html", "diffuse_merged.html"} <= names
    with Image.open(folder / "dials.diffuse_process.png") as thumbnail:
        assert max(thumbnail.size) == 400 and np.asarray(thumbnail.convert("L")).std() > 10
    page = Page(folder / "dials.diffuse_process.html")
    assert "good: anisotropic diffuse signal" in page.text and not page.links
    assert [head for head in dict.fromkeys(page.heads) if head in CHAPTERS] == CHAPTERS
    assert {f"{name}-plot" for name in PLOTS} <= set(page.plots)
    assert all(f'id="{name}-slices-browser"' in page.text for name in ("merge", "fit"))
    assert page.plots["scale-drift-plot"]["traces"][0]["x"] == pytest.approx(
        json.loads((folder / "diffuse_scaled.json").read_text())["sweeps"][0]["angle"], rel=1e-4
    )


def test_what_makes_a_map_doubtful(result):
    """Each check of the integration by itself, in the records of a good run."""
    folder, _ = result
    names = ("integrated", "scaled", "merged")
    integrated, *others = (json.loads((folder / f"diffuse_{name}.json").read_text()) for name in names)
    signal = signal_of(read_map(folder / "diffuse_merged.nxs"))
    assert judge(signal, integrated, *others).word == "good"
    (e,) = integrated["experiments"]
    assert e["peaks"] and e["predictions"] and e["masks"] and e["experiment"] == 0
    empty = {**e["masks"], "inside": 0.0, "beside": 0.0, "difference": 0.0, "esd": 0.01}
    for change in (
        {"peaks": {**e["peaks"], "words": "no peaks there"}},
        {"predictions": {**e["predictions"], "words": "of other models"}},
        {"masks": empty},
        {"outlier": e["used"]},
    ):
        changed = {**integrated, "experiments": [{**e, "experiment": 3, **change}]}
        verdict = judge(signal, changed, *others)
        assert verdict.word == "doubtful" and verdict.reasons[0].startswith("experiment 3: ")
    iced = {**e, "ice_rings": [{"excess": 0.2}]}
    assert judge(signal, {**integrated, "experiments": [iced]}, *others).limits == ("ice",)
    twin = {**e, "unpredicted_peaks": {**e["unpredicted_peaks"], "pixels": 0.02}}
    assert judge(signal, {**integrated, "experiments": [twin]}, *others).limits == ("other crystals",)


def test_what_limits_a_map(result):
    """Each limit by itself, in the records of a good run."""
    folder, _ = result
    names = ("integrated", "scaled", "merged")
    integrated, scaled, merged = (json.loads((folder / f"diffuse_{name}.json").read_text()) for name in names)
    signal = signal_of(read_map(folder / "diffuse_merged.nxs"))
    noisy = replace(signal, cc_half=0.4, cc_smooth=0.4)

    def around(share: float) -> dict:
        found = {"method": "separation", "details": {"share_around": share}}
        return {**scaled, "absolute_scale": {"estimates": [found]}}

    def limits(found=signal, scaled=scaled, **changes) -> list:
        return [limit.split(" (")[0] for limit in judge(found, integrated, scaled, {**merged, **changes}).limits]

    assert limits() == limits(scaled=around(0.6)) == []
    assert limits(noisy, {**scaled, "absolute_scale": None}) == limits(noisy, around(0.4)) == ["counts"]
    assert limits(noisy, around(0.6)) == ["counts", "background"]
    assert limits(scaled={**scaled, "scale_error": {"rms": 0.04, "sweeps": [0.04]}}) == ["scale factors"]
    assert limits(replace(signal, cc_smooth=signal.cc_half + 0.4)) == ["errors that are smooth in direction"]
    sparse = {"overall": {**merged["statistics"]["overall"], "completeness": 0.7}}
    assert limits(statistics={**merged["statistics"], **sparse}) == ["completeness"]


def test_the_same_numbers_as_the_single_programs(result, good, tmp_path, monkeypatch):
    folder, record = result
    monkeypatch.chdir(tmp_path)
    grid = "grid.subdivide=" + ",".join(map(str, record["subdivide"]))
    integrate.run([*files(good), "d_min=3.2", grid, "nproc=1"])
    options = ["refinement.max_observations=30000", f"absolute_scale.model={PDB}", "nproc=1"]
    scale.run(["diffuse_integrated.h5", *options])
    merge.run(["diffuse_scaled.h5"])
    for name, group in (
        ("diffuse_integrated.h5", "observations"),
        ("diffuse_scaled.h5", "observations"),
        ("diffuse_merged.nxs", "entry/unique"),
    ):
        with h5py.File(name) as own, h5py.File(folder / name) as other:
            assert set(own[group]) == set(other[group])
            for column in own[group]:
                if isinstance(own[group][column], h5py.Dataset):
                    np.testing.assert_array_equal(own[group][column][()], other[group][column][()], column)


def test_a_second_run_repeats_nothing_and_a_changed_one_what_follows(good, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    first = processed(*files(good))
    times = {p: p.stat().st_mtime_ns for p in Path().glob("diffuse_*")}
    second = processed(*files(good))
    assert [step["repeated"] for step in second["steps"]] == [False] * 4
    assert times == {p: p.stat().st_mtime_ns for p in Path().glob("diffuse_*")}
    own = {"command_line", "steps", "parameters"}
    assert {k: v for k, v in first.items() if k not in own} == {k: v for k, v in second.items() if k not in own}

    pytest.importorskip("distributed", reason="NO WORKERS WITHOUT WORK NOT TESTED: install dask, distributed")
    nowhere = ["executor=dask", "dask.scheduler=tcp://127.0.0.1:1", "dask.timeout=1"]
    again = processed(*files(good), *nowhere)  # nothing to do: nobody looks for workers
    assert [step["repeated"] for step in again["steps"]] == [False] * 4

    third = processed(*files(good), "merge.half_sets=frame")
    assert [step["repeated"] for step in third["steps"]] == [False, False, False, True]
    assert third["steps"][3]["why"] == "merge changed"

    Path("diffuse_scaled.h5").unlink()
    fourth = processed(*files(good), "merge.half_sets=frame")
    assert [step["repeated"] for step in fourth["steps"]] == [False, False, True, True]
    assert fourth["steps"][2]["why"] == "diffuse_scaled.h5 is gone"
    assert "diffuse_scaled.h5 changed" in fourth["steps"][3]["why"]


def test_two_runs_in_one_folder_do_not_mix(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holder = (
        "import sys, time\nfrom dials_diffuse.pipeline.state import locked_state\n"
        "with locked_state('.'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert other.stdout.readline() == "held\n"
        done = subprocess.run(
            [sys.executable, "-m", "dials_diffuse.cli.process", *files(good)], capture_output=True, text=True
        )
        assert done.returncode == 1 and f"process {other.pid} on" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and "output.prefix" in done.stderr
    finally:
        other.kill()  # as a batch system may: nothing has to be cleaned up
        other.wait()
        other.stdout.close()
    assert processed(*files(good))["verdict"] == "good"


def test_no_diffuse_scattering_is_none_and_no_error(good, tmp_path, monkeypatch):
    """Counts are high and the background is steep: what half sets share of these is no signal."""
    images = simulated(tmp_path / "images", "diffuse=False", "output.truth=None")
    monkeypatch.chdir(tmp_path)
    record = processed(*files(images), f"pdb={PDB}")
    assert record["verdict"] == "none" and record["fit"] is None and record["d_min"] is None
    assert abs(record["signal"]["cc_half"]) < 0.04


def test_little_dose_is_weak_and_limited_by_counts(tmp_path, monkeypatch):
    images = simulated(tmp_path / "images", "source.flux=2e11", "output.truth=None")
    monkeypatch.chdir(tmp_path)
    record = processed(*files(images))
    assert record["verdict"] == "weak" and "counts" in record["limits"]


def changed(good: Path, folder: Path, change) -> list:
    """Copies of the models with a change; the images stay where they are."""
    experiments = ExperimentList.from_file(str(good / "simulated.expt"), check_format=False)
    change(experiments[0])
    experiments.as_file(str(folder / "changed.expt"))
    return [str(folder / "changed.expt"), str(good / "simulated.refl")]


def shift_beam(experiment) -> None:
    for panel in experiment.detector:
        fast, slow, origin = (matrix.col(x) for x in (panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin()))
        panel.set_frame(fast, slow, origin + 1.5 * panel.get_pixel_size()[0] * fast)  # spots are 3.7 apart


def turn_crystal(experiment) -> None:
    turn = matrix.col((0.3, 0.5, 0.8)).normalize().axis_and_angle_as_r3_rotation_matrix(10, deg=True)
    experiment.crystal.set_U((turn * matrix.sqr(experiment.crystal.get_U())).elems)


@pytest.mark.parametrize(
    "change, verdict, words",
    [
        (shift_beam, "doubtful", "the beam centre seems to be off by +1.5 pixels along the fast"),
        (turn_crystal, "wrong", "is the orientation that of this crystal"),
    ],
)
def test_models_that_are_not_those_of_the_images_are_doubtful(
    good, tmp_path, monkeypatch, capsys, change, verdict, words
):
    monkeypatch.chdir(tmp_path)
    models = changed(good, tmp_path, change)
    record = processed(*models, "grid.subdivide=1,1,1")
    assert record["verdict"] == "doubtful" and words in record["reasons"][0]
    assert record["reasons"][0].startswith("experiment 0: ") and record["peaks"][0]["verdict"] == verdict
    assert any(words in warning for warning in record["warnings"])
    if verdict == "wrong":  # an error for those who want it
        fails(run, [*models, *SHORT, "grid.subdivide=1,1,1", "integrate.geometry.check=error"], capsys, words=[words])


def test_two_crystals_of_different_size(good, tmp_path, monkeypatch):
    small = simulated(tmp_path / "small", "crystal.thickness=0.08", "seed=5", "output.truth=None")
    experiments = ExperimentList.from_file(str(small / "simulated.expt"), check_format=False)
    table = flex.reflection_table.from_file(str(small / "simulated.refl"))
    experiments[0].identifier = table.experiment_identifiers()[0] = "small"
    experiments.as_file(str(small / "simulated.expt"))
    table.as_file(str(small / "simulated.refl"))
    monkeypatch.chdir(tmp_path)
    record = processed(*files(good), *files(small))
    assert record["verdict"] == "good" and record["n_images_used"] == 60
    assert [(peaks["experiment"], peaks["verdict"]) for peaks in record["peaks"]] == [(0, "good"), (1, "good")]


def test_a_folder_of_xia2_whose_images_have_moved(good, tmp_path, monkeypatch):
    data = tmp_path / "xia2" / "DataFiles"
    data.mkdir(parents=True)
    text = (good / "simulated.expt").read_text()
    (data / "AUTOMATIC_DEFAULT_scaled.expt").write_text(text.replace(str(good), "/gone/visit/images"))
    shutil.copy(good / "simulated.refl", data / "AUTOMATIC_DEFAULT_scaled.refl")
    settled = {
        "_crystals": {"DEFAULT": {"_scaler": {"_scalr_likely_spacegroups": ["P43212"], "_scalr_cell": [78.5] * 6}}}
    }
    (tmp_path / "xia2" / "xia2.json").write_text(json.dumps(settled))
    monkeypatch.chdir(tmp_path)
    message = fails_to_find(tmp_path / "xia2")
    assert "image not found" in message
    record = processed(tmp_path / "xia2", f"images.root={good}", "grid.subdivide=1,1,1")
    assert record["verdict"] == "good"
    assert record["xia2"] == {"folder": str(tmp_path / "xia2"), "space_group": "P43212", "unit_cell": [78.5] * 6}
    assert any("/gone/visit/images" in warning and str(good) in warning for warning in record["warnings"])
    assert not any("settled on" in warning for warning in record["warnings"])
    for path, group, told in (("xia2.json", "P422", False), ("xia2.json", "P4", True), ("xia2.json", "none", False)):
        settled["_crystals"]["DEFAULT"]["_scaler"]["_scalr_likely_spacegroups"] = [group]
        (tmp_path / "xia2" / path).write_text(json.dumps(settled))
        text = other_symmetry(find_sources([str(tmp_path / "xia2")]), sgtbx.space_group_info("P43212").group())
        assert ("xia2 settled on P4, " in text) == told and bool(text) == told


def fails_to_find(folder) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dials_diffuse.cli.process", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_folder_of_xia2_multiplex(good, tmp_path):
    """scaled.expt and scaled.refl of all sweeps, beside those of clusters and of the steps before."""
    both = ExperimentList.from_file(str(good / "simulated.expt"), check_format=False)
    for name in ("scaled", "2_scaled", "symmetrized"):
        both.as_file(str(tmp_path / f"{name}.expt"))
        shutil.copy(good / "simulated.refl", tmp_path / f"{name}.refl")
    (tmp_path / "xia2.multiplex.json").write_text("{}")
    sources = find_sources([str(tmp_path)])
    assert sources.files == (str(tmp_path / "scaled.expt"), str(tmp_path / "scaled.refl")) and sources.xia2 == {}
    assert len(load_input(sources.files).experiments) == len(both)


def test_images_that_moved_with_their_models_are_found(good, tmp_path, monkeypatch):
    moved = tmp_path / "new" / "place"
    shutil.copytree(good, moved / "images")
    (moved / "work" / "run").mkdir(parents=True)
    text = (good / "simulated.expt").read_text()
    (moved / "work" / "run" / "simulated.expt").write_text(text.replace(str(good), "/old/place/images"))
    monkeypatch.chdir(tmp_path)
    integrate.run([str(moved / "work" / "run" / "simulated.expt"), "d_min=6", "grid.subdivide=1,1,1", "nproc=1"])
    assert json.loads(Path("diffuse_integrated.json").read_text())["n_images_used"] == 30


def test_a_broken_image_is_one_line(good, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "images"
    shutil.copytree(good, broken)
    image = broken / "simulated_1_00007.cbf"
    image.write_bytes(image.read_bytes()[:3000])
    text = (good / "simulated.expt").read_text()
    (broken / "simulated.expt").write_text(text.replace(str(good), str(broken)))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(SystemExit) as stopped:
        run([*files(broken), *SHORT, "grid.subdivide=1,1,1"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "simulated_1_00007.cbf" in error[0] and "exclude_images" in error[0]
    assert not Path("dials.diffuse_process.json").exists() and not Path("diffuse_integrated.h5").exists()
    record = processed(*files(broken), "grid.subdivide=1,1,1", "exclude_images=7:7")
    assert record["verdict"] == "good" and record["n_images_used"] == 29


@pytest.mark.parametrize(
    "args, words",
    [
        (["absent"], ["absent", "no such file"]),
        (["empty"], ["empty", "no results of xia2 or DIALS"]),
        (["simulated.refl"], ["simulated.refl", "no .expt file"]),
        (["output.prefix=a/b", "empty"], ["output.prefix=a/b", "output.directory"]),
        (["output.directory=simulated.refl", "empty"], ["output.directory=simulated.refl", "no folder"]),
    ],
)
def test_user_errors(good, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    shutil.copy(good / "simulated.refl", "simulated.refl")
    fails(run, args, capsys, words=words)


def test_a_record_that_breaks_the_schema_is_not_written(result):
    _, record = result
    check_record(record)
    for key, value in (("verdict", "fine"), ("unit_cell", [1, 2]), ("d_min", "2"), ("outputs", [{"path": "a"}])):
        with pytest.raises(Exception, match=key):
            check_record({**record, key: value})


def test_voxels_for_which_there_is_no_memory(good, monkeypatch):
    data = load_input(files(good))
    options = list(data.experiments), [data.reflections], 3.2
    free, _ = choose_subdivision(*options)
    needed = memory_needed(free, options[0], 3.2)
    assert max(free) > 1 and memory_needed((1, 1, 1), options[0], 3.2) < needed
    monkeypatch.setattr(choices, "total_memory", lambda: needed - 1)
    fewer, choice = choose_subdivision(*options)
    assert max(fewer) < max(free) and "GB of memory" in choice.reason
    assert memory_needed(fewer, options[0], 3.2) < needed


def test_flags_of_the_reflections_do_not_matter(good, tmp_path, monkeypatch):
    """Without a table the program decides from models and images alone."""
    monkeypatch.chdir(tmp_path)
    table = flex.reflection_table.from_file(str(good / "simulated.refl"))
    assert len(table)
    record = processed(str(good / "simulated.expt"), "grid.subdivide=1,1,1")
    assert record["verdict"] == "good" and record["absolute_scale"] is None
    assert os.listdir(tmp_path)


def test_a_space_group_that_is_too_high_is_doubtful(tmp_path, monkeypatch):
    """A crystal in P4₁ whose models say P4₁2₁2: mates under the two-folds differ."""
    images = tmp_path / "images"
    images.mkdir()
    structure = random_structure("P 41", (30.0, 30.0, 26.0, 90.0, 90.0, 90.0), "CNOCS" * 8, radius=9.0)
    symmetry = crystal.symmetry(unit_cell=structure.unit_cell, space_group_symbol="P 41")
    (images / "p41.pdb").write_text(structure.hierarchy.as_pdb_string(crystal_symmetry=symmetry))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images)
        model = ["p41.pdb", "model=rigid_body", "rigid_body.sigma=0.5"]
        # in so small a cell Bragg spots are a thousand times brighter than what is between them
        simulate.run([*model, *SIMULATION[2:], "output.truth=None", "spots.mosaicity=0.04", "spots.spot_size=0.1"])

    def raise_symmetry(experiment) -> None:
        experiment.crystal.set_space_group(sgtbx.space_group_info("P 41 21 2").group())

    monkeypatch.chdir(tmp_path)
    options = ["integrate.mask.bragg.n_sigma=4.5", "grid.subdivide=3,3,3"]
    record = processed(*changed(images, tmp_path, raise_symmetry), *options)
    assert record["verdict"] == "doubtful" and "space group is too high" in record["reasons"][0]
    assert "4/m" in record["reasons"][0] and "wrong symmetry" in record["limits"]
    right = processed(*files(images), *options, folder="right")
    assert right["verdict"] in ("good", "weak")
