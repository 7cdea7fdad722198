"""Three-dimensional difference pair distribution function (3D-ΔPDF): the Fourier transform of diffuse scattering.

    P(r) = ∫ w(s) [I(s) - I_iso(|s|)] cos(2π s·r) d³s

P is positive at vectors between atoms that occur more often than in the average structure, and negative at those that
occur less often. Atoms that move together keep the vector between them: P is positive there, and negative around it.
Atoms that move apart make it negative there, and positive on both sides, along the motion. See docs/theory.md.

Source: Weber & Simonov 2012, Z. Kristallogr. 227, 238
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft

from dials_diffuse.checks import choice, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.counting import count_unique
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.holes import at_lattice_points, fill_from_neighbours, friedel_merged, with_lattice_points
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import BIN_WIDTH, TOLERANCE, equal_count_residual, resolution_range
from dials_diffuse.maps.symmetry import fill_volume, laue_operators
from dials_diffuse.memory import check_memory

BRAGG = ("auto", "neighbours", "shell", "none")

#: voxels in a shell whose isotropic part is taken off, at least: a line through fewer would take much of the rest
_PER_SHELL = 400

#: width of the shells of |r| in which sigma is found, in widths of a peak
_SIGMA_SHELL = 2.0

#: bytes for each point of the result: itself, its noise, its spectrum, and what shells and peaks need beside
_BYTES = 40


@dataclass(frozen=True)
class DeltaPdfParameters:
    """How a ΔPDF is made.

    Attributes
    ----------
    d_max, d_min : Å, what is used of the map; None: all of it
    bragg : voxels at lattice points, whether the map has them or not. ``none``: used as they are; ``neighbours``:
        replaced by the mean of the measured ones among their 26 neighbours, weighted by exp(-d²/2), with the distance d
        in units of the shortest; ``shell``: replaced by the isotropic mean; ``auto``: ``neighbours`` for measured maps,
        ``none`` for those of models
    weight_at_d_min : of the apodisation, a Gaussian of |s| that is 1 at the origin; 1: none
    spacing : Å, of the result; None: a third of d_min
    undo_voxels : divide by the transform of a voxel, where the map holds means over voxels; None: where it does

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    d_max: float | None = None
    d_min: float | None = None
    bragg: str = "auto"
    weight_at_d_min: float = 0.05
    spacing: float | None = None
    undo_voxels: bool | None = None

    def __post_init__(self):
        choice("delta_pdf.bragg", self.bragg, BRAGG)
        if not 0 < self.weight_at_d_min <= 1:
            raise DiffuseError(f"delta_pdf.weight_at_d_min={self.weight_at_d_min}: a number up to 1, not 0, is needed")
        for name in ("d_min", "spacing"):
            if getattr(self, name) is not None:
                positive(f"delta_pdf.{name}", getattr(self, name))
        if self.d_max is not None and not self.d_max > 0:
            raise DiffuseError(f"delta_pdf.d_max={self.d_max}: a positive number is needed (Å)")


@dataclass(frozen=True)
class Filled:
    """Where the voxels within the limits come from, as shares of all, mates counted.

    measured : by themselves or by symmetry (of the Laue group); neighbours, shell : replaced by the mean of their
    neighbours, or by the isotropic mean
    bragg : voxels at lattice points that were replaced, or were missing; part of the two
    """

    measured: float
    neighbours: float
    shell: float
    bragg: float


