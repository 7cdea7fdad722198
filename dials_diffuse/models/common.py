"""What the models share: parameters, averages over symmetry, sums over single atoms."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from scipy.special import ive

from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.pair_sum import displaced_squares
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.structure.atoms import Structure, symmetric_tensor
from dials_diffuse.structure.factors import form_factors, gaussian, sum_of_squares
from dials_diffuse.structure.transform import check_cells, inside, s_squared

logger = logging.getLogger("dials.diffuse.models")

#: points at which functions of |s| are computed, and nodes of the table that a spline makes of them
_RADIAL_POINTS = 1 << 13
_RADIAL_NODES = 1 << 17
#: largest exponent in exp(qᵀVq), beyond which sums are not finite
_LARGEST_EXPONENT = 600.0
#: bound on the Chebyshev terms that are left out, relative to the value at s = 0
_CHEBYSHEV_ERROR = 1e-8


#: distance up to which the transform of a single atom's diffuse intensity reaches, Å
ATOM_LENGTH = 5.0
#: a correlation below this is none
NEGLIGIBLE_CORRELATION = 0.01
#: atoms whose distances are looked at one by one; of more only those on the convex hull
_MOST_DISTANCES = 1000


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


def positive(name: str, value) -> float:
    if value is None or not 0 < value < np.inf:
        raise DiffuseError(f"{name}={value}: a positive number is needed")
    return float(value)


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


def diameter(structure: Structure) -> float:
    """Largest distance between two of the atoms, Å, at least ATOM_LENGTH."""
    sites = structure.site_cart
    if len(sites) > _MOST_DISTANCES:
        sites = sites[ConvexHull(sites).vertices]
    return max(ATOM_LENGTH, float(pdist(sites).max(initial=0.0)))


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


def laue_average(volume: np.ndarray, grid: MapGrid) -> np.ndarray:
    """Average over the Laue group of the grid, of those mates that are not NaN.

    Parameters
    ----------
    volume : float64 of ``grid.shape``; what lies outside 1/d_min does not matter

    Returns
    -------
    float64 of ``grid.shape``, NaN outside 1/d_min
    """
    operators = laue_operators(grid.space_group, friedel=True)
    weights = np.array([grid.shape[1] * grid.shape[2], grid.shape[2], 1])
    ranges = [np.arange(-m, m + 1) for m in grid.extent]
    origin = int(np.array(grid.extent) @ weights)
    flat = np.ascontiguousarray(volume).reshape(-1)
    total = np.zeros(grid.shape)
    count = np.zeros(grid.shape, dtype=np.uint8)  # a Laue group has at most 48 operators
    for operator in operators:
        first, *rest = [r * w for r, w in zip(ranges, operator @ weights)]
        plane = np.add.outer(*rest) + origin
        for layer, number, start in zip(total, count, first):
            mates = flat.take(plane + start, mode="clip")  # clipped: outside the box, thus outside 1/d_min
            known = mates == mates
            number += known
            layer += np.where(known, mates, 0.0)
    total[~inside(grid, s_squared(grid))] = np.nan
    total /= count
    return total


def radial(function, s2: np.ndarray) -> np.ndarray:
    """A smooth function of |s| at many points, from a table.

    The relative error is below 1e-6 for sums of form factors with displacements of U < 2 Å² up to |s|² = 3 1/Å².

    function : of (m,) |s| in 1/Å; s2 : float64, |s|² in 1/Å²
    """
    points, nodes = (np.linspace(0, s2.max(initial=1e-6), n) for n in (_RADIAL_POINTS, _RADIAL_NODES))
    table = CubicSpline(points, function(np.sqrt(points)))(nodes)
    return np.interp(s2.reshape(-1), nodes, table).reshape(s2.shape)


def squares(structure: Structure, s2: np.ndarray, table: str) -> np.ndarray:
    """Sum of occupancy² f² over the atoms of the cell, electrons², at |s|² = s2."""
    return radial(lambda s: sum_of_squares(structure, s, table), s2)


def displaced(structure: Structure, grid: MapGrid, s2: np.ndarray, table: str) -> np.ndarray:
    """Sum of occupancy² f² exp(-qᵀUq) over the atoms of the asymmetric unit times their multiplicity.

    Not yet averaged over the Laue group. Isotropic atoms make a function of |s|; the rest is interpolated between
    Chebyshev nodes, with an error below 1e-6 of the value at s = 0.

    Returns
    -------
    float64 of ``grid.shape``, electrons² per cell
    """
    total = np.zeros(grid.shape)
    if structure.isotropic.any():
        round_atoms = structure.take(structure.isotropic)
        total += radial(lambda s: sum_of_squares(round_atoms, s, table, displaced=True), s2)
    if not structure.isotropic.all():
        total += _anisotropic(structure.take(~structure.isotropic), grid, table)
    return total


def special_remainder(structure: Structure, grid: MapGrid, s2: np.ndarray, table: str):
    """What |F|² of :meth:`Structure.molecule` lacks of the own terms of atoms on special positions.

    Each copy has a share of such an atom, so that in the sum over copies its own term is that fraction of
    occupancy² f² exp(-qᵀUq).

    Returns
    -------
    float64 of ``grid.shape``, electrons² per cell; 0.0 if there are no such atoms
    """
    special = structure.share < 1
    return displaced(_lacking(structure, special), grid, s2, table) if special.any() else 0.0


def special_remainder_at(structure: Structure, s: np.ndarray, table: str):
    """The same at any points, s : (n, 3) float64, 1/Å, for one copy in the frame of the structure."""
    special = structure.share < 1
    if not special.any():
        return 0.0
    part = _lacking(structure, special)
    f2 = form_factors(part, np.linalg.norm(s, axis=1), table) ** 2
    out = np.empty(len(s))
    displaced_squares(2 * np.pi * s, part.type_index, f2, part.u_cart, part.occupancy**2 * part.share, out)
    return out


def _lacking(structure: Structure, special: np.ndarray) -> Structure:
    part = structure.take(special)
    return replace(part, occupancy=part.occupancy * np.sqrt(1 - part.share))


def displaced_at(structure: Structure, grid: MapGrid, index: np.ndarray, table: str) -> np.ndarray:
    """The same at some voxels, (n,); index : (n, 3) integers."""
    if structure.isotropic.all():
        s2 = np.square(grid.s_magnitude(index))
        return radial(lambda s: sum_of_squares(structure, s, table, displaced=True), s2)
    return displaced(structure, grid, s_squared(grid), table).reshape(-1)[grid.key(index)]


def single_atoms(structure: Structure, s: np.ndarray, table: str) -> tuple:
    """Sums of occupancy² f² and of occupancy² f² exp(-qᵀUq) over the atoms of the cell at any points, (n,) each.

    s : (n, 3) float64, 1/Å, Cartesian frame of the structure
    """
    content = structure.expand()
    f2 = form_factors(content, np.linalg.norm(s, axis=1), table) ** 2
    weight = content.occupancy**2
    own = np.empty(len(s))
    displaced_squares(2 * np.pi * s, content.type_index, f2, content.u_cart, weight, own)
    return np.bincount(content.type_index, weight, len(content.types)) @ f2, own


def _anisotropic(structure: Structure, grid: MapGrid, table: str) -> np.ndarray:
    axes = grid.axes()
    nodes, weights = zip(*(_nodes(axis, n) for axis, n in zip(axes, _node_numbers(structure, grid, table))))
    hkl = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    s = hkl @ grid.reciprocal_matrix.T
    f2 = form_factors(structure, np.linalg.norm(s, axis=1), table) ** 2
    values = np.empty(len(s))
    weight = structure.occupancy**2 * structure.multiplicity
    displaced_squares(2 * np.pi * s, structure.type_index, f2, structure.u_cart, weight, values)
    volume = values.reshape([len(n) for n in nodes])
    for w in weights:  # each pass takes the first axis to the end
        volume = np.tensordot(volume, w, axes=(0, 1))
    return volume


def _node_numbers(structure: Structure, grid: MapGrid, table: str) -> list:
    """Chebyshev nodes along each axis for the sharpest Gaussian among f² exp(-qᵀUq).

    exp(-2z t²) on -1..1 has Chebyshev coefficients 2 (-1)^k exp(-z) I_k(z) at the orders 2k.
    """
    sharpest_f = max(max(gaussian(t, table).array_of_b(), default=0.0) for t in structure.types)
    exponent = 0.5 * sharpest_f + 4 * np.pi**2 * np.linalg.eigvalsh(structure.u_cart).max()
    numbers = []
    for axis, column in zip(grid.axes(), grid.reciprocal_matrix.T):
        z = 0.5 * exponent * (axis[-1] * np.linalg.norm(column)) ** 2
        k = 2
        while ive(k, z) > _CHEBYSHEV_ERROR:
            k += 1
        numbers.append(2 * k + 3)
    return numbers


def _nodes(axis: np.ndarray, n: int) -> tuple:
    """Points at which to compute, and the (len(axis), points) matrix from there to the axis."""
    if n >= len(axis):
        return axis, np.eye(len(axis))
    points = axis[-1] * np.cos(np.pi * np.arange(n) / (n - 1))
    signs = (-1.0) ** np.arange(n)
    signs[[0, -1]] *= 0.5
    difference = axis[:, None] - points
    exact = np.abs(difference) < 1e-14 * axis[-1]
    with np.errstate(divide="ignore"):
        matrix = signs / difference
    matrix[exact.any(axis=1)] = 0
    matrix[exact] = 1
    return points, matrix / matrix.sum(axis=1, keepdims=True)
