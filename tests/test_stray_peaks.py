"""Peaks that no crystal predicts: found where they are, masked with their tails, named; nothing else is masked."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.jobs import job_of
from helpers.synthetic import experiment_list, make_crystal, make_detector, make_experiment, rotation
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size
from dials_diffuse.kernels import stray_peaks as kernel
from dials_diffuse.kernels.accumulate import Guard, Norm, is_outlier
from dials_diffuse.reduction.frames import empty_bragg, read_frame, shell_profile
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters
from dials_diffuse.reduction.stray_causes import ICE, LATTICE, OTHER, ZINGERS, turned_lattice, unpredicted_peaks
from dials_diffuse.reduction.stray_peaks import NONE, StrayPeaks, mask_stray

SIZE, N = (320, 300), 4
DETECTOR = make_detector(size=SIZE, pixel=0.15, distance=60.0)
CELL = (28, 32, 36)
CRYSTAL = make_crystal(CELL)
PROFILE = (0.17, 0.2)  # spots 1.2 pixels wide
MASKING = Masking(persistent=False)
Y, X = np.mgrid[: SIZE[1], : SIZE[0]]


def spot(x, y, photons, width=1.2, wing=0.0) -> np.ndarray:
    """Expected counts of a spot with a part of its photons in exponential wings."""
    r = np.hypot(X + 0.5 - x, Y + 0.5 - y)
    gaussian = np.exp(-0.5 * (r / width) ** 2) / (2 * np.pi * width**2)
    return photons * ((1 - wing) * gaussian + wing * np.exp(-r / 3) / (2 * np.pi * 9))


def expected_images(level=100.0, rough=0.2, crystals=(CRYSTAL,), seed=0) -> list:
    """Diffuse patterns of features some pixels wide, and the Bragg spots of crystals."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(N):
        pattern = gaussian_filter(rng.normal(size=Y.shape), 5, mode="wrap")
        result.append(level * np.maximum(1 + rough * pattern / pattern.std(), 0.1))
    for crystal in crystals:
        plain = make_experiment(detector=DETECTOR, n_images=N, crystal=crystal, profile=PROFILE)
        for x, y, z in predict_spots(plain, spot_size(plain), 2.0).centre:
            if 0 <= z < N:
                result[int(z)] += spot(x, y, rng.exponential(20000))
    return result


def experiment_of(expected, crystal=CRYSTAL, seed=1, identifier="first"):
    rng = np.random.default_rng(seed)
    images = [[rng.poisson(e).astype(np.int32)] for e in expected]
    return make_experiment(images, detector=DETECTOR, crystal=crystal, profile=PROFILE, identifier=identifier)


def found_on(job, image: int):
    """StrayPeaks of an image, and the (ny, nx) good pixels that are masked for them, and those that are not masked."""
    frame = read_frame(job, image, empty_bragg(job))
    before = frame.bragg[0].copy()
    peaks = mask_stray(job, frame, shell_profile(job, frame))
    masked, good = frame.bragg[0] == frame.number, job.bad[0] == 0
    return peaks, masked & (before != frame.number) & good, good & ~masked


def strange_places(job, image: int, n: int, seed=2) -> np.ndarray:
    """(n, 2) x and y far from each other, from the edges and from all lattice points."""
    rng, places = np.random.default_rng(seed), []
    while len(places) < n:
        x, y = rng.integers(30, np.array(SIZE) - 30)
        u = job.panels[0].directions[:, y, x]
        h = [m @ u - o for m, o in (job.scan.to_lattice(image + t, (1, 1, 1)) for t in np.linspace(-0.3, 1.3, 9))]
        far = np.abs(np.array(h) - np.rint(h)).max(axis=1).min() > 0.42
        if far and all(np.hypot(x - a, y - b) > 50 for a, b in places):
            places.append((x, y))
    return np.array(places) + 0.5


@pytest.fixture(scope="module")
def plain_job():
    return job_of(experiment_list(experiment_of(expected_images())), masking=MASKING)


def test_the_crystal_s_own_peaks_and_its_diffuse_scattering_stay(plain_job):
    """Spots, with masks that are too small for them, and features with a spread of 20 and 40 %, with outliers."""
    tight = Masking(n_sigma=1.5, persistent=False)
    rough = experiment_of(expected_images(level=400.0, rough=0.4))
    for job in (
        plain_job,
        *(job_of(experiment_list(e), masking=tight) for e in (rough, experiment_of(expected_images()))),
    ):
        for image in range(N):
            peaks, masked, _ = found_on(job, image)
            assert len(peaks) == 0 and peaks.pixels == 0 and not masked.any()


