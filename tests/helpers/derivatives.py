"""Analytic derivatives against differences."""

from __future__ import annotations

import numpy as np
import pytest


def derivative(function, values, direction, step):
    """Central differences with a step and half of it: the better of them, extrapolated, and the two errors' sizes."""
    coarse, fine = (
        (function(values + h * direction) - function(values - h * direction)) / (2 * h) for h in (step, 0.5 * step)
    )
    return (4 * fine - coarse) / 3, coarse, fine


def assert_derivative(function, values, direction, step, analytic, tolerance=1e-6):
    """The analytic derivative is that of the function, and differences approach it as the square of their step."""
    best, coarse, fine = derivative(function, values, direction, step)
    scale = np.sqrt(np.mean(np.square(analytic)))
    assert np.abs(best - analytic).max() < tolerance * scale
    errors = [np.sqrt(np.mean((d - analytic) ** 2)) / scale for d in (coarse, fine)]
    if errors[1] > 1e-8:  # above rounding
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
