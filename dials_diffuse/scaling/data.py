"""Observations as plain arrays for the scale model: all rows of some unique voxels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.transform import Rotation

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import Voxels, keys_in_box
from dials_diffuse.parallel import in_threads
from dials_diffuse.scaling.patterns import absorption_functions, symmetric_patterns

#: columns of ``coordinates``: fraction of the sweep, position on the detector in its own size, |s|, module number, and
#: from DIFFRACTED and INCIDENT on unit vectors in the frame of the goniometer head, along the diffracted beam and
#: against the incident one: both paths through the crystal
T, X, Y, S, MODULE, DIFFRACTED, INCIDENT = *range(6), 8
N_COORDINATES = 11

COLUMNS = ("index", "experiment", "panel", "counts", "norm", "background", "background_variance", "xyz", "s")

#: edge of the blocks of voxels that are held out together in cross-validation, 1/Å
BLOCK = 0.06

#: module size and gap in pixels, fast and slow, of detectors whose image size tells: Pilatus, Eiger, Eiger 2
_MODULES = ((487, 195, 7, 17), (1030, 514, 10, 37), (1028, 512, 12, 38))


@dataclass(frozen=True)
class Layout:
    """What is common to all sweeps: where modules and sweeps are.

    Attributes
    ----------
    start, width : (e,) float64, first angle and total width of each sweep in degrees
    size : (e, 2) float64, pixels along fast and slow
    module : (e, 4) int64, module size and gap; n_modules : in all panels of one detector
    n_panels : int, largest number of panels
    orientation, axis, beam : (e, 3, 3), (e, 3), (e, 3) float64 in the frame of the goniometer head, see
        ExperimentSummary; None where a file does not say
    lattice : (3,) int64, subdivision of the reciprocal lattice
    """

    start: np.ndarray
    width: np.ndarray
    size: np.ndarray
    module: np.ndarray
    n_modules: int
    n_panels: int
    orientation: np.ndarray | None
    axis: np.ndarray | None
    beam: np.ndarray | None
    lattice: np.ndarray


def make_layout(experiments, grid: MapGrid) -> Layout:
    """Layout of a list of ExperimentSummary."""
    start, width, size, module, n_modules = [], [], [], [], 1
    known = all(e.orientation is not None for e in experiments)
    for e in experiments:
        first, last = e.image_range
        start.append(e.oscillation[0])
        width.append(e.oscillation[1] * (last - first + 1))
        size.append(e.image_size)
        found = (*e.image_size, 0, 0)
        for fast, slow, gap_fast, gap_slow in _MODULES:
            if (e.image_size[0] - fast) % (fast + gap_fast) == 0 and (e.image_size[1] - slow) % (slow + gap_slow) == 0:
                found = (fast, slow, gap_fast, gap_slow)
        module.append(found)
        columns = (e.image_size[0] + found[2]) // (found[0] + found[2])
        rows = (e.image_size[1] + found[3]) // (found[1] + found[3])
        n_modules = max(n_modules, e.n_panels * max(columns * rows, 1))
    return Layout(
        np.array(start, dtype=float),
        np.array(width, dtype=float),
        np.array(size, dtype=float),
        np.array(module),
        int(n_modules),
        max(e.n_panels for e in experiments),
        *(
            np.array([getattr(e, name) for e in experiments]).reshape(-1, *shape) if known else None
            for name, shape in (("orientation", (3, 3)), ("axis", (3,)), ("beam", (3,)))
        ),
        lattice=np.array(grid.subdivide),
    )


def coordinates(layout: Layout, experiment: np.ndarray, block: dict) -> np.ndarray:
    """(n, N_COORDINATES) float64, the columns T, X, Y, S, MODULE, and six from DIFFRACTED on (0 where unknown).

    experiment : (n,) int, row of the layout; block : columns of rows, at least panel, xyz, s, index
    """
    panel, xyz, s = block["panel"], block["xyz"], block["s"]
    result = np.zeros((len(s), N_COORDINATES))
    result[:, T] = (xyz[:, 2] - layout.start[experiment]) / layout.width[experiment]
    result[:, X:S] = xyz[:, :2] / layout.size[experiment]
    result[:, S] = s
    fast, slow, gap_fast, gap_slow = layout.module[experiment].T
    columns = (layout.size[experiment, 0] + gap_fast) // (fast + gap_fast)
    rows = (layout.size[experiment, 1] + gap_slow) // (slow + gap_slow)
    column = np.clip(xyz[:, 0] // (fast + gap_fast), 0, columns - 1)
    row = np.clip(xyz[:, 1] // (slow + gap_slow), 0, rows - 1)
    result[:, MODULE] = (panel * rows + row) * columns + column
    if layout.orientation is not None:
        result[:, DIFFRACTED:] = directions_in_head(layout, experiment, block["index"], xyz[:, 2])
    return result


def directions_in_head(layout: Layout, experiment: np.ndarray, index: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(n, 6) float64, unit vectors along the diffracted beam and against the incident one, goniometer-head frame.

    index : (n, 3) int on the subdivided lattice; angle : (n,) degrees
    """
    result = np.empty((len(angle), 6))
    for number in np.unique(experiment):
        mine = experiment == number
        turn = Rotation.from_rotvec(-np.deg2rad(angle[mine])[:, None] * layout.axis[number])
        incident = turn.apply(layout.beam[number])
        diffracted = incident + (index[mine] / layout.lattice) @ layout.orientation[number].T
        result[mine, :3] = diffracted / np.linalg.norm(diffracted, axis=1, keepdims=True)
        result[mine, 3:] = -incident / np.linalg.norm(incident, axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class Observations:
    """n rows of m unique voxels, those of one voxel together.

    Attributes
    ----------
    orbit : (n,) int64, ascending, 0 … m - 1
    unique : (m,) int64, row of ``Voxels.index``
    experiment : (n,) int64
    coordinates : (n, N_COORDINATES) float64
    counts, norm, background, background_variance : (n,) float64
    s_voxel : (n,) float64, |s| of the voxel's centre
    patterns : (m, k) float64, see :mod:`dials_diffuse.scaling.patterns`
    block : (m,) int64, neighbouring voxels have the same number
    harmonics : (n, k) float64, functions of the absorption as harmonics; k is 0 where the layout lacks the orientation
    """

    orbit: np.ndarray
    unique: np.ndarray
    experiment: np.ndarray
    coordinates: np.ndarray
    counts: np.ndarray
    norm: np.ndarray
    background: np.ndarray
    background_variance: np.ndarray
    s_voxel: np.ndarray
    patterns: np.ndarray
    block: np.ndarray
    harmonics: np.ndarray

    @property
    def n(self) -> int:
        return len(self.orbit)

    @property
    def net(self) -> np.ndarray:
        return self.counts - self.background

    def orbits(self, wanted: np.ndarray) -> Observations:
        """The rows of some voxels; wanted : (k,) int, rows of ``unique`` in the order that is wanted."""
        rank = np.full(len(self.unique), -1)
        rank[wanted] = np.arange(len(wanted))
        rows = np.argsort(rank[self.orbit], kind="stable")
        rows = rows[np.count_nonzero(rank[self.orbit] < 0) :]
        return self._taken(rows, wanted, rank[self.orbit[rows]])

    def part(self, first: int, last: int) -> Observations:
        """The rows of voxels ``first`` up to, not with, ``last``, without copying them."""
        rows = slice(*np.searchsorted(self.orbit, [first, last]))
        return self._taken(rows, slice(first, last), self.orbit[rows] - first)

    def _taken(self, rows, voxels, orbit) -> Observations:
        by_voxel = ("unique", "patterns", "block")
        names = [f.name for f in fields(self) if f.name != "orbit"]
        return Observations(orbit, **{n: getattr(self, n)[voxels if n in by_voxel else rows] for n in names})


def unique_of(block: dict, grid: MapGrid, voxels: Voxels) -> np.ndarray:
    """(n,) int64, unique voxel of each row, -1 outside the grid or where the norm is not positive."""
    fits, keys = keys_in_box(grid, block["index"])
    unique = np.full(len(fits), -1, dtype=np.int64)
    slot = voxels.slot[keys]
    unique[fits] = np.where(slot >= 0, voxels.unique[slot], -1)
    unique[~(block["norm"] > 0)] = -1
    return unique


def sample_observations(
    blocks, grid: MapGrid, voxels: Voxels, layout: Layout, wanted: np.ndarray, degree: int, threads: int = 1
) -> Observations:
    """All rows of the wanted unique voxels.

    Parameters
    ----------
    blocks : (first experiment of the file, {column: array}) pairs with ``COLUMNS``
    wanted : (u,) bool, by row of ``voxels.index``
    degree : of the harmonics of the absorption
    """

    def work(item) -> dict:
        first, block = item
        unique = unique_of(block, grid, voxels)
        use = np.flatnonzero((unique >= 0) & wanted[unique])
        part = {name: block[name][use] for name in COLUMNS}
        part["experiment"] = part["experiment"] + first
        return {**part, "unique": unique[use]}

    parts = list(in_threads(work, blocks, threads))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["unique"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    unique, orbit = np.unique(columns["unique"], return_inverse=True)
    experiment = columns["experiment"].astype(np.int64)
    position = coordinates(layout, experiment, columns)
    known = layout.orientation is not None
    return Observations(
        orbit=orbit.reshape(-1).astype(np.int64),
        unique=unique,
        experiment=experiment,
        coordinates=position,
        **{name: columns[name].astype(float) for name in ("counts", "norm", "background", "background_variance")},
        s_voxel=grid.s_magnitude(columns["index"]),
        patterns=symmetric_patterns(grid, voxels.index[unique]),
        block=blocks_of_voxels(grid, voxels.index[unique]),
        harmonics=absorption_functions(position[:, DIFFRACTED:], degree) if known else np.zeros((len(orbit), 0)),
    )


def blocks_of_voxels(grid: MapGrid, index: np.ndarray, least: int = 1) -> np.ndarray:
    """(m,) int64, number of the block of about BLOCK 1/Å, or ``least`` voxels, along each axis that a voxel lies in.

    Blocks hold whole neighbourhoods of lattice points: what varies within a halo or between neighbouring halos of
    diffuse scattering is the same in a block.

    index : (m, 3) integers on the subdivided lattice
    """
    edge = np.linalg.norm(grid.reciprocal_matrix, axis=0) / grid.subdivide  # 1/Å from voxel to voxel along each axis
    block = np.floor(index / np.maximum(np.round(BLOCK / edge), least)).astype(np.int64)
    return np.ravel_multi_index((block - block.min(axis=0)).T, np.ptp(block, axis=0) + 1)
