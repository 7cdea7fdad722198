"""What a pickle could do when it is read."""

from __future__ import annotations

import os


class Harmful:
    """Unpickled, it makes a folder ``harm`` in the current one."""

    def __reduce__(self):
        return os.mkdir, ("harm",)
