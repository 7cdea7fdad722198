"""Point-group symmetry on integer voxel indices, with cctbx's reciprocal asymmetric unit as the reference.

Operators act on Miller indices as a row vector times the rotation part, ``index' = index @ R``. Voxel indices are
Miller indices times the subdivision, the same for all axes that an operator mixes, so the same integer matrices
act on them. Systematic absences mean nothing here: every voxel can be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from cctbx import miller, sgtbx
from cctbx.array_family import flex

from dials_diffuse.kernels.symmetry import canonical_in_box, extreme_keys
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.key_table import KeyTable

#: voxels that are looked at together when a whole grid is enumerated
_BLOCK = 1 << 21

#: voxels up to so many times 1/d_min are moved to the asymmetric unit before the limit is tested there: cells may
#: deviate a little from the symmetry of their group, and with them the lengths of symmetry mates
MARGIN = 1.02


def laue_operators(space_group: sgtbx.space_group, friedel: bool) -> np.ndarray:
    """Distinct rotation parts of a space group, the identity first.

    Parameters
    ----------
    space_group : any setting
    friedel : add the inverse -R of every operator R

    Returns
    -------
    (m, 3, 3) int64, to be used as ``index @ R``
    """
    rotations = [np.rint(op.r().as_double()).astype(np.int64).reshape(3, 3) for op in space_group]
    if friedel:
        rotations += [-r for r in rotations]
    distinct = {r.tobytes(): r for r in rotations}
    return np.array(list(distinct.values()))


@dataclass(frozen=True)
class UniqueVoxels:
    """Voxels sorted into symmetry orbits.

    Attributes
    ----------
    index : (u, 3) int32, one voxel of every orbit: the mate in cctbx's asymmetric unit, in ascending order
    inverse : (n,) int64, orbit of each of the given voxels
    inverted : (n,) bool, True where the asymmetric unit is reached only with an inversion (a Friedel mate); False
        where an operator of the group reaches it too, and everywhere when Friedel mates are kept apart
    """

    index: np.ndarray
    inverse: np.ndarray
    inverted: np.ndarray


def unique_voxels(index, space_group: sgtbx.space_group, friedel: bool = True) -> UniqueVoxels:
    """Sort voxels into orbits of the point group, or of the Laue group when ``friedel`` is set.

    One voxel of each orbit goes through cctbx: a kernel first replaces every voxel by the mate with the largest key.

    Parameters
    ----------
    index : (n, 3) integers on the subdivided lattice
    space_group : any setting
    friedel : are (h, k, l) and (-h, -k, -l) equivalent in every group?
    """
    index = np.ascontiguousarray(index).reshape(-1, 3)
    base, weights = key_weights(space_group, int(np.abs(index).max(initial=0)))
    lowest = np.empty(len(index), dtype=np.int64)
    highest = np.empty(len(index), dtype=np.int64)
    extreme_keys(index, weights, lowest, highest)
    inverted = np.zeros(len(index), dtype=bool)
    if friedel:
        np.negative(lowest, out=lowest)  # keys are odd: this is the largest key among the inverted mates
        inverted = lowest > highest
        np.maximum(lowest, highest, out=highest)
    table = KeyTable()
    inverse = table.number(highest)
    canonical = _index_of_key(table.keys, base)
    asu = _cctbx_asu(canonical, space_group, friedel)
    if friedel:  # which canonical voxels need an inversion on their own way to the asymmetric unit?
        same_side = _cctbx_asu(canonical, space_group, False) == _cctbx_asu(asu, space_group, False)
        inverted ^= ~same_side.all(axis=1)[inverse]
    order = np.argsort(asu @ np.array([base * base, base, 1]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return UniqueVoxels(asu[order], rank[inverse], inverted)


def map_to_asu(index, space_group: sgtbx.space_group, friedel: bool = True) -> tuple:
    """Move voxels into cctbx's reciprocal asymmetric unit.

    Parameters
    ----------
    index, space_group, friedel : as for :func:`unique_voxels`

    Returns
    -------
    index : (n, 3) int32
    inverted : (n,) bool, see :class:`UniqueVoxels`
    """
    voxels = unique_voxels(index, space_group, friedel)
    return voxels.index[voxels.inverse], voxels.inverted


def possible_voxels(grid: MapGrid, friedel: bool = True) -> Iterator[np.ndarray]:
    """Enumerate the symmetry-unique voxels whose centres lie inside the limits of a grid, in blocks.

    Yields
    ------
    (n, 3) int32, voxels in cctbx's asymmetric unit; every orbit comes once
    """
    extent = np.array(grid.extent, dtype=np.int64)
    _, weights = key_weights(grid.space_group, int(extent.max()))
    in_layer = grid.shape[1] * grid.shape[2]
    layers = max(1, _BLOCK // in_layer)
    found = np.empty((layers * in_layer, 3), dtype=np.int32)
    edges = grid.reciprocal_matrix / np.array(grid.subdivide)
    longest = (MARGIN / grid.d_min) ** 2
    for first in range(0 if friedel else -grid.extent[0], grid.extent[0] + 1, layers):
        last = min(first + layers, grid.extent[0] + 1)
        n = canonical_in_box(first, last, extent, weights, friedel, edges.T @ edges, longest, found)
        asu = _cctbx_asu(found[:n], grid.space_group, friedel)
        yield asu[grid.inside(asu)]


def fill_volume(
    grid: MapGrid, index, values, friedel: bool = True, fill=np.nan, dtype=np.float32, layers: tuple | None = None
) -> np.ndarray:
    """Write the value of each unique voxel to all of its symmetry mates.

    Parameters
    ----------
    index : (u, 3) integers, at most one voxel of each orbit
    values : (u,) numbers
    fill : value of voxels that belong to no orbit given
    layers : first and last + 1 of the layers of constant h that are wanted, counted from 0; None: all

    Returns
    -------
    array of shape ``grid.shape``, axes h, k, l; or as many layers of it
    """
    first, last = layers or (0, grid.shape[0])
    in_layer = grid.shape[1] * grid.shape[2]
    volume = np.full((last - first) * in_layer, fill, dtype=dtype)
    values = np.asarray(values, dtype=dtype)
    low, high = -np.array(grid.extent), np.array(grid.extent)
    low[0], high[0] = first - grid.extent[0], last - 1 - grid.extent[0]
    for operator in laue_operators(grid.space_group, friedel):
        mates = np.asarray(index) @ operator
        fits = np.all((mates >= low) & (mates <= high), axis=1)
        volume[grid.key(mates[fits]) - first * in_layer] = values[fits]
    return volume.reshape(last - first, *grid.shape[1:])


def key_weights(space_group, largest_index: int) -> tuple:
    """Base of the keys and (m, 3) int64 weights of the group's own operators, the identity first (see the kernel)."""
    operators = laue_operators(space_group, False)
    largest_mate = largest_index * int(np.abs(operators).sum(axis=1).max())
    base = 2 * largest_mate + 1
    if base**3 >= 2**63:
        raise ValueError(f"voxel indices up to {largest_mate} are too large for 64-bit keys")
    return base, operators @ np.array([base * base, base, 1], dtype=np.int64)


def _index_of_key(key: np.ndarray, base: int) -> np.ndarray:
    """(n, 3) int32 indices of keys: digits in a balanced number system."""
    half = base // 2
    rest, last = np.divmod(key + half, base)
    first, middle = np.divmod(rest + half, base)
    return np.stack([first, middle - half, last - half], axis=1).astype(np.int32)


def _cctbx_asu(index: np.ndarray, space_group, friedel: bool) -> np.ndarray:
    """(n, 3) int32, cctbx's choice among the mates of each voxel; the slow, authoritative way."""
    columns = [flex.int(np.ascontiguousarray(column, dtype=np.int32)) for column in index.T]
    indices = flex.miller_index(*columns)
    miller.map_to_asu(space_group.type(), not friedel, indices)
    return indices.as_vec3_double().as_numpy_array().astype(np.int32).reshape(-1, 3)
