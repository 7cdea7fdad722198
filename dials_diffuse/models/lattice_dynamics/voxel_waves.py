"""Waves in a voxel: points and weights for the mean of what diverges as 1/k² at a lattice point."""

from __future__ import annotations

import itertools

import numpy as np

from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.crystal import Structure

#: cubes one in the other around a lattice point, each half as large; inside the last 1/k² is exact
_LEVELS = 4
#: points of Gauss's rule along each edge: of the parts of these cubes, of voxels near a lattice point, of all others
_PARTS, _NEAR, _FAR = 2, 3, 2
#: voxels from a lattice point, along each axis, up to which it is near
_NEIGHBOURS = 2


def voxel_waves(offset, structure: Structure) -> tuple:
    """Points in a voxel, and weights, of sum 1 but at a lattice point.

    Where operators of the group turn voxels into others of another shape (trigonal and hexagonal axes), points in all
    of these.

    Parameters
    ----------
    offset : (3,) int, voxels from the voxel's centre to the nearest lattice point along each axis
    structure : with the group

    Returns
    -------
    (n, 3) and (n,) float64; points relative to the voxel's centre, in units of its edges
    """
    offset = np.abs(np.asarray(offset))
    if not offset.any():
        points, weights = _around_lattice_point()
    else:
        points, weights = gauss_box(_NEAR if offset.max() <= _NEIGHBOURS else _FAR)
    mates = np.concatenate([points @ r for r in laue_operators(structure.space_group, friedel=True)])
    weights = np.tile(weights, len(mates) // len(points))
    mates, number = np.unique(mates.round(9) + 0.0, axis=0, return_inverse=True)
    return mates, np.bincount(number.reshape(-1), weights) * len(points) / len(number)


def gauss_box(n: int) -> tuple:
    """Gauss's rule in a cube of edge 1 around the origin: (n³, 3) points, (n³,) weights of sum 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    points = np.array(list(itertools.product(x / 2, repeat=3)))
    return points, np.prod(np.array(list(itertools.product(w / 2, repeat=3))), axis=1)


def _around_lattice_point() -> tuple:
    """A cube of edge 1 without its middle of edge 1/2, that middle without its own, and so on.

    The mean M over a cube of what goes as 1/k² is that over the shell, of 7/8 of the volume, times 7/8, and M/2 of the
    middle: the last shell counts twice. What does not vary counts 0.15 % too much.
    """
    points, weights = gauss_box(_PARTS)
    corners = (np.array(list(itertools.product(range(4), repeat=3))) - 1.5) / 4
    corners = corners[np.abs(corners).max(axis=1) > 0.25]
    shell = (corners[:, None] + points / 4).reshape(-1, 3)
    shell_weights = np.tile(weights / 64, len(corners))
    sizes = 0.5 ** np.arange(_LEVELS)
    volumes = sizes**3
    volumes[-1] *= 2
    return np.concatenate([shell * x for x in sizes]), np.concatenate([shell_weights * v for v in volumes])
