"""What a sample of the images tells before all are reduced: spots, and how much the diffuse intensity varies."""

from __future__ import annotations

import logging
import math

import numpy as np

from dials_diffuse.experiment.pixel_factors import solid_angle
from dials_diffuse.experiment.spot_prediction import PredictedSpots
from dials_diffuse.kernels.spot_bins import FREE, N_SUMS, SHARED, Around, bin_excess, claim_pixels
from dials_diffuse.reduction.spot_mask import AdaptiveMask, pixel_angle
from dials_diffuse.reduction.spot_photons import SpotPhotons
from dials_diffuse.reduction.spot_profile import N_SECTORS, RING_EDGES, SpotSums, fit_profiles

logger = logging.getLogger("dials.diffuse.reduction")

CLAIM = 4.5  # units about each spot that are its own
ACTIVE = 4.5  # widths sigma_m from an image to spots that claim pixels there
NEAREST, FARTHEST_IMAGE = 0.0, 7.0  # widths sigma_m to spots that are looked at
PER_IMAGE = 400  # strongest reflections that are looked at
MIN_PAIRS = 150  # reflections in images that make a resolution range
MAX_RANGES = 5
SMALLEST_UNIT = 0.7  # pixels


class SpotSurvey:
    """Collects what lies around the strong reflections of a crystal, image by image.

    Parameters
    ----------
    spots : PredictedSpots
    photons : SpotPhotons of these. Only those that were measured are looked at: of others too much may be assumed, and
        they would be among those that look strongest
    job : Job
    """

    def __init__(self, spots: PredictedSpots, photons: SpotPhotons, job):
        self.spots, self.photons, self.panels = spots, photons.photons, job.panels
        self.expected, self.known = photons.expected, photons.certain.copy()
        self.wavelength = 1 / float(np.linalg.norm(job.scan.s0_at(job.scan.n_images / 2)))
        self.width = abs(math.radians(job.scan.oscillation[1]))
        self.unit = np.empty(len(spots))
        self.solid_angle = np.empty(len(spots))
        self.norm = np.empty(len(spots))
        for p, panel in enumerate(job.panels):
            mine = np.flatnonzero(spots.panel == p)
            self.unit[mine] = np.maximum(spots.sigma_b[mine], SMALLEST_UNIT * pixel_angle(spots, mine, panel))
            y = np.clip(spots.centre[mine, 1].astype(int), 0, panel.shape[0] - 1)
            x = np.clip(spots.centre[mine, 0].astype(int), 0, panel.shape[1] - 1)
            self.solid_angle[mine] = solid_angle(panel)[y, x]
            self.norm[mine] = job.corrections[p][y, x]
            # of a spot beyond the edge only the tail is seen, and what it is the tail of is not measured
            self.known[mine] &= np.all((spots.centre[mine, :2] >= 0) & (spots.centre[mine, :2] < panel.shape[::-1]), 1)
            self.known[mine] &= job.bad[p][y, x] == 0
        order = np.argsort(spots.s, kind="stable")
        order = order[self.known[order]]
        self.rank = np.zeros(len(spots))
        self.rank[order] = np.arange(len(order)) / max(len(order), 1)
        self.pairs: list = []

    @property
    def halo(self) -> np.ndarray:
        """(n,) diffuse counts of a pixel for each unit of |F|², relative: photons are |F|² c / (ω speed)."""
        return self.photons * self.spots.speed * self.solid_angle

    def swept_by_pixel(self) -> np.ndarray:
        """(n,) volume of reciprocal space that a pixel sweeps during an image at each reflection, 1/Å³."""
        return self.solid_angle / self.wavelength**2 * self.spots.speed * self.width

    def add(self, frame, bad, expected, of_others=None) -> None:
        """Take one image into account.

        frame : Frame; bad : (ny, nx) uint8 of each panel; expected : (ny, nx) float32 counts without spots
        of_others : (ny, nx) bool of each panel, pixels at spots of other crystals; None without these
        """
        image = frame.number - 1
        low = (image - self.spots.centre[:, 2]) / self.spots.sigma_z
        high = (image + 1 - self.spots.centre[:, 2]) / self.spots.sigma_z
        away = np.maximum(np.maximum(low, -high), 0)
        near = np.flatnonzero((away < FARTHEST_IMAGE) & self.known)
        tenth = (self.rank[near] * MAX_RANGES).astype(int)
        order = np.lexsort([-self.photons[near], tenth])
        first = np.searchsorted(tenth[order], tenth[order])
        chosen = near[order[np.arange(len(order)) - first < PER_IMAGE // MAX_RANGES]]
        active = np.flatnonzero(away < ACTIVE)
        for p, panel in enumerate(self.panels):
            owner = np.full(panel.shape, FREE, dtype=np.int32)
            theirs = active[self.spots.panel[active] == p]
            claim_pixels(owner, panel.directions, self._around(theirs, panel, CLAIM), CLAIM)
            if of_others is not None:
                owner[of_others[p]] = SHARED
            mine = chosen[self.spots.panel[chosen] == p]
            sums = np.zeros((len(mine), N_SECTORS, len(RING_EDGES) - 1, N_SUMS))
            bin_excess(
                frame.pixels(p, bad[p]),
                panel.reading,
                expected[p],
                panel.directions,
                owner,
                self._around(mine, panel, RING_EDGES[-1]),
                RING_EDGES,
                sums,
            )
            self.pairs.append((mine, sums, low[mine], high[mine]))

    def _around(self, rows, panel, reach: float) -> Around:
        spots = self.spots
        return Around(
            rows.astype(np.int64),
            np.ascontiguousarray(spots.centre[rows, :2]),
            np.ascontiguousarray(spots.axes[rows]),
            reach * self.unit[rows] / pixel_angle(spots, rows, panel) + 1,
            self.unit[rows],
        )

    def mask(self, allowed: np.ndarray) -> AdaptiveMask | None:
        """The mask that lets through ``allowed`` photons per pixel, (n,); None where too few reflections were seen."""
        rows, sums, low, high = (np.concatenate(column) for column in zip(*self.pairs))
        ring = 0.5 * (RING_EDGES[1:] + RING_EDGES[:-1])
        n_ranges = min(len(rows) // MIN_PAIRS, MAX_RANGES)
        if n_ranges == 0:
            return None
        limits = np.quantile(self.spots.s[rows], np.arange(1, n_ranges) / n_ranges)
        group = np.searchsorted(limits, self.spots.s[rows])
        middle = np.abs(0.5 * (low + high)) * self.spots.sigma_z[rows] * self.width * self.spots.speed[rows]
        reach = np.hypot(self.unit[rows, None] * ring / self.wavelength, middle[:, None])
        area = self.solid_angle / self.unit**2
        ranges = []
        for k in range(n_ranges):
            mine = group == k
            of = rows[mine]
            ranges.append(
                SpotSums(sums[mine], self.photons[of], low[mine], high[mine], area[of], self.halo[of], reach[mine])
            )
        profiles = fit_profiles(ranges)
        return AdaptiveMask(
            profiles,
            limits,
            np.searchsorted(limits, self.spots.s),
            self.unit,
            self.photons * area / allowed,
            self.expected * area,
        )
