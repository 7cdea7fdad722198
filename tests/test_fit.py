"""Fits: linear terms by dense least squares, derivatives by differences, parameters found again within errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import all_voxels, small_grid
from helpers.fits import candidate, independent, noisy_map
from helpers.structures import CELL, random_structure, small_molecule
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import statistics
from dials_diffuse.fitting.choice import choose
from dials_diffuse.fitting.data import SIGMA_FLOOR, Selection, free_voxels, select, unique_blocks
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.minimise import minimise
from dials_diffuse.fitting.region import Region
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import correlation, shell_residual
from dials_diffuse.maps.symmetry import laue_operators, map_to_asu, possible_voxels
from dials_diffuse.maps.units import ELECTRONS
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import Prepared, prepare
from dials_diffuse.models.refinable import Parameter
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated


@pytest.fixture(scope="module")
def structure():
    return small_molecule()


@pytest.fixture(scope="module")
def voxels(structure):
    """Grid, index and vectors s of some of the unique voxels."""
    grid = MapGrid(CELL, structure.hall_symbol, (3, 3, 3), 2.5)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.random.default_rng(0).uniform(size=len(index)) < 0.6]
    index = index[np.any(index != 0, axis=1)]
    return grid, index, (index / np.array(grid.subdivide)) @ grid.reciprocal_matrix.T


# --- linear terms


@pytest.mark.parametrize(("terms", "scale"), [(6, None), (6, 0.3), (0, None)])
def test_scale_and_background_are_those_of_dense_least_squares(terms, scale):
    rng = np.random.default_rng(1)
    s = rng.uniform(0.05, 0.5, 200)
    y, intensity, weights = rng.normal(size=200), rng.normal(size=200) + s, rng.uniform(0.5, 2, 200)
    background = Background(s, terms)
    columns = [] if scale else [intensity[:, None]]
    columns += [background.matrix.toarray()] if terms else []
    root = np.sqrt(weights)
    target = y - (scale or 0) * intensity
    matrix = np.concatenate(columns, axis=1)
    solution = np.linalg.lstsq(matrix * root[:, None], target * root, rcond=None)[0]
    residual = target - matrix @ solution
    projection = Projection(y, weights, background, scale)
    solved = projection.solve(intensity)
    assert solved.scale == pytest.approx(scale or solution[0], rel=1e-9)
    np.testing.assert_allclose(solved.residual, residual, atol=1e-10)
    np.testing.assert_allclose(solved.background, solution[len(solution) - terms :], atol=1e-9)
    assert solved.objective == pytest.approx(weights @ residual**2, rel=1e-10)
    assert projection.objective(intensity) == pytest.approx(solved.objective, rel=1e-10)


def test_background_can_follow_a_smooth_curve_and_survives_a_gap():
    s = np.concatenate([np.linspace(0.05, 0.15, 50), np.linspace(0.45, 0.5, 50)])
    y = 3 * np.exp(-4 * s)
    solved = Projection(y, np.ones(100), Background(s, 14), scale=1.0).solve(np.zeros(100))
    assert np.abs(solved.residual).max() < 1e-3


MODELS = {
    "llm": lambda: LiquidLikeMotions(sigma=0.25, gamma=5.0),
    "overall": lambda: LiquidLikeMotions(sigma=0.25, gamma=5.0, adp="overall"),
    "rigid_V": lambda: RigidBody(V=(0.05, 0.06, 0.04, 0.01, 0.0, -0.01)),
    "covariance": lambda: Covariance(sigma=0.25, gamma=4.0),
}


@pytest.fixture(scope="module")
def objective_cases(structure, voxels):
    grid, index, _ = voxels
    index = index[::15]
    cases = {name: prepare(make(), structure, grid, index) for name, make in MODELS.items()}
    body = prepare(RigidBody(sigma=0.25), structure, grid, index)
    cases["sum"] = PreparedSum([body, cases["llm"]], ["rigid_body", "llm"], structure)
    return grid, index, cases


@pytest.mark.parametrize("name", [*MODELS, "sum"])
def test_derivatives_of_the_whole_objective(objective_cases, name):
    """Gradient of the minimum over scale and background; Hessian with the scale, by differences of objectives."""
    grid, index, cases = objective_cases
    prepared = cases[name]
    values = np.array([p.value for p in prepared.parameters])
    data = noisy_map(grid, index, prepared.intensity(1.1 * values), 1.0)  # away from the minimum
    background = Background(grid.s_magnitude(index), 6)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, len(index))
    projection = Projection(data.intensity, weights, background)
    intensity, jacobian = prepared.jacobian(values)
    k = projection.solve(intensity).scale

    def reduced(x):
        return 0.5 * projection.objective(prepared.intensity(x))

    def joint(x):
        return 0.5 * Projection(data.intensity, weights, background, x[-1]).objective(prepared.intensity(x[:-1]))

    def differences(function, x, step):
        """Gradient and Hessian by central differences, extrapolated from two steps."""
        n = len(x)
        found = []
        for h in (step, step / 2):
            e = np.diag(h * x)
            gradient = np.array([(function(x + d) - function(x - d)) / (2 * d.sum()) for d in e])
            hessian = np.empty((n, n))
            for i in range(n):
                for j in range(n):
                    a, b = e[i], e[j]
                    four = function(x + a + b) - function(x + a - b) - function(x - a + b) + function(x - a - b)
                    hessian[i, j] = four / (4 * a.sum() * b.sum())
            found.append((gradient, hessian))
        return [(4 * fine - coarse) / 3 for coarse, fine in zip(*found)]

    moved = np.where(values == 0, 1e-3, values)  # relative steps need something to be relative to
    intensity, jacobian = prepared.jacobian(moved)
    k = projection.solve(intensity).scale
    gradient, matrix = projection.normal(intensity, jacobian)
    hessian = projection.hessian(intensity, jacobian, lambda w: prepared.second(moved, w))
    numeric, _ = differences(reduced, moved, 1e-2)
    units = np.abs(moved)
    np.testing.assert_allclose(gradient * units, numeric * units, atol=1e-4 * np.abs(numeric * units).max())
    x = np.append(moved, k)
    _, numeric = differences(joint, x, 1e-2)
    units = np.outer(np.abs(x), np.abs(x))
    np.testing.assert_allclose(hessian * units, numeric * units, atol=1e-3 * np.abs(numeric * units).max())
    assert np.linalg.eigvalsh(matrix).min() >= -1e-9 * np.abs(matrix).max()


# --- voxels


def test_blocks_hold_neighbours_and_symmetry_mates():
    for symbol, cell in (("P 41", (40.0, 40.0, 50.0, 90, 90, 90)), ("P 6", (40.0, 40.0, 50.0, 90, 90, 120))):
        grid = small_grid(symbol, cell, (2, 2, 2), 3.0)
        index = all_voxels(grid)
        blocks = unique_blocks(grid, index, True)
        index_of = {tuple(i): b for i, b in zip(index.tolist(), blocks)}
        for operator in laue_operators(grid.space_group, friedel=True):
            np.testing.assert_array_equal([index_of[tuple(i)] for i in (index @ operator).tolist()], blocks)
        sizes = np.bincount(blocks)
        assert np.median(sizes[sizes > 0]) > 50
        s = (index / 2) @ grid.reciprocal_matrix.T
        unit = s[blocks == blocks[np.argmax(grid.s_magnitude(index) > 0.2)]]
        nearest = np.sort(np.linalg.norm(unit[:, None] - unit[None], axis=2), axis=1)
        assert np.all(nearest[:, 1] < 0.02)  # no voxel stands alone


def test_no_block_is_free_in_part():
    grid = small_grid("P 41", (40.0, 40.0, 50.0, 90, 90, 90), (2, 2, 2), 3.0)
    index = np.concatenate(list(possible_voxels(grid)))
    blocks = unique_blocks(grid, index, True)
    free = free_voxels(grid, index, blocks, 0.1, seed=3)
    for block in np.unique(blocks):
        assert np.ptp(free[blocks == block].astype(int)) == 0
    assert 0.05 < free.mean() < 0.15
    s = grid.s_magnitude(index)
    for mine in np.array_split(np.argsort(s), 5):  # no range of resolution without
        assert 0.03 < free[mine].mean() < 0.2
    np.testing.assert_array_equal(free, free_voxels(grid, index, blocks, 0.1, seed=3))
    assert np.any(free != free_voxels(grid, index, blocks, 0.1, seed=4))
    order = np.random.default_rng(0).permutation(len(index))
    np.testing.assert_array_equal(free_voxels(grid, index[order], blocks[order], 0.1, seed=3), free[order])
    assert not free_voxels(grid, index, blocks, 0.0, seed=3).any()


@pytest.mark.parametrize(("symbol", "friedel"), [("P 41", False), ("P 1", True), ("P 1", False)])
def test_mates_that_a_map_has_not_merged_are_free_together(symbol, friedel):
    """A map with Friedel mates apart, or merged in P 1: what a model makes equal is all fitted or all set aside."""
    cell = (40.0, 40.0, 50.0, 90, 90, 90)
    grid = small_grid(symbol, cell, (2, 2, 2), 4.0)
    index = np.concatenate(list(possible_voxels(grid, friedel)))
    ones = np.ones(len(index))
    whole = DiffuseMap(grid, friedel, index, ones, ones, ones.astype(int))
    group = small_grid("P 41", cell).space_group
    data = select(whole, Selection(free_fraction=0.1), group)
    _, orbit = np.unique(map_to_asu(data.index, group)[0], axis=0, return_inverse=True)
    number, free = (np.bincount(orbit.reshape(-1), w) for w in (None, data.free))
    assert np.count_nonzero(number > 1) > 1000 and np.count_nonzero(free) > 500
    np.testing.assert_array_equal(free[free > 0], number[free > 0])


def test_selection(voxels):
    grid, index, _ = voxels
    data = noisy_map(grid, index, np.ones(len(index)), 1.0)
    sigma, multiplicity, intensity = data.sigma.copy(), data.multiplicity.copy(), data.intensity.copy()
    sigma[:10], multiplicity[10:20], intensity[20:30], sigma[30:40] = 1e-6, 1, np.nan, 0
    data = replace(data, sigma=sigma, multiplicity=multiplicity, intensity=intensity)
    found = select(data, Selection(d_max=9.0, d_min=2.8, min_multiplicity=2))
    assert found.s.min() >= 1 / 9 and found.s.max() <= (1 + 1e-9) / 2.8  # the limit itself belongs to the range
    assert not np.any(np.all(found.index % 3 == 0, axis=1))
    assert not set(found.row) & set(range(10, 40))
    np.testing.assert_array_equal(data.index[found.row], found.index)
    floored = found.row < 10
    assert found.n_floored == np.count_nonzero(floored) > 0
    np.testing.assert_allclose(found.sigma[floored], SIGMA_FLOOR)
    rising = replace(data, sigma=np.exp(10 * grid.s_magnitude(index)))  # 1.2 times within the surroundings
    assert select(rising, Selection()).n_floored == 0
    assert select(data, Selection(bragg=True)).n > select(data, Selection()).n
    with pytest.raises(DiffuseError, match=r"the map ends at 2\.5"):
        select(data, Selection(d_min=2.0))
    with pytest.raises(DiffuseError, match="too few to fit"):
        select(replace(data, sigma=np.zeros(len(index))), Selection())
    with pytest.raises(DiffuseError, match=r"free_fraction=0\.9"):
        Selection(free_fraction=0.9)
    with pytest.raises(DiffuseError, match="d_max=2"):
        Selection(d_max=2, d_min=3)


@pytest.mark.parametrize("cell", [CELL, (12.0, 13.0, 18.0, 66.0, 75.0, 118.0)])
def test_voxels_beside_lattice_points_are_left_out(cell):
    """Against the distances from all lattice points around, on skewed axes too."""
    grid = MapGrid(cell, "P 1", (4, 3, 5), 3.5)
    index = np.concatenate(list(possible_voxels(grid)))
    data = noisy_map(grid, index, np.ones(len(index)), 1.0)
    around = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    s = (index / np.array(grid.subdivide)) @ grid.reciprocal_matrix.T
    distance, _ = cKDTree(around @ grid.reciprocal_matrix.T).query(s)
    everything = select(data, Selection(bragg=True)).row
    for limit in (0.005, 0.02, 0.03):
        found = select(data, Selection(bragg_distance=limit))
        np.testing.assert_array_equal(found.row, everything[distance[everything] > limit])
        assert 0 < found.n < select(data, Selection()).n or limit == 0.005
    with pytest.raises(DiffuseError, match=r"bragg_distance=0\.02 leaves out; give one"):
        Selection(bragg=True, bragg_distance=0.02)
    with pytest.raises(DiffuseError, match=r"bragg_distance=-1: must not be negative"):
        Selection(bragg_distance=-1)
    with pytest.raises(DiffuseError, match="too few to fit"):
        select(data, Selection(bragg_distance=1.0))


# --- parameters found again

TRUE = {
    "llm": (LiquidLikeMotions(sigma=0.3, gamma=6.0), 0.1),
    "overall": (LiquidLikeMotions(sigma=0.35, gamma=4.0, adp="overall"), 0.3),
    "rigid_body": (RigidBody(sigma=0.35), 0.3),
    "rigid_V": (RigidBody(V=(0.1, 0.07, 0.12, 0.02, 0.0, -0.01)), 0.1),
    "covariance": (Covariance(sigma=0.3, gamma=4.0), 0.03),
    "network": (Covariance(kernel="elastic_network", sigma=0.4, soft=False), 0.03),
}


@pytest.mark.parametrize("name", TRUE)
def test_parameters_and_errors(structure, voxels, name):
    """Truth by another engine; the errors are honest though those of the data are said to be a third of the truth."""
    grid, index, s = voxels
    model, sigma = TRUE[name]
    truth = independent(model, structure, s)
    data = select(noisy_map(grid, index, truth, sigma, claimed=1 / 3), Selection(bragg=True))
    start = candidate(name, model, structure, data)
    values = np.array([p.value for p in start.prepared.parameters])
    scores = []
    for seed in range(4):
        noisy = noisy_map(grid, index, truth, sigma, seed)
        data = replace(data, intensity=noisy.intensity[data.row])
        (fit,) = fit_models(data, [start], FitOptions(background=10, starts=1, profile=False))
        assert fit.minimum.converged and not any(e.at_bound for e in fit.estimates)
        assert fit.statistics["chi2"] == pytest.approx(9, rel=0.2)
        errors = np.array([e.esd for e in fit.estimates])
        assert np.all(errors < 0.5 * np.abs(values).max())  # determined at all
        scores += list((np.array([e.value for e in fit.estimates]) - values) / errors)
        scores.append((fit.scale.value - 0.02) / fit.scale.esd)
    scores = np.array(scores)
    assert np.abs(scores).max() < 4.5
    assert 0.3 < np.sqrt(np.mean(scores**2)) < 1.8


def test_a_sum_that_ends_too_early_is_told(structure, voxels):
    """Three orders, of data that have all: sigma and gamma are off by many of their errors, and a warning says why."""
    grid, index, _ = voxels
    whole = LiquidLikeMotions(sigma=0.6, gamma=6.0, adp="overall", orders=12)
    truth = prepare(whole, structure, grid, index).intensity([0.6, 6.0])
    data = select(noisy_map(grid, index, truth, 0.02 * 0.02 * truth.std()), Selection())
    deviations = {}
    for orders in (3, 12):
        start = candidate("llm", replace(whole, orders=orders), structure, data, 1.1)
        (fit,) = fit_models(data, [start], FitOptions(background=10, starts=1, profile=False))
        deviations[orders] = [(e.value - v) / e.esd for e, v in zip(fit.estimates, (0.6, 6.0))]
        told = [text for text in fit.warnings if "orders" in text]
        assert len(told) == (orders == 3)
    assert np.abs(deviations[12]).max() < 4 < np.abs(deviations[3]).min()


def test_absolute_scale_determines_sigma(structure, voxels):
    """Of a liquid with the atoms' own displacements the scale and sigma² are nearly one number, unless one is known."""
    grid, index, s = voxels
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    whole = noisy_map(grid, index, independent(model, structure, s), 20.0, scale=1.0, claimed=1 / 3, units=ELECTRONS)
    data = select(whole, Selection(bragg=True))
    start = candidate("llm", model, structure, data)
    found = {}
    for scale in (None, 1.0):
        (found[scale],) = fit_models(data, [start], FitOptions(background=10, scale=scale))
    free, fixed = (found[scale].estimates[0] for scale in (None, 1.0))
    assert fixed.esd < 0.5 * free.esd
    assert abs(fixed.value - 0.3) < 4 * fixed.esd
    assert found[1.0].scale.value == 1.0 and found[1.0].scale.esd == 0.0
    assert found[1.0].correlations.shape == (2, 2) and found[None].correlations.shape == (3, 3)
    assert found[None].correlations[0, 2] < -0.95
    assert any("llm: sigma and scale are correlated, -0.9" in text for text in found[None].warnings)
    assert not any("correlated" in text for text in found[1.0].warnings)
    for estimate in found[1.0].estimates:  # nearly Gaussian: t² at t e.s.d., whatever errors the data claim
        assert len(estimate.profile) == 4
        np.testing.assert_allclose([rise for _, rise in estimate.profile], [4, 1, 1, 4], rtol=0.15)


