"""Losses that outliers cannot rule: efficiency by quadrature, scipy's losses, parameters found in spite of outliers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers.fits import candidate, independent, noisy_map
from helpers.structures import CELL, small_molecule
from scipy.integrate import quad
from scipy.optimize import least_squares

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.robust import _FUNCTIONS, THRESHOLDS, robust
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody


@pytest.mark.parametrize("loss", THRESHOLDS)
def test_thresholds_and_slopes(loss):
    """Slopes by differences; of normal noise the errors have 1/0.95 times the variance of those of least squares."""
    weight, slope = _FUNCTIONS[loss]
    t = np.linspace(-3, 3, 41) + 0.01
    difference = ((t + 1e-6) * weight(t + 1e-6) - (t - 1e-6) * weight(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope(t), difference, atol=1e-8)
    c = THRESHOLDS[loss]

    def mean(function):
        def density(x):
            return function(x) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)

        return quad(density, -12, 12, points=[-c, c], limit=200)[0]

    variance = mean(lambda x: (x * weight(x / c)) ** 2) / mean(lambda x: slope(x / c)) ** 2
    assert 1 / variance == pytest.approx(0.95, abs=0.001)


@pytest.mark.parametrize("loss", THRESHOLDS)
def test_weights_by_iteration_end_where_scipy_ends(loss):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=300)
    y = 2 * x + 1 + 0.1 * rng.normal(size=300)
    y[:15] += 3
    design = np.stack([x, np.ones(300)], axis=1)
    everywhere = np.ones(300, dtype=bool)
    values, weights = np.zeros(2), np.ones(300)
    for _ in range(200):
        values = np.linalg.solve(design.T @ (design * weights[:, None]), design.T @ (weights * y))
        residual = y - design @ values
        weights = robust(loss, residual, everywhere).factors
    size = np.median(np.abs(residual)) / 0.6745
    found = least_squares(
        lambda v: y - design @ v, values + 0.1, loss=loss, f_scale=THRESHOLDS[loss] * size, xtol=1e-14, ftol=1e-14
    )
    np.testing.assert_allclose(values, found.x, atol=1e-5)


def test_errors_of_a_robust_fit():
    """The adjusted errors are those that repeated trials have."""
    rng = np.random.default_rng(1)
    n, everywhere = 200, np.ones(200, dtype=bool)
    for loss in THRESHOLDS:
        means, errors = [], []
        for _ in range(150):
            y = rng.standard_t(3, size=n)  # heavy tails
            mean = np.median(y)
            for _ in range(30):
                found = robust(loss, y - mean, everywhere)
                mean = np.average(y, weights=found.factors)
            chi2 = np.sum(found.factors * (y - mean) ** 2) / (n - 1)
            means.append(mean)
            errors.append((found.adjustment * chi2 / found.factors.sum()) ** 0.5)
        assert np.std(means) / np.mean(errors) == pytest.approx(1, abs=0.2)  # of 150 trials: ± 0.06


@pytest.fixture(scope="module")
def case():
    """Structure, voxels that are known, and the intensity of a liquid by summation at each point."""
    structure = small_molecule()
    grid = MapGrid(CELL, structure.hall_symbol, (3, 3, 3), 2.5)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    model = LiquidLikeMotions(sigma=0.35, gamma=4.0, adp="overall")
    s = (index / 3) @ grid.reciprocal_matrix.T
    return structure, grid, index, model, independent(model, structure, s)


@pytest.fixture(scope="module")
def fitted(case):
    """Function of a loss, weights, a seed and whether there are outliers: values and errors, and lowest weight.

    The lowest weight is in units of the median. Fits that several tests compare with are made once.
    """
    structure, grid, index, model, truth = case
    noise = 0.3

    @cache
    def fitted(loss, weights, seed, spoilt):
        data = noisy_map(grid, index, truth, noise, seed)
        if spoilt:
            rng = np.random.default_rng(seed + 50)
            # zingers, more of them at low resolution, as tails of Bragg peaks are
            chance = np.exp(-8 * grid.s_magnitude(index))
            bad = rng.choice(len(index), len(index) // 100, replace=False, p=chance / chance.sum())
            intensity = data.intensity.copy()
            intensity[bad] += 60 * noise * rng.uniform(0.5, 2, len(bad))
            data = replace(data, intensity=intensity)
        data = select(data, Selection(bragg=True))
        options = FitOptions(background=10, starts=1, profile=False, loss=loss, weights=weights)
        (fit,) = fit_models(data, [candidate("llm", model, structure, data)], options)
        return [(e.value, e.esd) for e in fit.estimates], fit.weights.min() / np.median(fit.weights)

    return fitted


@pytest.mark.parametrize(("loss", "weights"), [("huber", "sigma"), ("soft_l1", "sigma"), ("cauchy", "shell")])
def test_one_percent_of_gross_outliers(fitted, loss, weights):
    """Least squares miss the truth by many of the errors that the data allow; with a robust loss nothing is lost.

    Nearly nothing: what each fit to spoilt data gives is compared with the truth and with what clean data give.
    """
    values = np.array([0.35, 4.0])
    found = {"clean": [], "squares": [], loss: []}
    for seed in range(5):
        found["clean"].append(fitted("squares", weights, seed, False)[0])
        found["squares"].append(fitted("squares", weights, seed, True)[0])
        estimates, lowest = fitted(loss, weights, seed, True)
        found[loss].append(estimates)
        assert lowest < 0.2
    value, esd = (
        {name: np.array(fits)[:, :, i] for name, fits in found.items()} for i in (0, 1)
    )  # (seeds, parameters) of each
    scores = (value[loss] - values) / esd[loss]
    assert np.sqrt(np.mean(scores**2)) < 1.5 and np.mean(np.abs(scores) < 2) >= 0.9
    assert np.abs((value[loss] - value["clean"]) / esd["clean"]).max() < 2
    assert np.sqrt(np.mean(((value["squares"] - values) / esd["clean"]) ** 2)) > 2
    ratio = esd[loss] / esd["clean"]
    assert ratio.min() > 0.9 and ratio.max() < 1.3


def test_outliers_are_those_of_the_best_model(case):
    """All models have the weights of the one that fits best, so that they can be compared; off, nothing changes."""
    structure, grid, index, model, truth = case
    data = select(noisy_map(grid, index, truth, 0.3), Selection(bragg=True))
    both = [candidate("llm", model, structure, data), candidate("body", RigidBody(sigma=0.3), structure, data)]
    llm, body = fit_models(data, both, FitOptions(background=10, starts=1, profile=False, loss="cauchy"))
    np.testing.assert_array_equal(llm.weights, body.weights)
    (alone,) = fit_models(data, both[:1], FitOptions(background=10, starts=1, profile=False, loss="cauchy"))
    np.testing.assert_allclose(alone.weights, llm.weights, rtol=1e-3)
    (plain,) = fit_models(data, both[:1], FitOptions(background=10, starts=1, profile=False))
    np.testing.assert_array_equal(plain.weights, 1 / data.sigma**2)
    assert plain.estimates[0].esd == pytest.approx(llm.estimates[0].esd, rel=0.1)
    work = ~data.free
    factors = robust("cauchy", (data.intensity - llm.fitted) / data.sigma, work)
    assert plain.adjustment == 1 < 1.1 < llm.adjustment
    assert llm.adjustment == pytest.approx(factors.adjustment, rel=0.01)


def test_an_exact_fit_has_no_outliers():
    found = robust("huber", np.zeros(10), np.ones(10, dtype=bool))
    np.testing.assert_array_equal(found.factors, 1)
    assert found.adjustment == 1
    with pytest.raises(DiffuseError, match="loss=absolute: choose from squares, huber"):
        robust("absolute", np.ones(3), np.ones(3, dtype=bool))
    with pytest.raises(DiffuseError, match="loss=absolute"):
        FitOptions(loss="absolute")
