"""Symmetric tensors and their six numbers, in the order of the programs' parameters and of cctbx."""

from __future__ import annotations

import numpy as np

#: names of the six elements
ELEMENTS = ("11", "22", "33", "12", "13", "23")

_ROWS, _COLUMNS = (np.array([int(element[k]) - 1 for element in ELEMENTS]) for k in range(2))


def symmetric_tensor(six) -> np.ndarray:
    """(..., 3, 3) float64 from (..., 6) elements."""
    six = np.asarray(six, dtype=float)
    tensor = np.empty((*six.shape[:-1], 3, 3))
    tensor[..., _ROWS, _COLUMNS] = tensor[..., _COLUMNS, _ROWS] = six
    return tensor


def six_elements(tensor: np.ndarray) -> np.ndarray:
    """(..., 6) elements of (..., 3, 3), the upper ones."""
    return tensor[..., _ROWS, _COLUMNS]


def slope_tensor(slopes: np.ndarray) -> np.ndarray:
    """(..., 3, 3) derivatives D by all nine elements, dI = sum of D_ab dT_ab, from (..., 6) by six elements."""
    return symmetric_tensor(slopes * np.where(_ROWS == _COLUMNS, 1.0, 0.5))


def square_features(q: np.ndarray) -> np.ndarray:
    """(n, 6) float64 from (n, 3): q T q is the product with the six elements of T."""
    x, y, z = q.T
    return np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
