"""Do the images belong to the models? Peaks on a few images against the predicted spots, before anything takes long.

Source: docs/theory.md, Do the images belong to the models?
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.detector import s_magnitude
from dials_diffuse.experiment.images import image_mask, read_image
from dials_diffuse.experiment.peaks import BeamPlane, beam_plane, find_peaks, peak_places
from dials_diffuse.experiment.spot_prediction import PredictedSpots, predict_spots, spot_size
from dials_diffuse.reduction.ice_rings import all_rings, in_rings
from dials_diffuse.reduction.job import Job
from dials_diffuse.reduction.peak_causes import likely_cause, move_in_words
from dials_diffuse.reduction.peak_match import STAY, Peaks, Predicted, fit_move, match
from dials_diffuse.reduction.peak_result import DOUBTFUL, GOOD, UNKNOWN, WRONG, PeakCheck

#: images that are looked at, peaks on each that count, and how many of them tell something
N_IMAGES, _MOST_PEAKS, _FEWEST_PEAKS = 12, 400, 40

#: widths sigma_b and sigma_m in which a spot is looked for, and pixels for the width of a peak
_N_SIGMA, _PIXEL = 3.0, 1.0

#: shares of the peaks that are predicted, below which a sweep is doubtful, or not that of these models
_MOST, _HARDLY_ANY = 0.6, 1 / 3

#: pixels by which a pattern may be off, at least; DIALS refines to a fraction of one
_LEAST_OFFSET = 0.5

#: chance of a peak to lie where a spot is predicted, beyond which nothing can be said
_MOST_CHANCE = 0.8


def check_peaks(job: Job, experiment, own: PredictedSpots, others: list, reflections=None) -> PeakCheck:
    """Look for peaks on some images of a job, and compare them with predictions.

    Parameters
    ----------
    experiment : that of the job
    own : spots of its crystal; others : PredictedSpots of the other crystals on these images
    reflections : those of the experiment, for the size of spots where the profile model does not tell, or None

    Raises
    ------
    DiffuseError
        If an image cannot be read.
    """
    plane = beam_plane(experiment.detector, job.scan.s0_at(job.scan.n_images / 2))
    sigma = float(np.median(own.sigma_b)) * plane.pixels if len(own) else 0.0
    radius = _N_SIGMA * sigma + _PIXEL
    chosen = job.images[np.unique(np.linspace(0, len(job.images) - 1, N_IMAGES).astype(int))]
    rings = all_rings(1 / job.shell_limit)
    found = [_found(job, int(image), rings) for image in chosen]
    peaks = _without(_as_peaks(experiment, plane, found), [_predicted(o, plane) for o in others], radius)
    predicted = _predicted(own, plane)
    as_it_is = match(peaks, predicted, radius)
    move = fit_move(peaks, predicted) if len(peaks) >= _FEWEST_PEAKS else STAY
    moved = match(peaks, predicted, radius, move)
    offset = math.sqrt(np.mean(np.sum((move.of(peaks.place) - peaks.place) ** 2, axis=1))) if len(peaks) else 0.0
    verdict, words = GOOD, ""
    counted = f"of {len(peaks)} peaks on {len(chosen)} images {100 * max(as_it_is.share, 0):.0f} %"
    if len(peaks) < _FEWEST_PEAKS or as_it_is.chance > _MOST_CHANCE:
        verdict = UNKNOWN
    elif moved.surely_below < _MOST:

        def predict(other):
            try:
                return _predicted(predict_spots(other, spot_size(other, reflections), job.grid.d_min), plane)
            except DiffuseError:  # none at all
                return None

        def flipped(axis):
            if len(experiment.detector) > 1:
                return None
            return _as_peaks(experiment, plane, [_flipped(f, job.panels[0].shape, axis) for f in found])

        cause = likely_cause(experiment, peaks, predicted, radius, predict, flipped)
        verdict = WRONG if cause is not None or moved.surely_below < _HARDLY_ANY else DOUBTFUL
        words = f"{counted} are where spots are predicted, chance taken off: "
        if cause is not None:
            words += f"{cause.words}, for then it would be {100 * cause.share:.0f} %"
        elif verdict == WRONG:
            words += "is the orientation that of this crystal, and are these its images?"
        else:
            words += "is there another lattice, or ice, or is the orientation not right?"
    elif offset > max(_LEAST_OFFSET, sigma):
        outside_mask = job.parameters.masking.fixed_n_sigma * sigma + 0.5
        verdict = WRONG if offset > outside_mask else DOUBTFUL
        words = (
            f"spots are {offset:.1f} pixels (rms) from where they are predicted, their own width is {sigma:.1f}: "
            f"{move_in_words(move)}"
        )
    return PeakCheck(
        n_images=len(chosen),
        n_peaks=len(peaks),
        share=as_it_is.share,
        esd=as_it_is.esd,
        chance=as_it_is.chance,
        offset=offset,
        shift=tuple(float(x) for x in move.shift),
        scale=move.scale,
        turn=move.turn,
        spot_sigma=sigma,
        verdict=verdict,
        words=words,
    )


def _found(job: Job, image: int, rings: list) -> tuple:
    """(image, [(n, 2) positions of the strongest peaks of each panel]), but for those where ice has rings."""
    s0 = job.scan.s0_at(image + 0.5)
    masks, positions = image_mask(job.imageset, image), []
    for p, (values, panel) in enumerate(zip(read_image(job.imageset, image), job.panels)):
        good = (job.bad[p] == 0) & panel.reading.trusted(values)
        if masks is not None:
            good &= masks[p]
        where, strength = find_peaks(panel.reading.counts(values), good)
        x, y = where.astype(int).T
        no_ice = ~in_rings(s_magnitude(panel.directions[:, y, x], s0), rings)
        where, strength = where[no_ice], strength[no_ice]
        positions.append(where[np.argsort(-strength, kind="stable")[:_MOST_PEAKS]])
    return image, positions


def _flipped(found: tuple, shape: tuple, axis: str) -> tuple:
    image, (where,) = found
    size = np.array(shape[::-1], dtype=float)
    sign = {"fast": (True, False), "slow": (False, True), "both": (True, True)}[axis]
    return image, [np.where(sign, size - where, where)]


def _as_peaks(experiment, plane: BeamPlane, found: list) -> Peaks:
    image, place = [np.zeros(0, int)], [np.zeros((0, 2))]
    for number, positions in found:
        for p, where in enumerate(positions):
            if len(where):
                place.append(peak_places(experiment, plane, p, where))
                image.append(np.full(len(where), number))
    return Peaks(np.concatenate(image), np.concatenate(place))


def _predicted(spots: PredictedSpots, plane: BeamPlane) -> Predicted:
    return Predicted(plane.places(spots.direction), spots.centre[:, 2], 0.5 + _N_SIGMA * spots.sigma_z)


def _without(peaks: Peaks, others: list, radius: float) -> Peaks:
    """The peaks that no other crystal on the images has."""
    keep = np.ones(len(peaks), dtype=bool)
    for other in others:
        for image in np.unique(peaks.image):
            places = other.on(int(image))
            if len(places):
                mine = np.flatnonzero(peaks.image == image)
                keep[mine] &= cKDTree(places).query(peaks.place[mine])[0] >= radius
    return peaks.some(keep)
