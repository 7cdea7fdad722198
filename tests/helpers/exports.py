"""Maps to export, of cells and groups that writers get wrong."""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from helpers.builders import small_grid, true_intensity

#: symbol, cell, subdivision
CRYSTALS = {
    "orthorhombic": ("P 21 21 21", (12.0, 14.0, 18.0, 90.0, 90.0, 90.0), (2, 1, 2)),
    "monoclinic": ("C 1 2 1", (19.0, 12.0, 14.0, 90.0, 107.0, 90.0), (2, 3, 2)),
    "trigonal": ("P 31 2 1", (12.0, 12.0, 17.0, 90.0, 90.0, 120.0), (3, 3, 2)),
    "rhombohedral": ("R 3 2 :H", (16.0, 16.0, 20.0, 90.0, 90.0, 120.0), (2, 2, 1)),
    "triclinic": ("P 1", (9.0, 10.5, 12.0, 80.0, 95.0, 107.0), (2, 2, 2)),
}


def grid_of(crystal: str, d_min: float = 3.0, d_max: float = 30.0) -> MapGrid:
    symbol, cell, subdivide = CRYSTALS[crystal]
    return small_grid(symbol, cell, subdivide, d_min, d_max)


def measured_map(crystal: str, friedel: bool = True, share: float = 0.8, seed: int = 0) -> DiffuseMap:
    """A map with errors and half sets, of which a share of the voxels was measured, and some have one half only."""
    grid, rng = grid_of(crystal), np.random.default_rng(seed)
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    index = index[rng.uniform(size=len(index)) < share]
    sigma = rng.uniform(0.05, 0.1, len(index))
    true = true_intensity(grid, index, friedel)
    half_a, half_b = true + 2**0.5 * sigma * rng.normal(size=(2, len(index)))
    half_b = np.where(rng.uniform(size=len(index)) < 0.1, np.nan, half_b)
    intensity = np.where(np.isfinite(half_b), (half_a + half_b) / 2, half_a)
    multiplicity = rng.integers(1, 9, len(index)).astype(np.int32)
    halves = {"half_a": half_a, "half_b": half_b, "half_sets": "random"}
    return DiffuseMap(grid, friedel, index, intensity, sigma, multiplicity, **halves)


def expanded(data: DiffuseMap, values=None) -> dict:
    """(h, k, l) on the subdivided lattice -> value, of all mates; found by applying every operator to every voxel."""
    values = data.intensity if values is None else values
    found = {}
    for operator in laue_operators(data.grid.space_group, data.friedel):
        found.update(zip(map(tuple, (data.index @ operator).tolist()), values.tolist()))
    return found
