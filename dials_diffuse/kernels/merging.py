"""Scatter-add loops of the merging step."""

from __future__ import annotations

from dials_diffuse.kernels.jit import njit


@njit
def add_rows(slot, values, sums):
    """``sums[slot[i], c] += values[c, i]`` for all rows and columns.

    Parameters
    ----------
    slot : (n,) int64, row of ``sums`` that each observation belongs to; negative: nowhere
    values : (c, n) float64
    sums : (m, c) float64, incremented
    """
    for i in range(slot.shape[0]):
        j = slot[i]
        if j < 0:
            continue
        for c in range(values.shape[0]):
            sums[j, c] += values[c, i]


@njit
def count_rows(slot, counts):
    """``counts[slot[i]] += 1`` for all rows; negative slots are skipped.

    slot : (n,) int64; counts : (m,) int32, incremented
    """
    for i in range(slot.shape[0]):
        if slot[i] >= 0:
            counts[slot[i]] += 1
