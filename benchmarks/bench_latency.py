"""What is waited for before and after the work: ``-h``, ten frames, and the first run, which compiles the kernels."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from bench_integrate import INTEGRATE, SMALL, make_sweep
from usage import measure


def main() -> None:
    python = sys.executable
    print(f"{'':44} {'CPU s':>8} {'wall s':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {
            "version: dials.version": ["dials.version"],
            "help: dials.scale -h": ["dials.scale", "-h"],
            "help: dials.diffuse_integrate -h": [python, "-m", "dials_diffuse.cli.integrate", "-h"],
            "help: dials.diffuse_scale -h": [python, "-m", "dials_diffuse.cli.scale", "-h"],
        }
        for label, command in commands.items():
            _row(label, measure(command, folder))
        expt = make_sweep(folder, 10, size=SMALL)
        os.environ["NUMBA_CACHE_DIR"] = str(folder / "kernels")
        for label in ("ten frames, kernels are compiled", "ten frames"):
            _row(label, measure([*INTEGRATE, expt, "nproc=1"], folder))


def _row(label: str, used) -> None:
    print(f"{label:44} {used.cpu:8.2f} {used.wall:8.2f}", flush=True)


if __name__ == "__main__":
    main()
