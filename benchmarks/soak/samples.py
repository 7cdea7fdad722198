"""Small inputs of every program, made once."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
from helpers.builders import all_voxels, observation_rows, small_grid, true_intensity, write_rows
from helpers.structures import small_molecule

from dials_diffuse.cli import fit, integrate, merge, model, process, scale, simulate

#: programs, and what each is called with in the folder of the samples; every run takes a few seconds at most
PROGRAMS = {
    "simulate": (
        simulate,
        ["structure=lysozyme", "detector.size=120,120", "detector.pixel_size=0.7", "detector.distance=120"]
        + ["scan.width=2", "scan.n_images=4", "d_min=5", "nproc=1", "output.truth=None", "model=rigid_body"]
        + ["output.prefix=new", "output.background=new_background"],
    ),
    "integrate": (
        integrate,
        ["simulated.expt", "simulated.refl", "d_min=5", "grid.subdivide=1,1,1", "nproc=1"],
    ),
    "scale": (scale, ["rows.h5", "model=b", "nproc=1", "refinement.max_observations=3000"]),
    "merge": (merge, ["rows.h5"]),
    "model": (model, ["model.pdb", "d_min=3", "grid.subdivide=2,2,2", "model=rigid_body"]),
    "fit": (fit, ["map.nxs", "model.pdb", "model=rigid_body", "starts=1", "profile=False", "d_min=3"]),
    "process": (
        process,
        ["simulated.expt", "simulated.refl", "integrate.d_min=5", "grid.subdivide=1,1,1", "nproc=1", "scale.model=b"]
        + ["scale.bragg_scales=False"],
    ),
}


def run(name: str, *words: str) -> None:
    """Run a program here, with its sample words and more of them."""
    module, given = PROGRAMS[name]
    module.run([*given, *words])


@contextlib.contextmanager
def in_folder(folder):
    """The current folder for the length of the block."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make_samples(folder) -> Path:
    """The inputs of PROGRAMS in a folder."""
    with in_folder(folder), contextlib.redirect_stdout(io.StringIO()):
        grid = small_grid(cell=(14.0, 14.0, 17.0, 90.0, 90.0, 90.0))
        index = all_voxels(grid)
        intensity = true_intensity(grid, index)
        rows = observation_rows(grid, np.tile(index, (3, 1)), np.tile(intensity, 3), np.random.default_rng(0))
        rows["xyz"][:, 2] = np.random.default_rng(1).uniform(0, 1, len(rows))
        write_rows("rows.h5", grid, rows)
        molecule = small_molecule()
        molecule.hierarchy.write_pdb_file("model.pdb", crystal_symmetry=molecule.crystal_symmetry)
        run("model", "output.map=model.nxs", "output.png=None", "output.json=None")
        merge.run(["rows.h5", "output.map=map.nxs", "output.png=None", "output.json=None"])
        run("simulate", "output.prefix=image", "output.background=background")
    return Path(folder)
