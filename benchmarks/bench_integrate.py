"""Pixels per second of the pass over 6-megapixel CBF frames, in tiles and row by row, against decoding alone.

A naive kernel stands beside them. CPU seconds in one process, in turn.

80 x 80 x 40 Å cell, d_min 1.5 Å at the detector corner, 3 x 3 x 3 voxels. Then peak memory of whole runs of the program
over sweeps of different length, of smaller frames.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
from dials.algorithms.profile_model.gaussian_rs import Model
from dxtbx import flumpy
from dxtbx.format.FormatCBFMini import FormatCBFMini
from dxtbx.imageset import ImageSetFactory
from dxtbx.model import Beam, Crystal, DetectorFactory, Experiment, Goniometer, Scan, ScanFactory
from dxtbx.model.experiment_list import ExperimentList
from scipy.spatial.transform import Rotation
from scitbx.array_family import flex
from timing import alternate
from usage import measure

from dials_diffuse.compat import available_cores
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_experiments
from dials_diffuse.kernels.accumulate import N_TALLY
from dials_diffuse.parallel import SERIAL, Forked
from dials_diffuse.reduction import tiling
from dials_diffuse.reduction.frames import empty_bragg, read_frame, shell_profile
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import ReductionParameters
from dials_diffuse.reduction.voxel_sums import Tables, add_frame, reduce_block, reduce_blocks

SIZE = (2463, 2527)
SMALL = (487, 407)
N_FILES = 8
INTEGRATE = [sys.executable, "-m", "dials_diffuse.cli.integrate", "d_min=1.5"]
N_IMAGES = 20  # what the program reduces at a time: 10 degrees
PROCESSED = 80  # on one and on two processes


def make_sweep(folder: Path, n_images: int, n_files: int = N_FILES, size: tuple = SIZE) -> Path:
    """Poisson noise on a Pilatus-6M-like detector, with an orientation, as mini-CBF files; returns the .expt.

    Of a long sweep only ``n_files`` frames are different, the others are links to them. The detector may be smaller,
    with as many pixels less at each edge; size : fast and slow
    """
    beam_at = tuple(c - 0.086 * (whole - n) for c, whole, n in zip((211, 217), SIZE, size))  # mm
    detector = DetectorFactory.simple(
        "PAD", 380, beam_at, "+x", "-y", (0.172, 0.172), size, trusted_range=(-1, 1_000_000)
    )
    beam, goniometer = Beam((0, 0, 1), 0.98), Goniometer((1, 0, 0))
    rng = np.random.default_rng(0)
    names = []
    for i in range(n_images):
        names.append(str(folder / f"image_{i + 1:05d}.cbf"))
        if i >= n_files:
            Path(names[-1]).symlink_to(names[i % n_files])
            continue
        scan = ScanFactory.make_scan((i + 1, i + 1), 0.1, (i * 0.5, 0.5), {i + 1: 0})
        image = flumpy.from_numpy(rng.poisson(5, size=size[::-1]).astype(np.int32))
        FormatCBFMini.as_file(detector, beam, goniometer, scan, image, names[-1])
    scan = Scan((1, n_images), (0.0, 0.5))
    scan.set_exposure_times(flex.double(n_images, 0.1))
    models = {"beam": beam, "detector": detector, "goniometer": goniometer, "scan": scan}
    template = str(folder / "image_#####.cbf")
    imageset = ImageSetFactory.make_sequence(template, list(range(1, n_images + 1)), **models)
    experiment = Experiment(imageset=imageset, **models)
    axes = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix() @ np.diag([80.0, 80.0, 40.0])
    experiment.crystal = Crystal(*(tuple(v) for v in axes.T), space_group_symbol="P43212")
    experiment.profile = Model(None, 3, 0.05, 0.2, deg=True)
    experiment.identifier = "benchmark"
    path = folder / f"sweep_{n_images}.expt"
    experiments = ExperimentList()
    experiments.append(experiment)
    experiments.as_file(str(path))
    return path


@numba.njit
def naive(raw, directions, matrix, origin, n, counts, pixels):
    """The least that a mapping program can do: no masks, no corrections, one dense grid."""
    ny, nx = raw.shape
    for y in range(ny):
        for x in range(nx):
            u, v, w = directions[0, y, x], directions[1, y, x], directions[2, y, x]
            i = int(np.floor(matrix[0, 0] * u + matrix[0, 1] * v + matrix[0, 2] * w - origin[0] + 0.5)) + n[0]
            j = int(np.floor(matrix[1, 0] * u + matrix[1, 1] * v + matrix[1, 2] * w - origin[1] + 0.5)) + n[1]
            k = int(np.floor(matrix[2, 0] * u + matrix[2, 1] * v + matrix[2, 2] * w - origin[2] + 0.5)) + n[2]
            if 0 <= i < counts.shape[0] and 0 <= j < counts.shape[1] and 0 <= k < counts.shape[2]:
                counts[i, j, k] += raw[y, x]
                pixels[i, j, k] += 1


def throughput(expt: Path, n_images: int = N_IMAGES, repeats: int = 5) -> None:
    experiments = load_experiments(str(expt))
    parameters = ReductionParameters(d_min=1.5)
    grid = choose_grid(experiments, parameters.d_min, parameters.d_max, parameters.subdivide)
    images = np.arange(n_images)
    job = prepare_job(0, experiments, images, grid, parameters, detector_setup(experiments[0].detector))
    one_step = replace(job, n_sub_steps=1)
    bare = replace(job.parameters, masking=replace(job.parameters.masking, bragg=False, outlier_n_sigma=0))
    bare = replace(one_step, parameters=bare, reference=None)
    row_job = row_by_row(job)
    one_row = row_by_row(one_step)
    frames, profiles = [], []
    for i in images:
        frames.append(read_frame(job, int(i), empty_bragg(job)))
        profiles.append(shell_profile(job, frames[-1]))
    counts, pixels = np.zeros(grid.shape), np.zeros(grid.shape, dtype=np.int32)

    def decode():
        for i in images:
            read_image(job.imageset, int(i))

    def naive_pass():
        for i in images:
            raw = read_image(job.imageset, int(i))[0]
            matrix, origin = job.scan.to_lattice(i + 0.5, grid.subdivide)
            naive(raw, job.panels[0].directions, matrix, origin, np.array(grid.extent), counts, pixels)

    def sums_of(which):
        tables, tally = Tables(which), np.zeros(N_TALLY, dtype=np.int64)
        for frame, profile in zip(frames, profiles):
            add_frame(which, frame, profile, tables, tally)

    steps = job.n_sub_steps
    whole, sums = f"whole pass, {steps} sub-steps (default)", f"sums alone, {steps} sub-steps"
    seconds = alternate(
        {
            "decoding alone": decode,
            "decoding + naive kernel": naive_pass,
            whole: lambda: reduce_block(job, images),
            f"{whole}, row by row": lambda: reduce_block(row_job, images),
            sums: lambda: sums_of(job),
            f"{sums}, row by row": lambda: sums_of(row_job),
            "whole pass, one sub-step": lambda: reduce_block(one_step, images),
            "whole pass, one sub-step, row by row": lambda: reduce_block(one_row, images),
            "whole pass, no Bragg mask, guard or flux": lambda: reduce_block(bare, images),
        },
        repeats,
    )
    megapixels = n_images * SIZE[0] * SIZE[1] / 1e6
    reference = seconds["decoding alone"]
    print(f"{n_images} frames of {SIZE[0]} x {SIZE[1]} pixels, {100 * (job.bad[0] == 0).mean():.0f} % of them used")
    for name, value in seconds.items():
        print(f"{name:51s} {megapixels / value:7.1f} Mpixel/s per core   {value / reference:6.2f} x decoding")
    for name in (whole, sums):
        print(f"{name}: {seconds[name + ', row by row'] / seconds[name]:.2f} times as fast in tiles as row by row")
    for name, function in {"decoding alone": decode, whole: lambda: reduce_block(job, images)}.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        function()
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / n_images
        print(f"{name}: {faults:.0f} page faults per image")


def row_by_row(job):
    """The same job, whose panels do not go tile by tile."""
    other = replace(job)
    usual, tiling.MAX_EXACT = tiling.MAX_EXACT, -1.0
    other.prepare_tiles()
    tiling.MAX_EXACT = usual
    return other


def memory(folder: Path, lengths: tuple, size: tuple) -> None:
    """Peak memory of whole runs on sweeps of different length."""
    for n_images in lengths:
        sub = folder / f"sweep{n_images}"
        sub.mkdir()
        expt = make_sweep(sub, n_images, size=size)
        used = measure([*INTEGRATE, expt, "nproc=1"], sub)
        print(f"{n_images:4d} images of {size[0]} x {size[1]} pixels: peak memory {used.peak / 1e9:.2f} GB")


def processes(expt: Path, n_images: int = PROCESSED, repeats: int = 3) -> None:
    """The pass on one and on two processes in turn: elapsed time, the best of each, and CPU seconds of all."""
    experiments = load_experiments(str(expt))
    parameters = ReductionParameters(d_min=1.5)
    grid = choose_grid(experiments, parameters.d_min, parameters.d_max, parameters.subdivide)
    detector = detector_setup(experiments[0].detector)
    job = prepare_job(0, experiments, np.arange(n_images), grid, parameters, detector)
    wall: dict = {1: [], 2: []}
    cpu: dict = {1: [], 2: []}
    for _ in range(repeats):
        for n in wall:
            start, before = time.perf_counter(), sum(os.times()[:4])
            for _ in reduce_blocks(job, SERIAL if n == 1 else Forked(n)):
                pass
            wall[n].append(time.perf_counter() - start)
            cpu[n].append(sum(os.times()[:4]) - before)
    one, two = map(min, wall.values())
    print(
        f"{n_images} images, best of {repeats}: {one:.1f} s on one process, {two:.1f} s on two, {one / two:.2f} times "
        f"as fast; {min(cpu[1]):.1f} and {min(cpu[2]):.1f} CPU s; load {os.getloadavg()[0]:.0f} on {available_cores()} "
        "cores"
    )


def main(whole: bool = False) -> None:
    """whole : more repeats, and memory on 6-megapixel frames as well"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        throughput(make_sweep(folder, N_IMAGES), *((N_IMAGES, 5) if whole else (8, 3)))
        further = folder / "further"
        further.mkdir()
        processes(make_sweep(further, PROCESSED))
        memory(folder, (10, 40, 160), SMALL)
        if whole:
            memory(folder, (8, 32, 96), SIZE)


if __name__ == "__main__":
    main()
