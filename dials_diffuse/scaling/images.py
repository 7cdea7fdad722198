"""Images that do not belong: what the scale model leaves of each is unlike what it leaves of the others of its sweep.

Each observation deviates from what the others of its voxel predict by z standard errors. For every image the means of z
and z² are taken: of all observations, in rings of |s|, and in regions of the detector. An image is bad where a mean is
far from the median of the sweep, in units of the spread between images: where good images differ as much, none is bad.

Source: docs/theory.md, Images that do not belong
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.kernels.scaling import Residuals, orbit_sums
from dials_diffuse.scaling.error_model import ErrorModel, find_outliers, weigh, whole_prior
from dials_diffuse.scaling.layout import MODULE, Layout, S, T, X, Y
from dials_diffuse.scaling.model import Prediction
from dials_diffuse.scaling.refine import Refinement
from dials_diffuse.scaling.sample import Observations

BLANK, SCALE, RING, REGION, DISAGREEMENT = REASONS = "blank", "scale", "ring", "region", "disagreement"

#: an image is bad from so many times the spread between images
_LIMIT = 8.0

#: and from so many, where an image beside it is bad in the same way
_NEAR = 3.0

#: in each round, only images that are bad by this share of the worst one go, and none that deviates to the other side
#: within so many degrees of a worse one: bad images make others look bad
_SHARE_OF_WORST = 1 / 3
_REACH = 20.0

#: a mean deviation matters from this share of the anisotropic part, and z² from this factor over its median
_SHARE_OF_SIGNAL = 0.5
_FACTOR = 1.5

#: z and z² are cut off here: a few Bragg peaks or hot pixels make no image bad
_CUT, _CUT_SQUARE = 4.0, 4.0

#: a blank image has less than this share of the counts
_BLANK = 0.1

#: observations of an image, else several images are taken together; in a ring, and at least in a ring or region
_PER_IMAGE, _PER_RING, _PER_CELL = 60, 15, 10
_MOST_RINGS = 100

#: where no image is bad, so many in sequence are tested together
_TOGETHER = 4
_ACROSS = 4

#: fewer images do not tell what is usual
_FEWEST_IMAGES = 8


@dataclass(frozen=True)
class BadImage:
    """An image, or a few in sequence, with what is wrong.

    Attributes
    ----------
    experiment : int; first, last : image numbers, inclusive
    reason : BLANK, SCALE (other counts everywhere), RING (at some |s|), REGION (of the detector) or DISAGREEMENT
        (everywhere, of both signs)
    n : observations that tell
    chi2, usual_chi2 : mean z², at most 4 each, of it, and the median of the sweep
    counts : relative to what is expected of the crystal
    deviation : from the usual, in units of the spread between images
    d_max, d_min : Å, of the worst ring; None unless RING
    x, y : (2,) pixels, of the worst region; None unless REGION on a detector of one panel
    """

    experiment: int
    first: int
    last: int
    reason: str
    n: int
    chi2: float
    usual_chi2: float
    counts: float
    deviation: float
    d_max: float | None = None
    d_min: float | None = None
    x: tuple | None = None
    y: tuple | None = None

    @property
    def words(self) -> str:
        """What the residuals say."""
        share = f"{self.counts:.2f} of the counts that are expected"
        if self.reason == RING:
            return f"ring at {self.d_max:.2f} to {self.d_min:.2f} Å, {share} there"
        if self.reason == REGION:
            where = f" (x {self.x[0]} to {self.x[1]}, y {self.y[0]} to {self.y[1]})" if self.x else ""
            return f"a region of the detector{where} has {share}"
        if self.reason == DISAGREEMENT:
            return f"disagrees everywhere with the others: chi2 {self.chi2:.2f}, usually {self.usual_chi2:.2f}"
        return f"{self.reason}: {share}"


@dataclass(frozen=True)
class SweepImages:
    """All images of a sweep, or groups of them in sequence where observations are few.

    Attributes
    ----------
    experiment : int
    first, last : (b,) int64, image numbers, inclusive
    n : (b,) int64, observations; chi2 : (b,) float64, mean z², at most 4 each; counts : (b,) relative to expectation
    """

    experiment: int
    first: np.ndarray
    last: np.ndarray
    n: np.ndarray
    chi2: np.ndarray
    counts: np.ndarray


def image_number(fraction: np.ndarray, experiment) -> np.ndarray:
    """(n,) int64, image, the first of the sweep is 0; fraction : (n,) of its rotation; experiment : its summary."""
    first, last = experiment.image_range
    return np.clip((fraction * (last - first + 1)).astype(np.int64), 0, last - first)


def deviations(prediction: Prediction, data: Observations, errors: ErrorModel, rejected: np.ndarray) -> tuple:
    """What observations deviate by from what the others of their voxel predict.

    Parameters
    ----------
    prediction : of the data
    rejected : (n,) bool, they predict nothing

    Returns
    -------
    z : (n,) float64, in standard errors
    excess : (n,) float64, counts
    """
    weights = weigh(prediction, data, errors, np.zeros(data.n, dtype=bool))
    w, unit, residual = weights.weight, prediction.unit, data.net - prediction.isotropic
    sums = np.zeros((len(data.unique), 2))
    orbit_sums(Residuals(data.orbit, w, residual, unit), rejected, sums)
    own = np.where(rejected, 0.0, w * unit)
    others = (sums[:, 1] + whole_prior(data, prediction, errors))[data.orbit] - own * unit
    excess = residual - unit * (sums[data.orbit, 0] - own * residual) / others
    return excess / np.sqrt(1 / w + unit**2 / others), excess


def check_images(
    refinement: Refinement, data: Observations, layout: Layout, experiments, outlier_n_sigma: float
) -> tuple:
    """Compare the images of each sweep.

    Parameters
    ----------
    refinement : of the data
    experiments : ExperimentSummary of each sweep
    outlier_n_sigma : observations that deviate by more predict nothing

    Returns
    -------
    list of SweepImages, list of BadImage
    """
    prediction = refinement.model.predict_observations(data)
    rejected = find_outliers(prediction, data, refinement.errors, outlier_n_sigma)
    z, excess = deviations(prediction, data, refinement.errors, rejected)
    expected = np.maximum(prediction.isotropic, 1e-12)
    signal = refinement.errors.size
    sweeps, bad = [], []
    for number, experiment in enumerate(experiments):
        mine = np.flatnonzero(data.experiment == number)
        x = data.coordinates[mine]
        for together in (1, _TOGETHER):
            sweep = _Sweep(number, experiment, layout, x, z[mine], excess[mine], expected[mine], together)
            if together == 1:
                sweeps.append(sweep.images)
            found = sweep.bad(signal)
            if found:
                break
        bad += found
    return sweeps, bad


class _Sweep:
    """Observations of a sweep in cells: images (rows) by rings or regions (columns)."""

    def __init__(self, number: int, experiment, layout: Layout, x, z, excess, expected, together: int):
        first, last = experiment.image_range
        self.number, self.experiment, self.layout = number, experiment, layout
        n_images = last - first + 1
        image = image_number(x[:, T], experiment)
        seen = np.bincount(image, minlength=n_images)
        per_image = len(z) / max(int(np.count_nonzero(seen)), 1)
        self.size = max(1, int(np.ceil(_PER_IMAGE / max(per_image, 1e-9)))) if len(z) else n_images
        self.size = min(self.size * together, n_images)
        self.n_groups = -(-n_images // self.size)
        self.group = image // self.size
        high = _CUT * np.abs(excess) / np.maximum(np.abs(z), 1e-300)
        # low counts are what a shadow or a blank image has; high ones may be a single Bragg peak
        self.excess, self.expected = np.minimum(excess, high), expected
        self.z, self.s, self.x = np.clip(z, -_CUT, _CUT), x[:, S], x
        n = np.bincount(self.group, minlength=self.n_groups)
        start = first + np.arange(self.n_groups) * self.size
        counts = 1 + self._ratio(self.group, self.n_groups)
        self.z2 = np.minimum(self.z**2, _CUT_SQUARE)
        chi2 = np.bincount(self.group, self.z2, self.n_groups) / np.maximum(n, 1)
        self.images = SweepImages(number, start, np.minimum(start + self.size - 1, last), n, chi2, counts)

    def _ratio(self, cell, n_cells) -> np.ndarray:
        total = np.bincount(cell, self.expected, n_cells)
        return np.divide(np.bincount(cell, self.excess, n_cells), total, out=np.zeros(n_cells), where=total > 0)

    def bad(self, signal: float) -> list:
        """List of BadImage; signal : size of the anisotropic part relative to the isotropic."""
        used = self.images.n >= _PER_CELL
        if np.count_nonzero(used) < _FEWEST_IMAGES:
            return []
        least = _SHARE_OF_SIGNAL * signal
        rings, ring_edges = self._rings()
        regions = self._regions()
        cells = {RING: rings, REGION: regions}
        chi2, everything = self.images.chi2, (np.zeros(len(self.z), dtype=np.int64), 1)
        usual = float(np.median(chi2[used]))
        more = _deviation(chi2, 2 * usual**2 / np.maximum(self.images.n, 1), used)
        all_over = self._everywhere(*regions, least) & self._everywhere(*rings, least)
        found = {
            SCALE: np.where(all_over[:, None], self._unusual(*everything, least), 0.0),
            RING: self._unusual(*rings, least),
            REGION: self._unusual(*regions, least),
            DISAGREEMENT: np.where(used & (chi2 > _FACTOR * usual), more, 0.0)[:, None],
        }
        unknown = np.isnan(np.concatenate([found[reason] for reason in (SCALE, RING, REGION)], axis=1))
        found = {reason: np.nan_to_num(deviation) for reason, deviation in found.items()}
        result = []
        for group in self._grown(self._worst_first(found), found, unknown):
            size = {reason: float(np.abs(found[reason][group]).max()) for reason in found}
            best = max(size.values())
            reason = SCALE if size[SCALE] >= max(_NEAR, best / 2) else max((RING, REGION), key=lambda r: size[r])
            if reason != SCALE and self._elsewhere(group, found[reason][group], cells[reason][0], usual):
                reason = DISAGREEMENT
            cell = int(np.abs(found[reason][group]).argmax())
            result.append(self._describe(group, reason, cell, usual, best, ring_edges))
        return result

    def _elsewhere(self, group: int, deviation: np.ndarray, cell: np.ndarray, usual: float) -> bool:
        """Does a group disagree outside the cells that deviate, too? deviation : (c,) of its cells."""
        if np.abs(deviation).max() < _NEAR:
            return True
        mine = np.flatnonzero(self.group == group)
        mine = mine[np.abs(deviation[cell[mine]]) < _NEAR]
        return len(mine) >= _PER_CELL and float(np.mean(self.z2[mine])) > _FACTOR * usual

    def _worst_first(self, found: dict) -> list:
        """Groups to leave out in this round; found : reason -> (b, k) signed deviations.

        Smooth terms follow a bad image, so that its neighbours deviate, to the other side: they get another chance.
        """
        signed = np.concatenate([found[reason] for reason in (SCALE, RING, REGION)], axis=1)
        largest = np.take_along_axis(signed, np.abs(signed).argmax(axis=1)[:, None], axis=1)[:, 0]
        sign = np.sign(largest) * (np.abs(largest) >= _NEAR)
        worst = np.maximum(np.abs(largest), found[DISAGREEMENT][:, 0])
        limit = max(_LIMIT, _SHARE_OF_WORST * float(worst.max()))
        reach = _REACH / (abs(self.experiment.oscillation[1]) * self.size)
        chosen: list = []
        for group in np.argsort(-worst):
            if worst[group] < limit:
                break
            if not any(abs(group - c) <= reach and sign[group] * sign[c] < 0 for c in chosen):
                chosen.append(int(group))
        return sorted(chosen)

    def _grown(self, chosen: list, found: dict, unknown: np.ndarray) -> list:
        """The chosen groups, and those beside them that deviate in the same cell to the same side by _NEAR.

        One of which too little is known, ``unknown`` (b, k), goes with those on both sides.
        """
        signed = np.concatenate([found[reason] for reason in (SCALE, RING, REGION)], axis=1)
        grown = set(chosen)
        for start in chosen:
            cell = int(np.abs(signed[start]).argmax())
            side = np.sign(signed[start, cell])
            for step in (-1, 1):
                group = start + step
                while 0 <= group < self.n_groups:
                    if side * signed[group, cell] >= _NEAR:
                        grown |= {group, group - step}
                    elif not unknown[group, cell] or unknown[group - step, cell]:
                        break
                    group += step
        return sorted(grown)

    def _rings(self) -> tuple:
        n = int(np.clip(len(self.z) / self.n_groups / _PER_RING, 1, _MOST_RINGS))
        edges = np.quantile(self.s, np.linspace(0, 1, n + 1))
        return (np.clip(np.searchsorted(edges, self.s, side="right") - 1, 0, n - 1), n), edges

    def _regions(self) -> tuple:
        if self.layout.n_panels > 1:
            return self.x[:, MODULE].astype(np.int64), self.layout.n_modules
        column, row = (
            np.clip(np.searchsorted(edges, self.x[:, c], side="right") - 1, 0, _ACROSS - 1)
            for c, edges in zip((X, Y), self._region_edges())
        )
        return row * _ACROSS + column, _ACROSS**2

    def _region_edges(self) -> tuple:
        """Limits of columns and rows of regions, about as many observations in each, as fractions of the detector."""
        return tuple(np.quantile(self.x[:, c], np.linspace(0, 1, _ACROSS + 1)) for c in (X, Y))

    def _cells(self, cell, n_cells: int) -> tuple:
        """Observations, mean z and relative excess of counts of each group (rows) and cell (columns)."""
        shape = self.n_groups, n_cells
        key, size = self.group * n_cells + cell, self.n_groups * n_cells
        n = np.bincount(key, minlength=size)
        mean = np.bincount(key, self.z, size) / np.maximum(n, 1)
        return n.reshape(shape), mean.reshape(shape), self._ratio(key, size).reshape(shape)

    def _unusual(self, cell, n_cells: int, least: float) -> np.ndarray:
        """(b, c) by how many times the spread between images the mean z deviates.

        0 where it does not matter, NaN where observations are too few.
        """
        n, mean, ratio = self._cells(cell, n_cells)
        result = np.full(n.shape, np.nan)
        for c in range(n_cells):
            used = n[:, c] >= _PER_CELL
            if np.count_nonzero(used) < _FEWEST_IMAGES:
                continue
            matters = used & (np.abs(ratio[:, c] - np.median(ratio[used, c])) > least)
            deviation = _deviation(mean[:, c], 1 / np.maximum(n[:, c], 1), used)
            result[used, c] = np.where(matters, deviation, 0.0)[used]
        return result

    def _everywhere(self, cell, n_cells: int, least: float) -> np.ndarray:
        """(b,) bool, do counts deviate in most cells? A shadow or a ring is not the whole image."""
        n, _, ratio = self._cells(cell, n_cells)
        used = n >= _PER_CELL
        own = np.where(used, ratio, np.nan)
        known = used.any(axis=0)
        usual = np.nanmedian(own[:, known], axis=0) if known.any() else 0.0
        many = used.sum(axis=1) > 2
        result = np.ones(self.n_groups, dtype=bool)
        result[many] = np.abs(np.nanmedian((own[:, known] - usual)[many], axis=1)) > least
        return result

    def _describe(self, group: int, reason: str, cell: int, usual: float, deviation: float, ring_edges) -> BadImage:
        images = self.images
        place, mine = {}, self.group == group
        if reason == RING:
            low, high = ring_edges[cell : cell + 2]
            place = {"d_max": float(1 / low), "d_min": float(1 / high)}
            mine &= (self.s >= low) & (self.s <= high)
        elif reason == REGION:
            mine &= self._regions()[0] == cell
            if self.layout.n_panels == 1:
                row, column = divmod(cell, _ACROSS)
                size = self.layout.size[self.number]
                place = {
                    name: tuple(round(edge * n) for edge in edges[at : at + 2])
                    for name, at, n, edges in zip("xy", (column, row), size, self._region_edges())
                }
        counts = float(1 + self.excess[mine].sum() / self.expected[mine].sum())
        if reason == SCALE and counts < _BLANK:
            reason = BLANK
        return BadImage(
            experiment=self.number,
            first=int(images.first[group]),
            last=int(images.last[group]),
            reason=reason,
            n=int(images.n[group]),
            chi2=float(images.chi2[group]),
            usual_chi2=usual,
            counts=counts,
            deviation=deviation,
            **place,
        )


def _deviation(values: np.ndarray, variance: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(b,) deviation from the median of those used, in units of their spread, or of the counting error if that is more.

    variance : (b,) of the values, from counting
    """
    offset = values - np.median(values[used])
    spread = (1.4826 * np.median(np.abs(offset[used]))) ** 2
    more = max(spread - float(np.median(variance[used])), 0.0)
    return np.where(used, offset / np.sqrt(variance + more + 1e-300), 0.0)
