"""dials.diffuse_merge as a user meets it: files, exit codes, one line for what went wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.builders import (
    PROVENANCE,
    all_voxels,
    damage_chunk,
    observation_rows,
    small_grid,
    true_intensity,
    write_rows,
)
from helpers.checkout import environment
from helpers.pages import Page
from helpers.programs import fails

import dials_diffuse
from dials_diffuse.cli.merge import parameters_from_phil, phil_scope, run
from dials_diffuse.files.nexus import read_map, read_provenance, write_map
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.merging.compare import compare_maps
from dials_diffuse.merging.laue import MergeParameters
from dials_diffuse.merging.statistics import COLUMNS

GRID = small_grid("P 41", (12, 12, 18, 90, 90, 90))


@pytest.fixture
def observations(tmp_path, monkeypatch):
    """A folder with one observation file, made the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    index = np.tile(all_voxels(GRID), (2, 1))
    rows = observation_rows(GRID, index, true_intensity(GRID, index), np.random.default_rng(0), scale=30)
    return write_rows(Path("diffuse_integrated.h5"), GRID, rows)


def test_default_run(observations):
    run([str(observations)])
    for name in ("diffuse_merged.nxs", "diffuse_merged.json", "diffuse_merged.png", "diffuse_merged.html"):
        assert Path(name).stat().st_size > 0
    assert {p.name for p in Path().iterdir()} == {
        "diffuse_integrated.h5",
        "diffuse_merged.nxs",
        "diffuse_merged.json",
        "diffuse_merged.png",
        "diffuse_merged.html",
        "dials.diffuse_merge.log",
    }
    log = Path("dials.diffuse_merge.log").read_text()
    assert "memory up to about" in log and "CC1/2" in log and "Saving the map to diffuse_merged.nxs" in log
    assert log.index("memory up to about") < log.index("CC1/2")


def test_json(observations):
    run([str(observations), "half_sets=frame", "statistics.n_shells=7", "statistics.d_max=9"])
    content = json.loads(Path("diffuse_merged.json").read_text())
    head = "schema version dials_version command_line inputs parameters modified outputs warnings"
    assert list(content)[:9] == head.split()
    assert content["command_line"].startswith("dials.diffuse_merge diffuse_integrated.h5 half_sets=frame")
    assert content["schema"] == "dials.diffuse_merge/1" and content["version"] == dials_diffuse.__version__
    assert content["inputs"] == ["diffuse_integrated.h5"] and content["space_group"] == "P 41"
    assert content["unit_cell"] == pytest.approx([12, 12, 18, 90, 90, 90]) and content["d_min"] == 3.0
    assert "half_sets = random *frame friedel" in content["parameters"] and content["warnings"] == []
    changed = [line.strip() for line in content["modified"].splitlines() if "=" in line]
    assert changed == ["half_sets = random *frame friedel", "n_shells = 7", "d_max = 9"]
    assert Page("diffuse_merged.html").pre == [content["modified"]]
    assert len(content["statistics"]["shells"]) == 7
    away = content["statistics"]["away_from_bragg"]
    bragg = np.all(read_map("diffuse_merged.nxs").index % 2 == 0, axis=1)
    assert [row["n"] < shell["n"] for row, shell in zip(away, content["statistics"]["shells"])] == [True] * 7
    s = GRID.s_magnitude(read_map("diffuse_merged.nxs").index[~bragg])
    assert sum(row["n"] for row in away) == np.count_nonzero(s >= 1 / 9)
    for row in (*content["statistics"]["shells"], content["statistics"]["overall"]):
        assert tuple(row) == COLUMNS
    assert content["statistics"]["overall"]["completeness"] == 1
    assert {item["path"] for item in content["outputs"]} == {
        "diffuse_merged.nxs",
        "diffuse_merged.png",
        "diffuse_merged.html",
        "diffuse_merged.json",
    }


def test_map_remembers_where_it_comes_from(observations):
    run([str(observations), "seed=7", "output.volume=False", "output.png=None", "output.json=None"])
    provenance = read_provenance("diffuse_merged.nxs")
    assert provenance.program == "dials.diffuse_merge" and provenance.inputs == ("diffuse_integrated.h5",)
    assert provenance.identifiers == ("id-1",) and "seed = 7" in provenance.phil
    assert "seed = 7" in provenance.modified and "estimator" not in provenance.modified
    assert not Path("diffuse_merged.png").exists() and not Path("diffuse_merged.json").exists()
    data = read_map("diffuse_merged.nxs")
    assert tuple(data.statistics) and set(data.statistics) == set(COLUMNS) == set(data.overall)
    with h5py.File("diffuse_merged.nxs") as handle:
        assert "map" not in handle["entry"]


def test_two_runs_are_the_same(observations):
    run([str(observations), "output.map=a.nxs"])
    run([str(observations), "output.map=b.nxs"])
    for name in ("intensity", "half_a", "half_b"):
        np.testing.assert_array_equal(getattr(read_map("a.nxs"), name), getattr(read_map("b.nxs"), name))


