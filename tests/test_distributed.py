"""Work on dask workers: the results are those of this process, whatever happens to workers; errors say what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.checkout import ROOT
from helpers.datasets import make_sweep, reflections_of, write_experiments, write_table
from helpers.programs import fails
from helpers.workers import broken, killed, scaled, stuck_at_first

from dials_diffuse.cli import fit, model, process
from dials_diffuse.cli import integrate as program
from dials_diffuse.cli.executor import executor_from_phil, parse_option, processes
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.experiment.load import load_input
from dials_diffuse.parallel import SERIAL, Forked
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import ReductionParameters

pytest.importorskip("distributed", reason="WORK ON A CLUSTER NOT TESTED: install dask and distributed (extra [test])")

from distributed import Client, LocalCluster

from dials_diffuse import distributed as module
from dials_diffuse.clusters import DaskParameters, batch_jobs
from dials_diffuse.distributed import Dask, dask_executor

N_IMAGES = 40


@pytest.fixture(scope="module")
def executor():
    with dask_executor(DaskParameters(workers=4, memory="1GB", timeout=60)) as executor:
        assert executor.workers == 4 and executor.worker_memory == 1e9
        yield executor


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of a sweep of N_IMAGES small images."""
    folder = tmp_path_factory.mktemp("data")
    sweep = make_sweep(folder, "a", seed=1, n_images=N_IMAGES)
    write_experiments(folder / "a.expt", sweep)
    write_table(folder / "a.refl", [reflections_of(sweep)], {0: "a"})
    return [str(folder / "a.expt"), str(folder / "a.refl")]


def pids(executor) -> dict:
    """{address: process} of the workers."""
    return executor.client.run(os.getpid)


def assert_same_observations(path, expected) -> None:
    """Bit for bit, but for the record of how they were made."""
    with h5py.File(path) as file, h5py.File(expected) as other:
        names = []
        other.visititems(lambda name, thing: names.append(name) if isinstance(thing, h5py.Dataset) else None)
        assert len(names) > 10 and len(other["observations/counts"]) > 1000
        for name in names:
            if not name.startswith("process"):
                assert file[name].dtype == other[name].dtype
                np.testing.assert_array_equal(file[name][()], other[name][()], err_msg=name)


# ---- results


@pytest.mark.parametrize("n", [0, 1, 30])
def test_results_come_in_order(executor, n):
    assert list(executor.map(scaled, 3, iter(range(n)))) == [3 * i for i in range(n)]


def test_items_are_taken_as_they_are_needed(executor):
    taken = []
    results = executor.map(scaled, 2, (taken.append(i) or i for i in range(100)))
    assert taken == []
    for done in range(10):
        assert next(results) == 2 * done
        assert len(taken) <= done + 2 * executor.workers + 1
    results.close()
    assert len(taken) < 20


def test_two_maps_at_the_same_time(executor):
    pairs = zip(executor.map(scaled, 2, range(10)), executor.map(scaled, 5, range(10)))
    assert list(pairs) == [(2 * i, 5 * i) for i in range(10)]


