"""Waves in a voxel: points and weights for the mean of what diverges as 1/k² at a lattice point."""

from __future__ import annotations

import itertools

import numpy as np

from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.crystal import Structure

#: points of Gauss's rule at a lattice point: away from it, and along each edge of a face
_OUTWARD, _ACROSS = 3, 6
#: along each edge of voxels near a lattice point, and of all others
_NEAR, _FAR = 3, 2
#: voxels from a lattice point, along each axis, up to which it is near
_NEIGHBOURS = 2


def voxel_waves(offset, structure: Structure) -> tuple:
    """Points in a voxel, and weights of sum 1.

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
        points, weights = pyramids(_OUTWARD, _ACROSS)
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


def pyramids(outward: int, across: int) -> tuple:
    """A rule for 1/k² in a cube of edge 1 around k = 0: (n, 3) points, (n,) weights of sum 1.

    Over each face there is a pyramid with its tip at 0, in which k = r (1, u, v) / 2: its volume element r² takes the
    pole away, so that Gauss's rule along r, u and v converges fast.

    Parameters
    ----------
    outward, across : points along r, and along u and v

    Source: Duffy 1982, SIAM J. Numer. Anal. 19, 1260
    """
    x, wx = np.polynomial.legendre.leggauss(outward)
    u, wu = np.polynomial.legendre.leggauss(across)
    r = (x + 1) / 2
    r, u, v = (y.reshape(-1) for y in np.meshgrid(r, u, u, indexing="ij"))
    weights = (wx[:, None, None] * wu[:, None] * wu).reshape(-1) * r**2 / 16
    face = np.stack([r, r * u, r * v], axis=1) / 2
    points = [sign * np.roll(face, axis, axis=1) for axis in range(3) for sign in (1, -1)]
    return np.concatenate(points), np.tile(weights, 6)