def test_a_minimum_is_one(structure, voxels):
    """No direction leads down from where the minimiser stops; a far start ends there too."""
    grid, index, _ = voxels
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    data = noisy_map(grid, index, prepare(model, structure, grid, index).intensity([0.3, 6.0]), 0.3)
    prepared = prepare(model, structure, grid, index)
    projection = Projection(data.intensity, 1 / data.sigma**2, Background(grid.s_magnitude(index), 8), scale=0.02)
    near = minimise(prepared, projection, [0.33, 7.0])
    far = minimise(prepared, projection, [0.1, 20.0])
    np.testing.assert_allclose(far.values, near.values, rtol=1e-3)
    for step in np.vstack([np.eye(2), -np.eye(2)]) * near.values * 0.01:
        assert projection.objective(prepared.intensity(near.values + step)) > near.objective
    held = minimise(prepared, projection, [0.33, 6.5], fixed=[False, True])
    assert held.values[1] == 6.5 and held.objective > near.objective


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_flat_tensor(seed):
    """The truth does not move along one direction: V ends on the border of what it may be, or near it.

    All starts end there, no step inside leads down, and the errors are those of the tensors along the border.
    """
    atoms = random_structure("P 1", (13.0, 14.0, 15.0, 80.0, 95.0, 107.0), "CNOCSC", u=(0.15, 0.3), radius=3.5)
    grid = MapGrid(atoms.unit_cell, atoms.hall_symbol, (2, 2, 2), 2.2)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    v = turn @ np.diag([0.15, 0.08, 0.0]) @ turn.T
    values = np.array([v[0, 0], v[1, 1], v[2, 2], v[0, 1], v[0, 2], v[1, 2]])
    body = RigidBody(V=(0.1, 0.1, 0.1, 0.0, 0.0, 0.0))
    truth = prepare(body, atoms, grid, index).intensity(values)
    data = select(noisy_map(grid, index, truth, 0.3 * 0.02 * truth.std(), seed), Selection(bragg=True))
    prepared = prepare(body, atoms, data.grid, data.index)
    start = Candidate("body", prepared, np.array([0.1, 0.1, 0.1, 0.0, 0.0, 0.0]))
    (fit,) = fit_models(data, [start], FitOptions(background=10, starts=4, profile=False))
    assert fit.minimum.converged and fit.reached == 4
    lowest = np.linalg.eigvalsh(prepared.tensors[0][1].tensor(fit.minimum.values))[0]
    assert lowest >= 1e-4
    assert any("an eigenvalue of V ended at a bound" in text for text in fit.warnings) == (lowest < 2e-4)
    assert not any(e.at_bound for e in fit.estimates)  # the eigenvalue is, no element of V by itself
    scores = [(e.value - t) / e.esd for e, t in zip(fit.estimates, values)]
    assert np.abs(scores).max() < 3
    work, region = ~data.free, Region(prepared)
    projection = Projection(data.intensity[work], 1 / data.sigma[work] ** 2, Background(data.s, 10).at(work))
    for change in 3e-3 * np.random.default_rng(1).normal(size=(20, 6)):
        near = region.nearest(fit.minimum.values + change)
        assert projection.objective(prepared.intensity(near)[work]) > fit.minimum.objective - 0.01


