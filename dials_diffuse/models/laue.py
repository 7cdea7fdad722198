"""The mean over the Laue group of a map."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.symmetry import average_orbits
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import MARGIN, key_weights, laue_operators


def laue_average(volume: np.ndarray, grid: MapGrid) -> np.ndarray:
    """Average over the Laue group of the grid, of those mates that are not NaN.

    Parameters
    ----------
    volume : float64 of ``grid.shape``; what lies outside 1/d_min does not matter

    Returns
    -------
    float64 of ``grid.shape``, NaN outside 1/d_min
    """
    edges = grid.reciprocal_matrix / np.array(grid.subdivide)
    operators = laue_operators(grid.space_group, friedel=False)
    weights = key_weights(grid.space_group, max(grid.extent))[1]
    longest, furthest = ((factor / grid.d_min) ** 2 for factor in (1 + 1e-12, MARGIN))
    result = np.empty(grid.shape)
    average_orbits(np.ascontiguousarray(volume), operators, weights, edges.T @ edges, longest, furthest, result)
    return result
