"""What every model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import Parameter
from dials_diffuse.structure.crystal import Structure


class DiffuseModel(Protocol):
    """What every model is: a frozen dataclass of parameters that can be asked for a map.

    Attributes
    ----------
    table : form factors, one of ``structure.factors.TABLES``, or ``Dispersive``
    """

    table: str

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        """Diffuse intensity at the voxel centres of a grid, averaged over the structure's Laue group.

        Parameters
        ----------
        structure : asymmetric unit
        grid : of the same cell, within 1 %

        Returns
        -------
        float64 of ``grid.shape``, electrons² per unit cell; NaN where |s| > 1/d_min

        Raises
        ------
        DiffuseError
            If structure and grid do not fit together.
        """

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """The same at any points, (m,) float64; s : (m, 3) float64, 1/Å, Cartesian frame of the coordinate file.

        Raises
        ------
        DiffuseError
            If the model is computed on grids only.
        """

    def parameters(self, structure: Structure) -> tuple[Parameter, ...]:
        """What can be refined, maybe nothing."""

    def with_values(self, structure: Structure, values: Mapping) -> DiffuseModel:
        """The same model with other values of some parameters, by name.

        Raises
        ------
        DiffuseError
            If there is no such parameter, or the values make no model.
        """

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        """The intensity at voxels of a grid as a function of the parameters; see :func:`prepared.prepare`.

        index : (n, 3) int64, inside 1/d_min
        """

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        """Bytes that :meth:`intensity` takes at its peak, roughly."""

    def correlation_length(self, structure: Structure) -> float:
        """Largest distance between atoms whose interference the intensity holds, Å.

        The Fourier transform of the intensity is negligible beyond it, so that it says how fine a grid must be to be
        interpolated.
        """