def test_what_is_set_aside_does_not_matter(structure, voxels):
    """Nonsense on free voxels changes what is said about them, and nothing else."""
    grid, index, s = voxels
    model = RigidBody(sigma=0.3)
    data = select(noisy_map(grid, index, independent(model, structure, s), 0.3), Selection(free_fraction=0.2))
    assert 0.05 < data.free.mean() < 0.4
    start = candidate("rigid_body", model, structure, data)
    nonsense = np.where(data.free, np.random.default_rng(0).normal(size=data.n), data.intensity)
    fits = [
        fit_models(replace(data, intensity=y), [start], FitOptions(background=10, profile=False, weights=weights))[0]
        for y in (data.intensity, nonsense)
        for weights in ("sigma", "shell")
    ]
    for before, after in (fits[0::2], fits[1::2]):
        assert before.estimates == after.estimates and before.scale == after.scale
        np.testing.assert_array_equal(before.fitted, after.fitted)
        free = [f.statistics["free"]["cc_anisotropic"] for f in (before, after)]
        assert free[0] > 0.9 and abs(free[1]) < 0.5
        assert before.statistics["chi2"] == after.statistics["chi2"]


class Valleys(Prepared):
    """A pattern times x³ - 3x: from below 1 the best is x = 0.5, its lower bound, from above 1 it is 1.81."""

    def __init__(self, pattern):
        self.origin, self.structure, self._pattern = None, None, pattern
        self.parameters = (Parameter("x", 1.2, "", 0.5, 3.0, 1.2),)

    def jacobian(self, values):
        x = values[0]
        return (x**3 - 3 * x) * self._pattern, ((3 * x**2 - 3) * self._pattern)[:, None]

    def second(self, values, weights):
        return np.full((1, 1), 6 * values[0] * float(weights @ self._pattern))

    def model(self, values):
        return Uncorrelated()


