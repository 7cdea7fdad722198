"""What are the peaks that no crystal predicts? A second lattice, ice, salt, or zingers.

Source: docs/theory.md, Peaks that are not predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from dials_diffuse.reduction.ice_rings import all_rings, in_rings
from dials_diffuse.reduction.peak_match import of_hits

LATTICE, ICE, ZINGERS, OTHER = "second lattice", "ice", "zingers", "salt or another crystal"

FEWEST = 30  # peaks in which a lattice or ice is looked for
MOST = 300  # peaks with which turns are tried, roughly
FARTHEST_TURN, COARSE, FINE = 12.0, 1.0, 0.25  # degrees
HIT = 0.2  # of a reciprocal-lattice step along each axis, from a turned peak to the lattice point that it may be
MOST_COARSE, MOST_FINE = 8.0, 20.0  # indices of these peaks; a step and the width of an image move others too far
EXPLAINS = 0.3  # of the peaks, and six standard errors, for a cause to be named
FEW = 1.0  # peaks an image; a warning is made of more


@dataclass(frozen=True)
class UnpredictedPeaks:
    """Peaks of one experiment that no crystal predicts.

    Attributes
    ----------
    peaks, images : how many, and on how many images at least one
    pixels : fraction of the pixels that could have been used, which are masked for them
    d_max, d_min : Å, between which nine tenths of them lie; None without peaks
    kinds : {LATTICE, ICE, ZINGERS, OTHER: how many, roughly}, those that are there
    turn : degrees from the crystal to a second lattice; None where none is seen
    given_up : images on which they would have taken too much and are not masked
    per_image : number of peaks on each image, in the order of the images
    words : a sentence; empty without peaks
    """

    peaks: int
    images: int
    pixels: float
    d_max: float | None
    d_min: float | None
    kinds: dict
    turn: float | None
    given_up: int
    per_image: list
    words: str

    @property
    def many(self) -> bool:
        """Are they enough to be told to the user as a warning?"""
        return self.given_up > 0 or self.peaks > FEW * max(len(self.per_image), 1)


def unpredicted_peaks(found: list, reciprocal_matrix: np.ndarray, share: float) -> UnpredictedPeaks:
    """Count and name the peaks of an experiment.

    Parameters
    ----------
    found : StrayPeaks of each image
    reciprocal_matrix : (3, 3) float64, takes Miller indices to Cartesian coordinates, 1/Å
    share : fraction of the pixels that is masked for them
    """
    per_image = [len(f) for f in found]
    n = sum(per_image)
    given_up = sum(f.given_up for f in found)
    if not n:
        return UnpredictedPeaks(0, 0, 0.0, None, None, {}, None, 0, per_image, "")
    hkl, s, size = (np.concatenate([getattr(f, name) for f in found]) for name in ("hkl", "s", "size"))
    low, high = np.quantile(1 / s, [0.05, 0.95])
    kinds = {}
    zingers = size == 1
    hkl, s = hkl[~zingers], s[~zingers]
    rings = all_rings(float(1 / s.max())) if len(s) else []
    on_rings = in_rings(s, rings)
    if len(s) >= FEWEST:
        # how many would lie there by chance, if peaks were as many at all distances from the beam
        width = sum(ring.s_high - ring.s_low for ring in rings) / max(float(np.ptp(s)), 1e-9)
        ice = of_hits(int(on_rings.sum()), len(s), min(width, 1.0))
        if _is_cause(ice):
            kinds[ICE] = round(ice.share * len(s))
            hkl, s = hkl[~on_rings], s[~on_rings]
    turn = None
    if len(s) >= FEWEST:
        turn, match = turned_lattice(hkl, reciprocal_matrix)
        if _is_cause(match):
            kinds[LATTICE] = round(match.share * len(s))
        else:
            turn = None
    if zingers.any():
        kinds[ZINGERS] = int(zingers.sum())
    left = n - sum(kinds.values())
    if left > 0:
        kinds[OTHER] = left
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    names = []
    for kind, number in kinds.items():
        turned = f", turned by {turn:.1f} degrees" if kind == LATTICE else ""
        names.append(f"{kind}{turned} ({number})")
    n_images = sum(k > 0 for k in per_image)
    words = (
        f"{n} peaks on {n_images} of {len(per_image)} images ({high:.1f}-{low:.1f} Å) are predicted by no crystal; "
        f"masked ({100 * share:.2f} % of the pixels). Probably {', '.join(names)}"
    )
    if given_up:
        words += f". On {given_up} images they are too many to be masked"
    if LATTICE in kinds:
        words += ". Index the second lattice, too (dials.index max_lattices=2), then its weak spots are masked as well"
    return UnpredictedPeaks(n, n_images, share, float(high), float(low), kinds, turn, int(given_up), per_image, words)


def turned_lattice(hkl: np.ndarray, reciprocal_matrix: np.ndarray) -> tuple:
    """The turn of the crystal's lattice that puts most of its points where peaks are.

    Peaks are known to the rotation of an image, so those near the beam are looked at. Chance is what other turns hit.

    Parameters
    ----------
    hkl : (n, 3) float64 fractional indices of the peaks in the crystal's lattice
    reciprocal_matrix : (3, 3) float64, 1/Å

    Returns
    -------
    turn : degrees
    match : Match, share of the peaks near points of the turned lattice, chance taken off
    """
    x, largest = hkl @ reciprocal_matrix.T, np.abs(hkl).max(axis=1)
    inverse = np.linalg.inv(reciprocal_matrix)
    coarse = _turns(np.zeros(3), FARTHEST_TURN, COARSE)
    best = coarse[np.argmax(_places(x[_smallest(largest, MOST_COARSE)], inverse, coarse)[1])]
    some = x[_smallest(largest, MOST_FINE)]
    fine = _turns(best, COARSE, FINE)
    best = fine[np.argmax(_places(some, inverse, fine)[1])]
    hit = _places(some, inverse, best[None])[0][0]
    chance = float(np.mean(_places(some, inverse, coarse[:: max(1, len(coarse) // 400)])[0]))
    return float(np.linalg.norm(best)), of_hits(round(hit * len(some)), len(some), chance)


def _smallest(largest: np.ndarray, most: float) -> np.ndarray:
    """Some of the peaks whose largest index, (n,), is below ``most``, evenly; or those where it is smallest."""
    rows = np.argsort(largest, kind="stable")
    rows = rows[: max(int(np.count_nonzero(largest < most)), FEWEST)]
    return rows[:: max(1, len(rows) // MOST)]


def _turns(middle: np.ndarray, reach: float, step: float) -> np.ndarray:
    """(m, 3) rotation vectors in degrees about one of them."""
    ticks = np.arange(-reach, reach + step / 2, step)
    turns = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    return middle + turns[np.linalg.norm(turns, axis=1) <= reach + 1e-9]


def _places(x: np.ndarray, inverse: np.ndarray, turns: np.ndarray) -> tuple:
    """How near the peaks x, (n, 3) 1/Å, are to points of the lattice after each of m turns.

    Returns
    -------
    share : (m,) of the peaks that are within HIT
    score : (m,) mean of 1 - (distance / HIT)² of these
    """
    share, score = np.empty(len(turns)), np.empty(len(turns))
    for i, matrix in enumerate(Rotation.from_rotvec(np.radians(turns)).as_matrix()):
        h = x @ (inverse @ matrix.T).T
        distance = np.abs(h - np.rint(h)).max(axis=1) / HIT
        share[i], score[i] = np.mean(distance < 1), np.mean(np.maximum(1 - distance**2, 0))
    return share, score


def _is_cause(match) -> bool:
    return match.share > EXPLAINS and match.share > 6 * match.esd and math.isfinite(match.esd)
