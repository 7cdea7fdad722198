"""What leaks out of Bragg masks for several values of mask.bragg.leak, beside the map that knows everything.

    python benchmarks/bench_leak.py [FOLDER]

Three crystals that nothing else is tried on, 40 images each, with true models. The bias is the mean of map - truth at
lattice points less that elsewhere, of the anisotropic parts, in % of the rms of the truth; "ideal" is the map of the
same images without Bragg peaks, with true scales and background. What leaks is the difference from its bias.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.builders import PROVENANCE
from helpers.loops import D_MAX, FLUX, N_BINS, REDUCTION, SIMULATION
from helpers.structures import random_structure
from helpers.synthetic import make_detector, make_experiment

from dials_diffuse.experiment.build import build_crystal, random_orientation
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.shells import correlation, equal_count_residual
from dials_diffuse.merging.compare import common_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import Masking
from dials_diffuse.simulation.simulate import Outputs, simulate
from dials_diffuse.simulation.simulation_parameters import Source

#: space group, cell, seed, gamma (Å) and dose
SETS = (
    ("P 1", (23, 21, 26, 98, 86, 75), 11, 6.0, 1.0),
    ("P 21 21 21", (24, 28, 31, 90, 90, 90), 12, 5.0, 1.0),
    ("C 1 2 1", (30, 22, 27, 90, 101, 90), 13, 7.0, 10.0),
)

FIXED = Masking(n_sigma=3.0, outlier_n_sigma=0.0)
MASKS = {f"{leak:g}": Masking(leak=leak, outlier_n_sigma=0.0) for leak in (0.25, 0.5, 1, 2)}


def make(folder: Path, group: str, cell: tuple, seed: int, gamma: float, dose: float) -> None:
    """Simulate one of the sets."""
    structure = random_structure(group, cell, "CNOCS" * 4, u=(0.3, 0.4), radius=6.0, seed=seed)
    experiment = make_experiment(
        n_images=40,
        detector=make_detector(size=(250, 220), distance=60.0, pixel=0.25),
        crystal=build_crystal(structure.cell, structure.space_group, random_orientation(np.random.default_rng(seed))),
    )
    experiment.imageset = None
    parameters = replace(
        SIMULATION, source=Source(FLUX * dose), subdivide=(3, 3, 3), d_min=2.2, sub_steps=2, sub_pixels=1
    )
    names = ("simulated", "background", "simulated.expt", "simulated.refl", "truth.nxs", "ideal.nxs")
    outputs = Outputs(*(str(folder / name) for name in names))
    simulate(structure, LiquidLikeMotions(sigma=0.4, gamma=gamma), [[experiment]], parameters, outputs, PROVENANCE)


def reduced(folder: Path, masking: Masking):
    """The map with some masks."""
    data = load_input([str(folder / "simulated.expt"), str(folder / "simulated.refl")])
    parameters = replace(REDUCTION, subdivide=(3, 3, 3), d_min=2.2, masking=masking)
    integrate(data.experiments, parameters, folder / "a.h5", PROVENANCE, data.reflections)
    return merge_observations([folder / "a.h5"], MergeParameters(n_shells=4)).map


def agreement(data, truth) -> str:
    """Bias and correlations as cells of the table."""
    a, b = common_voxels(data, truth)
    s = truth.grid.s_magnitude(truth.index[b])
    a, b, s = (v[s > 1 / D_MAX] for v in (a, b, s))
    x, y = (equal_count_residual(v, s, N_BINS) for v in (data.intensity[a], truth.intensity[b]))
    x *= (y @ y) / (x @ y)
    at = np.all(truth.index[b] % 3 == 0, axis=1)
    bias = ((x - y)[at].mean() - (x - y)[~at].mean()) / np.sqrt(np.mean(y**2))
    return f"{100 * bias:8.1f} " + " ".join(f"{correlation(x[k], y[k]):8.4f}" for k in (slice(None), at, ~at))


def main() -> None:
    """All sets."""
    print(__doc__)
    with tempfile.TemporaryDirectory() as name:
        top = Path(sys.argv[1] if len(sys.argv) > 1 else name)
        for number, item in enumerate(SETS):
            folder = top / f"{number}"
            if not (folder / "ideal.nxs").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make(folder, *item)
            truth = read_map(folder / "truth.nxs")
            print(f"\n{item}\nleak      bias %       cc       at     away")
            print(f"ideal  {agreement(read_map(folder / 'ideal.nxs'), truth)}", flush=True)
            for label, masking in {**MASKS, "fixed": FIXED}.items():
                print(f"{label:6} {agreement(reduced(folder, masking), truth)}", flush=True)


if __name__ == "__main__":
    main()
