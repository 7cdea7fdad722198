"""Convolution of intensities on a reciprocal lattice with a kernel that is known everywhere: no wrap-around, no cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.integrate import trapezoid
from scipy.optimize import brentq

from dials_diffuse.compat import available_cores
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.lorentzian import lorentzian, lorentzian_flux, lorentzian_transform
from dials_diffuse.structure.transform import quadratic_form

KERNELS = ("exponential", "gaussian", "lorentzian")

#: where the integral over the reflections that are left out ends, in units of 1/gamma and of 1/Å (q)
_TAIL_END = 1e4
_TAIL_NODES = 1500


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlation c(r) of displacements at a distance r, and the transforms of its powers.

    Attributes
    ----------
    kernel : ``exponential`` c = exp(-|G^-1 r|), ``gaussian`` c = exp(-|G^-1 r|²/2), or ``lorentzian``, see there
    matrix : (3, 3) float64, G in Å, symmetric, positive definite
    core : Å, of the Lorentzian kernel, below the geometric mean of G's eigenvalues

    Source: THEORY.md §3
    """

    kernel: str
    matrix: np.ndarray
    core: float = 1.5

    @property
    def mean_length(self) -> float:
        """Geometric mean of the eigenvalues of G, Å."""
        return float(np.linalg.det(self.matrix) ** (1 / 3))

    def reach(self, level: float) -> float:
        """Largest distance at which c(r) is as large as ``level``, Å."""
        if self.kernel == "lorentzian":
            core = self.core / self.mean_length
            radius = brentq(lambda r: float(lorentzian(np.array(r), 1.0, core)) - level, 0, -math.log(level))
        else:
            radius = -math.log(level) if self.kernel == "exponential" else math.sqrt(-2 * math.log(level))
        return radius * float(np.linalg.eigvalsh(self.matrix)[-1])

    def transform(self, square: np.ndarray, order: int) -> np.ndarray:
        """Gamma_l, the integral of c(r)^l exp(iQr) over space in Å³.

        square : float64, |G Q|²; order : l
        """
        volume = np.linalg.det(self.matrix)
        if self.kernel == "gaussian":
            result = np.exp(square * (-0.5 / order))
            result *= (2 * math.pi / order) ** 1.5 * volume
            return result
        if self.kernel == "lorentzian":
            return volume * lorentzian_transform(square, self.core / self.mean_length, order)
        result = square * order**-2.0
        result += 1
        result *= result
        return np.divide(8 * math.pi * volume / order**3, result, out=result)

    def tail(self, q: np.ndarray, q_max: float, mean, order: int) -> np.ndarray:
        """Share of the reflections beyond q_max, with their mean square in the place of each.

        (2 pi)^-3 times the integral of mean(q') Gamma_l(q - q') over |q'| > q_max, with the geometric mean of G's
        eigenvalues in the place of G.

        Parameters
        ----------
        q : (m,) float64, 1/Å; mean : function of (n,) q'
        """
        gamma = self.mean_length / {"exponential": order, "gaussian": math.sqrt(order), "lorentzian": 1}[self.kernel]
        step = np.geomspace(1e-4 / gamma, _TAIL_END * max(1 / gamma, 1.0), _TAIL_NODES)
        other = q_max + np.concatenate([[0.0], step])
        weight = mean(other) * other
        q = np.maximum(q, 1e-3 / gamma)
        result = np.empty(len(q))
        for i, x in enumerate(q):
            near, far = (gamma * (x - other)) ** 2, (gamma * (x + other)) ** 2
            if self.kernel == "lorentzian":
                flux = [lorentzian_flux(np.sqrt(k), self.core / gamma, order) for k in (near, far)]
                angular = gamma / x * (flux[1] - flux[0])
            elif self.kernel == "exponential":
                angular = 4 * math.pi * gamma / x * (1 / (1 + near) - 1 / (1 + far))
            else:
                angular = (2 * math.pi) ** 1.5 * gamma / x * (np.exp(-0.5 * near) - np.exp(-0.5 * far))
            result[i] = trapezoid(weight * angular, other)
        return result / (2 * math.pi) ** 2


