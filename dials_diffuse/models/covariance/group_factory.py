"""The intensity as a function of the covariance of groups: which class, and what of it can be afforded."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.checks import choice
from dials_diffuse.models.covariance.group_covariance import ADPS, GroupCovariance
from dials_diffuse.models.covariance.group_scattering import GroupScattering
from dials_diffuse.models.covariance.isotropic_groups import IsotropicGroups
from dials_diffuse.models.covariance.tensor_groups import TensorGroups
from dials_diffuse.structure.crystal import Structure

#: products of amplitudes that are kept, bytes; beyond it they are made anew each time
_MEMORY = 2.5e9
#: of these in float64, bytes; more are float32
_PRECISE = 1e9
#: pairs of groups at all points and copies, beyond which tensors are not averaged: seconds for each evaluation
_MOST_PAIRS = 3e8
#: pairs of groups at all points and copies in a block: about half a second for each evaluation
_PAIRS_OF_BLOCK = 2e7


def group_covariance(
    structure: Structure,
    labels: np.ndarray,
    s: np.ndarray,
    adp: str = "held",
    tensor: bool = False,
    table: str = "wk1995",
    tolerance: float = 1e-6,
    dtype=None,
    points: np.ndarray | None = None,
    u: float = 0.0,
) -> GroupCovariance:
    """The intensity of groups of atoms at fixed points as a function of their covariance.

    Parameters
    ----------
    structure : asymmetric unit
    labels : (atoms,) int64, the group of each atom, from 0
    s : (n, 3) float64, 1/Å, Cartesian frame of the structure
    adp : ``held`` or ``free``, see :class:`GroupCovariance`
    tensor : V are tensors, (g, g, 3, 3), instead of numbers, (g, g); Å²
    table : see :func:`factors.form_factors`
    tolerance : of the interpolation of isotropic V
    dtype : of the products of isotropic V; by default float64 if they take less than 1 GB, else float32
    points : (k, 3) float64, 1/Å, average over these points around each s, see :func:`voxel_means.gauss_points`. None:
        no means. Nor are there any (attribute ``means``) where memory or time would not allow them: for products that
        are not kept, and for more than _MOST_PAIRS pairs of tensors
    u : Å², mean square displacement of an atom along a line, for these means
    """
    free = choice("adp", adp, ADPS) == "free"
    s = np.asarray(s, dtype=float).reshape(-1, 3)
    n, g = len(s), int(labels.max()) + 1
    if tensor:
        if points is not None and not averages_tensors(len(structure.rotations) * len(points), n, g):
            points = None
        # of tensors K has x, and Debye-Waller factors if they are free
        slow = 0.0 if free else u
        return TensorGroups(GroupScattering(structure, labels, s, table, free, points, slow, False), free)
    size = n * (g * (g + 1) // 2)
    dtype = dtype or (np.float64 if 8 * size < _PRECISE else np.float32)
    keep = size * np.dtype(dtype).itemsize <= _MEMORY
    scattering = GroupScattering(structure, labels, s, table, free, points if keep else None, u, True)
    return IsotropicGroups(scattering, free, tolerance, dtype, keep)


def averages_tensors(copies: int, n: int, g: int) -> bool:
    """Can tensors of g groups be averaged over n voxels? copies : of the molecule, times points of a voxel"""
    return 16 * copies * n * g <= _MEMORY and copies * n * g**2 / 2 <= _MOST_PAIRS


def number_of_blocks(copies: int, n: int, g: int) -> int:
    """Blocks of voxels of about _PAIRS_OF_BLOCK pairs of tensors."""
    return max(1, math.ceil(copies * n * g**2 / 2 / _PAIRS_OF_BLOCK))
