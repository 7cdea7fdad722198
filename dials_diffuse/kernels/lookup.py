"""A hash table from the keys of voxels to rows: memory goes with the voxels that are there, not with the grid."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def _position(key, mask):
    """Where the search for a key starts; the product spreads neighbouring keys (Fibonacci hashing)."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask


@njit
def _row(key, keys, entries, n):
    """Row of a key; where it is new it is put into row ``n`` of the keys."""
    mask = entries.shape[0] - 1
    position = _position(key, mask)
    while entries[position] >= 0:
        row = entries[position]
        if keys[row] == key:
            return row
        position = (position + 1) & mask
    entries[position] = n
    keys[n] = key
    return n


@njit
def _key(index, i, extent):
    """Position of a voxel in a box, in C order; -1 outside of it."""
    h, k, l = np.int64(index[i, 0]), np.int64(index[i, 1]), np.int64(index[i, 2])
    if abs(h) > extent[0] or abs(k) > extent[1] or abs(l) > extent[2]:
        return np.int64(-1)
    return ((h + extent[0]) * (2 * extent[1] + 1) + (k + extent[1])) * (2 * extent[2] + 1) + (l + extent[2])


@njit
def enter_known(keys, n, entries):
    """Fill an empty table with the first ``n`` of the keys, all different; arguments as for :func:`enter_keys`."""
    mask = entries.shape[0] - 1
    for row in range(n):
        position = _position(keys[row], mask)
        while entries[position] >= 0:
            position = (position + 1) & mask
        entries[position] = row


@njit
def enter_keys(wanted, keys, n, entries, rows):
    """Number keys in the order in which they first come; returns how many there are then.

    Parameters
    ----------
    wanted : (m,) int64
    keys : (at least n + m,) int64, the first ``n`` are known; new ones are written after them
    entries : (2**k,) int32, more than ``n + m`` of them: row of the key at each place, else -1; written
    rows : (m,) int64, written
    """
    for i in range(wanted.shape[0]):
        rows[i] = _row(wanted[i], keys, entries, n)
        n = max(n, rows[i] + 1)
    return n


@njit
def enter_voxels(index, norm, extent, keys, n, entries, rows):
    """The same for the keys of voxels; the row is -1 outside the box, or where the norm is not positive.

    index, norm, extent : as for :func:`find_rows`; others as for :func:`enter_keys`
    """
    for i in range(index.shape[0]):
        rows[i] = -1
        if norm[i] > 0:
            key = _key(index, i, extent)
            if key >= 0:
                rows[i] = _row(key, keys, entries, n)
                n = max(n, rows[i] + 1)
    return n


@njit
def find_rows(index, norm, extent, keys, entries, rows):
    """Row of each voxel's key, -1 where it has none, lies outside the box, or where the norm is not positive.

    Parameters
    ----------
    index : (n, 3) integers
    norm : (n,) float64
    extent : (3,) int64, the box reaches from ``-extent`` to ``extent``; keys are positions in it, in C order
    keys, entries : as filled by :func:`enter_voxels`
    rows : (n,) int64, written
    """
    mask = entries.shape[0] - 1
    for i in range(index.shape[0]):
        rows[i] = -1
        key = _key(index, i, extent) if norm[i] > 0 else np.int64(-1)
        if key < 0:
            continue
        position = _position(key, mask)
        while entries[position] >= 0:
            row = entries[position]
            if keys[row] == key:
                rows[i] = row
                break
            position = (position + 1) & mask
