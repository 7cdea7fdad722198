"""A hash table from the keys of voxels to rows: memory goes with the voxels that are there, not with the grid."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def _position(key, mask):
    """Where the search for a key starts; the product spreads neighbouring keys (Fibonacci hashing)."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask


@njit
def enter_keys(keys, entries):
    """Fill an empty table.

    keys : (m,) int64, all different
    entries : (2**k,) int32, -1 everywhere, more than m of them; row of the key at each place, written
    """
    mask = entries.shape[0] - 1
    for row in range(keys.shape[0]):
        position = _position(keys[row], mask)
        while entries[position] >= 0:
            position = (position + 1) & mask
        entries[position] = row


@njit
def find_rows(index, norm, extent, keys, entries, rows):
    """Row of each voxel's key, -1 where it has none, lies outside the box, or where the norm is not positive.

    Parameters
    ----------
    index : (n, 3) integers
    norm : (n,) float64
    extent : (3,) int64, the box reaches from ``-extent`` to ``extent``; keys are positions in it, in C order
    keys, entries : as filled by :func:`enter_keys`
    rows : (n,) int64, written
    """
    mask = entries.shape[0] - 1
    n2, n3 = 2 * extent[1] + 1, 2 * extent[2] + 1
    for i in range(index.shape[0]):
        rows[i] = -1
        h, k, l = np.int64(index[i, 0]), np.int64(index[i, 1]), np.int64(index[i, 2])
        if not norm[i] > 0 or abs(h) > extent[0] or abs(k) > extent[1] or abs(l) > extent[2]:
            continue
        key = ((h + extent[0]) * n2 + (k + extent[1])) * n3 + (l + extent[2])
        position = _position(key, mask)
        while entries[position] >= 0:
            row = entries[position]
            if keys[row] == key:
                rows[i] = row
                break
            position = (position + 1) & mask
