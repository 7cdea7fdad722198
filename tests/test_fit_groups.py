"""The covariance of all pairs of groups in a map: found again, held by its prior, as one of several models."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.fits import noisy_map
from helpers.pairs import SCALE, Case
from helpers.structures import random_structure
from scipy.spatial.distance import cdist

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions, PairParameters
from dials_diffuse.fitting.pairs import group_fit as groups_module
from dials_diffuse.fitting.pairs.fit_pairs import fit_all_pairs, number_of_starts
from dials_diffuse.fitting.pairs.group_fit import fit_groups, other_starts, sampled_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.models.covariance.motion import flattened
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
    groups = group_covariance(structure, np.arange(6), s)
    distance = cdist(structure.site_cart, structure.site_cart)
    prior = 0.15 * np.exp(-distance / 4)
    mode = 0.25 * np.random.default_rng(3).normal(size=6)
    return structure, grid, index, groups, prior, 0.1 * np.exp(-distance / 4) + np.outer(mode, mode)


@pytest.mark.parametrize("adp", ["held", "free"])
def test_all_pairs_are_found(case, adp):
    """Covariances that the prior does not have; without noise exactly, with a firm prior not at all.

    Of an atom with its own Debye-Waller factor the variance is not in the data: it would only be shared with itself.
    """
    structure, grid, index, groups, prior, truth = case
    if adp == "free":
        s = (index / 3) @ grid.reciprocal_matrix.T
        groups = group_covariance(structure.without_displacements(), np.arange(6), s, adp="free")
    clean = select(noisy_map(grid, index, groups.intensity(truth), 1e-4), Selection(bragg=True))
    exact = fit_groups(clean, groups, prior, (0.0,), scale=0.02, n_background=10, max_iterations=1000)
    determined = np.ones((6, 6), dtype=bool) if adp == "free" else ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(exact.covariance[determined], truth[determined], atol=0.01 * truth.max())
    assert np.linalg.eigvalsh(exact.covariance)[0] > -1e-12
    firm = fit_groups(clean, groups, prior, (1e6,), scale=0.02, n_background=10)
    np.testing.assert_allclose(firm.covariance, prior, atol=0.01 * prior.max())


def test_the_strength_is_chosen_by_free_voxels(case):
    _, grid, index, groups, prior, truth = case
    noise = 0.3 * 0.02 * groups.intensity(truth).std()
    whole = noisy_map(grid, index, groups.intensity(truth), noise)
    data = select(whole, Selection(bragg=True, free_fraction=0.2))
    fit = fit_groups(data, groups, prior, (1e-4, 1.0, 100.0), scale=0.02, n_background=10)
    assert [trial[0] for trial in fit.trials] == [100.0, 1.0, 1e-4]
    assert fit.strength == max(fit.trials, key=lambda trial: trial[1])[0] < 100
    lower = np.tril_indices(6)
    assert np.corrcoef(fit.covariance[lower], truth[lower])[0, 1] > 0.95
    assert np.corrcoef(prior[lower], truth[lower])[0, 1] < 0.8
    # free voxels that know the prior alone: it wins, though the others are fitted better without it
    known = noisy_map(grid, index, groups.intensity(prior), noise).intensity[data.row]
    other = fit_groups(
        replace(data, intensity=np.where(data.free, known, data.intensity)), groups, prior, (1e-4, 100.0), 0.02, 10
    )
    assert other.strength == 100.0 and other.trials[1][2] > other.trials[0][2]
    with pytest.raises(DiffuseError, match="free voxels choose one"):
        fit_groups(select(whole, Selection(free_fraction=0.0, bragg=True)), groups, prior, (1.0, 2.0))
    with pytest.raises(DiffuseError, match="not positive semidefinite"):
        fit_groups(data, groups, -prior)


def as_data(case: Case):
    """What a fit needs to know of the points of a Case."""
    size = np.linalg.norm(case.s, axis=1)
    return SimpleNamespace(
        s=size, intensity=case.values, sigma=np.full(len(size), case.sigma), free=~case.work, n=len(size)
    )


def test_the_lowest_of_several_minima():
    """Tensors in P 21 21 21 have several minima: that next to the prior is not the lowest. Numbers here have one."""
    case = Case("CNO", n=900, noise=0.1, tensor=True, symbol="P 21 21 21", d_min=1.0)
    single, several = (
        fit_groups(as_data(case), case.groups, case.prior, (1e-3,), SCALE, 6, 500, starts=n) for n in (1, 4)
    )
    assert (single.starts, single.reached, several.starts) == (1, 1, 4) and 1 <= several.reached < 4
    objective = case.objective(SCALE)
    values = [objective.value(flattened(fit.covariance), 1e-3) for fit in (single, several)]
    assert objective.n * (values[0] / values[1] - 1) > 2  # by so much chi² differs, of which 1 would be noise
    assert several.trials[0][2] > single.trials[0][2]
    assert np.linalg.eigvalsh(flattened(several.covariance))[0] > -1e-12
    case = Case("CNOS", n=300, noise=0.05)
    single, several = (fit_groups(as_data(case), case.groups, case.prior, (1e-3,), SCALE, 6, starts=n) for n in (1, 4))
    assert (several.starts, several.reached) == (4, 4)
    np.testing.assert_allclose(several.covariance, single.covariance, atol=0.01 * single.covariance.max())


def test_other_starts_are_covariances_around_the_prior():
    prior = 0.1 * np.exp(-cdist(np.arange(5.0)[:, None], np.arange(5.0)[:, None]))
    found = np.array(other_starts(prior, 2000, 0))
    assert np.linalg.eigvalsh(found)[:, 0].min() > 0
    np.testing.assert_allclose(found.mean(axis=0), prior + 0.005 * np.eye(5), atol=0.005)
    assert np.all(found.std(axis=0) > 0.02)
    single = other_starts(np.full((3, 3), 0.1), 1, 0)[0]  # of rank 1: other ranks are reached from here
    assert np.linalg.eigvalsh(single)[0] > 1e-4


def test_all_pairs_beside_a_kernel(case, monkeypatch):
    """As one of several models: better than the kernel that it starts from, with the model that it stands for."""
    structure, grid, index, groups, _, truth = case
    noise = 0.1 * 0.02 * groups.intensity(truth).std()
    data = select(noisy_map(grid, index, groups.intensity(truth), noise), Selection(bragg=True, free_fraction=0.2))
    model = Covariance(sigma=0.3, gamma=5.0)
    prepared = prepare(model, structure, data.grid, data.index)
    start = Candidate("covariance", prepared, np.array([p.value for p in prepared.parameters]))
    options = FitOptions(background=10, profile=False, weights="shell")
    (kernel,) = fit_models(data, [start], options)
    pairs = fit_all_pairs(data, kernel, structure, options, PairParameters((0.1, 0.001)))
    assert pairs.statistics["free"]["cc_anisotropic"] > kernel.statistics["free"]["cc_anisotropic"] + 0.01
    assert pairs.starts == options.starts == 2
    asked, one = {}, PairParameters((0.1,), starts=1)
    with monkeypatch.context() as patch:
        patch.setattr(groups_module, "other_starts", lambda prior, n, seed: asked.update(n=n, seed=seed) or [])
        fit_all_pairs(data, kernel, structure, replace(options, seed=5), replace(one, starts=3, max_iterations=1))
    assert asked == {"n": 2, "seed": 5}
    esd = [
        fit_all_pairs(data, replace(kernel, adjustment=a), structure, options, one).freedom.esd
        for a in (1.0, 4.0)  # a robust loss has errors that are twice as large
    ]
    np.testing.assert_allclose(esd[1], 2 * esd[0])
    means = Candidate("covariance", prepare(model, structure, data.grid, data.index, True), start.start)
    (averaged,) = fit_models(data, [means], options)
    again = fit_all_pairs(data, averaged, structure, options, replace(one, max_iterations=1))
    assert averaged.means and again.means and not (kernel.means or pairs.means)
    assert pairs.statistics["free"]["chi2"] < kernel.statistics["free"]["chi2"]
    # of 21 covariances those that the prior leaves to the data count as parameters, besides scale and background
    assert pairs.criteria["n_parameters"] == round(pairs.freedom.n_effective) + 11
    assert 5 < pairs.freedom.n_effective < 21
    volume = pairs.models[0].intensity(structure, data.grid).reshape(-1)[data.grid.key(data.index)]
    np.testing.assert_allclose(volume, pairs.intensity, atol=1e-5 * pairs.intensity.max())
    np.testing.assert_allclose(pairs.fitted, pairs.scale.value * pairs.intensity + pairs.background)


def test_tensors_beside_a_kernel(case):
    """With V in the kernel the covariances of all pairs are tensors; anisotropic motion is found with them alone."""
    structure, grid, index, _, prior, _ = case
    truth = 0.6 * prior[:, :, None, None] * np.diag([1.8, 0.9, 0.3])
    mode = 0.2 * np.random.default_rng(4).normal(size=(6, 3))
    truth = truth + np.einsum("ai,bj->abij", mode, mode)
    s = (index / 3) @ grid.reciprocal_matrix.T
    clean = Covariance(kernel="free", matrix=truth).intensity_at(structure, s)
    data = select(noisy_map(grid, index, clean, 0.02 * 0.02 * clean.std()), Selection(bragg=True, free_fraction=0.2))
    options = FitOptions(background=10, profile=False, starts=1)
    found, how = {}, PairParameters((0.01, 0.001), max_iterations=100)
    for model in (Covariance(sigma=0.3, gamma=5.0), Covariance(V=(0.09, 0.09, 0.09, 0, 0, 0), gamma=5.0)):
        prepared = prepare(model, structure, data.grid, data.index)
        start = Candidate("covariance", prepared, np.array([p.value for p in prepared.parameters]))
        (kernel,) = fit_models(data, [start], options)
        found[model.V is None] = fit_all_pairs(data, kernel, structure, options, how)
    numbers, tensors = found[True], found[False]
    freedom = tensors.freedom
    assert tensors.covariance.shape == freedom.esd.shape == freedom.share.shape == (6, 6, 3, 3)
    assert 21 < freedom.n_effective < 6 * 21 == len(freedom.errors)
    assert tensors.statistics["free"]["cc_anisotropic"] > numbers.statistics["free"]["cc_anisotropic"] + 0.01
    assert tensors.criteria["n_parameters"] == round(freedom.n_effective) + 11
    flat = tensors.models[0].matrix
    assert flat.shape == (18, 18) and np.linalg.eigvalsh(flat)[0] > -1e-9
    volume = tensors.models[0].intensity(structure, data.grid).reshape(-1)[data.grid.key(data.index)]
    np.testing.assert_allclose(volume, tensors.intensity, atol=1e-4 * tensors.intensity.max())
    with pytest.raises(DiffuseError, match=r"pairs\.minimiser=newton"):
        fit_all_pairs(data, kernel, structure, options, PairParameters((0.01,), "newton"))


def test_sampled_rows():
    free = np.zeros(50_000, dtype=bool)
    free[::10] = True
    assert sampled_rows(free[:8000], 20) is None
    assert sampled_rows(free, 20) is None  # few enough for the second derivatives of all voxels
    rows = sampled_rows(free, 50)
    assert len(rows) == 10_000 and not free[rows].any() and np.all(np.diff(rows) > 0)
    assert len(sampled_rows(free, 100)) == 2 * 5050
    assert len(sampled_rows(free, 30, tensor=True)) == 10_000
    assert sampled_rows(free, 50, tensor=True) is None  # 7650 elements, too many


def test_number_of_starts():
    """Those asked for of up to 1000 covariances, 44 groups or 14 with tensors."""
    assert [number_of_starts(size, 5) for size in (44, 45)] == [5, 1]
