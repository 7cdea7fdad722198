"""Three-dimensional Gaussian spots, integrated over pixels and over the rotation of one image."""

from __future__ import annotations

import math

from dials_diffuse.kernels.jit import njit

SQRT_HALF = math.sqrt(0.5)
DENSITY_AT_0 = 1 / math.sqrt(2 * math.pi)


@njit
def add_spots(image, centre, covariance, weight, z0, z1, n_sigma):
    """Add to every pixel the part of each spot that falls into it between two positions of the rotation.

    The rotation range is cut into slices in which the conditional mean of (x, y) moves by less than half the smallest
    standard deviation; a slice is a two-dimensional Gaussian with the exact mass, mean and covariance of the spot
    within it. Rows of pixels are treated in the same way, and along a row the integral over a pixel is a difference of
    error functions. So sums are exact up to the cut, and what is neglected is the third moment within thin slices.

    Parameters
    ----------
    image : (ny, nx) float64, incremented
    centre : (n, 3) float64, mean x, y (pixels, the centre of the first pixel is at 0.5) and z (images)
    covariance : (n, 3, 3) float64 of (x, y, z), positive definite
    weight : (n,) float64, integral of each spot
    z0, z1 : range of z
    n_sigma : float, spots end at this many standard deviations
    """
    for i in range(centre.shape[0]):
        c = covariance[i]
        sigma = math.sqrt(c[2, 2])
        t0 = max((z0 - centre[i, 2]) / sigma, -n_sigma)
        t1 = min((z1 - centre[i, 2]) / sigma, n_sigma)
        if t0 >= t1:
            continue
        move_x, move_y = c[0, 2] / sigma, c[1, 2] / sigma  # of the conditional mean, per unit of t
        cxx, cxy, cyy = c[0, 0] - move_x * move_x, c[0, 1] - move_x * move_y, c[1, 1] - move_y * move_y
        smallest = 0.5 * (cxx + cyy - math.hypot(cxx - cyy, 2.0 * cxy))
        n = _n_slices(math.hypot(move_x, move_y) * (t1 - t0), smallest)
        step = (t1 - t0) / n
        for k in range(n):
            mass, mean, variance = _slice(t0 + k * step, t0 + (k + 1) * step)
            _add_gaussian(
                image,
                centre[i, 0] + move_x * mean,
                centre[i, 1] + move_y * mean,
                cxx + move_x * move_x * variance,
                cxy + move_x * move_y * variance,
                cyy + move_y * move_y * variance,
                weight[i] * mass,
                n_sigma,
            )


@njit
def _add_gaussian(image, x, y, cxx, cxy, cyy, weight, n_sigma):
    """Add a two-dimensional Gaussian, integrated over pixels."""
    sigma = math.sqrt(cyy)
    move = cxy / sigma
    conditional = cxx - move * move
    n = _n_slices(abs(move) / sigma, conditional)
    first = max(0, int(math.floor(y - n_sigma * sigma)))
    last = min(image.shape[0] - 1, int(math.floor(y + n_sigma * sigma)))
    for row in range(first, last + 1):
        for k in range(n):
            mass, mean, variance = _slice((row + k / n - y) / sigma, (row + (k + 1) / n - y) / sigma)
            if mass <= 0.0:
                continue
            _add_line(
                image[row], x + move * mean, math.sqrt(conditional + move * move * variance), weight * mass, n_sigma
            )


@njit
def _add_line(row, x, sigma, weight, n_sigma):
    """Add a one-dimensional Gaussian, integrated over the pixels of a row."""
    first = max(0, int(math.floor(x - n_sigma * sigma)))
    last = min(row.shape[0] - 1, int(math.floor(x + n_sigma * sigma)))
    scale = SQRT_HALF / sigma
    left = math.erf((first - x) * scale)
    for column in range(first, last + 1):
        right = math.erf((column + 1 - x) * scale)
        row[column] += 0.5 * weight * (right - left)
        left = right


@njit
def _n_slices(shift, variance):
    """Slices needed so that each shifts by no more than half a standard deviation."""
    return max(1, int(math.ceil(2.0 * shift / math.sqrt(variance))))


@njit
def _slice(t0, t1):
    """Mass, mean and variance of the standard normal distribution between t0 and t1."""
    if t0 > 0.0:  # differences of small numbers keep their digits
        mass = 0.5 * (math.erfc(t0 * SQRT_HALF) - math.erfc(t1 * SQRT_HALF))
    else:
        mass = 0.5 * (math.erfc(-t1 * SQRT_HALF) - math.erfc(-t0 * SQRT_HALF))
    if mass <= 0.0:
        return 0.0, 0.5 * (t0 + t1), 0.0
    d0, d1 = DENSITY_AT_0 * math.exp(-0.5 * t0 * t0), DENSITY_AT_0 * math.exp(-0.5 * t1 * t1)
    mean = (d0 - d1) / mass
    return mass, mean, max(0.0, 1.0 + (t0 * d0 - t1 * d1) / mass - mean * mean)
