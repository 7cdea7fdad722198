"""What large data take: frames of 16 megapixels, a merged grid of 10⁸ voxels, twenty crystals jointly.

    python benchmarks/bench_load.py [grid] [frames] [crystals] [--frames 20 600] [--write]

Each part is a process of its own, of which CPU seconds and peak memory are measured. Frames are made as they are read.
``--write`` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
from blocks import fill  # noqa: E402
from usage import measure  # noqa: E402

SIZE = (4150, 4000)  # pixels: 16.6 million


def merge_large_grid() -> None:
    """A map of 465³ voxels from a million observations, with its volume, as dials.diffuse_merge writes it."""
    from helpers.builders import observation_rows, write_rows

    from dials_diffuse.cli import merge
    from dials_diffuse.maps.grid import MapGrid

    grid = MapGrid((116.0, 116.0, 116.0, 90, 90, 90), " P 2ac 2ab", (3, 3, 3), 1.5, 200.0)
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(-m, m + 1, 1_000_000) for m in grid.extent], axis=1)
    index = index[grid.inside(index)]
    write_rows("rows.h5", grid, observation_rows(grid, index, np.ones(len(index)), rng, pixels=2))
    print(f"{grid.n_voxels:.3g} voxels")
    merge.run(["rows.h5", "output.png=None", "output.html=None"])


class Made:
    """An image that is made when it is asked for."""

    def __init__(self, number: int):
        self.number = number

    def get_raw_data(self):
        from dxtbx import flumpy

        y, x = np.ogrid[: SIZE[1], : SIZE[0]]
        values = ((31 * x + 17 * y + 13 * self.number) % 23 + 10).astype(np.int32)
        return (flumpy.from_numpy(values),)


def integrate_frames(n: int) -> None:
    """A sweep of n frames, in one process."""
    from dxtbx.imageset import ImageSequence, ImageSetData, MemReader
    from helpers.builders import PROVENANCE
    from helpers.synthetic import experiment_list, make_crystal, make_detector, make_experiment
    from scitbx.array_family import flex

    from dials_diffuse.reduction.integrate import integrate
    from dials_diffuse.reduction.reduction_parameters import ReductionParameters

    detector = make_detector(SIZE, distance=200.0, pixel=0.075)
    crystal = make_crystal((78.0, 78.0, 37.0), "P222")
    small = [[np.zeros((1, 1), np.int32)]] * n
    experiment = make_experiment(small, width=0.1, detector=detector, crystal=crystal, profile=(0.03, 0.1))
    experiment.imageset = ImageSequence(
        ImageSetData(reader=MemReader([Made(i) for i in range(n)]), masker=None),
        beam=experiment.beam,
        detector=detector,
        goniometer=experiment.goniometer,
        scan=experiment.scan,
        indices=flex.size_t(range(n)),
    )
    how = ReductionParameters(d_min=1.6, geometry_check="none")
    integrate(experiment_list(experiment), how, "sums.h5", PROVENANCE)


def scale_crystals(n: int = 20) -> None:
    """n files of 40 000 observations each, with brightness of their own, scaled and merged jointly."""
    from helpers.builders import all_voxels, observation_rows, small_grid, true_intensity, write_rows

    from dials_diffuse.cli import merge, scale

    grid = small_grid("P 21 21 21", (30.0, 34.0, 40.0, 90, 90, 90), (3, 3, 3), d_min=3.0)
    voxels = all_voxels(grid)
    names = []
    for i in range(n):
        rng = np.random.default_rng(i)
        index = voxels[np.sort(rng.choice(len(voxels), 40_000, replace=len(voxels) < 40_000))]
        rows = observation_rows(grid, index, rng.uniform(0.5, 2) * true_intensity(grid, index), rng, scale=50.0)
        rows["xyz"] = rng.uniform(0, 1, (len(rows), 3)) * [100, 100, 1]
        names.append(str(write_rows(f"crystal{i}.h5", grid, rows, identifier=f"id-{i}")))
    scale.run([*names, "model=b", "output.png=None", "output.html=None"])
    merge.run(["diffuse_scaled.h5", "output.png=None", "output.html=None"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["grid", "frames", "crystals"])
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 600])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    calls = {"grid": [("merged grid of 1.0·10⁸ voxels, 10⁶ observations", "merge_large_grid()")]}
    calls["frames"] = [(f"{n} frames of 16.6 megapixels", f"integrate_frames({n})") for n in options.frames]
    calls["crystals"] = [("20 crystals of 40 000 observations, scaled and merged", "scale_crystals()")]
    rows = ["| what | CPU seconds | peak memory, GB |", "|---|---|---|"]
    for what, call in (item for part in options.parts for item in calls[part]):
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import bench_load; bench_load.{call}"
        with tempfile.TemporaryDirectory() as folder:
            used = measure([sys.executable, "-c", code], folder)
        rows.append(f"| {what} | {used.cpu:.0f} | {used.peak / 1e9:.2f} |")
        print(rows[-1], flush=True)
    if options.write:
        fill(ROOT / "docs" / "performance.md", "load", rows)


if __name__ == "__main__":
    main()
