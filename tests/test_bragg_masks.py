"""Bragg masks that follow the peaks: profile with tails, intensities, radii, and what leaks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cctbx import sgtbx
from helpers.jobs import job_of, poisson_images
from helpers.synthetic import experiment_list, make_detector, make_experiment
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.bragg_photons import BraggPhotons
from dials_diffuse.experiment.detector import panel_geometry
from dials_diffuse.experiment.spot_prediction import PredictedSpots, predict_spots, spot_size
from dials_diffuse.kernels import accumulate as kernel
from dials_diffuse.kernels.image import Outlines, paint_outlines
from dials_diffuse.kernels.spot_bins import N_SUMS
from dials_diffuse.reduction.diffuse_level import DiffuseLevel
from dials_diffuse.reduction.frames import empty_bragg, read_frame, shell_profile
from dials_diffuse.reduction.reduction_parameters import Masking
from dials_diffuse.reduction.sample import believable
from dials_diffuse.reduction.spot_mask import UNSURE, AdaptiveMask
from dials_diffuse.reduction.spot_photons import SpotPhotons, spot_photons
from dials_diffuse.reduction.spot_profile import N_SECTORS, RING_EDGES, SpotSums, fit_profiles
from dials_diffuse.reduction.survey import SpotSurvey
from dials_diffuse.reduction.voxel_sums import Tables, VoxelTable, _sub_steps, add_frame

RING = 0.5 * (RING_EDGES[1:] + RING_EDGES[:-1])
RING_AREA = math.pi / N_SECTORS * np.diff(RING_EDGES**2)
PIXEL = 0.3  # squared units


def gaussian(x, y):
    return np.exp(-0.5 * (x**2 + y**2)) / (2 * math.pi)


def with_tail(x, y):
    """A tenth of the photons in the wings of the detector's point spread."""
    return 0.9 * gaussian(x, y) + 0.1 * np.exp(-np.hypot(x, y) / 1.5) / (2 * math.pi * 1.5**2)


def split(x, y):
    """A second crystal at the third sector, 5 units away."""
    return 0.7 * gaussian(x, y) + 0.3 * gaussian(x, y - 5)


def sums_of(profile, n=600, sigma_m=1.0, halo=0.0, seed=0) -> SpotSums:
    """Binned counts of reflections with a profile, a Gaussian rocking curve and a diffuse halo that follows them."""
    rng = np.random.default_rng(seed)
    photons = rng.exponential(2e5, n)
    low = rng.uniform(-7, 3, n)
    high = low + 4
    part = ndtr(high / sigma_m) - ndtr(low / sigma_m)
    # the mean over a ring of a sector, on a fine raster
    r = np.linspace(RING_EDGES[:-1], RING_EDGES[1:], 21)[:, :, None, None]
    t = (np.arange(N_SECTORS) + np.linspace(-0.5, 0.5, 21)[:, None]) * 2 * math.pi / N_SECTORS
    density = np.sum(profile(r * np.cos(t), r * np.sin(t)) * r, axis=(0, 2)).T / np.sum(r, axis=0)[:, 0].T / 21
    pixels = np.tile(RING_AREA / PIXEL, (n, N_SECTORS, 1))
    reach = np.hypot(RING[None], 0.4 * np.abs(low + high)[:, None] / 2)
    diffuse = halo * photons[:, None, None] * np.exp(-((reach / 12) ** 2))[:, None] * pixels
    usual = 100.0 * pixels
    counts = rng.poisson(usual + diffuse + photons[:, None, None] * part[:, None, None] * density * PIXEL * pixels)
    sums = np.zeros((n, N_SECTORS, len(RING), N_SUMS))
    sums[..., 0], sums[..., 1], sums[..., 2] = pixels, counts - usual, usual
    return SpotSums(sums, photons, low, high, np.full(n, PIXEL), photons, reach)


def raster(limit=40.0, step=0.05):
    x = np.arange(-limit, limit, step) + step / 2
    return np.meshgrid(x, x), step**2


def beyond(profile, radius) -> float:
    """Integral of a profile outside an outline, by brute force; radius : (N_SECTORS,)"""
    (x, y), area = raster()
    turn = np.arctan2(y, x) / (2 * math.pi) * N_SECTORS
    limit = np.interp(turn % N_SECTORS, np.arange(N_SECTORS + 1), [*radius, radius[0]])
    return float(np.sum(profile(x, y)[np.hypot(x, y) > limit]) * area)


