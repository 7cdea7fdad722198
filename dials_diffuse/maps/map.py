"""A symmetry-averaged map of diffuse scattering."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import fill_volume


@dataclass(frozen=True)
class DiffuseMap:
    """A symmetry-averaged map: one row per unique voxel, n rows.

    Attributes
    ----------
    grid : MapGrid
    friedel : were (h, k, l) and (-h, -k, -l) merged?
    index : (n, 3) int32, voxels in cctbx's asymmetric unit on the subdivided lattice
    intensity, sigma : (n,) float64, in ``units``
    multiplicity : (n,) int32, observations that were averaged
    half_a, half_b : (n,) float64, intensity of two independent halves of the data, NaN where a half has none; or None
    half_sets : how the halves were made
    sums : what the averages come from, name -> (n, 2) float64, half a and half b; the sum of both is the whole
    statistics : name -> (n_shells,) array; or empty
    overall : name -> number, the same for all shells together; or empty
    units : unit of the intensity
    at_centres : is the intensity that of a model at the voxels' centres, not the mean over voxels?

    Examples
    --------
    >>> grid = MapGrid((10, 10, 10, 90, 90, 90), "P 4", subdivide=(2, 2, 2), d_min=5.0)
    >>> data = DiffuseMap(grid, True, np.array([[2, 0, 0]]), np.array([7.0]), np.array([0.1]), np.array([12]))
    >>> volume = data.volume()  # with all mates of the one voxel that was measured
    >>> volume.shape, np.argwhere(np.isfinite(volume)).tolist()
    ((9, 9, 9), [[2, 4, 4], [4, 2, 4], [4, 6, 4], [6, 4, 4]])
    """

    grid: MapGrid
    friedel: bool
    index: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    multiplicity: np.ndarray
    half_a: np.ndarray | None = None
    half_b: np.ndarray | None = None
    half_sets: str = ""
    sums: dict = field(default_factory=dict)
    statistics: dict = field(default_factory=dict)
    overall: dict = field(default_factory=dict)
    units: str = "a.u."
    at_centres: bool = False

    def volume(self, values=None, fill=np.nan, dtype=np.float32, layers: tuple | None = None) -> np.ndarray:
        """(``grid.shape``) array, axes h, k, l: a column, by default the intensity, copied to all symmetry mates.

        layers : as for :func:`fill_volume`
        """
        values = self.intensity if values is None else values
        return fill_volume(self.grid, self.index, values, self.friedel, fill, dtype, layers)
