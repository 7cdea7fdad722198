"""Liquids with as many orders as they need: how many those are, maps with many, fits that find out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.fits import noisy_map
from helpers.pair_sums import at, close, per_copy, some_voxels, vectors
from helpers.simulations import QUICK, SMALL, write_structure
from helpers.structures import CELL, random_structure, small_molecule

from dials_diffuse.cli.model_scope import MODEL_PHIL
from dials_diffuse.cli.simulate import run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting import orders as orders_module
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.fitting.fit import Candidate, fit_models
from dials_diffuse.fitting.fit_parameters import FitOptions
from dials_diffuse.fitting.orders import fit_with_enough_orders, orders_of
from dials_diffuse.fitting.sums import PreparedSum
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.llm import series
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.rigid_body.rigid_body import RigidBody

# ------------------------------------------------------------------------------------------------- how many are needed


@pytest.mark.parametrize("x", [1e-6, 0.3, 1.0, 7.5, 30.0])
def test_what_orders_leave_out(x):
    """Against the series, summed exactly."""
    exact = Fraction(x)
    summed = [Fraction(0)]
    for order in range(1, 200):
        summed.append(summed[-1] + exact**order / math.factorial(order))
    everything = summed[-1]
    for orders in (1, 2, 5, 20, 50):
        expected = float((everything - summed[orders]) / everything)
        assert series.missing(x, orders) == pytest.approx(expected, rel=1e-9)
        assert series.exponential(x, orders) == pytest.approx(float(1 + summed[orders]), rel=1e-12)
    needed = next(n for n in range(1, 200) if 1 - summed[n] / everything <= series.NEGLIGIBLE)
    assert series.enough(x) == needed <= series.MOST_ORDERS


def test_a_liquid_says_what_it_lacks():
    """The largest displacement counts, whichever direction it has."""
    round_one = LiquidLikeMotions(sigma=0.6, gamma=5.0)
    long_one = LiquidLikeMotions(V=(0.1, 0.1, 0.36, 0, 0, 0), gamma=5.0)
    assert round_one.enough_orders(2.0) == long_one.enough_orders(2.0) == 9
    assert long_one.with_orders_for(random_structure(), {}, 2.0) == replace(long_one, orders=9)
    assert replace(long_one, orders=9).lack_of_orders(2.0) == ""
    text = replace(long_one, orders=8).lack_of_orders(2.0)
    assert text == "llm.orders=8 leaves out 1.1 % of exp(qVq) - 1 at 2.00 Å; llm.orders=9 is enough"
    far = LiquidLikeMotions(sigma=2.0, gamma=5.0)
    assert far.enough_orders(1.0) == series.MOST_ORDERS
    assert f"100.0 % of exp(qVq) - 1 at 1.00 Å; there are no more than {series.MOST_ORDERS}" in far.lack_of_orders(1.0)
    assert f"value_max={series.MOST_ORDERS}" in MODEL_PHIL.split("orders = Auto")[1].split(".help")[0]
    with pytest.raises(DiffuseError, match=r"llm.orders=51: a whole number from 1 to 50"):
        replace(far, orders=series.MOST_ORDERS + 1)


def test_maps_with_many_orders():
    """Large displacements against the pair sum, which has all orders."""
    sigma, gamma = 1.5, 6.0
    cell = (16.0, 10.0, 9.0, 90.0, 98.0, 90.0)
    structure = random_structure("P 1 21 1", cell, elements="CCCCCC", u=(0.15, 0.2), radius=3.0)
    grid = MapGrid(cell, structure.hall_symbol, (1, 2, 2), 3.0)
    model = LiquidLikeMotions(
        sigma=sigma,
        gamma=gamma,
        kernel="gaussian",
        adp="overall",
        local_form_factor=True,
        confined_to="molecule",
        incoherent=False,
    ).with_orders_for(structure, {}, grid.d_min)
    assert 15 < model.orders < 20

    def covariance(copy, rotation):
        distance = np.linalg.norm(copy.site_cart[:, None] - copy.site_cart, axis=-1)
        return sigma**2 * np.exp(-0.5 * (distance / gamma) ** 2)

    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    few, many = (at(replace(model, orders=n).intensity(structure, grid), grid, index) for n in (model.orders, 30))
    close(many, per_copy(structure, s, covariance), 2e-3)
    left_out = 1 - few / many
    assert 0.5 * series.NEGLIGIBLE < left_out.max() <= series.NEGLIGIBLE and left_out.min() > -1e-9


@pytest.mark.parametrize("tensor", [{"gamma": 5.0}, {"G": (4.0, 5.0, 6.0, 0.5, 0, 0)}], ids=lambda t: next(iter(t)))
def test_voxels_of_a_fit_and_points_with_many_orders(tensor):
    """The same as the map, at the sum's 30 terms."""
    structure = random_structure(u=(0.2, 0.3))
    grid = MapGrid(structure.unit_cell, "P 1", (2, 2, 2), 2.5)
    model = LiquidLikeMotions(sigma=1.2, **tensor, adp="overall", orders=30)
    index = some_voxels(grid)
    values = at(model.intensity(structure, grid), grid, index)
    prepared = prepare(model, structure, grid, index)
    close(prepared.intensity([p.value for p in prepared.parameters]), values, 3e-5)
    close(model.intensity_at(structure, vectors(structure, grid, index[:5])), values[:5], 1e-3)


