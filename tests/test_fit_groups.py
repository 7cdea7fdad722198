"""The covariance of all pairs of groups: gradient by differences, found again, held by its prior."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.spatial.distance import cdist
from structures import random_structure
from test_fit import noisy_map

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, FitOptions, fit_models
from dials_diffuse.fitting.groups import _Objective, fit_groups
from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.pairs import fit_all_pairs
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models import Covariance
from dials_diffuse.models.group_covariance import GroupCovariance
from dials_diffuse.models.prepared import prepare

CELL = (15.0, 16.0, 17.0, 90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def case():
    """Structure, grid, index, group covariance of single atoms, prior and truth, of which the prior knows half."""
    structure = random_structure("P 21 21 21", CELL, elements="CNOCSC", u=(0.3, 0.4), radius=3.5)
    grid = MapGrid(CELL, structure.hall_symbol, (3, 3, 3), 2.2)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    index = index[np.random.default_rng(0).uniform(size=len(index)) < 0.4]
    s = (index / 3) @ grid.reciprocal_matrix.T
    groups = GroupCovariance(structure, np.arange(6), s)
    distance = cdist(structure.site_cart, structure.site_cart)
    prior = 0.15 * np.exp(-distance / 4)
    mode = 0.25 * np.random.default_rng(3).normal(size=6)
    return structure, grid, index, groups, prior, 0.1 * np.exp(-distance / 4) + np.outer(mode, mode)


@pytest.mark.parametrize("scale", [None, 0.02])
def test_gradient_by_the_root(case, scale):
    _, grid, index, groups, prior, truth = case
    data = select(noisy_map(grid, index, groups.intensity(truth), 0.3), Selection(bragg=True, free_fraction=0.2))
    work = ~data.free
    background = Background(data.s, 6)
    projection = Projection(data.intensity[work], 1 / data.sigma[work] ** 2, background.at(work), scale)
    objective = _Objective(groups, projection, data.sigma, work, prior)
    x = np.linalg.cholesky(prior)[objective.triangle] * np.random.default_rng(1).uniform(0.8, 1.2, 21)
    for strength in (0.0, 0.7):
        gradient = objective(x, strength)[1]
        error = check_grad(
            lambda y, strength=strength: objective(y, strength)[0],
            lambda y, strength=strength: objective(y, strength)[1],
            x,
            epsilon=1e-6,
        )
        assert error < 1e-4 * np.linalg.norm(gradient)


@pytest.mark.parametrize("adp", ["held", "free"])
def test_all_pairs_are_found(case, adp):
    """Covariances that the prior does not have; without noise exactly, with a firm prior not at all.

    Of an atom with its own Debye-Waller factor the variance is not in the data: it would only be shared with itself.
    """
    structure, grid, index, groups, prior, truth = case
    if adp == "free":
        s = (index / 3) @ grid.reciprocal_matrix.T
        groups = GroupCovariance(structure.without_displacements(), np.arange(6), s, adp="free")
    clean = select(noisy_map(grid, index, groups.intensity(truth), 1e-4), Selection(bragg=True))
    exact = fit_groups(clean, groups, prior, (0.0,), scale=0.02, max_iterations=1000)
    determined = np.ones((6, 6), dtype=bool) if adp == "free" else ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(exact.covariance[determined], truth[determined], atol=0.01 * truth.max())
    assert np.linalg.eigvalsh(exact.covariance)[0] > -1e-12
    firm = fit_groups(clean, groups, prior, (1e6,), scale=0.02)
    np.testing.assert_allclose(firm.covariance, prior, atol=0.01 * prior.max())


def test_the_strength_is_chosen_by_free_voxels(case):
    _, grid, index, groups, prior, truth = case
    noise = 0.3 * 0.02 * groups.intensity(truth).std()
    whole = noisy_map(grid, index, groups.intensity(truth), noise)
    data = select(whole, Selection(bragg=True, free_fraction=0.2))
    fit = fit_groups(data, groups, prior, (1e-4, 1.0, 100.0), scale=0.02)
    assert [trial[0] for trial in fit.trials] == [100.0, 1.0, 1e-4]
    assert fit.strength == max(fit.trials, key=lambda trial: trial[1])[0] < 100
    lower = np.tril_indices(6)
    assert np.corrcoef(fit.covariance[lower], truth[lower])[0, 1] > 0.95
    assert np.corrcoef(prior[lower], truth[lower])[0, 1] < 0.8
    with pytest.raises(DiffuseError, match="free voxels choose one"):
        fit_groups(select(whole, Selection(free_fraction=0.0, bragg=True)), groups, prior, (1.0, 2.0))
    with pytest.raises(DiffuseError, match="not positive semidefinite"):
        fit_groups(data, groups, -prior)


def test_all_pairs_beside_a_kernel(case):
    """As one of several models: better than the kernel that it starts from, with the model that it stands for."""
    structure, grid, index, groups, _, truth = case
    noise = 0.1 * 0.02 * groups.intensity(truth).std()
    data = select(noisy_map(grid, index, groups.intensity(truth), noise), Selection(bragg=True, free_fraction=0.2))
    model = Covariance(sigma=0.3, gamma=5.0)
    prepared = prepare(model, structure, data.grid, data.index)
    start = Candidate("covariance", prepared, np.array([p.value for p in prepared.parameters]))
    options = FitOptions(profile=False, weights="shell")
    (kernel,) = fit_models(data, [start], options)
    pairs = fit_all_pairs(data, kernel, structure, options, (0.1, 0.001))
    assert pairs.statistics["free"]["cc_anisotropic"] > kernel.statistics["free"]["cc_anisotropic"] + 0.01
    assert pairs.statistics["free"]["chi2"] < kernel.statistics["free"]["chi2"]
    assert pairs.criteria["n_parameters"] == 21 + 11
    volume = pairs.model.intensity(structure, data.grid).reshape(-1)[data.grid.key(data.index)]
    np.testing.assert_allclose(volume, pairs.intensity, atol=1e-5 * pairs.intensity.max())
    np.testing.assert_allclose(pairs.fitted, pairs.scale.value * pairs.intensity + pairs.background)
