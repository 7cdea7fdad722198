"""The pair sum on a grid by FFT: each pair of atoms is a peak of the Patterson function.

A pair's term exp(iq(r_i - r_j)) exp(-q B q / 2), with B the covariance of the difference of the two displacements, is
the transform of a Gaussian at r_i - r_j. The diffuse intensity is the Patterson function of the moving atoms, in which
B = U_i + U_j - V_ij - V_ji, less that of the mean structure, in which B = U_i + U_j. The number of voxels hardly
matters.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import scipy.fft

from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError
from dials_diffuse.kernels.peaks import add_peaks
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance.motion import Motion
from dials_diffuse.parallel import in_threads
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.transform import s_squared

#: points of the density for each index along an axis; what sampling folds back comes from beyond twice d_min^-1
_OVERSAMPLING = 3
#: damping of what is folded back, by widening the peaks
_QUALITY = 1e5
#: a peak is left out where it is below this fraction of its maximum
_WING = 1e-7
#: pairs that are in memory together
_PAIRS = 1 << 18
#: densities that are made at the same time, each in a thread of its own
_MOST_THREADS = 4


def patterson_sum(motion: Motion, grid: MapGrid, table: str) -> np.ndarray:
    """Sum over pairs i != j of a_i conj(a_j) (exp(q V_ij q) - 1) at every voxel centre.

    The rms error is below 1e-4 of the rms value in every resolution shell (measured against the pair sum).

    Parameters
    ----------
    motion : of atoms in the grid's cell; no symmetry is applied
    table : see :func:`factors.form_factors`

    Returns
    -------
    float64 of ``grid.shape``, electrons²; meaningless outside 1/d_min

    Raises
    ------
    DiffuseError
        If the covariance of the difference of two displacements, widened for sampling, is not positive definite.
    """
    structure = motion.structure
    n_real = real_grid(grid)
    s2 = s_squared(grid)
    widening = math.log(_QUALITY) / (2 * math.pi**2 * (_OVERSAMPLING - 2) * _OVERSAMPLING) * grid.d_min**2
    cutoff = -2 * math.log(_WING)
    period = np.array(grid.subdivide)
    frac = np.linalg.inv(structure.orthogonalization)
    edges = structure.orthogonalization * (period / np.array(n_real))
    f = form_factors(structure, np.sqrt(_nodes(s2)), table)
    total = np.zeros(grid.shape)
    threads = min(available_cores(), _MOST_THREADS)
    densities = np.empty((threads, *n_real))
    sites = structure.site_cart

    def add(task):
        """Two peaks for each of some pairs."""
        i, j, density = task
        v = motion.between(i, j)
        moving = np.any(v != 0, axis=(1, 2))
        i, j, v = i[moving], j[moving], v[moving]
        position = (sites[i] - sites[j]) @ frac.T / period * n_real
        weight = structure.occupancy[i] * structure.occupancy[j]
        wide = motion.own[i] + motion.own[j] + widening * np.eye(3)
        narrow = wide - v - v.transpose(0, 2, 1)
        try:
            np.linalg.cholesky(narrow)
        except np.linalg.LinAlgError:
            raise DiffuseError(
                "atoms share displacements that are much larger than their own, so that there is no Patterson "
                "function; choose smaller ones"
            ) from None
        add_peaks(position, wide, -weight, edges, cutoff, density)
        add_peaks(position, narrow, weight, edges, cutoff, density)

    for one, other in itertools.combinations_with_replacement(range(len(structure.types)), 2):
        densities[...] = 0
        for block in _pairs(structure.type_index, one, other):
            parts = (np.array_split(x, threads) for x in block)
            list(in_threads(add, zip(*parts, densities), threads))
        if densities.any():
            total += np.interp(s2, _nodes(s2), f[one] * f[other]) * _transform(densities.sum(axis=0), grid)
    volume = structure.cell.volume() * math.prod(grid.subdivide)
    total *= 2 * volume / math.prod(n_real) * np.exp(2 * math.pi**2 * widening * s2)
    return total


def memory_estimate(grid: MapGrid) -> int:
    """Bytes that :func:`patterson_sum` takes at its peak."""
    threads = min(available_cores(), _MOST_THREADS)
    return (24 + 8 * threads) * math.prod(real_grid(grid)) + 32 * grid.n_voxels + 400 * _PAIRS


def real_grid(grid: MapGrid) -> tuple:
    """Points of the density along each axis."""
    return tuple(scipy.fft.next_fast_len(_OVERSAMPLING * m + 2, real=True) for m in grid.extent)


def _nodes(s2: np.ndarray) -> np.ndarray:
    return np.linspace(0, s2.max(), 1 << 14)


def _pairs(kind: np.ndarray, one: int, other: int):
    """Each pair of atoms of two types once, in blocks of two index arrays."""
    first, second = np.flatnonzero(kind == one), np.flatnonzero(kind == other)
    rows = max(1, _PAIRS // max(1, len(second)))
    for start in range(0, len(first), rows):
        i, j = (x.reshape(-1) for x in np.meshgrid(first[start : start + rows], second, indexing="ij"))
        if one == other:
            i, j = i[i < j], j[i < j]
        yield i, j


def _transform(density: np.ndarray, grid: MapGrid) -> np.ndarray:
    """(grid.shape) float64, real part of the transform; one axis at a time, so that what is not wanted is dropped."""
    workers = available_cores()
    m3 = grid.extent[2]
    rows = [np.arange(-m, m + 1) % n for m, n in zip(grid.extent, density.shape)]
    half = scipy.fft.rfft(density, axis=2, workers=workers)[:, :, : m3 + 1]
    half = scipy.fft.fft(half, axis=0, workers=workers)[rows[0]]
    half = scipy.fft.fft(half, axis=1, workers=workers)[:, rows[1]].real
    result = np.empty(grid.shape)
    result[:, :, m3:] = half
    result[:, :, :m3] = half[::-1, ::-1, :0:-1]
    return result
