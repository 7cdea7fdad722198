"""Scaling with all terms, 2 to 20 million observations: seconds, memory, and the ratio to reading the file once.

Two crystals on a one-megapixel detector with drift, absorption, modules and background. Seconds are those of all CPUs;
each size is scaled in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dials_diffuse.compat import available_cores
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ExperimentSummary, ObservationFile, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

SIZES = (2_000_000, 6_000_000, 20_000_000)
BLOCK = 250_000
GRID = MapGrid((80, 80, 40, 90, 90, 90), " P 4nw 2abw", (3, 3, 3), 1.5)
SIZE, TURN = (981, 1043), 90.0
PROVENANCE = Provenance("benchmark", "", "")


def experiments() -> list:
    orientation = (1 / 80, 0, 0, 0, 1 / 80, 0, 0, 0, 1 / 40)
    frame = {"orientation": orientation, "axis": (1, 0, 0), "beam": (0, 0, -1)}
    return [ExperimentSummary(f"id-{i}", (1, 180), (0.0, 0.5), 180, 1.0, 1, SIZE, **frame) for i in range(2)]


def make_observations(path: Path, n_rows: int) -> None:
    """Rows anywhere on the ring that their |s| has on the detector."""
    rng = np.random.default_rng(0)
    with write_observations(path, GRID, experiments(), PROVENANCE) as writer:
        for _ in range(0, n_rows, BLOCK):
            rows = np.zeros(2 * BLOCK, dtype=OBSERVATION_DTYPE)
            rows["index"] = np.stack([rng.integers(-m, m + 1, len(rows)) for m in GRID.extent], axis=1)
            rows = rows[GRID.inside(rows["index"])][:BLOCK]
            n = len(rows)
            s = GRID.s_magnitude(rows["index"])
            azimuth, t = rng.uniform(0, 2 * math.pi, n), rng.uniform(0, 1, n)
            x, y = (0.5 + 0.49 * s * GRID.d_min * f(azimuth) for f in (np.cos, np.sin))
            rows["xyz"] = np.stack([x * SIZE[0], y * SIZE[1], t * TURN], axis=1)
            rows["experiment"] = rng.integers(0, 2, n)
            rows["pixels"] = rng.integers(1, 30, n)
            rows["norm"] = rows["pixels"] * rng.uniform(0.5, 1.0, n)
            rows["background"] = 0.2 * rows["norm"]
            wave = np.cos(np.abs(rows["index"]) @ [0.7, 0.7, 1.1])
            b = np.where(rows["experiment"] == 0, 1.3, 0.8) * (1 - 0.15 * t)
            c = np.exp(-5 * s) * (1 + 0.2 * np.cos(4 * t))
            a = np.exp(0.1 * (x - 0.5) * np.cos(3 * t))
            rate = 20 * a * (b * np.exp(-3 * s) * (3 + 0.2 * wave) + c)
            rows["counts"] = rng.poisson(rate * rows["norm"] + rows["background"])
            rows["rate"] = rows["rate_variance"] = rows["counts"] / 0.75
            rows["s"] = s
            writer.append(rows)


def scale(path: str) -> None:
    """Scale a file and print what it took, as JSON."""
    start = time.process_time()
    with ObservationFile(path) as file:
        n_rows = file.n_rows
        for _ in file.chunks(*OBSERVATION_DTYPE.names):
            pass
    reading = time.process_time() - start
    start, begin = time.process_time(), time.perf_counter()
    result = scale_observations([path], ScalingParameters(), f"{path}.scaled", PROVENANCE, available_cores())
    seconds, wall = time.process_time() - start, time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "n_rows": n_rows,
                "reading": reading,
                "seconds": seconds,
                "wall": wall,
                "peak": used.ru_maxrss * 1024,
                "faults": used.ru_minflt,
                "terms": list(result.refinement.model.terms),
            }
        )
    )


def main(sizes=SIZES) -> None:
    measured = []
    for n_rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "observations.h5"
            make_observations(path, n_rows)
            path_of_package = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, __file__, str(path)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": path_of_package},
            )
        measured.append(json.loads(done.stdout.splitlines()[-1]))
        m = measured[-1]
        print(
            f"{m['n_rows'] / 1e6:6.1f} M observations, terms {','.join(m['terms'])}: {m['seconds']:6.1f} CPU s, "
            f"{m['seconds'] / m['reading']:5.1f} x reading, {m['wall']:6.1f} s, {m['peak'] / 1e9:.2f} GB, "
            f"{m['faults'] / 1e6:.2f} M page faults",
            flush=True,
        )
    if len(measured) > 1:
        first, last = measured[0], measured[-1]
        exponent = math.log(last["seconds"] / first["seconds"]) / math.log(last["n_rows"] / first["n_rows"])
        print(f"CPU seconds grow as the number of observations to the power {exponent:.2f}")
    print("RESULT " + json.dumps(measured))


if __name__ == "__main__":
    scale(sys.argv[1])
