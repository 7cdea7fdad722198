"""Numbers for keys: a hash table that grows, in place of sorting."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.lookup import enter_keys, enter_known, enter_voxels


class KeyTable:
    """Different keys, numbered in the order in which they first come.

    Attributes
    ----------
    n : number of keys
    entries : (2**k,) int32, see ``kernels.lookup``
    """

    def __init__(self):
        self.n, self.entries = 0, np.full(2, -1, dtype=np.int32)
        self._keys = np.empty(0, dtype=np.int64)

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64, those there are."""
        return self._keys[: self.n]

    def number(self, keys: np.ndarray) -> np.ndarray:
        """(m,) int64, the number of each key, which may be new; keys : (m,) int64"""
        rows = self._room_for(len(keys))
        self.n = enter_keys(keys, self._keys, self.n, self.entries, rows)
        return rows

    def number_voxels(self, index: np.ndarray, norm: np.ndarray, extent: tuple) -> np.ndarray:
        """(m,) int64, the number of each voxel, -1 outside the grid or where the norm is not positive.

        index : (m, 3) integers; norm : (m,) float64; extent : of the grid
        """
        rows = self._room_for(len(index))
        index = np.ascontiguousarray(index)
        self.n = enter_voxels(index, norm, np.array(extent), self._keys, self.n, self.entries, rows)
        return rows

    def _room_for(self, more: int) -> np.ndarray:
        """Make room for so many keys; returns an array for their numbers."""
        needed = self.n + more
        if needed > len(self._keys):
            keys = np.empty(max(needed, 3 * len(self._keys) // 2), dtype=np.int64)
            keys[: self.n] = self.keys
            self._keys = keys
        if needed > len(self.entries) // 2:
            self.entries = np.full(1 << (2 * needed).bit_length(), -1, dtype=np.int32)
            enter_known(self._keys, self.n, self.entries)
        return np.empty(more, dtype=np.int64)
