"""What dials.diffuse_process is tried on by others that start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dials_diffuse.cli import simulate

#: parameters with which :func:`small_run` takes seconds
OPTIONS = ("integrate.d_min=4", "grid.subdivide=1,1,1", "scale.model=b", "scale.bragg_scales=False", "nproc=1")


def small_run(folder: Path, *options) -> Path:
    """Ten images with what dials.integrate leaves beside them; the folder.

    options : further parameters of dials.diffuse_simulate
    """
    folder.mkdir(exist_ok=True)
    geometry = ["detector.size=150,150", "detector.pixel_size=0.6", "detector.distance=120", "scan.width=2"]
    names = ["output.experiments=integrated.expt", "output.reflections=integrated.refl", "output.truth=None"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run(["structure=lysozyme", *geometry, *names, "scan.n_images=10", "d_min=4", "nproc=1", *options])
    return folder


def on_path(folder: Path, python: str, patch: pytest.MonkeyPatch) -> None:
    """Put a ``dials.diffuse_process`` into the folder, first on the path: Python with these arguments and its own."""
    folder.mkdir(exist_ok=True)
    script = folder / "dials.diffuse_process"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {python} "$@"\n')
    script.chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
