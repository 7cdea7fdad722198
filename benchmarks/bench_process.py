"""One call of dials.diffuse_process against the four programs it stands for, on the demo's images.

Both are run as a person runs them, in processes of their own, in turn. ``--folder`` names the output of ``make demo``;
without it a smaller set is simulated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
COORDINATES = Path(__file__).resolve().parents[1] / "dials_diffuse" / "simulation" / "data" / "193l.pdb"
SMALL = ["structure=lysozyme", "model=llm", "scan.n_images=30", "scan.width=1.5", "detector.size=260,260"]
SMALL += ["detector.pixel_size=0.34", "detector.distance=100", "d_min=3.2", "seed=4", "nproc=1"]
SMALL += ["output.experiments=scaled.expt", "output.reflections=scaled.refl"]


def program(name: str, *arguments) -> list:
    return [sys.executable, "-m", f"dials_diffuse.cli.{name}", *map(str, arguments)]


def measured(commands: list, folder: Path) -> tuple:
    """(wall s, CPU s, peak GB) of commands that are run one after the other."""
    folder.mkdir()
    start, peak, cpu = time.monotonic(), 0.0, 0.0
    for command in commands:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)}: {process.stderr.read().decode()}")
        process.stderr.close()
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9)
    return time.monotonic() - start, cpu, peak


def main(arguments: tuple = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="output of make demo")
    given = parser.parse_args(arguments).folder
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder if given is None else given.resolve()
        if given is None:
            subprocess.run(program("simulate", *SMALL), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        files = [data / "scaled.expt", data / "scaled.refl"]
        d_min = ["fit.d_min=2"] if given else ["fit.d_min=3.2"]
        one = [program("process", *files, f"pdb={COORDINATES}", "grid.subdivide=3,3,3", *d_min, "nproc=1")]
        four = [
            program("integrate", *files, "grid.subdivide=3,3,3", "nproc=1"),
            program("scale", "diffuse_integrated.h5", f"absolute_scale.model={COORDINATES}", "nproc=1"),
            program("merge", "diffuse_scaled.h5"),
            program("fit", "diffuse_merged.nxs", COORDINATES, *(item[len("fit.") :] for item in d_min)),
        ]
        start = [program(name, "-h") for name in ("integrate", "scale", "merge", "fit")]
        found: dict = {"one process": [], "four programs": [], "their -h": []}
        for i in range(ROUNDS):
            for label, commands in zip(found, (one, four, start)):
                found[label].append(measured(commands, folder / f"{label} {i}"))
        ratios = [one[1] / four[1] for one, four in zip(found["one process"], found["four programs"])]
        print(f"{'':15s} {'wall s':>8s} {'CPU s':>8s} {'peak GB':>8s}   medians of {ROUNDS} rounds")
        for label, values in found.items():
            wall, cpu, peak = (statistics.median(column) for column in zip(*values))
            print(f"{label:15s} {wall:8.1f} {cpu:8.1f} {peak:8.2f}")
        print(f"CPU, one process / four programs: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
