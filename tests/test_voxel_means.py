"""Means of models over voxels, against the intensity summed at many points of each voxel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from structures import random_structure

from dials_diffuse.fitting.linear import Background, background_terms
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models import LiquidLikeMotions, RigidBody
from dials_diffuse.models.prepared import prepare

CELL = (14.0, 14.0, 17.0, 90.0, 90.0, 90.0)
V = (0.08, 0.08, 0.12, 0.0, 0.0, 0.0)
G = (4.0, 4.0, 6.0, 0.0, 0.0, 0.0)
#: model, and how much of the difference between mean and centre may be left: at γ w = 0.6 two points along an edge are
#: not exact, and qᵀVq is that of the centre
MODELS = {
    "llm": (LiquidLikeMotions(sigma=0.3, gamma=4.0), 0.2),
    "overall": (LiquidLikeMotions(sigma=0.3, gamma=4.0, adp="overall"), 0.2),
    "gaussian": (LiquidLikeMotions(sigma=0.3, gamma=4.0, kernel="gaussian"), 0.25),
    "tensors": (LiquidLikeMotions(V=V, G=G), 0.2),
    "rigid_body": (RigidBody(sigma=0.3), 0.02),
}


@pytest.fixture(scope="module")
def atoms():
    return random_structure("P 41", CELL, elements="CNOCSC", u=(0.15, 0.3), radius=3.5)


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


@pytest.mark.parametrize("name", MODELS)
def test_means_are_those_of_many_points(atoms, name):
    model, share = MODELS[name]
    grid, index = voxels(atoms)
    prepared = prepare(model, atoms, grid, index, means=True)
    mean = prepared.intensity([p.value for p in prepared.parameters])
    at_centre = prepare(model, atoms, grid, index)
    centre = at_centre.intensity([p.value for p in at_centre.parameters])
    truth = summed_means(model, atoms, grid, index)
    assert np.std(centre - truth) > 0.005 * np.std(truth)  # there is something to correct
    assert np.std(mean - truth) < share * np.std(centre - truth)


@pytest.mark.parametrize(("name", "share"), [("llm", 0.17), ("rigid_body", 0.02)])
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
    truth = np.mean([summed_means(model, structure, grid, index @ r) for r in mates], axis=0)
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
