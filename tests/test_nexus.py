"""Map files: the rules of NeXus, what comes back, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.builders import MAP_GRID, PROVENANCE, all_voxels, edited, example_map
from helpers.checkout import environment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.nexus import read_map, read_provenance, read_volume, write_map
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import unique_voxels

GRID = MAP_GRID


@pytest.fixture(params=[True, False], ids=["friedel", "no friedel"])
def written(request, tmp_path):
    data = example_map(request.param)
    write_map(tmp_path / "map.nxs", data, PROVENANCE)
    return tmp_path / "map.nxs", data


def assert_same(a: DiffuseMap, b: DiffuseMap):
    assert (a.grid, a.friedel, a.half_sets, a.units) == (b.grid, b.friedel, b.half_sets, b.units)
    for name in ("index", "intensity", "sigma", "multiplicity", "half_a", "half_b"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("sums", "statistics", "overall"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=f"{name} {key}")


def test_comes_back_as_written(written):
    path, data = written
    assert_same(read_map(path), data)
    provenance = read_provenance(path)
    assert provenance == PROVENANCE


def test_command_line_is_kept(tmp_path):
    typed = replace(PROVENANCE, command_line="dials.test 'a b.h5' n=1")
    write_map(tmp_path / "map.nxs", example_map(), typed)
    assert read_provenance(tmp_path / "map.nxs") == typed
    with edited(tmp_path / "map.nxs") as handle:  # as the first versions wrote it
        del handle["entry/process/command_line"]
    assert read_provenance(tmp_path / "map.nxs") == PROVENANCE


def test_optional_parts_may_be_absent(tmp_path):
    data = example_map()
    bare = DiffuseMap(GRID, True, data.index, data.intensity, data.sigma, data.multiplicity, units="e2")
    write_map(tmp_path / "map.nxs", bare, PROVENANCE)
    back = read_map(tmp_path / "map.nxs")
    assert back.half_a is None and back.half_b is None and back.sums == {} and back.units == "e2"
    np.testing.assert_array_equal(back.intensity, data.intensity)


def test_volume_has_the_symmetry_and_the_axes(written):
    path, data = written
    volume = read_volume(path)
    assert volume.shape == GRID.shape and volume.dtype == np.float32
    index = all_voxels(GRID)
    voxels = unique_voxels(index, GRID.space_group, data.friedel)
    expected = np.append(np.nan, data.intensity)[voxels.inverse].astype(np.float32)  # the first one is not measured
    np.testing.assert_allclose(volume[tuple((index + GRID.extent).T)], expected, rtol=1e-6)
    assert np.isfinite(volume).sum() == np.isfinite(expected).sum()
    assert read_volume(path, "multiplicity").sum() == np.append(0, data.multiplicity)[voxels.inverse].sum()
    with h5py.File(path) as handle:
        h, k, l = (handle[f"entry/map/{name}"][()] for name in "hkl")
    i = tuple(data.index[10] + GRID.extent)
    np.testing.assert_allclose((h[i[0]], k[i[1]], l[i[2]]), data.index[10] / GRID.subdivide)
    assert volume[i] == np.float32(data.intensity[10])


def test_layout_of_the_contract(written):
    path, data = written
    with h5py.File(path) as handle:
        assert handle.attrs["creator"] == "dials_diffuse" and handle.attrs["schema"] == "dials_diffuse.map/1"
        assert handle.attrs["default"] == "entry" and handle["entry"].attrs["default"] == "map"
        classes = {
            "/": "NXroot",
            "entry": "NXentry",
            "entry/map": "NXdata",
            "entry/sample": "NXsample",
            "entry/process": "NXprocess",
            "entry/grid": "NXcollection",
            "entry/unique": "NXcollection",
            "entry/statistics": "NXcollection",
        }
        assert {name: handle[name].attrs["NX_class"] for name in classes} == classes
        nxdata = handle["entry/map"]
        assert nxdata.attrs["signal"] == "intensity" and list(nxdata.attrs["axes"]) == ["h", "k", "l"]
        assert nxdata["intensity"].dtype == np.float32 and nxdata["h"].dtype == np.float64
        assert nxdata["intensity_errors"].shape == nxdata["multiplicity"].shape == GRID.shape
        assert nxdata["intensity"].attrs["units"] == data.units and nxdata["h"].attrs["units"] == "r.l.u."
        assert handle["entry/unique/index"].dtype == np.int32
        assert {"intensity", "sigma", "multiplicity", "half_a", "half_b"} < set(handle["entry/unique"])
        sample = handle["entry/sample"]
        np.testing.assert_allclose(sample["unit_cell"], GRID.unit_cell)
        assert sample["space_group"].asstr()[()] == "P 31 2 1" and sample["laue_group"].asstr()[()] == "P -3 m 1"
        assert sample["hall_symbol"].asstr()[()] == GRID.hall_symbol
        assert list(handle["entry/grid/subdivide"]) == [2, 2, 3] and handle["entry/grid/d_min"][()] == 3.0
        assert handle["entry/process/program"].asstr()[()] == "tests"


def test_without_volume(tmp_path):
    data = example_map()
    write_map(tmp_path / "map.nxs", data, PROVENANCE, volume=False)
    with h5py.File(tmp_path / "map.nxs") as handle:
        assert "map" not in handle["entry"] and "default" not in handle["entry"].attrs
    assert_same(read_map(tmp_path / "map.nxs"), data)
    write_map(tmp_path / "full.nxs", data, PROVENANCE)
    for name in ("intensity", "intensity_errors", "multiplicity"):
        np.testing.assert_array_equal(read_volume(tmp_path / "map.nxs", name), read_volume(tmp_path / "full.nxs", name))


def test_silx_finds_the_volume(written):
    nxdata = pytest.importorskip("silx.io.nxdata", reason="silx is not installed")
    path, _ = written
    with h5py.File(path) as handle:
        found = nxdata.get_default(handle)
        assert found is not None and found.is_valid and found.signal_name == "intensity"
        assert found.signal.shape == GRID.shape and found.errors is not None
        assert [axis.shape[0] for axis in found.axes] == list(GRID.shape)
        np.testing.assert_allclose(found.axes[2], GRID.axes()[2])


def test_refuses_what_is_no_map(tmp_path):
    path = tmp_path / "other.nxs"
    with h5py.File(path, "w") as handle:
        handle.attrs["schema"] = "dials_diffuse.map/99"
    with pytest.raises(DiffuseError, match=r"other\.nxs: schema is dials_diffuse\.map/99"):
        read_map(path)
    with h5py.File(path, "w") as handle:
        handle.attrs["schema"] = "dials_diffuse.map/1"
    with pytest.raises(DiffuseError, match=r"other\.nxs: incomplete"):
        read_map(path)
    path.write_text("h k l I")
    with pytest.raises(DiffuseError, match="not a readable HDF5 file"):
        read_volume(path)
    with pytest.raises(DiffuseError, match="no volume named phase"):
        read_volume(path, "phase")
    with pytest.raises(DiffuseError, match="no such file"):
        read_provenance(tmp_path / "missing.nxs")


def test_missing_folder(tmp_path):
    with pytest.raises(DiffuseError, match=r"folder .*nowhere does not exist"):
        write_map(tmp_path / "nowhere" / "map.nxs", example_map(), PROVENANCE)


@pytest.mark.parametrize("limit", [3000, 20_000, 60_000])
def test_full_disk_leaves_nothing_behind(tmp_path, limit):
    """A limit on the size of files stands for a full disk, at several points of writing."""
    script = f"""
        import resource, signal, sys
        from dials_diffuse.errors import DiffuseError
        from dials_diffuse.files.nexus import write_map
        from helpers.builders import PROVENANCE, example_map
        data = example_map()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            write_map("map.nxs", data, PROVENANCE)
        except DiffuseError as error:
            print(error)
            sys.exit(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment(Path(__file__).parent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "map.nxs" in done.stdout and "disk is full" in done.stdout and len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("intensity", np.nan),
        ("intensity", np.inf),
        ("sigma", np.nan),
        ("sigma", -1.0),
        ("sigma", 0.0),
        ("half_a", -np.inf),
        ("multiplicity", -2),
    ],
)
def test_impossible_values_are_named_by_file_column_and_row(tmp_path, name, value):
    path = tmp_path / "a.nxs"
    write_map(path, example_map(), PROVENANCE)
    with h5py.File(path, "a") as handle:
        handle[f"entry/unique/{name}"][5] = value
    with pytest.raises(DiffuseError, match=rf"a\.nxs: .*unique.*{name}.*row 5\b"):
        read_map(path)


def test_voxels_that_were_not_measured_may_be_unknown(tmp_path):
    path = tmp_path / "a.nxs"
    write_map(path, example_map(), PROVENANCE)
    with h5py.File(path, "a") as handle:
        handle["entry/unique/multiplicity"][5] = 0
        handle["entry/unique/intensity"][5] = np.nan
        handle["entry/unique/sigma"][5] = 0
    assert np.isnan(read_map(path).intensity[5])
