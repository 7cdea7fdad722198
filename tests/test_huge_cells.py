"""A viral capsid's cell has billions of voxels, of which a few images measure some: cost goes with what is measured."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cctbx import sgtbx
from helpers.builders import all_voxels, observation_rows, small_grid, write_rows
from helpers.programs import fails

from dials_diffuse import memory
from dials_diffuse.cli.merge import run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files import nexus
from dials_diffuse.files.nexus import read_map, read_volume, write_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.counting import count_unique, integer_kernel
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import TOLERANCE, shell_limits
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels, unique_voxels
from dials_diffuse.maps.voxels import find_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

CAPSID = MapGrid((400.0, 420.0, 640.0, 90.0, 90.0, 90.0), "P 2 2", subdivide=(2, 2, 2), d_min=2.0)
SYMBOLS = ["P1", "P21", "C2", "I2", "P21/n", "P212121", "F222", "P41", "P43212", "I41"]
SYMBOLS += ["P3", "P321", "P3112", "R3:H", "R32:R", "P6", "P6322", "P23", "I432"]


def some_voxels(grid, n, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    index = rng.integers(-np.array(grid.extent), np.array(grid.extent) + 1, (3 * n, 3)).astype(np.int32)
    return index[grid.inside(index)][:n]


def rows_at(index) -> np.ndarray:
    return observation_rows(CAPSID, index, np.ones(len(index)), np.random.default_rng(3))


@pytest.mark.parametrize("friedel", [True, False])
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_counts_of_unique_voxels_are_those_of_an_enumeration(symbol, friedel):
    group = sgtbx.space_group_info(symbol)
    cell = group.any_compatible_unit_cell(2500.0).parameters()
    mixes_axes = group.group().crystal_system() in ("Tetragonal", "Trigonal", "Hexagonal", "Cubic")
    subdivide = (2, 2, 2) if mixes_axes else (1, 2, 3)
    grid = MapGrid(cell, group.group().type().hall_symbol(), subdivide, d_min=2.0, d_max=15.0)
    limits = 1 / shell_limits(15.0, 2.0, 7)
    limits[:-1] *= 1 - TOLERANCE
    limits[-1] *= 1 + TOLERANCE
    s = np.concatenate([grid.s_magnitude(index) for index in possible_voxels(grid, friedel)])
    assert count_unique(grid, friedel, limits).tolist() == np.histogram(s, limits)[0].tolist()


def test_the_origin_is_one_voxel():
    grid = small_grid()
    assert count_unique(grid, True, np.array([0.0, 1e-9])).tolist() == [1]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_integer_kernel_is_a_basis_of_what_an_operator_leaves_alone(symbol):
    span = np.stack(np.meshgrid(*3 * [np.arange(-2, 3)], indexing="ij"), axis=-1).reshape(-1, 3)
    for operator in laue_operators(sgtbx.space_group_info(symbol).group(), True):
        basis = integer_kernel(operator - np.eye(3, dtype=int))
        assert np.all(basis @ operator == basis)
        fixed = span[np.all(span @ operator == span, axis=1)]
        assert np.linalg.matrix_rank(fixed) == len(basis)
        numbers = np.linalg.lstsq(basis.T.astype(float), fixed.T.astype(float), rcond=None)[0] if len(basis) else 0
        assert np.abs(numbers - np.rint(numbers)).max(initial=0) < 1e-9


@pytest.mark.parametrize("grid", [small_grid(), CAPSID], ids=["small", "capsid"])
def test_rows_of_voxels_are_those_of_a_dictionary(grid):
    index = some_voxels(grid, 3000)
    norm = np.random.default_rng(1).choice([0.0, 1.0, np.nan, -1.0], len(index), p=[0.1, 0.7, 0.1, 0.1])
    blocks = [{"index": index[i : i + 700], "norm": norm[i : i + 700]} for i in range(0, len(index), 700)]
    of_rows = np.empty(len(index), np.int32)
    voxels, n_refused = find_voxels(iter(blocks), grid, True, of_rows)
    assert n_refused == np.count_nonzero(~(norm > 0))
    measured = {tuple(row) for row in index[norm > 0].tolist()}
    assert {tuple(row) for row in grid.index(voxels.keys).tolist()} == measured
    others = np.concatenate([index, some_voxels(grid, 500, seed=2), 1000 * np.eye(3, dtype=np.int32)])
    rows = voxels.rows(others, np.ones(len(others)))
    place = {tuple(row): i for i, row in enumerate(grid.index(voxels.keys).tolist())}
    assert rows.tolist() == [place.get(tuple(row), -1) for row in others.tolist()]
    assert np.all(voxels.rows(index, norm)[~(norm > 0)] == -1)
    expected = unique_voxels(index[rows[: len(index)] >= 0], grid.space_group, True)
    mine = voxels.unique[rows[: len(index)][rows[: len(index)] >= 0]]
    assert np.array_equal(voxels.index[mine], expected.index[expected.inverse])
    mine = voxels.rows(index, norm)
    assert np.array_equal(of_rows, np.where(mine >= 0, voxels.unique[mine], -1))


def test_a_capsid_costs_what_its_rows_cost(tmp_path, monkeypatch):
    """Its box has 860 million voxels: any array of that size would show."""
    monkeypatch.chdir(tmp_path)
    index = some_voxels(CAPSID, 40_000)
    rows = rows_at(np.unique(index, axis=0))
    write_rows("capsid.h5", CAPSID, rows)
    tracemalloc.start()
    result = merge_observations(["capsid.h5"], MergeParameters(n_shells=5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e8 < CAPSID.n_voxels
    found = unique_voxels(rows["index"], CAPSID.space_group)
    assert np.array_equal(result.map.index, found.index)
    total = np.bincount(found.inverse, rows["counts"]) / np.bincount(found.inverse, rows["norm"])
    background = np.bincount(found.inverse, rows["background"]) / np.bincount(found.inverse, rows["norm"])
    np.testing.assert_allclose(result.map.intensity, total - background, rtol=1e-10)
    volume = 4 / 3 * np.pi / 8 * 400 * 420 * 640 * 8  # of the sphere, in voxels
    assert result.statistics.overall["possible"] == pytest.approx(volume / 8, rel=0.01)

    Path("memory.max").write_text("8000000000")
    monkeypatch.setattr(memory, "_LIMIT", Path("memory.max"))
    run(["capsid.h5", "statistics.n_shells=5"])  # pictures and all
    assert (
        "Leaving out the three-dimensional arrays: 801x841x1281 voxels" in Path("dials.diffuse_merge.log").read_text()
    )
    assert np.array_equal(read_map("diffuse_merged.nxs").intensity, result.map.intensity)


def test_what_does_not_fit_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows("capsid.h5", CAPSID, rows_at(some_voxels(CAPSID, 40_000)))
    limit = tmp_path / "memory.max"
    limit.write_text("20000000")
    monkeypatch.setattr(memory, "_LIMIT", limit)
    message = fails(run, ["capsid.h5"], capsys, words=["capsid.h5", "40000 observations", "GB", "grid.subdivide"])
    assert "0.0 GB" in message and not (tmp_path / "diffuse_merged.nxs").exists()
    with pytest.raises(DiffuseError, match="40000 observations need about"):
        scale_observations(["capsid.h5"], ScalingParameters(), "scaled.h5", Provenance())


def test_layers_of_a_volume_are_those_of_the_whole(tmp_path, monkeypatch):
    grid = small_grid("P 43 21 2", (12.0, 12.0, 18.0, 90.0, 90.0, 90.0), d_min=1.0)
    index = unique_voxels(all_voxels(grid)[::3], grid.space_group).index
    values = np.random.default_rng(0).normal(size=len(index))
    data = DiffuseMap(grid, True, index, values, np.ones(len(index)), np.arange(1, len(index) + 1))
    whole = data.volume()
    for layers in ((0, 5), (7, 8), (20, grid.shape[0])):
        np.testing.assert_array_equal(data.volume(layers=layers), whole[slice(*layers)])
    monkeypatch.setattr(nexus, "_EDGE", 8)
    monkeypatch.setattr(nexus, "_SLAB", 1)
    write_map(tmp_path / "map.nxs", data, Provenance())
    np.testing.assert_array_equal(read_volume(tmp_path / "map.nxs"), whole)
    multiplicity = read_volume(tmp_path / "map.nxs", "multiplicity")
    np.testing.assert_array_equal(multiplicity, data.volume(data.multiplicity, 0, np.int32))
