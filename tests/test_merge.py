"""Merging against a slow obvious engine, and against planted truths."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from cctbx import miller
from helpers.builders import all_voxels, merge, observation_rows, small_grid, true_intensity, write_rows

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.maps.voxels import find_voxels
from dials_diffuse.merging.half_sets import KINDS, SUMS, split
from dials_diffuse.merging.laue import ESTIMATORS, MergeParameters, estimate, merge_observations

GRIDS = [
    small_grid("P 1", (9, 10, 11, 80, 95, 105), (1, 2, 3)),
    small_grid("I 1 2 1", (9, 10, 11, 90, 105, 90), (2, 1, 2)),
    small_grid("P 41", (9, 9, 14, 90, 90, 90), (2, 2, 1)),
    small_grid("P 31 2 1", (9, 9, 14, 90, 90, 120), (2, 2, 3)),
]
by_name = {"argnames": "grid", "argvalues": GRIDS, "ids": lambda grid: grid.space_group_symbol}


def random_rows(grid, rng, n=1500):
    """Observations of random voxels, also beyond the resolution limit and the box."""
    index = rng.integers(-np.array(grid.extent) - 1, np.array(grid.extent) + 2, (n, 3))
    rows = observation_rows(grid, index, true_intensity(grid, index), rng, scale=5)
    everything_odd = rng.random(n) < 0.1
    for name in ("pixels", "counts", "norm", "background", "rate"):
        rows[f"{name}_odd"][everything_odd] = rows[name][everything_odd]
    return rows


def to_asu(index, grid, friedel):
    from cctbx.array_family import flex

    one = flex.miller_index([tuple(int(x) for x in index)])
    miller.map_to_asu(grid.space_group.type(), not friedel, one)
    return one[0]


def needs_inversion(index, grid, friedel):
    rotated = {mate.h() for mate in miller.sym_equiv_indices(grid.space_group, tuple(int(x) for x in index)).indices()}
    return to_asu(index, grid, friedel) not in rotated


def slow_merge(rows, grid, parameters) -> dict:
    """asu index -> [sums of half a, sums of half b, observations], one row after the other."""
    coins = np.random.default_rng(parameters.seed)
    result = defaultdict(lambda: [dict.fromkeys(SUMS, 0.0), dict.fromkeys(SUMS, 0.0), 0])
    for row in rows:
        coin = coins.random() < 0.5
        if not grid.inside(row["index"]):
            continue
        halves = result[to_asu(row["index"], grid, parameters.friedel)]
        halves[2] += 1
        if parameters.half_sets == "frame":
            odd = {name: row[f"{name}_odd"] for name in ("counts", "norm", "background", "pixels", "rate")}
            odd["background_variance"] = row["background_variance"] * row["pixels_odd"] / row["pixels"]
            odd["rate_variance"] = row["rate_variance"] * row["counts_odd"] / max(row["counts"], 1)
            for name in SUMS:
                halves[0][name] += row[name] - odd[name]
                halves[1][name] += odd[name]
            continue
        half = coin if parameters.half_sets == "random" else needs_inversion(row["index"], grid, True)
        for name in SUMS:
            halves[int(half)][name] += row[name]
    return result


def slow_estimate(sums, estimator):
    if estimator == "ratio":
        sigma = math.sqrt(max(sums["counts"], 1) + sums["background_variance"]) / sums["norm"]
        return (sums["counts"] - sums["background"]) / sums["norm"], sigma
    n, c = sums["pixels"], sums["norm"] / sums["pixels"]
    sigma = math.sqrt(max(sums["rate_variance"], 1 / c**2) + sums["background_variance"] / c**2) / n
    return sums["rate"] / n, sigma


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("half_sets, friedel", [(k, True) for k in KINDS] + [("random", False)])
@pytest.mark.parametrize(**by_name)
def test_equals_slow_engine(tmp_path, grid, half_sets, friedel, estimator):
    rows = random_rows(grid, np.random.default_rng(5))
    parameters = MergeParameters(half_sets=half_sets, friedel=friedel, estimator=estimator, seed=3)
    expected = slow_merge(rows, grid, parameters)
    result = merge(tmp_path / "a.h5", grid, rows, half_sets=half_sets, friedel=friedel, estimator=estimator, seed=3)
    data = result.map
    assert {tuple(h) for h in data.index.tolist()} == set(expected)
    for i, h in enumerate(data.index.tolist()):
        *halves, n = expected[tuple(h)]
        whole = {name: halves[0][name] + halves[1][name] for name in SUMS}
        assert data.multiplicity[i] == n
        assert (data.intensity[i], data.sigma[i]) == pytest.approx(slow_estimate(whole, estimator), rel=1e-9)
        for half, merged in zip(halves, (data.half_a[i], data.half_b[i])):
            if half["pixels"] > 1e-6:
                assert merged == pytest.approx(slow_estimate(half, estimator)[0], rel=1e-7, abs=1e-9)
            else:
                assert np.isnan(merged)
        for name in SUMS:
            np.testing.assert_allclose(
                data.sums[name][i], [halves[0][name], halves[1][name]], rtol=1e-9, atol=1e-9 * abs(whole[name])
            )
    assert result.n_observations + result.n_off_grid == len(rows)


def test_rows_of_voxels_against_a_dictionary():
    """The box is unequal in all directions: what lies outside it, or has no norm, has no row."""
    grid = small_grid("P 1", (9, 13, 27, 80, 95, 105), (1, 2, 1))
    index = all_voxels(grid)[::3]
    voxels, refused = find_voxels([{"index": index, "norm": np.ones(len(index))}], grid, True)
    expected = {tuple(i): row for row, i in enumerate(grid.index(voxels.keys))}
    assert refused == 0 and set(expected) == {tuple(i) for i in index}
    extent = np.array(grid.extent)
    assert len(set(extent)) == 3
    wanted = np.random.default_rng(0).integers(-extent - 9, extent + 10, (20_000, 3))
    norm = np.where(np.arange(len(wanted)) % 10, 1.0, 0.0)
    found = voxels.rows(wanted.astype(np.int32), norm)
    assert list(found) == [expected.get(tuple(i), -1) if n > 0 else -1 for i, n in zip(wanted, norm)]


def test_order_and_block_size_do_not_matter(tmp_path):
    grid = GRIDS[3]
    rows = random_rows(grid, np.random.default_rng(6))
    a = merge(tmp_path / "a.h5", grid, rows)
    b = merge(tmp_path / "a.h5", block=11)
    c = merge(tmp_path / "c.h5", grid, np.random.default_rng(0).permutation(rows))
    for other in (b, c):
        np.testing.assert_array_equal(a.map.index, other.map.index)
        np.testing.assert_allclose(a.map.intensity, other.map.intensity, rtol=1e-12)
        np.testing.assert_allclose(a.map.sigma, other.map.sigma, rtol=1e-12)
    np.testing.assert_array_equal(a.map.half_a, b.map.half_a)


def test_two_files_are_as_one(tmp_path):
    grid = GRIDS[2]
    rows = random_rows(grid, np.random.default_rng(7))
    whole = merge(tmp_path / "a.h5", grid, rows)
    write_rows(tmp_path / "b.h5", grid, rows[:400], "one")
    write_rows(tmp_path / "c.h5", grid, rows[400:], "two")
    parts = merge_observations([tmp_path / "b.h5", tmp_path / "c.h5"], MergeParameters(n_shells=4))
    np.testing.assert_allclose(whole.map.intensity, parts.map.intensity)
    np.testing.assert_allclose(whole.map.half_b, parts.map.half_b)
    assert parts.identifiers == ("one", "two")


@pytest.mark.parametrize("half_sets", KINDS)
def test_half_sets_add_up_and_are_independent(tmp_path, half_sets):
    """Halves of pure noise do not agree, whatever the seed; the sums of both are those of all observations."""
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90))
    index = np.tile(all_voxels(grid), (2, 1))
    rng = np.random.default_rng(8)
    rows = observation_rows(grid, index, np.full(len(index), 1.0), rng, scale=10)
    result = merge(tmp_path / "a.h5", grid, rows, half_sets=half_sets)
    for name in SUMS:
        assert result.map.sums[name].sum() == pytest.approx(rows[name].sum(dtype=float))
    n = np.sum(np.isfinite(result.map.half_a) & np.isfinite(result.map.half_b))
    assert n > 1000
    assert abs(result.statistics.overall["cc_half"]) < 4 / math.sqrt(n)
    again = merge(tmp_path / "a.h5", half_sets=half_sets)
    np.testing.assert_array_equal(again.map.half_a, result.map.half_a)
    other = merge(tmp_path / "a.h5", half_sets=half_sets, seed=1)
    assert np.array_equal(other.map.half_a, result.map.half_a, equal_nan=True) == (half_sets != "random")


def test_rounding_leaves_no_rest_in_an_empty_half():
    """Fractions of pixels: a half that got nothing has a norm of zero, not one of 1e-16."""
    rows = observation_rows(GRIDS[0], np.ones((2, 3), int), np.ones(2), np.random.default_rng(0))
    for name in ("pixels", "counts", "norm", "background", "rate"):
        rows[f"{name}_odd"] = rows[name] * [1 - 1e-15, 1e-15]
    (_, even), (_, odd) = split("frame", {name: rows[name] for name in rows.dtype.names}, None, None)
    assert np.all(even[:, 0] == 0) and np.all(odd[:, 1] == 0)
    assert np.all(even + odd == [rows[name] for name in SUMS])


def test_p1_without_friedel_is_the_identity(tmp_path):
    grid = GRIDS[0]
    index = all_voxels(grid)
    rows = observation_rows(grid, index, true_intensity(grid, index, False), np.random.default_rng(9))
    data = merge(tmp_path / "a.h5", grid, rows, friedel=False).map
    order = np.lexsort(index.T[::-1])
    np.testing.assert_array_equal(data.index, index[order])
    expected = (rows["counts"] - rows["background"]) / rows["norm"]
    np.testing.assert_allclose(data.intensity, expected[order])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weak_data_are_not_biased(tmp_path, estimator):
    """One to three counts in an observation: the average over all voxels is the truth within 1 %."""
    grid = small_grid("P 41", (24, 24, 30, 90, 90, 90))
    index = np.tile(all_voxels(grid), (20, 1))
    rng = np.random.default_rng(10)
    truth = np.where(true_intensity(grid, index) > 0.8, 3.0, 1.0)
    rows = observation_rows(grid, index, truth, rng, scale=1 / 8, background=0.5)
    assert 1 < rows["counts"].mean() < 4
    data = merge(tmp_path / "a.h5", grid, rows, 1 << 18, estimator=estimator).map
    expected = np.where(true_intensity(grid, data.index) > 0.8, 3.0, 1.0) / 8
    for level in np.unique(expected):
        chosen = expected == level
        assert data.intensity[chosen].mean() == pytest.approx(level, rel=0.01)
    pull = (data.intensity - expected) / data.sigma
    assert pull.std() == pytest.approx(1, abs=0.05)


def test_noise_free_data_give_the_truth(tmp_path):
    grid = GRIDS[3]
    index = all_voxels(grid)
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(11), noise=False)
    for estimator in ESTIMATORS:
        result = merge(tmp_path / "a.h5", grid, rows, estimator=estimator, half_sets="frame")
        np.testing.assert_allclose(result.map.intensity, 1000 * true_intensity(grid, result.map.index), rtol=1e-9)
        overall = result.statistics.overall
        assert overall["completeness"] == 1
        assert overall["r_sym"] < 1e-9
        assert overall["cc_half"] == pytest.approx(1) and overall["cc_friedel"] == pytest.approx(1)
        assert overall["n"] == len(result.map.index) == result.statistics.shells["n"].sum()


def test_estimates_of_empty_and_zero_sums():
    sums = np.zeros((2, 7))
    sums[1, SUMS.index("norm")] = sums[1, SUMS.index("pixels")] = 4
    for estimator in ESTIMATORS:
        intensity, sigma = estimate(sums, estimator)
        assert math.isnan(intensity[0]) and math.isnan(sigma[0])
        assert intensity[1] == 0 and sigma[1] == pytest.approx(0.25)  # no count is not no error


def test_rows_without_norm_are_left_out(tmp_path):
    grid = GRIDS[2]
    index = all_voxels(grid)
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(19))
    expected = merge(tmp_path / "a.h5", grid, rows[3:])
    rows["norm"][:3] = 0
    result = merge(tmp_path / "b.h5", grid, rows)
    assert result.n_refused == 3 and "3 of" in result.warnings[0]
    np.testing.assert_allclose(result.map.intensity, expected.map.intensity)
    rows["norm"] = 0
    with pytest.raises(DiffuseError, match=r"c\.h5.*norm"):
        merge(tmp_path / "c.h5", grid, rows)


def test_space_group_can_be_replaced(tmp_path):
    """Data kept in P 1, with a cell that is not quite tetragonal, merged in P 41, and in a group that is too high."""
    grid = replace(small_grid("P 41", (20, 20, 24, 90, 90, 90)), unit_cell=(20.0, 20.1, 24.0, 90.0, 90.0, 90.0))
    p1 = replace(grid, hall_symbol=" P 1")
    index = all_voxels(p1)
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(20))
    result = merge(tmp_path / "a.h5", p1, rows, space_group="P41")
    assert result.map.grid.space_group_symbol == "P 41"
    assert result.map.grid.unit_cell[:2] == pytest.approx([20.05, 20.05], abs=0.01)
    assert result.statistics.overall["multiplicity"] == pytest.approx(8, abs=0.6)
    assert result.statistics.overall["chi2_sym"] < 1.2
    wrong = merge(tmp_path / "a.h5", space_group="P422", symmetry_check="warn")
    assert any("P 4 is the highest part of it that holds" in w for w in wrong.warnings)
    assert wrong.statistics.overall["chi2_sym"] > 2
    assert len(laue_operators(wrong.map.grid.space_group, True)) == 16


@pytest.mark.parametrize(
    "symbol, words",
    [("P999", "space_group=P999"), ("P 6", "does not fit the unit cell"), ("P 2 3", "does not fit the unit cell")],
)
def test_space_groups_that_do_not_fit(tmp_path, symbol, words):
    grid = GRIDS[2]
    rows = random_rows(grid, np.random.default_rng(21), 50)
    with pytest.raises(DiffuseError, match=words):
        merge(tmp_path / "a.h5", grid, rows, space_group=symbol)


def test_space_group_that_mixes_subdivisions(tmp_path):
    grid = small_grid("P 1", (9, 9, 14, 90, 90, 90), (1, 2, 3))
    with pytest.raises(DiffuseError, match=r"a\.h5.*mixes axes a and b.*another space_group"):
        merge(tmp_path / "a.h5", grid, random_rows(grid, np.random.default_rng(22), 50), space_group="P 4")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"subdivide": (3, 3, 1)}, r"\(2, 2, 1\) and \(3, 3, 1\)"),
        ({"hall_symbol": " P 4"}, "P 41 and P 4;"),
        ({"unit_cell": (9.0, 9.0, 14.5, 90.0, 90.0, 90.0)}, "14.5"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, change, words):
    grid = GRIDS[2]
    for seed, (name, g) in enumerate((("a.h5", grid), ("b.h5", replace(grid, **change)))):
        write_rows(tmp_path / name, g, random_rows(g, np.random.default_rng(23 + seed), 50))
    with pytest.raises(DiffuseError, match=rf"a\.h5 and .*b\.h5 cannot be merged: .*{words}"):
        merge_observations([tmp_path / "a.h5", tmp_path / "b.h5"], MergeParameters())


def test_resolution_is_the_union_of_the_files(tmp_path):
    grids = [replace(GRIDS[2], d_min=3.0, d_max=8.0), replace(GRIDS[2], d_min=4.0, d_max=20.0)]
    for name, grid in zip("ab", grids):
        index = all_voxels(grid)
        rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(24))
        write_rows(tmp_path / name, grid, rows)
    result = merge_observations([tmp_path / "a", tmp_path / "b"], MergeParameters(n_shells=3))
    assert (result.map.grid.d_min, result.map.grid.d_max) == (3.0, 20.0)
    assert result.statistics.overall["completeness"] == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"half_sets": "thirds"}, "half_sets=thirds"),
        ({"half_sets": "friedel", "friedel": False}, "needs friedel=True"),
        ({"estimator": "median"}, "estimator=median"),
        ({"seed": -1}, "seed=-1"),
        ({"n_shells": 0}, "n_shells=0"),
        ({"d_min": 4.0, "d_max": 2.0}, "statistics.d_min=4"),
        ({"d_min": 0.0}, "statistics.d_min=0"),
    ],
)
def test_parameters_are_checked(options, words):
    with pytest.raises(DiffuseError, match=words):
        MergeParameters(**options)


def test_parameters_and_result_travel_to_other_machines(tmp_path):
    grid = GRIDS[2]
    index = np.tile(all_voxels(grid), (2, 1))
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(0))
    path = write_rows(tmp_path / "a.h5", grid, rows)
    parameters = MergeParameters(half_sets="frame", n_shells=3)
    assert pickle.loads(pickle.dumps(parameters)) == parameters
    function, arguments = pickle.loads(pickle.dumps((merge_observations, ([path], parameters))))
    result = pickle.loads(pickle.dumps(function(*arguments)))
    expected = merge_observations([path], parameters)
    assert result.map.grid == grid and result.identifiers == expected.identifiers
    np.testing.assert_equal(result.statistics.rows(), expected.statistics.rows())
    np.testing.assert_array_equal(result.map.volume(), expected.map.volume())