def test_unknown_statistics_are_null(observations):
    index = all_voxels(GRID)
    index = index[index[:, 2] > 0]
    p1 = small_grid("P 1", GRID.unit_cell)
    rows = observation_rows(p1, index, true_intensity(GRID, index), np.random.default_rng(0))
    write_rows("half.h5", p1, rows)
    run(["half.h5"])
    content = json.loads(Path("diffuse_merged.json").read_text())
    assert content["statistics"]["overall"]["cc_friedel"] is None
    assert content["statistics"]["overall"]["cc_half"] is None
    assert "half sets" in content["warnings"][0]


def test_phil_becomes_parameters():
    assert parameters_from_phil(phil_scope.extract()) == MergeParameters()
    from libtbx.phil import parse

    text = "space_group=P4\nfriedel=False\nhalf_sets=frame\nseed=3\nestimator=mean\n"
    text += "statistics.n_shells=5\nstatistics.d_max=9\nstatistics.d_min=2"
    params = phil_scope.fetch(parse(text)).extract()
    assert parameters_from_phil(params) == MergeParameters("P4", False, "frame", 3, "mean", 5, 9.0, 2.0)


def test_help(capsys):
    fails(run, ["-h"], capsys, 0)


def test_no_input_is_a_bad_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no input files" in fails(run, [], capsys, 2)


@pytest.mark.parametrize("word", ["half_sets=thirds", "seed=some", "subdivide=3", "--fast", "statistics.n_shells=0"])
def test_bad_command_lines(observations, capsys, word):
    fails(run, [observations, word], capsys, 2)
    assert not list(Path().glob("*.nxs"))


@pytest.mark.parametrize(
    "words, expected",
    [
        (["space_group=P999"], "space_group=P999"),
        (["space_group=P6"], "does not fit the unit cell"),
        (["half_sets=friedel", "friedel=False"], "needs friedel=True"),
        (["statistics.d_min=5", "statistics.d_max=4"], "need 0 < d_min < d_max"),
        (["output.map=nowhere/map.nxs"], "nowhere"),
        (["output.json=nowhere/a.json"], "nowhere"),
        (["output.png=nowhere/a.png"], "nowhere"),
        (["output.log=nowhere/a.log"], "nowhere"),
        (["missing.h5"], "missing.h5: no such file"),
        (["statistics.d_max=1"], "statistics.d_max=1"),
        (["statistics.d_min=200"], "reaches from 100 to 3"),
        (["statistics.d_max=3"], "statistics.d_max=3"),
        (["statistics.d_max=nan"], "need 0 < d_min < d_max"),
        (["statistics.n_shells=None"], "statistics.n_shells=None"),
        (["seed=None"], "seed=None"),
        (["friedel=None"], "friedel=None"),
        (["diffuse_integrated.h5"], "diffuse_integrated.h5: given twice"),
        (["../here/diffuse_integrated.h5"], "../here/diffuse_integrated.h5: given twice (as diffuse_integrated.h5"),
        (["link.h5"], "link.h5: given twice"),
    ],
)
def test_user_errors(observations, capsys, words, expected):
    Path("link.h5").symlink_to(observations)
    assert expected in fails(run, [observations, *words], capsys)
    assert not list(Path().glob("*.nxs"))


def test_inputs_that_are_no_observations(observations, capsys):
    Path("text.h5").write_text("h k l I\n")
    assert "text.h5: not a readable HDF5 file" in fails(run, ["text.h5"], capsys)
    with h5py.File("other.h5", "w") as handle:
        handle.attrs["schema"] = "something/1"
    assert "other.h5: schema is something/1" in fails(run, ["other.h5"], capsys)
    shutil.copy(observations, "damaged.h5")
    with h5py.File("damaged.h5", "r+") as handle:
        del handle["grid"]
    assert "damaged.h5: damaged" in fails(run, [observations, "damaged.h5"], capsys)
    shutil.copy(observations, "chunk.h5")
    damage_chunk("chunk.h5", "counts")
    assert "chunk.h5: damaged" in fails(run, [observations, "chunk.h5"], capsys)
    write_rows("empty.h5", GRID, observation_rows(GRID, np.zeros((0, 3), int), np.zeros(0), np.random.default_rng(0)))
    assert "empty.h5: holds no observations" in fails(run, [observations, "empty.h5"], capsys)
    assert not Path("diffuse_merged.nxs").exists()


LARGE = small_grid("P 41", (30, 30, 40, 90, 90, 90))
SCALE = 50.0


def write_truth(path, grid, friedel=True, keep=slice(None)) -> Path:
    """A map of the intensity that the observations were drawn from."""
    index = unique_voxels(all_voxels(grid), grid.space_group, friedel).index[keep]
    intensity, ones = true_intensity(grid, index), np.ones(len(index))
    data = DiffuseMap(grid, friedel, index, intensity, 0 * ones, ones.astype(np.int32), units="electron^2")
    write_map(path, data, PROVENANCE, volume=False)
    return Path(path)


