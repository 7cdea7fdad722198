"""Structure factors: on a subdivided lattice by FFT, anywhere by direct summation, of a crystal with solvent."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import scipy.fft
from cctbx import uctbx

from dials_diffuse.checks import choice
from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.pair_sum import amplitudes
from dials_diffuse.kernels.peaks import add_peaks
from dials_diffuse.kernels.quadratic import quadratic_form as on_axes
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.parallel import in_threads, row_ranges
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors, gaussian

#: real-space grid step in units of d_min; below 1/2 what is not resolved is damped by widening the atoms
_STEP = 0.4
#: ratio by which the widening damps the images of the density's transform that sampling folds back
_QUALITY = 1e5
#: each Gaussian of an atom's density is left out where it is below this fraction of its maximum
_WING = 1e-8

#: resolution of that box at least, Å
_COARSEST = 4.0
#: relative error of the non-uniform FFT, and how much finer its grid is
_NUFFT_ERROR = 3e-5
_NUFFT_UPSAMPLING = 1.25
#: points that are worth a thread
_NUFFT_POINTS = 50_000

#: terms up to which direct summation is preferred
_CHEAP = 1e7
#: terms of the direct summation that are in memory together
_TERMS = 1 << 20


def lattice_transform(structure: Structure, grid: MapGrid, table: str = "wk1995") -> np.ndarray:
    """Structure factors of exactly the atoms given (no symmetry) at every voxel centre of a grid.

    F(h) = sum occupancy f exp(-2 pi² s U s) exp(2 pi i h x), by sampling of the atoms' density and an FFT in the cell
    enlarged by ``grid.subdivide``. The rms error is below 5e-5 of the rms F in every resolution shell (measured
    against direct summation to 1 Å, with and without displacements).

    As in cctbx, atoms are widened before they are sampled, and the transform is corrected for that. Each is a sum of
    Gaussians, which :func:`add_peaks` adds without an exponential for each point.

    Parameters
    ----------
    structure : its symmetry is ignored: expand it to have the cell's content
    grid : of the same unit cell; its symmetry is ignored too
    table : see :func:`factors.form_factors`

    Returns
    -------
    complex128 of ``grid.shape``, electrons; NaN where |s| > 1/d_min

    Raises
    ------
    DiffuseError
        If the cells of structure and grid differ by more than 1 %.
    """
    check_cells(structure, grid)
    subdivide = np.array(grid.subdivide)
    lengths = subdivide * np.array(grid.unit_cell[:3])
    cell = uctbx.unit_cell((*lengths, *grid.unit_cell[3:]))
    n_real = _real_grid(grid)
    edges = np.array(cell.orthogonalization_matrix()).reshape(3, 3) / np.array(n_real)
    widening = _widening(structure, grid.d_min)
    density = _density(structure, structure.site_frac / subdivide * n_real, edges, n_real, widening, table)
    workers = available_cores()
    m3 = grid.extent[2]
    rows = [np.arange(-m, m + 1) % n for m, n in zip(grid.extent, n_real)]
    half = scipy.fft.rfft(density, axis=2, workers=workers)[:, :, : m3 + 1]
    del density
    half = scipy.fft.fft(half, axis=0, workers=workers)[rows[0]]
    half = scipy.fft.fft(half, axis=1, workers=workers)[:, rows[1]]
    result = np.empty(grid.shape, dtype=np.complex128)
    result[:, :, m3:] = half.conj()  # the FFT has the other sign in the exponent
    result[:, :, :m3] = half[::-1, ::-1, :0:-1]
    s2 = s_squared(grid)
    scale = cell.volume() / math.prod(n_real)
    result *= scale * np.exp(2 * np.pi**2 * widening * s2)
    result[~inside(grid, s2)] = np.nan
    return result


def transform_at(structure: Structure, s, table: str = "wk1995", algorithm: str = "auto") -> np.ndarray:
    """Structure factors of exactly the atoms given (no symmetry) at any points.

    Parameters
    ----------
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure
    algorithm : ``direct``; ``nufft``: see :func:`off_lattice_transform`; ``auto``: direct where it is cheap (below 1e7
        terms) or finufft is not installed

    Returns
    -------
    (m,) complex128, electrons
    """
    choice("algorithm", algorithm, ("auto", "nufft", "direct"))
    s = np.asarray(s, dtype=float).reshape(-1, 3)
    if algorithm == "auto":
        cheap = structure.n_atoms * len(s) < _CHEAP or importlib.util.find_spec("finufft") is None
        algorithm = "direct" if cheap else "nufft"
    if algorithm == "nufft":
        return off_lattice_transform(structure, s, table)
    return direct_transform(structure, s @ structure.orthogonalization, table)


def off_lattice_transform(structure: Structure, s, table: str = "wk1995") -> np.ndarray:
    """Structure factors of exactly the atoms given (no symmetry) at any points, by a non-uniform FFT.

    The density of the atoms is sampled in a box around them, as for :func:`lattice_transform`, and its transform taken
    at the points by finufft. The rms error is below 1e-4 of the rms F in every resolution shell.

    Parameters
    ----------
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure
    table : see :func:`factors.form_factors`

    Returns
    -------
    (m,) complex128, electrons

    Raises
    ------
    DiffuseError
        If finufft is not installed.
    """
    try:
        import finufft
    except ImportError:
        raise DiffuseError("structure factors off the lattice: finufft is not installed; pip install finufft") from None
    s = np.ascontiguousarray(s, dtype=float).reshape(-1, 3)
    s2 = np.sum(s**2, axis=1)
    d_min = 1 / max(math.sqrt(s2.max(initial=0.0)), 1 / _COARSEST)
    sites = structure.site_cart
    widening = _widening(structure, d_min)
    margin = _reach(structure, widening, table)  # nothing wraps round
    low, high = sites.min(axis=0) - margin, sites.max(axis=0) + margin
    n_real = tuple(scipy.fft.next_fast_len(math.ceil(x / (d_min * _STEP))) for x in high - low)
    step = (high - low) / np.array(n_real)
    density = _density(structure, (sites - low) / step, np.diag(step), n_real, widening, table)
    modes = density.astype(np.complex128)
    modes *= step.prod()
    centre = low + step * (np.array(n_real) // 2)  # the point that finufft numbers 0
    result = np.empty(len(s), dtype=np.complex128)

    def part(rows):
        # one thread each: wheels of finufft bring an OpenMP library of their own; after cctbx's, two threads give NaN
        x, y, z = np.ascontiguousarray((2 * math.pi * step * s[rows]).T)
        options = {"isign": 1, "nthreads": 1, "upsampfac": _NUFFT_UPSAMPLING}
        finufft.nufft3d2(x, y, z, modes, out=result[rows], eps=_NUFFT_ERROR, **options)
        result[rows] *= np.exp(2 * math.pi**2 * widening * s2[rows] + 2j * math.pi * (s[rows] @ centre))

    number = max(1, min(available_cores(), len(s) // _NUFFT_POINTS))
    list(in_threads(part, row_ranges(len(s), number), number))
    return result


def _density(structure: Structure, position, edges, n_real: tuple, widening: float, table: str) -> np.ndarray:
    """float64 of shape ``n_real``, density of the atoms with ``widening`` added to their U, in electrons/Å³.

    position : (n, 3) float64, in steps of the grid; edges : (3, 3) float64, columns are its steps, Å
    """
    density = np.zeros(n_real)
    cutoff = -2 * math.log(_WING)
    for kind, label in enumerate(structure.types):
        mine = structure.type_index == kind
        for weight, b in _gaussians(label, table):
            tensors = structure.u_cart[mine] + (b / (8 * math.pi**2) + widening) * np.eye(3)
            add_peaks(position[mine], tensors, weight * structure.occupancy[mine], edges, cutoff, density)
    return density


def _gaussians(label: str, table: str) -> list:
    """a and b in Å² of the form factor sum a exp(-b s²/4), the constant included."""
    terms = gaussian(label, table)
    return [(a, b) for a, b in [*zip(terms.array_of_a(), terms.array_of_b()), (terms.c(), 0.0)] if a != 0]


def _widening(structure: Structure, d_min: float) -> float:
    """What to add to U, in Å², so that of what sampling folds back 1/_QUALITY is left; below 0 where U is large."""
    base = math.log(_QUALITY) * d_min**2 / (2 * math.pi**2 * ((1 / _STEP - 1) ** 2 - 1))
    return base - float(np.linalg.eigvalsh(structure.u_cart).min())


def _reach(structure: Structure, widening: float, table: str) -> float:
    """Distance from its centre, in Å, to which the widest atom is sampled."""
    widest = max(b for label in structure.types for _, b in _gaussians(label, table)) / (8 * math.pi**2)
    largest = float(np.linalg.eigvalsh(structure.u_cart).max()) + widest + widening
    return math.sqrt(-2 * math.log(_WING) * largest)


def memory_estimate(grid: MapGrid) -> int:
    """Bytes that :func:`lattice_transform` takes for a grid at its peak."""
    return 24 * math.prod(_real_grid(grid)) + 40 * grid.n_voxels


def direct_transform(structure: Structure, hkl, table: str = "wk1995", wavelength: float | None = None) -> np.ndarray:
    """Structure factors of exactly the atoms given (no symmetry) at any points, by direct summation.

    It is slow and exact, the oracle of :func:`lattice_transform`.

    Parameters
    ----------
    hkl : (m, 3) fractional Miller indices
    table, wavelength : see :func:`factors.form_factors`

    Returns
    -------
    (m,) complex128, electrons
    """
    s = np.asarray(hkl, dtype=float).reshape(-1, 3) @ np.linalg.inv(structure.orthogonalization)
    result = np.empty(len(s), dtype=np.complex128)
    block = max(1, _TERMS // structure.n_atoms)
    terms = np.empty((block, structure.n_atoms), dtype=np.complex128)
    for start in range(0, len(s), block):
        part = s[start : start + block]
        f = form_factors(structure, np.linalg.norm(part, axis=1), table, wavelength)
        out = terms[: len(part)]
        amplitudes(2 * np.pi * part, structure.site_cart, structure.type_index, f, structure.u_cart, out)
        result[start : start + block] = out @ structure.occupancy
    return result


def structure_factors(structure: Structure, d_min: float, table: str = "wk1995", algorithm: str = "auto") -> tuple:
    """Bragg structure factors of the crystal at all whole indices inside d_min.

    Parameters
    ----------
    structure : asymmetric unit; expanded here
    d_min : Å
    algorithm : ``fft``, ``direct``, or ``auto``: direct where it is cheap (below 1e7 terms)

    Returns
    -------
    grid : MapGrid of the whole indices in P 1
    f : complex128 of ``grid.shape``, electrons per cell; NaN outside d_min
    """
    choice("algorithm", algorithm, ("auto", "fft", "direct"))
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), d_min)
    content = structure.expand()
    if algorithm == "auto":
        algorithm = "direct" if content.n_atoms * grid.n_voxels < _CHEAP else "fft"
    if algorithm == "fft":
        return grid, lattice_transform(content, grid, table)
    chosen = inside(grid, s_squared(grid))
    f = np.full(grid.shape, np.nan, dtype=np.complex128)
    f[chosen] = direct_transform(content, np.argwhere(chosen) - np.array(grid.extent), table)
    return grid, f


def s_squared(grid: MapGrid, tensor=None) -> np.ndarray:
    """(grid.shape) float64, |s|² in 1/Å² of every voxel centre, or s T s.

    tensor : (3, 3), symmetric, in cctbx's Cartesian frame
    """
    tensor = np.eye(3) if tensor is None else tensor
    return quadratic_form(grid.axes(), grid.reciprocal_matrix.T @ tensor @ grid.reciprocal_matrix)


def quadratic_form(axes, metric) -> np.ndarray:
    """(n1, n2, n3), h M h on the points of three axes, of the type of these.

    axes : three 1-D arrays of floats; metric : (3, 3), symmetric
    """
    h, k, l = (np.ascontiguousarray(axis) for axis in axes)
    result = np.empty((len(h), len(k), len(l)), dtype=h.dtype)
    on_axes(h, k, l, np.ascontiguousarray(metric, dtype=h.dtype), result)
    return result


def inside(grid: MapGrid, s2: np.ndarray) -> np.ndarray:
    """(grid.shape) bool, is |s| <= 1/d_min? ``s2``: as from :func:`s_squared`"""
    return s2 <= (1 / grid.d_min * (1 + 1e-12)) ** 2


def cells_agree(structure: Structure, unit_cell) -> bool:
    """Does the structure have this cell, six floats in Å and degrees, within 1 % and 1°?"""
    return structure.cell.is_similar_to(uctbx.unit_cell(unit_cell), 0.01, 1.0)


def check_cells(structure: Structure, grid: MapGrid) -> None:
    """Raise DiffuseError unless the cells of model and map agree within 1 %."""
    if not cells_agree(structure, grid.unit_cell):
        cells = [", ".join(f"{x:g}" for x in cell) for cell in (structure.unit_cell, grid.unit_cell)]
        raise DiffuseError(
            f"unit cells of the model ({cells[0]}) and of the map ({cells[1]}) differ by more than 1 %; "
            "use a model of this crystal form"
        )


def _real_grid(grid: MapGrid) -> tuple:
    lengths = np.array(grid.subdivide) * np.array(grid.unit_cell[:3])
    return tuple(
        scipy.fft.next_fast_len(max(math.ceil(a / (grid.d_min * _STEP)), 2 * m + 2), real=True)
        for a, m in zip(lengths, grid.extent)
    )
