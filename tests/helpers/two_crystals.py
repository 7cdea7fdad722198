"""Observations of two crystals on one detector, with planted scale factors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dials_diffuse.files.observations import OBSERVATION_DTYPE, ExperimentSummary, write_observations
from dials_diffuse.scaling.terms.absorption import AbsorptionOptions
from dials_diffuse.scaling.terms.drift import DriftOptions
from dials_diffuse.scaling.terms.offset import OffsetOptions
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid, true_intensity

GRID = small_grid("P 41", (20, 20, 24, 90, 90, 90), d_min=3.0)
SIZE = (487, 407)  # two Pilatus modules, one above the other
TURN = 40.0
EXPERIMENTS = [ExperimentSummary(f"id-{i}", (1, 40), (0.0, 1.0), 40, 1.0, 1, SIZE) for i in range(2)]
#: the same with what harmonics need
HEAD = {"orientation": (0.05, 0, 0, 0, 0.05, 0, 0, 0, 1 / 24), "axis": (1, 0, 0), "beam": (0, 0, -1)}
TURNING = [replace(e, **HEAD) for e in EXPERIMENTS]
SMALL = {
    "options": (AbsorptionOptions(nodes=4, angle=10), DriftOptions(angle=10), OffsetOptions(angle=8, nodes=5)),
}


def true_b(experiment, t):
    """Two crystals, one twice as thick as the other, that lose 15 % of their scattering."""
    return np.where(experiment == 0, 2.0, 1.0) * (1 - 0.15 * t)


def true_a(experiment, t, x, y):
    return np.exp(0.1 * (x - 0.5) * np.cos(3 * t + experiment) + 0.08 * (y - 0.5) * np.sin(2 * t))


def true_c(experiment, t, s):
    return np.exp(-5 * s) * (0.3 + 0.2 * np.cos(4 * t + 2 * experiment))


MODULES = np.array([1.02, 0.98])


def make_rows(rng, scale=3000.0, copies=2, grid=GRID, a=True, b=True, c=True, d=True, noise=True):
    """Observations of every voxel, ``copies`` for each of two experiments, anywhere on its ring on the detector."""
    index = np.tile(all_voxels(grid), (2 * copies, 1))
    n = len(index)
    rows = np.zeros(n, OBSERVATION_DTYPE)
    rows["experiment"] = np.arange(n) * 2 // n
    radius = 0.49 * grid.s_magnitude(index) * grid.d_min  # from the middle of the detector
    azimuth = rng.uniform(0, 2 * math.pi, n)
    position = [0.5 + radius * np.cos(azimuth), 0.5 + radius * np.sin(azimuth), rng.uniform(0, 1, n)]
    rows["xyz"] = np.stack(position, axis=1) * [*SIZE, TURN]
    x, y, t = (rows["xyz"] / [*SIZE, TURN]).T
    e = rows["experiment"]
    intensity = true_intensity(grid, index)
    expected = intensity * (true_b(e, t) if b else 1.0)
    if c:
        expected = expected + true_c(e, t, grid.s_magnitude(index))
    if a:
        expected = expected * true_a(e, t, x, y)
    if d:
        expected = expected * MODULES[(rows["xyz"][:, 1] >= 212).astype(int)]
    plain = observation_rows(grid, index, expected, rng, scale=scale, noise=noise)
    for name in OBSERVATION_DTYPE.names:
        if name not in ("experiment", "xyz"):
            rows[name] = plain[name]
    return rows


def write(path, rows, experiments=EXPERIMENTS, grid=GRID):
    with write_observations(path, grid, experiments, PROVENANCE) as writer:
        writer.append(rows)
    return path


def anisotropic(grid, index, values):
    """Less a smooth function of |s|."""
    s = grid.s_magnitude(index)
    return values - np.polynomial.Polynomial.fit(s, values, 6)(s)
