"""Outputs are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.protected import refuse_protected
from dials_diffuse.files.together import note_written, waiting_place
from dials_diffuse.files.unfinished import remove_leftovers, unfinished_prefix


def link_target(path) -> Path:
    """The file that is written under a name: where a symbolic link leads, so that the link stays what it is.

    Raises
    ------
    DiffuseError
        If links lead back to themselves.
    """
    path = Path(path)
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise DiffuseError(f"{path}: a symbolic link that leads nowhere; remove it or choose another output.*")
    return target


def check_writable(path, parameter: str = "output.*") -> None:
    """Can a file of this name be written, or replaced? Nothing is left behind by asking.

    parameter : name of the parameter that says where, for the message

    Raises
    ------
    DiffuseError
        If the folder is missing or not writable, or if something else than a file has this name.
    """
    name = f"{parameter}={path}: cannot write,"
    refuse_protected(path, parameter)
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DiffuseError(f"{name} the name is too long; change {parameter}") from None
    except ValueError:  # a character that no name can have
        raise DiffuseError(f"{name} not a file name; change {parameter}") from None
    path = link_target(path)
    parent = path.parent
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

    Within :func:`together` it waits for the other outputs. A symbolic link stays, what it leads to is replaced.

    Raises
    ------
    DiffuseError
        If the folder is missing or not writable, or the disk fills up.
    """
    check_writable(path)
    suffix = Path(path).suffix  # tells what is to be written, whatever a link leads to
    path = link_target(path)
    try:
        handle, name = tempfile.mkstemp(prefix=unfinished_prefix(), suffix=suffix[-20:], dir=path.parent)
    except OSError as error:
        raise DiffuseError(f"{path}: cannot write ({error.strerror}); choose a writable output.*") from None
    os.close(handle)
    temporary, waits = Path(name), False
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        block = waiting_place(path)
        if block is None:
            os.replace(temporary, path)
        else:
            waits = True  # first, in case that a signal comes between
            block.add(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if not waits:
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
        final = link_target(final)
        if final.parent not in self._folders:
            remove_leftovers(final.parent)
            try:
                self._folders[final.parent] = Path(tempfile.mkdtemp(prefix=unfinished_prefix(), dir=final.parent))
            except OSError as error:
                raise write_error(final, error) from error
        return self._folders[final.parent] / final.name

    def publish(self) -> None:
        """Move what waits to its place."""
        for place, folder in self._folders.items():
            for waiting in sorted(folder.iterdir()):
                refuse_protected(place / waiting.name, "output.*")
                waiting.replace(place / waiting.name)
                self._published.append(place / waiting.name)

    def keep(self) -> None:
        """What is published stays, whatever happens later."""
        for path in self._published:
            note_written(path)
        self._published.clear()

    def __exit__(self, *error) -> None:
        for path in self._published:
            path.unlink(missing_ok=True)
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def write_error(path, error: OSError) -> DiffuseError:
    """A one-line explanation of a failed write (h5py hides errno in the text)."""
    text = str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "errno = 28" in text or "errno = 27" in text
    reason = "the disk is full" if full else (error.strerror or text.splitlines()[0])
    return DiffuseError(f"{path}: not written, {reason}; free some space or choose another output.*")
