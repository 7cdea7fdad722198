"""Prepared models against the models, their derivatives against differences, group covariances against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.derivatives import assert_derivative
from helpers.pair_sums import G, V, at, close, per_copy, some_voxels, vectors
from helpers.structures import GROUPS, members, random_structure, special_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators, possible_voxels
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance import group_covariance as group_module
from dials_diffuse.models.covariance import group_factory, group_scattering
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.convolution import Correlation, convolutions
from dials_diffuse.models.llm.kernel_table import KernelTable
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.llm.voxel_convolution import VoxelConvolution
from dials_diffuse.models.lorentzian import lorentzian, lorentzian_derivatives
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.tls import TlsGroup
from dials_diffuse.structure.transform import s_squared

HALVES = {"body": "selection", "selections": ("element C", "not element C")}


#: name -> (model, space group as number in GROUPS, error against the model relative to the rms intensity). The models
#: that are prepared by the same steps agree to rounding; the liquid's transforms are in float32 and interpolated.
CASES = {
    "rigid": (lambda s: RigidBody(sigma=0.2), 6, 1e-12),
    "rigid-V": (lambda s: RigidBody(V=V), 5, 1e-12),
    "rigid-soft": (lambda s: RigidBody(sigma=0.2, soft=True), 6, 1e-12),
    "rigid-soft-V": (lambda s: RigidBody(V=V, soft=True), 1, 1e-12),
    "rigid-cell": (lambda s: RigidBody(V=(0.05, 0.05, 0.03, 0, 0, 0), body="cell"), 6, 1e-12),
    "bodies": (lambda s: replace(RigidBody(sigma=0.2, **HALVES).for_each_body(s), sigma=(0.2, 0.3)), 1, 1e-12),
    "bodies-V": (lambda s: RigidBody(V=V, soft=True, **HALVES).for_each_body(s), 6, 1e-12),
    "llm": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0), 6, 3e-5),
    "llm-overall": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, adp="overall"), 5, 3e-5),
    "llm-local": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, local_form_factor=True), 1, 3e-5),
    "llm-coherent": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, incoherent=False, orders=2), 1, 3e-5),
    "llm-gaussian": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, kernel="gaussian"), 1, 3e-5),
    "llm-lorentzian": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=5.0, kernel="lorentzian", orders=2), 1, 3e-5),
    "llm-V": (lambda s: LiquidLikeMotions(V=(0.05, 0.05, 0.03, 0, 0, 0), gamma=5.0, adp="overall"), 6, 3e-5),
    "llm-G": (lambda s: LiquidLikeMotions(sigma=0.25, G=(3.0, 4.0, 5.0, 0, -0.4, 0), orders=2), 1, 1e-6),
    "llm-VG-gaussian": (
        lambda s: LiquidLikeMotions(V=(0.05,) * 3 + (0,) * 3, G=(3.0, 3.0, 5.0, 0, 0, 0), kernel="gaussian", orders=2),
        6,
        1e-5,
    ),
    "llm-molecule": (lambda s: LiquidLikeMotions(sigma=0.25, gamma=8.0, confined_to="molecule", orders=1), 1, 3e-5),
    "covariance": (lambda s: Covariance(sigma=0.25, gamma=4.0, engine="pair_sum"), 6, 1e-6),
    "covariance-gaussian": (lambda s: Covariance(sigma=0.2, gamma=4.0, kernel="gaussian", engine="pair_sum"), 1, 1e-6),
    "covariance-lorentzian": (
        lambda s: Covariance(sigma=0.2, gamma=4.0, kernel="lorentzian", soft=False, engine="pair_sum"),
        1,
        1e-6,
    ),
    "covariance-V": (lambda s: Covariance(V=V, gamma=4.0, soft=False, engine="pair_sum"), 6, 1e-12),
    "network": (lambda s: Covariance(kernel="elastic_network", engine="pair_sum"), 1, 1e-6),
    "network-tensors": (
        lambda s: Covariance(
            kernel="elastic_network", network=ElasticNetwork("anisotropic", crystal_stiffness=0.4), engine="pair_sum"
        ),
        6,
        1e-12,
    ),
    "network-alone": (
        lambda s: Covariance(
            kernel="elastic_network", sigma=0.2, network=ElasticNetwork(crystal_contacts=False), engine="pair_sum"
        ),
        1,
        1e-6,
    ),
    "ensemble": (lambda s: Ensemble(members(s), weights=(1, 2, 3, 2)), 6, 1e-12),
    "ensemble-soft-cell": (lambda s: Ensemble(members(s), weights=(1, 2, 3, 2), body="cell", soft=True), 1, 1e-12),
    "uncorrelated": (lambda s: Uncorrelated(), 1, 1e-12),
    "covariance-block": (lambda s: Covariance(sigma=0.25, gamma=6.0, supercell=(2, 1, 1), engine="pair_sum"), 1, 1e-6),
    "covariance-block-V": (
        lambda s: Covariance(
            V=(0.05, 0.05, 0.03, 0, 0, 0), gamma=6.0, supercell=(1, 1, 1), soft=False, engine="pair_sum"
        ),
        6,
        1e-12,
    ),
    "network-block": (
        lambda s: Covariance(
            kernel="elastic_network",
            network=ElasticNetwork(crystal_stiffness=0.4),
            supercell=(2, 1, 1),
            engine="pair_sum",
        ),
        1,
        1e-6,
    ),
    "covariance-free": (lambda s: Covariance(kernel="free", matrix=0.1 * np.eye(6), engine="pair_sum"), 1, 1e-12),
}


def prepared_case(name):
    make, number, tolerance = CASES[name]
    structure = random_structure(*GROUPS[number], elements="CNOCSC", anisotropic=True, u=(0.1, 0.3))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    model = make(structure)
    index = np.concatenate(list(possible_voxels(grid)))
    return model, structure, grid, index, prepare(model, structure, grid, index), tolerance


@pytest.mark.parametrize("name", CASES)
def test_prepared_models(name):
    """Intensities are those of the model, first and second derivatives those of the intensities."""
    model, structure, grid, index, prepared, tolerance = prepared_case(name)
    values = np.array([p.value for p in prepared.parameters])
    intensity, jacobian = prepared.jacobian(values)
    close(intensity, model.intensity(structure, grid).reshape(-1)[grid.key(index)], tolerance)
    np.testing.assert_allclose(prepared.intensity(values), intensity, rtol=1e-10, atol=1e-10 * intensity.max())
    weights = np.random.default_rng(1).normal(size=len(index))
    second = prepared.second(values, weights)
    assert jacobian.shape == (len(index), len(values))
    assert second.shape == (len(values),) * 2
    if len(values):
        np.testing.assert_allclose(second, second.T, rtol=1e-8, atol=1e-10 * np.abs(second).max())
    for k, unit in enumerate(np.eye(len(values))):
        step = 1e-2 * max(abs(values[k]), 0.02)
        assert_derivative(prepared.intensity, values, unit, step, jacobian[:, k])
        assert_derivative(lambda x: prepared.jacobian(x)[1].T @ weights, values, unit, step, second[k])


@pytest.mark.parametrize("name", ["rigid-V", "llm", "ensemble", "bodies-V"])
def test_prepared_models_at_other_values(name):
    """Far from the values they were prepared with they are still the model."""
    _, structure, grid, index, prepared, tolerance = prepared_case(name)
    values = np.array([p.value for p in prepared.parameters]) * 0.8
    expected = prepared.model(values).intensity(structure, grid).reshape(-1)[grid.key(index)]
    close(prepared.intensity(values), expected, 30 * tolerance)  # llm: |F|² ends as the first gamma asks for
    with pytest.raises(DiffuseError, match="values are needed"):
        prepared.intensity(values[1:])


def test_symmetry_of_the_map_beyond_that_of_the_structure():
    cell = (9.0, 10.5, 12.0, 90.0, 90.0, 90.0)
    structure = random_structure("P 1 21 1", cell, u=(0.1, 0.3))
    grid = MapGrid(cell, random_structure("P 21 21 21", cell).hall_symbol, (2, 2, 2), 2.5)
    for model in (RigidBody(V=V), LiquidLikeMotions(sigma=0.2, gamma=4.0), Uncorrelated()):
        expected = model_map(model, structure, grid)
        prepared = prepare(model, structure, grid, expected.index)
        values = np.array([p.value for p in prepared.parameters])
        intensity, jacobian = prepared.jacobian(values)
        close(intensity, expected.intensity, 1e-4)
        weights = np.linspace(-1, 1, len(intensity))
        second = prepared.second(values, weights)
        for k, unit in enumerate(np.eye(len(values))):
            assert_derivative(prepared.intensity, values, unit, 2e-4, jacobian[:, k])
            assert_derivative(lambda x, p=prepared, w=weights: p.jacobian(x)[1].T @ w, values, unit, 2e-4, second[k])


def test_voxels_beyond_the_map_are_refused():
    structure = random_structure()
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.5)
    with pytest.raises(DiffuseError, match=r"beyond d_min=2\.5"):
        prepare(RigidBody(sigma=0.2), structure, grid, [[0, 0, 0], [8, 8, 8]])


def test_tensors_that_are_none_are_refused():
    structure = random_structure(*GROUPS[1])
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 4.0)
    prepared = prepare(
        LiquidLikeMotions(V=(0.05,) * 3 + (0,) * 3, G=(4.0,) * 3 + (0,) * 3), structure, grid, [[1, 0, 0]]
    )
    values = np.array([p.value for p in prepared.parameters])
    assert prepared.names == ("V11", "V22", "V33", "V13", "G11", "G22", "G33", "G13")
    step = np.array([-0.05, 0, 0, 0, 0, -8.0, 0, 0])
    with pytest.raises(DiffuseError, match=r"llm\.G: no longer positive definite"):
        prepared.intensity(values + 0.6 * step)
    with pytest.raises(DiffuseError, match="positive semidefinite"):
        prepared.model(values + 3 * step * (np.arange(8) < 4))


# ------------------------------------------------------------------------------------------------ convolutions, tables


@pytest.mark.parametrize("number", [1, 6, 8])
def test_convolution_at_voxels_is_that_on_the_grid(number):
    """Any voxels in any order, some of them twice; and the adjoint."""
    symbol, cell = GROUPS[number]
    structure = random_structure(symbol, cell)
    source, grid = MapGrid(cell, "P 1", (1, 1, 1), 2.0), MapGrid(cell, structure.hall_symbol, (3, 3, 3), 2.5)
    operators = laue_operators(grid.space_group, friedel=True)
    rng = np.random.default_rng(2)
    s2 = s_squared(source)
    strength = np.where(s2 < 0.2501, np.cos(20 * s2), 0.0)  # any that has the symmetry
    correlation = Correlation("exponential", 4.0 * np.eye(3))
    expected = np.full(grid.shape, np.nan)
    identity = np.eye(3, dtype=np.int64)[None]
    for where, values in convolutions(strength, source, grid, correlation, 1, identity):
        expected[where] = next(iter(values))
    index = some_voxels(grid, 200)
    index = np.concatenate([index, index[:20]])
    convolution = VoxelConvolution(strength, source, grid, index, operators, np.float64)
    metric = (2 * np.pi * 4.0) ** 2 * source.reciprocal_matrix.T @ source.reciprocal_matrix

    def kernel(axes):
        h = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        return correlation.transform(np.einsum("...a,ab,...b", h, metric, h), 1)

    result = convolution(kernel)
    close(result, at(expected, grid, index), 1e-10)
    single = VoxelConvolution(strength, source, grid, index, operators)
    close(single(kernel), result, 1e-6)
    weights = rng.normal(size=len(index))
    adjoint = sum(np.vdot(lags, kernel(axes)) for axes, lags in convolution.lags(weights))
    assert adjoint == pytest.approx(weights @ result, rel=1e-10)
    any_strength = rng.normal(size=source.shape)
    convolution = VoxelConvolution(any_strength, source, grid, index, identity, np.float64)
    adjoint = sum(np.vdot(lags, kernel(axes)) for axes, lags in convolution.lags(weights))
    assert adjoint == pytest.approx(weights @ convolution(kernel), rel=1e-10)


@pytest.mark.parametrize(("kernel", "angle"), [("exponential", 0.5 * np.pi), ("gaussian", 0.25 * np.pi)])
def test_tables_of_kernels(kernel, angle):
    """C(gamma) at many distances from a reflection, over all that a fit may ask for; derivatives by differences."""
    q2 = np.linspace(0, 4.0, 50) ** 2

    def function(length):
        return Correlation(kernel, length * np.eye(3)).transform(length**2 * q2, 1)

    table = KernelTable(function, [1.0, 0.5], angle, 1.0, 100.0)
    for gamma in (5.0, 3.0, 8.0, 30.0, 1.0, 100.0):
        values = table(gamma)
        for row, length in zip(values, (gamma, 0.5 * gamma)):
            close(row[0], function(length), 1e-5)
            for number in (1, 2):
                assert_derivative(
                    lambda x, k=number, f=length / gamma: table(x)[0 if f == 1 else 1, k - 1],
                    2.2 * gamma if gamma == 1 else 0.9 * gamma,
                    1.0,
                    1e-2 * gamma,
                    table(2.2 * gamma if gamma == 1 else 0.9 * gamma)[0 if length == gamma else 1, number],
                )


def test_lorentzian_by_its_length():
    r = np.linspace(0, 30, 40)
    c, first, second = lorentzian_derivatives(r, 6.0, 1.5)
    np.testing.assert_allclose(c, lorentzian(r, 6.0, 1.5))
    assert_derivative(lambda x: lorentzian(r, x, 1.5), 6.0, 1.0, 1e-2, first)
    assert_derivative(lambda x: lorentzian_derivatives(r, x, 1.5)[1], 6.0, 1.0, 1e-2, second)


def test_gamma_outside_its_bounds_is_refused():
    structure = random_structure()
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 4.0)
    prepared = prepare(LiquidLikeMotions(sigma=0.2, gamma=5.0), structure, grid, [[1, 0, 0]])
    with pytest.raises(DiffuseError, match=r"llm\.gamma=101: outside its bounds, 1 \.\.\. 100"):
        prepared.intensity([0.2, 101.0])
    for model in (
        LiquidLikeMotions(sigma=0.2, G=G, kernel="lorentzian"),
        LiquidLikeMotions(sigma=0.2, G=G, confined_to="molecule"),
    ):
        with pytest.raises(DiffuseError, match=r"llm\.G cannot be refined"):
            prepare(model, structure, grid, [[1, 0, 0]])


# --------------------------------------------------------------------------------------------------- group covariances


def covariance_of(n, tensor, seed=1, size=0.12):
    root = np.random.default_rng(seed).normal(size=(n * (3 if tensor else 1),) * 2) * size
    v = root @ root.T
    return v.reshape(n, 3, n, 3).transpose(0, 2, 1, 3).copy() if tensor else v


def direction_of(v, seed):
    change = np.random.default_rng(seed).normal(size=v.shape) * 0.1
    return change + (change.T if v.ndim == 2 else change.transpose(1, 0, 3, 2))


GROUP_CASES = [(adp, tensor) for adp in ("held", "free") for tensor in (False, True)]
GROUP_IDS = [f"{adp}-{'tensor' if tensor else 'isotropic'}" for adp, tensor in GROUP_CASES]


def grouped(adp, tensor, structure=None, tolerance=1e-8, **options):
    structure = structure or random_structure(*GROUPS[6], elements="CNOCSC", anisotropic=True, u=(0.1, 0.3))
    labels = np.array([0, 0, 1, 1, 2, 2])[: structure.n_atoms]
    s = np.random.default_rng(7).uniform(-0.35, 0.35, size=(50, 3))
    return structure, labels, s, group_covariance(structure, labels, s, adp, tensor, tolerance=tolerance, **options)


@pytest.mark.parametrize(("adp", "tensor"), GROUP_CASES, ids=GROUP_IDS)
@pytest.mark.parametrize("special", [False, True])
def test_group_covariance_is_a_pair_sum_over_the_copies(adp, tensor, special):
    """V_ij of atoms from their groups, turned with the copy; what atoms have besides is their own."""
    structure = special_structure() if special else None
    structure, labels, s, groups = grouped(adp, tensor, structure)
    v = covariance_of(labels.max() + 1, tensor)
    blocks = v if tensor else v[:, :, None, None] * np.eye(3)

    def covariance(copy, rotation):
        atoms = [int(np.flatnonzero(structure.name == name)[0]) for name in copy.name]
        mine = labels[atoms]
        shared = rotation @ blocks[mine[:, None], mine] @ rotation.T
        own = shared + np.eye(len(atoms))[:, :, None, None] * copy.u_cart[:, None]
        return shared + (own - shared if adp == "free" else own - shared - _diagonal(shared))

    if special:  # atoms on special positions belong to several copies: only the general position has an oracle
        expected = Covariance(kernel="free", matrix=v, groups="atom", soft=adp == "held", engine="pair_sum")
        each = group_covariance(
            structure if adp == "held" else structure.without_displacements(), np.arange(4), s, adp, tensor
        )
        v = covariance_of(4, tensor)
        close(each.intensity(v), replace(expected, matrix=v).intensity_at(structure, s), 1e-6)
        return
    structure = replace(structure, name=np.arange(structure.n_atoms).astype(str))
    close(groups.intensity(v), per_copy(structure, s, covariance), 1e-7)


def _diagonal(blocks):
    n = len(blocks)
    result = np.zeros_like(blocks)
    result[np.arange(n), np.arange(n)] = blocks[np.arange(n), np.arange(n)]
    return result


@pytest.mark.parametrize(("adp", "tensor"), GROUP_CASES, ids=GROUP_IDS)
def test_derivatives_by_group_covariances(adp, tensor):
    _, labels, s, groups = grouped(adp, tensor)
    v = covariance_of(labels.max() + 1, tensor)
    d, e = direction_of(v, 2), direction_of(v, 3)
    r = np.random.default_rng(4).normal(size=len(s))
    forward, backward = groups.jvp(v, d), groups.vjp(v, r)
    assert r @ forward == pytest.approx(np.sum(backward * d), rel=1e-12)
    np.testing.assert_allclose(backward, np.swapaxes(backward, 0, 1), rtol=1e-12)
    assert_derivative(groups.intensity, v, d, 5e-3, forward)
    curvature = groups.hvp(v, r, d)
    assert_derivative(lambda x: groups.vjp(x, r), v, d, 5e-3, curvature)
    assert np.sum(curvature * e) == pytest.approx(np.sum(groups.hvp(v, r, e) * d), rel=1e-10)
    w = np.random.default_rng(5).uniform(size=len(s))
    product = np.sum(groups.gauss_newton(v, w, d) * e)
    assert product == pytest.approx(np.sum(w * forward * groups.jvp(v, e)), rel=1e-12)


@pytest.mark.parametrize("adp", ["held", "free"])
def test_matrices_of_few_groups(adp):
    _, _, s, groups = grouped(adp, False, tolerance=1e-12)
    v = covariance_of(3, False)
    i, j = np.tril_indices(3)
    d = direction_of(v, 2)
    pairs = d[i, j]
    twice = np.where(i == j, 1, 2)
    rng = np.random.default_rng(4)
    r, w = rng.normal(size=len(s)), rng.uniform(size=len(s))
    np.testing.assert_allclose(groups.gradient_of_pairs(v, r), groups.vjp(v, r)[i, j] * twice, rtol=1e-12)
    product = groups.normal_matrix(v, w) @ pairs
    np.testing.assert_allclose(product, groups.gauss_newton(v, w, d)[i, j] * twice, rtol=1e-8)
    product = groups.normal_matrix(v, np.zeros(len(s)), r) @ pairs
    np.testing.assert_allclose(product, groups.hvp(v, r, d)[i, j] * twice, rtol=1e-10)
    order = np.argsort(np.linalg.norm(s, axis=1))
    np.testing.assert_allclose(groups.jacobian(v) @ pairs, groups.jvp(v, d)[order], rtol=1e-8)


def test_free_elements_of_single_atoms_against_the_formulas():
    """The sums over pairs of docs/theory.md, by plain loops over atoms, for I and the weighted second derivatives."""
    structure = random_structure(elements="CNOS").without_displacements()
    n = structure.n_atoms
    s = np.random.default_rng(1).uniform(-0.3, 0.3, size=(12, 3))
    v = covariance_of(n, False)
    r = np.random.default_rng(2).normal(size=len(s))
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index]
    first, second = np.zeros((n, n)), {}
    intensity = np.zeros(len(s))

    def add(key, value):
        second[tuple(sorted(key))] = second.get(tuple(sorted(key)), 0.0) + value

    for m, point in enumerate(s):
        q = 2 * np.pi * point
        x = q @ q
        for k in range(n):
            fk = f[k, m] ** 2
            intensity[m] += fk * (1 - np.exp(-x * v[k, k]))
            first[k, k] += r[m] * x * fk * np.exp(-x * v[k, k])
            add(((k, k), (k, k)), -r[m] * x**2 * fk * np.exp(-x * v[k, k]))
            for j in range(n):
                if j == k:
                    continue
                a = f[k, m] * f[j, m] * np.cos(q @ (structure.site_cart[k] - structure.site_cart[j]))
                e = np.exp(x * (v[k, j] - 0.5 * v[k, k] - 0.5 * v[j, j]))
                d = np.exp(-0.5 * x * (v[k, k] + v[j, j]))
                intensity[m] += a * (e - d)
                first[k, k] -= r[m] * x * a * (e - d)
                add(((k, k), (k, k)), 0.5 * r[m] * x**2 * a * (e - d))
                if j < k:
                    first[k, j] += 2 * r[m] * x * a * e
                    add(((k, j), (k, j)), 2 * r[m] * x**2 * a * e)
                    add(((k, j), (k, k)), -r[m] * x**2 * a * e)
                    add(((k, j), (j, j)), -r[m] * x**2 * a * e)
                    add(((k, k), (j, j)), 0.5 * r[m] * x**2 * a * (e - d))
    groups = group_covariance(structure, np.arange(n), s, "free", tolerance=1e-13)
    i, j = np.tril_indices(n)
    np.testing.assert_allclose(groups.intensity(v), intensity, rtol=1e-9)
    np.testing.assert_allclose(groups.gradient_of_pairs(v, r), first[i, j], rtol=1e-9, atol=1e-9 * np.abs(first).max())
    expected = np.zeros((len(i),) * 2)
    number = {(int(a), int(b)): p for p, (a, b) in enumerate(zip(i, j))}
    for (one, other), value in second.items():
        expected[number[one], number[other]] = expected[number[other], number[one]] = value
    result = groups.normal_matrix(v, np.zeros(len(s)), r)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_products_in_single_precision_or_not_kept(monkeypatch):
    _, _, s, groups = grouped("held", False)
    v, r = covariance_of(3, False), np.linspace(-1, 1, len(s))
    _, _, _, single = grouped("held", False, dtype=np.float32)
    close(single.intensity(v), groups.intensity(v), 1e-6)
    monkeypatch.setattr(group_factory, "_MEMORY", 0)
    monkeypatch.setattr(group_scattering, "BLOCK", 70)
    monkeypatch.setattr(group_module, "BLOCK", 70)
    _, _, _, anew = grouped("held", False)
    close(anew.intensity(v), groups.intensity(v), 1e-12)
    close(anew.vjp(v, r), groups.vjp(v, r), 1e-12)
    close(anew.normal_matrix(v, r**2), groups.normal_matrix(v, r**2), 1e-12)


def test_bad_group_covariances_are_refused():
    structure, labels, s, groups = grouped("held", False)
    with pytest.raises(DiffuseError, match=r"shape \(2, 2\), needed \(3, 3\)"):
        groups.intensity(np.eye(2))
    with pytest.raises(DiffuseError, match="adp=none: choose from held, free"):
        group_covariance(structure, labels, s, "none")
    tensors = group_covariance(structure, labels, s, tensor=True)
    with pytest.raises(DiffuseError, match="isotropic"):
        tensors.normal_matrix(covariance_of(3, True), np.ones(len(s)), np.ones(len(s)))


# ------------------------------------------------------------------------------------------------------- at any points


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Uncorrelated(),
        lambda s: RigidBody(V=V),
        lambda s: RigidBody(V=V, soft=True),
        lambda s: RigidBody(V=V, soft=True, body="cell"),
        lambda s: RigidBody(sigma=0.2, soft=True),
        lambda s: LiquidLikeMotions(sigma=0.2, gamma=4.0),
        lambda s: LiquidLikeMotions(sigma=0.2, gamma=4.0, adp="overall", kernel="gaussian"),
        lambda s: LiquidLikeMotions(V=V, G=G, local_form_factor=True, incoherent=False),
        lambda s: LiquidLikeMotions(sigma=0.2, gamma=20.0, orders=1, confined_to="molecule"),
        lambda s: Ensemble(members(s), weights=(1, 2, 3, 2), soft=True),
        lambda s: Ensemble(members(s), body="cell", soft=True),
        lambda s: RigidBody(body="tls", tls=(TlsGroup(T=V, L=(4.0, 3.0, 5.0, 0, 0, 0)),), soft=True),
        lambda s: Covariance(sigma=0.2, gamma=4.0, engine="pair_sum"),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_intensity_at_any_points_is_that_of_the_map(make, special):
    """Within the error of the map's FFT, which is largest for zinc without displacements."""
    structure = special_structure() if special else random_structure(*GROUPS[1], anisotropic=True, u=(0.1, 0.3))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    index = some_voxels(grid, 40)
    model = make(structure)
    values = model.intensity_at(structure, vectors(structure, grid, index))
    close(values, at(model.intensity(structure, grid), grid, index), 2e-3)


def test_models_that_need_a_grid_say_so():
    structure = random_structure()
    with pytest.raises(DiffuseError, match="computed on grids only"):
        Ensemble(members(structure), supercell=(2, 1, 1)).intensity_at(structure, np.zeros((1, 3)))
