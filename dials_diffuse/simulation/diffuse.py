"""The diffuse intensity as a smooth function of fractional Miller indices: a cubic B-spline through a fine map."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.spline import spline_points
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.dispersive import dispersive_parts

logger = logging.getLogger("dials.diffuse.simulation")

#: nodes of the fine map per shortest period that the intensity can have (Nyquist needs 2); at 6 the error of the spline
#: is below 1 % of the anisotropic part for liquid-like motions and 0.1 % for rigid bodies
NODES_PER_PERIOD = 6

#: nodes beyond the resolution limit, where the influence of what lies further out has died away (0.27 per node)
MARGIN = 6


@dataclass(frozen=True)
class DiffuseVolume:
    """Spline through a model's intensity.

    Attributes
    ----------
    coefficients : (n1, n2, n3) float32, electrons² per unit cell
    subdivide : (3,) nodes per reciprocal-lattice step
    extent : (3,) position of the origin of reciprocal space in nodes
    s_max : 1/Å, up to where the spline is good
    """

    coefficients: np.ndarray
    subdivide: np.ndarray
    extent: np.ndarray
    s_max: float

    def __call__(self, hkl) -> np.ndarray:
        """Intensity at fractional Miller indices, shape (..., 3); electrons² per unit cell.

        Beside steep rises a spline can fall below zero, where no intensity does.
        """
        hkl = np.asarray(hkl, dtype=float)
        positions = np.ascontiguousarray((hkl * self.subdivide + self.extent).reshape(-1, 3))
        result = np.empty(len(positions))
        spline_points(self.coefficients, positions, result)
        np.maximum(result, 0.0, out=result)
        return result.reshape(hkl.shape[:-1])


def fine_grid(structure, length: float, d_min: float) -> MapGrid:
    """A grid that resolves the interference of atoms up to ``length`` Å apart, MARGIN nodes larger than ``d_min``.

    Axes that the symmetry mixes get equal subdivisions.
    """
    subdivide = [max(1, math.ceil(NODES_PER_PERIOD * length / (2 * edge))) for edge in structure.unit_cell[:3]]

    def grid(n):
        whole = MapGrid(structure.unit_cell, structure.hall_symbol, n, d_min)
        step = max(np.linalg.norm(whole.reciprocal_matrix, axis=0) / np.array(n))
        return MapGrid(structure.unit_cell, structure.hall_symbol, n, 1 / (1 / d_min + MARGIN * step))

    try:
        return grid(tuple(subdivide))
    except DiffuseError:
        return grid((max(subdivide),) * 3)


def diffuse_volume(model, structure, d_min: float, wavelength: float | None = None) -> DiffuseVolume:
    """Compute a model's intensity to ``d_min`` and lay a spline through it.

    Parameters
    ----------
    model : one of ``dials_diffuse.models``
    structure : structure.atoms.Structure
    d_min : Å
    wavelength : Å; form factors with f', f'' at it
    """
    grid = fine_grid(structure, model.correlation_length(structure), d_min)
    logger.info(
        "Diffuse intensity: %s on %d x %d x %d nodes (%s per reciprocal-lattice step), about %.2f GB",
        type(model).__name__,
        *grid.shape,
        "x".join(map(str, grid.subdivide)),
        (model.memory_estimate(structure, grid) + 12 * grid.n_voxels) / 1e9,
    )
    parts = dispersive_parts(model, structure, wavelength)
    return spline_through(sum(part.intensity(structure, grid) for part in parts), grid, 1 / d_min)


def spline_through(intensity: np.ndarray, grid: MapGrid, s_max: float) -> DiffuseVolume:
    """Interpolating spline; where the intensity is not known (NaN) it continues with the mean at the edge of what is.

    intensity : ``grid.shape`` float64
    """
    known = np.isfinite(intensity)
    if not known.all():
        edge = ndimage.binary_dilation(~known) & known
        intensity = np.where(known, intensity, intensity[edge].mean() if edge.any() else 0.0)
    coefficients = ndimage.spline_filter(intensity, order=3, output=np.float32, mode="nearest")
    return DiffuseVolume(coefficients, np.array(grid.subdivide), np.array(grid.extent), s_max)
