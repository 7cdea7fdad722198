"""What a program took: CPU seconds, elapsed time, peak memory and page faults of a process and its children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """cpu : seconds, user and system, of all processes; wall : elapsed; peak : bytes, of the largest process

    faults : pages that were not in memory; output : what was printed
    """

    cpu: float
    wall: float
    peak: int
    faults: int
    output: str = ""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu + other.cpu, self.wall + other.wall, max(self.peak, other.peak), self.faults + other.faults
        )

    @property
    def figures(self) -> dict:
        """For JSON."""
        return {"cpu": self.cpu, "wall": self.wall, "peak": self.peak, "faults": self.faults}


def measure(command: list, folder, echo: bool = False) -> Usage:
    """Run a command in a folder, with the programs of this environment; echo : show what it prints.

    Raises
    ------
    SystemExit
        If it fails, with the end of what it printed.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    packages = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    start, lines = time.perf_counter(), []
    process = subprocess.Popen(
        [str(x) for x in command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": packages},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    for line in process.stdout:
        lines.append(line)
        if echo:
            print(line, end="", flush=True)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    output = "".join(lines)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{output[-2000:]}")
    wall = time.perf_counter() - start
    return Usage(used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024, used.ru_minflt, output)
