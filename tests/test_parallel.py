"""Executors and threads: order, what is in flight, errors, and that workers need nothing but what is sent to them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.jobs import job_for
from helpers.loops import LLM, REDUCTION, SIMULATION
from helpers.structures import random_structure
from helpers.synthetic import make_detector, make_experiment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.parallel import SERIAL, Executor, Forked, in_threads, make_executor, quiet, row_ranges
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import Sampling
from dials_diffuse.simulation.plan import plan_sweeps
from dials_diffuse.simulation.simulate import Outputs, simulate


def scaled(factor, item):
    return factor * item


def process_of(shared, item):
    return os.getpid()


def broken(shared, item):
    if item == 3:
        raise DiffuseError("item 3: bad")
    return item


def killed(shared, item):
    os._exit(9)


EXECUTORS = [SERIAL, Forked(2)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_results_come_in_order(executor, n):
    assert list(executor.map(scaled, 3, iter(range(n)))) == [3 * i for i in range(n)]


@pytest.mark.parametrize(("executor", "ahead"), [(SERIAL, 1), (Forked(2), 4)])
def test_items_are_taken_as_they_are_needed(executor, ahead):
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = executor.map(scaled, 2, items())
    assert taken == []
    for done in range(20):
        assert next(results) == 2 * done
        assert len(taken) <= done + ahead + 1
    results.close()  # what is not wanted is not computed
    assert len(taken) < 30


def test_a_pool_that_is_left_early_ends():
    """Many times, because what kept it waiting was a race."""
    for _ in range(50):
        results = Forked(2).map(scaled, 2, range(100))
        assert next(results) == 0
        results.close()


def test_forked_workers_are_other_processes():
    assert os.getpid() not in set(Forked(2).map(process_of, None, range(8)))
    assert set(SERIAL.map(process_of, None, range(8))) == {os.getpid()}
    assert set(Forked(2).map(process_of, None, range(1))) == {os.getpid()}  # not worth a process


def test_two_maps_at_the_same_time():
    """Each has its own shared object."""
    pairs = zip(Forked(2).map(scaled, 2, range(20)), Forked(2).map(scaled, 5, range(20)))
    assert list(pairs) == [(2 * i, 5 * i) for i in range(20)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_errors_are_raised_where_the_results_are_wanted(executor):
    results = executor.map(broken, None, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DiffuseError, match="item 3: bad"):
        next(results)


def test_a_lost_worker():
    with pytest.raises(DiffuseError, match="nproc=2: a worker process was killed"):
        list(Forked(2).map(killed, None, range(4)))


def test_kinds():
    assert make_executor(1) is SERIAL and SERIAL.workers == 1
    assert make_executor(3) == Forked(3) and make_executor(3).workers == 3
    assert pickle.loads(pickle.dumps(Forked(3))) == Forked(3)


def test_threads():
    meeting = Barrier(2, timeout=60)  # passed only by two at the same time
    results = in_threads(lambda i: (i, meeting.wait())[0], range(8), 2)
    assert list(results) == list(range(8))
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (i - 2), range(8), 2))


def test_row_ranges():
    for n, parts in ((10, 3), (2, 4), (0, 1)):
        ranges = row_ranges(n, parts)
        assert len(ranges) == parts
        assert [i for rows in ranges for i in range(n)[rows]] == list(range(n))


def test_quiet_progress_changes_nothing():
    items = iter(range(3))
    assert quiet(items, 3, "label") is items


# ---- what the programs send


def test_a_job_travels_without_what_can_be_computed_again():
    """What arrives is what was sent, bit for bit, in less than a tenth of the bytes of the pixel arrays."""
    detector = make_detector(size=(61, 50), n_panels=2, tilted=True)  # not a whole number of bytes of mask
    job = job_for(make_experiment(detector=detector), sampling=Sampling(pixel=2))
    bad = [(np.arange(array.size).reshape(array.shape) % 7 == 0).astype(np.uint8) for array in job.bad]
    sent = replace(job, bad=bad, sample=None, imageset=None)  # these are small beside real images
    packed = pickle.dumps(sent)
    arrived = pickle.loads(packed)
    arrays, others = pixel_arrays_of(sent), pixel_arrays_of(arrived)
    assert len(arrays) == len(others) > 10
    for array, other in zip(arrays, others):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)
    assert [p.reading for p in arrived.panels] == [p.reading for p in sent.panels]
    assert len(packed) < 0.1 * sum(array.nbytes for array in arrays)


def pixel_arrays_of(job) -> list:
    arrays = [*job.bad, *job.shells, *job.corrections, *(job.varying or [])]
    for panel in job.panels:
        arrays += [panel.directions, panel.distance, panel.cos_incidence]
    return arrays + [directions for _, panels in job.detector.sub_pixels for directions in panels]


class Spawned(Executor):
    """A new process that inherits nothing, as a worker on another machine."""

    workers = 1

    def map(self, function, shared, items):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(partial(function, shared), items)


def images_of(folder, executor):
    """Simulate four images; the loaded data."""
    structure = random_structure("P 21 21 21", (20.0, 22.0, 24.0, 90.0, 90.0, 90.0), "CNOCS" * 2)
    detector = DetectorParameters((60, 50), distance=40.0, pixel_size=0.8)
    sweeps = plan_sweeps(structure, detector, BeamParameters(), ScanParameters(width=2.0, n_images=4), seed=3)
    files = {name: str(folder / name) for name in ("prefix", "background", "experiments.expt", "reflections.refl")}
    outputs = Outputs(*files.values(), truth=str(folder / "truth.nxs"), ideal=str(folder / "ideal.nxs"))
    parameters = replace(SIMULATION, d_min=3.0, sub_steps=1, sub_pixels=1)
    result = simulate(structure, LLM, sweeps, parameters, outputs, PROVENANCE, executor)
    everything = parameters, outputs, PROVENANCE, result
    assert pickle.loads(pickle.dumps(everything)) == everything
    return load_input([outputs.experiments, outputs.reflections])


def test_workers_need_nothing_but_what_is_sent_to_them(tmp_path):
    """Simulation and integration in processes that inherit nothing give the numbers of this one, bit for bit."""
    data, rows = {}, {}
    parameters = replace(REDUCTION, d_min=3.0, images_per_block=2)
    for name, executor in (("here", SERIAL), ("there", Spawned())):
        (tmp_path / name).mkdir()
        data[name] = images_of(tmp_path / name, executor)
        path = tmp_path / name / "integrated.h5"
        experiments, reflections = data["here"].experiments, data["here"].reflections
        result = integrate(experiments, parameters, path, PROVENANCE, reflections, executor=executor)
        assert pickle.loads(pickle.dumps((parameters, result))) == (parameters, result)
        with ObservationFile(path) as file:
            rows[name] = file.read("index", "counts", "norm", "s", "xyz")
    for image in range(4):
        here, there = (read_image(data[name].experiments[0].imageset, image)[0] for name in data)
        np.testing.assert_array_equal(here, there)
    assert len(rows["here"]["counts"]) > 1000
    for name, column in rows["here"].items():
        np.testing.assert_array_equal(column, rows["there"][name])


def test_the_blas_has_one_thread_in_the_block():
    """In a process of its own: conftest lets it have one only."""
    script = """
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
from dials_diffuse.parallel import one_blas_thread
count = lambda: {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
before = count()
with one_blas_thread():
    inside = count()
assert (inside == {1} or not before) and count() == before, (before, inside, count())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
