"""Models of diffuse scattering: one file for each, one table of all."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance import Covariance
from dials_diffuse.models.ensemble import Ensemble
from dials_diffuse.models.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import Structure


class DiffuseModel(Protocol):
    """What every model is: a frozen dataclass of parameters that can be asked for a map."""

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

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        """Bytes that :meth:`intensity` takes at its peak, roughly."""

    def correlation_length(self, structure: Structure) -> float:
        """Largest distance between atoms whose interference the intensity holds, Å.

        The Fourier transform of the intensity is negligible beyond it, so that it says how fine a grid must be to be
        interpolated.
        """


#: name in the programs -> class
MODELS = {
    "uncorrelated": Uncorrelated,
    "rigid_body": RigidBody,
    "llm": LiquidLikeMotions,
    "covariance": Covariance,
    "ensemble": Ensemble,
}
