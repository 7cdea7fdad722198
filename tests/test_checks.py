"""Checks of what users give, and small functions of index lists, against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dials_diffuse.checks import at_least, choice, fraction, not_negative, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.shells import group_means, less_group_means
from dials_diffuse.maps.voxels import rows_of


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (positive, (1e-9, 3), (None, 0, -1, math.inf, math.nan)),
        (not_negative, (0, 3), (None, -1e-9, math.inf, math.nan)),
        (fraction, (0, 0.999), (None, -1e-9, 1, math.nan)),
    ],
)
def test_numbers(check, good, bad):
    for value in good:
        assert check("a.b", value) == value and type(check("a.b", value)) is float
    for value in bad:
        with pytest.raises(DiffuseError, match=r"a\.b=.*number"):
            check("a.b", value)


def test_least_values():
    at_least("a.b", 3, 3)
    for value in (None, 2, math.nan):
        with pytest.raises(DiffuseError, match=r"a\.b=.*at least 3 is needed"):
            at_least("a.b", value, 3)


def test_choices():
    assert choice("kind", "one", ("one", "two")) == "one"
    with pytest.raises(DiffuseError, match="kind=three: choose from one, two"):
        choice("kind", "three", ("one", "two"))


def test_rows_of_another_list():
    rng = np.random.default_rng(1)
    index = np.unique(rng.integers(-4, 5, (200, 3)), axis=0)
    index = rng.permutation(index)
    wanted = rng.integers(-6, 7, (500, 3))
    known = {tuple(row): i for i, row in enumerate(index.tolist())}
    expected = [known.get(tuple(row), -1) for row in wanted.tolist()]
    assert min(expected) == -1 and max(expected) > 0
    np.testing.assert_array_equal(rows_of(wanted, index), expected)
    assert len(rows_of(wanted[:0], index)) == 0


def test_means_of_groups():
    rng = np.random.default_rng(2)
    values, group = rng.normal(size=50), rng.integers(0, 7, 50) * 2
    expected = [values[group == g].mean() for g in group]
    np.testing.assert_allclose(group_means(values, group), expected, atol=1e-14)
    np.testing.assert_allclose(less_group_means(values, group), values - expected, atol=1e-14)
    assert len(group_means(values[:0], group[:0])) == 0
