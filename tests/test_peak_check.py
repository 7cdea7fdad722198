"""Images that do not belong to the models are found out, with the reason; good and weak ones are not accused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from dxtbx.model import Crystal, Goniometer
from helpers.drawn import D_MIN, DISTANCE, MASKS, N_IMAGES, PIXEL, SIZE, drawn, moved_beam, true_experiment, turned
from helpers.jobs import job_of
from helpers.synthetic import GEOMETRIES, experiment_list, make_crystal, make_detector

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.detector import panel_geometry, s_magnitude
from dials_diffuse.experiment.peaks import beam_plane, find_peaks
from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size
from dials_diffuse.reduction.ice_rings import all_rings, in_rings
from dials_diffuse.reduction.peak_check import check_peaks
from dials_diffuse.reduction.peak_match import STAY, Move, Peaks, Predicted, best_shift, fit_move, match, of_hits
from dials_diffuse.reduction.peak_result import DOUBTFUL, GOOD, UNKNOWN, WRONG
from dials_diffuse.reduction.reduction_parameters import ReductionParameters


@pytest.fixture(scope="module")
def images():
    return drawn(true_experiment())


def checked(experiment, others=(), **parameters):
    """The check of an experiment; others : experiments on the same images"""
    options = {"masking": MASKS, "d_min": D_MIN, "subdivide": (1, 1, 1), "geometry_check": "warn", **parameters}
    job = job_of(experiment_list(experiment), **options)
    if not others:
        return job.peak_check
    own, *rest = (predict_spots(e, spot_size(e), D_MIN) for e in (experiment, *others))
    return check_peaks(job, experiment, own, rest)


def mirrored():
    axes = np.array(make_crystal((34, 41, 53), "P222").get_real_space_vectors()) * [1, -1, 1]
    return {"crystal": Crystal(tuple(axes[0]), tuple(axes[1]), tuple(-axes[2]), space_group_symbol="P222")}


def reordered(order):
    def change(images):
        return [images[k] for k in order]

    return change


#: what is wrong with the models (options of make_experiment) or the images (a function), and what is said of it
FAULTS = {
    "orientation 10 degrees": ({**turned(6, -7, 4)}, WRONG, "orientation that of this crystal"),
    "another crystal": ({"crystal": make_crystal((34, 41, 53), "P222", angles=(70, -20, 5))}, WRONG, "orientation"),
    "turned about the beam": (turned(0, 0, 1.5), DOUBTFUL, r"turned by 1\.\d degrees about"),
    "axis": ("axis", WRONG, "axis seems to point the other way"),
    "hand": (mirrored(), WRONG, "mirrored along y|flipped"),
    "wavelength": ("wavelength", WRONG, "distance, wavelength or cell seem to be off by [45]"),
    "distance": ({"detector": make_detector(size=SIZE, distance=1.05 * DISTANCE, pixel=PIXEL)}, WRONG, "off by [45]"),
    "cell": ({"crystal": make_crystal((35.2, 42.4, 54.8), "P222")}, WRONG, "off by 3"),
    "beam 4 pixels": (moved_beam(4, 0), WRONG, r"off by -4\.\d pixels along the fast"),
    "beam 20 pixels": (moved_beam(12, -16), WRONG, r"off by -1[12]\.\d pixels along the fast and \+1[56]"),
    "shuffled": (reordered(np.random.default_rng(0).permutation(N_IMAGES)), WRONG, "out of order"),
    "reversed": (reordered(range(N_IMAGES)[::-1]), WRONG, "reverse order"),
    "late": (reordered(np.roll(np.arange(N_IMAGES), 5)), WRONG, "-5 images away"),
    "flipped": (lambda images: [[p[:, ::-1] for p in image] for image in images], WRONG, "flipped along the fast"),
}


def faulty(images, fault):
    if callable(fault):
        return true_experiment(fault(images))
    if fault == "axis":
        experiment = true_experiment(images)
        experiment.goniometer = Goniometer((-1, 0, 0))
        return experiment
    if fault == "wavelength":
        experiment = true_experiment(images)
        experiment.beam.set_wavelength(1.05)
        return experiment
    return true_experiment(images, **fault)


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_named(images, name):
    fault, verdict, words = FAULTS[name]
    check = checked(faulty(images, fault))
    assert check.verdict == verdict
    assert re.search(words, check.words), check.words


def test_a_fault_is_an_error_that_says_how_to_go_on(images):
    experiment = faulty(images, moved_beam(12, -16))
    with pytest.raises(DiffuseError, match=r"experiment 0 .*beam.*pixels.*geometry\.check=warn"):
        checked(experiment, geometry_check="error")
    assert checked(experiment, geometry_check="none") is None


@pytest.mark.parametrize("name", ["good", *GEOMETRIES])
def test_good_images_are_good(name):
    options = {k: v for k, v in GEOMETRIES.get(name, {}).items() if k != "detector"}
    if "detector" in GEOMETRIES.get(name, {}):
        options["detector"] = make_detector(size=(120, 160), distance=DISTANCE, pixel=PIXEL, n_panels=2, tilted=True)
    check = checked(true_experiment(drawn(true_experiment(**options)), **options))
    assert check.verdict == GOOD and not check.words
    assert check.share > 0.9 and check.offset < 0.1 and check.n_peaks > 300


@pytest.mark.parametrize("photons", [0.0, 2.0])
@pytest.mark.parametrize("level", [0.05, 3.0, 100.0])
def test_images_without_visible_spots_are_not_accused(photons, level):
    check = checked(true_experiment(drawn(true_experiment(), photons, level)))
    assert check.verdict in (UNKNOWN, GOOD) and not check.words
    json.dumps(check.__dict__)


def test_weak_spots_are_enough(images):
    weak = drawn(true_experiment(), 8.0, 0.3)
    assert checked(true_experiment(weak)).verdict == GOOD
    assert checked(true_experiment(weak, **turned(6, -7, 4))).verdict in (WRONG, DOUBTFUL)


def test_ice_is_no_other_crystal(images):
    """Spots all over the rings of ice, three for each of the crystal."""
    panel = panel_geometry(true_experiment().detector[0])
    s0 = np.array(true_experiment().beam.get_s0())
    y, x = np.nonzero(in_rings(s_magnitude(panel.directions, s0), all_rings(D_MIN)))
    rng = np.random.default_rng(2)
    iced = [[image[0].copy()] for image in images]
    for image in iced:
        for k in rng.choice(len(x), 400, replace=False):
            image[0][y[k] : y[k] + 2, x[k] : x[k] + 2] += rng.poisson(
                80, image[0][y[k] : y[k] + 2, x[k] : x[k] + 2].shape
            )
    check = checked(true_experiment(iced))
    assert check.verdict == GOOD and check.share > 0.6


def test_two_crystals_on_the_same_images():
    angles = {"second": (50, 10, -40), "third": (-20, 70, 15)}
    crystals = {name: {"crystal": make_crystal((34, 41, 53), "P222", angles=a)} for name, a in angles.items()}
    second = true_experiment(**crystals["second"])
    both = drawn(true_experiment(), others=[second])
    check = checked(true_experiment(both), [second])
    assert check.verdict == GOOD and check.share > 0.8
    alone = checked(true_experiment(both))  # nobody told of the second one
    assert alone.verdict == DOUBTFUL and "another lattice" in alone.words
    assert checked(true_experiment(both, **crystals["third"]), [second]).verdict == WRONG


# ---- the parts


def test_peaks_of_a_known_image():
    rng = np.random.default_rng(1)
    counts = rng.poisson(4.0, (60, 70)).astype(float)
    counts[10:13, 20:23] += 80
    counts[40, 50] += 500  # one pixel is no peak
    good = np.ones(counts.shape, dtype=bool)
    where, strength = find_peaks(counts, good)
    np.testing.assert_allclose(where, [[21.5, 11.5]], atol=0.3)
    assert strength[0] > 700
    good[5:20, 15:30] = False
    assert len(find_peaks(counts, good)[0]) == 0


def test_places_are_those_on_a_detector_across_the_beam():
    detector = make_detector(size=SIZE, distance=DISTANCE, pixel=PIXEL, parallax=False)
    panel = detector[0]
    plane = beam_plane(detector, (0, 0, -1))
    x, y = np.random.default_rng(0).uniform(0, 200, (2, 30))
    lab = np.array([panel.get_pixel_lab_coord(p) for p in zip(x, y)])
    seen = plane.places(lab / np.linalg.norm(lab, axis=1, keepdims=True))
    np.testing.assert_allclose(seen, np.stack([x - SIZE[0] / 2, y - SIZE[1] / 2], axis=1), atol=1e-6)
    angles = np.radians(np.linspace(0, 179, 60))
    ray = np.stack([np.sin(angles), 0 * angles, -np.cos(angles)], axis=1)
    assert np.all(np.diff(np.abs(plane.places(ray)[:, 0])) > 0)  # also behind the sample


def pattern(n=400, n_images=4, seed=0):
    rng = np.random.default_rng(seed)
    place, image = rng.uniform(-150, 150, (n, 2)), rng.integers(0, n_images, n)
    return Predicted(place, image + 0.5, np.full(n, 0.4)), Peaks(image, place)


@pytest.mark.parametrize("scale, turn, shift", [(0.01, 0.0, (0, 0)), (0.0, 1.0, (1, -2)), (-0.012, 0.8, (0.5, 1.5))])
def test_a_move_is_found_again(scale, turn, shift):
    predicted, peaks = pattern()
    t = np.radians(turn)
    move = Move(np.array([[scale, t], [-t, scale]]), np.array(shift, dtype=float))
    noise = np.random.default_rng(3).normal(0, 0.2, peaks.place.shape)
    seen = Peaks(peaks.image, move.of(peaks.place) + noise)
    found = fit_move(seen, predicted)
    assert found.scale == pytest.approx(scale, abs=3e-4) and found.turn == pytest.approx(turn, abs=0.03)
    np.testing.assert_allclose(found.shift, shift, atol=0.05)
    assert match(seen, predicted, 1.0, found).share > 0.95
    again = fit_move(seen, predicted, found)  # nothing is left to be moved
    np.testing.assert_allclose(again.of(peaks.place), found.of(peaks.place), atol=0.05)


def test_a_shift_beyond_the_reach_of_the_fit():
    predicted, peaks = pattern()
    seen = Peaks(peaks.image, peaks.place + [31.0, -22.0])
    np.testing.assert_allclose(best_shift(seen, predicted, 60.0).shift, [31, -22], atol=2)


def test_peaks_anywhere_match_by_chance_only():
    predicted, _ = pattern()
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(40):
        peaks = Peaks(rng.integers(0, 4, 200), rng.uniform(-120, 120, (200, 2)))
        found = match(peaks, predicted, 4.0)
        shares.append(found.share / found.esd)
    assert abs(np.mean(shares)) < 3 / np.sqrt(40) and 0.5 < np.std(shares) < 1.6
    assert match(peaks, predicted, 4.0, STAY).chance == pytest.approx(400 / 4 * np.pi * 16 / 300**2, rel=0.2)


def test_no_peaks_are_no_share():
    assert not np.isfinite(of_hits(0, 0, 0.1).share)
    assert of_hits(50, 50, 0.0).esd > 0


def test_the_parameter_is_checked():
    with pytest.raises(DiffuseError, match=r"geometry\.check=perhaps"):
        replace(ReductionParameters(), geometry_check="perhaps")
