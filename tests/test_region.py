"""Where parameters of fits may be: bounds of numbers, and of the eigenvalues of tensors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.structures import random_structure
from scipy.optimize import minimize

from dials_diffuse.fitting import uncertainty
from dials_diffuse.fitting.region import Region
from dials_diffuse.models.refinable import Parameter, tensor_components

LOWER, UPPER = 0.01, 1.0
CELLS = {
    "P 1": (13.0, 14.0, 15.0, 80.0, 95.0, 107.0),
    "P 1 21 1": (13.0, 14.0, 15.0, 90.0, 107.0, 90.0),
    "P 41": (14.0, 14.0, 15.0, 90.0, 90.0, 90.0),
    "P 3": (14.0, 14.0, 15.0, 90.0, 90.0, 120.0),
}


def region(symbol: str = "P 1"):
    """A number, a tensor, a number."""
    structure = random_structure(symbol, CELLS[symbol], "CN")
    components = tensor_components(structure, symmetric=True)
    elements = [
        Parameter(f"V{e}", 0.1, "Å²", LOWER if e in ("11", "22", "33") else -UPPER, UPPER, 0.1)
        for e in components.names
    ]
    numbers = [Parameter(n, 0.5, "Å", 0.0, 2.0, 0.5) for n in ("sigma", "gamma")]
    k = len(elements)
    prepared = SimpleNamespace(parameters=(numbers[0], *elements, numbers[1]), tensors=[(slice(1, 1 + k), components)])
    return Region(prepared), components, slice(1, 1 + k)


def inside(found: Region, components, part, rng) -> np.ndarray:
    values = rng.uniform(0.1, 1.9, part.stop + 1)
    root = components.tensor(0.3 * rng.normal(size=part.stop - 1))
    values[part] = components.elements(root @ root + 0.05 * np.eye(3))
    return found.nearest(values, 1e-2)


@pytest.mark.parametrize("symbol", CELLS)
def test_best_step_inside(symbol):
    """Against minimisation over square roots of the tensor, whose bounds are those of its eigenvalues."""
    found, components, part = region(symbol)
    rng = np.random.default_rng(7)
    limited = 0
    for _ in range(12):
        values = inside(found, components, part, rng)
        p = len(values)
        root = rng.normal(size=(p + 3, p)) * np.exp(rng.normal(size=p))
        matrix, target = root.T @ root, values + rng.normal(size=p) * 0.5
        gradient = -matrix @ (target - values)
        step = found.minimum(matrix, gradient, values, np.ones(p, dtype=bool), 1e-9)

        def objective(step, matrix=matrix, gradient=gradient):
            return gradient @ step + 0.5 * step @ matrix @ step

        def expanded(x, values=values, p=p):
            """The tensor is lower + (upper - lower) sin²(S), S of the same symmetry."""
            sizes, axes = np.linalg.eigh(components.tensor(x[part]))
            result = np.clip(x, 0.0, 2.0)
            tensor = (axes * (LOWER + (UPPER - LOWER) * np.sin(sizes) ** 2)) @ axes.T
            result[part] = components.elements(tensor)
            return result - values

        trials = []
        for _ in range(6):
            start = np.concatenate([[0.7], 0.5 * rng.normal(size=p - 2), [0.7]])
            bounds = [(0, 2)] + [(None, None)] * (p - 2) + [(0, 2)]
            options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 3000, "maxfun": 100000}
            trials.append(minimize(lambda x: objective(expanded(x)), start, bounds=bounds, options=options).fun)
        assert found.contains(values + step)
        assert min(trials) - 1e-5 < objective(step) < min(trials) + 1e-8
        limited += len(found.reached(values + step)) > 0
    assert limited >= 6


def test_parameters_that_stay_do():
    found, components, part = region()
    rng = np.random.default_rng(1)
    values = inside(found, components, part, rng)
    moving = np.array([False] + [True] * 7)
    step = found.minimum(np.eye(7), np.ones(7), values, moving, 1e-10)
    assert step.shape == (7,)
    trial = values.copy()
    trial[moving] += step
    assert trial[0] == values[0] and found.contains(trial)
    assert trial[-1] == pytest.approx(max(values[-1] - 1, 0), abs=1e-4)


@pytest.mark.parametrize("symbol", CELLS)
def test_nearest(symbol):
    """Nothing changes inside; outside the eigenvalues are clipped, and the symmetry is kept."""
    found, components, part = region(symbol)
    rng = np.random.default_rng(3)
    values = inside(found, components, part, rng)
    np.testing.assert_array_equal(found.nearest(values), values)
    values[part] = components.elements(np.diag([-0.2, -0.2, 1.4]))
    values[0] = 7.0
    near = found.nearest(values)
    assert found.contains(near) and near[0] == pytest.approx(2.0, abs=1e-5)
    np.testing.assert_allclose(components.tensor(near[part]), np.diag([LOWER, LOWER, UPPER]), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_directions_through_bounds(count):
    """Without these directions no eigenvalue at a bound changes in first order, with them it does."""
    found, components, part = region()
    rng = np.random.default_rng(count)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    sizes = np.array([0.2, 0.4, 0.7])
    sizes[:count] = LOWER
    values = np.concatenate([[1.0], components.elements((axes * sizes) @ axes.T), [2.0]])
    rows = found.reached(values)
    assert len(rows) == 1 + count * (count + 1) // 2
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)
    step = 1e-6 * rng.normal(size=len(values))
    rest = step - rows.T @ (rows @ step)
    assert rest[-1] == 0

    def lowest(values):
        return np.linalg.eigvalsh(components.tensor(values[part]))[:count]

    np.testing.assert_allclose(lowest(values + rest), LOWER, atol=1e-10)
    if count:
        assert np.abs(lowest(values + step) - LOWER).max() > 1e-8
    texts = found.warnings(values)
    assert len(texts) == count + 1 and "gamma ended at a bound, 2 Å (allowed: 0 to 2)" in texts[0]
    for text in texts[1:]:
        assert text.startswith("an eigenvalue of V ended at a bound, 0.01 Å² along (")


def test_directions_through_bounds_on_both_sides():
    """One eigenvalue at each bound: the axes of these may turn about the third, and about each other."""
    found, components, part = region()
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    values = np.concatenate([[1.0], components.elements((axes * [LOWER, 0.4, UPPER]) @ axes.T), [1.0]])
    rows = found.reached(values)
    assert len(rows) == 2
    turned = components.elements(np.outer(axes[:, 0], axes[:, 2]) + np.outer(axes[:, 2], axes[:, 0]))
    np.testing.assert_allclose(rows[:, part] @ turned, 0, atol=1e-12)
    for axis in axes.T[[0, 2]]:
        longer = components.elements(np.outer(axis, axis))
        assert np.linalg.norm(rows[:, part] @ longer) > 0.5 * np.linalg.norm(longer)


@pytest.mark.parametrize("name", ["V11_2", "rigid_body_1.V11", "llm.G11", "rigid_body.V11_12"])
def test_warnings_tell_of_which_tensor(name):
    found, components, part = region()
    found._parameters = tuple(SimpleNamespace(name=name, unit="Å²") for _ in range(part.stop + 1))
    values = np.concatenate([[1.0], components.elements(np.diag([LOWER, 0.4, 0.3])), [1.0]])
    (text,) = found.warnings(values)
    assert text.startswith(f"an eigenvalue of {name.replace('11', '', 1)} ended at a bound, 0.01 Å² along (")
    assert "(allowed: 0.01 to 1)" in text


def test_errors_with_directions_that_are_held():
    """As those of the parameters that are left when the constraint is used to take one out."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(9, 4)) * [1.0, 10.0, 0.1, 3.0]
    hessian = root.T @ root
    normal = np.array([1.0, 0.5, -2.0])
    # the third parameter follows from the others: (p0 + p1 / 2) / 2
    jacobian = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.25, 0], [0, 0, 1.0]])
    expected = 2.0 * jacobian @ np.linalg.inv(jacobian.T @ hessian @ jacobian) @ jacobian.T
    covariance, correlations, values, loosest = uncertainty.errors(hessian, normal[None] / np.linalg.norm(normal), 2.0)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)
    np.testing.assert_allclose(np.diag(correlations), 1)
    assert values.shape == (3,) and loosest.shape == (4,)
    covariance, *_ = uncertainty.errors(hessian, np.eye(3)[1:2], 2.0)
    assert np.isnan(covariance[1]).all() and np.isnan(covariance[:, 1]).all()
    rest = [0, 2, 3]
    np.testing.assert_allclose(covariance[np.ix_(rest, rest)], 2 * np.linalg.inv(hessian[np.ix_(rest, rest)]))
    covariance, *_ = uncertainty.errors(hessian, np.zeros((0, 3)), 2.0)
    np.testing.assert_allclose(covariance, 2 * np.linalg.inv(hessian), rtol=1e-9)