@pytest.mark.parametrize("d_min", [3.0, None])
def test_simulated_images(tmp_path, monkeypatch, d_min):
    """To the resolution limit, which is that of the detector if no other is given."""
    monkeypatch.chdir(tmp_path)
    write_structure("tiny.pdb")
    words = ["tiny.pdb", *SMALL, *QUICK, "model=llm", "llm.sigma=0.5", "llm.gamma=3", "bragg=False", f"d_min={d_min}"]
    run([*words, "output.prefix=first"])
    content = json.loads(Path("diffuse_simulate.json").read_text())
    assert content["d_min"] == d_min or 3.0 > content["d_min"] > 1.0
    needed = LiquidLikeMotions(sigma=0.5, gamma=3.0).enough_orders(content["d_min"])
    assert content["model"]["orders"] == needed > 2
    if d_min:
        run([*words, "output.prefix=second", "llm.orders=2"])
        assert json.loads(Path("diffuse_simulate.json").read_text())["model"]["orders"] == 2
        assert "Warning: llm.orders=2 leaves out" in Path("dials.diffuse_simulate.log").read_text()


# ---------------------------------------------------------------------------------------------------------------- fits


@pytest.fixture(scope="module")
def structure():
    return small_molecule()


TRUTH = LiquidLikeMotions(sigma=0.65, gamma=6.0, adp="overall", orders=20)


@pytest.fixture(scope="module")
def data(structure):
    """To 2.5 Å, where the truth needs 7 orders."""
    grid = MapGrid(CELL, structure.hall_symbol, (3, 3, 3), 2.5)
    index = np.concatenate(list(possible_voxels(grid)))
    index = index[np.any(index != 0, axis=1)]
    index = index[np.random.default_rng(0).uniform(size=len(index)) < 0.25]
    truth = prepare(TRUTH, structure, grid, index).intensity([0.65, 6.0])
    return select(noisy_map(grid, index, truth, 0.02 * 0.02 * truth.std()), Selection())


class Preparation:
    """Prepares models, and remembers what was asked for."""

    def __init__(self, structure, data):
        self.asked = []
        self._structure, self._data = structure, data

    def __call__(self, models):
        self.asked.append(models)
        prepared = [prepare(m, self._structure, self._data.grid, self._data.index) for m in models]
        return prepared[0] if len(models) == 1 else PreparedSum(prepared, ["llm", "rigid_body"], self._structure)

    def candidate(self, name, models, start, **options):
        return Candidate(name, self(models), np.array(start), **options)


def low(sigma=0.2):
    """A liquid that starts with too small a displacement, and with the few orders that this needs."""
    return replace(TRUTH, orders=replace(TRUTH, sigma=sigma).enough_orders(2.5))


OPTIONS = FitOptions(background=10, starts=1, profile=False)


