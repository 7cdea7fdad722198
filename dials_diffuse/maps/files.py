"""Outputs are written whole or not at all; who wrote what, with which parameters, travels in every file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dials_diffuse import __version__
from dials_diffuse.errors import DiffuseError


@dataclass(frozen=True)
class Provenance:
    """Where an output comes from: program, versions, full phil text, input files, experiment identifiers."""

    program: str
    dials_version: str
    phil: str
    inputs: tuple = ()
    identifiers: tuple = ()


def check_writable(path, parameter: str = "output.*") -> None:
    """Can a file of this name be written, or replaced? Nothing is left behind by asking.

    parameter : name of the parameter that says where, for the message

    Raises
    ------
    DiffuseError
        If the folder is missing or not writable, or if something else than a file has this name.
    """
    path = Path(path)
    parent = path.parent
    name = f"{parameter}={path}: cannot write,"
    if not parent.is_dir():
        raise DiffuseError(f"{name} the folder {parent} does not exist; create it or change {parameter}")
    if path.is_dir():
        raise DiffuseError(f"{name} a folder has this name; change {parameter}")
    if path.exists() and not path.is_file():
        raise DiffuseError(f"{name} this is no ordinary file; change {parameter}")
    try:  # to ask for permissions is not enough: root has them all, also where nothing can be written
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise DiffuseError(f"{name} the folder {parent} refuses ({error.strerror}); change {parameter}") from None


@contextlib.contextmanager
def atomic_path(path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` that replaces it when the block ends well and vanishes when it does not.

    Raises
    ------
    DiffuseError
        If the folder is missing or not writable, or the disk fills up.
    """
    path = Path(path)
    check_writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise DiffuseError(f"{path}: cannot write ({error.strerror}); choose a writable output.*") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


class Staging:
    """Outputs that appear together: they wait in a hidden folder beside their places, and vanish if anything fails.

    Use it in a ``with`` block, write to what :meth:`path` returns, :meth:`publish`, and :meth:`keep` when all is well.
    """

    def __init__(self):
        self._folders: dict = {}
        self._published: list = []

    def __enter__(self) -> Staging:
        return self

    def path(self, final) -> Path:
        """Where to write what shall be ``final``, a file name or the template of several.

        Raises
        ------
        DiffuseError
            If the folder is not writable.
        """
        final = Path(final)
        if final.parent not in self._folders:
            try:
                self._folders[final.parent] = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=final.parent))
            except OSError as error:
                raise write_error(final, error) from error
        return self._folders[final.parent] / final.name

    def publish(self) -> None:
        """Move what waits to its place."""
        for place, folder in self._folders.items():
            for waiting in sorted(folder.iterdir()):
                waiting.replace(place / waiting.name)
                self._published.append(place / waiting.name)

    def keep(self) -> None:
        """What is published stays, whatever happens later."""
        self._published.clear()

    def __exit__(self, *error) -> None:
        for path in self._published:
            path.unlink(missing_ok=True)
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


class _Sink(io.FileIO):
    """What HDF5 writes into: remembers the first failed write, and swallows what follows.

    HDF5 never gives up on a file that it could not flush, and crashes the interpreter at exit; so it is not told.
    """

    error: BaseException | None = None

    def write(self, data) -> int:
        block = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(block) and self.error is None:
                done += super().write(block[done:])
        except OSError as error:
            self.error = error
        return len(block)

    def truncate(self, size=None) -> int:
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0


def interrupt(error: BaseException, frame) -> None:
    """Raise ``error`` from a signal handler; HDF5 crashes when that happens inside a write of its own.

    Such a write remembers the error, and :meth:`NewFile.check` raises it.

    frame : what the handler was given, the Python frame that was interrupted
    """
    while frame is not None:
        if frame.f_code in (_Sink.write.__code__, _Sink.truncate.__code__):
            frame.f_locals["self"].error = error
            return
        frame = frame.f_back
    raise error


class NewFile(h5py.File):
    """An HDF5 file that is being written; get one from :func:`create_hdf5`."""

    def __init__(self, sink: _Sink):
        super().__init__(sink, "w")
        self._sink = sink

    def check(self) -> None:
        """Raise what kept data from being written so far, OSError or :func:`interrupt`; worth a call now and then."""
        if self._sink.error is not None:
            raise self._sink.error


@contextlib.contextmanager
def create_hdf5(path, schema: str) -> Iterator[NewFile]:
    """Yield a new HDF5 file that appears under ``path`` only when the block ends well.

    Raises
    ------
    DiffuseError
        If the file cannot be written, for instance because the disk is full.
    """
    with atomic_path(path) as temporary, _Sink(temporary, "w+") as sink:
        handle = NewFile(sink)
        try:
            with handle:
                write_root(handle, schema)
                yield handle
        finally:  # a failed write explains whatever else went wrong
            handle.check()


def write_error(path, error: OSError) -> DiffuseError:
    """A one-line explanation of a failed write (h5py hides errno in the text)."""
    text = str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "errno = 28" in text or "errno = 27" in text
    reason = "the disk is full" if full else (error.strerror or text.splitlines()[0])
    return DiffuseError(f"{path}: not written, {reason}; free some space or choose another output.*")


def write_root(handle: h5py.File, schema: str) -> None:
    """Root attributes that every file of the project carries."""
    handle.attrs["creator"] = "dials_diffuse"
    handle.attrs["creator_version"] = __version__
    handle.attrs["schema"] = schema


def open_schema(path, schema: str) -> h5py.File:
    """Open an HDF5 file for reading and refuse one that is not of the given schema.

    Raises
    ------
    DiffuseError
        If the file is missing, unreadable or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise DiffuseError(f"{path}: no such file")
    try:
        handle = h5py.File(path, "r")
    except OSError:
        raise DiffuseError(f"{path}: not a readable HDF5 file; write it again") from None
    found = handle.attrs.get("schema", "none")
    if found != schema:
        handle.close()
        raise DiffuseError(
            f"{path}: schema is {found}, this program reads {schema}; use the matching program or version"
        )
    return handle


def write_json(path, content: dict) -> None:
    """Write ``content`` as JSON: finite numbers only, null for NaN and infinity."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value):
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_finite(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
