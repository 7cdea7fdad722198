"""The Executor whose workers are dask's: on this computer, in the jobs of a batch system, or of a running scheduler.

dask decides which worker does what and repeats the work of lost workers. Here is what it is given and what is made of
its failures. Only the programs that are asked for dask import this module; it needs the extra ``[distributed]``.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import dask
from distributed import Client, KilledWorker, get_worker
from distributed import TimeoutError as TimedOut

from dials_diffuse import __version__
from dials_diffuse.clusters import DaskParameters, started
from dials_diffuse.compat import dials_version
from dials_diffuse.errors import DiffuseError
from dials_diffuse.parallel import Executor, Kept, in_flight, on_one_core

logger = logging.getLogger("dials.diffuse.distributed")

LOOK_AGAIN = 1.0  # seconds between two looks at workers that are late
SLOW = 3.0  # times the longest that an item took so far; one that takes longer is given to a second worker

SETTINGS = {
    "distributed.scheduler.allowed-failures": 3,  # workers that an item may lose before it is held guilty
    "distributed.admin.large-graph-warning-threshold": "1GiB",  # what all workers need is sent as part of a task
    "distributed.worker.memory.pause": False,  # workers with too little would wait for ever
}


@dataclass(frozen=True, eq=False)
class Dask(Executor):
    """Workers that a dask client reaches.

    An item whose worker dies is done again by another one, an item that takes much longer than all before is given to a
    second worker as well. Results are the same, because nothing depends on which worker did what.

    Attributes
    ----------
    client : its workers do one item at a time each
    parameters : for the texts of errors, and how long to wait
    """

    client: Client
    workers: int
    worker_memory: float | None = None
    parameters: DaskParameters = field(default_factory=DaskParameters)

    def map(self, function: Callable, shared, items: Iterable) -> Iterator:
        items = iter(items)
        first = list(islice(items, 1))
        if not first:
            return
        with self.failures_in_words():
            sender = _Sender(self, self._luggage(function, shared))
            yield from in_flight(sender, _work, chain(first, items), 2 * self.workers)

    def kept(self, make: Callable, shared, items: Iterable) -> KeptThere:
        with self.failures_in_words():
            luggage = self._luggage(make, shared)
            return KeptThere(self, [self.client.submit(_make, luggage, item, pure=False) for item in items])

    def _luggage(self, function: Callable, shared):
        luggage = pickle.dumps((function, shared), protocol=pickle.HIGHEST_PROTOCOL)
        logger.info("Sending %.1f MB to each worker", len(luggage) / 1e6)
        # A task and not scattered: dask can make it again after the last worker that had it is lost. Workers get it
        # from each other, once, with the first item that they do.
        return self.client.submit(_receive, uuid.uuid4().hex, luggage, pure=False)

    @contextmanager
    def failures_in_words(self) -> Iterator[None]:
        """In this block what happens to workers and scheduler is a DiffuseError."""
        place = self.parameters.place
        try:
            yield
        except KilledWorker:
            raise DiffuseError(
                f"{place}: the same work lost several workers, probably for lack of memory; give more dask.memory"
            ) from None
        except DiffuseError:
            raise
        except Exception as error:  # a client whose connection breaks raises several types, and some of its own
            if self.client.status == "running" and not isinstance(error, CancelledError):
                raise
            raise DiffuseError(f"{place}: the scheduler was lost ({' '.join(str(error).split())})") from None


@dataclass(frozen=True, eq=False)
class KeptThere(Kept):
    """Objects that are kept by workers, each by the one that made it; those of a lost worker are made again.

    objects : futures of _Object
    """

    executor: Dask
    objects: list

    def call(self, function: Callable, arguments: Iterable) -> Iterator:
        with self.executor.failures_in_words():
            slowest = _Sender(self.executor, None)
            sent = [_Sent(slowest, _call, item, (function, x)) for item, x in zip(self.objects, arguments)]
            for one in sent:
                yield one.result()


class _Sender:
    """What :func:`in_flight` sees of the workers."""

    def __init__(self, executor: Dask, luggage):
        self.executor = executor
        self.client = executor.client
        self.luggage = luggage
        self.longest = 0.0  # seconds that an item took from being sent to being done

    def submit(self, function: Callable, item) -> _Sent:
        return _Sent(self, function, self.luggage, item)

    def note(self, seconds: float) -> None:
        self.longest = max(self.longest, seconds)


class _Sent:
    """An item on its way."""

    def __init__(self, sender: _Sender, function: Callable, luggage, item):
        self._sender, self._function, self._luggage, self._item = sender, function, luggage, item
        self._since = time.monotonic()
        self._arrived = threading.Event()
        self._copies = [self._send()]

    def _send(self, workers=None):
        sender = self._sender
        future = sender.client.submit(self._function, self._luggage, self._item, pure=False, workers=workers)
        future.add_done_callback(self._arrive)
        return future

    def _arrive(self, future) -> None:
        self._sender.note(time.monotonic() - self._since)
        self._arrived.set()

    def result(self):
        """What the function gave, or DiffuseError when there is no worker for ``timeout`` seconds."""
        parameters = self._sender.executor.parameters
        alive = time.monotonic()
        while True:
            self._arrived.wait(LOOK_AGAIN)
            self._arrived.clear()
            done = next((copy for copy in self._copies if copy.done()), None)
            if done is not None:
                try:
                    return _accepted(done.result(timeout=parameters.timeout))
                except TimedOut:  # it was lost with its worker before it could be fetched
                    if done.status == "error":
                        raise
            now = time.monotonic()
            workers = self._sender.client.nthreads()
            alive = now if workers else alive
            if now - alive > parameters.timeout:
                raise DiffuseError(
                    f"{parameters.place}: all workers were lost, and no other came within dask.timeout="
                    f"{parameters.timeout:g} s; give more dask.memory or dask.walltime, or look at what their jobs said"
                )
            if len(self._copies) == 1 and now - self._since > max(parameters.patience, SLOW * self._sender.longest):
                self._send_to_another(workers)

    def _send_to_another(self, workers) -> None:
        key = self._copies[0].key
        slow = [worker for worker, keys in self._sender.client.processing().items() if key in keys]
        others = [worker for worker in workers if worker not in slow]
        if slow and others:
            logger.info("Worker %s is slow, its work is given to a second one", slow[0])
            self._copies.append(self._send(others))


def _address(client: Client) -> str:
    return client.scheduler.address if client.scheduler is not None else ""


def _accepted(result):
    if isinstance(result, _Refused):
        raise DiffuseError(result.text)
    return result


# ---- what happens on workers


@dataclass(frozen=True)
class _Refused:
    """In place of a result: the text of a DiffuseError."""

    text: str


def _receive(key: str, luggage: bytes) -> tuple:
    return key, luggage


_UNPACKED: dict[Any, tuple[Callable, Any]] = {}  # (function, shared) of the luggage that was used last
_ONE_AT_A_TIME = threading.Lock()  # what reads images is not made for threads


def _work(luggage: tuple, item):
    key, packed = luggage
    with _ONE_AT_A_TIME:
        if key not in _UNPACKED:
            _UNPACKED.clear()
            _UNPACKED[key] = pickle.loads(packed)
        return _result(*_UNPACKED[key], item)


def _result(function: Callable, first, second):
    """What the function makes of both, on one core, or _Refused."""
    try:
        with on_one_core():
            return function(first, second)
    except DiffuseError as error:  # not raised: the worker would print a traceback
        return _Refused(f"{error} (says worker {get_worker().address} on {socket.gethostname()})")


class _Object:
    """What a worker keeps. dask asks how large it is, before it would move it to another worker."""

    def __init__(self, value):
        self.value, self._size = value, len(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

    def __sizeof__(self) -> int:
        return self._size


def _make(luggage: tuple, item) -> _Object:
    return _Object(_work(luggage, item))


def _call(kept: _Object, task: tuple):
    if isinstance(kept.value, _Refused):
        return kept.value
    function, argument = task
    with _ONE_AT_A_TIME:
        return _result(function, kept.value, argument)


def _describe(dask_worker) -> tuple:
    """What must be the same everywhere; memory in bytes or None, threads."""
    versions = f"dials_diffuse {__version__}, {dials_version()}"
    return versions, dask_worker.memory_manager.memory_limit, dask_worker.state.nthreads


# ---- clients


@contextmanager
def dask_executor(parameters: DaskParameters) -> Iterator[Dask]:
    """A :class:`Dask` executor for the length of the block; what was started for it ends with it.

    Raises
    ------
    DiffuseError
        If the scheduler cannot be reached, no worker comes, or workers have another dials_diffuse or DIALS.
    """
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        where = parameters.scheduler
        if where is None:
            where = stack.enter_context(started(parameters))
        client = stack.enter_context(_client(where, parameters))
        logger.info("dask: scheduler %s, dashboard %s", _address(client), client.dashboard_link)
        _wait_for_worker(client, parameters)
        limits = _check_workers(client, parameters)
        running = len(client.nthreads())
        workers = running if parameters.scheduler else max(running, parameters.workers or 0)
        memory = min((limit for limit in limits if limit), default=None)
        size = f"{memory / 1e9:.2f} GB" if memory else "any memory"
        logger.info("%d of %d workers are there, %s each", running, workers, size)
        yield Dask(client, workers, memory, parameters)


def _client(where, parameters: DaskParameters) -> Client:
    try:
        return Client(where, timeout=parameters.timeout, set_as_default=False)
    except (OSError, TimedOut, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DiffuseError(
            f"{parameters.place}: no dask scheduler answers there ({reason}); start one with 'dask scheduler', or "
            f"leave dask.scheduler out"
        ) from None


def _wait_for_worker(client: Client, parameters: DaskParameters) -> None:
    try:
        client.wait_for_workers(1, timeout=parameters.timeout)
    except TimedOut:
        raise DiffuseError(
            f"{parameters.place}: no worker came within dask.timeout={parameters.timeout:g} s; are their jobs still "
            f"queueing? give more time, or look at the output of the jobs"
        ) from None


def _check_workers(client: Client, parameters: DaskParameters) -> list:
    """Memory of each worker; DiffuseError if one of them cannot do what this program asks."""
    mine = f"dials_diffuse {__version__}, {dials_version()}"
    memory = []
    for worker, said in client.run(_describe, on_error="return").items():
        if isinstance(said, Exception):
            reason = " ".join(str(said).split())
            raise DiffuseError(
                f"{parameters.place}: worker {worker} cannot use dials_diffuse ({reason}); install it there, in the "
                f"environment of the workers"
            )
        versions, limit, threads = said
        if versions != mine:
            raise DiffuseError(f"{parameters.place}: worker {worker} has {versions}, here is {mine}; install the same")
        if threads > 1:
            logger.info("Worker %s has %d threads, one of them will work: start it with --nthreads 1", worker, threads)
        memory.append(limit)
    return memory
