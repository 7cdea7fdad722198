"""Symmetric tensors and their six numbers."""

from __future__ import annotations

import numpy as np


def symmetric_tensor(six) -> np.ndarray:
    """(3, 3) float64 from its elements 11, 22, 33, 12, 13, 23."""
    a, b, c, d, e, f = (float(x) for x in six)
    return np.array([[a, d, e], [d, b, f], [e, f, c]])
