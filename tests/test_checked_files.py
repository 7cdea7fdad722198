"""The reader layer: files that were damaged, or made to mislead, are refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, edited, example_map, observation_rows, small_grid
from helpers.checkout import ROOT, environment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.columns import Column, from_json
from dials_diffuse.files.nexus import read_map, read_provenance, read_volume, write_map
from dials_diffuse.files.observations import (
    BRAGG_DTYPE,
    OBSERVATION_DTYPE,
    ExperimentSummary,
    ObservationFile,
    write_observations,
)

GRID = small_grid("P 1", (12, 12, 18, 90, 90, 90))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a map and an observation file."""
    folder = tmp_path_factory.mktemp("whole")
    write_map(folder / "map.nxs", example_map(), PROVENANCE)
    rows = observation_rows(GRID, all_voxels(GRID), np.ones(len(all_voxels(GRID))), np.random.default_rng(0))
    bragg = np.zeros(20, BRAGG_DTYPE)
    bragg["intensity"] = np.arange(20)
    experiment = ExperimentSummary("id-1", (1, 10), (0.0, 0.1), 10, 1.0, 1, (100, 100), tuple(range(9)))
    with write_observations(folder / "a.h5", GRID, [experiment], PROVENANCE) as writer:
        writer.append(rows)
        writer.append_bragg(bragg, np.ones(20))
    return folder


@pytest.fixture
def files(whole, tmp_path):
    for path in whole.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def read_all(path) -> list:
    """Everything that readers take out of a file."""
    if path.suffix == ".nxs":
        data = read_map(path)
        columns = [data.intensity, data.sigma, data.index, data.half_a, data.sums["norm"]]
        rest = [repr(data.grid), data.overall, data.units, data.statistics, read_provenance(path)]
        return [*columns, *rest, *(read_volume(path, name) for name in ("intensity", "multiplicity"))]
    with ObservationFile(path) as file:
        found = [*file.read(*OBSERVATION_DTYPE.names).values(), *file.read_bragg().values()]
        return [*found, file.experiments, file.provenance, repr(file.grid), file.units, file.scaled]


