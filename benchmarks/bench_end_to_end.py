"""From images to a map: integrate, scale, merge; beside dials.integrate and mdx2 on the same frames, against the truth.

Lysozyme with liquid-like motions on a 1-megapixel detector, 0.5° frames, 3 x 3 x 3, all with as many processes. mdx2
comes from PyPI into an environment of its own, which is kept beside the frames. It does not look for bad pixels: it
gets a mask of those that dials_diffuse finds (dead and hot ones, the shadow of the beam stop); without it, dead pixels
count nothing with great certainty, and its correlation with the truth is 0.53 in place of 0.80. Frames are made and
processed by DIALS where the folder does not have them yet:
``python benchmarks/bench_end_to_end.py [FOLDER] [IMAGES]``.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
from dxtbx import flumpy
from usage import Usage, measure

from dials_diffuse.compat import available_cores
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.load import load_experiments
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.shells import anisotropic_correlation
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.reduction.prepare import prepare_job
from dials_diffuse.reduction.reduction_parameters import ReductionParameters

CELL = "78.5,78.5,37.8,90,90,90"
PREPARE = (
    "dials.import simulated_1_*.cbf",
    "dials.find_spots imported.expt",
    f"dials.index imported.expt strong.refl space_group=P43212 unit_cell={CELL}",
    "dials.refine indexed.expt indexed.refl",
)
INTEGRATE = "dials.integrate refined.expt refined.refl"
SCALE = "dials.scale integrated.expt integrated.refl"
FRAME = "981 x 1043"  # what the simulation makes by default
SUBDIVIDE = 3
#: images of a first run, which is not counted
WARM = 20

#: pixels of a module, and the counts from which mdx2 takes a pixel for one of a Bragg peak, by the median of the counts
MODULE, PEAK = "487,195", 4.0


def make_frames(folder: Path, n_images: int) -> None:
    """Simulated frames, through DIALS as if they were measured."""
    if (folder / "scaled.refl").exists():
        return
    simulate = f"dials.diffuse_simulate structure=lysozyme model=llm scan.n_images={n_images} seed=4"
    for command in (simulate, *PREPARE, f"{INTEGRATE} nproc={available_cores()}", SCALE):
        measure(["bash", "-c", command], folder)


def dials_integrate(folder: Path, out: Path) -> Usage:
    files = " ".join(str(folder / name) for name in ("refined.expt", "refined.refl"))
    return measure(["bash", "-c", f"dials.integrate {files} nproc={available_cores()}"], out)


def ours(folder: Path, out: Path, options: str = "") -> dict:
    """What each of our programs took."""
    sampling = f"grid.subdivide={SUBDIVIDE},{SUBDIVIDE},{SUBDIVIDE}"
    steps = {
        "integrate": f"{folder}/scaled.expt {folder}/scaled.refl {sampling} {options}",
        "scale": "diffuse_integrated.h5",
        "merge": "diffuse_scaled.h5 output.volume=False",
    }
    python = sys.executable
    return {
        name: measure([python, "-m", f"dials_diffuse.cli.{name}", *arguments.split()], out)
        for name, arguments in steps.items()
    }


def environment(folder: Path) -> Path | None:
    """Python of an environment with mdx2 beside the DIALS of this one; None, and a line, where it cannot be had."""
    place = folder / "mdx2-environment"
    python = place / "bin" / "python"
    if not python.exists():
        try:
            measure([sys._base_executable, "-m", "venv", "--system-site-packages", place], folder)
            cctbx = Path(sys.prefix, "lib", "cctbx")  # libtbx looks for its own there
            if cctbx.exists():
                os.symlink(cctbx.resolve(), place / "lib" / "cctbx")
            measure([python, "-m", "pip", "install", "-q", "mdx2"], folder)
        except SystemExit as error:
            print(f"mdx2 is NOT compared: it cannot be installed: {' '.join(str(error).split())[-300:]}")
            return None
    return python


def mdx2(folder: Path, out: Path) -> dict:
    python = environment(folder)
    if python is None:
        return {}
    n = available_cores()
    threshold = PEAK * _median_counts(folder / "scaled.expt")
    expt = with_bad_pixels(folder / "scaled.expt", out)
    steps = (
        f"import_data {expt} --nproc {n}",
        f"import_geometry {expt} --nproc {n}",
        f"find_peaks geometry.nxs data.nxs --count_threshold {threshold:.0f} --nproc {n}",
        f"mask_peaks geometry.nxs data.nxs peaks.nxs --nproc {n}",
        f"integrate geometry.nxs data.nxs --mask mask.nxs --subdivide {' '.join(3 * [str(SUBDIVIDE)])} --nproc {n}",
        f"correct geometry.nxs integrated.nxs --nproc {n}",
        f"scale corrected.nxs --nproc {n}",
        f"merge corrected.nxs --scale scales.nxs --nproc {n}",
    )
    script = Path(__file__).parent / "mdx2_step.py"
    found = {}
    for step in steps:
        try:
            found[step.split()[0]] = measure([python, script, MODULE, *step.split()], out)
        except SystemExit as error:
            print(f"mdx2 is NOT compared: {step.split()[0]} failed: {' '.join(str(error).split())[-300:]}")
            return {}
    return found


def with_bad_pixels(expt: Path, out: Path) -> Path:
    """The experiment with a mask of the pixels that are not to be used; not counted in what mdx2 takes."""
    experiments, parameters = load_experiments(str(expt)), ReductionParameters()
    images = np.arange(len(experiments[0].imageset))
    grid = choose_grid(experiments, parameters.d_min, parameters.d_max, parameters.subdivide)
    job = prepare_job(0, experiments, images, grid, parameters, detector_setup(experiments[0].detector))
    with open(out / "good_pixels.mask", "wb") as file:
        pickle.dump(tuple(flumpy.from_numpy(bad == 0) for bad in job.bad), file, pickle.HIGHEST_PROTOCOL)
    command = f"dials.apply_mask {expt} input.mask=good_pixels.mask output.experiments=masked.expt"
    measure(["bash", "-c", command], out)
    return out / "masked.expt"


def _median_counts(expt: Path) -> float:
    from dxtbx.model.experiment_list import ExperimentListFactory

    image = ExperimentListFactory.from_json_file(str(expt))[0].imageset.get_raw_data(0)[0].as_numpy_array()
    return float(np.median(image[image >= 0]))


def map_of_mdx2(path: Path, truth) -> tuple:
    """Indices, in steps of the truth's grid, and intensities."""
    with h5py.File(path) as file:
        table = file["entry/hkl_table"]
        hkl = np.stack([table[name][:] for name in "hkl"], axis=1)
        intensity = table["intensity"][:]
    index = np.rint(hkl * np.array(truth.grid.subdivide)).astype(int)
    return map_to_asu(index, truth.grid.space_group, True)[0], intensity


