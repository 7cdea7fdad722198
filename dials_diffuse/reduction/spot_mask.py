"""Bragg masks that follow the peaks: of each reflection in each image the pixels where it would leak too much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dials_diffuse.experiment.spot_prediction import PredictedSpots
from dials_diffuse.kernels.image import Outlines
from dials_diffuse.reduction.spot_profile import N_SECTORS

NEVER = 1e-30
FAINTEST = 0.05  # of what may leak: tails that are less are not followed
UNSURE = 0.25  # tails of a reflection are known to this fraction
MOST_IMAGES = 60  # before and after a reflection, where leaks are summed


@dataclass(frozen=True)
class AdaptiveMask:
    """What decides which pixels the reflections of one crystal take.

    Attributes
    ----------
    profiles : SpotProfile of each resolution range
    limits : (n_profiles - 1,) 1/Å, where the ranges end
    group : (n,) range of each reflection
    unit : (n,) radians, the distances of the profiles
    strength : (n,) photons of the reflection times the solid angle of a pixel in squared units, over the photons per
        pixel that may leak
    tail : (n,) photons expected of the reflection times the solid angle of a pixel in squared units
    """

    profiles: list
    limits: np.ndarray
    group: np.ndarray
    unit: np.ndarray
    strength: np.ndarray
    tail: np.ndarray

    @cached_property
    def farthest(self) -> float:
        """Widths sigma_m from the centre to the end of the rocking curves."""
        return max(max(abs(p.rocking[0]), p.rocking[-1]) for p in self.profiles)

    def weights(self, spots: PredictedSpots, image) -> np.ndarray:
        """(n,) part of each reflection in an image; ``image`` : one for all, or (n,)."""
        away = image - spots.centre[:, 2]
        reach = self.farthest * spots.sigma_z
        result = np.zeros(len(spots))
        active = np.flatnonzero((away + 1 > -reach) & (away < reach))
        low, width = away[active] / spots.sigma_z[active], 1 / spots.sigma_z[active]
        for k, profile in enumerate(self.profiles):
            mine = self.group[active] == k
            result[active[mine]] = profile.part(low[mine], low[mine] + width[mine])
        return result

    def radii(self, spots: PredictedSpots, image) -> tuple:
        """Reflections that matter in an image, and how far.

        Returns
        -------
        chosen : (m,) rows of ``spots``
        radius : (m, N_SECTORS) radians
        """
        return self._around(self.weights(spots, image) * self.strength)

    def _around(self, weight) -> tuple:
        """Reflections of which weight times profile exceeds 1 somewhere, and (m, N_SECTORS) radians to where."""
        candidates = np.flatnonzero(weight > 0)
        chosen, radius = [], []
        for k, profile in enumerate(self.profiles):
            top = math.exp(profile.log_density[:, 0].max())
            mine = candidates[(self.group[candidates] == k) & (weight[candidates] * top > 1)]
            chosen.append(mine)
            radius.append(profile.radius(1 / weight[mine]) * self.unit[mine, None])
        return np.concatenate(chosen), np.concatenate(radius)

    def tails(self, spots: PredictedSpots, image: int) -> tuple:
        """Reflections of which something is left outside their masks in an image.

        Returns
        -------
        chosen : (m,) rows of ``spots``
        counts : (m,) photons in a pixel where their profile is 1
        reach : (m,) radians, to where a pixel may have FAINTEST of what may leak
        """
        weight = self.weights(spots, image)
        chosen, reach = self._around(weight * self.strength / FAINTEST)
        return chosen, (weight * self.tail)[chosen], reach.max(axis=1, initial=0)

    def leak(self, spots: PredictedSpots, image) -> np.ndarray:
        """(n,) photons outside the mask in an image, in units of those that a pixel may have."""
        weight = self.weights(spots, image) * self.strength
        chosen, radius = self.radii(spots, image)
        covered = np.zeros((len(spots), N_SECTORS))
        covered[chosen] = radius
        result = np.zeros(len(spots))
        for k, profile in enumerate(self.profiles):
            mine = np.flatnonzero((self.group == k) & (weight > NEVER))
            result[mine] = weight[mine] * profile.outside(covered[mine] / self.unit[mine, None])
        return result

    def total_leak(self, spots: PredictedSpots, n_images: int) -> np.ndarray:
        """(n,) photons outside the mask on all images of a scan, in units of those that a pixel may have."""
        first = np.floor(spots.centre[:, 2]).astype(int)
        steps = min(math.ceil(self.farthest * float(np.quantile(spots.sigma_z, 0.99))), MOST_IMAGES)
        total = np.zeros(len(spots))
        for step in range(-steps, steps + 1):
            image = first + step
            total += np.where((image >= 0) & (image < n_images), self.leak(spots, image), 0.0)
        return total

    def masked(self, spots: PredictedSpots) -> np.ndarray:
        """(n,) bool, reflections that are masked in some image."""
        result = np.zeros(len(spots), dtype=bool)
        for step in (-1, 0, 1):
            result[self.radii(spots, np.floor(spots.centre[:, 2]).astype(int) + step)[0]] = True
        return result


def outlines(spots: PredictedSpots, chosen, radius, panel, p: int) -> Outlines:
    """Regions to paint on a panel, for :func:`paint_outlines`.

    chosen, radius : of :meth:`AdaptiveMask.radii`; panel : PanelGeometry; p : its number
    """
    here = spots.panel[chosen] == p
    rows, radius = chosen[here], radius[here]
    return Outlines(
        np.ascontiguousarray(spots.centre[rows, :2]),
        np.ascontiguousarray(spots.axes[rows]),
        np.ascontiguousarray(radius),
        radius.max(axis=1, initial=0) / pixel_angle(spots, rows, panel) + 1,
    )


def pixel_angle(spots: PredictedSpots, rows, panel) -> np.ndarray:
    """(n,) radians that a pixel spans at each spot, the smaller way: an angle spans more pixels where the panel is
    hit obliquely."""
    y = np.clip(spots.centre[rows, 1].astype(int), 0, panel.shape[0] - 1)
    x = np.clip(spots.centre[rows, 0].astype(int), 0, panel.shape[1] - 1)
    return math.sqrt(panel.pixel_area) * panel.cos_incidence[y, x] / panel.distance[y, x]
