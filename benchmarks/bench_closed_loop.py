"""Do the programs return the truth? Simulated images through DIALS and back to the map they were made from.

Lysozyme (78.5 x 78.5 x 37.8 Å, P 43 21 2) with liquid-like motions on a 1-megapixel detector, 180 images of 0.5°. The
correlation of the anisotropic part with the truth stands beside its ceiling: the same images merged with the true
scales, background and orientation. Once with nothing to scale, once with drift, absorption and uneven modules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from dials.array_family import flex

from dials_diffuse.files.nexus import read_map
from dials_diffuse.merging.compare import compare_maps

SCALES = ("scale.drift=0.15", "scale.absorption=0.05", "scale.module=0.01")
DIALS = (
    "dials.import simulated_1_*.cbf",
    "dials.find_spots imported.expt",
    "dials.index imported.expt strong.refl space_group=P43212 unit_cell=78.54,78.54,37.77,90,90,90",
    "dials.refine indexed.expt indexed.refl",
    "dials.integrate refined.expt refined.refl",
)
RANGES = ((1e9, 0.0), (10.0, 2.0))


def call(command: str, folder: Path) -> float:
    """Run a program of this environment in a folder; returns its seconds."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    start = time.perf_counter()
    done = subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def report(name: str, folder: Path, truth) -> None:
    """One line for each range: correlation, and how much the slope varies between ten shells."""
    data = read_map(folder / name)
    cells = []
    for d_max, d_min in RANGES:
        result = compare_maps(data, truth, d_max, d_min)
        cells.append(f"{result.cc:.4f} (slope varies by {100 * result.slope_variation:.1f} %)")
    print(f"  {name[:-4]:28} all: {cells[0]}   10-2 Å: {cells[1]}")


def make_map(name: str, expt: str, refl: str, folder: Path, options: str = "") -> float:
    seconds = call(f"dials.diffuse_integrate {expt} {refl} output.observations={name}.h5 {options}", folder)
    return seconds + call(
        f"dials.diffuse_merge {name}.h5 output.map={name}.nxs output.volume=False output.png=None", folder
    )


def closed_loop(title: str, options: tuple, with_dials: bool) -> None:
    """Simulate, process, compare."""
    print(f"\n{title}: {' '.join(options) or 'no scale factors'}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = call(
            f"dials.diffuse_simulate structure=lysozyme output.ideal=ceiling.nxs {' '.join(options)}", folder
        )
        sweep = json.loads((folder / "diffuse_simulate.json").read_text())["sweeps"][0]
        print(
            f"  simulated in {seconds:.0f} s: {sweep['mean_diffuse']:.0f} diffuse, {sweep['mean_background']:.0f} "
            f"background, {sweep['mean_bragg']:.0f} Bragg counts per pixel; {sweep['sub_steps']} steps per image"
        )
        seconds = make_map("true_models", "simulated.expt", "simulated.refl", folder)
        print(f"  integrated and merged in {seconds:.0f} s")
        if with_dials:
            seconds = sum(call(command, folder) for command in DIALS)
            table = flex.reflection_table.from_file(str(folder / "refined.refl"))
            used = table.select(table.get_flags(table.flags.used_in_refinement))
            offset = np.array(used["xyzcal.px"] - used["xyzobs.px.value"]).reshape(-1, 3)
            rmsd = ", ".join(f"{x:.4f}" for x in np.sqrt(np.mean(offset**2, axis=0)))
            print(f"  DIALS to integration in {seconds:.0f} s; RMSD in x, y (px) and z (images) {rmsd}")
            make_map("dials_models", "integrated.expt", "integrated.refl", folder)
        truth = read_map(folder / "truth.nxs")
        for file in ("ceiling.nxs", "true_models.nxs", *(["dials_models.nxs"] if with_dials else [])):
            report(file, folder, truth)


def main() -> None:
    """Both loops."""
    print(__doc__)
    closed_loop("Nothing to scale", (), with_dials=True)
    closed_loop("Before scaling", SCALES, with_dials=False)


if __name__ == "__main__":
    main()