def correlations(truth, index: np.ndarray, intensity: np.ndarray) -> dict:
    """Of the anisotropic part with the truth, from 10 Å on: of all voxels, and without lattice points and their
    neighbours, where Bragg peaks leak: that is what the masks of a program are like."""
    row = rows_of(index, truth.index)
    use = (row >= 0) & np.isfinite(intensity)
    index, row, intensity = index[use], row[use], intensity[use]
    s = truth.grid.s_magnitude(index)
    n = np.array(truth.grid.subdivide)
    away = np.abs(index - n * np.rint(index / n)).sum(axis=1) > 1
    return {
        name: anisotropic_correlation(intensity[chosen], truth.intensity[row[chosen]], s[chosen])
        for name, chosen in {"all": s >= 0.1, "away from lattice points": (s >= 0.1) & away}.items()
    }


def table_row(name: str, used: Usage) -> str:
    return f"{name:28} {used.cpu:8.1f} {used.wall:8.1f} {used.peak / 1e9:8.2f} {used.faults / 1e6:10.2f}"


def main(folder=None, n_images: int = 180) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if folder is None else Path(folder).resolve()
        folder.mkdir(exist_ok=True)
        make_frames(folder, n_images)
        with tempfile.TemporaryDirectory() as first:  # kernels are compiled
            ours(folder, Path(first), f"exclude_images=0:{WARM + 1}:{n_images}")
        with tempfile.TemporaryDirectory() as own, tempfile.TemporaryDirectory() as theirs:
            mine = ours(folder, Path(own))
            dials, other = dials_integrate(folder, Path(theirs)), mdx2(folder, Path(theirs))
            truth = read_map(folder / "truth.nxs")
            merged = read_map(Path(own) / "diffuse_merged.nxs")
            cc = {"dials_diffuse": correlations(truth, merged.index, merged.intensity)}
            if other:
                cc["mdx2"] = correlations(truth, *map_of_mdx2(Path(theirs) / "merged.nxs", truth))
    print(f"{n_images} frames of {FRAME} pixels, processes: {available_cores()}")
    print(f"{'':28} {'CPU s':>8} {'wall s':>8} {'peak GB':>8} {'M faults':>10}")
    total = sum(mine.values(), Usage(0, 0, 0, 0))
    rows = {f"diffuse_{k}": v for k, v in mine.items()} | {"dials_diffuse, together": total}
    rows["dials.integrate"] = dials
    if other:
        rows |= {f"mdx2.{k}": v for k, v in other.items()}
        rows["mdx2, together"] = sum(other.values(), Usage(0, 0, 0, 0))
    for name, used in rows.items():
        print(table_row(name, used))
    if other:
        them = rows["mdx2, together"]
        print(f"mdx2 / dials_diffuse: CPU {them.cpu / total.cpu:.1f}, wall {them.wall / total.wall:.1f}")
    print(f"dials.integrate / dials_diffuse: CPU {dials.cpu / total.cpu:.1f}, wall {dials.wall / total.wall:.1f}")
    for name, values in cc.items():
        print(f"{name}: correlation with the truth: " + ", ".join(f"{v:.4f} ({k})" for k, v in values.items()))
    print("RESULT " + json.dumps({"steps": {k: v.figures for k, v in rows.items()}, "correlation": cc}))


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
