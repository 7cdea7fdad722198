"""How many symmetry-unique voxels are there in a shell? Counted by lines of the lattice, not one by one."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators

#: lines of the lattice that are counted together
_LINES = 1 << 18


def count_unique(grid: MapGrid, friedel: bool, s_limits: np.ndarray) -> np.ndarray:
    """Symmetry-unique voxels of the whole lattice whose centres lie between limits of |s|.

    The number of orbits of a group is the mean over its operators of the number of points that each leaves where they
    are (the lemma of Cauchy, Frobenius and Burnside): all points for the identity, a plane of them for a mirror, a line
    for a rotation, the origin for the others. Time goes with the area of the sphere, not with its volume.

    Parameters
    ----------
    friedel : are (h, k, l) and (-h, -k, -l) one voxel?
    s_limits : (n + 1,) float64, ascending, 1/Å; a voxel on a limit may count on either side of it

    Returns
    -------
    (n,) int64, ``s_limits[i] <= |s| < s_limits[i + 1]``

    Source: C. Burnside, Theory of Groups of Finite Order (1897), section 118
    """
    operators = laue_operators(grid.space_group, friedel)
    below = np.zeros(len(s_limits), dtype=np.int64)
    for operator in operators:
        fixed = integer_kernel(operator - np.eye(3, dtype=np.int64))
        below += _points_within(grid.s(fixed), s_limits)
    return np.rint(np.diff(below) / len(operators)).astype(np.int64)


def integer_kernel(matrix: np.ndarray) -> np.ndarray:
    """(r, 3) int64, a basis of all integer row vectors v with ``v @ matrix`` zero, by integer elimination.

    matrix : (3, n) integers
    """
    rows = [[int(x) for x in (*row, *unit)] for row, unit in zip(matrix, np.eye(3, dtype=int))]
    n = len(matrix[0])
    done = 0
    for column in range(n):
        while sum(row[column] != 0 for row in rows[done:]) > 1:
            rows[done:] = sorted(rows[done:], key=lambda row: (row[column] == 0, abs(row[column])))
            first = rows[done]
            for row in rows[done + 1 :]:
                factor = row[column] // first[column]
                row[:] = [a - factor * b for a, b in zip(row, first)]
        rows[done:] = sorted(rows[done:], key=lambda row: row[column] == 0)
        done += any(row[column] for row in rows[done:])
    return np.array([row[n:] for row in rows[done:]], dtype=np.int64).reshape(-1, 3)


def _points_within(basis: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(n,) int64, points of a lattice that are nearer to the origin than each radius.

    basis : (r, 3) float64, independent vectors; radii : (n,) float64
    """
    counts = np.zeros(len(radii), dtype=np.int64)
    if not len(basis):
        return counts + (radii > 0)
    lines, along = basis[:-1], basis[-1]
    length = math.sqrt(along @ along)
    # a line is as far from the origin as its projection along the last vector
    flat = lines - np.outer(lines @ along, along) / length**2
    for numbers in _lines_within(flat, radii[-1]):
        start = numbers @ lines
        middle = -(start @ along) / length**2
        distance = np.sum((numbers @ flat) ** 2, axis=1)
        for i, radius in enumerate(radii):
            near = distance < radius**2
            half = np.sqrt(radius**2 - distance[near]) / length
            last, first = np.ceil(middle[near] + half) - 1, np.floor(middle[near] - half) + 1
            counts[i] += int(np.maximum(last - first + 1, 0).sum())
    return counts


def _lines_within(basis: np.ndarray, radius: float):
    """Blocks of (m, r) float64, integer combinations of up to two vectors, all those nearer than the radius."""
    if not len(basis):
        yield np.zeros((1, 0))
        return
    inverse = np.linalg.inv(basis @ basis.T)
    most = [math.floor(radius * math.sqrt(x)) + 1 for x in np.diag(inverse)]
    span = np.arange(-most[0], most[0] + 1, dtype=float)
    if len(basis) == 1:
        yield span[:, None]
        return
    other = np.arange(-most[1], most[1] + 1, dtype=float)
    step = max(1, _LINES // len(other))
    for start in range(0, len(span), step):
        yield np.stack(np.meshgrid(span[start : start + step], other, indexing="ij"), axis=-1).reshape(-1, 2)