def test_other_minima_are_told(voxels):
    """Starts that end elsewhere are counted, and the lowest minimum is kept wherever the first one starts."""
    grid, index, _ = voxels
    pattern = np.random.default_rng(0).normal(size=len(index))
    data = select(noisy_map(grid, index, 0.5 * pattern, 0.01, scale=1.0), Selection(bragg=True))
    for first in (1.2, 0.8):
        start = Candidate("valleys", Valleys(pattern[data.row]), np.array([first]))
        (fit,) = fit_models(data, [start], FitOptions(background=10, scale=1.0, starts=8, profile=False))
        assert fit.estimates[0].value == pytest.approx(1.81, abs=0.01)
        assert fit.starts == 8 and 1 <= fit.reached < 8
        assert f"valleys: {fit.reached} of 8 starts reached the best minimum, it has others" in fit.warnings
    (fit,) = fit_models(data, [start], FitOptions(background=10, scale=1.0, starts=1, profile=False))
    assert fit.reached == 1 and not [text for text in fit.warnings if "starts" in text]


def test_bounds_are_kept_and_told(structure, voxels):
    """Motion of whole molecules has no correlation length: gamma of a confined liquid runs to its bound."""
    grid, index, s = voxels
    truth = independent(LiquidLikeMotions(sigma=0.3, gamma=0.7), structure, s)
    data = select(noisy_map(grid, index, truth, 0.05), Selection())
    start = candidate("llm", LiquidLikeMotions(sigma=0.3, gamma=3.0), structure, data)
    (fit,) = fit_models(data, [start], FitOptions(background=10))
    gamma = fit.estimates[1]
    assert gamma.at_bound and gamma.value == pytest.approx(1.0, abs=1e-3) and np.isnan(gamma.esd)
    assert np.isfinite(fit.estimates[0].esd)
    assert any("gamma ended at a bound" in text for text in fit.warnings)


