"""Outputs of one run appear together: all are written under hidden names first, and renamed when the last is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.interrupts import signals_wait
from dials_diffuse.files.unfinished import is_unfinished


class Together:
    """Files that wait until all are written; obtained from :func:`together`.

    Attributes
    ----------
    written : paths that have appeared in the block, also those of blocks within
    """

    def __init__(self):
        self.written: list = []
        self._waiting: dict = {}
        self._process = os.getpid()

    def add(self, temporary: Path, path: Path) -> None:
        """``temporary`` shall become ``path``."""
        earlier, _ = self._waiting.pop(_real(path), (None, None))
        if earlier is not None:
            earlier.unlink(missing_ok=True)
        self._waiting[_real(path)] = temporary, path

    def place_of(self, path: Path) -> Path:
        """Where the content of a file is now."""
        return self._waiting.get(_real(path), (path, path))[0]

    def publish(self) -> None:
        """Give all files their names; signals wait meanwhile.

        Raises
        ------
        DiffuseError
            If that fails; it says which files have appeared.
        """
        with signals_wait():
            for key, (temporary, path) in list(self._waiting.items()):
                try:
                    os.replace(temporary, path)
                except OSError as error:
                    done = ", ".join(map(str, self.written)) or "none"
                    raise DiffuseError(
                        f"{path}: cannot be replaced ({error.strerror}); outputs of this run that were written: {done}"
                    ) from None
                del self._waiting[key]
                self.written.append(path)

    def discard(self) -> None:
        """Remove what still waits."""
        for temporary, _ in self._waiting.values():
            temporary.unlink(missing_ok=True)
        self._waiting.clear()

    def is_mine(self) -> bool:
        """Is this the process that made it? Forked workers finish what they write themselves."""
        return os.getpid() == self._process


def _real(path) -> str:
    return os.path.realpath(path)


_current: ContextVar[Together | None] = ContextVar("together", default=None)


@contextlib.contextmanager
def together() -> Iterator[Together]:
    """Files that are written in the block appear when it ends well, and none of them if it does not.

    A block within another one is on its own.
    """
    outer, own = _current.get(), Together()
    token = _current.set(own)
    try:
        yield own
        own.publish()
    finally:
        with signals_wait():
            own.discard()
            _current.reset(token)
            if outer is not None:
                outer.written += own.written


def waiting_place(path) -> Together | None:
    """The block that a file written under ``path`` has to wait for; None: it appears at once."""
    block = _current.get()
    return block if block is not None and block.is_mine() and not is_unfinished(path) else None


def note_written(path) -> None:
    """Tell the block that a file has appeared already."""
    block = _current.get()
    if block is not None:
        block.written.append(Path(path))


def where_is(path) -> Path:
    """Where to read an output of this run: under its name, or where it waits for the others."""
    block = _current.get()
    return Path(path) if block is None else block.place_of(Path(path))
