"""Real images to a map: docs/snase.sh, with the half-set correlations that the map must reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.checkout import ROOT

from dials_diffuse.cli import merge, process
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.shells import anisotropic_correlation

BETWEEN_4_AND_2 = [
    "half_sets=frame",
    "statistics.d_max=4",
    "statistics.d_min=2",
    "output.volume=False",
    "output.png=None",
]


@pytest.fixture(scope="module")
def demo(shared_data, tmp_path_factory) -> Path:
    """Folder with everything that ``make snase`` leaves behind."""
    folder = tmp_path_factory.mktemp("demo")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(ROOT / "docs" / "snase.sh"), str(shared_data), str(folder)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def fine(demo) -> Path:
    """Record of the map with 3 x 3 x 3 voxels for each reciprocal-lattice point, not scaled."""
    return merged(demo, "diffuse_integrated.h5", "fine")


@pytest.fixture(scope="module")
def unattended(demo) -> Path:
    """Folder of what dials.diffuse_process makes with everything left to it."""
    folder = demo / "unattended"
    inputs = [str(demo / "integrated.expt"), str(demo / "integrated.refl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(demo)
        process.run([*inputs, f"output.directory={folder}"])
    return folder


def merged(folder, observations, name) -> Path:
    """Merge between 4 and 2 Å; the record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        merge.run([str(observations), *BETWEEN_4_AND_2, f"output.map={name}.nxs", f"output.json={name}.json"])
    return folder / f"{name}.json"


def overall(path) -> dict:
    return json.loads(Path(path).read_text())["statistics"]["overall"]


def test_the_demo_makes_every_output(demo):
    for name in ("diffuse_integrated.h5", "diffuse_scaled.h5", "diffuse_merged.nxs", "diffuse_merged.json"):
        assert (demo / name).stat().st_size > 1000
    assert (demo / "diffuse_merged.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((demo / "diffuse_integrated.json").read_text())
    assert summary["n_images_used"] == 96 and not summary["warnings"]
    fate = summary["experiments"][0]
    assert fate["outlier"] < 1e-3 * fate["used"]
    # the beam decays and is refilled: a factor of more than two between images
    assert max(fate["flux"]) > 2 * min(fate["flux"])


def test_half_set_correlation_at_3x3x3(fine):
    assert overall(fine)["cc_half"] >= 0.36


def test_unattended(unattended):
    """Spots nearly as wide as the lattice is: one voxel for each of its points. There is signal to the edge."""
    record = json.loads((unattended / "dials.diffuse_process.json").read_text())
    assert record["verdict"] == "good" and record["subdivide"] == [1, 1, 1] and record["n_images_used"] == 96
    assert record["signal"]["cc_half"] > 0.5 and record["d_min"] < 1.5


def test_half_set_correlation_at_1x1x1(demo, unattended):
    assert overall(merged(demo, unattended / "diffuse_integrated.h5", "coarse"))["cc_half"] >= 0.92


def test_scaled_half_sets(demo, fine):
    """What a script with one scale for each image reaches on both grids, 0.966 and 0.611, and more."""
    scaled, before = overall(merged(demo, "diffuse_scaled.h5", "fine_scaled")), overall(fine)
    assert scaled["cc_half"] >= 0.62
    # agreement between symmetry mates, and no more anisotropy than there was: no false gradient
    assert scaled["chi2_sym"] < 0.2 * before["chi2_sym"]
    k = json.loads((demo / "diffuse_scaled.json").read_text())["absolute_scale"]["k"]
    assert 0.8 < scaled["rms_anisotropic"] / k / before["rms_anisotropic"] < 1.1


def test_scaled_half_sets_at_1x1x1(demo, unattended):
    assert overall(merged(demo, unattended / "diffuse_scaled.h5", "coarse_scaled"))["cc_half"] >= 0.97


def test_the_crystal_has_a_four_fold_axis_and_no_mirror(demo, monkeypatch):
    """Merged without symmetry, mates under the four-fold axis agree; under a mirror that P4₁ lacks they do not."""
    monkeypatch.chdir(demo)
    options = ["space_group=P1", "friedel=False", "output.volume=False", "output.png=None", "output.json=None"]
    merge.run(["diffuse_integrated.h5", *options, "output.map=p1.nxs"])
    p1 = read_map("p1.nxs")
    grid = p1.grid
    value = dict(zip(grid.key(p1.index).tolist(), p1.intensity))

    def correlation(operator):
        mates = p1.index @ np.array(operator)
        both = np.array([value.get(k, np.nan) for k in grid.key(mates).tolist()])
        known = np.isfinite(both) & np.isfinite(p1.intensity)
        s = grid.s_magnitude(p1.index[known])
        return anisotropic_correlation(np.asarray(p1.intensity)[known], both[known], s, 10.0, 3.0)

    four_fold = correlation([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    mirror = correlation([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert four_fold > 0.6
    assert four_fold > mirror + 0.3


def test_bragg_peaks_are_gone(demo):
    """Voxels at reciprocal-lattice points are within 10 % of the others at the same resolution."""
    merged = read_map(demo / "diffuse_merged.nxs")
    s = merged.grid.s_magnitude(merged.index)
    shells = (s / 0.004).astype(int)
    norm, net = (merged.sums[name].sum(axis=1) for name in ("norm", "counts"))
    mean = (np.bincount(shells, net) / np.maximum(np.bincount(shells, norm), 1e-9))[shells]
    bragg = np.all(merged.index % 3 == 0, axis=1) & (s > 0.25) & (s < 0.5)
    assert bragg.sum() > 100  # most are never seen beside their peak
    assert net[bragg].sum() / (mean * norm)[bragg].sum() == pytest.approx(1.0, abs=0.1)
