"""What workers of other processes do in tests. Nothing is imported here that takes long: they may be started again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dials_diffuse.errors import DiffuseError


def scaled(factor, item):
    return factor * item


def broken(shared, item):
    if item == 3:
        raise DiffuseError("item 3: bad")
    return item


def broken_if(shared, item):
    if item == 7:
        raise DiffuseError("seven is too much")
    return shared + item


def summed(kept, argument):
    return kept, argument, kept + argument


def killed(shared, item):
    os._exit(9)


def stuck_at_first(folder, item):
    """Item 2 does not end before there is a file ``release``, where it is done first; its process is in ``stuck``."""
    if item == 2 and not Path(folder, "stuck").exists():
        Path(folder, "stuck").write_text(str(os.getpid()))
        while not Path(folder, "release").exists():
            time.sleep(0.05)
    return item, os.getpid()
