"""Models and fits in blocks of points: the same on dask workers, bit for bit, and what they are in one piece."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from helpers.structures import random_structure
from helpers.workers import broken_if, summed

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.fit_parameters import FitOptions, FitParameters
from dials_diffuse.fitting.request import FitRequest
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.blocks import PreparedBlocks, prepare_in_blocks
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.covariance import group_factory, motion
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.parallel import SERIAL, WhenNeeded, cores, on_one_core

TENSOR = (0.06, 0.05, 0.07, 0.01, 0.0, -0.01)


@pytest.fixture(scope="module")
def structure():
    return random_structure("P 21 21 21", (14.0, 16.0, 18.0, 90.0, 90.0, 90.0), "CNOCS" * 3, radius=5.0)


@pytest.fixture(scope="module")
def grid(structure):
    return MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.2)


def tensors(**options) -> Covariance:
    return Covariance(**{"V": TENSOR, "gamma": 5.0, **options})


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few points, where they would be of thousands."""
    monkeypatch.setattr(motion, "_ROWS", 64)
    monkeypatch.setattr(motion, "_TERMS", 1)
    monkeypatch.setattr(group_factory, "_PAIRS_OF_BLOCK", 5e4)


@pytest.fixture(scope="module")
def workers():
    pytest.importorskip("distributed", reason="MODELS ON A CLUSTER NOT TESTED: install dask, distributed")
    from dials_diffuse.clusters import DaskParameters
    from dials_diffuse.distributed import dask_executor

    with dask_executor(DaskParameters(workers=2, memory="1GB", timeout=60)) as executor:
        yield executor


def test_what_workers_keep(workers):
    for executor in (SERIAL, workers):
        kept = executor.kept(broken_if, 7, [1, 2, 3])
        assert list(kept.call(summed, [10, 20, 30])) == [(8, 10, 18), (9, 20, 29), (10, 30, 40)]
        assert list(kept.call(summed, [0])) == [(8, 0, 8)]
        with pytest.raises(DiffuseError, match="seven is too much"):
            list(executor.kept(broken_if, 7, [1, 7]).call(summed, [0, 0]))


def test_what_a_lost_worker_kept_is_made_again(workers):
    kept = workers.kept(broken_if, 1, range(6))
    before = list(kept.call(summed, range(6)))
    pids = workers.client.run(os.getpid)
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert list(kept.call(summed, range(6))) == before
    workers.client.wait_for_workers(2, timeout=60)


def test_one_core_in_workers_that_are_one_of_many():
    assert cores() >= 1
    with on_one_core():
        assert cores() == 1
        with WhenNeeded(lambda: pytest.fail("started")) as idle:
            assert list(idle.map(summed, 0, [])) == []


@pytest.mark.parametrize("engine", ["pair_sum", "chebyshev", "low_rank"])
def test_maps_of_workers(structure, grid, workers, small_blocks, engine):
    values = {"sigma": 0.25, "gamma": 5.0} if engine == "chebyshev" else {"V": TENSOR, "gamma": 5.0}
    model = Covariance(**values, engine=engine, groups="residue" if engine == "low_rank" else "atom")
    here = compute_model(structure, grid, model).map.intensity
    there = compute_model(structure, grid, model, executor=workers).map.intensity
    assert len(here) > 500
    np.testing.assert_array_equal(there, here)
    oracle = compute_model(structure, grid, replace(model, engine="pair_sum")).map.intensity
    np.testing.assert_allclose(here, oracle, rtol=1e-4, atol=1e-4 * oracle.max())


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("supercell", [None, (2, 1, 1)])
def test_blocks_are_parts_of_the_whole(structure, grid, small_blocks, means, supercell):
    # that of a block of cells has the symmetry of the crystal
    model = (
        tensors()
        if supercell is None
        else tensors(supercell=supercell, groups="molecule", V=(*TENSOR[:3], 0.0, 0.0, 0.0))
    )
    index = compute_model(structure, grid, LiquidLikeMotions(sigma=0.3, gamma=5.0)).map.index[:400]
    whole = prepare_dispersive(model, structure, grid, index, means)
    blocks = prepare_in_blocks(model, structure, grid, index, means, None, SERIAL)
    assert isinstance(blocks, PreparedBlocks) and len(blocks._rows) > 1
    assert blocks.parameters == whole.parameters and blocks.means == whole.means
    values = np.array([p.value for p in whole.parameters])
    weights = np.random.default_rng(0).normal(size=len(index))
    for mine, theirs in zip(blocks.jacobian(values), whole.jacobian(values)):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
    np.testing.assert_allclose(blocks.intensity(values), whole.intensity(values), rtol=1e-9)
    second = whole.second(values, weights)
    np.testing.assert_allclose(blocks.second(values, weights), second, rtol=1e-8, atol=1e-8 * np.abs(second).max())
    assert [(part.start, part.stop) for part, _ in blocks.tensors] == [
        (part.start, part.stop) for part, _ in whole.tensors
    ]


def test_a_fit_of_workers(structure, workers, small_blocks):
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 3.0)
    truth = compute_model(structure, grid, tensors()).map
    error = np.full(len(truth.index), 0.02 * truth.intensity.std())
    noisy = truth.intensity + error * np.random.default_rng(1).normal(size=len(error))
    data = replace(truth, intensity=noisy, sigma=error, multiplicity=np.ones(len(error), dtype=int))
    request = FitRequest.of(Covariance(V=(0.05, 0.05, 0.05, 0.0, 0.0, 0.0), gamma=4.0))
    parameters = FitParameters(indexing="given", options=FitOptions(starts=1, profile=False))
    here = fit_map(data, structure, [request], parameters).models[0]
    there = fit_map(data, structure, [request], parameters, executor=workers).models[0]
    assert [e.value for e in there.estimates] == [e.value for e in here.estimates]
    np.testing.assert_array_equal(there.covariance, here.covariance)
    np.testing.assert_array_equal(there.fitted, here.fitted)
    gamma = {e.name: e for e in here.estimates}["gamma"]
    assert abs(gamma.value - 5.0) < 4 * gamma.esd