def test_data_that_contradict_a_model(structure, voxels):
    """Where the data are high the model is low: the scale comes out negative, which is said."""
    grid, index, s = voxels
    model = RigidBody(sigma=0.3)
    truth = independent(model, structure, s)
    start = None
    for sign in (1, -1):
        data = select(noisy_map(grid, index, sign * truth, 0.3), Selection(bragg=True))
        start = start or candidate("rigid_body", model, structure, data)
        (fit,) = fit_models(data, [start], FitOptions(background=10, profile=False, starts=1))
        told = [text for text in fit.warnings if "the scale is not positive: the data contradict the model" in text]
        assert fit.scale.value == pytest.approx(sign * 0.02, rel=0.1) and len(told) == (sign < 0)


def test_weights_by_shell_undo_errors_that_are_wrong(structure, voxels):
    """Where the errors of some shells are claimed far too small, weights by shell find the truth more exactly."""
    grid, index, s = voxels
    model = RigidBody(sigma=0.3)
    data = noisy_map(grid, index, independent(model, structure, s), 0.3)
    high = grid.s_magnitude(index) > 0.36
    noise = np.where(high, 3.0, 0.0) * np.random.default_rng(5).normal(size=len(index))
    data = select(replace(data, intensity=data.intensity + noise), Selection(bragg=True))
    start = candidate("rigid_body", model, structure, data)
    plain, shells = (
        fit_models(data, [start], FitOptions(background=10, weights=w, profile=False, n_shells=20))[0]
        for w in ("sigma", "shell")
    )
    assert shells.estimates[0].esd < 0.7 * plain.estimates[0].esd
    assert abs(shells.estimates[0].value - 0.3) < 4 * shells.estimates[0].esd
    assert shells.statistics["chi2"] == pytest.approx(1, abs=0.05)
    chi2 = [row["chi2"] for row in plain.statistics["shells"]]
    assert max(chi2) > 30 * min(chi2)


