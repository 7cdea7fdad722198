"""Sums of runs and cells in a tile, against the same pixel by pixel; peaks and |s| in compiled loops, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dials_diffuse.kernels import tile_cells as t
from dials_diffuse.kernels.bricks import N_COLUMNS
from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.sampled import sampled_s
from dials_diffuse.kernels.strong_peaks import measure_peaks
from dials_diffuse.kernels.vectors import running_sums

V, U = np.divmod(np.arange(t.SIZE), t.TILE_X)


@njit
def sums_of_cells(value, number, c, out):
    """The columns of cells, from the values of the pixels of a tile and the number of the cell of each; their order."""
    table, factors = np.empty(4 * t.TILE_X, dtype=np.int64), np.empty(t.CELL_SIZE * t.TILE_Y, dtype=np.int64)
    middle = np.empty(t.TILE_X, dtype=np.float32)
    t.packing(table, factors, middle)
    running = np.empty(4 * (t.SIZE + 1), dtype=np.int64)
    running_sums(value, np.uint64(0), np.uint64(t.SIZE), table, running)
    cell = np.zeros(1 + t.SIZE, dtype=np.int32)
    for i in range(t.SIZE):
        cell[i + 1] = number[i] + ((i // t.TILE_X) << t.MAX_CELL_BITS)
    start, filled = np.empty(t.SIZE + 8, dtype=np.int64), np.empty(t.SIZE + 1, dtype=np.int64)
    n_runs = t.run_starts(cell, start)
    cells = np.zeros(t.CELL_SIZE << t.MAX_CELL_BITS, dtype=np.int64)
    n = t.add_runs(running, factors, cell, start, n_runs, cells, filled)
    words = np.zeros(t.CELL_WORDS * t.SIZE, dtype=np.int64)
    for i in range(n):
        for k in range(t.CELL_WORDS):
            words[k * t.SIZE + i] = cells[filled[i] * t.CELL_SIZE + k]
    zero = np.uint64(0)
    t.cell_sums(words, np.uint64(n), c, zero, zero, (7.0, 2.0, 3.0), (100.0, 200.0, 30.0), 0.5, out)
    return filled[:n].copy(), n_runs


@pytest.mark.parametrize("kind", ["brightest", "all differ", "in turn", "one in a row", "random"])
def test_sums_of_cells_are_those_of_their_pixels(kind):
    rng = np.random.default_rng(1)
    m = rng.integers(0, 1 << t.VALUE_BITS, t.SIZE)
    number, counts = np.zeros(t.SIZE, dtype=np.int32), np.ones(t.SIZE, dtype=bool)
    if kind == "brightest":
        m[:] = (1 << t.VALUE_BITS) - 1  # the largest sums that there can be: none reaches the bits of the next one
    elif kind == "all differ":
        number = np.arange(t.SIZE, dtype=np.int32)
    elif kind == "in turn":
        number = (U % 2).astype(np.int32)
    elif kind == "one in a row":
        counts = U == 31
    else:
        number = (rng.integers(0, 9, t.SIZE) + 500 * (V > 7)).astype(np.int32)
        counts = rng.random(t.SIZE) < 0.8
    c = rng.uniform(0.5, 1.5, (1, 1, 3, 6))
    out = np.empty(N_COLUMNS * t.SIZE)
    filled, n_runs = sums_of_cells(np.where(counts, 2 * m + 1, 0).astype(np.int32), number, c, out)
    assert n_runs == 1 + np.count_nonzero(np.diff(number + (V << t.MAX_CELL_BITS)))
    np.testing.assert_array_equal(np.sort(filled), np.unique(number[counts]))
    terms = np.array([np.ones(t.SIZE), U, V, U * U, U * V, V * V])
    norm, inverse, square = (c[0, 0] @ terms)[:, None]
    photons = m + 7.0
    one = np.ones(t.SIZE)
    pixels = [
        one,
        photons / 2,
        3 * norm[0],
        photons * inverse[0] / 6,
        photons * square[0] / 18,
        U + 100,
        V + 200,
        30 * one,
    ]
    for k, values in enumerate(pixels):
        expected = [0.5 * values[counts & (number == f)].sum() for f in filled]
        np.testing.assert_allclose(out[k * t.SIZE :][: len(filled)], expected, rtol=1e-12)


def test_peaks_are_measured_as_by_scipy():
    rng = np.random.default_rng(3)
    counts = rng.poisson(5, (60, 80)).astype(float)
    for y, x in rng.integers(0, (60, 80), (40, 2)):
        counts[y : y + 2, x : x + 3] += rng.uniform(3, 60)
    strong, good = counts > 12, rng.random(counts.shape) < 0.95
    label, n = ndimage.label(strong, np.ones((3, 3)))
    centre, total = measure_peaks(counts, good & ~strong, label, n, 2, 2.0, 4)
    expected = []
    for i, box in enumerate(ndimage.find_objects(label), start=1):
        wide = tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in box)
        around, mine = counts[wide][(good & ~strong)[wide]], counts[label == i]
        if len(mine) >= 2 and mine.mean() >= 2 * np.median(around):
            expected.append((*ndimage.center_of_mass(counts, label, i)[::-1], mine.sum()))
    assert 10 < len(expected) < n
    np.testing.assert_allclose(np.column_stack([centre, total]), expected)


def test_s_between_pixels_is_that_of_scipy():
    rng = np.random.default_rng(4)
    directions = rng.normal(size=(3, 20, 30)) + 3
    xy = np.concatenate([rng.uniform(0, (30, 20), (50, 2)), [[0, 0], [30, 20], [0.5, 19.5]]])
    s0 = rng.normal(size=(len(xy), 3))
    at = xy[:, ::-1].T - 0.5
    u = np.stack([ndimage.map_coordinates(d, at, order=1, mode="nearest") for d in directions], axis=1)
    for beams in (s0, s0[:1]):
        size = np.linalg.norm(beams, axis=1, keepdims=True)
        expected = np.linalg.norm(u * size / np.linalg.norm(u, axis=1, keepdims=True) - beams, axis=1)
        np.testing.assert_allclose(sampled_s(directions, xy, beams), expected)
