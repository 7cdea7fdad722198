"""The general covariance: engines against the pair sum, identities, symmetry, elastic networks, errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import V, at, close, oracle, per_copy, some_voxels, vectors
from helpers.structures import GROUP_NAMES, GROUPS, random_structure, special_structure
from scipy.integrate import quad

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.pair_sum import exponential_matrix
from dials_diffuse.kernels.peaks import add_peaks
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.covariance import motion as motion_module
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.covariance.low_rank import low_rank_form, modes_of, number_of_sums, orders_needed
from dials_diffuse.models.covariance.motion import JointMotion, chebyshev_form, checked_covariance, flattened
from dials_diffuse.models.lorentzian import lorentzian
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.groups import group_centres, group_labels
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.transform import direct_transform


def random_covariance(n, tensors=False, scale=0.25, seed=0):
    """(n, n) or (n, n, 3, 3) of full rank, rms displacement about ``scale`` Å."""
    rng = np.random.default_rng(seed)
    size = 3 * n if tensors else n
    root = rng.normal(size=(size, 2 * size)) * scale / math.sqrt(2 * size)
    values = root @ root.T
    return values.reshape(n, 3, n, 3).transpose(0, 2, 1, 3).copy() if tensors else values


def turned(covariance, rotation):
    return covariance if covariance.ndim == 2 else rotation @ covariance @ rotation.T


def grid_of(structure, n=(2, 2, 2), d_min=1.6):
    return MapGrid(structure.unit_cell, structure.hall_symbol, n, d_min)


ENGINES = [("pair_sum", False), ("pair_sum", True), ("chebyshev", False), ("fft", False), ("fft", True)]
TOLERANCE = {
    "pair_sum": 1e-10,
    "chebyshev": 5e-6,
    "fft": 3e-5,
    "low_rank": 5e-6,
}  # chebyshev, low_rank: 1e-6 in each pair's term


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
@pytest.mark.parametrize(("engine", "tensors"), ENGINES)
def test_engines_are_the_pair_sum_over_the_copies(symbol, cell, engine, tensors):
    """Atoms in every crystal system, each copy with V turned by its operator; on a grid and at any points."""
    structure = random_structure(symbol, cell)
    covariance = random_covariance(structure.n_atoms, tensors)
    model = Covariance(kernel="free", matrix=covariance, soft=False, engine=engine)
    grid = grid_of(structure)
    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    expected = per_copy(structure, s, lambda copy, rotation: turned(covariance, rotation))
    close(at(model.intensity(structure, grid), grid, index), expected, TOLERANCE[engine])
    if engine != "fft":
        close(model.intensity_at(structure, s), expected, TOLERANCE[engine])


@pytest.mark.parametrize(("engine", "tensors"), ENGINES)
def test_soft_atoms_share_a_part_of_their_displacements(engine, tensors):
    """V_ij between atoms, U_i of the file on the diagonal."""
    structure = random_structure("P 31 2 1", GROUPS[6][1], anisotropic=True, u=(0.2, 0.4))
    shared = random_covariance(structure.n_atoms, tensors)
    model = Covariance(kernel="free", matrix=shared, soft=True, engine=engine)

    def covariance(copy, rotation):
        n = copy.n_atoms
        values = turned(shared if tensors else shared[:, :, None, None] * np.eye(3), rotation).copy()
        values[np.arange(n), np.arange(n)] = copy.u_cart
        return values

    grid = grid_of(structure)
    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, TOLERANCE[engine])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("engine", "tensors"), ENGINES)
def test_groups_are_atoms_that_move_together(engine, tensors, soft):
    structure = random_structure("P 1 21 1", GROUPS[1][1], elements="CNOCSCN", u=(0.15, 0.3))
    structure = replace(structure, residue=np.array(["   1 ", "   2 ", "   1 ", "   5 ", "   2 ", "   2 ", "   5 "]))
    labels = np.array([0, 1, 0, 2, 1, 1, 2])
    shared = random_covariance(3, tensors)
    model = Covariance(kernel="free", matrix=flattened(shared), groups="residue", soft=soft, engine=engine)

    def covariance(copy, rotation):
        values = turned(shared if tensors else shared[:, :, None, None] * np.eye(3), rotation)
        values = values[labels[:, None], labels].copy()
        if soft:
            values[np.arange(7), np.arange(7)] = copy.u_cart
        return values

    grid = grid_of(structure)
    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, TOLERANCE[engine])


# ---------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("engine", ["pair_sum", "chebyshev", "fft"])
def test_equal_covariances_are_a_rigid_body(engine):
    """(1 - exp(-q²σ²)) |F|² of each copy, F by direct summation."""
    structure = random_structure("P 41", GROUPS[5][1])
    grid = grid_of(structure, (2, 2, 3))
    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    content = structure.expand().without_displacements()
    copies = [content.take(content.copy == number) for number in range(4)]
    f2 = sum(np.abs(direct_transform(copy, index / np.array(grid.subdivide))) ** 2 for copy in copies)
    expected = -np.expm1(-((2 * np.pi * 0.2) ** 2) * np.sum(s**2, axis=1)) * f2
    atoms = Covariance(kernel="free", matrix=np.full((5, 5), 0.04), soft=False, engine=engine)
    one = Covariance(kernel="free", matrix=[[0.04]], groups="molecule", soft=False, engine=engine)
    for model in (atoms, one):
        close(at(model.intensity(structure, grid), grid, index), expected, TOLERANCE[engine])
    rigid = RigidBody(sigma=0.2).intensity(structure, grid)
    close(at(rigid, grid, index), expected, 1e-3)


@pytest.mark.parametrize(("engine", "tensors"), ENGINES)
@pytest.mark.parametrize("special", [False, True])
def test_no_covariances_are_uncorrelated_atoms(engine, tensors, special):
    """Also on special positions, where one atom belongs to several copies."""
    structure = special_structure() if special else random_structure("P 2 3", GROUPS[8][1], anisotropic=tensors)
    n = structure.n_atoms
    matrix = np.zeros((n, n, 3, 3))
    matrix[np.arange(n), np.arange(n)] = structure.u_cart
    if not tensors:
        matrix = matrix[:, :, 0, 0]
    grid = grid_of(structure)
    expected = Uncorrelated().intensity(structure, grid)
    known = np.isfinite(expected)
    for soft in (False, True):
        values = Covariance(kernel="free", matrix=matrix, soft=soft, engine=engine).intensity(structure, grid)
        close(values[known], expected[known], 1e-5)


def test_random_displacements_have_this_intensity():
    """<|F|²> - |<F>|² of a molecule whose atoms are displaced at random, within five standard errors."""
    structure = random_structure(elements="CNOC")
    covariance = random_covariance(4, tensors=True)
    rng = np.random.default_rng(1)
    draws = rng.multivariate_normal(np.zeros(12), flattened(covariance), 100_000).reshape(-1, 4, 3)
    s = rng.uniform(-0.3, 0.3, (5, 3))
    model = Covariance(kernel="free", matrix=covariance, soft=False)
    still = JointMotion(structure, np.arange(4), np.zeros((4, 4)))
    f = still.amplitudes(s, "wk1995")
    amplitude = np.einsum("kn,dkn->dk", f, np.exp(2j * np.pi * np.einsum("dnx,kx->dkn", draws, s)))
    squares = np.abs(amplitude - amplitude.mean(axis=0)) ** 2
    error = squares.std(axis=0) / math.sqrt(len(draws))
    assert np.all(np.abs(squares.mean(axis=0) - model.intensity_at(structure, s)) < 5 * error)


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
@pytest.mark.parametrize("engine", ["pair_sum", "fft"])
def test_maps_have_the_laue_symmetry(symbol, cell, engine):
    structure = random_structure(symbol, cell, elements="CNO")
    model = Covariance(kernel="free", matrix=random_covariance(3, tensors=True), soft=False, engine=engine)
    grid = grid_of(structure, d_min=2.5)
    volume = model.intensity(structure, grid)
    index = np.argwhere(np.isfinite(volume)) - np.array(grid.extent)
    for operator in laue_operators(grid.space_group, friedel=True):
        np.testing.assert_allclose(at(volume, grid, index @ operator), at(volume, grid, index), rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------- engines


def test_error_of_the_chebyshev_engine_is_bounded():
    """For each tolerance, with covariances of both signs and a wide range of q², q = 0 included."""
    rng = np.random.default_rng(4)
    n, m = 40, 300
    v = random_covariance(n, scale=0.7)
    assert v.min() < -0.01
    q = np.concatenate([[[0.0, 0.0, 0.0]], rng.uniform(-3, 3, (m - 1, 3))])
    square = np.sum(q**2, axis=1)
    a = rng.normal(size=(m, n)) + 1j * rng.normal(size=(m, n))
    a *= np.exp(-0.5 * square[:, None] * np.diag(v))
    exact = np.real(np.einsum("ki,kij,kj->k", a, np.expm1(square[:, None, None] * v), a.conj()))
    scale = square * np.einsum("ki,kij,kj->k", np.abs(a), np.abs(v) * np.exp(square[:, None, None] * v), np.abs(a))
    errors = []
    for tolerance in (1e-2, 1e-5, 1e-8):
        error = np.abs(chebyshev_form(square, a, v, tolerance) - exact)
        assert np.all(error <= 1.05 * tolerance * scale + 1e-11 * np.abs(exact).max())
        errors.append(error.max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]  # the tolerance matters
    assert chebyshev_form(square, a, v, 1e-5)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_bound_holds_for_each_pair(tolerance):
    """Of two atoms, beside one that does not scatter and whose covariance is the largest."""
    rng = np.random.default_rng(0)
    a = np.tile(np.array([1.0, 1.0, 0.0], dtype=complex), (400, 1))
    for _ in range(100):
        v = np.diag([0.0, 0.0, rng.uniform(0.05, 1.0)])
        v[0, 1] = v[1, 0] = shared = rng.uniform(-1, 1) * v[2, 2]
        x = np.sort(rng.uniform(0, rng.uniform(1, 20), 400))
        error = np.abs(chebyshev_form(x, a, v, tolerance) - 2 * np.expm1(x * shared))
        growth = np.exp(x * max(shared, 0.0))
        assert np.all(error <= 2 * tolerance * x * abs(shared) * growth + 1e-12 * growth[-1])


@pytest.mark.parametrize("m", [1, 2, 37])
def test_chebyshev_engine_of_few_points(m):
    rng = np.random.default_rng(4)
    v = random_covariance(6)
    square = rng.uniform(0, 20, m)
    a = rng.normal(size=(m, 6)) + 1j * rng.normal(size=(m, 6))
    exact = np.real(np.einsum("ki,kij,kj->k", a, np.expm1(square[:, None, None] * v), a.conj()))
    np.testing.assert_allclose(chebyshev_form(square, a, v, 1e-9), exact, rtol=1e-6)
    equal = np.full(m, 3.0)
    exact = np.real(np.einsum("ki,ij,kj->k", a, np.expm1(3.0 * v), a.conj()))
    np.testing.assert_allclose(chebyshev_form(equal, a, v, 1e-9), exact, rtol=1e-9)


def test_blocks_of_large_matrices_do_not_matter(monkeypatch):
    rng = np.random.default_rng(4)
    v = random_covariance(50)
    square, a = rng.uniform(0, 20, 200), rng.normal(size=(200, 50)) + 1j * rng.normal(size=(200, 50))
    whole = chebyshev_form(square, a, v, 1e-6)
    monkeypatch.setattr(motion_module, "_COLUMNS", 7)
    monkeypatch.setattr(motion_module, "_ROWS", 11)
    np.testing.assert_allclose(chebyshev_form(square, a, v, 1e-6), whole, rtol=1e-9)


@pytest.mark.parametrize("tensors", [False, True])
def test_products_of_modes_converge_to_the_pair_sum(tensors):
    """Each order is a term of the exponential series; what orders_needed leaves out is below the tolerance."""
    rng = np.random.default_rng(3)
    n, m = 6, 20
    root = rng.normal(size=(2, 3 * n if tensors else n)) * 0.2
    flat = root.T @ root
    v = flat.reshape(n, 3, n, 3).transpose(0, 2, 1, 3) if tensors else flat
    q = rng.uniform(-2.5, 2.5, (m, 3))
    a = rng.normal(size=(m, n)) + 1j * rng.normal(size=(m, n))
    blocks = v if tensors else v[:, :, None, None] * np.eye(3)
    x = np.einsum("ka,ijab,kb->kij", q, blocks, q)
    modes = modes_of(v, 1e-12)
    assert len(modes) == 2
    for orders in (1, 2, 3, 4):
        series = sum(x**k / math.factorial(k) for k in range(1, orders + 1))
        expected = np.real(np.einsum("ki,kij,kj->k", a, series, a.conj()))
        np.testing.assert_allclose(low_rank_form(q, a, modes, orders), expected, rtol=1e-9)
    for largest in (1e-4, 0.3, 4.0):
        for tolerance in (1e-2, 1e-8):
            orders = orders_needed(largest, tolerance)
            missing = [
                1 - sum(largest**k / math.factorial(k) for k in range(1, last + 1)) / math.expm1(largest)
                for last in (orders, orders - 1)
            ]
            assert missing[0] <= tolerance + 1e-14 and (missing[1] > tolerance or orders == 1)
    assert number_of_sums(2, 3) == 2 + 3 + 4


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("tensors", [False, True])
def test_engine_for_few_modes(tensors, soft):
    """Two modes of the five atoms of each copy, turned with it."""
    structure = random_structure("P 31 2 1", GROUPS[6][1], u=(0.2, 0.4))
    root = np.random.default_rng(3).normal(size=(2, 15 if tensors else 5)) * 0.15
    flat = root.T @ root
    shared = flat.reshape(5, 3, 5, 3).transpose(0, 2, 1, 3) if tensors else flat[:, :, None, None] * np.eye(3)

    def covariance(copy, rotation):
        values = (rotation @ shared @ rotation.T).copy()
        if soft:
            values[np.arange(5), np.arange(5)] = copy.u_cart
        return values

    model = Covariance(kernel="free", matrix=flat, soft=soft, engine="low_rank")
    grid = grid_of(structure, d_min=2.5)
    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    expected = per_copy(structure, s, covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, 5e-6)
    close(model.intensity_at(structure, s), expected, 5e-6)
    with pytest.raises(DiffuseError, match="engine=low_rank: 5 modes to order"):
        many = Covariance(kernel="free", matrix=np.eye(5), soft=soft, engine="low_rank")
        many.intensity_at(structure, np.ones((1, 3)))


def test_few_modes_of_many_atoms_are_taken_as_such(caplog):
    """Translation and rotation of a body of 200 atoms: six modes, and engine=auto finds them."""
    structure = random_structure(elements="C" * 200, unit_cell=(40.0, 40.0, 40.0, 90, 90, 90), radius=12.0)
    x, y, z = structure.site_cart.T - structure.site_cart.mean(axis=0)[:, None]
    zero = np.zeros_like(x)
    cross = np.stack([[zero, z, -y], [-z, zero, x], [y, -x, zero]]).transpose(2, 0, 1)
    modes = np.concatenate([0.1 * np.tile(np.eye(3), (200, 1, 1)), 0.005 * cross], axis=2).reshape(600, 6)
    model = Covariance(kernel="free", matrix=modes @ modes.T, soft=False)
    s = np.random.default_rng(0).uniform(-0.2, 0.2, (50, 3))
    with caplog.at_level("INFO", logger="dials.diffuse"):
        values = model.intensity_at(structure, s)
    assert "engine=low_rank" in caplog.text and "6 modes" in caplog.text
    close(values, replace(model, engine="pair_sum").intensity_at(structure, s), 5e-6)


def test_matrix_of_exponentials():
    v = random_covariance(5)
    out = np.full((5, 5), np.nan)
    exponential_matrix(2.0, v, 0, 3, out)
    exponential_matrix(2.0, v, 3, 5, out)
    expected = np.expm1(2.0 * v) / 2.0
    np.testing.assert_allclose(out, np.tril(expected) + np.tril(expected, -1), rtol=1e-12)


def test_peaks_are_gaussians_and_wrap_round():
    rng = np.random.default_rng(0)
    shape, edges = (7, 8, 9), np.array([[0.8, 0.1, -0.1], [0.0, 0.7, 0.2], [0.0, 0.0, 0.6]])
    root = rng.normal(size=(3, 3, 3)) * 0.3
    tensor = root @ root.transpose(0, 2, 1) + 0.3 * np.eye(3)
    turn = np.linalg.qr(root[0])[0]
    needle = turn @ np.diag([1.2, 0.02, 0.02]) @ turn.T  # it goes another way, see the kernel
    tensor = np.concatenate([tensor, needle[None]])
    position, weight = rng.uniform(-10, 10, (4, 3)), np.array([1.0, -2.0, 3.0, 0.3])
    out = np.ones(shape)
    add_peaks(position, tensor, weight, edges, 60.0, out)
    expected = np.ones(shape)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    for shift in np.ndindex(9, 9, 9):
        wrapped = points + (np.array(shift) - 4) * np.array(shape)
        for p, u, w in zip(position, tensor, weight):
            r = (wrapped - p) @ edges.T
            height = w / math.sqrt((2 * math.pi) ** 3 * np.linalg.det(u))
            expected += height * np.exp(-0.5 * np.einsum("...i,ij,...j", r, np.linalg.inv(u), r))
    np.testing.assert_allclose(out, expected, atol=1e-11)


def test_fft_engine_in_shells():
    """The rms error in every shell, as its documentation says, in a triclinic cell with unequal subdivision."""
    structure = random_structure(unit_cell=(14.0, 15.5, 17.0, 80, 95, 107), elements="CNOSCNOC", radius=5.0)
    grid = grid_of(structure, (2, 3, 1), 1.2)
    covariance = random_covariance(8, tensors=True)
    index = some_voxels(grid, 4000)
    s = vectors(structure, grid, index)
    model = Covariance(kernel="free", matrix=covariance, soft=False, engine="fft")
    error = at(model.intensity(structure, grid), grid, index) - oracle(structure, s, covariance)
    level = oracle(structure, s, covariance) - np.sum(
        [oracle(structure.take([i]), s, covariance[i : i + 1, i : i + 1]) for i in range(8)], axis=0
    )
    shell = (np.linalg.norm(s, axis=1) * grid.d_min * 5).astype(int)
    for i in range(5):
        assert np.sqrt(np.mean(error[shell == i] ** 2) / np.mean(level[shell == i] ** 2)) < 1e-4


def test_auto_says_what_it_takes(caplog):
    structure = random_structure()
    grid = grid_of(structure)
    matrix = random_covariance(5)
    with caplog.at_level("INFO", logger="dials.diffuse"):
        values = Covariance(kernel="free", matrix=matrix, soft=False).intensity(structure, grid)
    assert "covariance: engine=" in caplog.text
    expected = Covariance(kernel="free", matrix=matrix, soft=False, engine="pair_sum").intensity(structure, grid)
    known = np.isfinite(expected)
    close(values[known], expected[known], 1e-4)


# ------------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("kernel", ["exponential", "gaussian", "lorentzian"])
@pytest.mark.parametrize("tensor", [False, True])
def test_distance_kernels(kernel, tensor):
    """V_ij = V c(r_ij) inside each copy, in the frame of the file turned with it; U_i of the atoms."""
    structure = random_structure("P 21 21 21", GROUPS[4][1], u=(0.1, 0.2))
    gamma, core = 4.0, 1.0
    model = Covariance(kernel=kernel, gamma=gamma, core=core, **({"V": V} if tensor else {"sigma": 0.2}))

    def covariance(copy, rotation):
        r = np.linalg.norm(copy.site_cart[:, None] - copy.site_cart, axis=-1)
        if kernel == "exponential":
            c = np.exp(-r / gamma)
        elif kernel == "gaussian":
            c = np.exp(-0.5 * (r / gamma) ** 2)
        else:
            with np.errstate(invalid="ignore"):
                c = (np.exp(-r / gamma) - np.exp(-r / core)) / r / (1 / core - 1 / gamma)
        v = symmetric_tensor(V) if tensor else 0.04 * np.eye(3)
        values = c[:, :, None, None] * (rotation @ v @ rotation.T)
        values[np.arange(5), np.arange(5)] = copy.u_cart
        return values

    s = np.random.default_rng(0).uniform(-0.3, 0.3, (30, 3))
    expected = per_copy(structure, s, covariance)
    close(model.intensity_at(structure, s), expected, 1e-6)


def test_transform_of_the_lorentzian_kernel():
    gamma, core = 6.0, 1.5
    for q in (0.05, 0.3, 1.2):
        value = quad(
            lambda r, q=q: 4 * math.pi * r * math.sin(q * r) / q * float(lorentzian(np.array(r), gamma, core)),
            0,
            40 * gamma,
            limit=500,
        )[0]
        expected = 4 * math.pi * (1 / (gamma**-2 + q**2) - 1 / (core**-2 + q**2)) / (1 / core - 1 / gamma)
        assert value == pytest.approx(expected, rel=1e-6)
    assert lorentzian(np.array([0.0, 1e-9]), gamma, core) == pytest.approx([1, 1])


@pytest.mark.parametrize("kernel", ["exponential", "gaussian", "lorentzian"])
def test_distance_kernels_are_covariances(kernel):
    structure = random_structure(elements="C" * 60, unit_cell=(30.0, 30.0, 30.0, 90, 90, 90), radius=9.0)
    model = Covariance(kernel=kernel, sigma=0.3, gamma=5.0)
    checked_covariance("V", model.motion(structure).covariance, 60)


def test_correlation_length_ends_with_the_correlation():
    structure = random_structure(elements="C" * 40, unit_cell=(60.0, 60.0, 60.0, 90, 90, 90), radius=25.0)
    sites = structure.site_cart
    largest = max(np.linalg.norm(a - b) for a in sites for b in sites)
    assert Covariance(sigma=0.3, gamma=2.0).correlation_length(structure) <= 2 * math.log(100)
    assert Covariance(sigma=0.3, gamma=500.0).correlation_length(structure) == pytest.approx(largest)
    assert Covariance(V=V, gamma=500.0).correlation_length(structure) == pytest.approx(largest)
    matrix = np.eye(40)
    assert Covariance(kernel="free", matrix=matrix).correlation_length(structure) == 5.0


# ---------------------------------------------------------------------------------------------------- elastic networks


def chain_of_atoms(symbol="P 21 21 21", cell=(14.0, 15.0, 16.0, 90, 90, 90)):
    return random_structure(symbol, cell, elements="C" * 12, radius=4.5, u=(0.1, 0.3))


def copies_around(structure):
    """Positions of all other copies near the molecule, by brute force."""
    others = []
    for number, operator in enumerate(structure.space_group):
        r = np.array(operator.r().as_double()).reshape(3, 3)
        for shift in np.ndindex(5, 5, 5):
            shift = np.array(shift) - 2
            if number == 0 and not shift.any():
                continue
            others.append(
                (structure.site_frac @ r.T + operator.t().as_double() + shift) @ structure.orthogonalization.T
            )
    return np.concatenate(others)


@pytest.mark.parametrize("contacts", [False, True])
@pytest.mark.parametrize(("symbol", "cell"), [GROUPS[0], GROUPS[4], GROUPS[6]], ids=["P1", "P212121", "P3121"])
def test_stiffness_is_the_second_derivative_of_the_springs_energy(symbol, cell, contacts):
    """By finite differences of the energy of springs, those to other copies with their far ends held still."""
    structure = chain_of_atoms(symbol, tuple(1.3 * x for x in cell[:3]) + cell[3:])
    cutoff = 6.5
    sites = structure.site_cart
    pairs = [(i, j) for i in range(12) for j in range(i) if np.linalg.norm(sites[i] - sites[j]) < cutoff]
    others = copies_around(structure) if contacts else np.zeros((0, 3))
    held = [(i, k) for i in range(12) for k in range(len(others)) if np.linalg.norm(sites[i] - others[k]) < cutoff]
    assert not contacts or held

    def energy(moved):
        moved = moved.reshape(-1, 3)
        lengths = [(np.linalg.norm(moved[i] - moved[j]), np.linalg.norm(sites[i] - sites[j])) for i, j in pairs]
        lengths += [(np.linalg.norm(moved[i] - others[k]), np.linalg.norm(sites[i] - others[k])) for i, k in held]
        return 0.5 * sum((a - b) ** 2 for a, b in lengths)

    network = ElasticNetwork("anisotropic", cutoff, contacts)
    stiffness = network.stiffness(structure, sites)
    step, x = 1e-3, sites.reshape(-1)
    for a, b in [(0, 0), (0, 1), (4, 7), (10, 10), (3, 20), (35, 34)]:
        da, db = step * np.eye(36)[a], step * np.eye(36)[b]
        second = energy(x + da + db) - energy(x + da - db) - energy(x - da + db) + energy(x - da - db)
        assert stiffness[a, b] == pytest.approx(second / (4 * step**2), abs=1e-4)
    gaussian = ElasticNetwork("gaussian", cutoff, contacts).stiffness(structure, sites)
    expected = np.zeros((12, 12))
    for i, j in pairs:
        expected[i, j] = expected[j, i] = -1
    expected -= np.diag(expected.sum(axis=1))
    for i, _ in held:
        expected[i, i] += 1
    np.testing.assert_allclose(gaussian, expected)


@pytest.mark.parametrize("network", ["gaussian", "anisotropic"])
def test_covariance_of_a_network(network):
    """kT K^-1, the size as asked; without contacts no motion of the molecule as a whole."""
    structure = chain_of_atoms()
    labels = np.arange(12)
    held = ElasticNetwork(network, 7.0)
    stiffness, covariance = held.stiffness(structure, structure.site_cart), held.covariance(structure, labels, 0.4)
    product = stiffness @ flattened(covariance)
    np.testing.assert_allclose(product, product[0, 0] * np.eye(len(product)), atol=1e-9)
    assert np.mean(np.diag(flattened(covariance))) == pytest.approx(0.16)
    free = replace(held, crystal_contacts=False).covariance(structure, labels, None)
    assert np.mean(np.diag(flattened(free))) == pytest.approx(structure.u_iso.mean())
    shift = np.tile(np.eye(3), (12, 1)) if network == "anisotropic" else np.ones((12, 1))
    assert np.abs(flattened(free) @ shift).max() < 1e-9
    model = Covariance(kernel="elastic_network", sigma=0.3, network=held, soft=False)
    s = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 3))
    v = model.motion(structure).covariance
    close(model.intensity_at(structure, s), per_copy(structure, s, lambda c, r: turned(v, r)), 1e-6)


# ------------------------------------------------------------------------------------------------------ groups, errors


def test_groups_of_atoms():
    structure = random_structure(elements="CNOCSC")
    structure = replace(
        structure,
        chain=np.array(["A", "A", "A", "A", "B", "B"]),
        residue=np.array(["   1 ", "   1 ", "   2 ", "   7 ", "   8 ", "   8A"]),
    )
    expected = {
        "atom": [0, 1, 2, 3, 4, 5],
        "residue": [0, 0, 1, 2, 3, 4],
        "segment": [0, 0, 0, 1, 2, 2],
        "chain": [0, 0, 0, 0, 1, 1],
        "molecule": [0] * 6,
    }
    for groups, labels in expected.items():
        assert group_labels(structure, groups).tolist() == labels
    # beyond 9999 PDB files count in letters
    long = replace(structure, residue=np.array(["9998 ", "9999 ", "A000 ", "A001 ", "A009 ", "    A"]))
    assert group_labels(long, "segment").tolist() == [0, 0, 0, 0, 1, 2]
    chosen = group_labels(structure, "selection", ("chain B", "chain A and resseq 1:2", "resseq 7"))
    assert chosen.tolist() == [1, 1, 1, 2, 0, 0]
    centres = group_centres(structure, chosen)
    np.testing.assert_allclose(centres[0], structure.site_cart[4:].mean(axis=0))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("helix",), "groups=helix: choose from"),
        (("selection",), "one selection for each group"),
        (("chain", ("chain A",)), "selections are given too"),
        (("selection", ("element C",)), "3 of 5 atoms are in none of the 1 selections"),
        (("selection", ("all", "element C")), "'all' and 'element C' share atoms"),
        (("selection", ("all", "element U")), "'element U': holds no atoms"),
        (("selection", ("nonsense (",)), "not understood"),
    ],
)
def test_bad_groups_are_refused(arguments, complaint):
    with pytest.raises(DiffuseError, match=complaint.replace("(", r"\(")):
        group_labels(random_structure(elements="CNOCS"), *arguments)


def bad(n, change):
    matrix = random_covariance(n)
    change(matrix)
    return matrix


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (np.diag([0.1, 0.1, 0.1, 0.1, -0.1]), "not positive semidefinite.*lowest eigenvalue is -0.1"),
        (np.full((5, 5), 0.1) - 0.19 * np.eye(5), "not positive semidefinite"),
        (bad(5, lambda m: m.__setitem__((0, 1), 1.0)), "not symmetric"),
        (bad(5, lambda m: m.__setitem__((0, 0), np.nan)), "not finite"),
        (np.zeros((4, 4)), r"shape \(4, 4\); 5 bodies need \(5, 5\) or \(15, 15\)"),
    ],
)
def test_bad_covariances_are_refused(matrix, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        Covariance(kernel="free", matrix=matrix).intensity_at(random_structure(), np.zeros((1, 3)))


def test_covariance_of_low_rank_is_accepted():
    """Semidefinite with rounding errors, isotropic and with tensors."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(150, 2))
    checked_covariance("V", root @ root.T, 150)
    checked_covariance("V", root @ root.T, 50)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kernel": "box"}, "covariance.kernel=box: choose from"),
        ({"engine": "magic"}, "covariance.engine=magic"),
        ({"groups": "helix"}, "covariance.groups=helix"),
        ({"kernel": "free"}, "need each other"),
        ({"matrix": np.eye(5), "sigma": 0.1, "gamma": 3.0}, "need each other"),
        ({"sigma": 0.1}, "covariance.gamma=None"),
        ({"gamma": 3.0}, "exactly one of covariance.sigma"),
        ({"sigma": 0.1, "gamma": 3.0, "kernel": "lorentzian", "core": 4.0}, "covariance.core=4.0"),
        ({"sigma": 0.1, "gamma": 3.0, "kernel": "elastic_network"}, "takes neither"),
        ({"sigma": 0.1, "gamma": 3.0, "tolerance": 0.0}, "covariance.tolerance"),
    ],
)
def test_bad_parameters_are_refused(values, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        Covariance(**values)


def test_engines_that_do_not_fit_are_refused():
    structure = random_structure()
    with pytest.raises(DiffuseError, match="chebyshev needs isotropic"):
        Covariance(V=V, gamma=3.0, engine="chebyshev").intensity_at(structure, np.zeros((1, 3)))
    with pytest.raises(DiffuseError, match="works on grids only"):
        Covariance(sigma=0.1, gamma=3.0, engine="fft").intensity_at(structure, np.zeros((1, 3)))
    with pytest.raises(DiffuseError, match="no two of 5 groups"):
        network = ElasticNetwork(cutoff=0.01)
        Covariance(kernel="elastic_network", network=network).intensity_at(structure, np.zeros((1, 3)))
    with pytest.raises(DiffuseError, match="network=springs"):
        ElasticNetwork(network="springs")


def test_pair_sums_are_one(seed=3):
    """The engine over amplitudes and the oracle over form factors."""
    structure = random_structure(anisotropic=True)
    v = random_covariance(5, tensors=True)
    s = np.random.default_rng(seed).uniform(-0.4, 0.4, (11, 3))
    motion = JointMotion(structure, np.arange(5), v)
    close(motion.coherent(s, "wk1995", "pair_sum", 0.0), oracle(structure, s, v), 1e-12)
    v = random_covariance(5)
    motion = JointMotion(structure, np.arange(5), v)
    close(motion.coherent(s, "wk1995", "pair_sum", 0.0), oracle(structure, s, v), 1e-12)


@pytest.mark.parametrize("name", ["5zck", "2ol9", "7n2h"])
@pytest.mark.parametrize("engine", ["chebyshev", "fft"])
def test_real_files_against_the_pair_sum(shared_data, name, engine):
    """2000 random voxels of peptides."""
    structure = load_structure(shared_data / "pdb" / f"{name}.pdb")
    grid = grid_of(structure, (3, 3, 3), 1.5)
    index = some_voxels(grid, 2000)
    s = vectors(structure, grid, index)
    covariance = random_covariance(structure.n_atoms)
    expected = per_copy(structure, s, lambda copy, rotation: covariance)
    model = Covariance(kernel="free", matrix=covariance, soft=False, engine=engine)
    values = (
        model.intensity_at(structure, s) if engine == "chebyshev" else at(model.intensity(structure, grid), grid, index)
    )
    close(values, expected, {"chebyshev": 1e-5, "fft": 1e-3}[engine])


@pytest.mark.parametrize(("engine", "tensors"), ENGINES[2:])
def test_piece_of_lysozyme_against_the_pair_sum(shared_data, engine, tensors):
    """300 atoms with their ANISOU records on the diagonal and a part of them shared; 2000 voxels."""
    structure = load_structure(shared_data / "pdb" / "6o2h.pdb")
    structure = structure.take(np.arange(300))
    r = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)
    lowest = np.linalg.eigvalsh(structure.u_cart).min()
    shared = 0.9 * lowest * np.exp(-r / 6.0)
    if tensors:
        shared = shared[:, :, None, None] * np.diag([1.0, 0.5, 0.8])
    covariance = (shared if tensors else shared[:, :, None, None] * np.eye(3)).copy()
    covariance[np.arange(300), np.arange(300)] = structure.u_cart
    grid = grid_of(structure, (1, 1, 1), 1.5)
    index = some_voxels(grid, 2000)
    s = vectors(structure, grid, index)
    expected = oracle(structure, s, covariance)
    model = Covariance(kernel="free", matrix=shared, engine=engine)
    values = at(model.intensity(structure, grid), grid, index) if engine == "fft" else model.intensity_at(structure, s)
    close(values, expected, {"chebyshev": 1e-5, "fft": 1e-3}[engine])
