"""Observation files of many crystals of which it is known what they are."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from cctbx import sgtbx
from scipy.spatial.transform import Rotation

from dials_diffuse.crystals.choose import choose_crystals
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.files.observations import ExperimentSummary, ObservationFile, write_observations
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid

GRID = small_grid("P 41", (20, 20, 24, 90, 90, 90), d_min=2.8)

#: of P41 on its lattice: k,h,-l leaves the lattice, but not the crystal, as it is
SWAP = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])

IMAGES = 40


@dataclass(frozen=True)
class Made:
    """What a crystal is and how it was measured.

    Attributes
    ----------
    structure : seed of its anisotropic part; None: it has none
    matrix : its indices were multiplied by this
    turn : degrees, by which it lies otherwise than its indices say
    cell : six numbers, None: that of the grid
    symmetry : space group of its structure, None: that of the grid
    photons : counts of a pixel for an intensity of 1
    directions : (a, b), the voxels seen are those with a <= phi < b around l*, in units of the whole turn
    """

    structure: int | None = 1
    matrix: np.ndarray | None = None
    turn: float = 0.0
    cell: tuple | None = None
    symmetry: str | None = None
    photons: float = 300.0
    directions: tuple = (0.0, 1.0)


def intensity(grid: MapGrid, index, structure: int | None) -> np.ndarray:
    """(n,) intensity with the symmetry of the grid at voxels, or between them; isotropic without a structure."""
    index = np.asarray(index, dtype=float)
    operators = laue_operators(grid.space_group, True)
    waves = np.zeros(len(index))
    if structure is not None:
        rng = np.random.default_rng(structure)
        for vector in rng.normal(size=(12, 3)):
            vector *= rng.uniform(0.7, 1.4) / np.linalg.norm(vector)
            phase = rng.uniform(0, 2 * np.pi)
            for operator in operators:
                waves += np.cos(index @ operator @ vector + phase)
        waves /= np.sqrt(12 * len(operators))
    return np.exp(-5 * grid.s_magnitude(index)) * (3 + np.tanh(waves))


def make_rows(made: Made, rng, grid: MapGrid = GRID) -> np.ndarray:
    """Rows of one crystal; one of them, at random, for each voxel that is seen."""
    index = all_voxels(grid)
    phi = np.arctan2(index[:, 1], index[:, 0]) / (2 * np.pi) % 1
    index = index[(phi >= made.directions[0]) & (phi < made.directions[1])]
    true = index
    if made.turn:
        turn = Rotation.from_rotvec(np.radians(made.turn) * np.array([1, 2, 3]) / 14**0.5).as_matrix()
        true = np.linalg.solve(grid.reciprocal_matrix / grid.subdivide, turn @ grid.s(index).T).T
    t = rng.uniform(0, 1, len(index))
    real = grid if made.symmetry is None else small_grid(made.symmetry, grid.unit_cell, grid.subdivide, grid.d_min)
    expected = intensity(real, true, made.structure) * (1 - 0.2 * t) * rng.uniform(0.98, 1.02)
    rows = observation_rows(grid, index, expected, rng, scale=made.photons)
    rows["entering"] = index[:, 2] > 0
    rows["xyz"] = np.transpose([rng.uniform(0, 487, len(index)), rng.uniform(0, 407, len(index)), IMAGES * t])
    if made.matrix is not None:
        rows["index"] = rows["index"] @ made.matrix
    return rows


def choose(folder, crystals, grid: MapGrid = GRID, seed: int = 0, **options):
    """Write the files of some crystals and choose among them; options are those of CrystalParameters."""
    paths = [write_crystal(folder / f"{k}.h5", made, 100 * seed + k, grid) for k, made in enumerate(crystals)]
    with ExitStack() as stack:
        files = [stack.enter_context(ObservationFile(path)) for path in paths]
        return choose_crystals(files, CrystalParameters(**options))[2]


def matrix_of(operator: str) -> np.ndarray:
    """(3, 3) int, of a change of basis such as k,h,-l: index' = index @ matrix."""
    for old, new in zip("hkl", "xyz"):
        operator = operator.replace(old, new)
    return np.rint(sgtbx.rt_mx(operator).r().as_double()).astype(int).reshape(3, 3).T


def in_one_setting(choice, crystals, grid: MapGrid = GRID) -> bool:
    """Are all crystals that are kept in the same setting, after the operators that were found?"""
    laue = {r.tobytes() for r in laue_operators(grid.space_group, True)}
    found = [
        (np.eye(3, dtype=int) if made.matrix is None else made.matrix) @ matrix_of(decided.operator)
        for made, decided in zip(crystals, choice.crystals)
        if decided.kept
    ]
    relative = [np.rint(m @ np.linalg.inv(found[0])).astype(np.int64) for m in found]
    return all(m.tobytes() in laue for m in relative)


def write_crystal(path, made: Made, seed: int, grid: MapGrid = GRID, bragg=None):
    """Write the file of one crystal; bragg : rows to add."""
    rng = np.random.default_rng(seed)
    cell = made.cell or grid.unit_cell
    own = MapGrid(cell, grid.hall_symbol, grid.subdivide, grid.d_min, grid.d_max)
    rows = make_rows(made, rng, own)
    u = Rotation.random(random_state=seed).as_matrix()
    matrix = np.eye(3) if made.matrix is None else made.matrix
    orientation = u @ own.reciprocal_matrix @ np.linalg.inv(matrix).T
    head = tuple(orientation.ravel()), (1, 0, 0), (0, 0, -1)
    name = f"crystal-{seed}"
    experiment = ExperimentSummary(name, (1, IMAGES), (0.0, 1.0), IMAGES, 1.0, 1, (487, 407), *head)
    with write_observations(path, own, [experiment], PROVENANCE) as writer:
        writer.append(rows)
        if bragg is not None:
            writer.append_bragg(bragg)
    return path
