"""The mean over the Laue group of a map."""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.transform import inside, s_squared


def laue_average(volume: np.ndarray, grid: MapGrid) -> np.ndarray:
    """Average over the Laue group of the grid, of those mates that are not NaN.

    Parameters
    ----------
    volume : float64 of ``grid.shape``; what lies outside 1/d_min does not matter

    Returns
    -------
    float64 of ``grid.shape``, NaN outside 1/d_min
    """
    operators = laue_operators(grid.space_group, friedel=True)
    weights = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    ranges = [np.arange(-m, m + 1) for m in grid.extent]
    origin = int(np.array(grid.extent) @ weights)
    flat = np.ascontiguousarray(volume).reshape(-1)
    total = np.zeros(grid.shape)
    count = np.zeros(grid.shape, dtype=np.uint8)  # a Laue group has at most 48 operators
    for operator in operators:
        first, *rest = [r * w for r, w in zip(ranges, operator @ weights)]
        plane = np.add.outer(*rest) + origin
        for layer, number, start in zip(total, count, first):
            mates = flat.take(plane + start, mode="clip")  # clipped: outside the box, thus outside 1/d_min
            known = mates == mates
            number += known
            layer += np.where(known, mates, 0.0)
    total[~inside(grid, s_squared(grid))] = np.nan
    total /= count
    return total
