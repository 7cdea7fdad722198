"""What a program took: CPU seconds, elapsed time, peak memory and page faults of a process and its children.

The peak that Linux tells of a process begins with the memory of the one that started it. So this file is a small
program that starts others: ``usage.py FILE COMMAND...`` writes into FILE what they took.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
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
    with tempfile.TemporaryDirectory() as temporary:
        took = Path(temporary) / "took.json"
        process = subprocess.Popen(
            [sys.executable, "-S", str(Path(__file__).resolve()), str(took), *map(str, command)],
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
        output = "".join(lines)
        if process.wait():
            raise SystemExit(f"{' '.join(map(str, command))}\n{output[-2000:]}")
        return Usage(wall=time.perf_counter() - start, output=output, **json.loads(took.read_text()))


def main(path: str, *command: str) -> int:
    status = subprocess.run(command).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss * 1024, "faults": used.ru_minflt}
    Path(path).write_text(json.dumps(figures))
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
