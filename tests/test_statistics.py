"""Statistics of merged maps: identities, planted faults, and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.builders import all_voxels, merge, observation_rows, small_grid, true_intensity

from dials_diffuse.maps.shells import anisotropic_correlation, fine_residual, isotropic_residual, shell_limits
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.merging.statistics import COLUMNS


def noisy(tmp_path, break_symmetry=0.0, friedel=True):
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90))
    index = all_voxels(grid)
    intensity = true_intensity(grid, index) * (1 + break_symmetry * np.sign(index[:, 0]))
    rows = observation_rows(grid, index, intensity, np.random.default_rng(12), scale=30)
    return merge(tmp_path / "a.h5", grid, rows, friedel=friedel)


def test_symmetry_residuals(tmp_path):
    good, broken = noisy(tmp_path), noisy(tmp_path, 0.3)
    n = len(good.map.index)
    assert good.statistics.overall["chi2_sym"] == pytest.approx(1, abs=5 * math.sqrt(2 / (7 * n)) + 0.01)
    assert broken.statistics.overall["chi2_sym"] > 2
    assert broken.statistics.overall["r_sym"] > good.statistics.overall["r_sym"] + 0.05


def test_r_sym_by_hand(tmp_path):
    """Mates of unequal norms against the mean that these weight; a voxel without mates does not count."""
    grid = small_grid("P 4", (20, 20, 24, 90, 90, 90), (1, 1, 1))
    index = all_voxels(grid)
    rng = np.random.default_rng(12)
    rows = observation_rows(grid, index, true_intensity(grid, index), rng, scale=30)
    rows["background"] = rows["background_variance"] = 0
    found = merge(tmp_path / "a.h5", grid, rows, friedel=False)
    mates: dict = {}
    for row, unique in zip(rows, map_to_asu(rows["index"], grid.space_group, False)[0]):
        mates.setdefault(tuple(unique), []).append((row["counts"], row["norm"]))
    several = [np.array(values).T for values in mates.values() if len(values) > 1]
    assert 0 < len(several) < len(mates)
    apart = sum(np.abs(c / n - c.sum() / n.sum()).sum() for c, n in several)
    assert found.statistics.overall["r_sym"] == pytest.approx(apart / sum((c / n).sum() for c, n in several))


def test_chi_square_of_very_weak_data(tmp_path):
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90))
    index = all_voxels(grid)
    truth = np.ones(len(index))
    rows = observation_rows(grid, index, truth, np.random.default_rng(13), scale=0.02, background=0.5)
    rows["background_variance"] = 0
    assert np.mean(rows["counts"] == 0) > 0.5
    assert merge(tmp_path / "a.h5", grid, rows).statistics.overall["chi2_sym"] == pytest.approx(1, abs=0.08)


def test_friedel_correlation_needs_no_friedel_merging(tmp_path):
    together, apart = noisy(tmp_path), noisy(tmp_path, friedel=False)
    assert len(apart.map.index) > 1.8 * len(together.map.index)
    cc = together.statistics.overall["cc_friedel"]
    assert 0.5 < cc < 1
    assert apart.statistics.overall["cc_friedel"] == pytest.approx(cc, rel=1e-9)


def test_friedel_correlation_unknown_when_only_one_mate_is_measured(tmp_path):
    grid = small_grid("P 1", (9, 10, 11, 80, 95, 105), (1, 2, 3))
    index = all_voxels(grid)
    index = index[index[:, 0] > 0]
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(14))
    assert math.isnan(merge(tmp_path / "a.h5", grid, rows).statistics.overall["cc_friedel"])


def test_missing_cone_lowers_completeness(tmp_path):
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90))
    index = all_voxels(grid)
    cone = np.abs((index / grid.subdivide @ grid.reciprocal_matrix.T)[:, 2]) > 0.8 * grid.s_magnitude(index)
    rows = observation_rows(grid, index[~cone], true_intensity(grid, index[~cone]), np.random.default_rng(15))
    table = merge(tmp_path / "a.h5", grid, rows).statistics
    assert table.overall["completeness"] == pytest.approx(1 - cone.mean(), abs=0.02)
    assert np.all(table.shells["completeness"] < 0.95) and np.all(table.shells["completeness"] > 0.6)
    assert table.overall["multiplicity"] == pytest.approx(8, abs=0.5)


def test_shell_table_against_plain_numpy(tmp_path):
    grid = small_grid("P 41", (20, 20, 24, 90, 90, 90))
    index = all_voxels(grid)
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(16), scale=30)
    result = merge(tmp_path / "a.h5", grid, rows, n_shells=3, d_max=10, d_min=3.5)
    data, table = result.map, result.statistics
    assert tuple(table.shells) == COLUMNS and tuple(table.overall) == COLUMNS
    d = 1 / data.grid.s_magnitude(data.index)
    for row in (*table.rows(), table.overall):
        use = (d <= row["d_max"]) & (d > row["d_min"] * (1 - 1e-9))
        assert row["n"] == row["possible"] == use.sum()
        assert row["mean"] == pytest.approx(data.intensity[use].mean())
        assert row["mean_sigma"] == pytest.approx(data.sigma[use].mean())
        assert row["multiplicity"] == pytest.approx(data.multiplicity[use].mean())
        assert row["cc_half"] == pytest.approx(
            anisotropic_correlation(data.half_a, data.half_b, 1 / d, row["d_max"], row["d_min"]), abs=0.01
        )
    volumes = 1 / table.shells["d_min"] ** 3 - 1 / table.shells["d_max"] ** 3
    np.testing.assert_allclose(volumes, volumes[0])
    np.testing.assert_allclose(shell_limits(math.inf, 2, 8)[[0, 1, -1]], [math.inf, 4, 2])


def test_correlation_identities():
    rng = np.random.default_rng(17)
    s = rng.uniform(0.1, 0.5, 20_000)
    signal, noise = rng.normal(size=(2, len(s)))
    fall = 10 * np.exp(-8 * s)
    assert anisotropic_correlation(signal, signal, s) == pytest.approx(1)
    assert anisotropic_correlation(signal, 3 - 2 * signal, s) == pytest.approx(-1)
    assert abs(anisotropic_correlation(signal + fall, noise + 2 * fall, s)) < 0.03  # the isotropic part does not count
    half = anisotropic_correlation(signal + fall, signal + noise, s)
    assert half == pytest.approx(1 / math.sqrt(2), abs=0.02)
    with_gaps = np.where(s > 0.3, np.nan, signal)
    assert anisotropic_correlation(with_gaps, np.where(s > 0.3, noise, signal), s) == pytest.approx(1)
    mixed = np.where(s > 0.25, signal, noise)
    assert anisotropic_correlation(signal, mixed, s, d_max=4, d_min=2) == pytest.approx(1)
    assert abs(anisotropic_correlation(signal, mixed, s, d_max=10, d_min=4)) < 0.05
    assert math.isnan(anisotropic_correlation(signal[:2], signal[:2], s[:2]))
    assert math.isnan(anisotropic_correlation(fall, np.zeros(len(s)), s))


def test_isotropic_residual_is_what_lines_in_thin_shells_leave():
    rng = np.random.default_rng(18)
    s, values = rng.uniform(0, 0.1, (2, 5000))
    residual = isotropic_residual(values + 100 * s, s)
    for shell in np.array_split(np.argsort(s), 5000 // 40):
        slope, constant = np.polyfit(s[shell], values[shell], 1)
        np.testing.assert_allclose(residual[shell], values[shell] - slope * s[shell] - constant, atol=1e-9)


@pytest.mark.parametrize("n", [1000, 30_000])
def test_a_steep_ring_of_solvent_is_not_shared_signal(n):
    """A hundred times as strong as the noise of both halves; means in shells of 0.004 1/Å left a correlation of 0.9."""
    rng = np.random.default_rng(19)
    s = rng.uniform(0.05, 0.4, n)
    ring = 1e5 * (np.exp(-(((s - 0.3) / 0.03) ** 2)) + 0.3)
    halves = ring + 500 * rng.normal(size=(2, n))
    assert abs(anisotropic_correlation(*halves, s)) < 4 / math.sqrt(n)
    signal = 500 * rng.normal(size=n)
    assert anisotropic_correlation(*(halves + signal), s) == pytest.approx(0.5, abs=0.1)


def test_what_is_smooth_in_direction_is_taken_off():
    rng = np.random.default_rng(20)
    s = rng.uniform(-0.4, 0.4, (20_000, 3))
    length = np.linalg.norm(s, axis=1)
    s, length = s[length > 0.15], length[length > 0.15]  # of less there are too few
    u = s / length[:, None]
    smooth = 1000 * np.exp(-5 * length) * (1 + 0.2 * u[:, 0] ** 2 - 0.3 * u[:, 1] * u[:, 2] + 0.1 * u[:, 2] ** 4)
    signal = rng.normal(size=len(s))
    assert fine_residual(smooth, s).std() < 0.02 * isotropic_residual(smooth, length).std()
    left = fine_residual(signal, s)  # lines of 40 voxels and 15 coefficients for a thousand of them take little
    assert left.std() == pytest.approx(1, abs=0.05) and np.corrcoef(left, signal)[0, 1] > 0.96
