"""Pages of large maps: time, memory and size for 340³ voxels, measured to 1.5 Å but for a tenth of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = (
    ("P 1", "P 1", (85, 85, 85, 85, 88, 93)),
    ("P 21 21 21", "P 2ac 2ab", (85, 85, 85, 90, 90, 90)),
    ("P 43 21 2", "P 4nw 2abw", (85, 85, 85, 90, 90, 90)),
)

MAKE = """
import sys
import numpy as np
from dials_diffuse.files.nexus import write_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import possible_voxels

grid = MapGrid(eval(sys.argv[2]), sys.argv[1], (3, 3, 3), 1.5)
index = np.concatenate(list(possible_voxels(grid)))
rng = np.random.default_rng(0)
index = index[(grid.s_magnitude(index) > 0.02) & (rng.random(len(index)) < 0.9)]
s, n = grid.s_magnitude(index), len(index)
waves = np.cos(index @ [0.13, 0.17, 0.19]) * np.cos(index @ [0.31, -0.11, 0.07])
multiplicity = rng.poisson(5, n) + 1
intensity = np.exp(-3 * s * s) * (1e5 + 3000 * waves)
sigma = 0.01 * intensity / np.sqrt(multiplicity)
data = DiffuseMap(grid, True, index, intensity + sigma * rng.normal(size=n), sigma, multiplicity.astype(np.int32))
write_map("map.nxs", data, Provenance(), volume=False)
print(n, "x".join(map(str, grid.shape)))
"""

REPORT = """
import resource
from dials_diffuse.cli.report import run
run(["map.nxs"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6)
"""


def main() -> None:
    """Print a row for each case."""
    print(f"{'space group':14}{'unique':>10}{'grid':>14}{'CPU s':>8}{'s':>8}{'GB':>8}{'MB':>8}")
    for name, hall, cell in CASES:
        with tempfile.TemporaryDirectory() as folder:
            unique, shape = _run(folder, MAKE, hall, str(cell)).split()[-2:]
            start = time.perf_counter()
            cpu, memory = map(float, _run(folder, REPORT).split()[-2:])
            seconds = time.perf_counter() - start
            size = os.path.getsize(Path(folder) / "map.html") / 1e6
        print(f"{name:14}{unique:>10}{shape:>14}{cpu:8.1f}{seconds:8.1f}{memory:8.2f}{size:8.1f}")


def _run(folder: str, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
