"""What of a model can be refined: names, bounds, start values, tensors that keep the point group."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import V
from helpers.structures import GROUP_NAMES, GROUPS, random_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.refinable import tensor_components
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.tensors import ELEMENTS

ROUND = (0.05, 0.05, 0.05, 0.0, 0.0, 0.0)

#: free elements in cctbx's Cartesian frame: a along x, c* along z
FREE = {
    "P1": ELEMENTS,
    "P1211": ("11", "22", "33", "13"),
    "P1121": ("11", "22", "33", "12"),
    "I121": ("11", "22", "33", "13"),
    "P212121": ("11", "22", "33"),
    "P41": ("11", "33"),
    "P3121": ("11", "33"),
    "P6": ("11", "33"),
    "P23": ("11",),
}


def names(model, structure):
    return tuple(p.name for p in model.parameters(structure))


@pytest.mark.parametrize(("symbol", "cell"), [*GROUPS, ("R 3 :R", (10.0, 10.0, 10.0, 80.0, 80.0, 80.0))])
def test_free_elements_make_all_tensors_with_the_symmetry_and_no_others(symbol, cell):
    structure = random_structure(symbol, cell)
    components = tensor_components(structure, symmetric=True)
    tensor = components.tensor(np.arange(1.0, len(components.names) + 1))
    for turn in structure.rotations:
        np.testing.assert_allclose(turn @ tensor @ turn.T, tensor, atol=1e-10)
    # the average over the group of any tensor is one of them
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    average = np.mean([t @ root @ root.T @ t.T for t in structure.rotations], axis=0)
    six = np.array([average[int(e[0]) - 1, int(e[1]) - 1] for e in ELEMENTS])
    np.testing.assert_allclose(components.tensor(components.free("V", six)), average, atol=1e-10)
    for name, value in zip(components.names, components.free("V", six)):
        assert value == average[int(name[0]) - 1, int(name[1]) - 1]


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_names_of_the_free_elements(symbol, cell):
    structure = random_structure(symbol, cell)
    free = FREE[symbol.replace(" ", "")]
    v, g = tuple(f"V{e}" for e in free), tuple(f"G{e}" for e in free)
    everything = tuple(f"V{e}" for e in ELEMENTS)
    model = LiquidLikeMotions(V=ROUND, G=(8.0, 8.0, 8.0, 0, 0, 0))
    assert names(model, structure) == (*v, *g)
    assert names(RigidBody(V=ROUND, body="cell"), structure) == v
    # each copy has its own, turned with it
    assert names(RigidBody(V=V), structure) == everything
    assert names(LiquidLikeMotions(V=V, gamma=5.0, confined_to="molecule"), structure) == (*everything, "gamma")
    assert names(Covariance(V=V, gamma=5.0), structure) == (*everything, "gamma")


def test_names_of_the_other_models():
    structure = random_structure()
    assert names(Uncorrelated(), structure) == ()
    assert names(RigidBody(sigma=0.2), structure) == ("sigma",)
    assert names(LiquidLikeMotions(sigma=0.2, gamma=5.0), structure) == ("sigma", "gamma")
    assert names(Covariance(sigma=0.2, gamma=5.0), structure) == ("sigma", "gamma")
    assert names(Covariance(kernel="elastic_network"), structure) == ("sigma", "crystal_stiffness")
    alone = ElasticNetwork(crystal_contacts=False)
    assert names(Covariance(kernel="elastic_network", network=alone), structure) == ("sigma",)
    assert names(Covariance(kernel="free", matrix=np.eye(5)), structure) == ()
    assert names(Ensemble((structure,) * 3), structure) == ("weight_2", "weight_3")
    bodies = RigidBody(sigma=0.2, body="selection", selections=("element C", "not element C"))
    assert names(bodies.for_each_body(structure), structure) == ("sigma_1", "sigma_2")
    assert names(replace(bodies, sigma=None, V=V).for_each_body(structure), structure) == tuple(
        f"V{e}_{k}" for k in (1, 2) for e in ELEMENTS
    )


def models(structure):
    bodies = RigidBody(sigma=0.2, body="selection", selections=("element C", "not element C"))
    return [
        RigidBody(sigma=0.2),
        RigidBody(V=V),
        bodies.for_each_body(structure),
        replace(bodies, sigma=None, V=V).for_each_body(structure),
        LiquidLikeMotions(sigma=0.2, gamma=5.0),
        LiquidLikeMotions(V=ROUND, G=(8.0, 8.0, 8.0, 0, 0, 0), kernel="gaussian"),
        LiquidLikeMotions(sigma=0.2, gamma=5.0, kernel="lorentzian"),
        Covariance(sigma=0.2, gamma=5.0),
        Covariance(V=V, gamma=5.0),
        Covariance(kernel="elastic_network", network=ElasticNetwork("anisotropic")),
        Ensemble((structure,) * 4, weights=(1, 2, 3, 2)),
    ]


def test_values_lie_within_bounds_and_go_round():
    structure = random_structure("P 41", GROUPS[5][1])
    for model in models(structure):
        parameters = model.parameters(structure)
        for p in parameters:
            assert p.lower < p.value < p.upper, p
            assert p.lower < p.start < p.upper, p
            assert p.unit in ("Å", "Å²", "")
        again = model.with_values(structure, {p.name: p.value for p in parameters})
        for p, q in zip(parameters, again.parameters(structure)):
            assert p.value == pytest.approx(q.value, rel=1e-12)
        started = model.with_values(structure, {p.name: p.start for p in parameters})
        assert [p.value for p in started.parameters(structure)] == pytest.approx([p.start for p in parameters])
        first = parameters[0]
        changed = model.with_values(structure, {first.name: 0.9 * first.value}).parameters(structure)
        assert changed[0].value == pytest.approx(0.9 * first.value)
        assert [p.value for p in changed[1:]] == pytest.approx([p.value for p in parameters[1:]])


def test_start_values_come_from_the_displacements():
    structure = random_structure(u=(0.18, 0.18))
    share = {p.name: p for p in LiquidLikeMotions(sigma=0.2, gamma=7.0).parameters(structure)}
    assert share["sigma"].start == pytest.approx(0.3)  # half of U: the rest is not shared
    assert share["gamma"].start == 10
    whole = LiquidLikeMotions(sigma=0.2, gamma=7.0, adp="overall").parameters(structure)
    assert whole[0].start == pytest.approx(math.sqrt(0.18))
    tensor = RigidBody(V=V, soft=True).parameters(structure)
    assert [p.start for p in tensor] == pytest.approx([0.09, 0.09, 0.09, 0, 0, 0])
    still = LiquidLikeMotions(sigma=0.2, gamma=7.0, adp="overall").parameters(structure.without_displacements())
    assert still[0].start == 0.3


@pytest.mark.parametrize("sigma", [0.001, 3.0])
def test_bounds_hold_unusual_values(sigma):
    structure = random_structure()
    six = (sigma**2, sigma**2 / 2, sigma**2, 0.0, 0.0, sigma**2 / 3)
    for model in (RigidBody(sigma=sigma), RigidBody(V=six), LiquidLikeMotions(sigma=sigma, gamma=0.5)):
        for p in model.parameters(structure):
            assert p.lower <= p.value <= p.upper
            assert p.lower < p.start < p.upper


def test_dependent_elements_follow():
    structure = random_structure("P 31 2 1", GROUPS[6][1])
    model = LiquidLikeMotions(V=(0.04, 0.04, 0.05, 0, 0, 0), gamma=5.0)
    changed = model.with_values(structure, {"V11": 0.06, "V33": 0.01})
    assert pytest.approx((0.06, 0.06, 0.01, 0, 0, 0)) == changed.V
    assert changed.gamma == 5.0


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda s: LiquidLikeMotions(sigma=0.2, gamma=5.0).with_values(s, {"sigmo": 1.0}), "'sigmo'.*sigma, gamma"),
        (lambda s: Uncorrelated().with_values(s, {"sigma": 1.0}), "there is none"),
        (lambda s: RigidBody(sigma=0.2).with_values(s, {"sigma": -1.0}), "sigma=-1"),
        (lambda s: RigidBody(V=V).with_values(s, {"V12": 1.0}), "positive semidefinite"),
        (lambda s: LiquidLikeMotions(V=V, gamma=5.0).parameters(s), "start from V=0.05,0.05,0.04,0,0,0"),
        (lambda s: RigidBody(sigma=(0.1, 0.2), V=(V, V)), "not both"),
    ],
)
def test_bad_values_are_refused(make, complaint):
    structure = random_structure("P 41", GROUPS[5][1])
    with pytest.raises(DiffuseError, match=complaint):
        make(structure)


def test_number_of_bodies_must_fit():
    structure = random_structure()
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 3.0)
    with pytest.raises(DiffuseError, match="displacements of 3 bodies are given, there are 1"):
        RigidBody(sigma=(0.1, 0.2, 0.3)).intensity(structure, grid)


def test_bounds_hold_what_is_given():
    """Long and short correlation lengths are not changed by the bounds that others have."""
    structure = random_structure("P 1 21 1", GROUPS[1][1])
    far, near = (LiquidLikeMotions(sigma=0.3, G=(g, g, 2 * g, 0, 0.1 * g, 0)) for g in (150.0, 0.6))
    for model, limits in ((far, (1.0, 604.0)), (near, (0.59, 100.0))):
        _, *elements = model.parameters(structure)
        g11, g22, g33, g13 = elements
        for p in (g11, g22, g33):
            assert (p.lower, p.upper) == pytest.approx(limits, rel=0.02) and p.lower <= p.value <= p.upper
        assert -g13.upper == g13.lower < g13.value < g13.upper
    _, gamma = LiquidLikeMotions(sigma=0.3, gamma=150.0).parameters(structure)
    assert gamma.lower <= gamma.value < gamma.upper
