"""Signals that wait: some blocks must not be interrupted in the middle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Waiting:
    """What a signal would have raised in a block, None if there was none."""

    error: BaseException | None = None


class _Held(threading.local):
    """Where errors wait in this thread; signals arrive in the main thread only."""

    place = None


_held = _Held()


def interrupt(error: BaseException) -> None:
    """Raise ``error`` from a signal handler, or keep it in what :func:`hold` was given."""
    if _held.place is None:
        raise error
    _held.place.error = error


@contextlib.contextmanager
def hold(place) -> Iterator[None]:
    """Signals set the attribute ``error`` of ``place`` in the block; None: they are not held in it."""
    previous = _held.place
    try:
        _held.place = place
        yield
    finally:
        _held.place = previous


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Signals count at the end of the block."""
    waiting = Waiting()
    try:
        with hold(waiting):
            yield
    finally:
        if waiting.error is not None:
            interrupt(waiting.error)
