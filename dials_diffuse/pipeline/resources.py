"""Time and memory that a step takes."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Resources:
    """What a step took; complete when its block has ended.

    Attributes
    ----------
    seconds : of the clock
    cpu_seconds : of this process and of the workers that it has waited for
    peak_memory : bytes, of this process during the step where the system tells that, else since it started
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory: int = 0


@contextmanager
def measured() -> Iterator[Resources]:
    """Measure what the block takes, also where it fails."""
    with suppress(OSError):  # other systems than Linux
        _RESET.write_text("5")
    result, start, before = Resources(), time.monotonic(), _cpu()
    try:
        yield result
    finally:
        result.seconds = time.monotonic() - start
        result.cpu_seconds = _cpu() - before
        result.peak_memory = _peak()


def _cpu() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _peak() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