@pytest.mark.parametrize("profile", [gaussian, with_tail, split], ids=lambda f: f.__name__)
def test_the_profile_and_what_lies_outside_it(profile):
    (fitted,) = fit_profiles([sums_of(profile)])
    assert fitted.outside(np.zeros((1, N_SECTORS)))[0] == pytest.approx(1, rel=0.1)
    previous = np.zeros(N_SECTORS)
    for density in (1e-2, 1e-3, 1e-4, 1e-5):
        radius = fitted.radius(np.array([density]))
        assert np.all(radius[0] > previous)  # a stronger spot takes more
        previous = radius[0]
        # where the mask ends, the true density is the wanted one: a ring's width of half a unit apart
        angle = np.arange(N_SECTORS) * 2 * math.pi / N_SECTORS
        for r, t in zip(radius[0], angle):
            assert profile((r + 0.5) * math.cos(t), (r + 0.5) * math.sin(t)) < density
        true = beyond(profile, radius[0])
        # tails that were not seen are taken for exponential ones, which is never much too little
        assert 0.6 * true - density < fitted.outside(radius)[0] < 2.5 * true + 6 * density


@pytest.mark.parametrize("profile", [gaussian, with_tail], ids=lambda f: f.__name__)
def test_what_is_expected_where_nothing_was_seen_is_what_is_there(profile):
    """Masks are made for tails that go on as they fell; what is subtracted is right in the mean, and less than that."""
    fitted = fit_profiles([sums_of(profile, n=200), sums_of(profile, n=200, seed=1)])
    assert len({p.decay for p in fitted}) == 1 and fitted[0].decay >= 0
    fine = np.arange(0, 13, 0.01) + 0.005
    for p in fitted:
        assert np.all(p.log_expected <= p.log_density) and np.all(np.diff(p.log_expected, axis=1) < 0)
        amounts = np.zeros(3)
        for end, *rows in zip(p.measured_to, p.log_expected, p.log_density):
            r = fine[fine > end]
            amounts += [np.sum(v * r) for v in (profile(r, 0), *(np.exp(np.interp(r, p.distance, x)) for x in rows))]
        true, expected, limit = amounts
        assert expected == pytest.approx(true, rel=0.2)
        assert profile is with_tail or abs(expected - true) < 0.5 * (limit - true)


def test_a_wing_makes_masks_larger_and_a_split_spot_makes_them_lopsided():
    fits = {f: fit_profiles([sums_of(f)])[0] for f in (gaussian, with_tail, split)}
    density = np.array([1e-4])
    plain, wing, two = (fits[f].radius(density)[0] for f in (gaussian, with_tail, split))
    np.testing.assert_allclose(plain, math.sqrt(-2 * math.log(2 * math.pi * 1e-4)), atol=0.4)
    np.testing.assert_allclose(wing, -1.5 * math.log(1e-4 * 2 * math.pi * 1.5**2 / 0.1), atol=0.6)
    np.testing.assert_allclose(two[[5, 6, 7]], plain[[5, 6, 7]], atol=0.4)
    assert two[2] > plain[2] + 4


@pytest.mark.parametrize("sigma_m", [0.7, 1.0, 1.4])
def test_the_rocking_curve(sigma_m):
    (fitted,) = fit_profiles([sums_of(gaussian, sigma_m=sigma_m)])
    for low, high in ((-4, 0), (-0.5, 3.5), (1, 5), (2, 6)):
        true = ndtr(high / sigma_m) - ndtr(low / sigma_m)
        assert fitted.part(np.array([low]), np.array([high]))[0] == pytest.approx(true, rel=0.25, abs=0.02)


def test_a_diffuse_halo_is_no_tail():
    """It is 30 times what may leak, and hardly widens the mask."""
    density = np.array([1e-5])
    plain = fit_profiles([sums_of(gaussian)])[0].radius(density)
    halo = fit_profiles([sums_of(gaussian, halo=3e-4 * PIXEL)])[0].radius(density)
    assert np.abs(halo - plain).max() < 1.0


