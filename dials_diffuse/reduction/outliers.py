"""Robust guards: pixels that are wrong on most images, and outliers within a resolution shell of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy import ndimage

from dials_diffuse.kernels.image import Pixels, excess_variance, gather_rates, shell_statistics

N_SHELLS = 120
MIN_SAMPLE = 60
SAMPLE_PER_SHELL = 700
STUCK_BY_CHANCE = 1e-7
MIN_IMAGES = 6
MIN_FLUX_COUNTS = 400  # 5 % statistical error

#: share of pixels that are outliers, beyond which something is wrong; good data have 0.01 %
MOST_OUTLIERS = 2e-3

#: relative difference of resolution profiles, root mean square over the counts, that is never held against an image:
#: absorption and the share of the solvent change them as the crystal turns
MIN_SHAPE_DIFFERENCE = 0.05
SHAPE_N_SIGMA = 8.0
#: images that it takes to say what is usual
MIN_SHAPE_IMAGES = 6


def resolution_shells(s_panels: list, s_max: float) -> list:
    """Shell number (uint8) of every pixel, equal steps in |s| up to ``s_max``.

    s_panels : (ny, nx) arrays of |s| in 1/Å, one per panel
    """
    return [np.minimum(s / s_max * N_SHELLS, N_SHELLS - 1).astype(np.uint8) for s in s_panels]


@dataclass(frozen=True)
class Frame:
    """One image with what is masked on it alone.

    Attributes
    ----------
    number : int, 1-based position in the scan
    raw : (ny, nx) arrays, one per panel
    bragg : (ny, nx) int32 arrays, equal to ``number`` where a Bragg peak lies
    usable : (ny, nx) bool arrays, False in the shadow of the goniometer; or None
    """

    number: int
    raw: list
    bragg: list
    usable: list | None

    def pixels(self, p: int, bad: np.ndarray) -> Pixels:
        """Panel ``p`` for kernels; bad : (ny, nx) uint8, its pixels that are always bad."""
        bad = bad if self.usable is None else bad | ~self.usable[p]
        return Pixels(self.raw[p], bad, self.bragg[p], self.number)


@dataclass(frozen=True)
class ShellSample:
    """A fixed sample of usable pixels, sorted by resolution shell.

    Attributes
    ----------
    panel, y, x : (n,) int, where they are
    correction : (n,) float64
    starts : (N_SHELLS + 1,) int64
    """

    panel: np.ndarray
    y: np.ndarray
    x: np.ndarray
    correction: np.ndarray
    starts: np.ndarray

    @cached_property
    def norm(self) -> np.ndarray:
        """(N_SHELLS,) sum of the corrections of the sample in each shell."""
        return np.diff(np.concatenate([[0.0], np.cumsum(self.correction)])[self.starts])

    def statistics(self, frame: Frame, panels, exposure: float) -> tuple:
        """(centre, spread) per shell for one image, see :func:`shell_statistics`; empty shells give NaN.

        panels : PanelGeometry of the detector; exposure : multiplies the corrections
        """
        return shell_statistics(
            self._rates(frame, panels, exposure), self.correction * exposure, self.starts, MIN_SAMPLE
        )

    def read_variance(self, frame: Frame, panels, exposure: float, centre: np.ndarray) -> float:
        """Variance of the counts that is not Poisson's, in the shell where it is least: read noise, not anisotropy.

        centre : (N_SHELLS,) as from :meth:`statistics`
        """
        rates = self._rates(frame, panels, exposure)
        excess = excess_variance(rates, self.correction * exposure, self.starts, centre)
        return float(max(np.nanmin(excess), 0.0)) if np.isfinite(excess).any() else 0.0

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def _position(self) -> np.ndarray:
        return np.stack([self.y, self.x], axis=1).astype(np.int32)

    @cached_property
    def _in_panel(self) -> list:
        """Which of the pixels lie in each panel."""
        return [np.flatnonzero(self.panel == p) for p in range(int(self.panel.max(initial=-1)) + 1)]

    def _rates(self, frame: Frame, panels, exposure: float) -> np.ndarray:
        """(n,) C/c of the sample in one image, NaN where it is masked."""
        rates = np.empty(len(self.x))
        norm = self.correction * exposure
        for p, mine in enumerate(self._in_panel):
            raw, bragg = frame.raw[p], frame.bragg[p]
            gather_rates(raw, bragg, frame.number, panels[p].reading, self._position, mine, norm, rates)
            if frame.usable is not None:
                rates[mine[~frame.usable[p][self.y[mine], self.x[mine]]]] = np.nan
        return rates

    def shell_means(self, blocks: list, block: int) -> np.ndarray:
        """(N_SHELLS,) sum over the sample of values given in detector blocks, over the sum of the corrections.

        blocks : (by, bx) arrays, one per panel; block : pixels along the edge of a block
        """
        values = np.empty(len(self.x))
        for p, array in enumerate(blocks):
            mine = self.panel == p
            values[mine] = array[self.y[mine] // block, self.x[mine] // block]
        sums = np.diff(np.concatenate([[0.0], np.cumsum(values)])[self.starts])
        return np.where(self.norm > 0, sums / np.where(self.norm > 0, self.norm, 1), np.nan)


def reference_profile(profiles: np.ndarray, norm: np.ndarray) -> np.ndarray | None:
    """(N_SHELLS,) mean resolution profile of some images, without those that hardly saw the beam; None if none is left.

    profiles : (n, N_SHELLS) float64, C/c, NaN where unknown; norm : (N_SHELLS,) weights of the shells
    """
    known = np.isfinite(profiles)
    common = known.sum(axis=0) * 2 >= len(profiles)
    if not common.any():
        return None
    totals = np.nansum(profiles[:, common] * norm[common], axis=1)
    lit = (totals > 0.1 * np.median(totals)) & known[:, common].any(axis=1)
    if not lit.any():
        return None
    number = known[lit].sum(axis=0)
    mean = np.nansum(profiles[lit], axis=0) / np.maximum(number, 1)
    return np.where(common & (number > 0), mean, np.nan)


def relative_flux(profile: np.ndarray, reference: np.ndarray, norm: np.ndarray, exposure: float = 1.0) -> float:
    """Intensity of an image relative to a reference: ratio of the sums of their counts over common resolution shells.

    profile, reference : (N_SHELLS,) C/c per shell, NaN where unknown; norm : (N_SHELLS,) sum of c in each shell.
    Where the sample of the reference holds fewer than MIN_FLUX_COUNTS counts the ratio would be noise: 1 is returned.
    """
    both = np.isfinite(profile) & np.isfinite(reference)
    total = float(reference[both] @ norm[both])
    if total * exposure < MIN_FLUX_COUNTS:
        return 1.0
    return max(float(profile[both] @ norm[both]), 0.0) / total


@dataclass(frozen=True)
class UsualProfile:
    """The shape of the resolution profiles of a sweep, against which that of each image is held.

    Attributes
    ----------
    net : (N_SHELLS,) float64, median of C/c less the background, for a flux of 1; NaN where unknown
    limit : largest usual :func:`shape_difference`
    """

    net: np.ndarray
    limit: float


def usual_profile(gross, background, norm: np.ndarray, exposures) -> tuple:
    """What the profiles of some images of a sweep usually look like, though up to a third of them may be wrong.

    Parameters
    ----------
    gross, background : (n, N_SHELLS) float64, C/c of each image and of its background; gross is NaN where unknown
    norm : (N_SHELLS,) weights of the shells; exposures : (n,)

    Returns
    -------
    usual : UsualProfile, or None where the images are too few or too dark to tell
    good : (n,) bool, images that look as usual; all where it is None
    """
    gross, background = np.asarray(gross), np.asarray(background)
    everything = np.ones(len(gross), dtype=bool)
    known = np.isfinite(gross)
    common = known.sum(axis=0) * 2 >= len(gross)
    net = np.where(known, gross - background, 0.0) * common
    flux = net @ norm
    lit = flux * exposures >= MIN_FLUX_COUNTS
    if np.count_nonzero(lit) < MIN_SHAPE_IMAGES:
        return None, everything
    scaled = np.where(known[lit] & common, net[lit], np.nan) / (flux[lit] / np.median(flux[lit]))[:, None]
    some = np.isfinite(scaled).any(axis=0)
    median = np.full(len(norm), np.nan)
    median[some] = np.nanmedian(scaled[:, some], axis=0)
    candidate = UsualProfile(median, np.inf)
    differences = np.array(
        [shape_difference(g, b, candidate, norm, e) for g, b, e in zip(gross[lit], background[lit], exposures[lit])]
    )
    middle = np.median(differences)
    spread = 1.4826 * np.median(np.abs(differences - middle))
    usual = UsualProfile(median, max(MIN_SHAPE_DIFFERENCE, middle + SHAPE_N_SIGMA * spread))
    good = everything.copy()
    good[lit] = differences <= usual.limit
    return usual, good


def shape_difference(gross: np.ndarray, background: np.ndarray, usual: UsualProfile, norm, exposure: float) -> float:
    """How far the profile of an image is from the usual one: relative difference, root mean square over its counts.

    Square roots are compared, whose statistical error is the same for all; what it explains, with five sigma, is
    taken off. 0 where the image is too dark to tell.

    gross, background : (N_SHELLS,) C/c of the image and of its background; norm : (N_SHELLS,) weights of the shells
    """
    both = np.isfinite(gross) & np.isfinite(usual.net)
    g, b, net, w = gross[both], background[both], usual.net[both], norm[both]
    counts = float(g @ w) * exposure
    flux = float((g - b) @ w) / max(float(net @ w), 1e-300)
    if counts < MIN_FLUX_COUNTS or flux <= 0:
        return 0.0
    roots = np.sqrt(np.maximum(g, 0)) - np.sqrt(np.maximum(flux * net + b, 0))
    chance = (both.sum() + 5 * math.sqrt(2 * both.sum())) / counts
    return math.sqrt(max(4 * float(roots**2 @ w) / float(g @ w) - chance, 0.0))


def sample_shells(shells: list, bad: list, corrections: list) -> ShellSample:
    """Choose up to SAMPLE_PER_SHELL usable pixels in each shell, evenly over the detector and always the same ones."""
    usable = [np.flatnonzero(mask == 0) for mask in bad]
    shell = np.concatenate([s.ravel()[u] for s, u in zip(shells, usable)])
    order = np.argsort(shell, kind="stable")
    first = np.searchsorted(shell[order], np.arange(N_SHELLS + 1))
    chosen = np.concatenate(
        [
            order[np.unique(np.linspace(a, b - 1, min(b - a, SAMPLE_PER_SHELL)).astype(int))]
            for a, b in zip(first[:-1], first[1:])
        ]
    )
    starts = np.searchsorted(shell[chosen], np.arange(N_SHELLS + 1)).astype(np.int64)
    ends = np.cumsum([len(u) for u in usable])
    panel = np.searchsorted(ends, chosen, side="right")
    y, x, correction = np.empty(len(chosen), int), np.empty(len(chosen), int), np.empty(len(chosen))
    for p, values in enumerate(corrections):
        mine = panel == p
        flat = usable[p][chosen[mine] - (ends[p] - len(usable[p]))]
        y[mine], x[mine] = np.unravel_index(flat, values.shape)
        correction[mine] = values.ravel()[flat]
    return ShellSample(panel, y, x, correction, starts)


def stuck_pixels(smallest: list, largest: list, shells: list, n_images: int) -> list:
    """(ny, nx) bool per panel, True where a pixel shows one and the same value on all of several images.

    That is normal where hardly anything is counted, so it is held against a pixel only when pixels at nearly the same
    resolution vary so much that it cannot be chance.

    smallest, largest : (ny, nx) arrays of the extreme values per pixel; shells : their resolution shells
    """
    ranges = [np.where(np.isfinite(lo), hi - lo, 0) for lo, hi in zip(smallest, largest)]
    typical = np.zeros(N_SHELLS)
    for b in range(N_SHELLS):
        values = np.concatenate([r[s == b] for r, s in zip(ranges, shells)])
        typical[b] = np.median(values) if len(values) else 0
    typical = ndimage.maximum_filter1d(typical, N_SHELLS // 5)
    # two counts agree with a probability of about 1 / (3.5 sigma), and the range of a few is about 2.5 sigma
    chance = np.minimum(1 / np.maximum(1.4 * typical, 1), 1) ** (n_images - 1)
    return [(r == 0) & (chance[s] < STUCK_BY_CHANCE) for r, s in zip(ranges, shells)]


def persistent_outliers(votes, counts, expected, variance, shadow: float) -> np.ndarray:
    """(ny, nx) bool, True where a pixel is an outlier on at least half of the images, or in a shadow.

    A shadow is a pixel that on the average falls below ``shadow`` times its resolution shell, beyond doubt (6 sigma).

    votes : (3, ny, nx) images seen, low and high outliers; counts, expected, variance : (ny, nx) sums over the images
    """
    seen, low, high = votes
    enough = seen >= MIN_IMAGES // 2
    outlying = enough & (np.maximum(low, high) * 2 >= seen)
    deficit = expected - counts
    shadowed = enough & (counts < shadow * expected) & (deficit > 6 * np.sqrt(np.maximum(variance, 1e-9)))
    return outlying | shadowed


def widen_regions(bad: np.ndarray) -> np.ndarray:
    """Widen regions of bad pixels (not single ones) by two pixels, because their edges are half-shadowed."""
    regions = ndimage.binary_opening(bad, np.ones((3, 3)))
    return bad | ndimage.binary_dilation(regions, iterations=2)


def outliers_in_words(number: int, outlier: int, used: int) -> list:
    """A sentence where too many pixels of an experiment are outliers; outlier, used : numbers of pixels"""
    share = outlier / max(used + outlier, 1)
    if share <= MOST_OUTLIERS:
        return []
    return [
        f"experiment {number}: {100 * share:.2f} % of the pixels are outliers: Bragg peaks that are not masked, ice, "
        "or another lattice?"
    ]
