"""The grid on which several crystals share a map."""

from __future__ import annotations

import math

import numpy as np
from cctbx import uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid

MAX_CELL_DIFFERENCE = 0.05
MAX_ANGLE_DIFFERENCE = 3.0


def resolution_limit(experiments, d_min: float | None = None) -> float:
    """Å; that of the detector corners, unless ``d_min`` asks for less resolution."""
    corner = min(e.detector.get_max_resolution(e.beam.get_s0()) for e in experiments)
    if not math.isfinite(corner) or corner <= 0:
        raise DiffuseError("the detector sees nothing: no pixel has a positive resolution; check the geometry")
    return corner if d_min is None else max(d_min, corner)


def choose_grid(experiments, d_min: float | None = None, d_max: float | None = None, subdivide=(3, 3, 3)) -> MapGrid:
    """The common grid of all crystals, with their mean unit cell.

    Parameters
    ----------
    experiments : dxtbx experiments with crystals
    d_min : Å, see :func:`resolution_limit`
    d_max : Å, None = no limit
    subdivide : voxels per reciprocal-lattice step along a*, b*, c*

    Raises
    ------
    DiffuseError
        If the crystals differ in space group, or by more than 5 % or 3 degrees in their cells.

    Examples
    --------
    >>> from dials_diffuse.experiment.build import DetectorParameters, build_crystal, build_experiment
    >>> crystal = build_crystal((20, 22, 24, 90, 90, 90), "P 21 21 21")
    >>> experiment = build_experiment(DetectorParameters("1M"), crystal=crystal)
    >>> grid = choose_grid([experiment], d_min=2.0, subdivide=(2, 2, 2))
    >>> grid.shape, grid.space_group_symbol, grid.d_min
    ((41, 45, 49), 'P 21 21 21', 2.0)
    >>> print(f"{resolution_limit([experiment]):.2f} Å at the corners of the detector")
    1.84 Å at the corners of the detector
    """
    groups = {e.crystal.get_space_group().type().hall_symbol().strip() for e in experiments}
    if len(groups) > 1:
        symbols = sorted({str(e.crystal.get_space_group().info()) for e in experiments})
        raise DiffuseError(
            f"crystals of different space groups ({', '.join(symbols)}) cannot share a map; integrate them one by one "
            f"or bring them to one with dials.reindex"
        )
    first = experiments[0].crystal.get_unit_cell()
    for e in experiments[1:]:
        cell = e.crystal.get_unit_cell()
        if not first.is_similar_to(cell, MAX_CELL_DIFFERENCE, MAX_ANGLE_DIFFERENCE):
            raise DiffuseError(
                f"unit cells {first!s} and {cell!s} differ by more than {100 * MAX_CELL_DIFFERENCE:.0f} % or "
                f"{MAX_ANGLE_DIFFERENCE:g} degrees: the crystals are not isomorphous; leave some out"
            )
    cell = np.mean([e.crystal.get_unit_cell().parameters() for e in experiments], axis=0)
    if len(experiments) > 1:  # averaging must not break the metric symmetry
        cell = experiments[0].crystal.get_space_group().average_unit_cell(uctbx.unit_cell(tuple(cell))).parameters()
    return MapGrid(
        unit_cell=tuple(float(x) for x in cell),
        hall_symbol=groups.pop(),
        subdivide=tuple(subdivide),
        d_min=float(resolution_limit(experiments, d_min)),
        d_max=float("inf") if d_max is None else d_max,
    )
