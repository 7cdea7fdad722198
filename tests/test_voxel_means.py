"""Means of models over voxels, against the intensity summed at many points of each voxel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.structures import CELL, members, random_structure
from numpy.polynomial.legendre import leggauss

from dials_diffuse.fitting.linear import Background, Projection, background_terms
from dials_diffuse.fitting.minimise import minimise
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.covariance import group_factory
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.ensemble import ensemble as ensemble_module
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.models.voxel_means import gauss_points
from dials_diffuse.structure.atoms import make_structure

V = (0.08, 0.08, 0.12, 0.0, 0.0, 0.0)
G = (4.0, 4.0, 6.0, 0.0, 0.0, 0.0)
HALVES = {"groups": "selection", "selections": ("element C", "not element C")}


#: model, and how much of the difference between mean and centre may be left: of liquids at γ w = 0.6 two points along
#: an edge are not exact, and qᵀVq is that of the centre; of covariances what varies slowly follows a mean atom
MODELS = {
    "llm": (LiquidLikeMotions(sigma=0.3, gamma=4.0), 0.2),
    "overall": (LiquidLikeMotions(sigma=0.3, gamma=4.0, adp="overall"), 0.2),
    "gaussian": (LiquidLikeMotions(sigma=0.3, gamma=4.0, kernel="gaussian"), 0.25),
    "tensors": (LiquidLikeMotions(V=V, G=G), 0.2),
    "rigid_body": (RigidBody(sigma=0.3), 0.02),
    "covariance": (Covariance(sigma=0.3, gamma=4.0), 0.1),
    "covariance_alone": (Covariance(sigma=0.3, gamma=4.0, soft=False), 0.1),
    "covariance_V": (Covariance(V=V, gamma=4.0), 0.1),
    "covariance_V_alone": (Covariance(V=V, gamma=4.0, soft=False), 0.1),
    "groups": (Covariance(sigma=0.3, gamma=4.0, **HALVES), 0.15),
    "network": (Covariance(kernel="elastic_network"), 0.1),
    "block": (Covariance(sigma=0.3, gamma=4.0, supercell=(2, 1, 1)), 0.1),
}


@pytest.fixture(scope="module")
def ensemble(atoms):
    return Ensemble(members(atoms))


def voxels(structure, n=10):
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (3, 3, 3), 2.2)
    index = np.random.default_rng(0).integers(-12, 13, (400, 3))
    index = index[(grid.s_magnitude(index) < 0.4) & (grid.s_magnitude(index) > 0.1)]
    return grid, index[np.any(index % 3 != 0, axis=1)][:n]


def summed_means(model, structure, grid, index):
    """Gauss's rule with four points along each edge of a voxel, on sums over all reflections."""
    nodes, weights = leggauss(4)
    points = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3) / 2
    weight = np.einsum("i,j,k->ijk", weights, weights, weights).reshape(-1) / 8
    fractional = (index[:, None] + points) / np.array(grid.subdivide)
    values = model.intensity_at(structure, fractional.reshape(-1, 3) @ grid.reciprocal_matrix.T)
    return values.reshape(len(index), -1) @ weight


def truth_of(model, structure, grid, index, mates):
    """The mean over mates of a voxel; of covariances without that of what single atoms add, which is of the centre."""
    truth = np.mean([summed_means(model, structure, grid, index @ r) for r in mates], axis=0)
    if not isinstance(model, Covariance) or not model.soft:
        return truth
    alone = np.mean([summed_means(Uncorrelated(), structure, grid, index @ r) for r in mates], axis=0)
    s = index / np.array(grid.subdivide) @ grid.reciprocal_matrix.T
    return truth - alone + Uncorrelated().intensity_at(structure, s)


@pytest.mark.parametrize("name", MODELS)
def test_means_are_those_of_many_points(atoms, name):
    model, share = MODELS[name]
    grid, index = voxels(atoms)
    prepared = prepare(model, atoms, grid, index, means=True)
    mean = prepared.intensity([p.value for p in prepared.parameters])
    at_centre = prepare(model, atoms, grid, index)
    centre = at_centre.intensity([p.value for p in at_centre.parameters])
    truth = truth_of(model, atoms, grid, index, [np.eye(3, dtype=int)])
    assert prepared.means and not at_centre.means
    assert np.std(centre - truth) > 0.001 * np.std(truth)  # there is something to correct
    assert np.std(mean - truth) < share * np.std(centre - truth)