def spots_of(hkl, z=None, panel=0, centre=(90.0, 100.0)) -> PredictedSpots:
    """Reflections that differ only in their index and image position."""
    n = len(hkl)
    return PredictedSpots(
        panel=np.full(n, panel),
        centre=np.column_stack([np.tile(centre, (n, 1)), np.full(n, 0.5) if z is None else z]),
        direction=np.tile([0.0, 0.0, 1.0], (n, 1)),
        sigma_b=np.full(n, 0.01),
        sigma_z=np.full(n, 0.2),
        hkl=np.asarray(hkl, dtype=np.int32),
        axes=np.tile(np.eye(3)[:2], (n, 1, 1)),
        s=np.linalg.norm(hkl, axis=1) / 50.0,
        speed=np.full(n, 0.3),
    )


@pytest.fixture(scope="module")
def gaussian_profile():
    return fit_profiles([sums_of(gaussian)])[0]


def mask_of(profile, strength, unit=0.01) -> AdaptiveMask:
    """Reflections of one profile; ``unit`` radians, and a pixel may have 3 photons of each."""
    n = len(strength)
    return AdaptiveMask([profile], np.empty(0), np.zeros(n, int), np.full(n, unit), strength, 3 * strength)


def test_a_reflection_takes_what_its_intensity_demands(gaussian_profile):
    """Pixel by pixel: outside its mask no pixel has more than it may, and a weak reflection has no mask."""
    strength = np.array([0.5, 2.0, 50.0, 1e4, 1e6])
    spots = spots_of(np.arange(15).reshape(5, 3) + 1)
    mask = mask_of(gaussian_profile, strength * 2 * math.pi)
    chosen, radius = mask.radii(spots, 0)
    assert list(chosen) == [1, 2, 3, 4]
    np.testing.assert_array_equal(mask.masked(spots), [False, True, True, True, True])
    leak = mask.leak(spots, 0)
    for i, row in zip(chosen, radius):
        weight = mask.weights(spots, 0)[i] * mask.strength[i]
        for k in range(0, N_SECTORS, 2):  # the true profile at the outline
            assert weight * gaussian(row[k] / 0.01 + 0.5, 0) < 1
        true = weight * beyond(gaussian, row / 0.01)
        assert 0.6 * true - 1 < leak[i] < 2.5 * true + 10
    assert np.all(np.diff(radius.mean(axis=1)) > 0)
    # on the next image little is left of them: only the strongest matter
    assert set(mask.radii(spots, 1)[0]) < set(chosen)
    assert np.all(mask.total_leak(spots, 3) >= leak)


def test_outlines_are_painted_as_they_are_told():
    """Every pixel against the definition: radii at the sectors' angles, linear between."""
    panel = panel_geometry(make_detector(size=(80, 70), distance=100.0, pixel=0.1)[0])
    directions = panel.directions
    centre = np.array([[40.3, 30.8]])
    u = directions[:, 30, 40] / np.linalg.norm(directions[:, 30, 40])
    e1 = np.cross(u, [0.0, 1.0, 0.0])
    e1 /= np.linalg.norm(e1)
    axes = np.array([[e1, np.cross(u, e1)]])
    radius = np.array([[5, 9, 3, 4, 12, 2, 8, 7.0]]) * 1e-3
    found = np.zeros(panel.shape, dtype=np.int32)
    paint_outlines(found, 7, directions, Outlines(centre, axes, radius, np.array([30.0])))
    e = np.tensordot(axes[0], directions, 1)
    turn = np.arctan2(e[1], e[0]) / (2 * math.pi) * N_SECTORS % N_SECTORS
    limit = np.interp(turn, np.arange(N_SECTORS + 1), [*radius[0], radius[0, 0]])
    np.testing.assert_array_equal(found == 7, np.hypot(*e) <= limit)
    assert 50 < np.count_nonzero(found) < 400


def measured_as(spots, photons, sigma) -> BraggPhotons:
    n = len(spots)
    return BraggPhotons(
        spots.hkl, np.zeros(n), spots.centre, spots.direction, spots.s, photons, sigma**2, spots.speed, None
    )


def take(table, rows):
    return replace(table, **{k: v[rows] for k, v in vars(table).items() if isinstance(v, np.ndarray)})


