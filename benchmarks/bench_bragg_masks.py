"""Masks of Bragg peaks that are the same for all, and masks that follow the peaks, against the truth.

    python benchmarks/bench_bragg_masks.py demo-output [FOLDER ...]

Each folder holds what docs/demo.sh makes: simulated images, scaled.expt, scaled.refl and truth.nxs. A second dose:
dials.diffuse_simulate structure=lysozyme model=llm scan.n_images=96 source.flux=1e14, and the same steps of DIALS.

The bias is the mean of map - truth over the voxels at lattice points less that over all others, of the anisotropic
parts, in % of the rms of the truth. The correlations are of the anisotropic parts. "rims": adaptive masks, and
fill_bragg_holes=False.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dials_diffuse.cli.integrate import run as integrate
from dials_diffuse.cli.merge import run as merge
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.shells import N_BINS, correlation, equal_count_residual
from dials_diffuse.merging.compare import common_voxels

#: parameters of integration and merging
MASKS = {
    "fixed": (["mask.bragg.mode=fixed"], ["fill_bragg_holes=False"]),
    "rims": ([], ["fill_bragg_holes=False"]),
    "adaptive": ([], []),
}
HEAD = "mask       pixels masked  voxels lost   leak est.  bias at lattice points  cc overall      at    away   seconds"


def agreement(data, truth) -> tuple:
    """Share of lost voxels, and bias and correlations of a map as cells of the table."""
    a, b = common_voxels(data, truth)
    index = truth.index[b]
    s = truth.grid.s_magnitude(index)
    x, y = (equal_count_residual(v, s, N_BINS) for v in (data.intensity[a], truth.intensity[b]))
    x /= float(x @ y) / float(y @ y)
    at = np.all(index % np.array(truth.grid.subdivide) == 0, axis=1)
    rms = np.sqrt(np.mean(y**2))
    difference = x - y
    bias = (difference[at].mean() - difference[~at].mean()) / rms
    esd = difference[at].std() / np.sqrt(np.count_nonzero(at)) / rms
    points = np.all(truth.index % np.array(truth.grid.subdivide) == 0, axis=1)
    inside = points & (truth.grid.s_magnitude(truth.index) <= s.max())
    lost = 1 - np.count_nonzero(at) / np.count_nonzero(inside)
    cells = [correlation(x[rows], y[rows]) for rows in (slice(None), at, ~at)]
    return lost, f"{100 * bias:14.1f} ± {100 * esd:.1f} %     " + "  ".join(f"{c:10.4f}"[-8:] for c in cells)


def compare(folder: Path) -> None:
    """Both masks on the images of a folder."""
    truth = read_map(folder / "truth.nxs")
    print(f"\n{folder}\n{HEAD}")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for mask, (options, merging) in MASKS.items():
            start = time.perf_counter()
            integrate(
                [
                    str(folder / "scaled.expt"),
                    str(folder / "scaled.refl"),
                    f"output.observations={out / 'a.h5'}",
                    f"output.json={out / 'a.json'}",
                    f"output.log={out / 'log'}",
                    "nproc=1",
                    *options,
                ]
            )
            seconds = time.perf_counter() - start
            merge(
                [
                    str(out / "a.h5"),
                    f"output.map={out / 'a.nxs'}",
                    f"output.log={out / 'log'}",
                    "output.json=None",
                    "output.png=None",
                    *merging,
                ]
            )
            (record,) = json.loads((out / "a.json").read_text())["experiments"]
            masked = record["bragg"] / (record["bragg"] + record["used"])
            leak = [f"{100 * m['leak_mean']:8.2f} %" for m in record["bragg_masks"]] or ["         -"]
            lost, cells = agreement(read_map(out / "a.nxs"), truth)
            print(f"{mask:10} {100 * masked:10.1f} % {100 * lost:10.2f} %  {leak[0]} {cells} {seconds:9.1f}")


def main() -> None:
    """All folders."""
    print(__doc__)
    for folder in sys.argv[1:]:
        compare(Path(folder))


if __name__ == "__main__":
    main()