@pytest.mark.parametrize(
    ("name", "share"), [("llm", 0.17), ("rigid_body", 0.02), ("covariance", 0.1), ("covariance_V_alone", 0.1)]
)
@pytest.mark.parametrize("symbol", ["P 31", "P 6"])
def test_means_on_hexagonal_axes(symbol, name, share):
    """There the mates of a voxel are parallelepipeds of three shapes, and a merged map holds the mean over all."""
    structure = random_structure(symbol, (14.0, 14.0, 17.0, 90.0, 90.0, 120.0), "CNOCSC", u=(0.15, 0.3), radius=3.0)
    model = MODELS[name][0]
    grid, index = voxels(structure, 40)
    mean, centre = (
        prepared.intensity([p.value for p in prepared.parameters])
        for prepared in (prepare(model, structure, grid, index, means) for means in (True, False))
    )
    mates = laue_operators(structure.space_group, friedel=False)
    truth = truth_of(model, structure, grid, index, mates)
    assert np.std(mean - truth) < share * np.std(centre - truth)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_of_means(atoms, name):
    grid, index = voxels(atoms)
    prepared = prepare(MODELS[name][0], atoms, grid, index, means=True)
    values = np.array([p.value for p in prepared.parameters])
    weights = np.random.default_rng(1).normal(size=len(index))
    _, jacobian = prepared.jacobian(values)
    second = prepared.second(values, weights)
    for i, step in enumerate(1e-3 * np.eye(len(values))):
        up, down = prepared.jacobian(values + step), prepared.jacobian(values - step)
        slope = (up[0] - down[0]) / 2e-3
        np.testing.assert_allclose(jacobian[:, i], slope, atol=2e-3 * np.abs(slope).max())
        curvature = weights @ (up[1] - down[1]) / 2e-3
        np.testing.assert_allclose(second[i], curvature, atol=2e-3 * np.abs(second).max())


@pytest.mark.parametrize(("body", "soft"), [("asu", False), ("asu", True), ("cell", False)])
def test_means_of_an_ensemble(ensemble, atoms, body, soft):
    """What a single point has is the same sum for all members; the derivatives by the weights are means, too."""
    model = replace(ensemble, body=body, soft=soft, weights=(1, 2, 3, 2))
    grid, index = voxels(atoms, 40)
    prepared = prepare(model, atoms, grid, index, means=True)
    values = [p.value for p in prepared.parameters]
    centre = prepare(model, atoms, grid, index).intensity(values)
    mates = laue_operators(atoms.space_group, friedel=False)  # a cell of copies has the symmetry only on the average
    truth = truth_of(model, atoms, grid, index, mates)
    assert prepared.means
    assert np.std(centre - truth) > 0.002 * np.std(truth)
    intensity, jacobian = prepared.jacobian(values)
    assert np.std(intensity - truth) < 0.02 * np.std(centre - truth)
    weights = np.random.default_rng(1).normal(size=len(index))
    second = prepared.second(values, weights)
    for i, step in enumerate(1e-4 * np.eye(3)):
        up, down = prepared.jacobian(values + step), prepared.jacobian(values - step)
        np.testing.assert_allclose(jacobian[:, i], (up[0] - down[0]) / 2e-4, atol=1e-5 * np.abs(jacobian).max())
        np.testing.assert_allclose(second[i], weights @ (up[1] - down[1]) / 2e-4, atol=1e-5 * np.abs(second).max())


def test_a_fit_of_averaged_data(atoms):
    """Data that are sums over many points of each voxel: a fit of means finds the truth, that of centres does not."""
    model = Covariance(sigma=0.3, gamma=4.0, soft=False, groups="selection", selections=HALVES["selections"])
    grid, index = voxels(atoms, 200)
    truth = truth_of(model, atoms, grid, index, [np.eye(3, dtype=int)])
    weights = np.full(len(index), (0.002 * truth.std()) ** -2.0)
    background = Background(grid.s_magnitude(index), 5)
    off = {}
    for means in (True, False):
        prepared = prepare(model, atoms, grid, index, means)
        found = minimise(prepared, Projection(truth, weights, background), [0.33, 4.5])
        off[means] = np.abs(found.values / [0.3, 4.0] - 1), found.objective
    assert np.all(off[True][0] < 0.2 * off[False][0]) and off[True][1] < 0.05 * off[False][1]
    assert off[True][0].max() < 0.01


