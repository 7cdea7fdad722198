"""Tables of values at even distances: no search for the place, as ``numpy.interp`` needs it."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.jit import njit


@njit
def from_table(x, high, table):
    """Linear interpolation at x of values at even distances from 0 to ``high``; beyond, the value at the end.

    x : float64 of any shape; table : (n,) float64, n > 1; returns float64 of the shape of x
    """
    flat = x.ravel()
    out = np.empty(flat.shape[0])
    last = table.shape[0] - 1
    scale = last / high
    for i in range(flat.shape[0]):
        t = min(max(flat[i] * scale, 0.0), float(last))
        j = min(int(t), last - 1)
        out[i] = table[j] + (t - j) * (table[j + 1] - table[j])
    return out.reshape(x.shape)
