"""How much memory is there, and does what is asked for fit?"""

from __future__ import annotations

import os
from pathlib import Path

from dials_diffuse.errors import DiffuseError

#: bytes, or ``max``
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def total_memory() -> float:
    """Bytes that this process may have: of the computer, or of its control group if that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def check_memory(needed: float, what: str, remedy: str) -> None:
    """DiffuseError if ``needed`` bytes are more than there are; ``what`` needs them, ``remedy`` is what to change."""
    total = total_memory()
    if needed > total:
        size = f"{needed / 1e9:.1f}" if needed < 1e15 else f"{needed / 1e9:.0e}"
        raise DiffuseError(f"{what} need about {size} GB, there are {total / 1e9:.1f} GB; {remedy}")
