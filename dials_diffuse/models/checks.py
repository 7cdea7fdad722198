"""What parameters of models may be, and whether a structure and a map fit together."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from dials_diffuse.checks import positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.transform import check_cells

logger = logging.getLogger("dials.diffuse.models")

#: largest exponent in exp(qᵀVq), beyond which sums are not finite
_LARGEST_EXPONENT = 600.0


def displacement_tensor(model: str, sigma, V) -> np.ndarray:
    """(3, 3) float64, Å², of the parameters ``sigma`` (Å) or ``V`` (11, 22, 33, 12, 13, 23; Å²), exactly one given.

    Raises
    ------
    DiffuseError
        If both or none are given, sigma is not positive, or V is not positive semidefinite.
    """
    if (sigma is None) == (V is None):
        raise DiffuseError(f"{model}: give exactly one of {model}.sigma (Å) and {model}.V (six numbers, Å²)")
    if V is None:
        return positive(f"{model}.sigma", sigma) ** 2 * np.eye(3)
    return positive_tensor(f"{model}.V", V, strict=False)


def positive_tensor(name: str, six, strict: bool) -> np.ndarray:
    """(3, 3) float64 from six numbers 11, 22, 33, 12, 13, 23; DiffuseError unless positive (semi)definite."""
    if len(six) != 6 or not np.all(np.isfinite(np.asarray(six, dtype=float))):
        raise DiffuseError(f"{name}={six}: six numbers are needed: 11, 22, 33, 12, 13, 23")
    tensor = symmetric_tensor(six)
    values = np.linalg.eigvalsh(tensor)
    if values[0] < -1e-9 * abs(values[2]) or values[2] <= 0 or (strict and values[0] <= 0):
        kind = "definite" if strict else "semidefinite, and not 0"
        text = ", ".join(f"{x:.3g}" for x in values)
        raise DiffuseError(f"{name}={tuple(six)}: must be positive {kind}; its eigenvalues are {text}")
    return tensor


def check_supercell(name: str, cells) -> None:
    """Raise DiffuseError unless these are numbers of cells along a, b, c."""
    if len(cells) != 3 or any(k < 1 or k != int(k) for k in cells):
        raise DiffuseError(f"{name}={cells}: three positive whole numbers are needed")


def fitted(structure: Structure, grid: MapGrid) -> tuple:
    """The structure in the grid's cell and the grid with the structure's symmetry.

    Raises
    ------
    DiffuseError
        If the cells differ by more than 1 %, the space groups contradict each other, or the subdivision does not fit
        the structure's.
    """
    check_cells(structure, grid)
    check_symmetry(structure, grid)
    return structure.in_cell(grid.unit_cell), replace(grid, hall_symbol=structure.hall_symbol)


def check_symmetry(structure: Structure, grid: MapGrid) -> None:
    """Raise DiffuseError unless one of the Laue groups of structure and map contains the other."""
    own, wanted = (_operators(group) for group in (structure.space_group, grid.space_group))
    if not (own <= wanted or wanted <= own):
        raise DiffuseError(
            f"the space groups of the structure, {_symbol(structure)}, and of the map, {grid.space_group_symbol}, "
            "contradict each other: either has symmetry that the other one lacks; merge the data in the group of the "
            "structure (dials.diffuse_merge space_group=), reindex them (dials.reindex), or give a structure of this "
            "crystal form"
        )


def lacking_symmetry(structure: Structure, grid: MapGrid) -> str:
    """A sentence on symmetry of the map that the structure lacks, over which models are averaged, or ``""``."""
    if _operators(grid.space_group) <= _operators(structure.space_group):
        return ""
    return (
        f"the map has symmetry ({grid.space_group_symbol}) that the structure ({_symbol(structure)}) lacks; the model "
        f"is averaged over it. If that is wrong, merge the data with space_group={_symbol(structure).replace(' ', '')}"
    )


def _operators(space_group) -> set:
    return {operator.tobytes() for operator in laue_operators(space_group, friedel=True)}


def _symbol(structure: Structure) -> str:
    return structure.space_group.info().type().lookup_symbol()


def warn_of_small_displacements(structure: Structure, tensor: np.ndarray, model: str) -> None:
    """Say so when atoms move less than the motion they are said to share."""
    lowest = np.linalg.eigvalsh(structure.u_cart - tensor)[:, 0]
    n = np.count_nonzero(lowest < -1e-6)
    if n:
        logger.warning(
            "%s: the common displacement exceeds that of %d of %d atoms, which is unphysical; "
            "choose a smaller one (the smallest U is %.3f Å²)",
            model,
            n,
            structure.n_atoms,
            np.linalg.eigvalsh(structure.u_cart).min(),
        )


def check_exponent(model: str, tensors: np.ndarray, s_max: float) -> None:
    """Raise DiffuseError if exp(qᵀVq) is too large a number.

    tensors : (..., 3, 3) float64, Å², V; s_max : 1/Å, the largest |s|
    """
    largest = np.linalg.eigvalsh(tensors).max()
    if (2 * np.pi * s_max) ** 2 * largest > _LARGEST_EXPONENT:
        raise DiffuseError(
            f"{model}: displacements of {np.sqrt(largest):.3g} Å rms are too large at a resolution of "
            f"{1 / s_max:.3g} Å; choose smaller ones, or a larger d_min"
        )