def test_reflections_that_were_not_measured_get_a_prediction():
    """From mates where there are any, else from Wilson's distribution; bad ones are at least as strong as they look."""
    rng = np.random.default_rng(1)
    h = np.array([(h, k, m) for h in range(1, 8) for k in range(1, 8) for m in range(1, 8)])
    both = np.concatenate([h, -h])
    f2 = rng.exponential(1000, len(h))
    factor = rng.uniform(0.5, 2, len(both))
    photons = np.tile(f2, 2) * factor
    spots = spots_of(both)
    group = sgtbx.space_group_info("P1").group()
    measured = np.ones(len(both), dtype=bool)
    measured[[0, 1, 1 + len(h), 2]] = False  # one of a pair; both of a pair; a bad one, stronger than its mate
    sigma = np.full(len(both), 3.0)
    everything = measured_as(spots, np.where(np.arange(len(both)) == 2, 5 * photons, photons), sigma)
    good = take(everything, measured)
    bad = take(everything, measured | (np.arange(len(both)) == 2))
    result = spot_photons(spots, good, bad, factor, group)
    assert (result.measured, result.mates, result.wilson) == (len(both) - 4, 2, 2)
    np.testing.assert_allclose(result.expected[[1, 1 + len(h)]], result.photons[[1, 1 + len(h)]] / 3)
    np.testing.assert_array_equal(result.expected[2:50], result.photons[2:50])
    strong = measured & (photons > 15 * 3)
    np.testing.assert_allclose(result.photons[strong], photons[strong])
    assert result.photons[0] == pytest.approx(photons[0], rel=0.1)
    assert result.photons[2] == pytest.approx(5 * photons[2])
    for i in (1, 1 + len(h)):
        assert result.photons[i] / factor[i] == pytest.approx(3 * 1000, rel=0.6)


def test_weak_intensities_are_those_of_french_and_wilson():
    """Measured as 0 +- 30 where 1000 is usual: an exponential prior hardly matters, and the mean is 0.8 sigma."""
    h = np.arange(1, 601).reshape(200, 3)
    spots = spots_of(h)
    photons = np.random.default_rng(2).exponential(1000, 200)
    photons[::10] = 0.0
    measured = measured_as(spots, photons, np.full(200, 30.0))
    result = spot_photons(spots, measured, measured, np.ones(200), sgtbx.space_group_info("P1").group())
    np.testing.assert_allclose(result.photons[::10], 30 * math.sqrt(2 / math.pi), rtol=0.1)


@pytest.mark.parametrize("rms", [0.0, 0.03, 0.1])
def test_the_diffuse_level_is_that_of_the_images(rms):
    """A pattern of known variance on flat images, of features six pixels wide; counting noise is twice as large."""
    detector = make_detector(size=(200, 180), pixel=0.2)
    rng = np.random.default_rng(3)
    images = []
    for _ in range(6):
        pattern = gaussian_filter(rng.normal(size=(180, 200)), 6, mode="wrap")
        images.append([rng.poisson(200 * (1 + rms * pattern / pattern.std())).astype(np.int32)])
    job = job_of(experiment_list(make_experiment(images, detector=detector)), masking=Masking(False, persistent=False))
    level = DiffuseLevel(job.sample, job.panels, job.scan.s0_at(3), job.shell_limit)
    bragg = empty_bragg(job)
    for image in range(6):
        frame = read_frame(job, image, bragg)
        centre, _ = job.sample.statistics(frame, job.panels, 1.0)
        level.add(frame, job.bad, job.corrections, 1.0, centre)
    found = np.sqrt(np.mean(level.rms() ** 2))
    if rms:
        # partners three pixels apart share exp(-3²/(4 6²)) of the variance
        assert found == pytest.approx(rms * math.exp(-9 / 288), rel=0.12)
    else:
        assert found < 0.015


