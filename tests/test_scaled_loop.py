"""Images of two crystals with known drift, absorption and thickness, integrated, scaled, against the truth."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from dxtbx.model.experiment_list import ExperimentListFactory
from helpers.builders import PROVENANCE
from helpers.loops import LLM, REDUCTION, SIMULATION, compare_with_truth
from helpers.structures import random_structure
from scipy.ndimage import map_coordinates

from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ObservationFile, write_observations
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import BackgroundSmoothing
from dials_diffuse.scaling.layout import Rows, coordinates, make_layout
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.terms.drift import DriftOptions
from dials_diffuse.simulation.plan import plan_sweeps
from dials_diffuse.simulation.simulate import Outputs, simulate
from dials_diffuse.simulation.simulation_parameters import Background, Scales

THICKNESS = (0.2, 0.12)
STRUCTURE = random_structure("P 41", (16, 16, 14, 90, 90, 90), "CNOCS" * 2, u=(0.3, 0.45))
SCALING = ScalingParameters(options=(DriftOptions(angle=20.0),))


def make_images(folder, scales, thickness):
    """Simulate and integrate; returns the observation file."""
    detector = DetectorParameters(size=(120, 100), pixel_size=0.8, distance=60.0)
    scan = ScanParameters(width=3.0, n_images=60)
    sweeps = plan_sweeps(STRUCTURE, detector, BeamParameters(), scan, n_crystals=len(thickness), seed=3)
    parameters = replace(
        SIMULATION,
        scales=scales,
        thickness=thickness,
        background=Background(air=1.0, liquid=0.01, solvent=False),
        background_images=12,
    )
    outputs = Outputs(
        prefix=str(folder / "simulated"),
        background=str(folder / "background"),
        experiments=str(folder / "simulated.expt"),
        reflections=str(folder / "simulated.refl"),
        truth=str(folder / "truth.nxs"),
        ideal=None,
    )
    simulate(STRUCTURE, LLM, sweeps, parameters, outputs, PROVENANCE)
    empty = ExperimentListFactory.from_filenames([str(p) for p in sorted(folder.glob("background_1_*.cbf"))])
    reduction = replace(REDUCTION, background=BackgroundSmoothing(block=1, angle=180.0))
    data = load_input([str(folder / "simulated.expt"), str(folder / "simulated.refl")])
    integrate(data.experiments, reduction, folder / "integrated.h5", PROVENANCE, data.reflections, empty)
    return folder / "integrated.h5"


def true_gain(folder, rows) -> np.ndarray:
    """(n,) absorption times scale of the crystal where each row was measured, from the truth file."""
    gain = np.empty(len(rows["norm"]))
    with h5py.File(folder / "truth.nxs") as file:
        for number, sweep in enumerate(file["entry/simulation"].values()):
            mine = rows["experiment"] == number
            x, y, angle = rows["xyz"][mine].astype(float).T
            image = np.interp(angle, sweep["angle"][:], np.arange(len(sweep["angle"])))
            panel = sweep["panel_0"]
            places = (
                np.interp(image, sweep["absorption_image"][:] - 1, np.arange(len(sweep["absorption_image"]))),
                np.interp(y, panel["y"][:], np.arange(len(panel["y"]))),
                np.interp(x, panel["x"][:], np.arange(len(panel["x"]))),
            )
            absorption = map_coordinates(panel["absorption"][:].astype(float), places, order=1, mode="nearest")
            scale = sweep["counts_per_electron2_steradian"][0] * sweep["b"][:]
            gain[mine] = absorption * np.interp(image, np.arange(len(scale)), scale)
    return gain


def with_true_scales(folder):
    """Observations divided by what is true: what scaling gets at best."""
    with ObservationFile(folder / "integrated.h5") as file:
        rows = file.read(*OBSERVATION_DTYPE.names)
        gain = true_gain(folder, rows)
        gain /= gain.mean()
        table = np.empty(len(gain), OBSERVATION_DTYPE)
        for name in OBSERVATION_DTYPE.names:
            table[name] = rows[name]
        for half in ("", "_odd"):
            table["norm" + half] *= gain
            table["rate" + half] /= gain
        table["rate_variance"] /= gain**2
        with write_observations(folder / "true.h5", file.grid, file.experiments, PROVENANCE) as writer:
            writer.append(table)
    return folder / "true.h5"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """(folder, result of scaling) of two crystals, one 1.7 times as thick, with drift and absorption."""
    folder = tmp_path_factory.mktemp("uneven")
    path = make_images(folder, Scales(drift=0.15, absorption=0.05, module=0.0), THICKNESS)
    return folder, scale_observations([path], SCALING, folder / "scaled.h5", PROVENANCE, 2)


def agreement(path, folder):
    """The merged map against the truth."""
    data = merge_observations([path], MergeParameters(n_shells=4)).map
    return compare_with_truth(data, read_map(folder / "truth.nxs"))


def test_the_map_is_as_good_as_with_the_true_scales(uneven):
    folder, _ = uneven
    after = agreement(folder / "scaled.h5", folder)
    offset_only = replace(SCALING, terms=("c",))
    scale_observations([with_true_scales(folder)], offset_only, folder / "best.h5", PROVENANCE, 2)
    best = agreement(folder / "best.h5", folder)
    assert agreement(folder / "integrated.h5", folder).cc < 0.8
    assert best.cc > 0.99
    assert after.cc > best.cc - 0.005
    for row in after.shells:
        assert row["slope"] / after.slope == pytest.approx(1, abs=0.01)


def test_curves_are_the_true_ones(uneven):
    """Absorption and scale of each crystal within 1 % rms at every observation, and so the ratio of the crystals."""
    folder, result = uneven
    with ObservationFile(folder / "integrated.h5") as file:
        rows = file.read(*OBSERVATION_DTYPE.names)
        layout = make_layout(file.experiments, file.grid)
    experiment = rows["experiment"].astype(int)
    x = coordinates(layout, experiment, rows)
    model, truth = result.refinement.model, np.log(true_gain(folder, rows))
    assert {"b", "h", "c"} <= set(model.terms)
    difference = sum(model.value(key, Rows(x, experiment)) for key in "bhd") - truth
    first, second = (difference[experiment == k] for k in (0, 1))
    assert np.std(truth[experiment == 0]) > 0.05
    assert np.std(first) < 0.01 and np.std(second) < 0.01
    assert abs(first.mean() - second.mean()) < 0.01
    assert np.std(difference) < 0.01


def test_the_crystals_agree_and_the_scale_is_absolute(uneven):
    _, result = uneven
    assert result.correlations[0, 1] > 0.99


def test_where_there_is_nothing_to_scale_nothing_is_taken_out(tmp_path):
    """Absorption, drift and offset that are fitted to images without any leave the map as it is, or better."""
    path = make_images(tmp_path, Scales(drift=0.0, absorption=0.0, module=0.0), THICKNESS[:1])
    scale_observations([path], SCALING, tmp_path / "scaled.h5", PROVENANCE, 2)
    before, after = agreement(path, tmp_path), agreement(tmp_path / "scaled.h5", tmp_path)
    assert after.cc > before.cc
    for old, new in zip(before.shells, after.shells):
        assert new["slope"] == pytest.approx(old["slope"], rel=0.01)
