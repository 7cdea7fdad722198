"""What Bragg spots are expected to leave outside their masks, as a part of the background of the rows.

Source: docs/theory.md, Bragg masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dials_diffuse.kernels import accumulate as kernel
from dials_diffuse.kernels.spot_tails import Tails, first_distances, paint_tails, tails_in_voxels
from dials_diffuse.reduction.spot_mask import UNSURE, AdaptiveMask, pixel_angle

FEWEST = 1 << 20  # entries that are kept apart before they are added up


class TailSums:
    """Expected counts of tails in the voxels of a block of images."""

    def __init__(self):
        self._keys: list = []
        self._sums: list = []
        self._n = 0
        self._empty: dict = {}

    def empty(self, p: int, shape: tuple) -> np.ndarray:
        """An array of zeros for the pixels of a panel, to be left as it is found."""
        if p not in self._empty:
            self._empty[p] = np.zeros(shape)
        return self._empty[p]

    def add(self, keys: np.ndarray, counts: np.ndarray, rates: np.ndarray, odd: bool) -> None:
        """keys : (n,) int64; counts, rates : (n,) float64, and the latter over the norm"""
        sums = np.zeros((len(keys), 4))
        sums[:, 2 * odd], sums[:, 2 * odd + 1] = counts, rates
        self._keys.append(keys)
        self._sums.append(sums)
        self._n += len(keys)
        if self._n > FEWEST:
            self._keys, self._sums = ([x] for x in self.totals())
            self._n = 0

    def totals(self) -> tuple:
        """(m,) keys, ascending; (m, 4) counts and rates, of even images and of odd ones"""
        if not self._keys:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 4))
        keys, row = np.unique(np.concatenate(self._keys), return_inverse=True)
        sums = np.concatenate(self._sums)
        return keys, np.stack([np.bincount(row, column, len(keys)) for column in sums.T], axis=1)

    def subtract_from(self, keys: np.ndarray, table: np.ndarray) -> None:
        """Make the tails a part of the background of voxel sums.

        keys : (n,) int64, ascending; table : (n, N_COLUMNS), changed
        """
        mine, sums = self.totals()
        row = np.searchsorted(keys, mine)
        known = row < len(keys)
        known[known] = keys[row[known]] == mine[known]  # pixels on the border of two voxels
        row, sums = row[known], sums[known]
        for half, (counts, rates) in ((0, sums[:, :2].T), (kernel.ODD, sums[:, 2:].T)):
            table[row, half + kernel.BACKGROUND] += counts
            table[row, half + kernel.RATE] -= rates
        table[row, kernel.BACKGROUND_SIGMA] += UNSURE * (sums[:, 0] + sums[:, 2])


def tails_of(job, image: int) -> Iterator:
    """(PredictedSpots, AdaptiveMask, rows, counts, reach) of the crystals whose masks follow the peaks.

    rows : (n,) of the spots that leave something; counts : (n,) photons in a pixel where their profile is 1;
    reach : (n,) radians
    """
    for spots, mask in zip(job.spots, job.masks):
        if mask is not None:
            yield spots, mask, *mask.tails(spots, image)


def add_tails(job, image: int, found: list, panel, sums: TailSums) -> None:
    """Add the tails on one panel of an image.

    found : of :func:`tails_of`; panel : what the kernels need of it, see ``voxel_sums``
    """
    p, geometry = panel.number, job.panels[panel.number]
    expected, most = sums.empty(p, geometry.shape), 0
    for spots, mask, rows, counts, reach in found:
        here = spots.panel[rows] == p
        if here.any():
            tails = _tails(spots, mask, rows[here], counts[here], reach[here], geometry)
            most += paint_tails(panel.pixels, panel.view, tails, expected) * len(panel.steps.angles)
    if not most:
        return
    keys, in_voxels, rates = np.empty(most, dtype=np.int64), np.empty(most), np.empty(most)
    n = tails_in_voxels(
        panel.pixels,
        panel.reading,
        panel.norm,
        panel.guard,
        panel.view,
        panel.steps,
        np.array(job.grid.extent, dtype=np.int64),
        2 * p * job.grid.n_voxels,
        expected,
        keys,
        in_voxels,
        rates,
    )
    sums.add(keys[:n], in_voxels[:n], rates[:n], image % 2 == 1)


def _tails(spots, mask: AdaptiveMask, rows, counts, reach, geometry) -> Tails:
    return Tails(
        np.ascontiguousarray(spots.centre[rows, :2]),
        np.ascontiguousarray(spots.axes[rows]),
        reach / pixel_angle(spots, rows, geometry) + 1,
        reach,
        mask.unit[rows],
        counts,
        mask.group[rows],
        mask.profiles[0].distance,
        first_distances(mask.profiles[0].distance),
        np.array([p.log_expected for p in mask.profiles]),
    )
