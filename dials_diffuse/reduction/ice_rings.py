"""Ice rings: found as narrow rings in the radial profile where ice has them, and the bands of |s| that they take.

Source: hexagonal ice Ih, a 4.498 and c 7.338 Å (P 63/m m c); cubic ice Ic, a 6.358 Å (F d -3 m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx import crystal, miller
from scipy.ndimage import binary_dilation

HEXAGONAL, CUBIC = "hexagonal", "cubic"
_LATTICES = {
    HEXAGONAL: ((4.498, 4.498, 7.338, 90, 90, 120), "P 63/m m c"),
    CUBIC: ((6.358, 6.358, 6.358, 90, 90, 90), "F d -3 m :1"),
}
STEP = 0.001  # 1/Å, of the radial profile
HALF_WIDTH = 0.002  # 1/Å, of the middle of a ring
LARGEST_HALF_WIDTH = 0.008  # 1/Å
SIDE = 0.03  # 1/Å, on either side of a ring, where its surroundings are looked at
MIN_SIDE = 6  # steps of it on either side
ROUNDS = 8
DEGREE = 3  # of the polynomial through the surroundings
N_SIGMA = 6.0
MIN_EXCESS = 0.01  # of the surroundings
MIN_PIXELS = 100  # in a step of the profile
MIN_RINGS = 2  # one alone can be something else
SAME = 0.003  # 1/Å, rings nearer than this are one


@dataclass(frozen=True)
class IceRing:
    """A ring that was found, or that is masked because the user wants all.

    Attributes
    ----------
    d : Å
    ice : hexagonal, or cubic where both have the ring and no ring of hexagonal ice alone was found
    excess : over its surroundings, relative; None where it was not measured
    s_low, s_high : limits of its band, 1/Å
    """

    d: float
    ice: str
    excess: float | None
    s_low: float
    s_high: float


def known_rings(ice: str, d_min: float) -> np.ndarray:
    """(n,) d-spacings of the rings of an ice, Å, descending; d_min : Å"""
    cell, group = _LATTICES[ice]
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    d = miller.build_set(symmetry, False, d_min=d_min).d_spacings().data().as_numpy_array()
    d = np.sort(d)[::-1]
    return d[np.concatenate([[True], np.diff(1 / d) > SAME])] if len(d) else d


class RadialProfile:
    """Mean of C/c in fine steps of |s|, collected image by image."""

    def __init__(self, s_panels: list, s_max: float):
        self.bins = [np.minimum(s / STEP, s_max / STEP).astype(np.int32) for s in s_panels]
        self.n = int(s_max / STEP) + 1
        self.counts, self.norm, self.pixels = np.zeros(self.n), np.zeros(self.n), np.zeros(self.n)

    def add(self, frame, panels, bad, corrections, exposure: float) -> None:
        """Take one image into account; arguments as for DiffuseLevel."""
        for p, panel in enumerate(panels):
            raw = frame.raw[p]
            good = (bad[p] == 0) & panel.reading.trusted(raw) & (frame.bragg[p] != frame.number)
            if frame.usable is not None:
                good &= frame.usable[p]
            where = self.bins[p][good]
            self.counts += np.bincount(where, panel.reading.counts(raw[good]), self.n)[: self.n]
            self.norm += np.bincount(where, corrections[p][good] * exposure, self.n)[: self.n]
            self.pixels += np.bincount(where, minlength=self.n)[: self.n]

    def rate(self) -> tuple:
        """(n,) |s| of the steps and their C/c, NaN where few pixels are."""
        good = (self.pixels >= MIN_PIXELS) & (self.norm > 0)
        return (np.arange(self.n) + 0.5) * STEP, np.where(good, self.counts / np.where(good, self.norm, 1), np.nan)


def find_rings(s: np.ndarray, rate: np.ndarray, d_min: float) -> list:
    """Ice rings in a radial profile.

    The excess of a ring is the mean over its middle above a polynomial through its surroundings. The same at all
    positions where ice has no ring tells how large it is by chance. Two rings or more are ice.

    Parameters
    ----------
    s : (n,) 1/Å in steps of STEP; rate : (n,) C/c, NaN where unknown
    d_min : Å

    Returns
    -------
    list of IceRing, at descending d
    """
    all_d = known_rings(HEXAGONAL, d_min)
    excess = _excess(s, rate, 1 / all_d)
    near_ring = np.zeros(len(s), dtype=bool)
    for d in all_d:
        near_ring |= np.abs(s - 1 / d) < LARGEST_HALF_WIDTH
    null = excess[~near_ring & np.isfinite(excess)]
    if len(null) < 20:
        null = excess[np.isfinite(excess)]
    if len(null) < 20:
        return []
    sigma = 1.4826 * np.median(np.abs(null - np.median(null)))
    limit = max(N_SIGMA * sigma, MIN_EXCESS)
    found = []
    for d in all_d:
        near = np.flatnonzero(np.abs(s - 1 / d) <= HALF_WIDTH)
        near = near[np.isfinite(excess[near])]
        if not len(near):
            continue
        peak = near[np.argmax(excess[near])]
        if excess[peak] > limit:
            band = np.abs(s - s[peak]) <= LARGEST_HALF_WIDTH
            inside = _around(peak, band & (excess > max(0.1 * excess[peak], 2 * sigma)))
            low, high = s[inside].min() - STEP / 2, s[inside].max() + STEP / 2
            found.append((d, float(excess[peak]), float(low - HALF_WIDTH), float(high + HALF_WIDTH)))
    if len(found) < MIN_RINGS:
        return []
    cubic = known_rings(CUBIC, d_min)
    shared = [bool(np.any(np.abs(1 / cubic - 1 / d) < SAME)) for d, *_ in found]
    ice = CUBIC if all(shared) else HEXAGONAL
    return [IceRing(float(d), ice, e, low, high) for d, e, low, high in found]


def all_rings(d_min: float) -> list:
    """Every ring of hexagonal ice, which has those of cubic ice among them."""
    half = 2 * HALF_WIDTH
    return [IceRing(float(d), HEXAGONAL, None, 1 / d - half, 1 / d + half) for d in known_rings(HEXAGONAL, d_min)]


def in_rings(s: np.ndarray, rings) -> np.ndarray:
    """(...) bool, True where |s| in 1/Å lies in the band of a ring."""
    result = np.zeros(np.shape(s), dtype=bool)
    for ring in rings:
        result |= (s >= ring.s_low) & (s <= ring.s_high)
    return result


def _around(peak: int, inside: np.ndarray) -> np.ndarray:
    """Indices of the run of True that holds ``peak``."""
    seed = np.zeros(len(inside), dtype=bool)
    seed[peak] = True
    return np.flatnonzero(binary_dilation(seed, mask=inside | seed, iterations=-1))


def _excess(s: np.ndarray, rate: np.ndarray, rings: np.ndarray) -> np.ndarray:
    """(n,) what a profile has above its surroundings at each step, relative; NaN where these are not known."""
    reach = int(round(SIDE / STEP))
    ring_at = np.zeros(len(s), dtype=bool)
    for ring in rings:
        ring_at |= np.abs(s - ring) <= 2 * HALF_WIDTH
    excess = np.full(len(s), np.nan)
    offset = np.arange(-reach, reach + 1)
    for i in range(reach, len(s) - reach):
        values = rate[i + offset]
        outer = (np.abs(offset) * STEP > 2 * HALF_WIDTH) & ~ring_at[i + offset] & np.isfinite(values)
        middle = (np.abs(offset) * STEP <= HALF_WIDTH / 2) & np.isfinite(values)
        sides = np.count_nonzero(outer[:reach]), np.count_nonzero(outer[reach:])
        if min(sides) < MIN_SIDE or not middle.any():
            continue
        level = _level(offset, values, outer, middle)
        if level > 0:
            excess[i] = np.mean(values[middle]) / level - 1
    return excess


def _level(offset: np.ndarray, values: np.ndarray, outer: np.ndarray, middle: np.ndarray) -> float:
    """What the surroundings let expect in the middle. Other rings among them stand out and are left out."""
    powers = np.vander(offset / offset[-1], DEGREE + 1)
    for _ in range(ROUNDS):
        fitted = powers @ np.linalg.lstsq(powers[outer], values[outer], rcond=None)[0]
        residual = np.where(outer, values - fitted, 0.0)
        size = 1.4826 * np.median(np.abs(residual[outer]))
        keep = outer & (residual <= 3 * size)
        if np.array_equal(keep, outer) or min(keep[offset < 0].sum(), keep[offset > 0].sum()) < MIN_SIDE:
            break
        outer = keep
    return float(np.mean(fitted[middle]))
