"""dials.diffuse_show says what is in a file, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid, true_intensity, write_rows
from helpers.exports import measured_map
from helpers.programs import fails

from dials_diffuse.cli.export import run as export
from dials_diffuse.cli.merge import run as merge
from dials_diffuse.cli.show import run
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.map import DiffuseMap


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A file of observations, the map and the record that dials.diffuse_merge makes of it."""
    monkeypatch.chdir(tmp_path)
    grid = small_grid("P 41")
    index = np.tile(all_voxels(grid), (2, 1))
    write_rows(
        "diffuse_integrated.h5",
        grid,
        observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(0)),
    )
    merge(["diffuse_integrated.h5", "statistics.n_shells=4", "output.png=None"])


def shown(capsys, *args):
    capsys.readouterr()
    run([str(arg) for arg in args])
    return capsys.readouterr().out


def as_json(capsys, *args):
    return json.loads(shown(capsys, "--json", *args), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_a_map(capsys):
    found, data = as_json(capsys, "diffuse_merged.nxs"), read_map("diffuse_merged.nxs")
    assert (found["kind"], found["schema"]) == ("map", "dials_diffuse.map/1")
    assert found["crystal"]["space_group"] == "P 41" and found["crystal"]["laue_group"] == "P 4/m"
    assert found["crystal"]["unit_cell"] == list(data.grid.unit_cell)
    assert found["grid"] == {"subdivide": [2, 2, 2], "shape": list(data.grid.shape), "d_max": 100.0, "d_min": 3.0}
    voxels = found["voxels"]
    assert voxels["unique"] == voxels["possible"] == len(data.index) and voxels["completeness"] == 1
    assert voxels["observations"] == data.multiplicity.sum() and voxels["volume"] is True
    assert found["intensity"]["mean"] == pytest.approx(data.intensity.mean())
    assert found["intensity"]["units"] == "a.u." and found["intensity"]["half_sets"] == "random"
    assert len(found["statistics"]["shells"]) == 4
    assert found["statistics"]["overall"]["cc_half"] == pytest.approx(data.overall["cc_half"])
    assert found["provenance"]["program"] == "dials.diffuse_merge"
    assert found["provenance"]["inputs"] == ["diffuse_integrated.h5"]
    assert "statistics" in found["provenance"]["parameters"]
    text = shown(capsys, "diffuse_merged.nxs")
    for word in ("P 41", "a.u.", "CC1/2", f"{len(data.index):,}", "dials.diffuse_fit diffuse_merged.nxs model.pdb"):
        assert word in text
    assert max(len(line) for line in text.splitlines()) < 150 and not any(
        line != line.rstrip() for line in text.splitlines()
    )


def test_the_map_of_a_model_and_more_columns(capsys):
    data = measured_map("trigonal")
    zero = np.zeros(len(data.index))
    model = DiffuseMap(data.grid, True, data.index, data.intensity, zero, zero.astype(np.int32), at_centres=True)
    save_map("model.nxs", model, PROVENANCE, False, {"fit": {"model": zero, "free": zero}})
    found = as_json(capsys, "model.nxs")
    assert found["columns"] == {"fit": ["free", "model"]} and found["voxels"]["volume"] is False
    assert "model" in found["intensity"]["of"] and "centres" in found["intensity"]["where"]
    assert found["statistics"] == {"overall": {}, "shells": []}
    assert "fit" in shown(capsys, "model.nxs")


def test_an_empty_map(capsys):
    data = measured_map("trigonal")
    none = np.zeros(0)
    save_map("empty.nxs", DiffuseMap(data.grid, True, data.index[:0], none, none, none.astype(np.int32)), PROVENANCE)
    found = as_json(capsys, "empty.nxs")
    assert found["voxels"]["completeness"] == 0 and found["intensity"]["mean"] is None
    assert "empty.nxs" in shown(capsys, "empty.nxs")


def test_observations(capsys):
    found = as_json(capsys, "diffuse_integrated.h5")
    assert found["kind"] == "observations" and found["observations"]["rows"] == 2 * len(all_voxels(small_grid("P 41")))
    assert found["observations"]["scaled"] is False and found["observations"]["bragg_reflections"] == 0
    (experiment,) = found["experiments"]
    assert experiment["identifier"] == "id-1" and experiment["image_range"] == [1, 10]
    assert found["next"][0] == "dials.diffuse_scale diffuse_integrated.h5"
    text = shown(capsys, "diffuse_integrated.h5")
    assert "id-1" in text and "dials.diffuse_scale diffuse_integrated.h5" in text


def test_a_record(capsys):
    found, record = as_json(capsys, "diffuse_merged.json"), json.loads(Path("diffuse_merged.json").read_text())
    assert found["kind"] == "record" and found["schema"] == record["schema"] == "dials.diffuse_merge/1"
    assert found["outputs"] == record["outputs"] and found["content"]["n_observations"] == record["n_observations"]
    assert "dials.diffuse_show diffuse_merged.nxs" in shown(capsys, "diffuse_merged.json")


def test_several_files(capsys):
    found = as_json(capsys, "diffuse_merged.nxs", "diffuse_merged.json")
    assert [item["kind"] for item in found] == ["map", "record"]
    assert shown(capsys, "diffuse_merged.nxs", "diffuse_merged.json").count("provenance") == 2


def test_it_leaves_no_file(capsys):
    before = sorted(Path().iterdir())
    shown(capsys, "diffuse_merged.nxs")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other.h5", ["other.h5: schema is none"]),
        ("cut.nxs", ["cut.nxs", "cut off"]),
        ("text.txt", ["text.txt: not of dials_diffuse"]),
        ("broken.json", ["broken.json: not JSON"]),
        ("other.json", ["other.json: not of dials_diffuse", "dials.show"]),
        ("map.mtz", ["map.mtz: not of dials_diffuse"]),
    ],
)
def test_what_it_does_not_know(capsys, name, words):
    h5py.File("other.h5", "w").close()
    Path("cut.nxs").write_bytes(Path("diffuse_merged.nxs").read_bytes()[:3000])
    Path("text.txt").write_text("some words")
    Path("broken.json").write_text("{")
    Path("other.json").write_text('{"__id__": "ExperimentList"}')
    if name == "map.mtz":
        export(["diffuse_merged.nxs", "format=mtz", "output.prefix=map"])
    fails(run, [name], capsys, 1, words)


def test_without_files(capsys):
    with pytest.raises(SystemExit) as stopped:
        run([])
    assert stopped.value.code == 2
