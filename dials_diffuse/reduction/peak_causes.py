"""Why are spots not where they are predicted? Some mistakes that are made often, each tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from dxtbx.model import Crystal, Experiment, Goniometer

from dials_diffuse.reduction.peak_match import Move, Peaks, Predicted, best_shift, fit_move, hits, match

#: a cause explains so much of the peaks that it is named, and so much more than the models as they are
_EXPLAINS, _BETTER = 0.4, 0.2

#: explanations that differ by less are equally good
_ALIKE = 0.05

#: pixels by which the beam may be off, relative scales and angles (degrees) that are tried
_REACH = 60.0
_SCALES = np.linspace(-0.12, 0.12, 73)
_TURNS = np.linspace(-6.0, 6.0, 73)

#: peaks that are enough for a search
_FEW = 300

#: places in the scan at which each image is tried
_MOST_PLACES = 400

#: less than this of a change is none
_SMALL_SCALE, _SMALL_TURN = 0.002, 0.1


@dataclass(frozen=True)
class Cause:
    """A mistake that would explain the images: a share of the peaks is where spots are predicted without it."""

    share: float
    words: str


def likely_cause(
    experiment, peaks: Peaks, predicted: Predicted, radius: float, predict: Callable, flipped: Callable
) -> Cause | None:
    """The mistake that explains most of the peaks; None where none of those that are tried does.

    Parameters
    ----------
    radius : pixels, of the places where a spot may be
    predict : makes Predicted of an experiment with other models, or None
    flipped : makes Peaks of a flip of the images, ``fast`` or ``slow`` axis or ``both``, or None
    """
    now = match(peaks, predicted, radius)
    tried = [
        *_moves(peaks, predicted, radius),
        *_orders(peaks, predicted, radius, experiment.scan.get_num_images()),
        *_flips(predicted, radius, flipped),
        *_other_models(experiment, peaks, radius, predict),
    ]
    best = max((cause.share for cause in tried), default=0.0)
    if not best > max(now.surely_above + _BETTER, _EXPLAINS):
        return None
    return next(cause for cause in tried if cause.share > best - _ALIKE)  # the simplest comes first


def move_in_words(move: Move) -> str:
    """What is wrong if places have to be moved so."""
    parts = []
    if np.linalg.norm(move.shift) >= 0.5:
        x, y = move.shift
        parts.append(
            f"the beam centre seems to be off by {x:+.1f} pixels along the fast and {y:+.1f} along the slow axis"
        )
    if abs(move.scale) >= _SMALL_SCALE:
        parts.append(f"distance, wavelength or cell seem to be off by {100 * abs(move.scale):.1f} %")
    if abs(move.turn) >= _SMALL_TURN:
        parts.append(f"the crystal seems to be turned by {abs(move.turn):.1f} degrees about the beam")
    return " and ".join(parts) or "the pattern is distorted"


def _moves(peaks: Peaks, predicted: Predicted, radius: float) -> Iterator[Cause]:
    """Beam centre, distance or wavelength, turn about the beam."""
    none, few = np.zeros(2), peaks.few(_FEW)
    starts = [best_shift(peaks, predicted, _REACH)]
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    for kind, values in ((np.eye(2), _SCALES), (turn, np.radians(_TURNS))):
        moves = [Move(kind * value, none) for value in values]
        starts.append(max(moves, key=lambda m: hits(few, predicted, radius + 2, m)))
    for start in starts:
        move = fit_move(peaks, predicted, start)
        yield Cause(match(peaks, predicted, radius, move).share, move_in_words(move))


def _orders(peaks: Peaks, predicted: Predicted, radius: float, n: int) -> Iterator[Cause]:
    """Images that are elsewhere in the scan; n : images of the scan."""
    places = np.unique(np.linspace(0, n - 1, min(n, _MOST_PLACES)).astype(int))
    best = {}
    for image in np.unique(peaks.image):
        mine = peaks.some(peaks.image == image)
        found = [hits(mine, predicted, radius, images={int(image): int(j)}) for j in places]
        best[int(image)] = int(places[int(np.argmax(found))])
    share = match(peaks, predicted, radius, images=best).share
    images = np.array(list(best))
    steps = np.array(list(best.values()))
    if np.mean(np.abs(steps - images) <= 1) > 0.5:
        return
    if np.mean(np.abs(steps + images - (n - 1)) <= 1) > 0.5:
        words = "the images seem to be in reverse order, or the direction of rotation is wrong"
    elif np.mean(np.abs(steps - images - np.median(steps - images)) <= 1) > 0.5:
        words = f"the images seem to be {np.median(steps - images):+.0f} images away from their place in the scan"
    else:
        shown = ", ".join(f"image {i + 1} as image {j + 1}" for i, j in list(best.items())[:3])
        words = f"the images seem to be out of order ({shown})"
    yield Cause(share, words)


def _flips(predicted: Predicted, radius: float, flipped: Callable) -> Iterator[Cause]:
    for axis in ("fast", "slow", "both"):
        seen = flipped(axis)
        if seen is not None:
            name = "both axes" if axis == "both" else f"the {axis} axis"
            yield Cause(match(seen, predicted, radius).share, f"the images seem to be flipped along {name}")


def _other_models(experiment, peaks: Peaks, radius: float, predict: Callable) -> Iterator[Cause]:
    goniometer = experiment.goniometer
    reversed_axis = Goniometer(
        tuple(-np.array(goniometer.get_rotation_axis_datum())),
        goniometer.get_fixed_rotation(),
        goniometer.get_setting_rotation(),
    )
    tried = [(_with(experiment, goniometer=reversed_axis), "the rotation axis seems to point the other way")]
    axes = np.array([v for v in experiment.crystal.get_real_space_vectors()])
    for k, name in enumerate("xyz"):
        mirrored = axes * np.where(np.arange(3) == k, -1.0, 1.0)
        mirrored[2] *= -1  # the same lattice, right-handed again
        crystal = Crystal(*(tuple(v) for v in mirrored), experiment.crystal.get_space_group())
        tried.append((_with(experiment, crystal=crystal), f"the crystal seems to be mirrored along {name}"))
    for changed, words in tried:
        seen = predict(changed)
        if seen is not None:
            yield Cause(match(peaks, seen, radius).share, words)


def _with(experiment, goniometer=None, crystal=None) -> Experiment:
    return Experiment(
        beam=experiment.beam,
        detector=experiment.detector,
        goniometer=goniometer or experiment.goniometer,
        scan=experiment.scan,
        crystal=crystal or experiment.crystal,
        imageset=experiment.imageset,
        profile=experiment.profile,
    )
