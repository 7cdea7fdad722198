"""Which images are left out: refinement without those that do not agree, until none is found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from dials_diffuse.scaling.images import REASONS, SweepImages, check_images, image_number
from dials_diffuse.scaling.layout import Layout, T
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

logger = logging.getLogger("dials.diffuse.scaling")

#: refinements after the first
ROUNDS = 4

#: runs of images in a sentence
_SHOWN = 10


@dataclass(frozen=True)
class ImageDecision:
    """What became of the images.

    Attributes
    ----------
    bad : list of BadImage, in the order of sweeps and images
    left_out : were they left out?
    too_many : were they kept because they are too many of a sweep?
    rounds : refinements
    sweeps : list of SweepImages, bad ones as they were when they were found
    """

    bad: list
    left_out: bool
    rounds: int
    sweeps: list
    too_many: bool = False

    def rows(self, blocks, experiments) -> np.ndarray:
        """(n,) bool, observations in bad images; blocks : (first experiment of the file, {"experiment", "xyz"})."""
        parts = []
        for first, block in blocks:
            experiment, angle = block["experiment"] + first, block["xyz"][:, 2]
            hit = np.zeros(len(angle), dtype=bool)
            for number in {b.experiment for b in self.bad}:
                e = experiments[number]
                mine = np.flatnonzero(experiment == number)
                width = e.oscillation[1] * (e.image_range[1] - e.image_range[0] + 1)
                image = image_number((angle[mine] - e.oscillation[0]) / width, e) + e.image_range[0]
                hit[mine] = _hit(image, self.bad, number)
            parts.append(hit)
        return np.concatenate(parts)

    def used(self, experiments) -> tuple:
        """The ExperimentSummary of each sweep without the images that are left out."""
        lost = [sum(b.last - b.first + 1 for b in self.bad if b.experiment == k) for k in range(len(experiments))]
        if not self.left_out:
            return tuple(experiments)
        return tuple(replace(e, n_images_used=max(e.n_images_used - n, 0)) for e, n in zip(experiments, lost))

    def in_words(self, experiments) -> list:
        """Sentences for the user, one for each sweep with bad images."""
        result = []
        for number in sorted({b.experiment for b in self.bad}):
            mine = [b for b in self.bad if b.experiment == number]
            n = sum(b.last - b.first + 1 for b in mine)
            reasons = [f"{r} {sum(b.reason == r for b in mine)}" for r in REASONS if any(b.reason == r for b in mine)]
            runs = [f"{a}" if a == z else f"{a}-{z}" for e, a, z in self.runs() if e == number]
            shown = ", ".join(runs[:_SHOWN]) + (f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else "")
            end = "they are left out" if self.left_out else "they are kept (reject_images=none)"
            if self.too_many:
                end = "more than max_rejected_fraction of a sweep: the model does not describe it, and all are kept"
            result.append(
                f"sweep {number} ({experiments[number].identifier}): {n} images do not agree with the others "
                f"({', '.join(reasons)}): {shown}; {end}"
            )
        return result

    def runs(self) -> list:
        """(experiment, first, last) of bad images in sequence."""
        result: list = []
        for b in self.bad:
            if result and result[-1][0] == b.experiment and result[-1][2] == b.first - 1:
                result[-1] = (b.experiment, result[-1][1], b.last)
            else:
                result.append((b.experiment, b.first, b.last))
        return result

    def record(self) -> dict:
        """For ``output.json``."""
        images = [{**asdict(b), "words": b.words} for b in self.bad]
        return {"left_out": self.left_out, "too_many": self.too_many, "rounds": self.rounds, "bad": images}


def _hit(image: np.ndarray, bad: list, number: int) -> np.ndarray:
    result = np.zeros(len(image), dtype=bool)
    for b in bad:
        if b.experiment == number:
            result |= (image >= b.first) & (image <= b.last)
    return result


def refine_without_bad_images(
    data: Observations,
    layout: Layout,
    experiments,
    parameters: ScalingParameters,
    refined: Callable,
) -> tuple:
    """Refine, leave out images that do not belong, and refine again, until none is found.

    If more than the share ``parameters.max_rejected_fraction`` of a sweep is bad, the model lacks something that most
    images have, and none is left out.

    Parameters
    ----------
    refined : called with Observations and the Trial of the refinement before, None at first; returns a Refinement

    Returns
    -------
    Refinement, Observations without what was left out, ImageDecision
    """
    found: list = []
    tables: list = []
    rounds = 0
    all_of_them = None
    before = None
    while rounds <= ROUNDS:
        rounds += 1
        refinement = refined(data, before)
        before = refinement.trial
        all_of_them = all_of_them or (refinement, data)
        sweeps, new = check_images(refinement, data, layout, experiments, parameters.outlier_n_sigma)
        tables = [_with_earlier(now, before) for now, before in zip(sweeps, tables or sweeps)]
        found += new
        if not parameters.reject_images or not new:
            break
        if _too_many(found, experiments, parameters.max_rejected_fraction):
            found.sort(key=lambda b: (b.experiment, b.first))
            return *all_of_them, ImageDecision(found, False, rounds, tables, too_many=True)
        for b in new:
            text = f"{b.first}" if b.first == b.last else f"{b.first} to {b.last}"
            logger.info("sweep %d: image %s is left out: %s", b.experiment, text, b.words)
        data = data.some_rows(~rows_of_images(new, data, experiments))
    found.sort(key=lambda b: (b.experiment, b.first))
    return refinement, data, ImageDecision(found, parameters.reject_images, rounds, tables)


def rows_of_images(bad: list, data: Observations, experiments) -> np.ndarray:
    """(n,) bool, observations in some images; bad : list of BadImage"""
    hit = np.zeros(data.n, dtype=bool)
    for e, experiment in enumerate(experiments):
        mine = np.flatnonzero(data.experiment == e)
        image = image_number(data.coordinates[mine, T], experiment) + experiment.image_range[0]
        hit[mine] = _hit(image, bad, e)
    return hit


def _with_earlier(now: SweepImages, before: SweepImages) -> SweepImages:
    """Images that are gone as they were when they were there."""
    if len(now.n) != len(before.n):
        return now
    gone = (now.n == 0) & (before.n > 0)
    columns = {k: np.where(gone, getattr(before, k), getattr(now, k)) for k in ("n", "chi2", "counts")}
    return SweepImages(now.experiment, now.first, now.last, **columns)


def _too_many(bad: list, experiments, most: float) -> bool:
    """Is more than the share ``most`` of a sweep bad?"""
    for number, e in enumerate(experiments):
        n = sum(b.last - b.first + 1 for b in bad if b.experiment == number)
        if n > most * (e.image_range[1] - e.image_range[0] + 1):
            return True
    return False
