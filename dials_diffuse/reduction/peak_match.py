"""How many of the peaks that are seen lie where some models predict spots? And if not there, where?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

#: of the sample, places beside each peak where chance is measured, and how far away (multiples of the radius)
_N_BESIDE, _FROM, _TO = 24, 2.0, 8.0

#: pixels from a predicted place in which a pattern that is a little off is looked for
_CATCH = 6.0

#: rounds of the fit, pixels that its residuals have at least
_ROUNDS, _LEAST = 30, 0.2


@dataclass(frozen=True)
class Predicted:
    """n spots, see ``experiment.peaks.BeamPlane``.

    place : (n, 2) pixels; z : (n,) images from the start of the scan; reach : (n,) images to both sides on which it is
    """

    place: np.ndarray
    z: np.ndarray
    reach: np.ndarray

    def on(self, image: int) -> np.ndarray:
        """(m, 2) places of those on an image."""
        return self.place[np.abs(self.z - image - 0.5) <= self.reach]


@dataclass(frozen=True)
class Peaks:
    """n peaks on some images: image : (n,) int, from the start of the scan; place : (n, 2) pixels."""

    image: np.ndarray
    place: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def some(self, rows) -> Peaks:
        return Peaks(self.image[rows], self.place[rows])

    def few(self, n: int) -> Peaks:
        """About n of them, spread over all images."""
        return self.some(slice(None, None, max(1, len(self) // n)))


@dataclass(frozen=True)
class Move:
    """A change of predicted places: x' = x + x @ stretch + shift; stretch : (2, 2), shift : (2,) pixels."""

    stretch: np.ndarray
    shift: np.ndarray

    def of(self, place: np.ndarray) -> np.ndarray:
        return place + place @ self.stretch + self.shift

    @property
    def scale(self) -> float:
        """Of distances from the beam, relative change."""
        return float(np.trace(self.stretch) / 2)

    @property
    def turn(self) -> float:
        """About the beam, degrees."""
        return float(np.degrees((self.stretch[0, 1] - self.stretch[1, 0]) / 2))


STAY = Move(np.zeros((2, 2)), np.zeros(2))


@dataclass(frozen=True)
class Match:
    """Share of the peaks that are where spots are predicted, beyond what chance makes, and its standard error."""

    share: float
    chance: float
    esd: float

    @property
    def surely_below(self) -> float:
        return self.share + 3 * self.esd

    @property
    def surely_above(self) -> float:
        return self.share - 3 * self.esd


def nearest(peaks: Peaks, predicted: Predicted, move: Move = STAY, images=None) -> tuple:
    """Distance, and (n, 2) vector, from the nearest predicted place to each peak; infinite where none is predicted.

    images : {image: the image for which its spots are predicted}; None: the same
    """
    distance, vector = np.full(len(peaks), np.inf), np.full((len(peaks), 2), np.nan)
    for image in np.unique(peaks.image):
        mine = np.flatnonzero(peaks.image == image)
        places = move.of(predicted.on(int(image) if images is None else images[int(image)]))
        if len(places):
            distance[mine], number = cKDTree(places).query(peaks.place[mine])
            vector[mine] = peaks.place[mine] - places[number]
    return distance, vector


def match(peaks: Peaks, predicted: Predicted, radius: float, move: Move = STAY, images=None) -> Match:
    """The share of the peaks within ``radius`` pixels of predicted places, less that of places beside the peaks."""
    hit = nearest(peaks, predicted, move, images)[0] < radius
    angle = np.arange(_N_BESIDE) * 2.399963  # golden: any direction
    far = radius * np.linspace(_FROM, _TO, _N_BESIDE)
    beside = np.stack([far * np.cos(angle), far * np.sin(angle)], axis=1)
    moved = Peaks(np.repeat(peaks.image, _N_BESIDE), (peaks.place[:, None] + beside).reshape(-1, 2))
    chance = float(np.mean(nearest(moved, predicted, move, images)[0] < radius)) if len(peaks) else 0.0
    return of_hits(int(hit.sum()), len(hit), chance)


def hits(peaks: Peaks, predicted: Predicted, radius: float, move: Move = STAY, images=None) -> float:
    """Share of the peaks within ``radius`` pixels of predicted places, those by chance included."""
    return float(np.mean(nearest(peaks, predicted, move, images)[0] < radius)) if len(peaks) else 0.0


def of_hits(hits: int, n: int, chance: float) -> Match:
    """The share that n trials with so many hits tell of where chance alone makes a hit with this probability."""
    if n == 0 or chance > 1 - 1e-6:
        return Match(float("nan"), chance, float("inf"))
    found = (hits + 1) / (n + 2)  # not without error where all hit
    esd = np.sqrt(found * (1 - found) / n) / (1 - chance)
    return Match(float((hits / n - chance) / (1 - chance)), chance, float(esd))


def fit_move(peaks: Peaks, predicted: Predicted, start: Move = STAY) -> Move:
    """The linear change of the predicted places that brings most of them to peaks nearby."""
    distance, vector = nearest(peaks, predicted, start)
    use = distance < _CATCH
    if np.count_nonzero(use) < 12:
        return start
    place = peaks.place[use] - vector[use]  # where they were predicted, with ``start``
    size = max(float(np.abs(place).max()), 1.0)
    columns = np.column_stack([np.ones(len(place)), place / size])
    weight = np.ones(len(place))
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)[:, None]
        fitted = np.linalg.lstsq(columns * root, vector[use] * root, rcond=None)[0]
        rest = np.linalg.norm(vector[use] - columns @ fitted, axis=1)
        weight = 1 / (1 + (rest / max(float(np.median(rest)), _LEAST)) ** 2)
    shift, stretch = fitted[0], fitted[1:] / size
    both = start.stretch + stretch + start.stretch @ stretch
    return replace(start, stretch=both, shift=start.shift + start.shift @ stretch + shift)


def best_shift(peaks: Peaks, predicted: Predicted, reach: float) -> Move:
    """The shift by up to ``reach`` pixels along both axes that most differences of peaks and predictions have."""
    width = 2.0
    n = 2 * int(reach / width) + 1
    histogram = np.zeros((n, n))
    for image in np.unique(peaks.image):
        places = predicted.on(int(image))
        if not len(places):
            continue
        mine = peaks.place[peaks.image == image]
        near = cKDTree(places).query_ball_point(mine, reach * 1.5)
        difference = np.concatenate([np.zeros((0, 2)), *(p - places[k] for p, k in zip(mine, near) if k)])
        limits = [[-n * width / 2, n * width / 2]] * 2
        histogram += np.histogram2d(*difference.T, bins=n, range=limits)[0]
    x, y = np.unravel_index(np.argmax(histogram), histogram.shape)
    return Move(np.zeros((2, 2)), (np.array([x, y]) - n // 2) * width)
