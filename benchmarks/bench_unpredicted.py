"""Peaks of a second lattice and of salt on the images: the map with and without masks for them, against the truth.

    python benchmarks/bench_unpredicted.py demo-output [images]

The folder holds what docs/demo.sh makes. A second crystal, turned by 3 degrees, is simulated on the same detector, and
a part of its photons is added to the first images of the demo (48, unless told otherwise), with spots of rock salt that
have wings. The correlations are of the anisotropic parts: all voxels, those at lattice points, and the others.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dxtbx
import numpy as np
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from scipy.spatial.transform import Rotation

from dials_diffuse.cli.simulate import run as simulate
from dials_diffuse.experiment.cbf import write_cbf
from dials_diffuse.experiment.detector import panel_geometry, s_magnitude
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.shells import N_BINS, correlation, equal_count_residual
from dials_diffuse.merging.compare import common_voxels
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters

#: part of the second crystal's photons, and spots of salt on each image
SETS = ((0.0, 0), (0.1, 0), (0.2, 6), (0.3, 0))

TURN, SALT, SPOT, WING = 3.0, 5.64, 1.2, 3.0  # degrees; Å; pixels
BARE = (
    "background.air=0 background.liquid=0 background.solvent=False background.compton=False detector.hot_pixels=0 "
    "detector.dead_pixels=0 output.truth=None output.html=None output.json=None output.reflections=None seed=9"
)


def simulate_second(demo: Path, folder: Path, n: int):
    """Images of the second crystal alone; returns the experiment of the first."""
    first = ExperimentListFactory.from_json_file(str(demo / "simulated.expt"), check_format=False)
    first[0].scan = first[0].scan[0:n]
    first[0].imageset = None
    u = np.array(first[0].crystal.get_U()).reshape(3, 3)
    turn = Rotation.from_rotvec(np.radians(TURN) * np.array([0.6, 0.64, 0.48])).as_matrix()
    first[0].crystal.set_U(tuple((turn @ u).ravel()))
    first.as_file(str(folder / "second.expt"))
    outputs = [f"output.prefix={folder}/second", f"output.experiments={folder}/s.expt", f"output.log={folder}/log"]
    simulate([str(folder / "second.expt"), "structure=lysozyme", "model=llm", *BARE.split(), *outputs])
    return first[0]


def salt(rng, s: np.ndarray, n: int) -> np.ndarray:
    """Photons of n spots at the rings of rock salt; s : (ny, nx) 1/Å"""
    expected = np.zeros(s.shape)
    for d in rng.choice(SALT / np.sqrt([3, 4, 8, 11, 12]), n):
        places = np.argwhere(np.abs(s - 1 / d) < 0.0015)
        if not len(places):  # a ring beyond the edges of the detector
            continue
        y, x = places[rng.integers(len(places))] + rng.uniform(-0.5, 0.5, 2)
        r = np.hypot(*np.ogrid[-y : s.shape[0] - y - 0.5, -x : s.shape[1] - x - 0.5])
        core, wing = np.exp(-0.5 * (r / SPOT) ** 2) / SPOT**2, np.exp(-r / WING) / WING**2
        expected += 10 ** rng.uniform(3.5, 6) * (0.95 * core + 0.05 * wing) / (2 * np.pi)
    return rng.poisson(expected)


def counts(path) -> np.ndarray:
    raw = dxtbx.load(str(path)).get_raw_data()
    return (raw[0] if isinstance(raw, tuple) else raw).as_numpy_array()


def write_images(demo: Path, folder: Path, experiment, part: float, n_salt: int, n: int) -> None:
    """The images of a set."""
    panel = experiment.detector[0]
    s = s_magnitude(panel_geometry(panel).directions, np.array(experiment.beam.get_s0()))
    for i in range(1, n + 1):
        rng = np.random.default_rng([i, 5])
        first, second = counts(demo / f"simulated_1_{i:05d}.cbf"), counts(folder / f"second_1_{i:05d}.cbf")
        total = first + rng.binomial(np.maximum(second, 0), part) + salt(rng, s, n_salt)
        total = np.where((first >= 0) & (second >= 0), np.minimum(total, panel.get_trusted_range()[1]), first)
        write_cbf(folder / f"simulated_1_{i:05d}.cbf", [total.astype(np.int32)], experiment, i)


def processed(demo: Path, folder: Path, n: int) -> tuple:
    """What DIALS found on the demo's images, for those of a set."""
    models = ExperimentListFactory.from_json_file(str(demo / "scaled.expt"), check_format=False).to_dict()
    for imageset in models["imageset"]:
        imageset["template"] = str(folder.resolve() / "simulated_1_#####.cbf")
        imageset.pop("images", None)
    experiments = ExperimentList()
    for e in ExperimentListFactory.from_dict(models):
        e.imageset = e.imageset[0:n]
        e.scan = e.imageset.get_scan()
        e.crystal.set_A_at_scan_points([e.crystal.get_A_at_scan_point(k) for k in range(n + 1)])
        experiments.append(e)
    table = flex.reflection_table.from_file(str(demo / "scaled.refl"))
    return experiments, table.select(table["xyzcal.px"].parts()[2] < n)


def main() -> None:
    """All sets."""
    print(__doc__)
    demo, n = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output"), int(sys.argv[2]) if len(sys.argv) > 2 else 48
    truth = read_map(demo / "truth.nxs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment = simulate_second(demo, folder, n)
        for part, n_salt in SETS:
            write_images(demo, folder, experiment, part, n_salt, n)
            print(f"\nsecond crystal {100 * part:.0f} %, {n_salt} spots of salt on each image")
            for use in (False, True):
                parameters = ReductionParameters(masking=Masking(unpredicted=use), geometry_check="warn")
                experiments, table = processed(demo, folder, n)
                result = integrate(experiments, parameters, folder / "a.h5", Provenance("script", "", ""), table)
                merged = merge_observations([folder / "a.h5"], MergeParameters(n_shells=10))
                a, b = common_voxels(merged.map, truth)
                s = truth.grid.s_magnitude(truth.index[b])
                x, y = (equal_count_residual(v, s, N_BINS) for v in (merged.map.intensity[a], truth.intensity[b]))
                at = np.all(truth.index[b] % np.array(truth.grid.subdivide) == 0, axis=1)
                cells = "  ".join(f"{correlation(x[k], y[k]):.4f}" for k in (slice(None), at, ~at))
                chi2 = merged.statistics.overall["chi2_sym"]
                print(f"{'with' if use else 'without':8} cc {cells}  chi2 {chi2:.2f}")
                if use:
                    print(result.experiments[0].unpredicted_peaks.words, flush=True)


if __name__ == "__main__":
    main()
