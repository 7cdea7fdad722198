"""Comparison of two maps: identities, planted faults, and plain numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import small_grid

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import N_BINS, equal_count_residual
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.merging.compare import common_voxels, compare_maps

CELL = (30.0, 30.0, 36.0, 90.0, 90.0, 90.0)
GRID = small_grid("P 41", CELL, (3, 3, 3), d_min=2.0)


def make_map(grid=GRID, seed=0, friedel=True) -> DiffuseMap:
    """Independent normal numbers, rms 1, in all voxels but the one at the origin."""
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    index = index[np.any(index != 0, axis=1)]
    values = np.random.default_rng(seed).normal(size=len(index))
    return DiffuseMap(grid, friedel, index, values, np.ones(len(index)), np.ones(len(index), dtype=np.int32))


def magnitude(data: DiffuseMap) -> np.ndarray:
    return data.grid.s_magnitude(data.index)


def background(s) -> np.ndarray:
    """A steep fall and a ring, both much stronger than the maps."""
    return 100 * np.exp(-8 * s) + 50 * np.exp(-(((s - 0.31) / 0.03) ** 2) / 2)


def with_intensity(data: DiffuseMap, intensity) -> DiffuseMap:
    return replace(data, intensity=intensity)


def test_a_map_agrees_with_itself():
    truth = make_map()
    result = compare_maps(truth, truth)
    assert result.n == len(truth.index) == sum(row["n"] for row in result.shells)
    for row in (*result.shells, {"cc": result.cc, "slope": result.slope}):
        assert row["cc"] == pytest.approx(1) and row["slope"] == pytest.approx(1)
    assert result.slope_variation == pytest.approx(0, abs=1e-9)


def test_slope_is_that_of_the_first_map_against_the_second():
    truth = make_map()
    result = compare_maps(with_intensity(truth, -2.5 * truth.intensity), truth)
    assert (result.cc, result.slope) == pytest.approx((-1, -2.5))
    assert compare_maps(truth, with_intensity(truth, -2.5 * truth.intensity)).slope == pytest.approx(-0.4)


def test_noise_lowers_the_correlation_but_not_the_slope():
    truth, noise = make_map(), make_map(seed=1)
    result = compare_maps(with_intensity(truth, 2 * truth.intensity + 1.5 * noise.intensity), truth)
    error = 1 / math.sqrt(result.n)
    assert result.cc == pytest.approx(0.8, abs=3 * error)
    assert result.slope == pytest.approx(2.0, abs=3 * 1.5 * error)
    assert abs(compare_maps(noise, truth).cc) < 3 * error


def test_the_isotropic_part_does_not_count():
    """...where bins are fine. In wide shells a ring that both maps have looks like agreement."""
    truth, noise = make_map(), make_map(seed=1)
    ring = background(magnitude(truth))
    a, b = (with_intensity(data, data.intensity + ring) for data in (truth, noise))
    assert abs(compare_maps(a, b).cc) < 0.03
    assert compare_maps(a, b, n_bins=5).cc > 0.8
    result = compare_maps(with_intensity(truth, 2 * truth.intensity + ring), b)
    assert abs(result.cc) < 0.03
    assert compare_maps(a, truth).slope == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("n, n_bins", [(1000, 40), (1003, 40), (57, 10), (5, 5), (3, 8)])
def test_residual_against_straight_lines_of_numpy(n, n_bins):
    rng = np.random.default_rng(n)
    s = rng.uniform(0.1, 0.5, n)
    values = rng.normal(size=n) + background(s)
    expected = np.empty(n)
    order = np.argsort(s)
    for number in range(n_bins):
        mine = order[[i for i in range(n) if i * n_bins // n == number]]
        if len(mine) > 1:
            expected[mine] = values[mine] - np.polyval(np.polyfit(s[mine] - 0.3, values[mine], 1), s[mine] - 0.3)
        else:
            expected[mine] = 0
    assert equal_count_residual(values, s, n_bins) == pytest.approx(expected, abs=1e-6)


def test_residual_of_voxels_at_the_same_resolution():
    s = np.repeat([0.1, 0.2], 50)
    values = np.random.default_rng(2).normal(size=100)
    expected = values - np.repeat(values.reshape(2, 50).mean(axis=1), 50)
    assert equal_count_residual(values, s, 2) == pytest.approx(expected)


def test_common_voxels_against_a_dictionary():
    """Maps to different resolution, of slightly different cells, with gaps, and in any order."""
    rng = np.random.default_rng(3)
    longer = tuple(x * y for x, y in zip(CELL, (1.004, 1.004, 0.997, 1, 1, 1)))
    a, b = make_map(), make_map(small_grid("P 41", longer, (3, 3, 3), d_min=2.3), seed=4)
    order = rng.permutation(len(a.index))
    a = replace(a, index=a.index[order], intensity=a.intensity[order])
    for data in (a, b):
        data.intensity[rng.random(len(data.index)) < 0.2] = np.nan
    for first, second in ((a, b), (b, a)):
        in_first, in_second = common_voxels(first, second)
        known = {tuple(i): n for n, i in enumerate(second.index.tolist()) if np.isfinite(second.intensity[n])}
        pairs = {
            (n, known[tuple(i)])
            for n, i in enumerate(first.index.tolist())
            if np.isfinite(first.intensity[n]) and tuple(i) in known
        }
        assert set(zip(in_first.tolist(), in_second.tolist())) == pairs
        assert len(in_first) == len(pairs) > 0.5 * len(second.index[np.isfinite(second.intensity)]) * 0.6


def test_shells_against_plain_numpy():
    truth, noise = make_map(), make_map(seed=1)
    order, _ = common_voxels(truth, truth)  # voxels at the border of a bin may have the same |s|
    truth, noise = (replace(m, index=m.index[order], intensity=m.intensity[order]) for m in (truth, noise))
    data = with_intensity(truth, truth.intensity + noise.intensity * magnitude(truth) + background(magnitude(truth)))
    result = compare_maps(data, truth, d_max=8.0, d_min=2.5, n_shells=6, n_bins=100)
    s = magnitude(truth)
    use = (s >= 1 / 8) & (s <= 1 / 2.5)
    assert result.n == use.sum()
    x, y = (equal_count_residual(v.intensity[use], s[use], 100) for v in (data, truth))
    assert result.cc == pytest.approx(np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2)))
    limits = [row["d_max"] for row in result.shells] + [result.shells[-1]["d_min"]]
    assert limits[0] == pytest.approx(1 / s[use].min()) and limits[-1] == pytest.approx(1 / s[use].max())
    assert np.diff(np.array(limits) ** -3) == pytest.approx((limits[-1] ** -3 - limits[0] ** -3) / 6)
    for i, row in enumerate(result.shells):
        d = 1 / s[use]
        mine = (d <= row["d_max"]) & (d > row["d_min"]) if i < 5 else d <= row["d_max"]
        mine |= (i == 0) & (d >= row["d_max"])
        assert row["n"] == mine.sum() > 100
        assert row["slope"] == pytest.approx(np.sum(x[mine] * y[mine]) / np.sum(y[mine] ** 2))
        assert row["cc"] == pytest.approx(row["slope"] * np.sqrt(np.sum(y[mine] ** 2) / np.sum(x[mine] ** 2)))


def test_a_slope_that_drifts_with_resolution_is_seen():
    truth = make_map()
    falling = 1 - 0.2 * (magnitude(truth) > 0.45)
    result = compare_maps(with_intensity(truth, truth.intensity * falling), truth, n_shells=10)
    slopes = [row["slope"] for row in result.shells]
    assert slopes[0] == pytest.approx(1) and slopes[-1] == pytest.approx(0.8)
    assert result.slope_variation == pytest.approx(max(1 / result.slope - 1, 1 - 0.8 / result.slope))


def test_the_origin_may_be_measured():
    """It has no resolution, and is left out."""
    truth = make_map()
    result = compare_maps(*[replace(truth, index=np.vstack([truth.index[1:], [[0, 0, 0]]]))] * 2)
    assert result.n == len(truth.index) - 1 and result.cc == pytest.approx(1)
    assert math.isfinite(result.shells[0]["d_max"])


def test_maps_that_cannot_be_compared():
    truth = make_map()
    coarse = make_map(small_grid("P 41", CELL, (3, 3, 2), d_min=2.0))
    with pytest.raises(DiffuseError, match=r"grid\.subdivide \(3, 3, 3\) and \(3, 3, 2\)"):
        compare_maps(truth, coarse)
    with pytest.raises(DiffuseError, match="space group P 41 and P 4 2 2"):
        compare_maps(truth, make_map(small_grid("P 4 2 2", CELL, (3, 3, 3), d_min=2.0)))
    with pytest.raises(DiffuseError, match="friedel True and False"):
        compare_maps(truth, make_map(friedel=False))
    with pytest.raises(DiffuseError, match=r"share 0 voxels from 1\.9 to 0 Å"):
        compare_maps(truth, truth, d_max=1.9)
    unknown = with_intensity(truth, np.full(len(truth.index), np.nan))
    with pytest.raises(DiffuseError, match="share 0 voxels"):
        compare_maps(unknown, truth)


def test_what_is_not_known_is_nan():
    """A map that is constant has no anisotropic part."""
    truth = make_map()
    flat = with_intensity(truth, np.zeros(len(truth.index)))
    assert math.isnan(compare_maps(flat, truth).cc) and compare_maps(flat, truth).slope == 0
    assert math.isnan(compare_maps(truth, flat).cc) and math.isnan(compare_maps(truth, flat).slope)
    assert len(truth.index) > 10 * N_BINS  # or bins would take the signal away
