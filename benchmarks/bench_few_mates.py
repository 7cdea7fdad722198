"""Scaling where a voxel has one observation or many: twelve simulated sets against their truth.

P 1, P 21, P 3 and P 43 21 2; one sweep of 90 or two of 60 degrees; with absorption of 6 % and without; two doses;
drift of 25 %, crystals of different thickness, and an isotropic background of 40 % that does not scale. Correlation of
the anisotropic part with the truth, and in brackets by how much its slope varies between six shells from 10 Å on. The
column "before" is of scaling whose priors had no size. "known to" and "is off by" are what the program says of the
error of a row's scale, and its rms difference from the truth, means in rings of |s| taken off.

``python benchmarks/bench_few_mates.py [seed=N] [SET...]``, for example ``P1_1_a_high``, or ``C2_1_a_high``, which is
not one of the twelve. With ``_images`` behind it those of the background are subtracted, with ``_refl`` the file holds
integrated reflections, with ``_images_refl`` both. Another seed is another orientation, absorption and noise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.few_mates import PROVENANCE, FewMates, agreement, simulate, true_map

from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.scaling.layout import Rows, S, coordinates, make_layout
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

CRYSTALS = {
    "P1": FewMates("P 1", (27.3, 31.9, 34.3, 88.5, 108.6, 111.8)),
    "P21": FewMates("P 1 21 1", (28.0, 62.0, 34.0, 90, 95, 90), d_min=2.5),
    "C2": FewMates("C 1 2 1", (58.0, 44.0, 38.0, 90, 104, 90), d_min=2.4),
    "P3": FewMates("P 3", (55.0, 55.0, 30.0, 90, 90, 120), d_min=2.6),
    "P43212": FewMates("P 43 21 2", (78.5, 78.5, 37.8, 90, 90, 90), (1, 1, 2), d_min=2.4),
}
DOSES = {"high": 1200.0, "low": 300.0}

#: crystal _ sweeps _ a: with absorption, 0: without _ dose: (correlation, slope variation in %) before; None: not
#: measured
BEFORE = {
    "P1_1_a_high": (0.8984, 4.8),
    "P1_1_0_low": (0.8138, 3.4),
    "P1_2_a_low": (0.8683, 1.8),
    "P21_1_a_low": (0.7996, 1.9),
    "P21_1_0_high": None,
    "P21_2_a_high": (0.9455, 1.5),
    "P3_1_a_low": (0.8247, 1.4),
    "P3_1_0_high": None,
    "P3_2_0_low": None,
    "P43212_1_a_high": (0.9462, 2.8),
    "P43212_2_0_low": (0.8591, 2.6),
    "P43212_2_a_high": None,
}


def case_of(name: str, seed: int = 1) -> FewMates:
    crystal, n_sweeps, absorption, dose, *more = name.split("_")
    case = CRYSTALS[crystal]
    return FewMates(
        case.group,
        case.cell,
        case.subdivide,
        case.d_min,
        n_sweeps=int(n_sweeps),
        turn=90.0 if n_sweeps == "1" else 60.0,
        absorption=case.absorption if absorption == "a" else 0.0,
        counts=DOSES[dose],
        seed=seed,
        images="images" in more,
        reflections="refl" in more,
    )


def error_of_scale(folder: Path, result) -> float:
    """Rms relative error of what the model expects of rows without their anisotropic part, but for rings of |s|."""
    with ObservationFile(folder / "integrated.h5") as file:
        rows, layout = (
            file.read("index", "experiment", "panel", "xyz", "s", "norm"),
            make_layout(file.experiments, file.grid),
        )
        centre = file.grid.s_magnitude(rows["index"])
    experiment = rows["experiment"].astype(int)
    x = coordinates(layout, experiment, rows)
    found = result.refinement.model.predict(Rows(x, experiment), rows["norm"], centre).isotropic
    error = np.log(np.maximum(found, 1e-9) / np.load(folder / "isotropic.npy"))
    ring = np.argsort(np.argsort(x[:, S])) * 60 // len(x)
    error -= (np.bincount(ring, error) / np.bincount(ring))[ring]
    return float(np.std(error))


def text(comparison) -> str:
    return f"{comparison.cc:.4f} ({100 * comparison.slope_variation:4.1f} %)"


def run(name: str, folder: Path, truth, seed: int) -> None:
    simulate(case_of(name, seed), folder, truth)
    start = time.perf_counter()
    result = scale_observations([folder / "integrated.h5"], ScalingParameters(), folder / "now.h5", PROVENANCE)
    seconds = time.perf_counter() - start
    unscaled, now, best = (agreement(folder / f"{x}.h5", truth) for x in ("integrated", "now", "true"))
    known_before = BEFORE.get(name) if seed == 1 else None
    before = "{:.4f} ({:4.1f} %)".format(*known_before) if known_before else f"{'-':15}"
    known, off = result.refinement.scale_errors.rms, error_of_scale(folder, result)
    print(
        f"{name:24} {text(unscaled)}  {before}  {text(now)}  {text(best)}  {100 * known:5.2f} %  {100 * off:5.2f} %  "
        f"{seconds:4.0f} s  {','.join(result.refinement.model.terms)}",
        flush=True,
    )


def main(names=tuple(BEFORE), seed: int = 1) -> None:
    heads = ("unscaled", "before", "now", "true scales")
    print(f"{'':24} {''.join(f'{head:17}' for head in heads)}known to  is off by        terms")
    truths: dict = {}
    for name in names:
        crystal = name.split("_")[0]
        if crystal not in truths:
            truths = {crystal: true_map(case_of(name))}
        with tempfile.TemporaryDirectory() as folder:
            run(name, Path(folder), truths[crystal], seed)


if __name__ == "__main__":
    seeds = [int(word[len("seed=") :]) for word in sys.argv[1:] if word.startswith("seed=")]
    sets = [word for word in sys.argv[1:] if not word.startswith("seed=")]
    main(sets or tuple(BEFORE), *seeds)
