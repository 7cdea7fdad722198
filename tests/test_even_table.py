"""Tables at even distances against numpy's interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from dials_diffuse.kernels.even_table import from_table


@pytest.mark.parametrize("shape", [(1000,), (7, 8, 9)])
def test_the_table_is_interpolated_as_by_numpy(shape):
    rng = np.random.default_rng(0)
    table, high = rng.normal(size=301), 2.5
    x = rng.uniform(-0.1, 2.7, shape)
    x.flat[:3] = 0.0, high, high / 300
    found = from_table(x, high, table)
    assert found.shape == shape
    np.testing.assert_allclose(found, np.interp(x, np.linspace(0, high, 301), table), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(from_table(x[::2], high, table), found[::2])