def refused(path, words) -> None:
    """It is, in one line that names the file and has the words."""
    with pytest.raises(DiffuseError, match=words) as error:
        read_all(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("name", ["map.nxs", "a.h5"])
def test_no_bit_changes_unnoticed(files, name):
    """One bit of a file, anywhere: the file is refused, or everything that is read is the same."""
    path = files / name
    expected, content = repr(read_all(path)), path.read_bytes()
    rng = np.random.default_rng(4)
    refusals = 0
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_all(path)
        except DiffuseError as error:
            assert "\n" not in str(error)
            refusals += 1
        else:
            assert repr(found) == expected, place
    assert 15 < refusals < 60


def test_all_arrays_have_a_checksum(files):
    """And what has none is in the checksum of the head."""
    for name in ("map.nxs", "a.h5"):
        with h5py.File(files / name) as handle:
            found = []
            handle.visititems(
                lambda place, item, found=found: found.append(item) if isinstance(item, h5py.Dataset) else None
            )
            assert len(found) > 15
            assert all(d.fletcher32 for d in found if d.ndim and d.size and d.dtype.kind in "fiub")
            assert len(handle.attrs["checksum"]) == 32


@pytest.mark.parametrize(
    "name, place, value, words",
    [
        ("map.nxs", "entry/unique/sigma", -1.0, r"sigma is -1\.0 in row 3, 0 or more is needed"),
        ("map.nxs", "entry/unique/intensity", np.inf, "intensity is inf in row 3"),
        ("map.nxs", "entry/unique/multiplicity", -4, "multiplicity is -4 in row 3"),
        ("map.nxs", "entry/unique/index", -(2**31), "index is -2147483648 in row 3"),
        ("map.nxs", "entry/unique/sums/norm", np.inf, "norm is inf"),
        ("a.h5", "observations/counts", np.nan, "counts is nan in row 3, a finite number is needed"),
        ("a.h5", "observations/norm", -0.5, r"norm is -0\.5 in row 3"),
        ("a.h5", "observations/experiment", 1, "experiment is 1 in row 3, 0 to 0 is needed"),
        ("a.h5", "observations/entering", 2, "entering is 2 in row 3, 0 to 1"),
        ("a.h5", "observations/index", -(2**31), "index is -2147483648"),
        ("a.h5", "bragg/variance", -1.0, "variance is -1"),
        ("a.h5", "bragg/experiment", 7, "experiment is 7"),
    ],
)
def test_values_out_of_range(files, name, place, value, words):
    with edited(files / name) as handle:
        handle[place][3] = value
    refused(files / name, words)


def _replace(handle, place, **options):
    del handle[place]
    handle.create_dataset(place, **options)


@pytest.mark.parametrize(
    "name, harm, words",
    [
        ("map.nxs", lambda h: _replace(h, "entry/unique/sigma", data=np.zeros(5)), r"shape \(5,\)"),
        ("map.nxs", lambda h: _replace(h, "entry/unique/sigma", data=["a"] * 5), "damaged"),
        ("map.nxs", lambda h: _replace(h, "entry/unique/index", data=np.zeros((5, 2), "i4")), r"shape \(5, 2\)"),
        ("map.nxs", lambda h: _replace(h, "entry/unique/index", data=np.zeros((5, 3))), "type float64, not int32"),
        ("map.nxs", lambda h: _replace(h, "entry/unique/index", data=3), "single value in place of a column"),
        ("map.nxs", lambda h: _replace(h, "entry/unique/index", data=h5py.Empty("f8")), "no values"),
        ("map.nxs", lambda h: _replace(h, "entry/grid/d_min", data=[1.0, 2.0]), r"d_min is of shape \(2,\)"),
        ("map.nxs", lambda h: _replace(h, "entry/grid/d_min", data="2 A"), "d_min is of type"),
        ("map.nxs", lambda h: _replace(h, "entry/sample/hall_symbol", data=3.0), "float64 in place of a text"),
        ("map.nxs", lambda h: _replace(h, "entry/sample/hall_symbol", data="no group"), "Hall symbol"),
        ("map.nxs", lambda h: _replace(h, "entry/statistics/cc_half", data=np.zeros((2, 2))), "no column"),
        ("map.nxs", lambda h: _replace(h, "entry/statistics/overall/n", data=[1, 2]), "no single number"),
        ("map.nxs", lambda h: _replace(h, "entry/map/intensity", data=["a", "b"]), "of type object"),
        ("map.nxs", lambda h: h["entry/unique/intensity"].attrs.__setitem__("units", [1, 2]), "units is a list"),
        ("map.nxs", lambda h: h.pop("entry"), "incomplete, entry/unique/index is missing"),
        (
            "map.nxs",
            lambda h: (h["entry"].pop("statistics"), h["entry"].create_dataset("statistics", data=1)),
            "no group",
        ),
        ("a.h5", lambda h: h.attrs.__setitem__("experiments", "[]"), "no list of experiments"),
        ("a.h5", lambda h: h.attrs.__setitem__("experiments", '{"a": 1}'), "no list of experiments"),
        ("a.h5", lambda h: h.attrs.__setitem__("experiments", "[3]"), "no JSON object"),
        ("a.h5", lambda h: h.attrs.__setitem__("experiments", [1.0, 2.0]), "experiments is a list"),
        ("a.h5", lambda h: h.attrs.__setitem__("process", "[1]"), "process is no JSON object"),
        ("a.h5", lambda h: h.attrs.__setitem__("process", '{"program": 3}'), "program is 3, which is not of type"),
        ("a.h5", lambda h: h["grid"].attrs.__setitem__("subdivide", [2.5, 1, 1]), "subdivide is of type float64"),
        ("a.h5", lambda h: h["grid"].attrs.__setitem__("unit_cell", [1.0, 2.0]), r"unit_cell is of shape \(2,\)"),
        ("a.h5", lambda h: h.attrs.__setitem__("scaled", "yes"), "scaled is of type"),
    ],
)
def test_other_shapes_and_types(files, name, harm, words):
    with edited(files / name) as handle:
        harm(handle)
    refused(files / name, words)


def test_experiments_of_other_shape(files):
    with h5py.File(files / "a.h5") as handle:
        text = json.loads(handle.attrs["experiments"])
    for key, value in [
        ("orientation", [1, 2]),
        ("orientation", "text"),
        ("orientation", [[1], [2, 3]]),
        ("wavelength", -1),
        ("wavelength", "1 A"),
        ("wavelength", None),
        ("image_range", [1, 2, 3]),
        ("image_range", {"a": 1}),
        ("images", [1, 2]),
        ("identifier", None),
        ("reindexed", 5),
        ("surprise", 5),
    ]:
        with edited(files / "a.h5") as handle:
            handle.attrs["experiments"] = json.dumps([{**text[0], key: value}])
        refused(files / "a.h5", f"damaged .*{key}")


def test_nothing_is_read_from_other_files(files):
    shutil.copy(files / "map.nxs", files / "other.nxs")
    place = "entry/unique/intensity"
    n = len(example_map().intensity)
    layout = h5py.VirtualLayout((n,), "f8")
    layout[:] = h5py.VirtualSource(str(files / "other.nxs"), place, (n,))
    (files / "raw").write_bytes(np.ones(n).tobytes())

    def external(handle):
        handle.create_dataset(place, (n,), "f8", external=[(str(files / "raw"), 0, h5py.h5f.UNLIMITED)])

    for harm, words in [
        (lambda h: h["entry/unique"].__setitem__("intensity", h5py.ExternalLink("other.nxs", place)), "is a link"),
        (lambda h: h["entry/unique"].__setitem__("intensity", h5py.SoftLink("/entry/unique/half_a")), "is a link"),
        (lambda h: h.create_virtual_dataset(place, layout), "in another file"),
        (external, "in another file"),
    ]:
        with edited(files / "map.nxs") as handle:
            del handle[place]
            harm(handle)
        refused(files / "map.nxs", f"damaged .*{words}")


def test_links_in_circles(files):
    with edited(files / "map.nxs") as handle:
        handle["entry/unique/sums/norm"].parent["again"] = handle["entry"]
        handle["entry/statistics/itself"] = h5py.SoftLink("/entry/statistics/itself")
    refused(files / "map.nxs", "no data set|is a link")


def test_more_values_than_fit_into_memory(files):
    """A small file may claim to hold any number of values."""
    with edited(files / "map.nxs") as handle:
        del handle["entry/map/intensity"]
        handle["entry/map"].create_dataset("intensity", (10**6, 10**6, 100), "f4", chunks=(1000, 1000, 100))
    refused(files / "map.nxs", "GB")


def test_changes_on_purpose(files):
    """Another program may change a file, and says so by taking the checksum away."""
    with h5py.File(files / "map.nxs", "r+") as handle:
        handle["entry/grid/d_min"][()] = 3.5
    refused(files / "map.nxs", "delete the root attribute checksum")
    with h5py.File(files / "map.nxs", "r+") as handle:
        del handle.attrs["checksum"]
    assert read_map(files / "map.nxs").grid.d_min == 3.5


def test_declared_columns():
    column = Column("x", "f8", low=0, high=2, missing=True)
    values = np.array([0.0, np.nan, 2.0])
    assert column.checked(values) is values
    assert np.isnan(column.checked(np.array([np.nan]))).all() and len(column.checked(np.zeros(0, "i4"))) == 0
    assert column.checked(np.array([1, 2])).dtype == np.float64
    for bad in ([-0.1], [2.1, np.nan], [np.inf], [np.nan, -np.inf]):
        with pytest.raises(ValueError, match="row"):
            column.checked(np.array(bad))
    with pytest.raises(ValueError, match="no list"):
        Column("a", "f8", shape=None).of_json([[1], [2, 3]])
    assert from_json((Column("a", "i8"), Column("b", "U", optional=True)), {"a": 1}, "it") == {"a": 1}


def test_tables_of_the_documentation():
    """Made of the declarations: run docs/make_tables.py after changing one."""
    done = subprocess.run([sys.executable, ROOT / "docs/make_tables.py", "--check"], env=environment(), check=False)
    assert done.returncode == 0
    assert (Path(ROOT) / "docs/files.md").read_text(encoding="utf-8").count("<!-- table") == 8