def test_weights_by_shell_are_those_of_the_best_model(structure, voxels):
    """Beside a model that explains nothing the weights are those of the one that made the data, in every shell."""
    grid, index, s = voxels
    model = RigidBody(sigma=0.3)
    data = noisy_map(grid, index, independent(model, structure, s), 0.3, claimed=1 / 2)
    data = select(data, Selection(bragg=True))
    cases = [candidate("uncorrelated", Uncorrelated(), structure, data), candidate("body", model, structure, data)]
    nothing, body = fit_models(
        data, cases, FitOptions(background=10, weights="shell", profile=False, starts=1, n_shells=5)
    )
    np.testing.assert_array_equal(nothing.weights, body.weights)
    four_errors = 4 * np.sqrt(2 / (len(data.index) / 5))  # of chi2 in a shell
    np.testing.assert_allclose(body.weights * data.sigma**2, 1 / 4, rtol=four_errors)
    assert nothing.statistics["chi2"] > 10 and body.statistics["chi2"] == pytest.approx(1, abs=0.1)


class Misfit(Prepared):
    """Residuals x + 1 and 0.9 x² + x - 1: at x = 0 the Hessian is a tenth of the Gauss-Newton matrix."""

    parameters = (Parameter("x", 0.0, "", -9.0, 9.0, 1.0),)
    truth = np.array([-1.0, 1.0])

    def jacobian(self, values):
        (x,) = values
        return np.array([x, 0.9 * x**2 + x]), np.array([[1.0], [1.8 * x + 1]])

    def second(self, values, weights):
        return np.array([[1.8 * weights[1]]])