@pytest.fixture
def with_truth(tmp_path, monkeypatch):
    """A folder with observations ``data.h5`` on a larger grid, and ``truth.nxs``."""
    monkeypatch.chdir(tmp_path)
    index = all_voxels(LARGE)
    rows = observation_rows(LARGE, index, true_intensity(LARGE, index), np.random.default_rng(0), scale=SCALE)
    write_rows("data.h5", LARGE, rows)
    write_truth("truth.nxs", LARGE)
    return tmp_path


def test_reference(with_truth):
    options = ["output.volume=False", "statistics.n_shells=4", "statistics.d_max=20", "statistics.d_min=4"]
    run(["data.h5", *options, "reference=truth.nxs"])
    content = json.loads(Path("diffuse_merged.json").read_text())["comparison"]
    assert content["reference"] == "truth.nxs" and content["n_bins"] == 400
    expected = compare_maps(read_map("diffuse_merged.nxs"), read_map("truth.nxs"), 20, 4, n_shells=4)
    overall, shells = content["overall"], content["shells"]
    assert (overall["n"], overall["cc"], overall["slope"]) == (expected.n, expected.cc, expected.slope)
    assert [(s["n"], s["cc"], s["slope"]) for s in shells] == [(s["n"], s["cc"], s["slope"]) for s in expected.shells]
    assert overall["cc"] > 0.9 and overall["slope"] == pytest.approx(SCALE, rel=0.05)
    assert sum(s["n"] for s in shells) == overall["n"]
    assert 4 <= overall["d_min"] < overall["d_max"] <= 20
    log = Path("dials.diffuse_merge.log").read_text()
    assert "Agreement with truth.nxs" in log and f"{overall['n']:9d}{overall['cc']:8.3f}{overall['slope']:11.4g}" in log


def test_reference_changes_only_what_it_is_for(with_truth):
    """The map and its statistics are the same with and without; the picture is another one."""
    run(["data.h5", "output.volume=False", "output.map=a.nxs", "output.json=a.json", "output.png=a.png"])
    names = ["output.map=b.nxs", "output.json=b.json", "output.png=b.png"]
    run(["data.h5", "output.volume=False", *names, "reference=truth.nxs"])
    np.testing.assert_array_equal(read_map("a.nxs").intensity, read_map("b.nxs").intensity)
    a, b = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert a["statistics"] == b["statistics"] and "comparison" not in a
    image = pytest.importorskip("matplotlib.image")
    a, b = (image.imread(name) for name in ("a.png", "b.png"))
    assert np.any(a[: len(b)] != b[: len(a)])


@pytest.mark.parametrize(
    ("make", "words", "expected"),
    [
        (None, ["reference=nothing.nxs"], "nothing.nxs: no such file"),
        (None, ["reference=data.h5"], "data.h5: schema is dials_diffuse.observations/1"),
        ({"subdivide": (3, 3, 3)}, [], "grid.subdivide (2, 2, 2) and (3, 3, 3)"),
        ({"symbol": "P 4 21 2"}, [], "space group P 41 and P 4 21 2"),
        ({"cell": (34, 34, 40, 90, 90, 90)}, [], "its unit cell (34, 34, 40, 90, 90, 90)"),
        ({"friedel": False}, [], "friedel True and False"),
        ({"keep": slice(2)}, [], "share 2 voxels"),
    ],
    ids=["missing", "no-map", "subdivide", "space-group", "cell", "friedel", "nothing-in-common"],
)
def test_references_that_do_not_fit(with_truth, capsys, make, words, expected):
    if make is not None:
        grid = {"symbol": "P 41", "cell": LARGE.unit_cell, **make}
        rest = {name: grid.pop(name) for name in ("friedel", "keep") if name in grid}
        write_truth("other.nxs", small_grid(**grid), **rest)
        words = ["reference=other.nxs"]
    message = fails(run, ["data.h5", *words], capsys)
    assert expected in message and words[0].split("=")[1] in message
    assert not Path("diffuse_merged.nxs").exists() and not Path("diffuse_merged.json").exists()


def test_full_disk(observations):
    """A limit on the size of files stands for a full disk: one line, exit code 1, nothing half-written."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from dials_diffuse.cli.merge import run;"
        "none = [f'output.{name}=None' for name in ('png', 'json', 'html')];"
        "run(['diffuse_integrated.h5', 'output.map=warm.nxs', *none]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "run(['diffuse_integrated.h5'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if "dials.diffuse_merge:" in line]
    assert len(errors) == 1 and "diffuse_merged.nxs" in errors[0] and "disk is full" in errors[0]
    assert "Traceback" not in done.stderr
    assert {p.name for p in Path().iterdir()} == {"diffuse_integrated.h5", "warm.nxs", "dials.diffuse_merge.log"}