def test_spots_beyond_the_edge_of_a_panel_are_predicted():
    """Their tails lie on it. Inside the edges nothing changes, and between two panels a spot comes for both."""
    for n_panels in (1, 2):
        detector = make_detector(size=(200, 180), pixel=0.2, n_panels=n_panels, tilted=n_panels > 1)
        experiment = make_experiment(detector=detector, n_images=6, kappa=True)
        size = spot_size(experiment)
        inside, more = (predict_spots(experiment, size, 2.5, margin=m) for m in (0, 12))
        limits = np.array([detector[int(p)].get_image_size() for p in more.panel])
        outside = np.maximum(-more.centre[:, :2], more.centre[:, :2] - limits).max(axis=1)
        assert 0 < outside.max() < 12 and np.count_nonzero(outside > 1) > 20

        def rows(spots):
            return {(p, *h, round(z, 3)): xy for p, h, (*xy, z) in zip(spots.panel, spots.hkl, spots.centre)}

        mine, theirs = rows(more), rows(inside)
        assert len(mine) == len(more)
        for key, xy in theirs.items():
            np.testing.assert_allclose(mine[key], xy, atol=1e-6)


def tails_job(profile):
    """A job on weak images in which two reflections leave something in pixels that they share."""
    detector = make_detector(size=(60, 50), distance=100.0, pixel=0.3)
    experiments = experiment_list(make_experiment(poisson_images(detector, 3, 9.0), detector=detector, n_images=3))
    job = job_of(experiments, masking=Masking(bragg=False, persistent=False, outlier_n_sigma=3.5))
    spots = spots_of([(1, 2, 3), (3, 1, 2)], centre=(30.0, 24.0), z=np.array([1.4, 1.2]))
    spots.centre[1, :2] += [5.0, 2.0]
    for i, (x, y) in enumerate(spots.centre[:, :2].astype(int)):
        # not the middle of a pixel: there the sector would be a matter of rounding
        u = job.panels[0].directions[:, y, x : x + 2] @ [0.7, 0.3]
        first = np.cross(u, [0.0, 1.0, 0.0]) / np.linalg.norm(np.cross(u, [0.0, 1.0, 0.0]))
        spots.axes[i] = first, np.cross(u, first)
    return replace(job, spots=[spots], masks=[mask_of(profile, np.array([800.0, 300.0]), unit=0.004)])


