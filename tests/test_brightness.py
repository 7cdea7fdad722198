"""Sweeps that were exposed otherwise, and merged unscaled: the user is told which one, and only then."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.builders import small_grid
from helpers.sweeps import random_intensity, summary, sweep_rows, write_sweeps

from dials_diffuse.merging.brightness import Brightness, SweepSums, unlike_in_words
from dials_diffuse.merging.laue import MergeParameters, merge_observations

GRID = small_grid("P 2 2 2", (16, 18, 20, 90, 90, 90), (2, 2, 2), 2.2)
TURN = 60.0


def isotropic(grid, index):
    return 3 * np.exp(-5 * grid.s_magnitude(index))


def sweeps(n, intensity=random_intensity, scale=300.0) -> list:
    return [
        sweep_rows(GRID, intensity, np.random.default_rng(k), scale=scale, turn=TURN, seed=k) for k in range(1, n + 1)
    ]


def exposed(rows, factor) -> np.ndarray:
    """The same counts where the exposure is said to be shorter by a factor."""
    rows = rows.copy()
    for name in ("norm", "norm_odd"):
        rows[name] /= factor
    for name in ("rate", "rate_odd"):
        rows[name] *= factor
    rows["rate_variance"] *= factor**2
    return rows


def merged(path, parts):
    experiments = [summary(f"id-{k}", turn=TURN, n_images=60) for k in range(len(parts))]
    return merge_observations([write_sweeps(path, GRID, *parts, experiments=experiments)], MergeParameters(n_shells=4))


def complaints(result) -> list:
    return [text for text in result.warnings if "times as bright" in text]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_sweep_that_was_exposed_otherwise_is_named(tmp_path, n):
    *others, last = sweeps(n)
    result = merged(tmp_path / "a.h5", [*others, exposed(last, 2.0)])
    (text,) = complaints(result)
    assert text.startswith(f"sweep {n - 1} (id-{n - 1}) is ") and "dials.diffuse_scale" in text
    assert any("symmetry mates disagree" in text for text in result.warnings)
    ratio = result.brightness[-1].ratio / result.brightness[0].ratio
    assert ratio == pytest.approx(2, rel=0.15)  # each sweep sees other directions


@pytest.mark.parametrize("factor", [1.0, 1.05])
@pytest.mark.parametrize(
    "intensity, scale", [(random_intensity, 300.0), (random_intensity, 2.0), (isotropic, 300.0), (isotropic, 2.0)]
)
def test_good_and_weak_sweeps_are_not(tmp_path, intensity, scale, factor):
    """A difference of 5 % is nothing where voxels differ by more; where they do not, it is a pattern in the map."""
    *others, last = sweeps(3, intensity, scale)
    result = merged(tmp_path / "a.h5", [*others, exposed(last, factor)])
    pattern = factor > 1 and intensity is isotropic and scale > 100
    assert len(complaints(result)) == pattern
    assert not any("mates disagree" in text for text in result.warnings)


def test_sweeps_without_a_common_shell_are_not_compared():
    sums = SweepSums(2, 2.0)
    n = 1000
    rng = np.random.default_rng(0)
    s = np.concatenate([rng.uniform(0.0, 0.2, n), rng.uniform(0.3, 0.5, n)])
    block = {
        "s": s,
        "experiment": np.repeat([0, 1], n),
        "counts": np.full(2 * n, 9.0),
        "background": np.zeros(2 * n),
        "norm": np.ones(2 * n),
    }
    assert list(sums.watch([(0, block)]))
    assert all(np.isnan(b.ratio) for b in sums.compare(["a", "b"]))


@pytest.mark.parametrize("ratio, esd, named", [(1.5, 0.01, True), (1.5, 0.4, False), (1.05, 0.001, False)])
def test_two_sweeps(ratio, esd, named):
    """Their difference has to be larger than its error, and larger than that of voxels of the map."""
    sweeps = [Brightness(0, "id-0", 1.0, 0.0), Brightness(1, "id-1", ratio, esd)]
    assert bool(unlike_in_words(sweeps, {"rms_anisotropic": 0.2, "mean": 1.0})) == named
