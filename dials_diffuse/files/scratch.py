"""Arrays that lie on disk while a program runs: what does not fit into memory, and is gone afterwards."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from dials_diffuse.errors import DiffuseError


def scratch_array(n: int, dtype, folder: Path) -> np.ndarray:
    """(n,) zeros in a file without a name in ``folder``, which is gone when the array is.

    The system keeps in memory what is used, if there is room. All of the file is claimed at once: a disk that is full
    later would end the program without a word.

    Raises
    ------
    DiffuseError
        If there is no room.
    """
    size = max(n, 1) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, dtype, "r+", shape=(n,)))
    except OSError as error:
        raise DiffuseError(
            f"{folder}: no room for {size / 1e9:.1f} GB of what is kept of all observations ({error.strerror}); write "
            "output.observations to a larger disk"
        ) from None
