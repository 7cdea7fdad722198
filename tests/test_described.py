"""A fit says when no model describes the map: another structure, another motion, or no signal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.structures import random_structure

from dials_diffuse.fitting.data import Selection
from dials_diffuse.fitting.described import DESCRIBED, FAR, NO_SIGNAL, NOTHING, UNKNOWN, described
from dials_diffuse.fitting.fit_parameters import FitParameters
from dials_diffuse.fitting.request import FitRequest
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.rigid_body.rigid_body import RigidBody

CELL, GROUP = (13, 15, 17, 90, 90, 90), "P 21 21 21"
RIGHT, OTHER = (random_structure(GROUP, CELL, "CNOCS" * 3, seed=seed) for seed in (0, 99))
GRID = MapGrid(RIGHT.unit_cell, RIGHT.hall_symbol, (2, 2, 2), 2.0)
COMPUTED = compute_model(RIGHT, GRID, RigidBody(sigma=0.3)).map
SPREAD = COMPUTED.intensity.std()
FLAT = COMPUTED.intensity.mean() * np.exp(-2 * GRID.s_magnitude(COMPUTED.index))


def noisy(intensity, noise=0.1, halves=True, seed=1):
    """A map with errors of so many times the spread of the computed intensity."""
    error = np.full(len(intensity), noise * SPREAD)
    a, b = (intensity + np.sqrt(2) * error * np.random.default_rng([seed, k]).normal(size=len(error)) for k in (0, 1))
    known = {"half_a": a, "half_b": b} if halves else {}
    ones = np.ones(len(error), dtype=int)
    return replace(COMPUTED, intensity=(a + b) / 2, sigma=error, multiplicity=ones, **known)


def fitted(data, structure=RIGHT, free_fraction=0.1):
    parameters = FitParameters(selection=Selection(free_fraction=free_fraction))
    return fit_map(data, structure, [FitRequest.of(RigidBody(sigma=0.4))], parameters)


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("free_fraction", [0.0, 0.1])
def test_the_right_structure_describes_the_map(noise, halves, free_fraction):
    result = fitted(noisy(COMPUTED.intensity, noise, halves), free_fraction=free_fraction)
    assert result.described.verdict == DESCRIBED and not result.described.words
    assert not any("no model" in text or "no signal" in text for text in result.warnings)
    if halves:
        assert result.described.cc == pytest.approx(result.described.cc_star, abs=0.2)


@pytest.mark.parametrize("halves", [True, False])
def test_another_structure_does_not(halves):
    result = fitted(noisy(COMPUTED.intensity, halves=halves), OTHER)
    assert result.described.verdict == NOTHING
    (text,) = (w for w in result.warnings if "no model describes the map" in w)
    assert "rigid_body" in text and "crystal form and setting" in text
    assert ("possible" in text) == halves


@pytest.mark.parametrize("share, verdict", [(0.02, NOTHING), (0.2, FAR), (0.5, DESCRIBED)])
def test_a_model_is_judged_by_what_is_possible(share, verdict):
    """What a model computes correlates with the map by a share; with little noise all of it is possible."""
    result = fitted(noisy(COMPUTED.intensity), free_fraction=0.0)
    data = result.data
    foreign = SPREAD * np.random.default_rng(3).normal(size=data.n)
    mixed = share * COMPUTED.intensity[data.row] + np.sqrt(1 - share**2) * foreign
    found = described(replace(result.best, fitted=mixed), data)
    assert found.verdict == verdict, found
    assert ("no model" in found.words) == (verdict != DESCRIBED)


@pytest.mark.parametrize("free_fraction", [0.0, 0.1])
def test_a_map_without_signal_is_told_from_a_wrong_structure(free_fraction):
    result = fitted(noisy(FLAT, 1.0), free_fraction=free_fraction)
    assert result.described.verdict == NO_SIGNAL
    assert any("no signal" in text for text in result.warnings)


def test_too_few_voxels_tell_nothing():
    result = fitted(noisy(COMPUTED.intensity))
    few = replace(result.data, block=np.zeros_like(result.data.block))
    assert described(result.best, few).verdict == UNKNOWN


def test_the_record_says_so():
    record = fitted(noisy(COMPUTED.intensity)).described.record()
    assert record["verdict"] == DESCRIBED and 0.9 < record["cc"] <= 1 and record["esd"] < 0.05
