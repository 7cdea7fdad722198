"""Rows per second of the Laue average, against reading the file alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from timing import alternate

from dials_diffuse.files.observations import OBSERVATION_DTYPE, ExperimentSummary, ObservationFile, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.merging.laue import MergeParameters, merge_observations

N_ROWS = 2_000_000
BLOCK = 200_000


def make_observations(path: Path) -> None:
    grid = MapGrid((80, 80, 40, 90, 90, 90), " P 4nw 2abw", (3, 3, 3), 1.5)
    experiment = ExperimentSummary("benchmark", (1, 180), (0.0, 0.5), 180, 1.0, 1, (981, 1043))
    rng = np.random.default_rng(0)
    with write_observations(path, grid, (experiment,), Provenance("benchmark", "", "")) as writer:
        for _ in range(0, N_ROWS, BLOCK):
            rows = np.zeros(BLOCK, dtype=OBSERVATION_DTYPE)
            rows["index"] = np.stack([rng.integers(-m, m + 1, BLOCK) for m in grid.extent], axis=1)
            rows = rows[grid.inside(rows["index"])]
            rows["pixels"] = rng.integers(1, 30, len(rows))
            rows["norm"] = rows["pixels"] * rng.uniform(0.5, 1.0, len(rows))
            rows["counts"] = rng.poisson(5 * rows["norm"])
            rows["rate"] = rows["rate_variance"] = rows["counts"] / 0.75
            rows["s"] = grid.s_magnitude(rows["index"])
            writer.append(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "observations.h5"
        make_observations(path)

        def read():
            with ObservationFile(path) as file:
                for _ in file.chunks(*OBSERVATION_DTYPE.names):
                    pass

        with ObservationFile(path) as file:
            n_rows = file.n_rows
        seconds = alternate(
            {
                "reading alone": read,
                "merging in P4₃2₁2, all statistics": lambda: merge_observations([path], MergeParameters()),
            },
            repeats=3,
        )
        for label, value in seconds.items():
            ratio = value / seconds["reading alone"]
            print(f"{label:38s} {n_rows / value / 1e6:7.2f} M rows/s per core   {ratio:6.2f} x reading")
