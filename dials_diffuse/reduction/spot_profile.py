"""The profile of Bragg spots with its tails, measured on strong reflections.

In coordinates of one resolution range a spot of I photons puts ``I w p(e1, e2) ω`` photons into a pixel of solid angle
ω: w is the part of the rocking curve that falls into the image, and p the profile on the detector, of pixels and point
spread included. Source: docs/theory.md, Bragg masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from dials_diffuse.kernels.spot_bins import EXCESS, EXPECTED, PIXELS

N_SECTORS = 8
#: rings about a spot, in units of its width on the detector
RING_EDGES = np.concatenate([np.arange(0, 6, 0.5), [6.0, 7.0, 8.0, 9.5, 11.0, 13.0]])
#: bins of the rocking curve, in widths sigma_m from the centre
ROCKING_EDGES = np.linspace(-5.0, 5.0, 21)
FARTHEST = 60.0  # units; tails are followed to here
N_HALO = 6
FINER = 10  # steps between tabulated distances, for integrals
ROUNDS = 4
SIGNIFICANT = 3.0
CORE = 5.0  # units about a spot, in which the rocking curve is looked for
WIDEST, LEAST_DENSITY, CURVATURE = 1.5, 1e-4, 0.1  # of the rocking curve's prior: width in sigma_m, tail, bend of a bin
MODEL_ERROR = 0.05  # relative error of one spot's profile: spots differ
HALO_ERROR = 0.5  # the diffuse halo about a spot is known to this fraction
FASTEST, N_DECAYS = 4.0, 81  # e-folds per unit that such a tail may fall faster, and how many are tried
SLOWEST_DECAY = 0.3  # e-folds per unit, of a tail that was not seen


@dataclass(frozen=True)
class SpotSums:
    """What n (reflection, image) pairs of one resolution range hold.

    Attributes
    ----------
    sums : (n, N_SECTORS, n_rings, N_SUMS) of :func:`bin_excess`
    photons : (n,) of the whole reflections
    low, high : (n,) beginning and end of the image in widths sigma_m from the reflection's centre
    area : (n,) solid angle of a pixel in squared units
    halo : (n,) diffuse counts that a pixel has for each unit of |F|², relative
    reach : (n, n_rings) distance of the rings from the reciprocal-lattice point, 1/Å
    """

    sums: np.ndarray
    photons: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: np.ndarray
    halo: np.ndarray
    reach: np.ndarray


@dataclass(frozen=True)
class SpotProfile:
    """Profile of spots in one resolution range.

    Attributes
    ----------
    distance : (n_distances,) float64 units, ascending
    log_density : (N_SECTORS, n_distances) log of p, per squared unit, descending along each row
    rocking : (n_points,) positions in widths sigma_m, ascending
    cumulative : (n_points,) fraction of the reflection before each
    measured_to : (N_SECTORS,) units, where the tail ends that was seen; beyond it goes on exponentially
    decay : e-folds per unit by which it falls faster than that in the mean, for all spots together
    """

    distance: np.ndarray
    log_density: np.ndarray
    rocking: np.ndarray
    cumulative: np.ndarray
    measured_to: np.ndarray
    decay: float = 0.0

    @property
    def log_expected(self) -> np.ndarray:
        """Log of p as for ``log_density``, which masks are made for, but what is expected where nothing was seen."""
        return self.log_density - self.decay * np.maximum(self.distance - self.measured_to[:, None], 0)

    def part(self, low, high) -> np.ndarray:
        """Part of a reflection between two positions of the rocking curve, arrays of one shape, widths sigma_m."""
        low, high = (np.interp(x, self.rocking, self.cumulative) for x in (low, high))
        return high - low

    def radius(self, density) -> np.ndarray:
        """(n, N_SECTORS) distance in units within which p exceeds a density, (n,) per squared unit; 0 = nowhere."""
        wanted = np.log(density)
        result = np.empty((len(wanted), N_SECTORS))
        for k, row in enumerate(self.log_density):
            result[:, k] = np.interp(-wanted, -row, self.distance, left=0.0)
        return result

    def outside(self, radius) -> np.ndarray:
        """(n,) part of the profile on the detector beyond (n, N_SECTORS) radii, in units."""
        total = np.zeros(len(radius))
        fine = np.interp(
            np.arange(FINER * (len(self.distance) - 1) + 1) / FINER, np.arange(len(self.distance)), self.distance
        )
        for k, row in enumerate(self.log_density):
            density = np.exp(np.interp(fine, self.distance, row))
            ring = math.pi / N_SECTORS * np.diff(fine**2) * 0.5 * (density[1:] + density[:-1])
            left = np.concatenate([np.cumsum(ring[::-1])[::-1], [0.0]])
            total += np.interp(radius[:, k], fine, left)
        return total


def fit_profiles(ranges: list) -> list:
    """The profiles that describe the sums best, together with the diffuse halos about the lattice points.

    The halo follows |F|² as the spots do. It is told apart because it depends on the distance from the lattice point
    in all three dimensions, so that images before and after a reflection show it, too. All ranges share the rocking
    curve, because its width about the rotation axis is the same for all.

    ranges : SpotSums of each resolution range

    Returns
    -------
    list of SpotProfile
    """
    fits = [_RangeFit(spots) for spots in ranges]
    middle = 0.5 * (ROCKING_EDGES[1:] + ROCKING_EDGES[:-1])
    step = np.diff(ROCKING_EDGES)
    density = np.exp(-0.5 * middle**2) / math.sqrt(2 * math.pi)
    for _ in range(ROUNDS):
        for fit in fits:
            fit.detector_part(density)
        density, error = _rocking_part([fit.rocking_equations(density) for fit in fits])
        density, error = density / (density @ step), error / (density @ step)
    rocking, cumulative = _rocking_curve(middle, density, error)
    ring = 0.5 * (RING_EDGES[1:] + RING_EDGES[:-1])
    profiles, unseen = [], []
    for fit in fits:
        error = np.hypot(fit.error, HALO_ERROR * fit.typical_halo(density))
        rows, ends = zip(*(_tail(ring, p, e) for p, e in zip(fit.profile, error)))
        profiles.append(SpotProfile(_distances(ring), np.array(rows), rocking, cumulative, np.array(ends)))
        unseen += [
            (ring - end, np.exp(np.interp(ring, _distances(ring), row)), p, e)
            for row, end, p, e in zip(rows, ends, fit.profile, error)
        ]
    decay = _decay(*(np.concatenate(column) for column in zip(*unseen)))
    return [replace(profile, decay=decay) for profile in profiles]


class _RangeFit:
    """Least squares for the reflections of one resolution range."""

    def __init__(self, spots: SpotSums):
        self.spots = spots
        self.pixels, self.excess, self.expected = (spots.sums[..., c] for c in (PIXELS, EXCESS, EXPECTED))
        limits = np.linspace(0, spots.reach.max() * (1 + 1e-9), N_HALO + 1)
        which = np.searchsorted(limits, spots.reach, side="right") - 1
        self.basis = np.zeros((*which.shape, N_HALO))
        np.put_along_axis(self.basis, which[..., None], 1.0, axis=2)
        self.halo_counts = self.pixels * spots.halo[:, None, None]
        low, high = spots.low[:, None], spots.high[:, None]
        self.overlap = np.maximum(np.minimum(high, ROCKING_EDGES[1:]) - np.maximum(low, ROCKING_EDGES[:-1]), 0)
        ring = 0.5 * (RING_EDGES[1:] + RING_EDGES[:-1])
        self.profile = np.tile(np.exp(-0.5 * ring**2) / (2 * math.pi), (N_SECTORS, 1))
        self.error = np.zeros_like(self.profile)
        self.halo = np.zeros(N_HALO)

    def detector_part(self, density) -> None:
        """p in sectors and rings with its errors, and the halo in bins of distance, for a rocking curve."""
        spots = self.spots
        source = self.pixels * (spots.photons * (self.overlap @ density) * spots.area)[:, None, None]
        w = self._weight(source * self.profile)
        counts, basis = self.halo_counts, self.basis
        a = np.einsum("isr,isr,isr->sr", source, source, w)
        n = a.size
        matrix = np.zeros((n + N_HALO, n + N_HALO))
        matrix[np.arange(n), np.arange(n)] = a.ravel()
        matrix[:n, n:] = np.einsum("isr,irk->srk", source * w * counts, basis).reshape(n, N_HALO)
        matrix[n:, :n] = matrix[:n, n:].T
        matrix[n:, n:] = np.einsum("irk,irl,ir->kl", basis, basis, np.einsum("isr,isr->ir", counts**2, w))
        right = np.concatenate(
            [
                np.einsum("isr,isr->sr", source * w, self.excess).ravel(),
                np.einsum("isr,irk->k", counts * w * self.excess, basis),
            ]
        )
        # columns differ by many orders of magnitude
        size = np.sqrt(np.maximum(np.diagonal(matrix), 1e-300))
        inverse = np.linalg.pinv(matrix / np.outer(size, size), rcond=1e-10, hermitian=True)
        solution = inverse @ (right / size) / size
        error = np.sqrt(np.maximum(np.diagonal(inverse), 0)) / size
        self.profile = solution[:n].reshape(a.shape)
        self.error = np.where(a > 0, error[:n].reshape(a.shape), np.inf)
        self.halo = solution[n:]

    def rocking_equations(self, density) -> tuple:
        """Normal matrix and right hand sides, for the excess and for the halo, of the rocking curve."""
        core = slice(0, int(np.searchsorted(RING_EDGES, CORE)))
        spots = self.spots
        shape = self.pixels * np.maximum(self.profile, 0) * (spots.photons * spots.area)[:, None, None]
        w = self._weight(shape * (self.overlap @ density)[:, None, None])
        halo = self._halo_in_bins()
        shape, w, rest, halo = (x[:, :, core] for x in (shape, w, self.excess - halo, halo))
        squares = np.einsum("isr,isr,isr->i", shape, shape, w)
        return (
            (self.overlap * squares[:, None]).T @ self.overlap,
            self.overlap.T @ np.einsum("isr,isr->i", shape * w, rest),
            self.overlap.T @ np.einsum("isr,isr->i", shape * w, np.abs(halo)),
        )

    def typical_halo(self, density) -> np.ndarray:
        """(n_rings,) size of the halo in units of p, of the reflections that decide."""
        spots = self.spots
        weight = spots.photons * (self.overlap @ density) * spots.area
        h = np.einsum("irk,k->ir", self.basis, self.halo)
        return np.average(np.abs(h) * spots.halo[:, None], axis=0, weights=weight) / np.average(weight, weights=weight)

    def _halo_in_bins(self) -> np.ndarray:
        return self.halo_counts * np.einsum("irk,k->ir", self.basis, self.halo)[:, None]

    def _weight(self, spot) -> np.ndarray:
        """(n, n_sectors, n_rings) 1/variance of the excess, for expected counts of the spots."""
        model = np.maximum(spot, 0)
        return (self.pixels > 0) / (self.expected + model + (MODEL_ERROR * model) ** 2 + 1.0)


def _rocking_part(equations: list) -> tuple:
    """Density of the rocking curve in its bins, nowhere negative, and its errors."""
    matrix, right, halo = (sum(part) for part in zip(*equations))
    # what repeats with the width of the images is not seen by them: a rocking curve is smooth
    middle = 0.5 * (ROCKING_EDGES[1:] + ROCKING_EDGES[:-1])
    usual = np.exp(-0.5 * (middle / WIDEST) ** 2) + LEAST_DENSITY
    bend = np.diff(np.eye(len(middle)), 2, axis=0) / (CURVATURE * usual[1:-1, None])
    matrix = matrix + bend.T @ bend
    size = np.sqrt(np.maximum(np.diagonal(matrix), 1e-300))
    scaled = matrix / np.outer(size, size) + 1e-9 * np.eye(len(size))
    root = np.linalg.cholesky(scaled).T
    solution, _ = nnls(root, np.linalg.solve(root.T, right / size))
    inverse = np.linalg.inv(scaled)
    error = np.hypot(np.sqrt(np.diagonal(inverse)), HALO_ERROR * (inverse @ (halo / size)))
    return solution / size, error / size


def _distances(ring) -> np.ndarray:
    """Distances at which profiles are tabulated: the middles of the rings and beyond."""
    return np.concatenate([[0.0], ring, np.arange(ring[-1] + 2, FARTHEST, 2.0)])


def _tail(ring, density, error) -> tuple:
    """Log density at :func:`_distances`, never rising, and where what was seen of it ends.

    Behind the last significant ring the density goes on falling as fast as it fell there.
    """
    seen = np.flatnonzero(density > SIGNIFICANT * error)
    # bumps of split spots are followed, specks behind a gap of two rings are not
    last = 0
    for i in seen:
        if i - last > 2:
            break
        last = i
    use = seen[seen <= last]
    if len(use) < 2:
        use, density = np.arange(2), np.exp(-0.5 * ring**2) / (2 * math.pi)
    log = np.log(density[use])
    # the mean over a ring is larger than the density at its middle where that falls steeply
    fall = np.abs(np.gradient(log, ring[use])) * 0.5 * np.diff(RING_EDGES)[use]
    log -= np.log(np.sinh(fall) / np.where(fall > 0, fall, 1), where=fall > 1e-6, out=np.zeros(len(fall)))
    log = np.maximum.accumulate(log[::-1])[::-1]
    back = max(len(use) - 3, 0)
    slope = max((log[back] - log[-1]) / (ring[use[-1]] - ring[use[back]]), SLOWEST_DECAY)
    distance = _distances(ring)
    beyond = log[-1] - slope * (distance - ring[use[-1]])
    values = np.where(distance <= ring[use[-1]], np.interp(distance, ring[use], log), beyond)
    return values - 1e-9 * np.arange(len(values)), ring[use[-1]]


def _decay(beyond, tail, density, error) -> float:
    """E-folds per unit by which tails fall faster where none of their rings is significant, all rings together.

    beyond : (n,) units behind the last ring that is; tail : (n,) density if it went on as before
    density, error : (n,) as measured
    """
    use = (beyond > 0) & np.isfinite(error) & (error > 0)
    beyond, tail, density, weight = beyond[use], tail[use], density[use], 1 / error[use] ** 2
    steps = np.linspace(0, FASTEST, N_DECAYS)
    left = tail * np.exp(-steps[:, None] * beyond)
    return float(steps[np.argmin(np.sum(weight * (density - left) ** 2, axis=1))])


def _rocking_curve(middle, density, error) -> tuple:
    """Positions and cumulative fractions; tails beyond what is significant go on exponentially."""
    peak = int(np.argmax(density))
    log = np.full(len(middle), -np.inf)
    good = density > np.maximum(SIGNIFICANT * error, 1e-9 * density[peak])
    for side in (1, -1):
        chain = [peak]
        for i in range(peak + side, len(middle) if side > 0 else -1, side):
            if good[i]:
                chain.append(i)
            elif len(chain) and abs(i - chain[-1]) > 1:
                break
        at = np.array(chain)
        values = np.log(density[at])
        values = np.maximum.accumulate(values[::-1])[::-1]
        back = max(len(chain) - 3, 0)
        slope = 1.0
        if len(chain) > 1:
            slope = max((values[back] - values[-1]) / abs(middle[chain[-1]] - middle[chain[back]]), SLOWEST_DECAY)
        mine = np.arange(len(middle)) * side >= peak * side
        away = np.abs(middle - middle[peak])
        inner = np.interp(away, np.abs(middle[chain] - middle[peak]), values)
        beyond = values[-1] - slope * (away - abs(middle[chain[-1]] - middle[peak]))
        log[mine] = np.where(away <= abs(middle[chain[-1]] - middle[peak]), inner, beyond)[mine]
        edge = (len(middle) - 1) if side > 0 else 0
        if side > 0:
            right = (slope, log[edge])
        else:
            left = (slope, log[edge])
    step = middle[1] - middle[0]
    extra = np.arange(1, 21) * step
    points = np.concatenate([middle[0] - extra[::-1], middle, middle[-1] + extra])
    logs = np.concatenate([left[1] - left[0] * extra[::-1], log, right[1] - right[0] * extra])
    mass = np.exp(logs) * step
    edges = np.concatenate([points - step / 2, [points[-1] + step / 2]])
    cumulative = np.concatenate([[0.0], np.cumsum(mass)])
    return edges, cumulative / cumulative[-1]
