"""Where sweeps, detectors and modules are, and the coordinates of observations in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dials_diffuse.experiment.modules import ModuleArray, module_array
from dials_diffuse.kernels.coordinates import Sweeps, fill_coordinates
from dials_diffuse.maps.grid import MapGrid

#: columns of ``coordinates``: fraction of the sweep, position on the detector in its own size, |s|, module number, and
#: from DIFFRACTED and INCIDENT on unit vectors in the frame of the goniometer head, along the diffracted beam and
#: against the incident one: both paths through the crystal
T, X, Y, S, MODULE, DIFFRACTED, INCIDENT = *range(6), 8


N_COORDINATES = 11

#: degrees between points of a curve over the rotation, at least
_ANGLE = 1.0

#: points along each edge of the detector of a function of it
_N_DETECTOR = 11


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


class Rows(NamedTuple):
    """Where n observations are: what terms of the scale model are functions of.

    coordinates : (n, N_COORDINATES) float64
    experiment : (n,) int64, row of the layout
    harmonics : (n, k) float64, functions of the absorption as harmonics; None: they are computed
    orbit, patterns : (n,) int64, unique voxel of each, and (m, k) float64, patterns of these, see
        :mod:`dials_diffuse.scaling.patterns`; None where they are not needed
    """

    coordinates: np.ndarray
    experiment: np.ndarray
    harmonics: np.ndarray | None = None
    orbit: np.ndarray | None = None
    patterns: np.ndarray | None = None

    def at(self, wanted: np.ndarray | slice) -> Rows:
        """Some of the observations; wanted : (m,) int, or a slice, of which nothing is copied."""
        mine = (None if x is None else x[wanted] for x in self[:4])
        return Rows(*mine, self.patterns)


def make_layout(experiments, grid: MapGrid) -> Layout:
    """Layout of a list of ExperimentSummary."""
    start, width, size, module, n_modules = [], [], [], [], 1
    known = all(e.orientation is not None for e in experiments)
    for e in experiments:
        first, last = e.image_range
        start.append(e.oscillation[0])
        width.append(e.oscillation[1] * (last - first + 1))
        size.append(e.image_size)
        array = module_array(e.image_size) or ModuleArray(e.image_size, (0, 0))
        (fast, slow), (gap_fast, gap_slow) = array.module, array.gap
        module.append((fast, slow, gap_fast, gap_slow))
        columns = (e.image_size[0] + gap_fast) // (fast + gap_fast)
        rows = (e.image_size[1] + gap_slow) // (slow + gap_slow)
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
    result = np.empty((len(block["s"]), N_COORDINATES))
    columns = (block[name] for name in ("panel", "xyz", "s", "index"))
    fill_coordinates(_sweeps(layout), np.asarray(experiment, dtype=np.int64), *columns, result)
    return result


def _sweeps(layout: Layout) -> Sweeps:
    n, known = len(layout.start), layout.orientation is not None
    fast, slow, gap_fast, gap_slow = layout.module.T
    columns = (layout.size[:, 0] + gap_fast) // (fast + gap_fast)
    rows = (layout.size[:, 1] + gap_slow) // (slow + gap_slow)
    modules = np.stack([fast + gap_fast, slow + gap_slow, columns, rows], axis=1).astype(np.int64)
    scan = np.stack([layout.start, layout.width], axis=1)
    if not known:
        return Sweeps(scan, layout.size, modules, np.zeros((n, 3, 3)), np.zeros((n, 3)), np.zeros((n, 3)), False)
    axis = layout.axis / np.linalg.norm(layout.axis, axis=1, keepdims=True)
    return Sweeps(scan, layout.size, modules, layout.orientation / layout.lattice, axis, layout.beam, True)


def rotation_points(layout: Layout, number: int, every: int = 1) -> tuple:
    """(n,) fractions of a sweep, and (n,) angles in degrees, evenly along its rotation; every so many of them."""
    n = max(2, int(abs(layout.width[number]) / _ANGLE))
    t = (np.arange(n)[::every] + 0.5) / n
    return t, layout.start[number] + t * layout.width[number]


def places(number: int, columns: dict) -> Rows:
    """Some places of a sweep; columns : number of a coordinate, such as ``T`` -> (n,) float64; the others are 0."""
    n = len(next(iter(columns.values())))
    x = np.zeros((n, N_COORDINATES))
    for column, values in columns.items():
        x[:, column] = values
    return Rows(x, np.full(n, number))


def detector_points(layout: Layout, number: int, t: np.ndarray) -> tuple:
    """A grid over rotation and detector of a sweep.

    Parameters
    ----------
    t : (k,) float64, fractions of the sweep

    Returns
    -------
    Rows of the k m m points; x and y (m,) in pixels; shape (k, m, m) of what belongs to the points, with y before x
    """
    edge = (np.arange(_N_DETECTOR) + 0.5) / _N_DETECTOR
    grid = np.meshgrid(t, edge, edge, indexing="ij")
    size = layout.size[number]
    return (
        places(number, {c: x.ravel() for c, x in zip((T, Y, X), grid)}),
        edge * size[0],
        edge * size[1],
        grid[0].shape,
    )