def test_tails_are_a_background_of_the_voxels_that_have_their_pixels(gaussian_profile):
    """Pixel by pixel, with the tails as a background that has a value for each pixel."""
    job, together = tails_job(gaussian_profile), 0
    (spots,), (mask,), panel = job.spots, job.masks, job.panels[0]
    expected, without = np.zeros(panel.shape), replace(job, masks=[None], spots=[take(spots, slice(0, 0))])
    bragg = empty_bragg(job)
    for image in range(3):
        frame = read_frame(job, image, bragg)
        profile = shell_profile(job, frame)
        tables, plain = Tables(job), Tables(job)
        add_frame(job, frame, profile, tables, np.zeros(5, np.int64))
        add_frame(without, frame, profile, plain, np.zeros(5, np.int64))
        (keys, sums), (other, bare) = tables.sorted_rows(), plain.sorted_rows()
        np.testing.assert_array_equal(keys, other)
        expected[:] = 0
        chosen, counts, reach = mask.tails(spots, image)
        for i, c, r in zip(chosen, counts, reach):
            e = np.tensordot(spots.axes[i], panel.directions, 1)
            d = np.hypot(*e) / 0.004
            turn = np.arctan2(e[1], e[0]) / (2 * math.pi) * N_SECTORS
            sector = np.floor(turn).astype(int) % N_SECTORS
            row = [np.interp(d, gaussian_profile.distance, x) for x in gaussian_profile.log_density]
            here, after = (np.choose(s, row) for s in (sector, (sector + 1) % N_SECTORS))
            part = turn - np.floor(turn)
            expected += np.where(d * 0.004 <= r, c * np.exp((1 - part) * here + part * after), 0)
        slow = VoxelTable(job.grid.extent)
        _, n = kernel.accumulate(
            frame.pixels(0, job.bad[0]),
            panel.reading,
            kernel.Norm(job.corrections[0], job.exposure(image) * profile.flux),
            kernel.Guard(job.shells[0], profile.expected / profile.flux, profile.threshold),
            kernel.BackgroundBlocks(expected, expected, 1),
            kernel.View(panel.directions, np.array([0.5, 0.5]), 1.0),
            _sub_steps(job, image),
            slow.rows,
            0,
            0,
            image % 2 == 1,
            0,
            np.zeros(5, np.int64),
        )
        slow.n_rows = n
        true_keys, true = slow.sorted_rows()
        np.testing.assert_array_equal(keys, true_keys)
        half = kernel.ODD * (image % 2)
        used = true[:, half + kernel.BACKGROUND]
        together = max(together, np.count_nonzero(used > 0.01) if len(chosen) == 2 else 0)
        np.testing.assert_allclose(sums[:, half + kernel.BACKGROUND], used, rtol=1e-9, atol=1e-9)
        rate = bare[:, half + kernel.RATE] - sums[:, half + kernel.RATE]
        slow_rate = bare[:, half + kernel.RATE] - true[:, half + kernel.RATE]
        np.testing.assert_allclose(rate, slow_rate, rtol=1e-6, atol=1e-6 * max(slow_rate.max(), 1))
        np.testing.assert_allclose(sums[:, kernel.BACKGROUND_SIGMA], UNSURE * used, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(sums[:, half + kernel.COUNTS], bare[:, half + kernel.COUNTS])
    assert together > 5


def test_only_measured_reflections_tell_the_profile():
    """Neither those whose intensity is assumed, which may look the strongest, nor those beyond the edge."""
    job = tails_job(fit_profiles([sums_of(gaussian)])[0])
    spots = spots_of(np.arange(12).reshape(4, 3) + 1, centre=(30.0, 24.0), z=np.full(4, 1.5))
    spots.centre[2, 0] = -3.0
    certain = np.array([True, False, True, True])
    photons = np.array([1e4, 1e6, 1e5, 1e3])
    survey = SpotSurvey(spots, SpotPhotons(photons, photons, certain, 3, 0, 1), job)
    frame = read_frame(replace(job, spots=[], masks=[]), 1, empty_bragg(job))
    survey.add(frame, job.bad, [np.full(p.shape, 9.0, dtype=np.float32) for p in job.panels])
    assert {int(i) for rows, *_ in survey.pairs for i in rows} == {0, 3}


def test_spots_of_another_crystal_do_not_tell_the_profile():
    """Their pixels, and only these, are left out of the sums about a spot."""
    job = tails_job(fit_profiles([sums_of(gaussian)])[0])
    spots = spots_of(np.arange(3).reshape(1, 3) + 1, centre=(30.0, 24.0), z=np.full(1, 1.5))
    photons = np.array([1e4])
    frame = read_frame(replace(job, spots=[], masks=[]), 1, empty_bragg(job))
    expected = [np.full(p.shape, 9.0, dtype=np.float32) for p in job.panels]
    other = np.zeros(job.panels[0].shape, dtype=bool)
    other[20:28, 34:60] = True
    found = []
    for of_others in (None, [other], [~other]):
        survey = SpotSurvey(spots, SpotPhotons(photons, photons, np.array([True]), 1, 0, 0), job)
        survey.add(frame, job.bad, expected, of_others)
        ((_, sums, *_),) = survey.pairs
        found.append(sums)
    everything, without, only = found
    assert 0 < without[..., 0].sum() < everything[..., 0].sum()
    np.testing.assert_allclose(without + only, everything)


def test_a_fixed_mask_is_that_of_a_given_radius():
    assert Masking().follows_peaks and Masking().fixed_n_sigma == 3
    assert not Masking(adaptive=False).follows_peaks
    assert not Masking(n_sigma=4.0).follows_peaks and Masking(n_sigma=4.0).fixed_n_sigma == 4
    assert not Masking(sigma_b=0.1, sigma_m=0.1).follows_peaks
    with pytest.raises(DiffuseError, match=r"mask\.bragg\.leak"):
        Masking(leak=0.0)


def test_masks_that_take_nearly_all_are_not_believed():
    """As of a tiny crystal with spots a few pixels apart; masks of dense patterns take much, but so do fixed ones."""
    assert not believable(0.974, 0.027)
    assert believable(0.08, 0.01) and believable(0.7, 0.4) and believable(0.023, 0.071)


def test_images_without_intensities_have_the_fixed_mask():
    experiments = experiment_list(
        make_experiment(poisson_images(make_detector(), 3), detector=make_detector(), n_images=3)
    )
    job = job_of(experiments, masking=Masking())
    assert job.masks == [None] and job.mask_reports == ()