def test_observations_are_those_of_one_process(executor, data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    program.run([*data, "nproc=1", "output.observations=here.h5"])
    address = executor.client.scheduler.address
    with caplog.at_level("INFO", logger="dials"):
        program.run([*data, "executor=dask", f"dask.scheduler={address}", "output.observations=there.h5"])
    assert_same_observations("there.h5", "here.h5")
    for words in (f"scheduler {address}, dashboard http://127.0.0.1:", "4 of 4 workers are there, 1.00 GB each"):
        assert words in caplog.text
    assert "Integrating experiment 0: 100 %" in caplog.text


def test_a_worker_that_is_killed_in_mid_run(executor, data, tmp_path):
    loaded = load_input(data)
    parameters = ReductionParameters(images_per_block=1)
    dead = []

    def kill_one(items, total, label):
        """Progress that kills a worker when the first of many blocks has come."""
        for item in items:
            if label.startswith("Integrating") and not dead:
                assert total == N_IMAGES
                dead.append(next(iter(pids(executor).values())))
                os.kill(dead[0], signal.SIGKILL)
            yield item

    for name, where, progress in (("here", SERIAL, lambda items, *_: items), ("there", executor, kill_one)):
        path = tmp_path / f"{name}.h5"
        experiments, reflections = loaded.experiments, loaded.reflections
        integrate(experiments, parameters, path, PROVENANCE, reflections, executor=where, progress=progress)
    assert_same_observations(tmp_path / "there.h5", tmp_path / "here.h5")
    assert len(dead) == 1 and dead[0] not in pids(executor).values()


def test_the_work_of_a_killed_worker_is_done_again(executor, tmp_path):
    results = executor.map(stuck_at_first, str(tmp_path), range(6))
    assert [next(results)[0] for _ in range(2)] == [0, 1]
    first = wait_for(tmp_path / "stuck")
    os.kill(int(first), signal.SIGKILL)
    item, second = next(results)
    assert item == 2 and second != int(first)
    assert [item for item, _ in results] == [3, 4, 5]


def test_a_slow_worker_gets_company(executor, tmp_path):
    impatient = replace(executor, parameters=replace(executor.parameters, patience=0.1))
    list(impatient.map(scaled, 2, range(8)))
    results = list(impatient.map(stuck_at_first, str(tmp_path), range(6)))
    slow = int((tmp_path / "stuck").read_text())
    (tmp_path / "release").touch()
    assert [item for item, _ in results] == list(range(6))
    assert results[2][1] != slow and slow in pids(executor).values()


def wait_for(path: Path) -> str:
    """Content of a file that another process writes."""
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.05)
    return path.read_text()


# ---- errors


def test_errors_are_raised_where_the_results_are_wanted(executor, capfd):
    results = executor.map(broken, None, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DiffuseError, match=r"item 3: bad \(says worker tcp://127.0.0.1:\d+ on \S+\)"):
        next(results)
    assert "Traceback" not in capfd.readouterr().err  # that of workers, too


