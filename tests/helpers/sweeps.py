"""Observations of whole sweeps in a true geometry: where and when each voxel passes through the Ewald sphere."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from dials_diffuse.files.observations import ExperimentSummary, write_observations
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from helpers.builders import PROVENANCE, all_voxels, observation_rows

SIZE = (487, 407)
WAVELENGTH = 1.0


def random_intensity(grid: MapGrid, index, seed=0, spread=0.3, n_waves=40) -> np.ndarray:
    """(n,) positive, isotropic decay times random waves, some voxels long, with the Laue symmetry of the grid."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(size=(n_waves, 3)), rng.uniform(0, 2 * np.pi, n_waves)
    total = np.zeros(len(index))
    operators = laue_operators(grid.space_group, True)
    for operator in operators:
        total += np.cos(index @ operator @ waves.T + phases).sum(axis=1)
    total *= np.sqrt(2 / (n_waves * len(operators)))
    return 3 * np.exp(-5 * grid.s_magnitude(index)) * np.exp(spread * np.clip(total, -3, 3))


def passages(grid: MapGrid, turn=180.0, start=0.0, seed=0) -> dict:
    """Columns index, entering, xyz of all passages of the voxels of a grid in one sweep.

    turn : degrees of the rotation about x, from ``start``; seed : of the orientation of the crystal
    """
    index = all_voxels(grid)
    s = grid.s(index) @ Rotation.random(random_state=seed).as_matrix().T
    radius, phase = np.hypot(s[:, 1], s[:, 2]), np.arctan2(s[:, 1], s[:, 2])
    goal = -WAVELENGTH * (s**2).sum(axis=1) / 2  # the component along the beam, on the sphere
    meets = np.abs(goal) < radius
    away = np.arccos(goal[meets] / radius[meets])
    parts = []
    for entering in (0, 1):
        at = (2 * entering - 1) * away
        angle = np.rad2deg(at - phase[meets]) - start
        angle = start + angle % 360
        use = angle < start + turn
        mine = np.flatnonzero(meets)[use]
        x, y = s[mine, 0], radius[mine] * np.sin(at[use])
        xyz = np.stack([(0.5 + 0.49 * v * grid.d_min) * n for v, n in zip((x, y), SIZE)] + [angle[use]], axis=1)
        parts.append({"index": index[mine], "entering": np.full(len(mine), entering), "xyz": xyz})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sweep_rows(grid: MapGrid, intensity, rng, scale=300.0, factor=None, added=None, **options) -> np.ndarray:
    """Rows of OBSERVATION_DTYPE of one sweep.

    Parameters
    ----------
    intensity : function of the grid and index (n, 3)
    factor, added : functions of x, y, t (n,), all from 0 to 1, and |s|: absorption, and what is not the crystal's
    options : of :func:`passages`
    """
    columns = passages(grid, **options)
    turn = options.get("turn", 180.0)
    x, y, t = (columns["xyz"] / [*SIZE, turn] - [0, 0, options.get("start", 0.0) / turn]).T
    expected = intensity(grid, columns["index"])
    s = grid.s_magnitude(columns["index"])
    if added is not None:
        expected = expected + added(x, y, t, s)
    if factor is not None:
        expected = expected * factor(x, y, t, s)
    rows = observation_rows(grid, columns["index"], expected, rng, scale=scale)
    for name in ("entering", "xyz"):
        rows[name] = columns[name]
    return rows


def summary(identifier="id-0", turn=180.0, start=0.0, n_images=180) -> ExperimentSummary:
    width = turn / n_images
    return ExperimentSummary(identifier, (1, n_images), (start, width), n_images, WAVELENGTH, 1, SIZE)


def image_of(rows, turn=180.0, n_images=180) -> np.ndarray:
    """(n,) number of the image, from 1, in which an observation has its mean angle."""
    return np.clip((rows["xyz"][:, 2] / turn * n_images).astype(int), 0, n_images - 1) + 1


def write_sweeps(path, grid: MapGrid, *sweeps, experiments=None):
    """Write sweeps, arrays of rows, to one file; experiments : their ExperimentSummary."""
    experiments = experiments or [summary(f"id-{i}") for i in range(len(sweeps))]
    rows = np.concatenate(sweeps)
    rows["experiment"] = np.repeat(np.arange(len(sweeps)), [len(s) for s in sweeps])
    with write_observations(path, grid, experiments, PROVENANCE) as writer:
        writer.append(rows)
    return path
