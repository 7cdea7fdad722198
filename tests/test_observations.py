"""Grids and observation files: what cannot be represented or read is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, damage_chunk, edited, observation_rows, small_grid, write_rows

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.identity import check_images
from dials_diffuse.files.observations import (
    BRAGG_DTYPE,
    OBSERVATION_DTYPE,
    ExperimentSummary,
    ObservationFile,
    write_observations,
)
from dials_diffuse.maps.grid import MAX_VOXELS, MapGrid

GRID = small_grid("P 1", (12, 12, 18, 90, 90, 90))
EXPERIMENT = ExperimentSummary("id-1", (1, 10), (0.0, 0.1), 10, 1.0, 1, (100, 100))


@pytest.fixture
def path(tmp_path):
    index = np.tile(all_voxels(GRID), (40, 1))
    return write_rows(
        tmp_path / "a.h5", GRID, observation_rows(GRID, index, np.ones(len(index)), np.random.default_rng(0))
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"subdivide": None}, "grid.subdivide=None"),
        ({"subdivide": (2, None, 2)}, "grid.subdivide="),
        ({"subdivide": (2, 2.5, 2)}, "grid.subdivide="),
        ({"d_min": None}, "d_min=None"),
        ({"d_max": None}, "d_max=None"),
        ({"d_min": float("nan")}, "d_min=nan"),
    ],
)
def test_values_that_make_no_grid(changes, words):
    with pytest.raises(DiffuseError, match=words):
        replace(GRID, **changes)


def test_grid_that_is_too_large_for_its_keys():
    side = 2**16 // 2  # 2 side + 1 voxels along each of two axes, a little more than 2**32 together
    cell = (1, 1, 1, 90, 90, 90)
    fits = MapGrid(cell, "P 1", (side, side, 2**17 - 10), 1.0)
    assert 0.999 * MAX_VOXELS < fits.n_voxels < MAX_VOXELS
    with pytest.raises(DiffuseError, match=r"grid\.subdivide=32768,32768,131072.*too large"):
        MapGrid(cell, "P 1", (side, side, 2**17), 1.0)
    for d_min in (1e-300, 5e-324):  # of a damaged file: lengths are infinite in steps of the grid
        with pytest.raises(DiffuseError, match=r"d_min=.* is too large"):
            replace(GRID, d_min=d_min)


def test_experiments_are_updated_at_the_end(tmp_path):
    with write_observations(tmp_path / "a.h5", GRID, [EXPERIMENT, EXPERIMENT], PROVENANCE) as writer:
        writer.append(observation_rows(GRID, np.zeros((3, 3), int), np.ones(3), np.random.default_rng(0)))
        writer.update_experiments([replace(EXPERIMENT, n_images_used=7), EXPERIMENT])
    with ObservationFile(tmp_path / "a.h5") as file:
        assert [e.n_images_used for e in file.experiments] == [7, 10]
        assert file.experiments[0].identifier == "id-1" and file.n_rows == 3


def test_columns_are_compressed_where_they_shrink(tmp_path):
    """Counts of few photons and zeros do, real numbers with noise do not; all come back."""
    rng = np.random.default_rng(0)
    rows = np.zeros(20_000, dtype=OBSERVATION_DTYPE)
    rows["index"] = rng.integers(-3, 4, (len(rows), 3))
    rows["counts"], rows["pixels"] = rng.poisson(3, len(rows)), 5
    rows["norm"], rows["rate"] = rng.uniform(0.5, 1, len(rows)), rng.normal(size=len(rows))
    for name, blocks in (("a.h5", [rows[:9000], rows[9000:]]), ("none.h5", [])):
        with write_observations(tmp_path / name, GRID, [EXPERIMENT], PROVENANCE) as writer:
            for block in blocks:
                writer.append(block)
    with h5py.File(tmp_path / "a.h5") as file:
        columns = file["observations"]
        packed = {name for name in columns if columns[name].compression}
        assert {"counts", "pixels", "index", "background"} <= packed and not packed & {"norm", "rate"}
        assert all(columns[name].fletcher32 for name in columns)
    with ObservationFile(tmp_path / "a.h5") as file:
        for name, values in file.read(*OBSERVATION_DTYPE.names).items():
            np.testing.assert_array_equal(values, rows[name])
    with ObservationFile(tmp_path / "none.h5") as file:
        assert file.n_rows == 0


def test_files_without_command_line_are_read(path):
    with edited(path) as handle:
        process = json.loads(handle.attrs["process"])
        assert process.pop("command_line") == ""
        handle.attrs["process"] = json.dumps(process)
    with ObservationFile(path) as file:
        assert file.provenance == PROVENANCE


def _no_grid(handle):
    del handle["grid"]


def _no_cell(handle):
    del handle["grid"].attrs["unit_cell"]


def _bad_grid(handle):
    handle["grid"].attrs["d_min"] = -1.0


def _no_experiments(handle):
    del handle.attrs["experiments"]


def _bad_experiments(handle):
    handle.attrs["experiments"] = "[{"


def _other_experiments(handle):
    handle.attrs["experiments"] = json.dumps([{"name": "x"}])


def _no_observations(handle):
    del handle["observations"]


def _no_column(handle):
    del handle["observations/norm"]


def _short_column(handle):
    handle["observations/norm"].resize(5, axis=0)


@pytest.mark.parametrize(
    "harm, words",
    [
        (_no_grid, "incomplete, .*grid"),
        (_no_cell, "incomplete, .*unit_cell"),
        (_bad_grid, "d_min=-1"),
        (_no_experiments, "incomplete, .*experiments"),
        (_bad_experiments, "damaged"),
        (_other_experiments, "damaged .*name"),
        (_no_observations, "incomplete, .*observations"),
        (_no_column, "columns missing: norm"),
        (_short_column, "damaged .*column norm"),
    ],
)
def test_damaged_header(path, harm, words):
    with edited(path) as handle:
        harm(handle)
    with pytest.raises(DiffuseError, match=rf"a\.h5: {words}") as error:
        ObservationFile(path)
    assert "\n" not in str(error.value) and "integrate again" in str(error.value)
    with h5py.File(path, "r+"):  # it was closed again
        pass


def test_damaged_chunk(path):
    damage_chunk(path, "norm")
    with ObservationFile(path) as file:
        assert file.n_rows > 1 << 16
        assert len(file.read("counts")["counts"]) == file.n_rows
        with pytest.raises(DiffuseError, match=r"a\.h5: damaged .*integrate again"):
            list(file.chunks("counts", "norm", size=1000))


IMPOSSIBLE = {
    **{f"nan {name}": (name, np.nan) for name in ("counts", "norm", "background", "background_variance", "rate", "s")},
    **{f"infinite {name}": (name, np.inf) for name in ("counts", "norm", "background_variance", "rate_odd", "xyz")},
    **{f"negative {name}": (name, -40.0) for name in ("counts", "norm", "background_variance", "pixels", "s")},
    "an experiment that is not there": ("experiment", 1),
    "no experiment": ("experiment", -1),
    "neither in nor out": ("entering", 2),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_values_are_named_by_file_column_and_row(path, case):
    name, value = IMPOSSIBLE[case]
    with h5py.File(path, "a") as handle:
        handle[f"observations/{name}"][70_000] = value
    with ObservationFile(path) as file:
        file.read(name, start=0, stop=70_000)
        with pytest.raises(DiffuseError, match=rf"a\.h5: .*{name}.*row 70000\b"):
            for _ in file.chunks(name, size=1 << 15):
                pass


def test_noise_around_no_counts_is_possible(path):
    """Pixels of integrating detectors have negative values, too."""
    with h5py.File(path, "a") as handle:
        pixels = handle["observations/pixels"][:100]
        handle["observations/counts"][:100] = -3 * np.sqrt(pixels)
    with ObservationFile(path) as file:
        assert file.read("counts")["counts"].min() < -5


@pytest.mark.parametrize("name, value", [("intensity", np.nan), ("variance", -1.0), ("experiment", 3), ("s", np.inf)])
def test_impossible_bragg_reflections(path, name, value):
    rows = np.ones(5, dtype=BRAGG_DTYPE)
    rows["experiment"] = 0
    rows[name][2] = value
    with write_observations(path, GRID, [EXPERIMENT], PROVENANCE) as writer:
        writer.append_bragg(rows)
    with ObservationFile(path) as file, pytest.raises(DiffuseError, match=rf"a\.h5: .*bragg.*{name}.*row 2\b"):
        file.read_bragg()


@pytest.mark.parametrize("images", [(), ("one", "two")], ids=["unknown images", "known images"])
def test_the_same_counts_twice(tmp_path, path, images):
    """Another order of the rows, another name of the experiment: where the images are unknown, the counts tell."""
    with ObservationFile(path) as file:
        columns = file.read(*OBSERVATION_DTYPE.names)
    order = np.random.default_rng(1).permutation(len(columns["counts"]))

    def written(name, change=0.0, names=images):
        rows = {key: values[order].copy() for key, values in columns.items()}
        rows["counts"][17] += change
        with write_observations(
            tmp_path / name, GRID, [replace(EXPERIMENT, identifier=name, images=names)], PROVENANCE
        ) as writer:
            writer.append(rows)
        return ObservationFile(tmp_path / name)

    with written("b.h5") as same, written("c.h5", 1.0, images and ("three",)) as other, written("d.h5") as first:
        check_images([first, other])
        with pytest.raises(DiffuseError, match=r"b\.h5.*the same crystal on the same images as .*d\.h5"):
            check_images([first, other, same])