def test_work_that_kills_workers(executor, monkeypatch):
    monkeypatch.setattr(executor.client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(DiffuseError, match=r"dask.cluster=local: the same work lost several workers.*dask.memory"):
        list(executor.map(killed, None, range(1)))


def test_images_that_workers_cannot_read(executor, data, tmp_path, monkeypatch, capsys):
    """They see a broken one; the error names the file and the worker."""
    folder = Path(shutil.copytree(Path(data[0]).parent, tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    text = (folder / "a.expt").read_text().replace(str(Path(data[0]).parent), str(folder))
    (folder / "a.expt").write_text(text)
    broken_image = folder / "a_00002.cbf"
    broken_image.write_bytes(broken_image.read_bytes()[:3000])
    options = ["executor=dask", f"dask.scheduler={executor.client.scheduler.address}", "mask.persistent=False"]
    files = [str(folder / "a.expt"), str(folder / "a.refl"), "corrections.flux=False"]
    fails(program.run, [*files, *options], capsys, words=["a_00002.cbf", "worker tcp://127.0.0.1"])


@contextmanager
def scheduler(n_workers: int):
    """A scheduler and workers in threads of this process."""
    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(n_workers=n_workers, protocol="tcp://", memory_limit=None, **options) as cluster:
        yield cluster


def test_no_worker_comes(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with scheduler(0) as cluster:
        where = f"dask.scheduler={cluster.scheduler_address}"
        words = [where, "no worker came within dask.timeout=1 s"]
        fails(program.run, [*data, "executor=dask", where, "dask.timeout=1"], capsys, words=words)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "tcp://no.such.host.invalid:8786"])
def test_no_scheduler_answers(address, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"dask.scheduler={address}", "no dask scheduler answers there"]
    start = time.monotonic()
    fails(program.run, [*data, "executor=dask", f"dask.scheduler={address}", "dask.timeout=1"], capsys, words=words)
    assert time.monotonic() - start < 20


@contextmanager
def worker_process(address: str, *options: str):
    """A worker that nobody starts again."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    worker = subprocess.Popen(
        [*command, "--no-dashboard", *options], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def test_all_workers_are_lost():
    with scheduler(0) as cluster, worker_process(cluster.scheduler_address) as worker, Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        results = Dask(client, 1, parameters=DaskParameters(timeout=1)).map(scaled, 2, iter(range(100)))
        assert next(results) == 0
        worker.kill()
        with pytest.raises(DiffuseError, match=r"all workers were lost, and no other came within dask.timeout=1 s"):
            list(results)


def test_the_scheduler_is_lost():
    with scheduler(1) as cluster, Client(cluster, set_as_default=False) as client:
        results = Dask(client, 1).map(scaled, 2, iter(range(100)))
        assert next(results) == 0
        cluster.close()
        with pytest.raises(DiffuseError, match="the scheduler was lost"):
            list(results)


def enter(parameters: DaskParameters) -> None:
    with dask_executor(parameters):
        pass


def test_workers_of_another_version(executor, monkeypatch):
    monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(DiffuseError, match=r"worker tcp://\S+ has dials_diffuse \S+ .*, here is dials_diffuse 9\.9"):
        enter(DaskParameters(scheduler=executor.client.scheduler.address))


def test_workers_without_the_package(tmp_path):
    (tmp_path / "hide.py").write_text("import sys\nsys.modules['dials_diffuse'] = None\n")
    refused = pytest.raises(DiffuseError, match=r"worker tcp://\S+ cannot use dials_diffuse")
    with (
        scheduler(0) as cluster,
        worker_process(cluster.scheduler_address, "--preload", str(tmp_path / "hide.py")),
        refused,
    ):
        enter(DaskParameters(scheduler=cluster.scheduler_address, timeout=60))


# ---- parameters


def params(*words: str):
    from iotbx.phil import parse

    return program.phil_scope.fetch(sources=[parse(word) for word in words]).extract()


def test_phil_becomes_parameters(monkeypatch):
    asked = []

    @contextmanager
    def pretended(parameters):
        asked.append(parameters)
        yield SERIAL

    monkeypatch.setattr(module, "dask_executor", pretended)
    asked_for = [
        params("executor=dask"),
        params(
            "executor=dask",
            "dask.cluster=pbs",
            "dask.workers=8",
            "dask.cores=4",
            "dask.memory=3GB",
            "dask.queue=long",
            "dask.walltime=01:00:00",
            "dask.timeout=20",
            "dask.options=interface=ib0",
            "dask.options=job_extra_directives=['--qos=a=b']",
        ),
    ]
    for asked_of in asked_for:
        before = len(asked)
        with executor_from_phil(asked_of) as executor:
            assert len(asked) == before and list(executor.map(scaled, 2, [])) == []
            assert len(asked) == before  # no work, no workers
            assert list(executor.map(scaled, 2, [1, 2])) == [2, 4] and executor.workers == 1
        assert len(asked) == before + 1
    options = (("interface", "ib0"), ("job_extra_directives", ["--qos=a=b"]))
    expected = DaskParameters(None, "pbs", 8, "3GB", 4, "long", "01:00:00", options, 20)
    assert asked == [DaskParameters(), expected]
    assert [processes(params(f"nproc={n}")) for n in (3, 1)] == [3, 1]
    with executor_from_phil(params(), 3) as local, executor_from_phil(params()) as serial:
        assert (local, serial) == (Forked(3), SERIAL)


def test_process_has_them_once():
    names = [
        d.path for d in process.phil_scope.all_definitions() if d.path.endswith(("executor", "dask.scheduler", "nproc"))
    ]
    assert names == ["nproc", "executor", "dask.scheduler"]
    for other in (model, fit):
        names = [d.path for d in other.phil_scope.all_definitions()]
        assert {"executor", "dask.scheduler"} <= set(names) and "nproc" not in names


@pytest.mark.parametrize("text", ["ib0", "=3", "a b=3"])
def test_options_need_a_name(text):
    with pytest.raises(CommandLineError, match=r"dask\.options="):
        parse_option(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"memory": "much"}, r"dask\.memory=much"),
        ({"memory": "0GB"}, r"dask\.memory"),
        ({"cluster": "moab"}, r"dask\.cluster=moab.*slurm"),
        ({"cluster": "slurm"}, r"dask\.cluster=slurm.*dask\.workers"),
        ({"workers": 0}, r"dask\.workers=0"),
        ({"timeout": 0}, r"dask\.timeout=0"),
    ],
)
def test_parameters_are_checked(changes, text):
    with pytest.raises(DiffuseError, match=text):
        DaskParameters(**changes)


def test_dask_is_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "dials_diffuse.distributed")
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(DiffuseError, match=r"executor=dask: dask.* is not installed; pip install"):
        executor_from_phil(params("executor=dask"))


def test_dask_is_imported_only_when_asked_for():
    code = "import sys, dials_diffuse.cli.executor; sys.exit('dask' in sys.modules or 'distributed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- batch systems


@pytest.mark.parametrize(
    ("cluster", "command", "lines"),
    [
        (
            "slurm",
            "sbatch",
            ["#SBATCH -p long", "#SBATCH -t 02:00:00", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=12G"],
        ),
        ("pbs", "qsub", ["#PBS -q long", "#PBS -l walltime=02:00:00", "ncpus=4:mem=12GB"]),
        ("sge", "qsub", ["#$ -q long", "#$ -l h_rt=02:00:00"]),
    ],
)
@pytest.mark.filterwarnings(
    r"ignore:.*<function Cluster\.__del__:pytest.PytestUnraisableExceptionWarning"
)  # if refused
def test_what_the_batch_system_is_asked_for(cluster, command, lines, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="BATCH SYSTEMS NOT TESTED: install dask-jobqueue (extra [test])")
    parameters = DaskParameters(
        cluster=cluster,
        workers=8,
        memory="3GiB",
        cores=4,
        queue="long",
        walltime="02:00:00",
        options=(("interface", "lo"),),
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiffuseError, match=f"no {command} on this computer"):
        batch_jobs(parameters)
    (tmp_path / command).write_text("#!/bin/sh\n")
    (tmp_path / command).chmod(0o755)
    with batch_jobs(parameters) as jobs:
        script = jobs.job_script()
    for line in [
        *lines,
        "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
        "--nworkers 4",
        "--nthreads 1",
        "--memory-limit 3.00GiB",
        sys.executable,
    ]:
        assert line in script
    with pytest.raises(DiffuseError, match=r"refuses dask\.options .*no_such"):
        batch_jobs(replace(parameters, options=(("no_such", 1),)))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of this machine alone."""
    pytest.importorskip("dask_jobqueue", reason="SLURM NOT TESTED: install dask-jobqueue (extra [test])")
    needed = ("slurmctld", "slurmd", "munged", "sbatch")
    missing = [name for name in needed if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        pytest.skip(f"SLURM NOT TESTED: no {', '.join(missing)} (Debian's packages slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("SLURM NOT TESTED: only root can start one")
    script, folder = str(ROOT / "tests" / "one_machine_slurm.sh"), str(tmp_path / "slurm")
    started = subprocess.run([script, "start", folder], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    try:
        monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        yield SimpleNamespace(folder=folder)
    finally:
        subprocess.run([script, "stop", folder], check=True)


def test_slurm(slurm, data, tmp_path, monkeypatch, capsys):
    """Two jobs of a real SLURM give the observations of this process, and none is left; it may also refuse."""
    monkeypatch.chdir(tmp_path)
    program.run([*data, "nproc=1", "output.observations=here.h5"])
    cluster = ["executor=dask", "dask.cluster=slurm", "dask.workers=2", "dask.memory=2GB", "dask.options=interface=lo"]
    program.run([*data, *cluster, "dask.timeout=120", "output.observations=there.h5"])
    assert_same_observations("there.h5", "here.h5")
    assert len(list(tmp_path.glob("slurm-*.out"))) == 2
    for _ in range(50):
        queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
        if not queue.strip():
            break
        time.sleep(0.2)
    assert not queue.strip()

    refused = ["dask.queue=nowhere", "output.observations=refused.h5", "output.json=refused.json"]
    words = ["dask.cluster=slurm", "refuses the job", "Invalid partition"]
    fails(program.run, [*data, *cluster, *refused], capsys, words=words)
