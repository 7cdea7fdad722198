"""Where dask workers are started: as processes of this computer, or as jobs of a batch system by dask-jobqueue.

The executor that uses them is in :mod:`dials_diffuse.distributed`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import dask
from dask.utils import parse_bytes
from distributed import LocalCluster, Status

from dials_diffuse.checks import positive
from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError
from dials_diffuse.memory import total_memory

#: batch systems by name: the class of dask-jobqueue that knows them
BATCH_SYSTEMS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}

#: memory of a worker in a batch job where neither a parameter nor a file of dask-jobqueue says it
JOB_MEMORY = "8GB"

#: Jobs do not see the settings of this program. A worker that is paused for lack of memory would wait for ever.
NEVER_PAUSE = "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False"


@dataclass(frozen=True)
class DaskParameters:
    """Where the workers are and what each may have.

    Attributes
    ----------
    scheduler : address of a scheduler that runs already; None = workers are started with ``cluster``
    cluster : ``local``, or a key of BATCH_SYSTEMS
    workers : processes, one item at a time each; None = the cores of this computer (local only)
    memory : of each worker, for example ``8GB``; None = a fair share (local), or what dask-jobqueue is configured for
    cores, queue, walltime : of the jobs of a batch system; a job has one worker for each core
    options : (name, value) pairs, passed to the class of dask-jobqueue
    timeout : seconds to wait for the scheduler, for the first worker, and for another one after the last is lost
    patience : seconds after which a slow worker gets company, see :data:`SLOW`
    """

    scheduler: str | None = None
    cluster: str = "local"
    workers: int | None = None
    memory: str | None = None
    cores: int | None = None
    queue: str | None = None
    walltime: str | None = None
    options: tuple = ()
    timeout: float = 300.0
    patience: float = 60.0

    def __post_init__(self):
        for name in ("timeout", "patience", "workers", "cores"):
            if getattr(self, name) is not None:
                positive(f"dask.{name}", getattr(self, name))
        if self.cluster != "local" and self.cluster not in BATCH_SYSTEMS:
            raise DiffuseError(f"dask.cluster={self.cluster}: give one of local, {', '.join(BATCH_SYSTEMS)}")
        if self.memory is not None:
            try:
                positive("dask.memory", parse_bytes(self.memory))
            except ValueError:
                raise DiffuseError(f"dask.memory={self.memory}: not a size; write for example 8GB") from None
        if self.scheduler is None and self.cluster != "local" and self.workers is None:
            raise DiffuseError(f"dask.cluster={self.cluster}: how many workers? give dask.workers")

    @property
    def place(self) -> str:
        """The parameter that says where the workers are."""
        return f"dask.scheduler={self.scheduler}" if self.scheduler else f"dask.cluster={self.cluster}"


def started(parameters: DaskParameters) -> AbstractContextManager:
    """A dask cluster with the workers that the parameters ask for, to be used in a ``with`` block."""
    return _local_cluster(parameters) if parameters.cluster == "local" else _batch_cluster(parameters)


def _local_cluster(parameters: DaskParameters) -> LocalCluster:
    workers = parameters.workers or available_cores()
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=parameters.memory or int(total_memory() / workers),
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    )


@contextmanager
def _batch_cluster(parameters: DaskParameters) -> Iterator:
    """Jobs that have been submitted, for the length of the block."""
    cluster = batch_jobs(parameters)
    with _unheard("tornado.application", "asyncio"):  # where a refused submission is told as well, with tracebacks
        try:
            cluster.scale(parameters.workers)
            try:
                cluster.sync(_submitted, cluster)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise DiffuseError(f"{parameters.place}: the batch system refuses the job ({reason})") from None
            yield cluster
        finally:
            cluster.close()
            gc.collect()  # what asyncio has to say of them, it says now


async def _submitted(cluster) -> None:
    """Wait until all jobs are submitted; RuntimeError if one is refused."""
    await cluster
    jobs = list(cluster.workers.values())
    try:
        for job in jobs:
            await job
    except RuntimeError:
        for job in jobs:  # as they are, the cluster could not be closed
            job.status = Status.failed if job.status == Status.created else job.status
        raise


@contextmanager
def _unheard(*names: str) -> Iterator[None]:
    """Loggers that say nothing for the length of the block."""
    loggers = [logging.getLogger(name) for name in names]
    before = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for log, level in zip(loggers, before):
            log.setLevel(level)


def batch_jobs(parameters: DaskParameters):
    """A cluster of dask-jobqueue without any job so far; what the parameters leave open is as in its own files.

    Raises
    ------
    DiffuseError
        If dask-jobqueue or the batch system is not installed, or ``options`` are not what dask-jobqueue knows.
    """
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError as error:
        raise DiffuseError(f"{parameters.place}: {error.name} is not installed; pip install dask-jobqueue") from None
    kind = getattr(jobqueue, BATCH_SYSTEMS[parameters.cluster])
    submit = kind.job_cls.submit_command
    if shutil.which(submit) is None:
        raise DiffuseError(f"{parameters.place}: no {submit} on this computer; run where jobs can be submitted")
    section = f"jobqueue.{parameters.cluster}"
    cores = parameters.cores or dask.config.get(f"{section}.cores", None) or 1
    memory = dask.config.get(f"{section}.memory", None)
    if memory is None or parameters.memory:
        memory = f"{cores * parse_bytes(parameters.memory or JOB_MEMORY)}B"
    given = {"queue": parameters.queue, "walltime": parameters.walltime}
    options = {
        "scheduler_options": {"dashboard_address": ":0"},
        "death_timeout": parameters.timeout,
        "job_script_prologue": [NEVER_PAUSE],
        **{name: value for name, value in given.items() if value is not None},
        **dict(parameters.options),
    }
    try:
        return kind(cores=cores, processes=cores, memory=memory, **options)
    except (TypeError, ValueError) as error:
        reason = str(error).split(". ")[0]
        raise DiffuseError(f"{parameters.place}: dask-jobqueue refuses dask.options ({reason})") from None
