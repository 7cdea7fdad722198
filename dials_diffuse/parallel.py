"""Work in order by several threads, or by forked processes that inherit large objects instead of being sent copies."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from dials_diffuse.errors import DiffuseError

_INHERITED: tuple | None = None  # (function, shared), set while workers are forked


def _call(item):
    function, shared = _INHERITED
    return function(shared, item)


def forked(function: Callable, shared, items: Iterable, nproc: int) -> Iterator:
    """Yield ``function(shared, item)`` for each item, in order; at most two items per process are in flight.

    Parameters
    ----------
    function : a function of a module, called in the workers
    shared : anything; inherited, so it need not be picklable and its arrays are not copied. Results are pickled.
    nproc : worker processes; 1, or a system that cannot fork: everything happens in this process

    Raises
    ------
    DiffuseError
        If a worker is killed.
    """
    global _INHERITED
    items = list(items)
    if nproc == 1 or len(items) <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        for item in items:
            yield function(shared, item)
        return
    previous, _INHERITED = _INHERITED, (function, shared)
    try:
        with ProcessPoolExecutor(min(nproc, len(items)), mp_context=multiprocessing.get_context("fork")) as pool:
            waiting = deque()
            try:
                for item in items:
                    waiting.append(pool.submit(_call, item))
                    if len(waiting) >= 2 * nproc:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool:
                raise DiffuseError(
                    f"nproc={nproc}: a worker process was killed, probably for lack of memory; give a smaller nproc"
                ) from None
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        _INHERITED = previous


def in_threads(function: Callable, items: Iterable, threads: int) -> Iterator:
    """Yield ``function(item)`` for each item, in order; threads compute while the next items are made."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
