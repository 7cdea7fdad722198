"""HDF5 files that are written whole or not at all, and read only if their schema is known."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import h5py

from dials_diffuse import __version__
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.checksum import CHECKSUM, header_checksum
from dials_diffuse.files.interrupts import hold
from dials_diffuse.files.protected import protect
from dials_diffuse.files.together import where_is


class _Sink(io.FileIO):
    """What HDF5 writes into: remembers the first failed write, and swallows what follows.

    HDF5 never gives up on a file that it could not flush, and crashes the interpreter at exit; so it is not told. Nor
    can it be interrupted: signals set ``error``, too. They are held around the calls of HDF5 and not in the methods
    here, where it would be too late: the signals of HDF5's own time are handled as a method begins.
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


class NewFile(h5py.File):
    """An HDF5 file that is being written; get one from :func:`create_hdf5`."""

    def __init__(self, sink: _Sink):
        super().__init__(sink, "w")
        self._sink = sink

    def check(self) -> None:
        """Raise what kept data from being written so far: OSError, or a signal. Worth a call now and then."""
        if self._sink.error is not None:
            raise self._sink.error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Signals wait for the end of this block."""
        with hold(self._sink):
            yield
        self.check()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Signals need not wait in this block: nothing is written to the file, but in blocks of :meth:`writing`."""
        self.check()
        with hold(None):
            yield


@contextlib.contextmanager
def create_hdf5(path, schema: str) -> Iterator[NewFile]:
    """Yield a new HDF5 file that appears under ``path`` only when the block ends well.

    Signals wait for the end of the block, or for the next call of :meth:`NewFile.check`.

    Raises
    ------
    DiffuseError
        If the file cannot be written, for instance because the disk is full.
    """
    with atomic_path(path) as temporary, _Sink(temporary, "w+") as sink, hold(sink):
        handle = NewFile(sink)
        try:
            with handle:
                write_root(handle, schema)
                yield handle
                handle.attrs[CHECKSUM] = header_checksum(handle)
        finally:  # a failed write explains whatever else went wrong
            handle.check()


class _Source(io.FileIO):
    """What HDF5 reads texts from; those with which it would never end are hidden from it, and remembered.

    HDF5 keeps texts in heaps. It walks through a heap from one length to the next, and a damaged length can be none.
    """

    damaged: bool = False

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        start, n = self.tell(), 0
        while n < len(view):
            read = super().readinto(view[n:])
            if not read:
                break
            n += read
        around = os.pread(self.fileno(), n + 2 * len(_HEAP), max(start - len(_HEAP), 0))
        place = around.find(_HEAP)
        while place >= 0:
            if not self._heap_ends(place + max(start - len(_HEAP), 0)):
                self.damaged = True
                view[:n] = bytes(n)
            place = around.find(_HEAP, place + 1)
        return n

    def _heap_ends(self, place: int) -> bool:
        """Does a walk through the heap at this place of the file come to its end?

        Source: HDF5 File Format Specification 3.0, III.E (Disk Format: Level 1E - Global Heap)
        """
        size = int.from_bytes(os.pread(self.fileno(), 8, place + len(_HEAP)), "little")
        heap = os.pread(self.fileno(), min(size, os.fstat(self.fileno()).st_size), place)
        at = 16
        while at + 16 <= len(heap):
            length = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = (
                length if heap[at : at + 2] == b"\0\0" else 16 + (length + 7) // 8 * 8
            )  # 0: the free space, with its head
            if step <= 0 or step > len(heap) - at:
                return False
            at += step
        return True


@contextlib.contextmanager
def guarded(path) -> Iterator[h5py.File]:
    """Yield a file for its texts, attributes and layout; what passes here may be read with HDF5 itself.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged so that HDF5 would never end.
    """
    with _Source(path, "r") as source:
        try:
            with h5py.File(source, "r") as handle:
                yield handle
        except Exception:
            if not source.damaged:
                raise
        if source.damaged:
            raise ValueError("lengths of its texts are wrong")


def write_root(handle: h5py.File, schema: str) -> None:
    """Root attributes that every file of the project carries."""
    handle.attrs["creator"] = "dials_diffuse"
    handle.attrs["creator_version"] = __version__
    handle.attrs["schema"] = schema


def open_schema(path, schema: str) -> h5py.File:
    """Open an HDF5 file for reading and refuse one that is not of the given schema.

    An output of this run can be read before it appears under its name, see :func:`together`.

    Raises
    ------
    DiffuseError
        If the file is missing, unreadable or of another schema.
    """
    path, place = Path(path), where_is(path)
    if not place.exists():
        raise DiffuseError(f"{path}: no such file")
    if place == path:
        protect([path])
    try:
        handle = h5py.File(place, "r")
    except OSError as error:
        raise DiffuseError(f"{path}: {_reason(path, error)}") from None
    try:
        found = _schema_in(path, place)
    except DiffuseError:
        handle.close()
        raise
    if found != schema:
        handle.close()
        raise DiffuseError(
            f"{path}: schema is {found}, this program reads {schema}; use the matching program or version"
        )
    return handle


def schema_of(path) -> str:
    """The schema that an HDF5 file names, ``none`` where it names none.

    Raises
    ------
    DiffuseError
        If the file is missing or unreadable.
    """
    path = Path(path)
    if not path.exists():
        raise DiffuseError(f"{path}: no such file")
    reason = why_not_opened(path)
    if reason:
        raise DiffuseError(f"{path}: {reason}")
    return _schema_in(path, path)


def _schema_in(path: Path, place: Path) -> str:
    """The schema of a file that can be opened; ``path`` is its name in messages."""
    try:
        with guarded(place) as head:
            found = head.attrs.get("schema", "none")
            return found.decode() if isinstance(found, bytes) else str(found)
    except Exception as error:  # h5py has no common class for what it raises on damaged files
        raise DiffuseError(f"{path}: damaged ({' '.join(str(error).split())}); write it again") from None


def is_hdf5(path) -> bool:
    """Does a file begin as HDF5 does? True as well for one that cannot be read and has the suffix of one."""
    try:
        with open(path, "rb") as handle:
            return handle.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return Path(path).suffix in (".h5", ".hdf5", ".nxs")


#: begin of a heap of texts, with its version
_HEAP = b"GCOL\x01\0\0\0"

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def why_not_opened(path) -> str:
    """Why a file cannot be opened with HDF5, and what to do; empty where it can."""
    try:
        h5py.File(path, "r").close()
    except OSError as error:
        return _reason(Path(path), error)
    return ""


def _reason(path: Path, error: OSError) -> str:
    """What an error of h5py.File means. The text decides: HDF5 has no other way to tell these cases apart."""
    text = " ".join(str(error).split())
    if path.is_dir():
        return "this is a folder; give the files in it"
    if "unable to lock" in text:
        return (
            "cannot be locked: another program has it open for writing, or its file system has no locks (as some NFS); "
            "close that program, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE if there is none"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "reading is not permitted; change its permissions"
    if "already open for write" in text:
        return (
            "is being written, or the program that wrote it was stopped; wait for it, or write the file again (h5clear "
            "-s frees a file that is complete)"
        )
    if path.is_file() and path.stat().st_size == 0:
        return "the file is empty: it was not written to its end; write it again"
    if "truncated" in text:
        return "the file is cut off; copy it once more if it is a copy, or write it again"
    if "signature not found" in text:
        return "not a readable HDF5 file; write it again"
    return f"damaged ({text}); write it again"