def test_strange_peaks_are_masked_with_their_tails(plain_job):
    """Outside the masks nothing is left of them that matters beside the diffuse scattering; weak ones take less."""
    expected = expected_images()
    places = strange_places(plain_job, 2, 6)
    photons = np.array([4e3, 1e4, 3e4, 1e5, 1e6, 3e6])
    added = [spot(x, y, p, wing=0.05) for (x, y), p in zip(places, photons)]
    expected[2] += np.sum(added, axis=0)
    job = job_of(experiment_list(experiment_of(expected)), masking=MASKING)
    peaks, masked, left = found_on(job, 2)
    assert len(peaks) == 6 and np.count_nonzero(masked) == peaks.pixels
    areas = []
    for (x, y), spot_counts in zip(places, added):
        near = np.hypot(X + 0.5 - x, Y + 0.5 - y) < 25
        areas.append(np.count_nonzero(masked & near))
        # 20 counts are the rms of the diffuse scattering
        ring = near & left
        assert spot_counts[ring].max() < 20 and spot_counts[ring].mean() < 3
    assert np.all(np.diff(areas[2:]) > 0) and max(areas[:3]) < 120
    for image in (0, 1, 3):
        assert not found_on(job, image)[1].any()


def test_candidates_are_what_the_outlier_guard_refuses(plain_job):
    """Pixel by pixel, against the definition."""
    expected = expected_images(level=30.0, rough=0.5)
    experiment = experiment_of([e + spot(200, 60, 5e4) for e in expected])
    job = job_of(experiment_list(experiment), masking=Masking(persistent=False, outlier_n_sigma=3.0))
    frame = read_frame(job, 1, empty_bragg(job))
    profile = shell_profile(job, frame)
    places = np.empty((Y.size, 2), dtype=np.int64)
    pixels, panel = frame.pixels(0, job.bad[0]), job.panels[0]
    norm, guard = Norm(job.corrections[0], job.exposure(1)), Guard(job.shells[0], profile.expected, profile.threshold)
    n = kernel.find_high(pixels, panel.reading, norm, guard, job.peak_tiles[0], places)
    wanted = np.zeros(Y.shape, dtype=bool)
    for y, x in zip(*np.nonzero((job.bad[0] == 0) & (frame.bragg[0] != frame.number))):
        shell = job.shells[0][y, x]
        m = profile.expected[shell] * job.corrections[0][y, x] * job.exposure(1)
        c = frame.raw[0][y, x]
        wanted[y, x] = c > m and profile.threshold[shell] >= 0 and is_outlier(float(c), m, profile.threshold[shell])
    got = np.zeros_like(wanted)
    got[tuple(places[:n].T)] = True
    np.testing.assert_array_equal(got, wanted)
    assert 20 < n < 2000


def test_where_nearly_all_is_strange_nothing_is_masked(plain_job):
    """As when the orientation is wrong: a mask of a fifth of the image would be no mask of strange peaks."""
    expected = expected_images()
    for x in range(8, SIZE[0], 13):
        for y in range(8, SIZE[1], 13):
            expected[0] += spot(x, y, 2e4)
    job = job_of(experiment_list(experiment_of(expected)), masking=MASKING, geometry_check="none")
    peaks, masked, _ = found_on(job, 0)
    assert peaks.given_up and len(peaks) > 300 and not masked.any() and peaks.pixels == 0


def turned(angle) -> object:
    """The crystal in another orientation."""
    turn = Rotation.from_rotvec(np.radians(angle) * np.array([0.6, -0.64, 0.48])).as_matrix()
    crystal = make_crystal(CELL)
    crystal.set_U(tuple((turn @ np.array(crystal.get_U()).reshape(3, 3)).ravel()))
    return crystal


@pytest.fixture(scope="module")
def two_lattices():
    return experiment_of(expected_images(crystals=(CRYSTAL, turned(4.0))))


