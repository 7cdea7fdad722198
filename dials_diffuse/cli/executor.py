"""Where the work of a program is done: the phil text that programs share, and the executor that it asks for."""

from __future__ import annotations

import ast
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from dials_diffuse.compat import available_cores
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.parallel import Executor, WhenNeeded, make_executor

#: of programs whose work goes to threads of this computer, or to dask
DASK_PHIL = """
executor = *local dask
  .type = choice
  .help = "Who does the work that takes long. local: this computer; dask: workers of dask, here or elsewhere."
dask {
  scheduler = None
    .type = str
    .help = "Address of a dask scheduler that runs already, tcp://host:port. Default: workers are started as"
            "dask.cluster says."
  cluster = *local slurm pbs sge
    .type = choice
    .help = "Where workers are started: as processes of this computer, or as jobs of a batch system."
  workers = None
    .type = int(value_min=1)
    .help = "Worker processes. Default: the cores that this job may use (local only)."
  memory = None
    .type = str
    .help = "Memory of each worker, as in 8GB. Default: an equal share of this computer's, or 8GB in batch jobs."
  cores = None
    .type = int(value_min=1)
    .help = "Workers in each batch job, with a core each. Default: 1."
  queue = None
    .type = str
    .help = "Queue or partition of the batch jobs."
  walltime = None
    .type = str
    .help = "Time limit of the batch jobs, as the batch system writes it."
  options = None
    .type = str
    .multiple = True
    .help = "name=value, passed to the class of dask-jobqueue: interface=ib0, account=me,"
            "job_extra_directives=['--qos=long']. May be given several times."
  timeout = 300
    .type = float(value_min=1)
    .help = "Seconds to wait for the scheduler and for the first worker, which may have to queue."
}
"""

#: of programs that reduce images, in processes
EXECUTOR_PHIL = (
    """
nproc = Auto
  .type = int(value_min=1)
  .help = "Processes on this computer. Auto: the cores that this job may use."
"""
    + DASK_PHIL
)


def executor_from_phil(params, nproc: int = 1) -> AbstractContextManager[Executor]:
    """The executor that the parameters of EXECUTOR_PHIL ask for, to be used in a ``with`` block.

    Workers of dask are started when the first work comes.

    nproc : of this computer, if it is there that work is done

    Raises
    ------
    DiffuseError
        If dask is not installed, or a parameter of it is wrong; the first work raises what :func:`dask_executor` does.
    """
    if params.executor == "local":
        return nullcontext(make_executor(nproc))
    try:
        from dials_diffuse.clusters import DaskParameters
        from dials_diffuse.distributed import dask_executor
    except ModuleNotFoundError as error:
        raise DiffuseError(
            f"executor=dask: {error.name} is not installed; pip install dask distributed, or give executor=local"
        ) from None
    dask = params.dask
    parameters = DaskParameters(
        scheduler=dask.scheduler,
        cluster=dask.cluster,
        workers=dask.workers,
        memory=dask.memory,
        cores=dask.cores,
        queue=dask.queue,
        walltime=dask.walltime,
        options=tuple(parse_option(text) for text in dask.options or [] if text),
        timeout=dask.timeout,
    )
    return WhenNeeded(partial(dask_executor, parameters))


def processes(params) -> int:
    """What ``nproc`` of EXECUTOR_PHIL says."""
    return params.nproc if isinstance(params.nproc, int) else available_cores()


def parse_option(text: str) -> tuple:
    """(name, value) of ``name=value``; the value is a Python literal, or else text.

    Raises
    ------
    CommandLineError
        If there is no name.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name.isidentifier():
        raise CommandLineError(f"dask.options={text}: write name=value, e.g. dask.options=interface=ib0")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
