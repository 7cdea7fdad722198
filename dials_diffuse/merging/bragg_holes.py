"""What Bragg masks took of the voxels at lattice points is added, as the map around them lets expect.

A mask leaves the rim of such a voxel. Diffuse halos have their tops in the middle, so the rim is weaker than the voxel.

Source: docs/theory.md, Bragg masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import rows_of

N_POINTS = 12  # along each edge of a voxel, for means over it
N_RADII = 60
LEAST = 0.03  # part of a voxel that is left, at least
WHOLE = 0.97  # voxels with this part of the pixels that their neighbours have are whole
FEWEST = 50  # voxels at lattice points
SHELL = 200  # of them in a shell of resolution
STEPS = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])


@dataclass(frozen=True)
class BraggHoles:
    """What was added to voxels at lattice points.

    Attributes
    ----------
    voxels : how many
    pixels : median of the pixels that they have, over those of their neighbours
    added : mean of what was added; rms : of the same; in the unit of the map
    """

    voxels: int
    pixels: float
    added: float
    rms: float


def holes(grid: MapGrid) -> tuple:
    """What spheres about the middle of a voxel leave of it.

    Returns
    -------
    left : (n,) part of the pixels over the part that the six neighbours have, ascending
    spread : (n, 3) mean square distance of what is left from the middle along the axes of the grid, in edges of a
        voxel, less that of the whole voxel
    """
    x = (np.arange(N_POINTS) + 0.5) / N_POINTS - 0.5
    points = np.stack(np.meshgrid(x, x, x, indexing="ij"), axis=-1).reshape(-1, 3)
    edges = np.array(grid.reciprocal_matrix) / np.array(grid.subdivide)
    far = np.linalg.norm(points @ edges.T, axis=1)
    near = [np.linalg.norm((points + step) @ edges.T, axis=1) for step in STEPS]
    left, spread = [], []
    for radius in np.linspace(0, far.max(), N_RADII):
        outside = far >= radius
        if outside.mean() < LEAST:
            break
        left.append(outside.mean() / max(np.mean([n >= radius for n in near]), LEAST))
        spread.append(np.mean(points[outside] ** 2, axis=0) - np.mean(points**2, axis=0))
    # beyond the size of the voxel neighbours lose as much, and the same ratio comes again
    last = int(np.argmin(left)) + 1
    return np.array(left[:last])[::-1], np.array(spread[:last])[::-1]


def missing(grid: MapGrid, friedel: bool, index, pixels, intensity, sigma) -> tuple:
    """What the rims of voxels at lattice points lack.

    Over a voxel the intensity is taken for a quadratic. Its second derivatives are second differences of the map along
    the axes of the grid. The size of the hole in the voxel is that of the sphere which leaves as many pixels.
    What single voxels lack is shrunk to the mean of their shell as far as it is noise.

    Parameters
    ----------
    index : (u, 3) unique voxels
    pixels : (u,) of an observation, the mean
    intensity, sigma : (u, k) of the whole map and of its half sets, NaN where not measured; the first decides how much
        is noise

    Returns
    -------
    rows : (n,) voxels to which something is added
    delta : (n, k) float64, what is added
    variance : (n,) of it, from counting
    part : (n,) of the pixels that their neighbours have
    """
    at = np.flatnonzero(np.all(index % np.array(grid.subdivide) == 0, axis=1))
    none = np.zeros(0, int), np.zeros((0, intensity.shape[1])), np.zeros(0), np.zeros(0)
    if min(grid.subdivide) < 2 or len(at) < FEWEST:
        return none
    around = np.stack([_rows(grid, friedel, index, at, step) for step in STEPS])
    seen = np.all(around >= 0, axis=0)
    at, around = at[seen], around[:, seen]
    if len(at) < FEWEST:
        return none
    part = pixels[at] / np.mean(pixels[around], axis=0)
    if np.median(part) > WHOLE:
        return none
    left, spread = holes(grid)
    k = np.stack([np.interp(part, left, column) for column in spread.T], axis=1)
    k[part > WHOLE] = 0.0
    whole = 1 - k.sum(axis=1)
    sums = intensity[around[:3]] + intensity[around[3:]]
    delta = (intensity[at] * k.sum(axis=1)[:, None] - 0.5 * np.einsum("anh,na->nh", sums, k)) / whole[:, None]
    squares = sigma[around[:3], 0] ** 2 + sigma[around[3:], 0] ** 2
    noise = ((sigma[at, 0] * k.sum(axis=1)) ** 2 + 0.25 * np.einsum("an,na->n", squares, k**2)) / whole**2
    order = np.argsort(grid.s_magnitude(index[at]), kind="stable")
    for rows in np.array_split(order, max(len(order) // SHELL, 1)):
        usual = delta[rows, 0].mean()
        keep = max(1 - noise[rows].mean() / max(delta[rows, 0].var(), 1e-300), 0.0)
        delta[rows] = usual + keep * (delta[rows] - usual)
        noise[rows] *= keep**2
    delta = np.where(np.isfinite(delta), delta, delta[:, :1])
    return at, delta, noise, part


def _rows(grid: MapGrid, friedel: bool, index, at, step) -> np.ndarray:
    """Rows of the voxels a step from those ``at``, -1 where they were not measured."""
    return rows_of(map_to_asu(index[at] + step, grid.space_group, friedel)[0], index)