def test_a_second_lattice_is_found_and_named(two_lattices, tmp_path):
    result = integrate(experiment_list(two_lattices), ReductionParameters(d_min=2.2), tmp_path / "a.h5", PROVENANCE)
    (report,) = result.experiments
    found = report.unpredicted_peaks
    assert found.images == N and found.peaks > 50 and found.many
    assert found.turn == pytest.approx(4.0, abs=0.4)
    assert found.kinds[LATTICE] > 0.8 * found.peaks
    assert any("turned by" in w and "max_lattices" in w for w in result.warnings)
    assert report.unpredicted == sum(report.images["unpredicted"]) > 0
    assert found.pixels == pytest.approx(report.unpredicted / (report.unpredicted + report.used))
    # with both crystals in the .expt there is nothing strange, and each is masked for the other
    both = experiment_list(two_lattices, experiment_of(expected_images(), turned(4.0), identifier="second"))
    both[1].imageset = both[0].imageset
    report = integrate(both, ReductionParameters(d_min=2.2), tmp_path / "b.h5", PROVENANCE, excluded=[(1, 1, N)])
    (both,) = report.experiments
    assert both.unpredicted_peaks.peaks < 0.05 * found.peaks and both.bragg > 1.5 * result.experiments[0].bragg
    # a person may not want it
    masking = Masking(unpredicted=False)
    plain = ReductionParameters(d_min=2.2, masking=masking)
    (report,) = integrate(experiment_list(two_lattices), plain, tmp_path / "c.h5", PROVENANCE).experiments
    assert report.unpredicted == 0 and report.unpredicted_peaks is None
    assert report.outlier > 2 * result.experiments[0].outlier


RECIPROCAL = rotation(5, 10, 15) @ np.diag([1 / 38, 1 / 44, 1 / 50])


def peaks_at(hkl, size=5) -> StrayPeaks:
    s = np.linalg.norm(hkl @ RECIPROCAL.T, axis=1)
    return StrayPeaks(hkl, s, np.full(len(hkl), size), np.full(len(hkl), 100.0), 10 * len(hkl))


def lattice_points(n, rng, angle=5.0) -> np.ndarray:
    """(n, 3) indices of peaks of a turned lattice, known to a quarter of a degree."""
    h = rng.integers(-16, 17, (4 * n, 3))
    h = h[np.abs(h).max(axis=1) > 0][:n]
    turns = (
        Rotation.from_rotvec(np.radians(rng.normal([3.0, 0.0, -4.0], 0.15, (n, 3)))) if angle else Rotation.identity(n)
    )
    return np.einsum("ij,nj->ni", np.linalg.inv(RECIPROCAL), turns.apply(h @ RECIPROCAL.T))


def test_the_turn_of_a_second_lattice():
    rng = np.random.default_rng(0)
    turn, match = turned_lattice(lattice_points(400, rng), RECIPROCAL)
    assert turn == pytest.approx(5.0, abs=0.3) and match.share > 0.9
    nothing = rng.uniform(-16, 16, (400, 3))
    assert turned_lattice(nothing, RECIPROCAL)[1].share < 0.2


def test_kinds_of_peaks():
    rng = np.random.default_rng(1)
    anywhere = rng.uniform(-14, 14, (60, 3))
    assert unpredicted_peaks([NONE, NONE], RECIPROCAL, 0.0).words == ""
    lattice = [peaks_at(part) for part in np.split(lattice_points(400, rng), 4)]
    zingers = peaks_at(anywhere[:20], size=1)
    mixed = unpredicted_peaks([*lattice, zingers], RECIPROCAL, 0.01)
    assert list(mixed.kinds) == [LATTICE, *(k for k in (ZINGERS, OTHER) if k in mixed.kinds)]
    assert mixed.kinds[ZINGERS] == 20 and mixed.kinds[LATTICE] > 350 and sum(mixed.kinds.values()) == mixed.peaks == 420
    assert mixed.images == 5 and mixed.per_image == [100] * 4 + [20] and mixed.many
    salt = unpredicted_peaks([peaks_at(part) for part in np.split(anywhere, 30)], RECIPROCAL, 0.001)
    assert salt.kinds == {OTHER: 60} and salt.turn is None
    direction = rng.normal(size=(60, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    rings = direction / rng.choice([3.895, 3.669, 3.441, 2.671, 2.249], (60, 1))
    iced = unpredicted_peaks([peaks_at(rings @ np.linalg.inv(RECIPROCAL).T)], RECIPROCAL, 0.001)
    assert iced.kinds[ICE] > 50 and not unpredicted_peaks([zingers, *[NONE] * 30], RECIPROCAL, 0.0).many
