"""What work on dask workers costs, and what limits it: one process against one and two workers of this computer.

A sweep of 6-megapixel frames, as in bench_integrate. CPU seconds count as well as wall time, because they depend less
on what else the computer does. More workers do not share those of the program, in which dask's scheduler runs as well:
(CPU of the workers) / (CPU of the program) is about the number of workers that one program can feed.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import resource
import tempfile
import time
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
from bench_integrate import make_sweep

from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_experiments
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ObservationFile
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.reduction.voxel_sums import blocks_of_images, reduce_block
from dials_diffuse.scaling.sample import COLUMNS
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

N_IMAGES = 80
PARAMETERS = ReductionParameters(d_min=1.5)


class Stopwatch:
    """Progress that takes the time of the pass over the images, in seconds."""

    wall = cpu = 0.0

    def progress(self, items, total, label):
        if not label.startswith("Integrating"):
            yield from items
            return
        wall, cpu = time.perf_counter(), time.process_time()
        yield from items
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu


def what_travels(expt: Path) -> None:
    """Bytes that each worker receives and gives back, and the cost of a block in CPU seconds."""
    experiments = load_experiments(str(expt))
    grid = choose_grid(experiments, PARAMETERS.d_min, PARAMETERS.d_max, PARAMETERS.subdivide)
    start = time.process_time()
    setup = detector_setup(experiments[0].detector)
    job = prepare_job(0, experiments, np.arange(N_IMAGES), grid, PARAMETERS, setup)
    print(f"prepared in {time.process_time() - start:.1f} s of CPU")
    packed = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
    parts = {
        f.name: len(pickle.dumps(value)) for f in fields(job) if (value := job.__getstate__().get(f.name)) is not None
    }
    largest = sorted(parts, key=parts.get, reverse=True)[:3]
    print(
        f"to each worker, once: {len(packed) / 1e6:.1f} MB; of these "
        + ", ".join(f"{name} {parts[name] / 1e6:.1f}" for name in largest)
    )
    start = time.process_time()
    pickle.loads(packed)
    print(f"unpacked in {time.process_time() - start:.1f} s of CPU")
    block = blocks_of_images(job)[0]
    start = time.process_time()
    for image in block:
        read_image(job.imageset, int(image))
    decoding = time.process_time() - start
    reduce_block(job, block[:1])  # compiles
    start = time.process_time()
    sums = reduce_block(job, block)
    seconds = time.process_time() - start
    result = pickle.dumps(sums, protocol=pickle.HIGHEST_PROTOCOL)
    files = {Path(job.imageset.get_path(int(i))).resolve() for i in block}
    read = len(block) * np.mean([path.stat().st_size for path in files])
    print(
        f"block of {len(block)} images: {seconds:.2f} s of CPU ({decoding:.2f} to decode), {read / 1e6:.0f} MB read, "
        f"{len(sums.keys)} rows, {len(result) / 1e6:.1f} MB back ({len(zlib.compress(result, 1)) / 1e6:.1f} if packed)"
    )


def one_run(expt: Path, folder: Path, executor: Executor, worker_cpu) -> tuple:
    """(wall seconds of the pass, CPU of this process in it, CPU of the workers in it, path of the observations)"""
    path = folder / "observations.h5"
    stopwatch = Stopwatch()
    before = worker_cpu()
    provenance = Provenance("bench", "", "")
    integrate(load_experiments(str(expt)), PARAMETERS, path, provenance, executor=executor, progress=stopwatch.progress)
    return stopwatch.wall, stopwatch.cpu, worker_cpu() - before, path


class Passes:
    """Progress that takes the CPU time of each pass over a file, in seconds."""

    def __init__(self):
        self.seconds: dict = {}

    def progress(self, items, total, label):
        start = time.process_time()
        yield from items
        self.seconds[label] = self.seconds.get(label, 0.0) + time.process_time() - start


def what_scaling_costs(path: Path, folder: Path) -> None:
    """CPU seconds of each pass over the rows of a file and of all else; bytes that workers would read and return."""
    with ObservationFile(path) as file:
        n = file.n_rows
        dtypes = {name: OBSERVATION_DTYPE[name] for name in OBSERVATION_DTYPE.names}
    passes = Passes()
    start = time.process_time()
    scale_observations([path], ScalingParameters(), folder / "s.h5", Provenance("bench", "", ""), 1, passes.progress)
    rest = time.process_time() - start - sum(passes.seconds.values())

    def size(names) -> int:
        return sum(dtypes[name].itemsize for name in names)

    row = size(dtypes)
    back = {"Finding voxels": 8, "Finding outliers": 30, "Writing": row}
    read = {"Finding voxels": size(("index", "norm")), "Writing": row}
    print(f"dials.diffuse_scale, {n} rows of {row} bytes ({path.stat().st_size / n:.0f} in the file)")
    print(f"{'pass':24}{'CPU, us per row':>16}{'bytes read':>12}{'sent back':>11}")
    for label, seconds in passes.seconds.items():
        sent = str(back.get(label, "few"))
        print(f"{label:24}{1e6 * seconds / n:16.2f}{read.get(label, size(COLUMNS)):12}{sent:>11}")
    print(f"all else, refinement on a sample most of all: {rest:.1f} s")


def checksum(path: Path) -> int:
    with ObservationFile(path) as file:
        columns = file.read("index", "counts", "norm", "xyz", "s")
    return zlib.crc32(b"".join(np.ascontiguousarray(column).tobytes() for column in columns.values()))


def main() -> None:
    from dials_diffuse.clusters import DaskParameters
    from dials_diffuse.distributed import dask_executor

    logging.getLogger("distributed").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expt = make_sweep(folder, N_IMAGES)
        what_travels(expt)
        print(f"{'':24}{'wall, s':>10}{'CPU, s: program':>18}{'workers':>10}  result")
        expected = None
        for workers in (0, 1, 2):
            if workers == 0:
                wall, cpu, other, path = one_run(expt, folder, SERIAL, lambda: 0.0)
            else:
                with dask_executor(DaskParameters(workers=workers)) as executor:
                    client = executor.client

                    def worker_cpu(client=client) -> float:
                        return sum(client.run(time.process_time).values())

                    client.run(importlib.import_module, "dials_diffuse.reduction.voxel_sums")
                    wall, cpu, other, path = one_run(expt, folder, executor, worker_cpu)
            mine = checksum(path)
            expected = expected or mine
            name = f"dask, {workers} workers" if workers else "one process"
            print(f"{name:24}{wall:10.1f}{cpu:18.1f}{other:10.1f}  {'the same' if mine == expected else 'OTHER'}")
        what_scaling_costs(path, folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"peak memory of the program {peak:.2f} GB, of the largest child {_children():.2f} GB")


def _children() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
