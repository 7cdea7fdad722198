"""Names of what is being written, by which a later run knows what was left by one that was killed."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import shutil
import socket
from pathlib import Path

logger = logging.getLogger("dials.diffuse.files")

#: begin of the name of every unfinished file or folder
PREFIX = ".unfinished-"
_NAME = re.compile(re.escape(PREFIX) + r"([0-9a-f]{8})-(\d+)-.*", re.DOTALL)


@functools.lru_cache(maxsize=1)
def _computer() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


def unfinished_prefix() -> str:
    """Begin of a name that says which process of which computer is at work on it."""
    return f"{PREFIX}{_computer()}-{os.getpid()}-"


def is_unfinished(path) -> bool:
    """Is a file in a folder that is not finished?"""
    return Path(path).parent.name.startswith(PREFIX)


def remove_leftovers(folder) -> None:
    """Remove what killed processes of this computer have left in a folder; name what those of others have left."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, match) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    except OSError:  # writing there will say why
        return
    for name, match in found:
        path = Path(folder) / name
        if match[1] != _computer():
            logger.info("%s is unfinished work of another computer; remove it if nothing runs there any more", path)
        elif not _is_alive(int(match[2])):
            logger.info("Removing %s, which a run that was killed left unfinished", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