def test_orders_follow_the_fitted_displacement(structure, data):
    """From a start that needs 2 orders: the fit ends with what its result needs, at the truth."""
    assert TRUTH.with_orders_for(structure, {"sigma": 0.2}, 2.5) == low() and low().orders == 2
    rigid = RigidBody(sigma=0.3)
    assert rigid.with_orders_for(structure, {"sigma": 0.2}, 2.5) is rigid
    preparation = Preparation(structure, data)
    candidates = [
        preparation.candidate("llm", [low()], [0.2, 5.0]),
        preparation.candidate("rigid_body", [rigid], [0.3]),
    ]
    (before, _) = fit_models(data, candidates, OPTIONS)
    fit, other = fit_with_enough_orders(data, candidates, OPTIONS, preparation)
    assert orders_of(fit.models) == (fit.models[0].enough_orders(1 / data.s.max()),) == (7,)
    assert not [text for text in fit.warnings if "orders" in text]
    assert [text for text in before.warnings if "orders" in text]
    for estimate, value in zip(fit.estimates, (0.65, 6.0)):
        assert abs(estimate.value - value) < 4 * estimate.esd < 0.01 * value
    assert max(abs(e.value - v) / e.esd for e, v in zip(before.estimates, (0.65, 6.0))) > 20
    again = preparation.asked[2:]  # only the liquid, as it was but for the orders: its bounds stay the same
    assert len(again) <= 3 and again[-1] == (replace(TRUTH, orders=7),)
    assert all((replace(model, orders=7),) == again[-1] for (model,) in again)
    assert other.name == "rigid_body" and orders_of(other.models) == ()
    held = preparation.candidate("llm", [low()], [0.2, 5.0], choose_orders=(False,))
    (kept,) = fit_with_enough_orders(data, [held], OPTIONS, preparation)
    assert orders_of(kept.models) == (2,) and kept.estimates == before.estimates


def test_more_orders_start_where_fewer_ended(structure, data, monkeypatch):
    preparation, rounds = Preparation(structure, data), []

    def recorded(data, candidates, *rest):
        fits = fit_models(data, candidates, *rest)
        rounds.append((list(candidates), list(fits)))
        return fits

    monkeypatch.setattr(orders_module, "fit_models", recorded)
    fit_with_enough_orders(data, [preparation.candidate("llm", [low()], [0.2, 5.0])], OPTIONS, preparation)
    assert len(rounds) > 1
    for (_, (before,)), ((after,), _) in zip(rounds, rounds[1:]):
        np.testing.assert_array_equal(after.start, before.minimum.values)


def test_weights_of_all_models_are_those_of_the_last_round(structure, data):
    """With weights that depend on all models each is fitted with the same ones, also those without orders."""
    preparation = Preparation(structure, data)
    candidates = [
        preparation.candidate("rigid_body", [RigidBody(sigma=0.3)], [0.3]),
        preparation.candidate("llm", [low(0.4)], [0.4, 5.0]),
    ]
    options = replace(OPTIONS, weights="shell")
    rigid, liquid = fit_with_enough_orders(data, candidates, options, preparation)
    assert orders_of(liquid.models) == (7,)
    np.testing.assert_array_equal(rigid.weights, liquid.weights)
    enough = Candidate("llm", preparation([replace(TRUTH, orders=7)]), np.array([0.65, 6.0]))
    straight = fit_models(data, [candidates[0], enough], options)
    np.testing.assert_allclose(rigid.weights, straight[0].weights, rtol=0.1)
    assert rigid.scale.value == pytest.approx(straight[0].scale.value, rel=0.01)
    for mine, other in zip(liquid.estimates, straight[1].estimates):
        assert abs(mine.value - other.value) < 0.2 * other.esd


def test_liquids_in_sums(structure, data):
    preparation = Preparation(structure, data)
    parts = low(0.4), RigidBody(sigma=0.1)
    start = preparation.candidate("llm+rigid_body", parts, [0.4, 5.0, 0.1])
    (fit,) = fit_with_enough_orders(data, [start], OPTIONS, preparation)
    assert orders_of(fit.models) == (7,) and not [text for text in fit.warnings if "orders" in text]
    assert fit.estimates[0].name == "llm.sigma" and fit.estimates[0].value == pytest.approx(0.65, abs=0.005)
    assert fit.estimates[2].value < 0.05


def test_orders_end_somewhere(structure, data, monkeypatch):
    """At the most that there are the fit ends, and says what is missing."""
    preparation = Preparation(structure, data)
    start = preparation.candidate("llm", [low()], [0.2, 5.0])
    monkeypatch.setattr(series, "MOST_ORDERS", 4)
    (fit,) = fit_with_enough_orders(data, [start], OPTIONS, preparation)
    assert orders_of(fit.models) == (4,)
    (told,) = [text for text in fit.warnings if "orders" in text]
    assert told.startswith("llm: llm.orders=4 leaves out") and "there are no more than 4" in told