def test_large_residuals_end_by_the_whole_hessian(monkeypatch):
    """Gauss-Newton steps alone gain a tenth of the way each (Dennis & Schnabel 1983, example 10.2.5)."""
    model = Misfit()
    projection = Projection(model.truth, np.ones(2), Background(np.ones(2), 0), 1.0)
    found = minimise(model, projection, [1.0])
    assert found.converged and found.iterations < 14 and abs(found.values[0]) < 0.003
    monkeypatch.setattr("dials_diffuse.fitting.minimise._GAUSS_NEWTON", 1000)
    alone = minimise(model, projection, [1.0])
    assert alone.iterations > found.iterations and abs(alone.values[0]) > 0.01  # its steps are small before the end


class Curved(Prepared):
    """A narrow curved valley, Rosenbrock's function, and a third residual that stays: x - 1, 30 (y - x²), -100."""

    def __init__(self):
        self.origin, self.structure = None, None
        self.parameters = tuple(Parameter(name, 0.0, "", -3.0, 3.0, 0.0) for name in "xy")

    def jacobian(self, values):
        x, y = values
        return np.array([x - 1, 30 * (y - x**2), 0.0]), np.array([[1.0, 0.0], [-60 * x, 30.0], [0.0, 0.0]])

    def second(self, values, weights):
        return np.diag([-60 * weights[1], 0.0])


@pytest.mark.parametrize("start", [(-1.2, 1.0), (-2.5, -2.5)])
def test_a_damped_step_that_gains_little_is_no_end(start):
    """Where damping makes steps short each gains little; the end is where no step would gain 1e-5 of chi² / n."""
    projection = Projection(np.array([0.0, 0.0, 100.0]), np.ones(3), Background(np.ones(3), 0), 1.0)
    found = minimise(Curved(), projection, np.array(start))
    assert found.converged and 0 <= found.objective - 1e4 < 1e-5 * 1e4 / 3


def test_models_are_compared(structure, voxels):
    """The model that made the data is the best one, the sum that contains it hardly better."""
    grid, index, s = voxels
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    data = select(noisy_map(grid, index, independent(model, structure, s), 0.5), Selection(free_fraction=0.2))
    cases = [
        candidate("llm", model, structure, data),
        candidate("rigid_body", RigidBody(sigma=0.3), structure, data),
    ]
    both = PreparedSum([c.prepared for c in cases], ["llm", "rigid_body"], structure)
    cases.append(Candidate("llm+rigid_body", both, np.concatenate([c.start for c in cases])))
    fits = fit_models(data, cases, FitOptions(background=10, profile=False))
    assert choose(fits, data).best.name == "llm"
    llm, rigid, added = fits
    assert rigid.criteria["aic"] > llm.criteria["aic"] + 10
    assert added.minimum.objective <= llm.minimum.objective * (1 + 1e-9)
    assert [e.name for e in added.estimates] == ["llm.sigma", "llm.gamma", "rigid_body.sigma"]
    assert len(llm.models) == 1 and isinstance(added.models[1], RigidBody)
    with pytest.raises(DiffuseError, match="given twice"):
        fit_models(data, [cases[0], cases[0]], FitOptions(background=10))


def test_a_sum_starts_from_its_parts(structure, voxels):
    """From a start in the wrong valley (there chi² is ten times as large) the sum is as good as what it contains."""
    grid, index, s = voxels
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    data = select(noisy_map(grid, index, independent(model, structure, s), 0.1), Selection(d_min=3.0))
    llm = candidate("llm", model, structure, data)
    rigid = candidate("rigid_body", RigidBody(sigma=0.3), structure, data)
    both = PreparedSum([llm.prepared, rigid.prepared], ["llm", "rigid_body"], structure)
    options = FitOptions(background=10, profile=False, starts=1)
    alone, added = fit_models(data, [llm, Candidate("both", both, np.array([0.05, 8.0, 0.9]))], options)
    # the body cannot quite vanish, its sigma stays above its lower bound
    assert added.minimum.objective <= alone.minimum.objective * 1.01


