"""What to fit, from words and plain scopes or from models, and what a fit refuses before it begins."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.fitting.data import Selection
from dials_diffuse.fitting.fit_parameters import FitOptions, FitParameters, PairParameters
from dials_diffuse.fitting.request import FitRequest, ModelScope, Part, check_requests, requests_from_words
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.refinable import Parameter
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.table import all_models
from dials_diffuse.models.uncorrelated import Uncorrelated

LIQUID = {"sigma": None, "V": None, "gamma": None, "G": None, "orders": None, "adp": "individual"}
BODY = {"sigma": None, "V": None, "body": "asu", "selection": [], "soft": False}
TLS = SimpleNamespace(file=None, T=(0,) * 6, L=None, S=(0,) * 9, origin=None)


def scopes(given=(), **values) -> dict:
    """Scopes of models as a program makes them, but of plain objects; values are those of the liquid."""
    liquid = ModelScope(
        SimpleNamespace(**{**LIQUID, **values}),
        {"individual": "adp", "overall": "adp", "gaussian": "kernel", "molecule": "confined_to"},
        given,
    )
    body = ModelScope(SimpleNamespace(**BODY, tls=TLS), {"asu": "body", "cell": "body", "chain": "body"})
    return {name: ModelScope() for name in all_models()} | {"llm": liquid, "rigid_body": body}


def test_words_make_models():
    found = requests_from_words(["llm/overall/gaussian,uncorrelated", "rigid_body/chain/each+llm/V"], scopes())
    assert [request.name for request in found] == [
        "llm/overall/gaussian",
        "uncorrelated",
        "rigid_body/chain/each+llm/V",
    ]
    liquid, nothing, both = found
    assert liquid.parts == (
        Part(LiquidLikeMotions(sigma=0.3, gamma=10.0, adp="overall", kernel="gaussian"), frozenset()),
    )
    assert nothing.parts == (Part(Uncorrelated(), frozenset(), choose_orders=False),)
    body, tensor = both.parts
    assert body == Part(RigidBody(sigma=0.3, body="chain"), frozenset(), each=True, choose_orders=False)
    assert pytest.approx((0.09, 0.09, 0.09, 0, 0, 0)) == tensor.model.V and tensor.model.sigma is None
    assert not any(request.pairs for request in found)
    assert requests_from_words([], scopes()) == requests_from_words([","], scopes()) == ()


def test_what_is_given_is_where_a_fit_starts():
    (request,) = requests_from_words(["llm"], scopes(given=["sigma"], sigma=0.4, orders=5), table="it1992")
    (part,) = request.parts
    assert part.model == LiquidLikeMotions(sigma=0.4, gamma=10.0, orders=5, table="it1992") and not part.choose_orders
    sigma, gamma = (Parameter(name, 1.0, "Å", 0.0, 9.0, 2.0) for name in ("sigma", "gamma"))
    assert (part.start(sigma), part.start(gamma)) == (1.0, 2.0)
    (request,) = requests_from_words(["llm/V"], scopes(given=["sigma"], sigma=0.4))  # a number starts its tensor
    (part,) = request.parts
    assert pytest.approx((0.16, 0.16, 0.16, 0, 0, 0)) == part.model.V
    assert part.start(replace(sigma, name="V12")) == 1.0
    (request,) = requests_from_words(["llm/V"], scopes(given=["V"], V=[0.1, 0.1, 0.2, 0, 0, 0]))
    assert request.parts[0].model.V == (0.1, 0.1, 0.2, 0, 0, 0)
    part = Part(RigidBody(sigma=0.3), frozenset({"sigma"}))
    assert part.start(replace(sigma, name="sigma_2")) == 1.0
    assert Part(RigidBody(sigma=0.3)).start(gamma) == 1.0  # a model as such starts where it is


def test_scopes_are_left_as_they_are():
    own = scopes(given=["sigma"], sigma=0.4)
    requests_from_words(["llm/V/overall"], own)
    assert vars(own["llm"].values) == {**LIQUID, "sigma": 0.4}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lm", "model=lm: no model 'lm'; choose from uncorrelated, rigid_body, llm, "),
        ("llm+", "model=: no model ''; choose from "),
        ("llm/round", "model=llm/round: 'round' is no choice of llm; there is V, G, individual, overall, gaussian, "),
        ("llm/each", "model=llm/each: 'each' is no choice of llm"),
        ("rigid_body/G", "'G' is no choice of rigid_body; there is V, asu, cell, chain, each"),
        ("uncorrelated/pairs", "'pairs' is no choice of uncorrelated; there is none"),
    ],
)
def test_words_that_nobody_knows(words, message):
    with pytest.raises(CommandLineError) as stopped:
        requests_from_words([words], scopes())
    assert message in str(stopped.value)


def test_requests_of_models():
    liquid, body = LiquidLikeMotions(sigma=0.3, gamma=6.0), RigidBody(sigma=0.2)
    assert FitRequest.of(liquid) == FitRequest("llm", (Part(liquid),))
    assert FitRequest.of(liquid, body).name == "llm+rigid_body"
    assert FitRequest.of(liquid, name="mine").name == "mine"
    pairs = FitRequest.of(Covariance(sigma=0.3, gamma=5.0), pairs=True)
    assert pairs.name == "covariance/pairs" and pairs.pairs
    kernel = pairs.kernel
    assert kernel == replace(pairs, name="covariance", pairs=False) and kernel.kernel is kernel
    again = pickle.loads(pickle.dumps(FitRequest.of(liquid, body)))
    assert again == FitRequest.of(liquid, body)


KERNEL = Covariance(sigma=0.3, gamma=5.0)
PAIRS = FitRequest.of(KERNEL, pairs=True)
BODIES = FitRequest.of(RigidBody(sigma=0.3))


@pytest.mark.parametrize(
    ("requests", "parameters", "message"),
    [
        ([], {}, "model=None: choose from uncorrelated, rigid_body, "),
        ([BODIES, BODIES], {}, "model=rigid_body,rigid_body: a model is given twice; leave one out"),
        ([PAIRS, replace(PAIRS, name="more/pairs")], {}, "model=covariance/pairs,more/pairs: one model of all pairs"),
        (
            [BODIES, FitRequest.of(KERNEL, RigidBody(sigma=0.3), pairs=True)],
            {},
            "model=rigid_body,covariance+rigid_body/pairs: one model of all pairs can be fitted, and not in a sum",
        ),
        ([FitRequest.of(RigidBody(sigma=0.3), pairs=True)], {}, "pairs are fitted from a model covariance, not from"),
        (
            [FitRequest.of(replace(KERNEL, supercell=(1, 1, 2)), pairs=True)],
            {},
            "covariance.supercell: pairs are fitted within one molecule; leave it out with /pairs",
        ),
        ([PAIRS], {"wavelength": 1.0}, "wavelength=1: pairs are fitted without f', f''; leave it out"),
        (
            [PAIRS],
            {"selection": Selection(free_fraction=0.0)},
            "pairs.strength: free voxels choose one of several; give one, or raise free_fraction",
        ),
    ],
    ids=["none", "twice", "two", "sum", "body", "supercell", "wavelength", "strengths"],
)
def test_requests_that_do_not_fit(requests, parameters, message):
    with pytest.raises(CommandLineError) as stopped:
        check_requests(requests, FitParameters(**parameters))
    assert message in str(stopped.value)


def test_requests_that_fit():
    one = FitParameters(Selection(free_fraction=0.0), pairs=PairParameters((1.0,)))
    check_requests([BODIES, PAIRS], one)
    check_requests([BODIES, PAIRS], FitParameters())
    check_requests([BODIES], FitParameters(wavelength=1.0))
    electrons = FitRequest.of(RigidBody(sigma=0.3, table="electron"))
    with pytest.raises(DiffuseError, match="table=electron: there is no f', f'' for it"):
        check_requests([electrons], FitParameters(wavelength=1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selection(d_max=2, d_min=3), r"d_max=2, d_min=3: need d_max > d_min"),
        (lambda: Selection(d_min=-1), r"d_min=-1: a positive number"),
        (lambda: Selection(free_fraction=0.7), r"free_fraction=0\.7: need a fraction from 0 to 0\.5"),
        (lambda: Selection(seed=-1), r"seed=-1"),
        (lambda: Selection(min_multiplicity=-1), r"min_multiplicity=-1"),
        (lambda: Selection(bragg=True, bragg_distance=0.1), r"bragg=True keeps what bragg_distance=0\.1 leaves out"),
        (lambda: FitOptions(scale=0.0), r"scale=0\.0: a positive number"),
        (lambda: FitOptions(background=2), r"background\.n_terms=2: a cubic spline has at least 4; or give 0"),
        (lambda: FitOptions(weights="none"), r"weights=none: choose from sigma, shell"),
        (lambda: FitOptions(loss="absolute"), r"loss=absolute: choose from squares, huber"),
        (lambda: FitOptions(starts=0), r"starts=0"),
        (lambda: FitOptions(n_shells=0), r"n_shells=0"),
        (lambda: FitOptions(seed=-1), r"seed=-1"),
        (lambda: PairParameters(()), r"pairs\.strength=None: at least one number is needed, 0 for no prior"),
        (lambda: PairParameters((1.0, -1.0)), r"pairs\.strength=-1"),
        (lambda: PairParameters(minimiser="best"), r"pairs\.minimiser=best: choose from auto, newton"),
        (lambda: PairParameters(starts=0), r"pairs\.starts=0"),
        (lambda: PairParameters(max_iterations=0), r"pairs\.max_iterations=0"),
        (lambda: FitParameters(indexing="all"), r"indexing=all: choose from auto, given"),
        (lambda: FitParameters(voxels="edge"), r"voxels=edge: choose from auto, mean, centre"),
        (lambda: FitParameters(wavelength=0.0), r"wavelength=0\.0: a positive number"),
    ],
)
def test_parameters_check_themselves(make, message):
    with pytest.raises(DiffuseError, match=message):
        make()


def test_parameters_are_plain_data():
    parameters = FitParameters(Selection(d_min=2.0), FitOptions(background=8), PairParameters((0.1,)), "given", "mean")
    assert pickle.loads(pickle.dumps(parameters)) == parameters != FitParameters()
