"""How work is spread: over the processes of an Executor, or over threads. Results always come in the order of the work.

Here are the kinds of Executor that need nothing else; the one on other computers is :mod:`dials_diffuse.distributed`.

Work for an Executor is a function of a module, a large ``shared`` object and a small ``item`` for each call. All of
these, and the results, can be pickled, so that a caller need not know whether workers are forked or on other machines.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from threadpoolctl import threadpool_limits

from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError


class Executor(ABC):
    """Calls functions for many items.

    Attributes
    ----------
    workers : processes that work at the same time
    worker_memory : bytes that each of them may have for itself; None = they share those of this computer
    """

    workers: int
    worker_memory: float | None = None

    @abstractmethod
    def map(self, function: Callable, shared, items: Iterable) -> Iterator:
        """Yield ``function(shared, item)`` for each item, in order. At most two items per worker are in flight.

        Parameters
        ----------
        function : a function of a module
        shared : what all calls need; every worker receives it once
        items : taken one by one, as workers become free

        Raises
        ------
        DiffuseError
            If a worker is lost. What the function raises is raised here.
        """

    def kept(self, make: Callable, shared, items: Iterable) -> Kept:
        """Make ``make(shared, item)`` for each item, to be kept where they are made and called again and again.

        Parameters
        ----------
        make : a function of a module
        shared, items : as for :meth:`map`

        Raises
        ------
        DiffuseError
            As :meth:`map`, now or at a call.
        """
        return KeptHere([make(shared, item) for item in items])


class Kept(ABC):
    """Objects that an Executor keeps, one for each item."""

    @abstractmethod
    def call(self, function: Callable, arguments: Iterable) -> Iterator:
        """Yield ``function(object, argument)`` for each object, in order.

        Parameters
        ----------
        function : a function of a module
        arguments : one for each object
        """


@dataclass(frozen=True)
class KeptHere(Kept):
    """Objects of this process."""

    objects: list

    def call(self, function: Callable, arguments: Iterable) -> Iterator:
        for item, argument in zip(self.objects, arguments):
            yield function(item, argument)


class Serial(Executor):
    """Everything happens in this process."""

    workers = 1

    def map(self, function: Callable, shared, items: Iterable) -> Iterator:
        for item in items:
            yield function(shared, item)


@dataclass(frozen=True)
class Forked(Executor):
    """Processes forked for each call of :meth:`map`; they inherit ``shared``, whose arrays are not copied."""

    workers: int

    def map(self, function: Callable, shared, items: Iterable) -> Iterator:
        items = iter(items)
        first = list(islice(items, 2 * self.workers))
        if len(first) <= 1:
            yield from SERIAL.map(function, shared, first)
            return
        pool = ProcessPoolExecutor(
            min(self.workers, len(first)),
            mp_context=multiprocessing.get_context("fork"),
            initializer=_inherit,
            initargs=(os.getpid(), function, shared),
        )
        try:
            yield from in_flight(pool, _call, chain(first, items), 2 * self.workers)
        except BrokenProcessPool:
            raise DiffuseError(
                f"nproc={self.workers}: a worker process was killed, probably for lack of memory; give a smaller nproc"
            ) from None
        finally:  # Futures that are cancelled one by one can keep a pool of Python 3.11 waiting for ever (gh-94440)
            pool.shutdown(cancel_futures=True)


#: for work that is not worth a second process
SERIAL = Serial()


class WhenNeeded(Executor):
    """Another Executor, in a ``with`` block, that is started when it is first asked for something.

    start : makes what the other one lives in, a context manager that gives it
    """

    def __init__(self, start: Callable[[], AbstractContextManager[Executor]]):
        self._start, self._stack = start, ExitStack()
        self._started: Executor | None = None

    def __enter__(self) -> WhenNeeded:
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def _own(self) -> Executor:
        if self._started is None:
            self._started = self._stack.enter_context(self._start())
        return self._started

    @property
    def workers(self) -> int:  # type: ignore[override]  # known when it has started
        return self._own().workers

    @property
    def worker_memory(self) -> float | None:  # type: ignore[override]
        return self._own().worker_memory

    def map(self, function: Callable, shared, items: Iterable) -> Iterator:
        items = iter(items)
        first = list(islice(items, 1))
        if first:
            yield from self._own().map(function, shared, chain(first, items))

    def kept(self, make: Callable, shared, items: Iterable) -> Kept:
        return self._own().kept(make, shared, items)


def make_executor(nproc: int) -> Executor:
    """The executor for ``nproc`` processes on this machine; Serial on a system that cannot fork."""
    return Forked(nproc) if nproc > 1 and "fork" in multiprocessing.get_all_start_methods() else SERIAL


_INHERITED: tuple | None = None  # (function, shared), set in forked workers only


_LOOK = 0.5  # seconds between two looks of a worker at its parent


def _inherit(parent: int, function: Callable, shared) -> None:
    global _INHERITED
    _INHERITED = function, shared
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone. One that was killed cannot tell, and its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _call(item):
    function, shared = _INHERITED
    return function(shared, item)


def in_child(function: Callable, *arguments):
    """``function(*arguments)`` computed in another process, so that a library that crashes does not end this one.

    Where processes cannot be forked it is computed here.

    Raises
    ------
    ChildProcessError
        If the other process crashed. What the function raises is raised here.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return function(*arguments)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ChildProcessError("reading it crashes") from None


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """Yield ``function(item)`` for each item, in order; threads compute while the next items are made.

    Nothing happens before the results are asked for.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        yield from in_flight(pool, function, items, threads + 2)
    finally:
        pool.shutdown(cancel_futures=True)


class _Share(threading.local):
    """Cores that the work of this thread may use; None: all."""

    cores: int | None = None


_SHARE = _Share()


def cores() -> int:
    """Threads that work may be spread over: all of the job, or one in a worker that is one of many."""
    return _SHARE.cores or available_cores()


@contextmanager
def on_one_core() -> Iterator[None]:
    """In this block, and thread, :func:`cores` is 1."""
    before, _SHARE.cores = _SHARE.cores, 1
    try:
        yield
    finally:
        _SHARE.cores = before


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """In this block the BLAS computes in the thread that calls it.

    Where threads of our own share the work, those of the BLAS would find no core, and wait in loops: half as much CPU
    time again.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def in_flight(pool, function: Callable, items: Iterable, number: int) -> Iterator:
    """Results in order, with at most ``number`` items given to the pool at a time.

    pool : has ``submit(function, item)``, whose result has ``result()``
    """
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= number:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def row_ranges(n: int, parts: int) -> list:
    """``parts`` consecutive slices of about equal length that cover n rows."""
    limits = np.linspace(0, n, parts + 1).astype(int)
    return [slice(start, stop) for start, stop in zip(limits, limits[1:])]


#: ``progress(items, total, label)`` passes items through and shows how far they are
Progress = Callable[[Iterable, int, str], Iterable]


def quiet(items: Iterable, total: int, label: str) -> Iterable:
    """Progress that shows nothing."""
    return items
