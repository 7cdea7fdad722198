"""Files that a program reads are not written over by it, however they are named."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from dials_diffuse.errors import DiffuseError

#: what identifies a file -> the name by which it is read; None outside of programs, where scripts do as they like
_read: ContextVar[dict | None] = ContextVar("protected", default=None)


@contextlib.contextmanager
def protecting() -> Iterator[None]:
    """In this block files given to :func:`protect` cannot be outputs."""
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def protect(paths: Iterable) -> None:
    """These files are read: nothing may be written in their place. Names without a file are ignored."""
    known = _read.get()
    if known is None:
        return
    for path in paths:
        identity = _identity(path)
        if identity is not None:
            known.setdefault(identity, os.fspath(path))


def refuse_protected(path, parameter: str) -> None:
    """Raise DiffuseError if a file is one that is read, by its own name, through a link or as a hard link."""
    known = _read.get()
    read = known.get(_identity(path)) if known else None
    if read is not None:
        raise DiffuseError(f"{parameter}={path}: the same file as the input {read}; change {parameter}")


def _identity(path) -> tuple | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
