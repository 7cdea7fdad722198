"""Per-image kernels that come before the voxel sums: Bragg discs, statistics for the outlier guard, block sums."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.jit import njit
from dials_diffuse.kernels.vectors import fetch

_AHEAD = 24  # pixels; so far ahead memory is asked for what is scattered in it


class Pixels(NamedTuple):
    """One panel of one image.

    raw : (ny, nx) int32 or float64, detector counts
    bad : (ny, nx) uint8, nonzero = never use
    bragg : (ny, nx) int32, equal to ``number`` where a Bragg peak covers the pixel in this image
    number : int, of the image
    """

    raw: np.ndarray
    bad: np.ndarray
    bragg: np.ndarray
    number: int


class Reading(NamedTuple):
    """How raw values become counts C.

    low, high : float, lowest and highest trusted raw value (inclusive)
    pedestal, gain : float, C = (raw - pedestal) / gain
    """

    low: float
    high: float
    pedestal: float
    gain: float

    def trusted(self, raw) -> np.ndarray:
        """Boolean array: can these raw values be used?"""
        return (raw >= self.low) & (raw <= self.high)

    def counts(self, raw) -> np.ndarray:
        return (raw - self.pedestal) / self.gain


class Outlines(NamedTuple):
    """Masked regions of spots on a panel; the angle about a spot is that of (e1, e2).

    centre : (n, 2) float64, positions x, y in pixels
    axes : (n, 2, 3) float64, unit vectors e1 and e2 across the beams to them
    radius : (n, n_sectors) float64 radians, at angles of 2 pi i / n_sectors from e1, linear in between; 0 = nothing
    radius_px : (n,) float64, half width of the box that is searched, pixels
    """

    centre: np.ndarray
    axes: np.ndarray
    radius: np.ndarray
    radius_px: np.ndarray


@njit
def paint_outlines(mask, image, directions, outlines):
    """Mark the pixels inside outlines.

    Parameters
    ----------
    mask : (ny, nx) int32, set to ``image`` inside
    image : int
    directions : (3, ny, nx) float64 unit vectors to the pixels
    outlines : Outlines
    """
    centres, axes, radius, radius_px = outlines
    ny, nx = mask.shape
    n_sectors = radius.shape[1]
    for i in range(centres.shape[0]):
        x0 = max(0, int(math.floor(centres[i, 0] - radius_px[i])))
        x1 = min(nx, int(math.ceil(centres[i, 0] + radius_px[i])) + 1)
        y0 = max(0, int(math.floor(centres[i, 1] - radius_px[i])))
        y1 = min(ny, int(math.ceil(centres[i, 1] + radius_px[i])) + 1)
        smallest, largest = radius[i].min() ** 2, radius[i].max() ** 2
        # scalars: numba counts references to views
        ax, ay, az = axes[i, 0, 0], axes[i, 0, 1], axes[i, 0, 2]
        bx, by, bz = axes[i, 1, 0], axes[i, 1, 1], axes[i, 1, 2]
        for y in range(y0, y1):
            for x in range(x0, x1):
                ux, uy, uz = directions[0, y, x], directions[1, y, x], directions[2, y, x]
                e1 = ax * ux + ay * uy + az * uz
                e2 = bx * ux + by * uy + bz * uz
                square = e1 * e1 + e2 * e2
                if square > largest:
                    continue
                if square > smallest:
                    sector, part = sector_of(e1, e2, n_sectors)
                    limit = (1 - part) * radius[i, sector] + part * radius[i, (sector + 1) % n_sectors]
                    if square > limit * limit:
                        continue
                mask[y, x] = image


@njit
def across(axes, ux, uy, uz):
    """Components of a unit vector along two axes across a spot's direction, radians near the spot."""
    return (
        axes[0, 0] * ux + axes[0, 1] * uy + axes[0, 2] * uz,
        axes[1, 0] * ux + axes[1, 1] * uy + axes[1, 2] * uz,
    )


@njit
def sector_of(e1, e2, n_sectors):
    """The sector at whose angle or after which (e1, e2) lies, and how far in the way to the next, from 0 to 1."""
    turn = math.atan2(e2, e1) / (2 * math.pi) * n_sectors
    whole = math.floor(turn)
    return int(whole) % n_sectors, turn - whole


