"""Settings of a lattice that has more symmetry than the crystal: maps of the same crystal may be in any of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx import sgtbx

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.lattice import MAX_DELTA, in_words, lattice_rotations
from dials_diffuse.maps.symmetry import laue_operators


@dataclass(frozen=True)
class Setting:
    """One way to index the data.

    Attributes
    ----------
    operator : change of basis such as ``h,k,l`` or ``k,h,-l``, applied to the Miller indices of the map
    matrix : (3, 3) int64, index' = index @ matrix on the reciprocal lattice
    """

    operator: str
    matrix: np.ndarray

    def on_lattice(self, subdivide) -> tuple | None:
        """The setting on a subdivided lattice; None if it mixes axes of unequal subdivision.

        Parameters
        ----------
        subdivide : three int

        Returns
        -------
        matrix : (3, 3) int64, as of :class:`Setting`, for indices of voxels
        subdivide : three int, of the lattice in the new setting; another one where unequal axes change places
        """
        old = np.array(subdivide)
        new = np.array([old[np.flatnonzero(column)[0]] for column in self.matrix.T])
        exact = self.matrix * new / old[:, None]
        matrix = np.rint(exact).astype(np.int64)
        # A matrix of another determinant leaves voxels of the new lattice empty.
        if np.abs(exact - matrix).max() > 1e-9 or round(abs(np.linalg.det(matrix))) != 1:
            return None
        return matrix, tuple(new.tolist())


def alternative_settings(grid: MapGrid, max_delta: float = MAX_DELTA) -> list:
    """Settings that keep the Laue group but are no operators of it, one of each coset; the first is the given one.

    max_delta : degrees, by which the lattice may miss the symmetry
    """
    laue = laue_operators(grid.space_group, friedel=True)
    members = {r.tobytes() for r in laue}
    settings, seen = [], set()
    for rotation in np.linalg.inv(lattice_rotations(grid, max_delta)):
        matrix = np.rint(rotation).astype(np.int64)
        # In a centred cell some are fractions: they do not bring voxels to voxels.
        if np.abs(rotation - matrix).max() > 1e-6 or matrix.tobytes() in seen:
            continue
        # A setting with another Laue group is not one that the map, merged as it is, can be in.
        inverse = np.rint(np.linalg.inv(matrix)).astype(np.int64)
        if {(inverse @ r @ matrix).tobytes() for r in laue} != members:
            continue
        seen |= {(r @ matrix).tobytes() for r in laue}
        settings.append(Setting(in_words(matrix), matrix))
    return settings


def settings_of_lattice(grid: MapGrid) -> tuple:
    """Settings that leave the subdivided lattice as it is, the given one first, and those that do not: two lists."""
    kept: list = []
    others: list = []
    for setting in alternative_settings(grid):
        moved = setting.on_lattice(grid.subdivide)
        (kept if moved is not None and moved[1] == tuple(grid.subdivide) else others).append(setting)
    return kept, others


def products(settings, space_group: sgtbx.space_group) -> np.ndarray:
    """(m, m) int, the setting that a followed by b is, by their numbers; settings : of :func:`settings_of_lattice`."""
    laue = laue_operators(space_group, friedel=True)
    number = {(r @ setting.matrix).tobytes(): k for k, setting in enumerate(settings) for r in laue}
    return np.array([[number[(a.matrix @ b.matrix).tobytes()] for b in settings] for a in settings])


def untested_in_words(settings, subdivide) -> str:
    """A sentence on settings that the subdivision keeps from being tested."""
    return (
        f"no test whether the setting is {' or '.join(setting.operator for setting in settings)}: that mixes axes of "
        f"unequal subdivision (grid.subdivide={','.join(map(str, subdivide))}); integrate with the same along all axes"
    )
