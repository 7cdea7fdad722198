"""One call of dials.diffuse_process against the four programs it stands for: the same numbers, in less time.

Both are run as a person runs them, in processes of their own, in turn: on the output of ``make demo`` where it is
there, else on a smaller set that is simulated. ``python benchmarks/bench_process.py [FOLDER] [ROUNDS]``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from usage import Usage, measure

ROUNDS = 2
ROOT = Path(__file__).resolve().parents[1]
COORDINATES = ROOT / "dials_diffuse" / "simulation" / "data" / "193l.pdb"
DEMO = ROOT / "demo-output"
SMALL = ["structure=lysozyme", "model=llm", "scan.n_images=30", "scan.width=1.5", "detector.size=260,260"]
SMALL += ["detector.pixel_size=0.34", "detector.distance=100", "d_min=3.2", "seed=4", "nproc=1"]
SMALL += ["output.experiments=scaled.expt", "output.reflections=scaled.refl"]

#: files whose numbers are compared, and the group of these
TABLES = (
    ("diffuse_integrated.h5", "observations"),
    ("diffuse_scaled.h5", "observations"),
    ("diffuse_merged.nxs", "entry/unique"),
    ("diffuse_fit.nxs", "entry/unique"),
)


def program(name: str, *arguments) -> list:
    return [sys.executable, "-m", f"dials_diffuse.cli.{name}", *map(str, arguments)]


def took(commands: list, folder: Path) -> Usage:
    """Of commands that are run one after the other in a new folder."""
    folder.mkdir()
    total = Usage(0.0, 0.0, 0, 0)
    for command in commands:
        total += measure(command, folder)
    return total


def columns(path: Path, group: str) -> dict:
    with h5py.File(path) as file:
        return {name: item[()] for name, item in file[group].items() if isinstance(item, h5py.Dataset)}


def differences(one: Path, other: Path) -> list:
    """Names of the columns, and of the fitted parameters, that are not the same, bit for bit."""
    found = []
    for name, group in TABLES:
        mine, theirs = columns(one / name, group), columns(other / name, group)
        found += [f"{name} {key}" for key in mine.keys() ^ theirs.keys()]
        equal = {key: np.array_equal(mine[key], theirs[key], equal_nan=True) for key in mine.keys() & theirs.keys()}
        found += [f"{name} {key}" for key, same in equal.items() if not same]
    fits = [json.loads((folder / "diffuse_fit.json").read_text())["models"] for folder in (one, other)]
    return found + ["fitted parameters"] * (fits[0] != fits[1])


def main(data: Path | None = None, rounds: int = ROUNDS) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if data is None and (DEMO / "scaled.refl").exists():
            data = DEMO
        d_min = "2" if data else "3.2"
        if data is None:
            measure(program("simulate", *SMALL), folder)
        data = (data or folder).resolve()
        files, grid = [data / "scaled.expt", data / "scaled.refl"], "grid.subdivide=3,3,3"
        runs = {
            "one process": [program("process", *files, f"pdb={COORDINATES}", grid, f"fit.d_min={d_min}", "nproc=1")],
            "four programs": [
                program("integrate", *files, grid, "nproc=1"),
                program("scale", "diffuse_integrated.h5", f"absolute_scale.model={COORDINATES}", "nproc=1"),
                program("merge", "diffuse_scaled.h5"),
                program("fit", "diffuse_merged.nxs", COORDINATES, f"d_min={d_min}"),
            ],
            "their -h": [program(name, "-h") for name in ("integrate", "scale", "merge", "fit")],
        }
        found: dict = {label: [] for label in runs}
        for i in range(rounds):
            for label in list(runs)[:: 1 if i % 2 == 0 else -1]:
                found[label].append(took(runs[label], folder / f"{label} {i}"))
        print(f"{'':15s} {'wall s':>8s} {'CPU s':>8s} {'peak GB':>8s}   medians of {rounds} rounds, run in turn")
        for label, used in found.items():
            wall, cpu, peak = (statistics.median(x) for x in zip(*((u.wall, u.cpu, u.peak / 1e9) for u in used)))
            print(f"{label:15s} {wall:8.1f} {cpu:8.1f} {peak:8.2f}")
        pairs = list(zip(found["one process"], found["four programs"]))
        for label, values in (
            ("CPU", [(a.cpu, b.cpu) for a, b in pairs]),
            ("wall", [(a.wall, b.wall) for a, b in pairs]),
        ):
            saved = statistics.median(b - a for a, b in values)
            ratio = statistics.median(a / b for a, b in values)
            print(f"{label}: one process / four programs {ratio:.3f}, {saved:.1f} s saved")
        other = differences(folder / "one process 0", folder / "four programs 0")
        print(f"numbers of all files: {'the same, bit for bit' if not other else 'DIFFERENT: ' + ', '.join(other)}")
        figures = {label: [u.figures for u in used] for label, used in found.items()}
        print("RESULT " + json.dumps({"name": "process", **figures}))


if __name__ == "__main__":
    main(*(Path(x) for x in sys.argv[1:2]), *(int(x) for x in sys.argv[2:3]))
