"""dials.diffuse_merge as a user meets it: files, exit codes, one line for what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import all_voxels, damage_chunk, observation_rows, small_grid, true_intensity, write_rows

import dials_diffuse
from dials_diffuse.cli.merge import parameters_from_phil, phil_scope, run
from dials_diffuse.maps.nexus import read_map, read_provenance
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


def fails(args, code, capsys) -> str:
    """Run, check the exit code, and return what was printed last on stderr."""
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in args])
    assert stopped.value.code == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    if code == 1:
        assert len(lines) == 1
    return lines[-1] if lines else ""


def test_default_run(observations):
    run([str(observations)])
    for name in ("diffuse_merged.nxs", "diffuse_merged.json", "diffuse_merged.png", "dials.diffuse_merge.log"):
        assert Path(name).stat().st_size > 0
    assert {p.name for p in Path().iterdir()} == {
        "diffuse_integrated.h5",
        "diffuse_merged.nxs",
        "diffuse_merged.json",
        "diffuse_merged.png",
        "dials.diffuse_merge.log",
    }
    log = Path("dials.diffuse_merge.log").read_text()
    assert "memory up to about" in log and "CC1/2" in log and "Saving the map to diffuse_merged.nxs" in log
    assert log.index("memory up to about") < log.index("CC1/2")


def test_json(observations):
    run([str(observations), "half_sets=frame", "statistics.n_shells=7", "statistics.d_max=9"])
    content = json.loads(Path("diffuse_merged.json").read_text())
    assert content["schema"] == "dials.diffuse_merge/1" and content["version"] == dials_diffuse.__version__
    assert content["inputs"] == ["diffuse_integrated.h5"] and content["space_group"] == "P 41"
    assert content["unit_cell"] == pytest.approx([12, 12, 18, 90, 90, 90]) and content["d_min"] == 3.0
    assert "half_sets = random *frame friedel" in content["parameters"] and content["warnings"] == []
    assert len(content["statistics"]["shells"]) == 7
    for row in (*content["statistics"]["shells"], content["statistics"]["overall"]):
        assert tuple(row) == COLUMNS
    assert content["statistics"]["overall"]["completeness"] == 1
    assert {item["path"] for item in content["outputs"]} == {
        "diffuse_merged.nxs",
        "diffuse_merged.png",
        "diffuse_merged.json",
    }


def test_map_remembers_where_it_comes_from(observations):
    run([str(observations), "seed=7", "output.volume=False", "output.png=None", "output.json=None"])
    provenance = read_provenance("diffuse_merged.nxs")
    assert provenance.program == "dials.diffuse_merge" and provenance.inputs == ("diffuse_integrated.h5",)
    assert provenance.identifiers == ("id-1",) and "seed = 7" in provenance.phil
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
    fails(["-h"], 0, capsys)


def test_no_input_is_a_bad_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no input files" in fails([], 2, capsys)


@pytest.mark.parametrize("word", ["half_sets=thirds", "seed=some", "subdivide=3", "--fast", "statistics.n_shells=0"])
def test_bad_command_lines(observations, capsys, word):
    fails([observations, word], 2, capsys)
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
    assert expected in fails([observations, *words], 1, capsys)
    assert not list(Path().glob("*.nxs"))


def test_inputs_that_are_no_observations(observations, capsys):
    Path("text.h5").write_text("h k l I\n")
    assert "text.h5: not a readable HDF5 file" in fails(["text.h5"], 1, capsys)
    with h5py.File("other.h5", "w") as handle:
        handle.attrs["schema"] = "something/1"
    assert "other.h5: schema is something/1" in fails(["other.h5"], 1, capsys)
    shutil.copy(observations, "damaged.h5")
    with h5py.File("damaged.h5", "r+") as handle:
        del handle["grid"]
    assert "damaged.h5: damaged" in fails([observations, "damaged.h5"], 1, capsys)
    shutil.copy(observations, "chunk.h5")
    damage_chunk("chunk.h5", "counts")
    assert "chunk.h5: damaged" in fails([observations, "chunk.h5"], 1, capsys)
    write_rows("empty.h5", GRID, observation_rows(GRID, np.zeros((0, 3), int), np.zeros(0), np.random.default_rng(0)))
    assert "empty.h5: holds no observations" in fails([observations, "empty.h5"], 1, capsys)
    assert not Path("diffuse_merged.nxs").exists()


def test_full_disk(observations):
    """A limit on the size of files stands for a full disk: one line, exit code 1, nothing half-written."""
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from dials_diffuse.cli.merge import run;"
        "run(['diffuse_integrated.h5', 'output.map=warm.nxs', 'output.png=None', 'output.json=None']);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "run(['diffuse_integrated.h5'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(dials_diffuse.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if "dials.diffuse_merge:" in line]
    assert len(errors) == 1 and "diffuse_merged.nxs" in errors[0] and "disk is full" in errors[0]
    assert "Traceback" not in done.stderr
    assert {p.name for p in Path().iterdir()} == {"diffuse_integrated.h5", "warm.nxs", "dials.diffuse_merge.log"}