@dataclass(frozen=True, eq=False)
class DeltaPdf:
    """The ΔPDF on a grid in real space, one period of the lattice on which the map was sampled.

    Attributes
    ----------
    values : (n1, n2, n3) float32, unit of the map / Å³; the origin is at ``n // 2``
    noise : the same of half the difference of the half sets, or None
    grid : MapGrid of the map, with the limits that were used
    filled : Filled
    parameters : with what ``auto`` and None stood for
    width : Å, full width at half maximum of a point: of the apodisation, or of the limit d_min without
    units : of the values
    """

    values: np.ndarray
    noise: np.ndarray | None
    grid: MapGrid
    filled: Filled
    parameters: DeltaPdfParameters
    width: float
    units: str

    @property
    def cell(self) -> tuple:
        """Six floats, Å and degrees, of the period: the unit cell times the subdivision."""
        a, b, c, *angles = self.grid.unit_cell
        return (*(x * n for x, n in zip((a, b, c), self.grid.subdivide)), *angles)

    @property
    def origin(self) -> tuple:
        """Index of the vector 0."""
        return tuple(n // 2 for n in self.values.shape)

    def fractional(self, index) -> np.ndarray:
        """(..., 3) float64, vectors as fractions of the unit cell's axes; index : (..., 3) numbers, from 0."""
        shape = np.array(self.values.shape)
        return (np.asarray(index) - np.array(self.origin)) / shape * np.array(self.grid.subdivide)

    def vectors(self, index) -> np.ndarray:
        """(..., 3) float64, Å, in the Cartesian frame of coordinate files; index : (..., 3) numbers, from 0."""
        return self.fractional(index) @ np.linalg.inv(self.grid.reciprocal_matrix)

    def lengths(self) -> np.ndarray:
        """|r| in Å of all points, of the shape of the values, float32."""
        basis = np.linalg.inv(self.grid.reciprocal_matrix) * np.array(self.grid.subdivide)[:, None]
        metric = (basis @ basis.T).astype(np.float32)
        x = [((np.arange(n) - n // 2) / n).astype(np.float32) for n in self.values.shape]
        x = [x[0][:, None, None], x[1][None, :, None], x[2][None, None, :]]
        square = sum(metric[i, i] * x[i] ** 2 for i in range(3))
        square = square + 2 * sum(metric[i, j] * x[i] * x[j] for i, j in ((0, 1), (0, 2), (1, 2)))
        return np.sqrt(np.maximum(square, 0))

    def sigma_of_length(self) -> tuple:
        """Upper limits of shells of |r| in Å and the rms of the noise in each; empty without half sets.

        That is before voxels are undone: see :meth:`sigma`.
        """
        if self.noise is None:
            return np.zeros(0), np.zeros(0)
        noise = np.square(self.noise)
        for factor in self._factors():
            noise /= np.square(factor)
        shell = (self.lengths() / (_SIGMA_SHELL * self.width)).astype(np.int32).ravel()
        count, square = np.bincount(shell), np.bincount(shell, noise.ravel())
        limits = (np.arange(len(count)) + 1) * _SIGMA_SHELL * self.width
        return limits, np.sqrt(square / np.maximum(count, 1))

    def sigma(self, index: np.ndarray) -> np.ndarray:
        """(m,) standard error of values: the rms of the noise in the shell of |r|, with voxels undone as the values.

        On symmetry elements of the Laue group it is larger, by the root of the number of operators that leave the
        vector where it is. NaN without half sets.

        index : (m, 3) integers, from 0
        """
        limits, errors = self.sigma_of_length()
        if not len(errors):
            return np.full(len(index), np.nan)
        length = np.linalg.norm(self.vectors(index), axis=1)
        found = errors[np.minimum(np.searchsorted(limits, length, side="right"), len(errors) - 1)]
        for axis, factor in enumerate(self._factors()):
            found = found * factor.ravel()[index[:, axis]]
        return found

    def _factors(self) -> list:
        """What undoes means over voxels, three arrays to multiply values with; ones where that is not wanted."""
        return undoing(self.values.shape, self.parameters.undo_voxels)


def undoing(shape: tuple, wanted: bool) -> list:
    """1/sinc along each axis of an array of this shape, the transform of a voxel; ones if not wanted."""
    factors = []
    for axis, n in enumerate(shape):
        factor = 1 / np.sinc((np.arange(n) - n // 2) / n) if wanted else np.ones(n)
        factors.append(factor.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)]))
    return factors


def delta_pdf(data: DiffuseMap, parameters: DeltaPdfParameters | None = None) -> DeltaPdf:
    """The 3D-ΔPDF of a map.

    The isotropic part is the straight line in |s| through the voxels of thin shells (:mod:`dials_diffuse.maps.shells`).
    Friedel mates are averaged where the map has them apart. Symmetry fills what mates measured; what is left, and what
    lies outside of the limits, has the isotropic mean, which is 0 here.

    Raises
    ------
    DiffuseError
        If nothing is left to transform, or there is not enough memory.

    Examples
    --------
    >>> from dials_diffuse.files.nexus import read_map
    >>> found = delta_pdf(read_map("diffuse_merged.nxs"), DeltaPdfParameters(spacing=1.0))
    >>> found.values.shape, found.cell[:3]
    ((24, 24, 36), (24.0, 24.0, 36.0))
    >>> found.fractional(found.origin).tolist()
    [0.0, 0.0, 0.0]
    """
    parameters = parameters or DeltaPdfParameters()
    high, low = resolution_range(data.grid, parameters.d_max, parameters.d_min, "delta_pdf.")
    grid = replace(data.grid, d_max=high, d_min=low)
    data = friedel_merged(replace(data, grid=grid))
    parameters = replace(
        parameters,
        d_max=high,
        d_min=low,
        bragg=_bragg_of(data, parameters.bragg),
        spacing=parameters.spacing or low / 3,
        undo_voxels=not data.at_centres if parameters.undo_voxels is None else parameters.undo_voxels,
    )
    shape = _shape(grid, parameters.spacing)
    _check_size(shape)
    punched = np.zeros(len(data.index), dtype=bool)
    if parameters.bragg != "none":
        data = with_lattice_points(data)
        punched = at_lattice_points(data)
    if np.all(punched | ~np.isfinite(data.intensity)):
        raise DiffuseError(
            "delta_pdf: no voxel is left but those at lattice points; integrate with grid.subdivide of 2 or more, or "
            "set delta_pdf.bragg=none"
        )
    values = _anisotropic(data, data.intensity, punched)
    from_neighbours = np.zeros(len(punched), dtype=bool)
    if parameters.bragg == "neighbours":
        from_neighbours = fill_from_neighbours(data, values, punched)
    noise = _noise(data, punched)
    weights = parameters.weight_at_d_min ** (data.grid.s_magnitude(data.index) * low) ** 2
    return DeltaPdf(
        values=_transform(data, values * weights, shape, parameters.undo_voxels),
        noise=None if noise is None else _transform(data, noise * weights, shape, parameters.undo_voxels),
        grid=grid,
        filled=_shares(data, np.isfinite(data.intensity) & ~punched, from_neighbours, punched),
        parameters=parameters,
        width=_width(low, parameters.weight_at_d_min),
        units=f"{data.units} / A^3",
    )


def _bragg_of(data: DiffuseMap, bragg: str) -> str:
    if bragg != "auto":
        return bragg
    return "neighbours" if np.any(data.multiplicity > 0) else "none"


def _anisotropic(data: DiffuseMap, values: np.ndarray, punched: np.ndarray) -> np.ndarray:
    """(n,) float64, without the isotropic part; 0 where punched or not measured."""
    use = np.isfinite(values) & ~punched
    result = np.zeros(len(values))
    s = data.grid.s_magnitude(data.index[use])
    n_shells = min(round(float(np.ptp(s)) / BIN_WIDTH), len(s) // _PER_SHELL) if len(s) else 0
    result[use] = equal_count_residual(values[use], s, max(n_shells, 1))
    return result


def _noise(data: DiffuseMap, punched: np.ndarray) -> np.ndarray | None:
    """(n,) float64, half the difference of the half sets; scaled up for voxels that only one of them has. Or None."""
    if data.half_a is None:
        return None
    difference = (data.half_a - data.half_b) / 2
    both, every = np.isfinite(difference) & ~punched, np.isfinite(data.intensity) & ~punched
    if not np.any(both):
        return None
    square = np.square(np.where(np.isfinite(data.sigma), data.sigma, 0))
    factor = math.sqrt(square[every].sum() / square[both].sum()) if np.any(square[both] > 0) else 1.0
    return factor * _anisotropic(data, np.where(both, difference, np.nan), punched)


def _shape(grid: MapGrid, spacing: float) -> tuple:
    """Points along the axes of the result: even, good for a transform, and enough for all voxels."""
    lengths = [n * a for n, a in zip(grid.subdivide, grid.unit_cell)]
    least = [max(math.ceil(length / spacing), n + 1) for length, n in zip(lengths, grid.shape)]
    return tuple(2 * scipy.fft.next_fast_len(math.ceil(n / 2), real=True) for n in least)


def _check_size(shape) -> None:
    words = f"{'x'.join(map(str, shape))} points of a ΔPDF"
    check_memory(_BYTES * math.prod(shape), words, "set delta_pdf.spacing or delta_pdf.d_min larger")


def _transform(data: DiffuseMap, values: np.ndarray, shape: tuple, undo_voxels: bool) -> np.ndarray:
    """Sum over all voxels of value times cos(2π s·r) times the volume of a voxel, (shape) float32."""
    grid = data.grid
    volume = fill_volume(grid, data.index, values, True, 0.0, np.float32)
    m1, m2, m3 = grid.extent
    spectrum = np.zeros((shape[0], shape[1], shape[2] // 2 + 1), dtype=np.complex64)
    h, k = np.arange(-m1, m1 + 1) % shape[0], np.arange(-m2, m2 + 1) % shape[1]
    spectrum[np.ix_(h, k, np.arange(m3 + 1))] = volume[:, :, m3:]
    result = scipy.fft.irfftn(spectrum, s=shape, norm="forward", overwrite_x=True)
    result *= abs(np.linalg.det(grid.reciprocal_matrix)) / math.prod(grid.subdivide)
    result = np.fft.fftshift(result)
    for factor in undoing(shape, undo_voxels):
        result *= factor
    return result


def _shares(data: DiffuseMap, measured: np.ndarray, from_neighbours: np.ndarray, punched: np.ndarray) -> Filled:
    grid = data.grid
    limits = np.array([(1 - TOLERANCE) / grid.d_max, (1 + TOLERANCE) / grid.d_min])
    every = count_unique(replace(grid, hall_symbol="P 1"), False, limits)[0]
    operators = laue_operators(grid.space_group, True)
    same = sum(np.all(data.index @ operator == data.index, axis=1).astype(int) for operator in operators)
    mates = len(operators) / same

    def share(chosen) -> float:
        return float(mates[chosen].sum() / every)

    found, neighbours = share(measured), share(from_neighbours)
    return Filled(found, neighbours, max(1 - found - neighbours, 0.0), share(punched))


def _width(d_min: float, weight: float) -> float:
    """Full width at half maximum in Å of the transform of the weights within the limit."""
    s, r = np.linspace(0, 1 / d_min, 400), np.linspace(0, d_min, 400)
    weights = weight ** (s * d_min) ** 2 * s**2
    profile = np.sinc(2 * np.outer(r, s)) @ weights
    return float(2 * np.interp(-0.5 * profile[0], -profile, r))