def test_agreement_by_hand(structure, voxels):
    grid, index, s = voxels
    model = RigidBody(sigma=0.3)
    data = select(noisy_map(grid, index, independent(model, structure, s), 2.0), Selection(free_fraction=0.2))
    (fit,) = fit_models(data, [candidate("rigid_body", model, structure, data)], FitOptions(background=5, n_shells=4))
    work = ~data.free
    y, x = data.intensity[work], fit.fitted[work]
    found = fit.statistics
    assert found["n"] == work.sum() and found["free"]["n"] == data.free.sum()
    assert found["cc"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["r"] == pytest.approx(np.abs(y - x).sum() / np.abs(y).sum())
    assert found["chi2"] == pytest.approx(np.sum(((y - x) / data.sigma[work]) ** 2) / (work.sum() - 7))
    assert fit.criteria["n_parameters"] == 7
    np.testing.assert_allclose(fit.fitted, fit.scale.value * fit.intensity + fit.background)
    assert sum(row["n"] for row in found["shells"]) == found["n"]
    residual = shell_residual(data.intensity, data.s)
    assert found["cc_anisotropic"] == pytest.approx(
        correlation(residual[work], shell_residual(fit.fitted, data.s)[work])
    )
    assert abs(shell_residual(np.exp(data.s), data.s)).max() < 1e-3 and residual.mean() == pytest.approx(0, abs=1e-9)


def test_free_voxels_agree_with_the_truth_as_well_as_the_others():
    """Of a model that is the truth, and was not fitted: shells with few free voxels take nothing from their signal."""
    grid = small_grid("P 41", (40.0, 40.0, 50.0, 90, 90, 90), (1, 1, 1), 2.5)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[grid.s_magnitude(index) > 0.1]
    s, points = grid.s_magnitude(index), index @ grid.reciprocal_matrix.T
    ones = np.ones(len(s))
    data = select(DiffuseMap(grid, True, index, ones, ones, ones.astype(int)), Selection(bragg=True))
    rng = np.random.default_rng(0)
    differences = []
    for trial in range(80):
        # varies within about 0.03 1/Å, half a block of free voxels
        waves = points @ (12 * rng.normal(size=(3, 60))) + rng.uniform(size=60)
        truth = np.cos(2 * np.pi * waves).sum(axis=1) / 5 * np.exp(-2 * s) + 20 * np.exp(-4 * s)
        free = free_voxels(grid, index, data.block, 0.2, seed=trial)
        noisy = replace(data, intensity=truth + 0.8 * rng.normal(size=len(s)), free=free)
        found = statistics(noisy, truth, ones, 0, 4)
        assert found["cc_anisotropic"] == pytest.approx(0.6, abs=0.2)
        differences.append(found["free"]["cc_anisotropic"] - found["cc_anisotropic"])
    error = np.std(differences) / np.sqrt(len(differences))
    assert error < 0.006 and abs(np.mean(differences)) < 3 * error


def test_displacements_are_compared_with_the_atoms(structure):
    lowest = structure.u_iso.min()
    (below,) = compare_displacements([LiquidLikeMotions(sigma=0.99 * np.sqrt(lowest), gamma=5.0)], structure)
    assert below.n_exceeded == 0 and below.warning == ""
    (above,) = compare_displacements([RigidBody(sigma=1.01 * np.sqrt(lowest))], structure)
    assert above.n_exceeded == 1 and "exceeds that of 1 of 6 atoms" in above.warning
    assert above.u_model == pytest.approx(1.01**2 * lowest) and above.u_structure == pytest.approx(
        structure.u_iso.mean()
    )
    (network,) = compare_displacements([Covariance(kernel="elastic_network")], structure)
    assert np.isfinite(network.correlation)
    bodies = RigidBody(sigma=(0.2, 0.3), body="selection", selections=("element C", "not element C"))
    (each,) = compare_displacements([bodies], structure)
    carbon = np.array([element == "C" for element in structure.element])
    assert each.u_model == pytest.approx(np.mean(np.where(carbon, 0.04, 0.09)))
    both = LiquidLikeMotions(sigma=0.35, gamma=5.0), RigidBody(sigma=0.3)
    llm, body, total = compare_displacements(both, structure)
    assert (llm.model, body.model, total.model) == ("llm", "rigid_body", "llm+rigid_body")
    assert total.u_model == pytest.approx(llm.u_model + body.u_model)
    assert total.u_model == pytest.approx(0.35**2 + 0.3**2)
    assert llm.n_exceeded == body.n_exceeded == 0 < total.n_exceeded


def test_bad_options():
    with pytest.raises(DiffuseError, match=r"background\.n_terms=2"):
        Background(np.linspace(0.1, 0.5, 10), 2)
    for bad in ({"scale": -1.0}, {"weights": "none"}, {"starts": 0}):
        with pytest.raises(DiffuseError, match=next(iter(bad))):
            FitOptions(**bad)
