"""All pairs of groups: derivatives, three ways to one minimum, small molecules found again, what the data determine."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pairs import SCALE, Case, by_hand, random_covariance
from scipy.optimize import approx_fprime, check_grad

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.pairs import pair_minimisers
from dials_diffuse.fitting.pairs.pair_freedom import pair_freedom
from dials_diffuse.fitting.pairs.pair_minimisers import chosen, minimise_pairs
from dials_diffuse.fitting.pairs.pair_objective import Sample
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.models.covariance.motion import flattened


def numeric_hessian(function, x, step):
    return np.array([approx_fprime(x, lambda y, i=i: function(y)[i], step) for i in range(len(x))])


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("scale", [None, SCALE])
def test_gradients(tensor, scale):
    """By the elements of V and by those of its root; some points are set aside."""
    case = Case("CNO", n=60, noise=0.1, tensor=tensor)
    work = np.arange(60) % 5 > 0
    objective = case.objective(scale, work)
    x = objective.start(objective.prior, 0.1)
    for strength in (0.0, 0.7):
        value, gradient = objective.slope_by_root(x, strength)
        assert value == pytest.approx(objective.value(objective.covariance(x), strength), rel=1e-12)
        error = check_grad(
            lambda y, w=strength: objective.slope_by_root(y, w)[0],
            lambda y, w=strength: objective.slope_by_root(y, w)[1],
            x,
            epsilon=1e-7,
        )
        assert error < 1e-5 * np.linalg.norm(gradient)
        v = objective.covariance(x)
        _, slope = objective.slope(v, strength)
        np.testing.assert_allclose(slope, slope.T, atol=1e-12 * np.abs(slope).max())
        change = random_covariance(len(v), np.random.default_rng(1), 1e-5)
        difference = objective.value(v + change, strength) - objective.value(v - change, strength)
        assert difference / 2 == pytest.approx(np.sum(slope * change), rel=1e-4)


@pytest.mark.parametrize("scale", [None, SCALE])
def test_curvature_where_the_model_is_exact(scale):
    """At the truth without noise the Gauss-Newton matrix is that of second derivatives; differences of the gradient."""
    case = Case("CNOS", n=150)
    objective = case.objective(scale)
    first, second = objective.triangle

    def slope(pairs):
        v = np.zeros((4, 4))
        v[first, second] = v[second, first] = pairs
        return objective.slope(v, 0.0)[1][first, second] * np.where(first == second, 1, 2)

    numeric = numeric_hessian(slope, case.truth[first, second], 1e-6)
    matrix = 2 * objective.curvature(case.truth) / objective.unit
    np.testing.assert_allclose(matrix, numeric, atol=1e-4 * np.abs(numeric).max())
    half = np.arange(0, 150, 2)
    groups = group_covariance(case.structure, np.arange(4), case.s[half], adp="free", tolerance=1e-10)
    part = case.objective(scale, sample=Sample(half, groups)).curvature(case.truth)
    np.testing.assert_allclose(2 * part / objective.unit, matrix, atol=0.5 * np.abs(matrix).max())
    rest = np.arange(150) % 2 == 0
    np.testing.assert_allclose(part, 2 * case.objective(scale, rest).curvature(case.truth), rtol=1e-6)


@pytest.mark.parametrize("symbol", ["P 1", "P 21 21 21"])
def test_curvature_of_tensors(symbol):
    """The same for the symmetric parts of tensors; the antisymmetric ones have no slope."""
    case = Case("CNO", n=120, tensor=True, symbol=symbol)
    case.values = SCALE * case.groups.intensity(case.truth)
    objective = case.objective()
    flat = flattened(case.truth)
    first, second = np.tril_indices(3)

    def moved(elements):
        """V with other symmetric parts of its blocks."""
        v = flat.copy()
        for a, b, six in zip(first, second, elements.reshape(-1, 6)):
            block = np.array([[six[0], six[3], six[4]], [six[3], six[1], six[5]], [six[4], six[5], six[2]]])
            v[3 * a : 3 * a + 3, 3 * b : 3 * b + 3] += block
            if a != b:
                v[3 * b : 3 * b + 3, 3 * a : 3 * a + 3] += block
        return v

    matrix = 2 * objective.curvature(flat) / objective.unit
    rng = np.random.default_rng(0)
    for _ in range(4):  # along some directions, by second differences
        step = 1e-3 * rng.normal(size=36)
        up, middle, down = (objective.value(moved(f * step), 0.0) for f in (1, 0, -1))
        assert step @ matrix @ step == pytest.approx(up + down - 2 * middle, rel=1e-2)
    units = objective.relative_unit
    elements = rng.normal(size=36) * units
    deviation = (moved(elements) - flat) / objective.size
    assert np.sum(deviation**2) == pytest.approx(np.sum((elements / units) ** 2))  # what the unit is for


def test_three_ways_to_one_minimum():
    """Plain descent along the gradient, as in the theory, ends where the others do."""
    objective = Case("CNOS", n=300, noise=0.05).objective(SCALE)
    found = {
        way: minimise_pairs(objective, objective.prior, 0.3, way, steps)
        for way, steps in (("newton", 100), ("lbfgs", 1000), ("descent", 5000))
    }
    best = found["newton"]
    assert all(f.converged for f in found.values())
    for way, other in found.items():
        assert other.value == pytest.approx(best.value, rel=1e-6), way
        np.testing.assert_allclose(other.covariance, best.covariance, atol=2e-3 * best.covariance.max(), err_msg=way)
    assert best.iterations < 20
    for seed in range(10):  # no way down from there
        v = best.covariance + random_covariance(4, np.random.default_rng(seed), 1e-3) * (-1) ** seed
        if np.linalg.eigvalsh(v)[0] > 0:
            assert objective.value(v, 0.3) > best.value


@pytest.mark.parametrize("way", ["newton", "lbfgs"])
def test_a_minimum_on_the_border(way):
    """All atoms move as one, V has rank 1, and noise asks for less: V stays semidefinite."""
    case = Case("CNOS", n=200)
    truth = np.full((4, 4), 0.1)
    rng = np.random.default_rng(0)
    clean = by_hand(case.structure, case.s, truth)
    case.values = SCALE * clean + 0.1 * SCALE * clean.std() * rng.normal(size=len(clean))
    objective = case.objective(SCALE)
    found = minimise_pairs(objective, objective.prior, 0.0, way, 300)
    v = found.covariance
    values = np.linalg.eigvalsh(v)
    assert -1e-12 < values[0] < 1e-3 * values[-1]
    _, slope = objective.slope(v, 0.0)
    # optimal: the slope is 0 along V, and upwards into the cone
    scale = np.linalg.norm(objective.slope(objective.prior, 0.0)[1])
    assert np.linalg.norm(slope @ v) < 1e-4 * scale * values[-1]
    assert np.linalg.eigvalsh(slope)[0] > -1e-3 * scale
    np.testing.assert_allclose(v, truth, atol=0.02)


def test_a_small_molecule_is_found_again():
    """Without noise every element that data with errors of 1 % would determine to 1 % is found to 1 %."""
    case = Case("CNOSCO", n=2000, d_min=1.0)
    objective = case.objective()
    found = minimise_pairs(objective, objective.prior, 0.0, "newton", 100)
    assert found.converged and found.iterations < 30
    freedom = pair_freedom(objective, found.covariance, 0.0, found.value * objective.unit, factor=1.0)
    size = np.sqrt(np.outer(np.diag(case.truth), np.diag(case.truth)))
    determined = freedom.esd < 0.01 * size
    assert np.count_nonzero(np.tril(determined)) > 15
    np.testing.assert_allclose((found.covariance / size)[determined], (case.truth / size)[determined], atol=0.01)
    solved = objective.projection.solve(case.groups.intensity(found.covariance))
    assert solved.scale == pytest.approx(SCALE, rel=0.01)


@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_what_the_data_determine(strength, monkeypatch):
    """Shares by differences of fits, which must be exact minima; errors by the scatter of fits to noise."""
    monkeypatch.setattr(pair_minimisers, "_TOLERANCE", 1e-13)
    case = Case("CNO", n=200, noise=0.02)
    case.prior = case.truth  # the minimum for exact data, so that the Gauss-Newton matrix is that of second derivatives
    clean = SCALE * case.groups.intensity(case.truth)

    def fitted(values):
        case.values = values
        objective = case.objective(SCALE)
        objective.unit = 1e6
        return objective, minimise_pairs(objective, case.truth, strength, "newton", 50)

    objective, found = fitted(clean)
    freedom = pair_freedom(objective, found.covariance, strength, 0.0, factor=1.0)
    np.testing.assert_allclose(freedom.n_effective, freedom.share[np.tril_indices(3)].sum())
    reduced = 50.0 / (200 - freedom.n_effective - objective.projection.n_linear)
    scaled = pair_freedom(objective, found.covariance, strength, 50.0)
    np.testing.assert_allclose(scaled.esd, freedom.esd * reduced**0.5)
    first, second = np.tril_indices(3)
    for a, b in zip(first, second):
        moved = case.truth.copy()
        step = 1e-4
        moved[a, b] = moved[b, a] = moved[a, b] + step
        shift = clean + SCALE * (case.groups.intensity(moved) - case.groups.intensity(case.truth))
        change = (fitted(shift)[1].covariance - found.covariance)[a, b] / step
        assert change == pytest.approx(freedom.share[a, b], abs=0.01)
    rng = np.random.default_rng(0)
    fits = np.array([fitted(clean + case.sigma * rng.normal(size=200))[1].covariance for _ in range(40)])
    np.testing.assert_allclose(fits.std(axis=0) / freedom.esd, 1.0, atol=0.35)  # 3 standard errors of a scatter of 40
    assert np.all(np.diff(freedom.errors) >= 0)
    assert freedom.n_determined == np.count_nonzero(freedom.errors < 0.1)


def test_what_the_data_determine_of_tensors():
    """Shares of all elements of the tensors by differences of fits."""
    case = Case("CN", n=200, noise=0.02, tensor=True)
    case.prior = case.truth
    clean = SCALE * case.groups.intensity(case.truth)
    symmetric = 0.5 * (case.truth + case.truth.transpose(0, 1, 3, 2))

    def fitted(values):
        case.values = values
        objective = case.objective(SCALE)
        objective.unit = 1e6
        return objective, minimise_pairs(objective, flattened(case.truth), 0.01, "lbfgs", 3000, ftol=1e-16)

    objective, found = fitted(clean)
    freedom = pair_freedom(objective, flattened(case.truth), 0.01, 0.0, factor=1.0)
    shares = []
    for a, b in zip(*np.tril_indices(2)):
        for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)):
            moved, step = symmetric.copy(), 1e-3
            for one in {(a, b, i, j), (b, a, i, j), (a, b, j, i), (b, a, j, i)}:
                moved[one] += step
            shift = clean + SCALE * (case.groups.intensity(moved) - case.groups.intensity(symmetric))
            block = objective.unfolded(fitted(shift)[1].covariance - found.covariance)[a, b]
            shares.append(freedom.share[a, b, i, j])
            assert 0.5 * (block[i, j] + block[j, i]) / step == pytest.approx(shares[-1], abs=0.02)
    assert len(freedom.errors) == 18 and freedom.n_effective == pytest.approx(sum(shares))
    assert 0.05 < min(shares) < 0.9 < max(shares)


@pytest.mark.parametrize(("symbol", "known"), [("P 1", 0.0), ("P 21 21 21", 0.7)])
def test_tensors_of_all_pairs_are_found(symbol, known):
    """Loops over atoms and symmetry copies give the data.

    In P 21 21 21 there are several minima: from the prior another one is found, with 1e-6 of its chi².
    There the start knows most of the truth.
    """
    case = Case("CNO", n=900, tensor=True, symbol=symbol, d_min=1.0)
    objective = case.objective(SCALE)
    start = known * flattened(case.truth) + (1 - known) * objective.prior
    v = minimise_pairs(objective, start, 0.0, "lbfgs", 2000, ftol=1e-15).covariance
    np.testing.assert_allclose(v, v.T)
    assert np.linalg.eigvalsh(v)[0] > -1e-12
    blocks = objective.unfolded(v)
    symmetric = 0.5 * (blocks + blocks.transpose(0, 1, 3, 2))  # the rest does not scatter
    truth = 0.5 * (case.truth + case.truth.transpose(0, 1, 3, 2))
    np.testing.assert_allclose(symmetric, truth, atol=0.01 * truth.max())
    first = objective.unfolded(start)
    assert np.abs(0.5 * (first + first.transpose(0, 1, 3, 2)) - truth).max() > 0.1 * truth.max()


def test_tensors_side_by_side():
    objective = Case("CNO", n=30, tensor=True).objective()
    blocks = objective.unfolded(np.arange(81.0).reshape(9, 9))
    np.testing.assert_array_equal(blocks[1, 2], [[33, 34, 35], [42, 43, 44], [51, 52, 53]])
    np.testing.assert_array_equal(flattened(blocks), np.arange(81.0).reshape(9, 9))


def test_choice_of_the_minimiser():
    few, tensors = Case("CN", n=30).objective(), Case("CN", n=30, tensor=True).objective()
    assert chosen("auto", few) == "newton" and chosen("auto", tensors) == "lbfgs"
    assert chosen("descent", tensors) == "descent"
    with pytest.raises(DiffuseError, match=r"pairs\.minimiser=newton: for isotropic"):
        chosen("newton", tensors)
    with pytest.raises(DiffuseError, match=r"pairs\.minimiser=best: choose from auto, newton"):
        chosen("best", few)
