"""dials.diffuse_process killed at any moment and called again leaves the files of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dials_diffuse.cli import simulate

STEPS = ("Choices", "Integration", "Scaling", "Merging")
OPTIONS = ["integrate.d_min=4", "grid.subdivide=1,1,1", "scale.model=b", "scale.bragg_scales=False"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    geometry = ["detector.size=150,150", "detector.pixel_size=0.6", "detector.distance=120", "scan.width=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        simulate.run(["structure=lysozyme", *geometry, "scan.n_images=10", "d_min=4", "nproc=1", "output.truth=None"])
    return folder


def command(images: Path, folder: Path, nproc: int = 1) -> list:
    files = [str(images / f"simulated.{suffix}") for suffix in ("expt", "refl")]
    program = [sys.executable, "-m", "dials_diffuse.cli.process"]
    return [*program, *files, *OPTIONS, f"nproc={nproc}", f"output.directory={folder}"]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(images, folder), check=True, capture_output=True)
    return folder


def killed_after(images: Path, folder: Path, word: str, delay: float, nproc: int) -> None:
    """Start a run and kill it some time after its log says a word, or let it end if that is sooner."""
    run = subprocess.Popen(
        command(images, folder, nproc), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )
    for line in run.stdout:
        if line.startswith(word):
            time.sleep(delay)
            break
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()


def contents(folder: Path) -> dict:
    """Numbers of the files, and the record without what differs from run to run."""
    result = {}
    for name in ("diffuse_integrated.h5", "diffuse_scaled.h5", "diffuse_merged.nxs"):
        with h5py.File(folder / name) as handle:
            paths: list = []
            handle.visit(paths.append)
            datasets = [path for path in paths if isinstance(handle[path], h5py.Dataset)]
            result.update({f"{name} {path}": handle[path][()] for path in datasets})
    own = {"command_line", "inputs", "phil", "parameters", "modified", "steps", "outputs"}
    record = json.loads((folder / "dials.diffuse_process.json").read_text())
    result["record"] = {key: value for key, value in record.items() if key not in own}
    return {key: value for key, value in result.items() if key.split("/")[-1] not in own}


@pytest.mark.parametrize(("nproc", "moments"), [(1, 1), (2, 3)])
def test_killed_at_every_step_and_called_again(images, undisturbed, tmp_path, nproc, moments):
    rng = np.random.default_rng(nproc)
    for step in STEPS:
        for delay in rng.uniform(0, 0.8, moments):
            killed_after(images, tmp_path, step, float(delay), nproc)
    done = subprocess.run(command(images, tmp_path, nproc), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, other = contents(undisturbed), contents(tmp_path)
    assert own.keys() == other.keys()
    assert own.pop("record") == other.pop("record")
    for key in own:
        np.testing.assert_array_equal(own[key], other[key], key)
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(undisturbed))  # nothing half-written is left
