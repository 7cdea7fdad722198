"""One place that decides how kernels are compiled."""

from __future__ import annotations

import numba


def njit(function):
    """``numba.njit`` with an on-disk cache where a writable place for it exists, without one elsewhere.

    No fastmath: kernels test for NaN.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # read-only installation and no writable cache folder
        return numba.njit(nogil=True)(function)
