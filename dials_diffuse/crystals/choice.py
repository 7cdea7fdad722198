"""What was decided on each crystal, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: what is said of a crystal
AGREES, UNTESTED, CONTRADICTS, OTHER_CELL = "agrees", "untested", "map", "unit cell"


@dataclass(frozen=True)
class Crystal:
    """An experiment, and what was decided on it.

    Attributes
    ----------
    path, number : its observation file, and which of its experiments
    identifier : of the dxtbx experiment
    unit_cell : six numbers, as it was given
    cell_cluster : from 1, the largest
    operator : change of basis that is applied, ``h,k,l`` for none
    kept : bool
    verdict : one of AGREES, UNTESTED, CONTRADICTS, OTHER_CELL
    reason : a sentence; empty where it agrees
    cluster : from 1, the largest, of the maps of the cells that are kept; None for other cells
    suggested : the change of basis with which it agrees best with the crystals of the cluster that is kept
    observed : correlation of its map with theirs after ``suggested``, lower where there is noise
    correlation, esd : ρ, with the loss from noise made up for; NaN where they have too few voxels in common
    correlation_as_given : ρ without change of basis
    common : voxels
    """

    path: str
    number: int
    identifier: str
    unit_cell: tuple
    cell_cluster: int
    operator: str
    kept: bool
    verdict: str
    reason: str
    cluster: int | None = None
    suggested: str | None = None
    observed: float = math.nan
    correlation: float = math.nan
    esd: float = math.nan
    correlation_as_given: float = math.nan
    common: int = 0


@dataclass(frozen=True)
class CrystalChoice:
    """What was decided.

    Attributes
    ----------
    crystals : tuple of Crystal, in the order of the files
    operators : changes of basis that were tested, the given setting first
    compared : (n,) int, those of the crystals whose maps were compared
    observed, corrected, esd, common : (n, n), see ``pairs.Compared``, each crystal in the setting that was found for it
    joins : tuple of (place of one among ``compared``, place of the other, ρ) in the order in which clusters were joined
    usual : ρ of crystals that agree, as most of these have it
    warnings : sentences for the user
    """

    crystals: tuple
    operators: tuple
    compared: np.ndarray
    observed: np.ndarray
    corrected: np.ndarray
    esd: np.ndarray
    common: np.ndarray
    joins: tuple
    usual: float
    warnings: tuple

    @property
    def quiet(self) -> bool:
        """Are all crystals kept as they are, without doubts?"""
        given = self.operators[0]
        return all(c.kept and c.verdict == AGREES and c.operator == c.suggested == given for c in self.crystals)