@njit
def gather_rates(raw, bragg, image, reading, sample, mine, norm, rates):
    """C/c of sample pixels in one panel of one image, NaN where they are not trusted or lie in a Bragg peak.

    Parameters
    ----------
    raw, bragg, image, reading : as in Pixels, and Reading of the panel; contiguous
    sample : (n, 2) int32, y and x of the pixels; mine : (m,) int64, which of them lie in this panel
    norm : (n,) float64 c; rates : (n,) float64, written
    """
    nx = raw.shape[1]
    n = mine.shape[0]
    for j in range(n):
        ahead = mine[min(j + _AHEAD, n - 1)]
        place = np.uint64(sample[ahead, 0] * nx + sample[ahead, 1])
        fetch(raw, place)
        fetch(bragg, place)
        i = mine[j]
        y, x = sample[i, 0], sample[i, 1]
        value = raw[y, x]
        if bragg[y, x] == image or not (reading.low <= value <= reading.high):
            rates[i] = np.nan
        else:
            rates[i] = (value - reading.pedestal) / reading.gain / norm[i]


@njit
def select(values, n, k):
    """The k-th smallest (from 0) of the first n values, which are rearranged: none before it is larger, none after it
    smaller (Hoare's quickselect, the median of three as pivot; ``np.partition`` takes seconds to compile)."""
    left, right = 0, n - 1
    while left < right:
        a, b, c = values[left], values[(left + right) // 2], values[right]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            right = j
        elif k >= i:
            left = i
        else:
            break
    return values[k]


@njit
def median(values, n):
    """Median of the first n values, which are rearranged."""
    upper = select(values, n, n // 2)
    if n % 2 == 1:
        return upper
    lower = values[0]
    for i in range(1, n // 2):
        lower = max(lower, values[i])
    return 0.5 * (upper + lower)


@njit
def _quartile_range(values, n):
    """Distance of the quartiles of the first n values, which are rearranged."""
    upper = select(values, n, (3 * n) // 4)
    return upper - select(values, (3 * n) // 4 + 1, n // 4)


@njit
def _most_samples(starts):
    """The number of samples in the fullest shell; ``np.diff`` takes seconds to compile."""
    most = 0
    for b in range(starts.shape[0] - 1):
        most = max(most, starts[b + 1] - starts[b])
    return most


@njit
def shell_statistics(rates, corrections, starts, min_pixels):
    """Robust centre and spread of C/c in resolution shells.

    Parameters
    ----------
    rates : (n,) float64, C/c of sample pixels sorted by shell; NaN = masked
    corrections : (n,) float64, c of the same pixels
    starts : (n_bins + 1,) int64, first sample of each shell
    min_pixels : int, shells with fewer valid samples get no statistics

    Returns
    -------
    centre : (n_bins,) float64, sum C / sum c without outliers (NaN where too few)
    spread : (n_bins,) float64, robust sigma of 2 sqrt(C + 3/8) about the centre, at least 1 (the Poisson value)

    Outliers are found with respect to the median rate. The centre is a mean all the same: the median of weak data, most
    of whose pixels count nothing, is zero.
    """
    n_bins = starts.shape[0] - 1
    centre = np.full(n_bins, np.nan)
    spread = np.ones(n_bins)
    most = _most_samples(starts)
    z, arranged, c = np.empty(most), np.empty(most), np.empty(most)
    counts = np.empty(most)
    for b in range(n_bins):
        n = np.int64(0)  # for a 0 in the source, median would be compiled a second time
        for i in range(starts[b], starts[b + 1]):
            if math.isfinite(rates[i]):
                arranged[n] = rates[i]
                c[n] = corrections[i]
                counts[n] = rates[i] * corrections[i]
                n += 1
        if n < min_pixels:
            continue
        middle = median(arranged, n)
        for i in range(n):
            expected = max(middle * c[i], 0.0) + 0.375
            z[i] = arranged[i] = 2.0 * (math.sqrt(max(counts[i], 0.0) + 0.375) - math.sqrt(expected))
        spread[b] = max(1.0, _quartile_range(arranged, n) / 1.349)
        sum_counts = sum_c = 0.0
        for i in range(n):
            if abs(z[i]) <= 6.0 * spread[b]:
                sum_counts += counts[i]
                sum_c += c[i]
        centre[b] = sum_counts / sum_c
    return centre, spread


@njit
def excess_variance(rates, corrections, starts, centre):
    """Robust variance of the counts in each shell beyond Poisson's, NaN where the centre is.

    Parameters as in :func:`shell_statistics`, which gives ``centre``.
    """
    n_bins = starts.shape[0] - 1
    excess = np.full(n_bins, np.nan)
    residual = np.empty(_most_samples(starts))
    for b in range(n_bins):
        if math.isnan(centre[b]):
            continue
        n = np.int64(0)
        sum_c = 0.0
        for i in range(starts[b], starts[b + 1]):
            if math.isfinite(rates[i]):
                residual[n] = (rates[i] - centre[b]) * corrections[i]
                sum_c += corrections[i]
                n += 1
        excess[b] = (_quartile_range(residual, n) / 1.349) ** 2 - centre[b] * sum_c / n
    return excess


@njit
def block_sums(raw, bad, reading, block, counts, pixels):
    """Add the valid pixels of an image to sums over square detector blocks.

    Parameters
    ----------
    raw : (ny, nx); bad : (ny, nx) uint8; reading : Reading
    block : int, pixels along the edge of a block
    counts, pixels : (by, bx) float64, incremented
    """
    ny, nx = raw.shape
    for y in range(ny):
        for x in range(nx):
            value = raw[y, x]
            if bad[y, x] == 0 and reading.low <= value <= reading.high:
                counts[y // block, x // block] += (value - reading.pedestal) / reading.gain
                pixels[y // block, x // block] += 1.0


@njit
def track_range(raw, reading, smallest, largest):
    """Update the smallest and largest trusted value of every pixel.

    raw : (ny, nx); reading : Reading; smallest, largest : (ny, nx) float32, start at +inf and -inf
    """
    ny, nx = raw.shape
    for y in range(ny):
        for x in range(nx):
            value = raw[y, x]
            if reading.low <= value <= reading.high:
                smallest[y, x] = min(smallest[y, x], value)
                largest[y, x] = max(largest[y, x], value)


class Usual(NamedTuple):
    """What pixels of one image count in each resolution shell.

    shell : (ny, nx) uint8, of each pixel
    centre, limit : (n_shells,) float64, expected C/c (NaN = unknown) and threshold in sigma
    read_variance : float, variance of the counts beyond Poisson's
    """

    shell: np.ndarray
    centre: np.ndarray
    limit: np.ndarray
    read_variance: float


class Tracked(NamedTuple):
    """What is found out about pixels on several images.

    votes : (3, ny, nx) int16, incremented: images seen, low outliers, high outliers
    counts, expected, variance : (ny, nx) float32, sums over the images where the pixel is not a high outlier
    """

    votes: np.ndarray
    counts: np.ndarray
    expected: np.ndarray
    variance: np.ndarray


@njit
def track_outliers(pixels, reading, corrections, exposure, usual, tracked):
    """Compare every usable pixel of one image with its resolution shell.

    Parameters
    ----------
    pixels, reading, usual : Pixels, Reading and Usual of the panel
    corrections : (ny, nx) float32; exposure : float, their product is the norm c of a pixel
    tracked : Tracked, whose arrays are incremented
    """
    raw, bad, bragg, image = pixels
    low, high, pedestal, gain = reading
    shells, centre, limit, read_variance = usual
    votes, counts, expected, variance = tracked
    ny, nx = raw.shape
    for y in range(ny):
        for x in range(nx):
            value = raw[y, x]
            if bad[y, x] != 0 or bragg[y, x] == image or not (low <= value <= high):
                continue
            mean = centre[shells[y, x]] * corrections[y, x] * exposure
            if math.isnan(mean):
                continue
            c = (value - pedestal) / gain
            z = 2.0 * (math.sqrt(max(c, 0.0) + 0.375) - math.sqrt(max(mean, 0.0) + 0.375))
            votes[0, y, x] += 1
            if z > limit[shells[y, x]]:
                votes[2, y, x] += 1
                continue
            if z < -limit[shells[y, x]]:
                votes[1, y, x] += 1
            counts[y, x] += c
            expected[y, x] += mean
            variance[y, x] += max(mean, 0.0) + read_variance
