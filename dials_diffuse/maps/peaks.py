"""Peaks of a ΔPDF, positive and negative, one of each set of symmetry mates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from dials_diffuse.checks import at_least, not_negative
from dials_diffuse.maps.fourier import DeltaPdf
from dials_diffuse.maps.symmetry import laue_operators

#: extrema that are looked at for each peak that is wanted: mates are among them
_MORE = 64


@dataclass(frozen=True)
class PeakParameters:
    """Which peaks are listed.

    Attributes
    ----------
    n : at most so many
    r_min, r_max : Å, their distance from the origin; None: three widths of a peak, and no limit
    min_sigma : their height over its standard error, at least; of maps without half sets all are listed

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    n: int = 50
    r_min: float | None = None
    r_max: float | None = None
    min_sigma: float = 4.0

    def __post_init__(self):
        at_least("delta_pdf.peaks.n", self.n, 0)
        not_negative("delta_pdf.peaks.min_sigma", self.min_sigma)
        for name in ("r_min", "r_max"):
            if getattr(self, name) is not None:
                not_negative(f"delta_pdf.peaks.{name}", getattr(self, name))


@dataclass(frozen=True)
class Peak:
    """An extremum of a ΔPDF.

    Attributes
    ----------
    height : in the unit of the ΔPDF, negative for a hole
    sigma : its standard error; NaN without half sets
    fractional : three floats, in the axes of the unit cell
    vector : three floats, Å, Cartesian frame of coordinate files
    mates : symmetry mates, itself and the inverse among them
    """

    height: float
    sigma: float
    fractional: tuple
    vector: tuple
    mates: int

    @property
    def length(self) -> float:
        """|r| in Å."""
        return float(np.linalg.norm(self.vector))


def find_peaks(found: DeltaPdf, parameters: PeakParameters | None = None) -> list:
    """Extrema of a ΔPDF, the largest over sigma first; without half sets, the largest.

    Positions and heights are those of the parabolas through the extremum and its neighbours along the axes. On a
    symmetry element of the Laue group sigma is multiplied by the root of the number of operators that move the vector
    by less than half a width.
    """
    parameters = parameters or PeakParameters()
    index, sign = _extrema(found.values)
    lengths = np.linalg.norm(found.vectors(index), axis=1)
    r_min = 3 * found.width if parameters.r_min is None else parameters.r_min
    keep = (lengths >= r_min) & (lengths <= (np.inf if parameters.r_max is None else parameters.r_max))
    index, sign = index[keep], sign[keep]
    height = found.values[tuple(index.T)]
    sigma = found.sigma(index)
    rank = np.abs(height) / np.where(sigma > 0, sigma, 1.0)
    order = np.argsort(-rank, kind="stable")[: _MORE * parameters.n]
    operators = _operators(found)
    peaks: list = []
    taken = np.zeros((0, 3))
    for i in order:
        if len(peaks) == parameters.n:
            break
        place, top = _parabola(found.values, index[i], sign[i])
        mates = operators @ found.fractional(place)
        if len(taken) and np.any(_distance(found, taken - found.fractional(place)) < found.width / 2):
            continue
        taken = np.concatenate([taken, mates])
        same = np.count_nonzero(_distance(found, mates - mates[0]) < found.width / 2)
        error = float(sigma[i]) * same**0.5
        if np.isfinite(error) and abs(top) < parameters.min_sigma * error:
            continue
        vector = tuple((found.vectors(place) + 0.0).tolist())  # no -0
        fractional = tuple((found.fractional(place) + 0.0).tolist())
        peaks.append(Peak(float(top), error, fractional, vector, len(mates) // same))
    return sorted(peaks, key=lambda peak: -abs(peak.height) / (peak.sigma if peak.sigma > 0 else 1.0))


def _extrema(values: np.ndarray) -> tuple:
    """(m, 3) indices of local maxima above and minima below 0 among their 26 neighbours, and (m,) signs."""
    places, signs = [], []
    for sign, extreme in ((1, ndimage.maximum_filter), (-1, ndimage.minimum_filter)):
        at = np.argwhere((values == extreme(values, size=3, mode="wrap")) & (sign * values > 0))
        places.append(at)
        signs.append(np.full(len(at), sign))
    return np.concatenate(places), np.concatenate(signs)


def _operators(found: DeltaPdf) -> np.ndarray:
    """(m, 3, 3) matrices of the Laue group that act on a column of fractional coordinates, the identity first."""
    rotations = laue_operators(found.grid.space_group, True)
    return np.linalg.inv(rotations).round().astype(int)  # h @ R is h.(R x): all of the group, in another order


def _distance(found: DeltaPdf, fractional: np.ndarray) -> np.ndarray:
    """Å, of the shortest of the vectors that differ by periods of the map."""
    period = np.array(found.grid.subdivide)
    fractional = fractional - period * np.rint(fractional / period)
    return np.linalg.norm(fractional @ np.linalg.inv(found.grid.reciprocal_matrix), axis=-1)


def _parabola(values: np.ndarray, index: np.ndarray, sign: int) -> tuple:
    """Place (3 floats) and height of an extremum between points."""
    place, middle = index.astype(float), float(values[tuple(index)])
    height = middle
    for axis, n in enumerate(values.shape):
        sides = []
        for step in (-1, 1):
            at = index.copy()
            at[axis] = (at[axis] + step) % n
            sides.append(float(values[tuple(at)]))
        bend = sides[0] + sides[1] - 2 * middle
        if sign * bend < 0:
            shift = float(np.clip((sides[0] - sides[1]) / (2 * bend), -0.5, 0.5))
            place[axis] += shift
            height += -0.25 * (sides[0] - sides[1]) * shift
    return place, height
