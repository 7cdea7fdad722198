"""The best of several models: differences of free correlations, and errors of these by repeated simulation."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.builders import small_grid

from dials_diffuse.fitting.choice import choose
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import correlation, shell_residual
from dials_diffuse.maps.symmetry import possible_voxels


@pytest.fixture(scope="module")
def data():
    """Voxels of which a fifth is free, and a signal of unit variance that varies from voxel to voxel."""
    grid = small_grid("P 41", (40.0, 40.0, 50.0, 90, 90, 90), (2, 2, 2), 3.0)
    index = np.concatenate(list(possible_voxels(grid)))
    ones = np.ones(len(index))
    found = select(DiffuseMap(grid, True, index, ones, ones, ones.astype(int)), Selection(free_fraction=0.2))
    return replace(found, intensity=np.random.default_rng(7).normal(size=found.n))


def fit(name, fitted, bic, scale=1.0):
    return SimpleNamespace(name=name, fitted=fitted, criteria={"bic": bic}, scale=SimpleNamespace(value=scale))


def in_blocks(data, rng):
    """The same number at all voxels of a block."""
    _, block = np.unique(data.block, return_inverse=True)
    return rng.normal(size=block.max() + 1)[block.reshape(-1)]


def test_free_voxels_fill_whole_blocks(data):
    assert set(data.block[data.free]).isdisjoint(data.block[~data.free])
    assert len(np.unique(data.block[data.free])) > 20


def test_error_by_leaving_out_each_block(data):
    rng = np.random.default_rng(0)
    models = [data.intensity + size * rng.normal(size=data.n) for size in (0.5, 0.6)]
    choice = choose([fit("a", models[0], 0.0), fit("b", models[1], 0.0)], data)
    x, *others = (shell_residual(values, data.s) for values in (data.intensity, *models))
    differences = []
    for block in np.unique(data.block[data.free]):
        rest = data.free & (data.block != block)
        first, second = (correlation(x[rest], y[rest]) for y in others)
        differences.append(first - second)
    number = len(differences)
    assert choice.errors[0] == 0 and choice.below[0] == 0
    assert choice.errors[1] == pytest.approx(np.std(differences) * np.sqrt(number - 1), rel=1e-6)
    whole = [correlation(x[data.free], y[data.free]) for y in others]
    assert choice.below[1] == pytest.approx(whole[0] - whole[1])
    assert choice.record([fit("a", None, 0), fit("b", None, 0)])["models"][1]["error"] == choice.errors[1]


@pytest.mark.parametrize(("shared", "size"), [(True, 0.1), (False, 0.5)])
def test_the_error_is_that_of_repeated_simulation(data, shared, size):
    """Deviations of the models are alike within a block. What both models miss, most of it in one case, does not count.

    (1 - cc²) / sqrt(n) of independent voxels would be too large there, and too small in the other case.
    """
    rng = np.random.default_rng(1)
    differences, errors, naive = [], [], []
    for _ in range(150):
        common = 2 * rng.normal(size=data.n) if shared else 0.0
        observed = replace(data, intensity=data.intensity + common)
        models = [data.intensity * (1 + size * in_blocks(data, rng)) + size * in_blocks(data, rng) for _ in range(2)]
        choice = choose([fit("a", models[0], 0.0), fit("b", models[1], 0.0)], observed)
        lower = int(np.argmax(choice.below))
        differences.append(choice.below[lower] * (1 if lower else -1))
        errors.append(choice.errors[lower])
        x, y = (shell_residual(v, data.s)[data.free] for v in (observed.intensity, models[0]))
        naive.append((1 - correlation(x, y) ** 2) / np.sqrt(np.count_nonzero(data.free)))
    scatter = np.sqrt(np.mean(np.square(differences)))  # 6 % uncertain
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(scatter, rel=0.2)
    if shared:
        assert np.mean(naive) > 1.3 * scatter
    else:
        assert np.mean(naive) < 0.7 * scatter


def test_the_simplest_of_equals(data):
    """Models that differ by much less than noise: the lower BIC; by much more: the higher correlation."""
    rng = np.random.default_rng(2)
    noise, more = rng.normal(size=(2, data.n))
    plain = fit("plain", data.intensity + 0.5 * noise, 10.0)
    rich = fit("rich", data.intensity + 0.5 * noise + 1e-3 * more, 50.0)
    poor = fit("poor", data.intensity + 1.5 * noise, 0.0)
    for order in ([plain, rich, poor], [rich, poor, plain]):
        assert choose(order, data).best is plain
    poor.criteria["bic"], plain.criteria["bic"] = 0.0, 100.0
    choice = choose([poor, plain], data)
    assert choice.best is plain and choice.criterion == "free"
    assert choice.below[0] > 5 * choice.errors[0] > 0


def test_one_standard_error_makes_the_difference(data):
    """The higher correlation counts from one error of the difference on, no earlier and no later."""
    rng = np.random.default_rng(8)
    noise, more = rng.normal(size=(2, data.n))
    rich = fit("rich", data.intensity + 0.5 * noise, 50.0)
    ratios = []
    for size in np.geomspace(0.01, 0.5, 40):
        plain = fit("plain", data.intensity + 0.5 * noise + size * more, 10.0)
        choice = choose([rich, plain], data)
        if choice.below[1] > 0:
            ratios.append(choice.below[1] / choice.errors[1])
            assert choice.best is (rich if ratios[-1] > 1 else plain)
    ratios = np.array(ratios)
    assert np.any((ratios > 0.5) & (ratios < 1)) and np.any((ratios > 1) & (ratios < 2))


def test_a_lead_in_one_block_is_none(data):
    """Where the gain comes from a single block, its voxels are no independent evidence."""
    blocks, sizes = np.unique(data.block[data.free], return_counts=True)
    mine = data.block == blocks[np.argmax(sizes)]
    noise = np.random.default_rng(3).normal(size=data.n)
    plain = fit("plain", data.intensity + noise, 0.0)
    rich = fit("rich", np.where(mine, data.intensity, data.intensity + noise), 20.0)
    choice = choose([plain, rich], data)
    assert choice.below[0] > 0.003 and choice.best is plain
    assert choice.errors[0] > 0.9 * choice.below[0]


def test_a_negative_scale_is_never_the_best(data):
    good, upside = fit("good", data.intensity + 2.0, 50.0), fit("upside", data.intensity, 0.0, scale=-1.0)
    good.fitted = good.fitted + np.random.default_rng(4).normal(size=data.n)
    choice = choose([upside, good], data)
    assert choice.best is good and not choice.warnings
    good.scale.value = 0.0
    choice = choose([upside, good], data)
    assert choice.best is upside
    assert choice.warnings == ("the scales of all models are negative or 0: the data contradict all of them",)
    none = replace(data, free=np.zeros(data.n, dtype=bool))
    good.scale.value = 1.0
    assert choose([upside, good], none).best is good


def test_without_free_voxels_the_lowest_bic(data):
    none = replace(data, free=np.zeros(data.n, dtype=bool))
    a, b = fit("a", data.intensity, 5.0), fit("b", data.intensity, 4.0)
    choice = choose([a, b], none)
    assert choice.best is b and choice.criterion == "bic" and np.isnan([*choice.below, *choice.errors]).all()


def test_a_flat_model_and_a_single_block(data):
    """A model without anisotropy is not the best; one block gives no error, and the BIC decides."""
    noise = np.random.default_rng(5).normal(size=data.n)
    flat, some = fit("flat", np.zeros(data.n), 0.0), fit("some", data.intensity + noise, 9.0)
    assert choose([flat, some], data).best is some
    single = replace(data, free=data.block == data.block[data.free][0])
    other = fit("other", data.intensity + 5 * noise, 1.0)
    choice = choose([some, other], single)
    assert choice.best is other and np.isnan(choice.errors[1])