def convolutions(
    strength: np.ndarray, source: MapGrid, grid: MapGrid, correlation: Correlation, orders: int, operators: np.ndarray
) -> Iterator[tuple]:
    """Sums (1/V) sum over h of strength(h) Gamma_l(q - q_h) on the voxels of a finer lattice.

    The finer lattice falls into copies of the source lattice, shifted by fractions of its step. On each the sum is a
    discrete convolution; it is done by FFT on a box that holds every difference of two indices, so that nothing wraps
    round. Of shifts that the operators make equivalent only one is computed.

    Parameters
    ----------
    strength : float64 of ``source.shape``, finite
    source : reciprocal lattice, subdivide 1, 1, 1; V is the volume of its cell
    grid : voxels wanted; its subdivided lattice contains the source lattice
    orders : l = 1 ... orders
    operators : (m, 3, 3) int64, leave strength and Gamma alone (index @ R)

    Yields
    ------
    where : three slices of a volume of ``grid.shape``, the voxels of one shift
    values : generator of float64 arrays of that shape, one for each order
    """
    ratio = _ratio(source, grid)
    size = box_size(source, grid)
    workers = available_cores()
    padded = np.zeros(size)
    padded[tuple(slice(n) for n in strength.shape)] = strength
    padded = np.roll(padded, [-m for m in source.extent], axis=(0, 1, 2))
    transform = scipy.fft.rfftn(padded, workers=workers)
    transform /= abs(np.linalg.det(source.reciprocal_matrix)) ** -1
    del padded
    turned = source.reciprocal_matrix.T @ correlation.matrix
    metric = (2 * math.pi) ** 2 * turned @ turned.T
    for shift in distinct_shifts(ratio, operators):
        # first index at or above -extent with this remainder
        first = [-m + (o + m) % n for m, n, o in zip(grid.extent, ratio, shift)]
        where = tuple(slice(f + m, None, n) for f, m, n in zip(first, grid.extent, ratio))
        wanted = np.ix_(
            *[
                np.arange((f - o) // n, (m - o) // n + 1) % length
                for f, m, n, o, length in zip(first, grid.extent, ratio, shift, size)
            ]
        )
        axes = [scipy.fft.fftfreq(length, 1 / length) + o / n for length, n, o in zip(size, ratio, shift)]
        square = quadratic_form(axes, metric)

        def values(square=square, wanted=wanted):
            for order in range(1, orders + 1):
                product = scipy.fft.rfftn(correlation.transform(square, order), workers=workers)
                product *= transform
                yield scipy.fft.irfftn(product, s=size, workers=workers, overwrite_x=True)[wanted]

        yield where, values()


def box_size(source: MapGrid, grid: MapGrid) -> tuple:
    """Points along each axis of a box that holds all differences between indices wanted and given."""
    reach = [m // n + 1 for m, n in zip(grid.extent, _ratio(source, grid))]
    return tuple(scipy.fft.next_fast_len(2 * (r + m) + 1, real=True) for r, m in zip(reach, source.extent))


def distinct_shifts(ratio, operators) -> list:
    """One of each set of shifts (o1, o2, o3), 0 <= o < ratio, that operators and whole steps turn into each other."""
    ratio = np.array(ratio)
    shifts = np.array(list(itertools.product(*[range(n) for n in ratio])))
    mates = np.mod(np.einsum("si,mij->smj", shifts, operators), ratio)
    keys = (mates[..., 0] * ratio[1] + mates[..., 1]) * ratio[2] + mates[..., 2]
    return [tuple(map(int, shifts[k])) for k in np.unique(keys.min(axis=1))]


def _ratio(source: MapGrid, grid: MapGrid) -> tuple:
    """Steps of the grid in one step of the source lattice."""
    lengths = np.array(grid.subdivide) * np.array(grid.unit_cell[:3]) / np.array(source.unit_cell[:3])
    return tuple(int(n) for n in np.rint(lengths))