def test_a_sum_is_averaged_if_all_its_parts_are(atoms):
    grid = MapGrid(atoms.unit_cell, atoms.hall_symbol, (2, 2, 2), 3.5)
    index = np.array([[1, 2, 3], [2, 1, 4]])
    body, alone = (prepare(model, atoms, grid, index, True) for model in (RigidBody(sigma=0.3), Uncorrelated()))
    assert body.means and not alone.means
    assert PreparedSum([body, body], ["a", "b"], atoms).means
    assert not PreparedSum([body, alone], ["a", "b"], atoms).means


def test_what_cannot_be_averaged_says_so(ensemble, atoms, monkeypatch, caplog):
    """Blocks of cells, ensembles that need too much memory, tensors of too many pairs: the values of the centres."""
    grid, index = voxels(atoms)
    tensors = MODELS["covariance_V"][0]
    centres = [
        prepare(m, atoms, grid, index).intensity([p.value for p in m.parameters(atoms)]) for m in (ensemble, tensors)
    ]
    monkeypatch.setattr(ensemble_module, "_MEMORY", 0)
    monkeypatch.setattr(group_factory, "_MOST_PAIRS", 0)
    caplog.set_level("INFO")
    for number, (model, expected) in enumerate(zip((ensemble, tensors), centres), start=1):
        prepared = prepare(model, atoms, grid, index, means=True)
        assert not prepared.means
        np.testing.assert_array_equal(prepared.intensity([p.value for p in prepared.parameters]), expected)
        assert caplog.text.count("not averaged over them") + caplog.text.count("too large to be") == number
    assert prepare(MODELS["covariance"][0], atoms, grid, index, means=True).means  # products are kept: no such limit
    monkeypatch.undo()
    block = make_structure(tuple(np.array(CELL) * [2, 2, 2, 1, 1, 1]), "P 1", list("CNO"), np.eye(3) / 4)
    cells = Ensemble(members(block), supercell=(2, 2, 2))
    assert not prepare(cells, atoms, MapGrid(CELL, "P 1", (2, 2, 2), 2.2), index // 2, means=True).means


def test_points_around_a_voxel():
    """They have the second moments of the voxel, on trigonal axes of the voxel's three shapes together."""
    rng = np.random.default_rng(0)
    for symbol, cell in (
        ("P 1", (14.0, 15.0, 17.0, 80.0, 95.0, 107.0)),
        ("P 31", (14.0, 14.0, 17.0, 90.0, 90.0, 120.0)),
    ):
        structure = random_structure(symbol, cell)
        grid = MapGrid(cell, structure.hall_symbol, (3, 3, 3), 2.2)
        points = gauss_points(grid)
        inside = (rng.uniform(-0.5, 0.5, (200_000, 3)) @ laue_operators(structure.space_group, True)).reshape(-1, 3) / 3
        inside = inside @ grid.reciprocal_matrix.T
        np.testing.assert_allclose(points.T @ points / 8, inside.T @ inside / len(inside), atol=2e-6)
        np.testing.assert_allclose(points.sum(axis=0), 0, atol=1e-15)
    orthogonal = gauss_points(MapGrid((10.0, 20.0, 40.0, 90, 90, 90), "P 1", (1, 1, 1), 2.2))
    np.testing.assert_allclose(np.abs(orthogonal) * 2 * 3**0.5, np.tile([0.1, 0.05, 0.025], (8, 1)))


def test_the_background_follows_rings_of_water():
    """A ring 0.05 1/Å wide on a slope, as in data with mother liquor: its own fit leaves less than 0.1 % of it."""
    s = np.sort(np.random.default_rng(0).uniform(0.1, 0.5, 20_000))
    ring = 1 + 3 * np.exp(-0.5 * ((s - 0.31) / 0.05) ** 2) - s
    splines = Background(s, background_terms(s)).matrix
    left = ring - splines @ np.linalg.lstsq(splines.toarray(), ring, rcond=None)[0]
    assert np.abs(left).max() < 1e-3
    assert background_terms(s) < 40
    assert background_terms(s[::200]) == 5
    assert background_terms(s[::700]) == 4
