"""Convolution of intensities on a reciprocal lattice with a kernel that is known everywhere: no wrap-around, no cut."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.integrate import trapezoid
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from dials_diffuse.compat import available_cores
from dials_diffuse.kernels.even_table import from_table
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.lorentzian import lorentzian, lorentzian_flux, lorentzian_transform
from dials_diffuse.structure.transform import quadratic_form

KERNELS = ("exponential", "gaussian", "lorentzian")

#: points at which the share of the reflections left out is computed
TAIL_NODES = 400
#: where the integral over these reflections ends, in units of 1/gamma and of 1/Å (q)
_TAIL_END = 1e4
_TAIL_STEPS = 1500

#: a correlation that ends does so from ``inner`` to _FALL inner + _FALL_WIDTH, in Å
_FALL = 1.05
_FALL_WIDTH = 3.0
#: what is left of a correlation may end abruptly
_NO_CORRELATION = 1e-9
#: table of its transform: step of k in units of 1/r, and how much finer it is read; panels of the integral over r, in
#: units of 1/k, and nodes in each
_TABLE_STEP = 0.1
_REFINED = 30
_TABLE_BLOCK = 512
_PANEL = 6.0
_MORE_PANELS = 40
_PANEL_NODES = 10


@dataclass(frozen=True, eq=False)
class Correlation:
    """Correlation c(r) of displacements at a distance r, and the transforms of its powers.

    Attributes
    ----------
    kernel : ``exponential`` c = exp(-|G^-1 r|), ``gaussian`` c = exp(-|G^-1 r|²/2), or ``lorentzian``, see there
    matrix : (3, 3) float64, G in Å, symmetric, positive definite
    core : Å, of the Lorentzian kernel, below the geometric mean of G's eigenvalues
    inner : Å, c(r) matters up to this distance only: from there it is taken smoothly to 0, which it is from ``outer``

    Source: docs/theory.md, llm
    """

    kernel: str
    matrix: np.ndarray
    core: float = 1.5
    inner: float = math.inf

    @property
    def outer(self) -> float:
        """Å, the distance beyond which c(r) is 0."""
        widths = np.linalg.eigvalsh(self.matrix)
        return float((_FALL * self.inner + _FALL_WIDTH) * widths[-1] / widths[0])

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
        if self._ends:
            return volume * self._ended_transform(square, order)
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

    @property
    def _ends(self) -> bool:
        """Is there any correlation left where it is taken to 0?"""
        return self.reach(_NO_CORRELATION) > self.inner

    def _ended_transform(self, square: np.ndarray, order: int) -> np.ndarray:
        """The transform of c(r)^l taken to 0 beyond ``inner``, in units of G: a table of integrals over r."""
        shortest = float(np.linalg.eigvalsh(self.matrix)[0])
        first, last = self.inner / shortest, (_FALL * self.inner + _FALL_WIDTH) / shortest
        k_max = math.sqrt(float(square.max()))
        k = np.linspace(0, k_max, math.ceil(k_max * last / _TABLE_STEP) + 2)
        panels = math.ceil(max(k_max * last, 1.0) / _PANEL) + _MORE_PANELS
        edges = np.linspace(0, last, panels + 1)
        unit, weight = np.polynomial.legendre.leggauss(_PANEL_NODES)
        width = 0.5 * last / panels
        r = (edges[:-1, None] + width * (1 + unit)).reshape(-1)
        power = (
            self._value(r) ** order * _taken_to_zero((r - first) / (last - first)) * r * np.tile(width * weight, panels)
        )
        values = np.empty(len(k))
        for start in range(0, len(k), _TABLE_BLOCK):
            part = k[start : start + _TABLE_BLOCK, None]
            values[start : start + _TABLE_BLOCK] = (r * np.sinc(part * r / math.pi)) @ power
        spline = CubicSpline(k, 4 * math.pi * values)
        fine = np.linspace(0, k_max, _REFINED * len(k))
        return from_table(np.sqrt(square), k_max, spline(fine))

    def _value(self, r: np.ndarray) -> np.ndarray:
        """c at distances r in units of G."""
        if self.kernel == "lorentzian":
            return lorentzian(r, 1.0, self.core / self.mean_length)
        return np.exp(-r) if self.kernel == "exponential" else np.exp(-0.5 * r**2)

    def tail(self, q: np.ndarray, q_max: float, mean, order: int) -> np.ndarray:
        """Share of the reflections beyond q_max, with their mean square in the place of each.

        (2 pi)^-3 times the integral of mean(q') Gamma_l(q - q') over |q'| > q_max, with the geometric mean of G's
        eigenvalues in the place of G.

        Parameters
        ----------
        q : (m,) float64, 1/Å; mean : function of (n,) q'
        """
        gamma = self.mean_length / {"exponential": order, "gaussian": math.sqrt(order), "lorentzian": 1}[self.kernel]
        step = np.geomspace(1e-4 / gamma, _TAIL_END * max(1 / gamma, 1.0), _TAIL_STEPS)
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
    ratio = steps_between(source, grid)
    size = box_size(source, grid)
    workers = available_cores()
    padded = np.zeros(size)
    padded[np.ix_(*[np.arange(-m, m + 1) % n for m, n in zip(source.extent, size)])] = strength
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
    reach = [m // n + 1 for m, n in zip(grid.extent, steps_between(source, grid))]
    return tuple(scipy.fft.next_fast_len(2 * (r + m) + 1, real=True) for r, m in zip(reach, source.extent))


def distinct_shifts(ratio, operators) -> list:
    """One of each set of shifts (o1, o2, o3), 0 <= o < ratio, that operators and whole steps turn into each other."""
    ratio = np.array(ratio)
    shifts = np.array(list(itertools.product(*[range(n) for n in ratio])))
    mates = np.mod(np.einsum("si,mij->smj", shifts, operators), ratio)
    keys = (mates[..., 0] * ratio[1] + mates[..., 1]) * ratio[2] + mates[..., 2]
    return [tuple(map(int, shifts[k])) for k in np.unique(keys.min(axis=1))]


def _taken_to_zero(t: np.ndarray) -> np.ndarray:
    """1 for t <= 0, 0 for t >= 1, with all derivatives continuous."""
    inside = np.clip(t, 0.01, 0.99)  # there it is 1 and 0 within exp(-99)
    value = 1 / (1 + np.exp(1 / (1 - inside) - 1 / inside))
    return np.where(t <= 0.01, 1.0, np.where(t >= 0.99, 0.0, value))


def steps_between(source: MapGrid, grid: MapGrid) -> tuple:
    """Steps of the grid in one step of the source lattice."""
    lengths = np.array(grid.subdivide) * np.array(grid.unit_cell[:3]) / np.array(source.unit_cell[:3])
    return tuple(int(n) for n in np.rint(lengths))
