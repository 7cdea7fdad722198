"""Waves over which displacements are averaged."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.memory import check_memory
from dials_diffuse.structure.crystal import Structure


def mesh_of_waves(mesh: tuple) -> np.ndarray:
    """(n, 3) float64, fractional indices between -1/2 and 1/2, the centres of parts along each axis."""
    check_memory(
        200.0 * math.prod(mesh), f"lattice_dynamics.mesh={','.join(map(str, mesh))}: so many waves", "choose fewer"
    )
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in mesh]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def symmetric_waves(waves: np.ndarray, structure: Structure) -> tuple:
    """Waves, (n, 3) fractional indices, with their mates under the Laue group, and how often each occurs.

    Of opposite waves one is left out: what is taken has both.
    """
    mates = np.concatenate([waves @ r for r in laue_operators(structure.space_group, friedel=True)])
    mates, number = np.unique(mates.round(9) + 0.0, axis=0, return_counts=True)
    half = slice(len(mates) // 2, None)  # sorted, so that the opposite of the first is the last
    return mates[half], number[half].astype(float)
