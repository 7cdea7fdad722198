"""What Bragg masks take of voxels at lattice points comes back."""

from __future__ import annotations

import numpy as np
import pytest

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.merging.bragg_holes import holes, missing

GRID = MapGrid((50.0, 45.0, 30.0, 90.0, 105.0, 90.0), "P 2yb", subdivide=(3, 3, 3), d_min=4.0)
HALO = 0.03  # 1/Å, half width
FINE = (np.arange(15) + 0.5) / 15 - 0.5
POINTS = np.stack(np.meshgrid(FINE, FINE, FINE, indexing="ij"), axis=-1).reshape(-1, 3)


def halos(fraction) -> np.ndarray:
    """Halos about lattice points, at (n, 3) positions in Miller indices, the six nearest."""
    metric = np.array(GRID.reciprocal_matrix)
    total = np.zeros(len(fraction))
    for step in [(0, 0, 0), *np.eye(3), *-np.eye(3)]:
        d = np.linalg.norm((fraction - np.rint(fraction) - step) @ metric.T, axis=1)
        total += 100 / (1 + (d / HALO) ** 2) ** 2
    return total


def voxel(place, radius) -> tuple:
    """Mean over a voxel, over what is further than ``radius`` (1/Å) from lattice points, and the part that this is."""
    at = (place + POINTS) / 3
    far = np.linalg.norm((at - np.rint(at)) @ np.array(GRID.reciprocal_matrix).T, axis=1) >= radius
    values = halos(at)
    return values.mean(), values[far].mean(), far.mean()


@pytest.fixture(scope="module")
def masked() -> tuple:
    """Voxels, true means, means of what a mask of 60 % of the voxel's edge leaves, pixels."""
    index = np.concatenate(list(possible_voxels(GRID)))
    edge = np.linalg.norm(np.array(GRID.reciprocal_matrix) / 3, axis=0).min()
    kinds = {tuple(p): voxel(np.array(p), 0.6 * edge) for p in np.ndindex(3, 3, 3)}
    columns = np.array([kinds[tuple(p)] for p in index % 3])
    return index, *columns.T


def test_a_mask_leaves_what_is_counted():
    left, spread = holes(GRID)
    assert left[-1] == 1 and np.all(np.diff(left) >= 0) and left[0] < 0.3
    np.testing.assert_allclose(spread[-1], 0)
    assert np.all(np.diff(spread.sum(axis=1)) <= 0.001) and np.all(spread[0] > 0.02)


def test_what_the_rims_lack_is_added(masked):
    """Most of it: second differences are a little less than the second derivative at the top of a halo."""
    index, true, rim, part = masked
    sigma = np.full((len(index), 1), 0.01)
    rows, delta, variance, found = missing(GRID, True, index, 40 * part, rim[:, None], sigma)
    assert len(rows) > 50 and np.all(index[rows] % 3 == 0)
    lack = (true - rim)[rows]
    assert np.all(lack > 1)
    assert np.all((delta[:, 0] > 0.7 * lack) & (delta[:, 0] < 1.1 * lack))
    assert np.all((variance >= 0) & (variance < 0.01**2))
    assert np.all(found < 0.9)


def test_noise_is_not_added(masked):
    """Where counting makes all the difference between voxels, all get what is usual; halves keep their own errors."""
    index, true, rim, part = masked
    rng = np.random.default_rng(0)
    size = 40.0
    halves = rim[:, None] + rng.normal(0, size * np.sqrt(2), (len(index), 2))
    values = np.column_stack([halves.mean(axis=1), halves])
    rows, delta, variance, _ = missing(GRID, True, index, 40 * part, values, np.full(values.shape, size))
    assert delta[:, 0].std() < 0.1 * size
    assert np.mean(delta[:, 0]) == pytest.approx(
        0.8 * np.mean((true - rim)[rows]), abs=4 * 0.3 * size / np.sqrt(len(rows))
    )
    np.testing.assert_allclose(delta[:, 0], delta[:, 1:].mean(axis=1), atol=1e-9)
    assert np.all(np.sqrt(variance) < 0.2 * size)


def test_whole_voxels_stay(masked):
    index, true, _, part = masked
    values = true[:, None]
    for pixels in (np.full(len(index), 40.0), 40.0 * np.where(np.arange(len(index)) % 2, 1.0, 0.98)):
        assert not len(missing(GRID, True, index, pixels, values, 0 * values + 1)[0])
    coarse = MapGrid(GRID.unit_cell, GRID.hall_symbol, (1, 1, 1), 4.0)
    assert not len(missing(coarse, True, index, 40 * part, values, 0 * values + 1)[0])
