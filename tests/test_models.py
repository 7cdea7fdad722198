"""Diffuse models against the pair sum, direct sums over the lattice, and each other."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import G, V, at, close, oracle, own_displacements, per_copy, some_voxels, vectors
from helpers.structures import GROUP_NAMES, GROUPS, random_structure
from scipy.integrate import quad

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.pair_sum import amplitudes, pair_sum, pair_sum_isotropic
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models import lorentzian as lorentzian_module
from dials_diffuse.models import single_atoms as common
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.llm import llm as llm_module
from dials_diffuse.models.llm.convolution import Correlation, box_size, convolutions, distinct_shifts
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.lorentzian import lorentzian, lorentzian_flux, lorentzian_transform
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.single_atoms import diameter, displaced
from dials_diffuse.models.table import all_models
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.factors import form_factors, sum_of_squares
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.transform import direct_transform, s_squared

#: the Laue groups that structures.GROUPS lacks
MORE_LAUE_GROUPS = [
    ("P 43 21 2", (12.0, 12.0, 14.0, 90, 90, 90)),
    ("R 3 :H", (15.0, 15.0, 14.0, 90, 90, 120)),
    ("P 3 1 2", (11.0, 11.0, 14.0, 90, 90, 120)),
    ("P 61 2 2", (13.0, 13.0, 15.0, 90, 90, 120)),
    ("P 43 3 2", (14.0, 14.0, 14.0, 90, 90, 90)),
]


# ---------------------------------------------------------------------------------------------------- the pair sum


def test_pair_sum_against_random_displacements():
    """<|F|²> - |<F>|² of atoms that are displaced at random, within five standard errors."""
    rng = np.random.default_rng(5)
    n, draws = 4, 200_000
    root = rng.normal(size=(3 * n, 3 * n)) * 0.1
    covariance = root @ root.T
    site = rng.uniform(0, 6, (n, 3))
    f = rng.uniform(1, 8, n) * np.exp(1j * rng.uniform(0, 0.3, n))  # absorbing atoms
    q = rng.uniform(-2, 2, (6, 3))
    moved = site + (rng.normal(size=(draws, 3 * n)) @ root.T).reshape(draws, n, 3)
    amplitude = np.einsum("dnx,qx->qdn", moved, q)
    amplitude = np.exp(1j * amplitude) @ f
    squares = np.abs(amplitude - amplitude.mean(axis=1, keepdims=True)) ** 2
    expected, error = squares.mean(axis=1), squares.std(axis=1) / math.sqrt(draws)
    out = np.empty(len(q))
    blocks = covariance.reshape(n, 3, n, 3).transpose(0, 2, 1, 3).copy()
    pair_sum(q, site, np.tile(f, (len(q), 1)), blocks, out)
    assert np.all(np.abs(out - expected) < 5 * error)
    assert np.all(error < 0.02 * expected)


def test_isotropic_pair_sum_is_a_special_case():
    rng = np.random.default_rng(2)
    q, site = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    f = rng.normal(size=(7, 5)) + 1j * rng.normal(size=(7, 5))
    root = rng.normal(size=(5, 5)) * 0.2
    scalar = root @ root.T
    one, other = np.empty(7), np.empty(7)
    pair_sum_isotropic(q, site, f, scalar, one)
    pair_sum(q, site, f, scalar[:, :, None, None] * np.eye(3), other)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_amplitudes_add_up_to_structure_factors():
    structure = random_structure(anisotropic=True)
    s = np.random.default_rng(0).uniform(-0.5, 0.5, (9, 3))
    terms = np.empty((9, structure.n_atoms), dtype=complex)
    f = form_factors(structure, np.linalg.norm(s, axis=1))
    amplitudes(2 * np.pi * s, structure.site_cart, structure.type_index, f, structure.u_cart, terms)
    u = np.einsum("ka,nab,kb->kn", s, structure.u_cart, s)
    phase = s @ structure.site_cart.T
    expected = f[structure.type_index].T * np.exp(-2 * np.pi**2 * u + 2j * np.pi * phase)
    np.testing.assert_allclose(terms, expected, rtol=1e-10)


# ------------------------------------------------------------------------------------- closed special cases, symmetry


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
@pytest.mark.parametrize("case", ["uncorrelated", "rigid", "rigid-tensor", "soft"])
def test_models_are_pair_sums_over_the_copies(symbol, cell, case):
    """Anisotropic atoms in every crystal system; each copy with its own rotated tensor."""
    structure = random_structure(symbol, cell, anisotropic=True, u=(0.08, 0.3))
    grid = MapGrid(cell, structure.hall_symbol, (2, 2, 2), 1.6)
    tensor = symmetric_tensor(V)

    def covariance(copy, rotation):
        n = copy.n_atoms
        if case == "uncorrelated":
            return own_displacements(copy)
        if case == "rigid":
            return np.full((n, n), 0.2**2)
        shared = np.tile(rotation @ tensor @ rotation.T, (n, n, 1, 1))
        if case == "soft":
            shared[np.arange(n), np.arange(n)] = copy.u_cart
        return shared

    model = {
        "uncorrelated": Uncorrelated(),
        "rigid": RigidBody(sigma=0.2),
        "rigid-tensor": RigidBody(V=V),
        "soft": RigidBody(V=V, soft=True),
    }[case]
    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-6 if case == "uncorrelated" else 3e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_cell_as_one_body(soft):
    """The content of the cell moves as one; the map is the average over the Laue group."""
    structure = random_structure("P 31 2 1", GROUPS[6][1])
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 3), 1.8)
    content = structure.expand()
    covariance = np.tile(symmetric_tensor(V), (content.n_atoms, content.n_atoms, 1, 1))
    if soft:
        covariance[np.arange(content.n_atoms), np.arange(content.n_atoms)] = content.u_cart
    index = some_voxels(grid, 10)
    operators = laue_operators(structure.space_group, friedel=True)
    expected = np.mean([oracle(content, vectors(structure, grid, index @ r), covariance) for r in operators], axis=0)
    model = RigidBody(V=V, body="cell", soft=soft)
    close(at(model.intensity(structure, grid), grid, index), expected, 3e-4)


@pytest.mark.parametrize(
    "model",
    [
        Uncorrelated(),
        RigidBody(V=V),
        RigidBody(sigma=0.2, body="cell"),
        LiquidLikeMotions(sigma=0.2, gamma=4.0),
        LiquidLikeMotions(V=V, G=G, adp="overall"),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize(("symbol", "cell"), GROUPS + MORE_LAUE_GROUPS, ids=str)
def test_maps_have_the_laue_symmetry(symbol, cell, model):
    structure = random_structure(symbol, cell, elements="CNO")
    grid = MapGrid(cell, structure.hall_symbol, (2, 2, 2), 2.5)
    volume = model.intensity(structure, grid)
    assert volume.shape == grid.shape and volume.dtype == np.float64
    assert np.array_equal(np.isfinite(volume), s_squared(grid) <= 2.5**-2 * (1 + 1e-9))
    index = np.argwhere(np.isfinite(volume)) - np.array(grid.extent)
    values = at(volume, grid, index)
    for operator in laue_operators(grid.space_group, friedel=True):
        np.testing.assert_allclose(at(volume, grid, index @ operator), values, rtol=1e-9)


def test_laue_average_is_the_mean_of_the_mates_that_are_known():
    grid = MapGrid((10.0, 10.0, 12.0, 90, 90, 120), "P 6", (2, 2, 3), 2.5)
    rng = np.random.default_rng(0)
    volume = rng.normal(size=grid.shape)
    volume[rng.uniform(size=grid.shape) < 0.2] = np.nan
    index = some_voxels(grid, 40)
    mates = np.array([at(volume, grid, index @ r) for r in laue_operators(grid.space_group, friedel=True)])
    np.testing.assert_allclose(at(laue_average(volume, grid), grid, index), np.nanmean(mates, axis=0), rtol=1e-12)


def test_anisotropic_atoms_on_a_large_grid_are_interpolated_well():
    """More voxels along each axis than Chebyshev nodes."""
    structure = random_structure(unit_cell=(60.0, 55.0, 70.0, 80, 95, 107), anisotropic=True, u=(0.05, 1.2))
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 2), 1.5)
    index = some_voxels(grid, 500)
    s = vectors(structure, grid, index)
    square = np.einsum("ka,nab,kb->nk", s, structure.u_cart, s)
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index]
    expected = np.sum(f**2 * np.exp(-4 * np.pi**2 * square), axis=0)
    values = at(displaced(structure, grid, s_squared(grid), "wk1995"), grid, index)
    assert np.abs(values - expected).max() < 1e-6 * sum_of_squares(structure, np.zeros(1))[0]


# ------------------------------------------------------------------------------------------------- liquid-like motions


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kernel", ["exponential", "gaussian", "lorentzian"])
def test_kernels_are_transforms_of_powers_of_the_correlation(kernel, order):
    gamma = 3.0
    correlation = Correlation(kernel, gamma * np.eye(3), core=0.8)
    for q in (0.1, 0.4, 1.3):

        def integrand(r, q=q):
            if kernel == "lorentzian":
                c = (math.exp(-r / gamma) - math.exp(-r / 0.8)) / r / (1 / 0.8 - 1 / gamma) if r > 0 else 1.0
            else:
                c = math.exp(-r / gamma) if kernel == "exponential" else math.exp(-0.5 * (r / gamma) ** 2)
            return 4 * math.pi * r * math.sin(q * r) / q * c**order

        expected = quad(integrand, 0, 60 * gamma, limit=400, epsabs=1e-9)[0]
        value = correlation.transform(np.array([(gamma * q) ** 2]), order)[0]
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("core", [0.02, 0.9])
def test_tables_of_the_lorentzian_kernel(core):
    """Order 1 has closed forms; inside the table and beyond its end."""
    k = np.concatenate([[0.0], np.geomspace(1e-3, 300 / core, 50)])
    exact = lorentzian_transform(k**2, core, 1)
    spline, end, flux = lorentzian_module._table(core, 1)
    near = k <= end
    np.testing.assert_allclose(np.exp(spline(np.log1p(k[near]))), exact[near], rtol=1e-4)
    np.testing.assert_allclose(flux(np.log1p(k[near])), lorentzian_flux(k[near], core, 1), rtol=1e-4, atol=1e-9)
    for order in (2, 5):
        edge = lorentzian_module._END * order / core * np.array([1 - 1e-9, 1 + 1e-9, 2, 4])
        values = lorentzian_transform(edge**2, core, order)
        assert values[1] == pytest.approx(values[0], rel=1e-6)
        expected = lorentzian_module._integrals(edge[2:3], core, order)[0]
        assert values[2] == pytest.approx(expected, rel=5e-3)
        step = lorentzian_flux(edge[2:], core, order)
        x = np.linspace(edge[2], edge[3], 10_001)
        integral = np.sum(lorentzian_transform(x**2, core, order) * x) * (x[1] - x[0])
        assert step[1] - step[0] == pytest.approx(integral, rel=1e-3)


def test_kernel_with_a_correlation_matrix():
    """Against a sum over a fine grid of points: c depends on |G^-1 r|, the transform on |G Q|."""
    matrix = symmetric_tensor(G)
    step = 0.75
    axis = np.arange(-40, 41) * step
    r = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    c = np.exp(-0.5 * np.sum((r @ np.linalg.inv(matrix)) ** 2, axis=1))
    correlation = Correlation("gaussian", matrix)
    for q in ([0.3, -0.2, 0.1], [0.0, 0.25, 0.3]):
        expected = np.sum(c * np.cos(r @ q)) * step**3
        value = correlation.transform(np.array([np.sum((matrix @ q) ** 2)]), 1)[0]
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level", [0.3, 1e-3, 1e-5])
def test_reach_of_correlations(level):
    """Along the longest axis of G, as far as the correlation is that large."""
    at = {
        "exponential": lambda r: np.exp(-r / 9.0),
        "gaussian": lambda r: np.exp(-0.5 * (r / 9.0) ** 2),
        "lorentzian": lambda r: lorentzian(np.array(r), 9.0, 1.5),
    }
    for kernel, function in at.items():
        reach = Correlation(kernel, np.eye(3) * 9.0, 1.5).reach(level)
        assert reach > 0 and float(function(reach)) == pytest.approx(level, rel=1e-6)


@pytest.mark.parametrize("kernel", ["exponential", "gaussian"])
def test_convolution_against_a_sum_over_the_lattice(kernel):
    """Every voxel of every shift, unequal subdivision, triclinic cell."""
    cell = (9.0, 10.5, 12.0, 80.0, 95.0, 107.0)
    source = MapGrid(cell, "P 1", (1, 1, 1), 2.6)
    grid = MapGrid(cell, "P 1", (3, 1, 4), 3.1)
    rng = np.random.default_rng(0)
    strength = rng.uniform(size=source.shape)
    correlation = Correlation(kernel, symmetric_tensor(G))
    total = np.full((3, *grid.shape), np.nan)
    identity = np.eye(3, dtype=np.int64)[None]
    for where, values in convolutions(strength, source, grid, correlation, 3, identity):
        for order, value in enumerate(values):
            total[(order, *where)] = value
    assert np.all(np.isfinite(total))
    b, g = grid.reciprocal_matrix, symmetric_tensor(G)
    nodes = np.argwhere(strength >= 0) - np.array(source.extent)
    index = some_voxels(grid, 40)
    index = np.concatenate([index, [np.array(grid.extent), -np.array(grid.extent)]])
    for i in index:
        q = 2 * np.pi * (i / np.array(grid.subdivide) - nodes) @ b.T
        square = np.sum((q @ g) ** 2, axis=1)
        for order in (1, 2, 3):
            sum_over_h = strength.reshape(-1) @ correlation.transform(square, order) * np.linalg.det(b)
            assert total[order - 1][tuple(i + np.array(grid.extent))] == pytest.approx(sum_over_h, rel=1e-9)


def test_boxes_hold_all_differences():
    source, grid = MapGrid((30, 40, 50, 90, 90, 90), "P 1", (1, 1, 1), 1.2), None
    grid = MapGrid((30, 40, 50, 90, 90, 90), "P 1", (3, 2, 5), 1.7)
    for size, m, far, n in zip(box_size(source, grid), source.extent, grid.extent, grid.subdivide):
        assert size >= 2 * (m + far / n) + 1


def test_distinct_shifts_cover_the_cell():
    grid = MapGrid((10, 10, 12, 90, 90, 120), "P 6", (3, 3, 2), 3.0)
    operators = laue_operators(grid.space_group, friedel=True)
    shifts = distinct_shifts((3, 3, 2), operators)
    reached = {tuple(np.mod(np.array(s) @ r, (3, 3, 2))) for s in shifts for r in operators}
    assert len(reached) == 18 and len(shifts) < 9
    assert distinct_shifts((1, 1, 1), operators) == [(0, 0, 0)]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("kernel", ["exponential", "gaussian", "lorentzian"])
def test_reflections_left_out_and_those_taken_make_the_whole(kernel, order):
    """With a mean square of 1 everywhere the integral over all reflections is c(0)^l = 1."""
    gamma, q_max = 2.0, 3.0
    correlation = Correlation(kernel, gamma * np.eye(3))
    q = np.array([0.0, 1.0, 2.0, 2.9, 3.0])
    np.testing.assert_allclose(correlation.tail(q, 1e-6, np.ones_like, order), 1, rtol=2e-3)
    outside = correlation.tail(q, q_max, np.ones_like, order)
    x = np.linspace(-1, 1, 20001)
    r = (np.arange(300) + 0.5) * q_max / 300
    for k, value in zip(q, outside):
        square = gamma**2 * (k**2 + r[:, None] ** 2 - 2 * k * r[:, None] * x[None, ::40])
        inner = np.trapezoid if hasattr(np, "trapezoid") else np.trapz  # noqa: NPY201
        shells = inner(correlation.transform(square, order), x[::40], axis=1)
        inside = np.sum(shells * r**2) * q_max / 300 / (2 * math.pi) ** 2
        assert value + inside == pytest.approx(1, abs=5e-3)


def lattice_sum(structure, s, sigma, correlation, order, cells):
    """Liquid-like motions of one order by a direct sum over pairs of atoms in all cells within reach; isotropic U."""
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T * structure.occupancy
    q = 2 * np.pi * s
    q2 = np.sum(q**2, axis=1)
    f = f * np.exp(-0.5 * q2[:, None] * structure.u_iso)
    ranges = [np.arange(-n, n + 1) for n in cells]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3) @ structure.orthogonalization.T
    total = np.zeros(len(s))
    for i, a in enumerate(structure.site_cart):
        for j, b in enumerate(structure.site_cart):
            r = a - b + shifts
            c = correlation(np.linalg.norm(r, axis=1)) ** order
            total += f[:, i] * f[:, j] * (np.cos(q @ r.T) @ c)
    return total * (sigma**2 * q2) ** order / math.factorial(order)


@pytest.mark.parametrize(("kernel", "tolerance"), [("gaussian", 1e-3), ("exponential", 5e-3), ("lorentzian", 5e-3)])
@pytest.mark.parametrize("orders", [1, 3])
def test_llm_is_the_sum_over_the_lattice(kernel, tolerance, orders):
    """Atoms of one kind, so that the local form factor makes both forms equal."""
    gamma, sigma = 2.0, 0.3
    structure = random_structure(unit_cell=(6.0, 7.0, 6.5, 82, 95, 100), elements="CCC", u=(0.2, 0.2), radius=2.0)
    grid = MapGrid(structure.unit_cell, "P 1", (3, 2, 2), 1.8)
    model = LiquidLikeMotions(
        sigma=sigma, gamma=gamma, kernel=kernel, orders=orders, incoherent=False, local_form_factor=True
    )
    index = some_voxels(grid, 40)
    s = vectors(structure, grid, index)

    def correlation(r):
        if kernel == "lorentzian":
            return lorentzian(r, gamma, 1.5)
        return np.exp(-r / gamma) if kernel == "exponential" else np.exp(-0.5 * (r / gamma) ** 2)

    cells = (8, 8, 8)  # e^-21 in the exponential case
    expected = sum(lattice_sum(structure, s, sigma, correlation, n, cells) for n in range(1, orders + 1))
    close(at(model.intensity(structure, grid), grid, index), expected, tolerance)


def test_what_is_left_out_beyond_d_min_shrinks_with_the_margin(monkeypatch):
    """The error of the exponential kernel above comes from the reflections replaced by their mean."""
    structure = random_structure(unit_cell=(6.0, 7.0, 6.5, 82, 95, 100), elements="CCC", u=(0.2, 0.2), radius=2.0)
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 1.8)
    model = LiquidLikeMotions(sigma=0.3, gamma=2.0, orders=1, incoherent=False, local_form_factor=True)
    index = some_voxels(grid, 40)
    s = vectors(structure, grid, index)
    expected = lattice_sum(structure, s, 0.3, lambda r: np.exp(-r / 2.0), 1, (8, 8, 8))
    errors = []
    for margin in (0.05, 0.4, 1.2):
        monkeypatch.setattr(llm_module, "_MARGIN", 1e3)
        monkeypatch.setattr(llm_module, "_LARGEST_MARGIN", margin)
        values = at(model.intensity(structure, grid), grid, index)
        errors.append(np.sqrt(np.mean((values - expected) ** 2) / np.mean(expected**2)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize(
    ("kernel", "gamma", "correlation"),
    [
        ("gaussian", 5.0, lambda r: np.exp(-0.5 * (r / 5.0) ** 2)),
        ("gaussian", 100.0, lambda r: np.exp(-0.5 * (r / 100.0) ** 2)),
        ("exponential", 100.0, lambda r: np.exp(-r / 100.0)),
        ("lorentzian", 30.0, lambda r: lorentzian(r, 30.0, 1.5)),
    ],
)
def test_llm_confined_to_the_molecule_is_a_pair_sum(kernel, gamma, correlation):
    """V_ij = sigma² c(r_ij), V_ii = U_i inside each copy, nothing between copies, however far c(r) reaches."""
    sigma = 0.25
    cell = (16.0, 10.0, 9.0, 90.0, 98.0, 90.0)
    structure = random_structure("P 1 21 1", cell, elements="CCNOCC", u=(0.15, 0.2), radius=3.0)
    grid = MapGrid(cell, structure.hall_symbol, (1, 2, 2), 2.2)
    model = LiquidLikeMotions(
        sigma=sigma, gamma=gamma, kernel=kernel, orders=4, local_form_factor=True, confined_to="molecule"
    )

    def covariance(copy, rotation):
        distance = np.linalg.norm(copy.site_cart[:, None] - copy.site_cart, axis=-1)
        values = sigma**2 * correlation(distance)
        values[np.diag_indices(copy.n_atoms)] = copy.u_iso
        return values

    index = some_voxels(grid)
    expected = per_copy(structure, vectors(structure, grid, index), covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, 5e-3)


def test_long_correlations_leave_halos_at_bragg_peaks_only():
    """The rigid crystal: all the intensity of order l is in (qVq)^l/l! |F|² Gamma_l(0)/V at the reflections."""
    sigma, gamma = 0.3, 150.0
    structure = random_structure(elements="CNOCS", u=(0.1, 0.3))
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.0)
    model = LiquidLikeMotions(sigma=sigma, gamma=gamma, incoherent=False)
    volume = model.intensity(structure, grid)
    index = some_voxels(grid, 1000)
    whole = np.all(index % 2 == 0, axis=1)
    s = vectors(structure, grid, index)
    f2 = np.abs(direct_transform(structure, index / 2)) ** 2
    x = (2 * np.pi * sigma) ** 2 * np.sum(s**2, axis=1)
    halo = sum(x**n / math.factorial(n) * 8 * math.pi * (gamma / n) ** 3 for n in (1, 2, 3)) / structure.cell.volume()
    values = at(volume, grid, index)
    close(values[whole], (halo * f2)[whole], 1e-3)
    assert values[~whole].max() < 1e-3 * (halo * f2)[whole].mean()


def test_kernel_holds_all_the_intensity():
    """Summed over the voxels of a fine grid a halo has the strength of its reflection: c(0) = 1."""
    cell = (20.0, 22.0, 25.0, 85.0, 95.0, 100.0)
    source, grid = MapGrid(cell, "P 1", (1, 1, 1), 10.0), MapGrid(cell, "P 1", (6, 6, 6), 1.7)
    strength = np.zeros(source.shape)
    strength[source.extent] = 1.0
    total = np.zeros(grid.shape)
    correlation = Correlation("gaussian", 12.0 * np.eye(3))
    for where, values in convolutions(strength, source, grid, correlation, 1, np.eye(3, dtype=np.int64)[None]):
        total[where] = next(iter(values))
    assert total.sum() / 6**3 == pytest.approx(1, rel=1e-6)


def test_short_correlations_are_no_correlations():
    structure = random_structure("P 31 2 1", GROUPS[6][1], u=(0.15, 0.3))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.0)
    model = LiquidLikeMotions(sigma=0.3, gamma=0.15, local_form_factor=True)
    expected = Uncorrelated().intensity(structure, grid)
    known = np.isfinite(expected)
    close(model.intensity(structure, grid)[known], expected[known], 1e-3)


def test_equal_displacements_make_individual_and_overall_the_same():
    """Exactly with the local form factor; else to first order in sigma²: the relative difference falls as sigma²."""
    errors = []
    for sigma, local in ((0.3, True), (0.3, False), (0.15, False), (0.075, False)):
        structure = random_structure(u=(sigma**2, sigma**2))
        grid = MapGrid(structure.unit_cell, "P 1", (2, 3, 2), 2.0)
        individual = LiquidLikeMotions(sigma=sigma, gamma=6.0, kernel="gaussian", local_form_factor=local)
        one = individual.intensity(structure, grid)
        other = replace(individual, adp="overall").intensity(structure, grid)
        errors.append(np.sqrt(np.nanmean((one - other) ** 2) / np.nanmean(other**2)))
    assert errors[0] < 1e-5
    assert errors[1] < 0.05
    np.testing.assert_allclose(np.array(errors[2:]) / errors[1:3], 0.25, rtol=0.15)


@pytest.mark.parametrize("kernel", ["exponential", "gaussian"])
def test_isotropic_tensors_are_the_isotropic_model(kernel):
    structure = random_structure("P 41", GROUPS[5][1])
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 3), 2.5)
    scalar = LiquidLikeMotions(sigma=0.2, gamma=4.0, kernel=kernel).intensity(structure, grid)
    six = LiquidLikeMotions(V=(0.04,) * 3 + (0,) * 3, G=(4.0,) * 3 + (0,) * 3, kernel=kernel)
    np.testing.assert_allclose(six.intensity(structure, grid), scalar, rtol=1e-9)


@pytest.mark.parametrize(("symbol", "cell"), GROUPS[1:], ids=GROUP_NAMES[1:])
@pytest.mark.parametrize("tensors", [{"sigma": 0.2, "gamma": 4.0}, {"V": V, "G": G}], ids=["isotropic", "tensors"])
def test_llm_in_the_space_group_is_the_one_in_p1(symbol, cell, tensors):
    """Shifts filled in by symmetry, and tensors that the point group turns."""
    structure = random_structure(symbol, cell, elements="CNO", u=(0.1, 0.3))
    content = structure.expand()
    model = LiquidLikeMotions(**tensors, orders=2)
    grid = MapGrid(cell, structure.hall_symbol, (3, 3, 3), 3.0)
    expected = laue_average(model.intensity(content, grid), grid)
    known = np.isfinite(expected)
    close(model.intensity(structure, grid)[known], expected[known], 1e-3)


def test_symmetry_saves_work_where_the_tensors_have_it():
    structure = random_structure("P 31 2 1", GROUPS[6][1])
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 3.0)
    uniaxial = LiquidLikeMotions(V=(0.1, 0.1, 0.2, 0, 0, 0), G=(3, 3, 4, 0, 0, 0))
    for model in (LiquidLikeMotions(sigma=0.2, gamma=4.0), uniaxial):
        assert len(model.operators(grid)) == 12
    for model in (LiquidLikeMotions(V=V, gamma=4.0), LiquidLikeMotions(sigma=0.2, G=G)):
        assert len(model.operators(grid)) == 2


def test_orders_converge_and_say_what_they_miss():
    structure = random_structure(u=(0.2, 0.3))
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 1.8)
    model = LiquidLikeMotions(sigma=0.35, gamma=5.0)
    volumes = [replace(model, orders=n).intensity(structure, grid) for n in (1, 3, 9, 11)]
    known = np.isfinite(volumes[0])
    errors = [np.abs(v - volumes[3])[known].max() / volumes[3][known].max() for v in volumes[:3]]
    assert errors[0] > 5 * errors[1] > 500 * errors[2]
    assert [replace(model, orders=n).missing_orders(1.8) for n in (1, 3, 9)] == sorted(
        (replace(model, orders=n).missing_orders(1.8) for n in (1, 3, 9)), reverse=True
    )
    x = (2 * math.pi / 1.8 * 0.35) ** 2
    assert replace(model, orders=1).missing_orders(1.8) == pytest.approx(1 - x / math.expm1(x))
    assert replace(model, orders=40).missing_orders(1.8) == pytest.approx(0, abs=1e-12)


def test_incoherent_part_is_smooth_and_completes_the_atoms_own_term():
    structure = random_structure("P 41", GROUPS[5][1], anisotropic=True, u=(0.1, 0.3))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 3), 2.0)
    model = LiquidLikeMotions(sigma=0.25, gamma=4.0, orders=12)
    difference = model.intensity(structure, grid) - replace(model, incoherent=False).intensity(structure, grid)
    index = some_voxels(grid)
    content = structure.expand()
    s = vectors(structure, grid, index)
    f2 = form_factors(content, np.linalg.norm(s, axis=1))[content.type_index] ** 2
    u = (2 * np.pi) ** 2 * np.einsum("ka,nab,kb->nk", s, content.u_cart, s)
    v = (2 * np.pi * 0.25) ** 2 * np.sum(s**2, axis=1)
    close(at(difference, grid, index), np.sum(f2 * (1 - np.exp(-u + v)), axis=0), 1e-5)


# -------------------------------------------------------------------------------------------------- parameters, errors


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RigidBody(), "exactly one of rigid_body.sigma"),
        (lambda: RigidBody(sigma=0.1, V=V), "exactly one of rigid_body.sigma"),
        (lambda: RigidBody(sigma=-0.1), "rigid_body.sigma=-0.1"),
        (lambda: RigidBody(sigma=float("nan")), "rigid_body.sigma=nan"),
        (lambda: RigidBody(V=(0.1, 0.1, 0.1)), "six numbers"),
        (lambda: RigidBody(V=(0.1, 0.1, 0.1, 0.2, 0, 0)), "eigenvalues are -0.1, 0.1, 0.3"),
        (lambda: RigidBody(V=(0.0,) * 6), "semidefinite, and not 0"),
        (lambda: RigidBody(sigma=0.1, body="atom"), "body=atom: choose from cell, asu"),
        (lambda: LiquidLikeMotions(sigma=0.1), "exactly one of llm.gamma"),
        (lambda: LiquidLikeMotions(gamma=10.0), "exactly one of llm.sigma"),
        (lambda: LiquidLikeMotions(sigma=0.1, gamma=0.0), "llm.gamma=0.0"),
        (lambda: LiquidLikeMotions(sigma=0.1, G=(1, 1, 0, 0, 0, 0)), "llm.G=.*positive definite"),
        (lambda: LiquidLikeMotions(sigma=0.1, gamma=10.0, orders=0), "llm.orders=0"),
        (lambda: LiquidLikeMotions(sigma=0.1, gamma=10.0, kernel="box"), "llm.kernel=box"),
        (lambda: LiquidLikeMotions(sigma=0.1, gamma=10.0, adp="none"), "llm.adp=none"),
        (lambda: LiquidLikeMotions(sigma=0.1, gamma=1.0, kernel="lorentzian"), "llm.core=1.5"),
    ],
)
def test_bad_parameters_are_refused(make, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        make()


def test_map_and_model_must_fit():
    structure = random_structure("P 41", GROUPS[5][1])
    model = Uncorrelated()
    with pytest.raises(DiffuseError, match="differ by more than 1 %"):
        model.intensity(structure, MapGrid((12.0, 12.0, 13.0, 90, 90, 90), "P 1", (2, 2, 2), 3.0))
    with pytest.raises(DiffuseError, match="same subdivision"):
        model.intensity(structure, MapGrid(structure.unit_cell, "P 1", (2, 3, 2), 3.0))


def test_motion_beyond_the_displacements_is_reported(caplog):
    structure = random_structure(u=(0.05, 0.3))
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 4.0)
    with caplog.at_level(logging.WARNING, logger="dials.diffuse"):
        LiquidLikeMotions(sigma=0.2, gamma=5.0).intensity(structure, grid)
        assert not caplog.records
        LiquidLikeMotions(sigma=0.4, gamma=5.0).intensity(structure, grid)
    n = np.count_nonzero(structure.u_iso < 0.16)
    assert f"exceeds that of {n} of 5 atoms" in caplog.text


def test_table_of_models():
    assert [all_models()[name] for name in ("uncorrelated", "rigid_body", "llm")] == [
        Uncorrelated,
        RigidBody,
        LiquidLikeMotions,
    ]
    structure = random_structure()
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.0)
    for model in (Uncorrelated(), RigidBody(sigma=0.1), LiquidLikeMotions(sigma=0.1, gamma=4.0)):
        assert model.memory_estimate(structure, grid) > 8 * grid.n_voxels


@pytest.mark.parametrize("name", ["5zck", "2ol9", "7n2h"])
def test_real_files_against_the_pair_sum(shared_data, name):
    """2000 random voxels of peptides with their ANISOU records."""
    structure = load_structure(shared_data / "pdb" / f"{name}.pdb")
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 1.5)
    index = some_voxels(grid, 2000)
    s = vectors(structure, grid, index)
    expected = per_copy(structure, s, lambda copy, rotation: own_displacements(copy))
    close(at(Uncorrelated().intensity(structure, grid), grid, index), expected, 1e-5)
    expected = per_copy(structure, s, lambda copy, rotation: np.full((copy.n_atoms, copy.n_atoms), 0.3**2))
    close(at(RigidBody(sigma=0.3).intensity(structure, grid), grid, index), expected, 1e-4)
    llm = LiquidLikeMotions(sigma=0.15, gamma=5.0)  # against the sum over all reflections
    close(at(llm.intensity(structure, grid), grid, index), llm.intensity_at(structure, s), 1e-3)


# ------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "model",
    [
        Uncorrelated(),
        RigidBody(sigma=0.3),
        RigidBody(sigma=0.3, body="cell"),
        LiquidLikeMotions(sigma=0.3, gamma=3.0),
        LiquidLikeMotions(sigma=0.3, gamma=3.0, kernel="gaussian"),
        LiquidLikeMotions(sigma=0.3, gamma=5.0, kernel="lorentzian"),
        LiquidLikeMotions(sigma=0.3, G=(2.0, 3.0, 4.0, 0, 0, 0)),
        LiquidLikeMotions(sigma=0.3, gamma=8.0, confined_to="molecule"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_transform_of_the_intensity_ends_at_the_correlation_length(model):
    """On a grid of period 2 L the transform of the intensity has next to nothing near L, and much within."""
    structure = random_structure(unit_cell=(9.0, 10.5, 12.0, 90, 90, 90), elements="CNOCSCN", radius=4.0)
    length = model.correlation_length(structure)
    n = tuple(math.ceil(3 * length / edge) for edge in structure.unit_cell[:3])
    grid = MapGrid(structure.unit_cell, "P 1", n, 2.0)
    s2 = s_squared(grid)
    window = np.cos(np.minimum(np.sqrt(s2) * grid.d_min, 1) * np.pi / 2) ** 2  # no edge at d_min
    density = np.fft.fftn(np.nan_to_num(model.intensity(structure, grid)) * window)
    steps = [np.fft.fftfreq(m) * k * edge for m, k, edge in zip(grid.shape, n, structure.unit_cell[:3])]
    r = np.sqrt(sum(np.square(x) for x in np.ix_(*steps)))
    power = np.abs(density) ** 2
    beyond = power[r > length + 2].sum() / power.sum()
    assert beyond < 1e-3
    if length > 6:
        assert power[r > 0.4 * length].sum() / power.sum() > 10 * beyond


def test_diameter_of_many_atoms_is_that_of_their_hull(monkeypatch):
    structure = random_structure(unit_cell=(40.0, 41.0, 42.0, 90, 90, 90), elements="C" * 200, radius=15.0)
    expected = max(np.linalg.norm(a - b) for a in structure.site_cart for b in structure.site_cart)
    assert diameter(structure) == pytest.approx(expected)
    monkeypatch.setattr(common, "_MOST_DISTANCES", 50)
    assert diameter(structure) == pytest.approx(expected)
    assert diameter(structure.take([0])) == common.ATOM_LENGTH
