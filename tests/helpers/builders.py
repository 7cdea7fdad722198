"""Observations with a known answer, written to files as the integration program would."""

from __future__ import annotations

from contextlib import contextmanager

import h5py
import numpy as np

from dials_diffuse.files.checksum import CHECKSUM
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ExperimentSummary, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, unique_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations

PROVENANCE = Provenance("tests", "DIALS", "", ("none.expt",), ("id-1",))


def small_grid(symbol="P 41", cell=(12.0, 12.0, 18.0, 90.0, 90.0, 90.0), subdivide=(2, 2, 2), d_min=3.0, d_max=100.0):
    from cctbx import sgtbx

    hall = sgtbx.space_group_info(symbol).group().type().hall_symbol()
    return MapGrid(cell, hall, subdivide, d_min, d_max)


def all_voxels(grid: MapGrid) -> np.ndarray:
    """(n, 3) int32, every voxel inside the limits of a grid."""
    index = grid.index(np.arange(grid.n_voxels))
    return index[grid.inside(index)]


def true_intensity(grid: MapGrid, index, friedel: bool = True) -> np.ndarray:
    """(n,) a smooth positive function with the symmetry of the grid: isotropic decay times symmetrised waves."""
    index = np.asarray(index)
    waves = np.zeros(len(index))
    for operator in laue_operators(grid.space_group, friedel):
        mates = index @ operator
        waves += np.cos(0.7 * mates[:, 0] + 0.4 * mates[:, 1] - 0.9 * mates[:, 2])
        waves += np.sin(0.5 * mates[:, 0] - 0.8 * mates[:, 1] + 0.6 * mates[:, 2])
    waves /= np.sqrt(len(laue_operators(grid.space_group, friedel)))
    return np.exp(-5 * grid.s_magnitude(index)) * (3 + np.tanh(waves))


def observation_rows(
    grid: MapGrid, index, intensity, rng, scale=1000.0, background=0.2, pixels=8, noise=True
) -> np.ndarray:
    """One row per index: Poisson counts of ``pixels`` pixels, of which every second belongs to an odd image.

    intensity : (n,) expected counts per unit norm, times ``scale``
    background : expected background counts per pixel, relative to ``scale``
    """
    n = len(index)
    rows = np.zeros(n, OBSERVATION_DTYPE)
    correction = rng.uniform(0.5, 1.5, (n, pixels))
    expected_background = background * scale * rng.uniform(0.5, 1.5, (n, pixels))
    expected = np.asarray(intensity)[:, None] * scale * correction + expected_background
    counts = rng.poisson(expected).astype(float) if noise else expected
    rate = (counts - expected_background) / correction
    rows["index"] = index
    rows["pixels"] = pixels
    rows["counts"] = counts.sum(axis=1)
    rows["norm"] = correction.sum(axis=1)
    rows["background"] = expected_background.sum(axis=1)
    rows["background_variance"] = 0.01 * rows["background"]
    rows["rate"] = rate.sum(axis=1)
    rows["rate_variance"] = (counts / correction**2).sum(axis=1)
    odd = slice(1, None, 2)
    rows["pixels_odd"] = pixels // 2
    rows["counts_odd"] = counts[:, odd].sum(axis=1)
    rows["norm_odd"] = correction[:, odd].sum(axis=1)
    rows["background_odd"] = expected_background[:, odd].sum(axis=1)
    rows["rate_odd"] = rate[:, odd].sum(axis=1)
    rows["s"] = grid.s_magnitude(index)
    return rows


def write_rows(path, grid: MapGrid, rows: np.ndarray, identifier="id-1"):
    """Write an observation file and return its path."""
    experiment = ExperimentSummary(identifier, (1, 10), (0.0, 0.1), 10, 1.0, 1, (100, 100))
    with write_observations(path, grid, [experiment], PROVENANCE) as writer:
        for start in range(0, len(rows), 100_000):
            writer.append(rows[start : start + 100_000])
    return path


@contextmanager
def edited(path):
    """A file of ours, open for changes; it has no checksum of its head afterwards, as those of older versions."""
    with h5py.File(path, "r+") as handle:
        handle.attrs.pop(CHECKSUM, None)
        yield handle


def damage_chunk(path, column: str) -> None:
    """Overwrite the last packed chunk of a column."""
    with h5py.File(path) as handle:
        dataset = handle["observations"][column].id
        chunk = dataset.get_chunk_info(dataset.get_num_chunks() - 1)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)


def merge(path, grid=None, rows=None, block=700, **options):
    """Merge a file, after writing ``rows`` to it if there are any; options are those of MergeParameters."""
    if rows is not None:
        write_rows(path, grid, rows)
    return merge_observations([path], MergeParameters(**{"n_shells": 4, **options}), rows=block)


MAP_GRID = small_grid("P 31 2 1", (9, 9, 14, 90, 90, 120), (2, 2, 3))


def example_map(friedel=True) -> DiffuseMap:
    """A map of which the first voxel was not measured, with everything that a file can hold."""
    index = unique_voxels(all_voxels(MAP_GRID), MAP_GRID.space_group, friedel).index[1:]
    rng = np.random.default_rng(0)
    n = len(index)
    half_a = rng.random(n)
    half_a[3] = np.nan
    return DiffuseMap(
        grid=MAP_GRID,
        friedel=friedel,
        index=index,
        intensity=true_intensity(MAP_GRID, index, friedel),
        sigma=rng.random(n),
        multiplicity=rng.integers(1, 9, n).astype(np.int32),
        half_a=half_a,
        half_b=rng.random(n),
        half_sets="frame",
        sums={"counts": rng.random((n, 2)), "norm": rng.random((n, 2))},
        statistics={"d_max": np.array([9.0, 4.0]), "d_min": np.array([4.0, 3.0]), "cc_half": np.array([0.5, np.nan])},
        overall={"d_max": 9.0, "d_min": 3.0, "n": 7},
    )
