"""The lattice on which a map is sampled: a reciprocal lattice subdivided along a*, b*, c*."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.errors import DiffuseError

#: keys of voxels travel as float64, which counts exactly to 2**53; this leaves some room
MAX_VOXELS = 2**50


@dataclass(frozen=True)
class MapGrid:
    """Voxels centred on fractional Miller indices ``index / subdivide`` with ``1/d_max <= |s| <= 1/d_min``.

    Attributes
    ----------
    unit_cell : six floats, Å and degrees
    hall_symbol : space group, in any setting
    subdivide : three positive integers, voxels per reciprocal-lattice step along a*, b*, c*
    d_min, d_max : resolution limits in Å; ``d_max`` may be infinite

    Raises
    ------
    DiffuseError
        If a value is out of range, if the grid has MAX_VOXELS or more, or if the space group mixes axes of unequal
        subdivision.

    Examples
    --------
    >>> grid = MapGrid((78.5, 78.5, 37.8, 90, 90, 90), "P 4nw 2abw", subdivide=(3, 3, 3), d_min=2.0)
    >>> grid.space_group_symbol, grid.shape
    ('P 43 21 2', (235, 235, 113))
    >>> grid.s_magnitude([[3, 0, 0], [0, 0, 1]]).round(5).tolist()  # of the reflection 1 0 0, and of 0 0 1/3
    [0.01274, 0.00882]
    """

    unit_cell: tuple
    hall_symbol: str
    subdivide: tuple = (3, 3, 3)
    d_min: float = 2.0
    d_max: float = math.inf

    def __post_init__(self):
        if len(self.unit_cell) != 6 or min(self.unit_cell) <= 0:
            raise DiffuseError(f"unit_cell={self.unit_cell}: six positive numbers are needed (Å, degrees)")
        numbers = self.subdivide or ()
        if len(numbers) != 3 or any(n is None or n < 1 or n != int(n) for n in numbers):
            raise DiffuseError(f"grid.subdivide={self.subdivide}: three positive integers are needed, e.g. 3,3,3")
        if self.d_min is None or self.d_max is None:
            raise DiffuseError(f"d_min={self.d_min}, d_max={self.d_max}: two numbers are needed (Å)")
        if not 0 < self.d_min < self.d_max:
            raise DiffuseError(f"d_min={self.d_min:g}, d_max={self.d_max:g}: need 0 < d_min < d_max (Å)")
        # before any whole number is made of it: lengths in steps of the grid can be infinite
        size = math.prod(2.0 * n * a / self.d_min + 1.0 for n, a in zip(self.subdivide, self.unit_cell))
        if not size < 2 * MAX_VOXELS or self.n_voxels >= MAX_VOXELS:
            raise DiffuseError(
                f"grid.subdivide={','.join(map(str, self.subdivide))}: a grid of {size:.2g} voxels to "
                f"d_min={self.d_min:g} is too large; choose a smaller grid.subdivide or a larger d_min"
            )
        rotations = np.array([op.r().as_double() for op in self.space_group]).reshape(-1, 3, 3)
        mixed = np.any(np.abs(rotations) > 1e-6, axis=0) & ~np.eye(3, dtype=bool)
        for j, k in np.argwhere(mixed):
            if self.subdivide[j] != self.subdivide[k]:
                raise DiffuseError(
                    f"grid.subdivide={','.join(map(str, self.subdivide))}: the symmetry of "
                    f"{self.space_group.info().type().lookup_symbol()} mixes axes {'abc'[min(j, k)]} and "
                    f"{'abc'[max(j, k)]}; give them the same subdivision"
                )

    @cached_property
    def space_group(self) -> sgtbx.space_group:
        """The group as cctbx has it; DiffuseError if there is none of this Hall symbol."""
        try:
            return sgtbx.space_group(self.hall_symbol)
        except RuntimeError as error:
            raise DiffuseError(f"hall_symbol={self.hall_symbol!r} is not a Hall symbol: {error}") from None

    @property
    def space_group_symbol(self) -> str:
        """Hermann-Mauguin symbol of the setting, e.g. ``P 41``."""
        return self.space_group.info().type().lookup_symbol()

    @cached_property
    def reciprocal_matrix(self) -> np.ndarray:
        """(3, 3) float64 B: ``s = B h`` in 1/Å for a column of Miller indices h."""
        return np.array(uctbx.unit_cell(self.unit_cell).fractionalization_matrix()).reshape(3, 3).T

    @cached_property
    def extent(self) -> tuple:
        """Largest index along each axis whose voxel centre can lie inside d_min."""
        lengths = self.unit_cell[:3]
        return tuple(int(math.floor(n * a / self.d_min + 1e-9)) for n, a in zip(self.subdivide, lengths))

    @property
    def shape(self) -> tuple:
        """Voxels along each axis of the full volume, ``2 extent + 1``."""
        return tuple(2 * m + 1 for m in self.extent)

    @property
    def n_voxels(self) -> int:
        """Voxels of the full volume, also those outside the resolution limits."""
        return math.prod(self.shape)

    @cached_property
    def edges(self) -> np.ndarray:
        """(3,) float64, 1/Å, distance from voxel to voxel along a*, b*, c*."""
        return np.linalg.norm(self.reciprocal_matrix, axis=0) / np.array(self.subdivide)

    @property
    def diagonal(self) -> float:
        """Upper bound of the distance of two points in a voxel, 1/Å: the sum of its edges."""
        return float(np.linalg.norm(self.reciprocal_matrix, axis=0) @ (1 / np.array(self.subdivide)))

    def s(self, index) -> np.ndarray:
        """(..., 3) float64, voxel centres in the Cartesian frame of the reciprocal matrix, 1/Å.

        index : (..., 3) integers on the subdivided lattice
        """
        return (np.asarray(index) / np.asarray(self.subdivide)) @ self.reciprocal_matrix.T

    def s_magnitude(self, index) -> np.ndarray:
        """|s| in 1/Å of voxel centres.

        index : (..., 3) integers on the subdivided lattice
        """
        return np.linalg.norm(self.s(index), axis=-1)

    def inside(self, index) -> np.ndarray:
        """(...) bool, does the voxel's centre lie inside the resolution limits?

        index : (..., 3) integers on the subdivided lattice
        """
        s = self.s_magnitude(index)
        return (s <= 1 / self.d_min * (1 + 1e-12)) & (s >= 1 / self.d_max * (1 - 1e-12))

    def axes(self) -> list:
        """Voxel centres along h, k, l as three float64 arrays of fractional Miller indices."""
        return [np.arange(-m, m + 1) / n for m, n in zip(self.extent, self.subdivide)]

    def key(self, index) -> np.ndarray:
        """Flat int64 position of each index in a volume of ``shape`` (C order)."""
        index = np.asarray(index, dtype=np.int64)
        _, n2, n3 = self.shape
        m1, m2, m3 = self.extent
        return ((index[..., 0] + m1) * n2 + (index[..., 1] + m2)) * n3 + (index[..., 2] + m3)

    def index(self, key) -> np.ndarray:
        """(..., 3) int32 indices of flat positions, the inverse of :meth:`key`."""
        positions = np.stack(np.unravel_index(np.asarray(key), self.shape), axis=-1)
        return (positions - np.array(self.extent)).astype(np.int32)
