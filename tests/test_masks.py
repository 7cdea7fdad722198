"""Bragg peaks, outliers, bad pixels and background: what is masked, and what is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cctbx import uctbx
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.format.image import ImageBool
from dxtbx.model import Crystal
from helpers.builders import PROVENANCE
from helpers.jobs import job_of, poisson_images, rows_of
from helpers.synthetic import experiment_list, make_crystal, make_detector, make_experiment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.detector import panel_geometry
from dials_diffuse.experiment.images import read_raw, static_mask
from dials_diffuse.experiment.scan import sub_steps
from dials_diffuse.experiment.spot_prediction import predict_spots, spot_size
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.kernels.image import excess_variance, select, shell_statistics
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.reduction import voxel_sums
from dials_diffuse.reduction.background import measure_background
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.frames import paint_bragg
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.outliers import relative_flux
from dials_diffuse.reduction.reduction_parameters import (
    BackgroundSmoothing,
    Masking,
    ReductionParameters,
    Sampling,
)

BRAGG_ONLY = Masking(persistent=False, outlier_n_sigma=0)


def job_for(experiments, images=None, background_images=(), **parameters):
    return job_of(experiments, images, background_images, **{"corrections": Corrections(flux=False), **parameters})


def painted(job, image):
    masks = [np.zeros(p.shape, dtype=np.int32) for p in job.panels]
    paint_bragg(job, masks, image)
    return [m == image + 1 for m in masks]


def big_detector(**options):
    return make_detector(**{"size": (200, 180), "pixel": 0.2, **options})


def test_bragg_mask_is_the_ellipsoid_of_the_profile_model():
    """Every pixel against the definition, reflection by reflection: eps_b²/(n sigma_b)² + eps_m²/(n sigma_m)² <= 1."""
    experiments = experiment_list(
        make_experiment(detector=big_detector(n_panels=2, tilted=True), n_images=6, profile=(0.3, 0.4), kappa=True)
    )
    job = job_for(experiments, masking=replace(BRAGG_ONLY, n_sigma=2.0))
    table = flex.reflection_table.from_predictions(experiments[0], dmin=job.grid.d_min, padding=10)
    axis = np.array(experiments[0].goniometer.get_rotation_axis())
    s0 = np.array(experiments[0].beam.get_s0())
    image = 3
    expected = [np.zeros(p.shape, dtype=bool) for p in job.panels]
    for s1, (_, _, z), p in zip(table["s1"], table["xyzcal.px"], table["panel"]):
        u = np.array(s1) / np.linalg.norm(s1)
        cross = np.cross(s1, s0)
        zeta = max(abs(axis @ cross) / np.linalg.norm(cross), 0.05)
        eps_m = max(abs(z - image - 0.5) - 0.5, 0) * 1.0 * zeta / (2.0 * 0.4)
        if eps_m >= 1:
            continue
        half_pixel = 0.5 * 0.2 / job.panels[p].distance.min()
        radius = np.deg2rad(2.0 * 0.3) * np.sqrt(1 - eps_m**2) + half_pixel
        expected[p] |= np.tensordot(u, job.panels[p].directions, 1) >= np.cos(radius)
    found = painted(job, image)
    for a, b in zip(found, expected):
        assert b.sum() > 100
        np.testing.assert_array_equal(a, b)


def test_scan_varying_models_mask_too():
    experiments = experiment_list(make_experiment(detector=big_detector(), n_images=6, scan_varying=True))
    job = job_for(experiments, masking=BRAGG_ONLY)
    static = job_for(experiment_list(make_experiment(detector=big_detector(), n_images=6)), masking=BRAGG_ONLY)
    moved, still = painted(job, 5)[0], painted(static, 5)[0]
    assert moved.sum() == pytest.approx(still.sum(), rel=0.2)
    assert 0.3 * still.sum() < (moved & still).sum() < still.sum()


def test_masked_pixels_do_not_count():
    """Peaks of 10000 counts under the mask leave no trace, in counts or in the norm."""
    detector = big_detector()
    blank = experiment_list(make_experiment(detector=detector, n_images=4))
    job = job_for(blank, masking=BRAGG_ONLY)
    images = poisson_images(detector, 4)
    spotted = [[np.where(painted(job, i)[0], 10000, images[i][0]).astype(np.int32)] for i in range(4)]
    clean = rows_of(job_for(experiment_list(make_experiment(images, detector=detector)), masking=BRAGG_ONLY))
    peaks = rows_of(job_for(experiment_list(make_experiment(spotted, detector=detector)), masking=BRAGG_ONLY))
    np.testing.assert_array_equal(clean, peaks)
    unmasked = Masking(bragg=False, persistent=False, outlier_n_sigma=0)
    seen = rows_of(job_for(experiment_list(make_experiment(spotted, detector=detector)), masking=unmasked))
    assert seen["counts"].sum() > 2 * peaks["counts"].sum()


def test_absences_stay_unmasked():
    """A body-centred crystal masks half as many peaks as a primitive one, none of them where h + k + l is odd."""
    detector = big_detector()
    cells = {}
    for symbol in ("P222", "I222"):
        experiment = make_experiment(detector=detector, n_images=6, crystal=make_crystal(space_group=symbol))
        cells[symbol] = predict_spots(experiment, spot_size(experiment), 2.5)
    assert len(cells["I222"]) == pytest.approx(len(cells["P222"]) / 2, rel=0.1)
    experiment = make_experiment(detector=detector, n_images=6, crystal=make_crystal(space_group="I222"))
    table = flex.reflection_table.from_predictions(experiment, dmin=2.5)
    assert all(sum(h) % 2 == 0 for h in table["miller_index"])


def test_peaks_of_other_crystals_on_the_same_images_are_masked():
    one = make_experiment(detector=big_detector())
    other = make_experiment(detector=one.detector, crystal=make_crystal(angles=(70, -10, 5)), identifier="b")
    other.imageset = one.imageset
    alone = painted(job_for(experiment_list(one), masking=BRAGG_ONLY), 2)[0]
    both = painted(job_for(experiment_list(one, other), masking=BRAGG_ONLY), 2)[0]
    assert both.sum() > 1.5 * alone.sum()
    assert np.all(both[alone])


def test_sigmas_can_be_given():
    experiments = experiment_list(make_experiment(detector=big_detector(), profile=None))
    small = job_for(experiments, masking=replace(BRAGG_ONLY, sigma_b=0.05, sigma_m=0.1))
    large = job_for(experiments, masking=replace(BRAGG_ONLY, sigma_b=0.2, sigma_m=0.1))
    assert painted(large, 1)[0].sum() > 3 * painted(small, 1)[0].sum() > 0


def test_scan_varying_profile_model():
    experiment = make_experiment(detector=big_detector(), n_images=10)
    from dials.algorithms.profile_model.gaussian_rs import Model

    sigma = flex.double(np.linspace(0.05, 0.3, 10))
    experiment.profile = Model(None, 3, sigma, flex.double(10, 0.2), deg=True)
    spots = predict_spots(experiment, spot_size(experiment), 3.0)
    late, early = spots.centre[:, 2] > 8, spots.centre[:, 2] < 2
    assert spots.sigma_b[late].mean() > 3 * spots.sigma_b[early].mean()


def test_zingers_and_dark_pixels_are_rejected_but_not_poisson_tails():
    detector = big_detector()
    images = poisson_images(detector, 4, mean=30)
    rng = np.random.default_rng(4)
    for (image,) in images:
        for value in (3000, 0):
            y, x = rng.integers(180, size=20), rng.integers(200, size=20)
            image[y, x] = value
    experiments = experiment_list(make_experiment(images, detector=detector))
    masking = Masking(bragg=False, persistent=False)
    guarded = rows_of(job_for(experiments, masking=masking))
    open_ = rows_of(job_for(experiments, masking=replace(masking, outlier_n_sigma=0)))
    lost = open_["pixels"].sum() - guarded["pixels"].sum()
    assert 0.9 * 160 <= lost <= 165
    assert guarded["counts"].sum() / guarded["pixels"].sum() == pytest.approx(30, rel=0.002)
    assert open_["counts"].sum() / open_["pixels"].sum() > 31


@pytest.mark.parametrize("mean", [0.05, 0.5, 3.0])
def test_the_guard_does_not_bias_weak_data(mean):
    detector = big_detector()
    images = poisson_images(detector, 6, mean=mean)
    total = sum(int(i[0].sum()) for i in images)
    experiments = experiment_list(make_experiment(images, detector=detector))
    job = job_for(experiments, masking=Masking(bragg=False))
    rows = rows_of(replace(job, n_sub_steps=1))
    inside = sum(int(i[0][job.bad[0] == 0].sum()) for i in images)
    assert inside == total
    assert rows["counts"].sum() == pytest.approx(total, rel=0.03)  # the rest lies beyond the outermost voxels


def test_shell_statistics_resist_outliers():
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 1.0, 3000)
    counts = rng.poisson(40 * c).astype(float)
    clean = counts.copy()
    counts[::20] = 5000
    centre, spread = shell_statistics(counts / c, c, np.array([0, 1500, 3000]), 60)
    np.testing.assert_allclose(centre, 40, rtol=0.03)
    assert np.all((spread >= 1) & (spread < 1.3))
    # the variance from the quartiles of 1500 numbers is good to 6 %
    for noise, expected in ((0, 0), (10, 100)):
        rates = (clean + rng.normal(0, noise, 3000)) / c
        excess = excess_variance(rates, c, np.array([0, 1500, 3000]), centre)
        np.testing.assert_allclose(excess, expected, atol=4 * 0.06 * (30 + expected))
    few, _ = shell_statistics(counts[:10] / c[:10], c[:10], np.array([0, 10]), 60)
    assert np.isnan(few[0])


def test_hot_dead_and_shadowed_pixels_are_found_on_the_average_image():
    detector = big_detector()
    mean = np.full((180, 200), 40.0)
    mean[60:90, 50:80] *= 0.3  # beam stop
    images = [[np.random.default_rng(i).poisson(mean).astype(np.int32)] for i in range(12)]
    for (image,) in images:
        image[10, 10] = 300
        image[11, 150] = 0
        image[:12, :30] = 7  # an unlit corner that reads a constant
    experiments = experiment_list(make_experiment(images, detector=detector))
    bad = job_for(experiments, masking=Masking(bragg=False)).bad[0] != 0
    assert bad[10, 10] and bad[11, 150] and bad[60:90, 50:80].all() and bad[:12, :30].all()
    elsewhere = np.ones_like(bad)
    elsewhere[56:94, 46:84] = elsewhere[:16, :34] = elsewhere[8:14, 147:153] = False
    assert bad[elsewhere].mean() < 1e-3


def test_faint_pixels_that_never_count_are_not_called_stuck():
    detector = big_detector()
    images = poisson_images(detector, 12, mean=0.02)
    experiments = experiment_list(make_experiment(images, detector=detector))
    assert (job_for(experiments, masking=Masking(bragg=False)).bad[0] != 0).sum() == 0


def test_masks_of_panel_and_imageset_are_used():
    experiment = make_experiment(detector=big_detector())
    experiment.detector[0].add_mask(10, 20, 40, 60)
    mask = np.ones((180, 200), dtype=bool)
    mask[100:, :5] = False
    image = flex.bool(mask.ravel())
    image.reshape(flex.grid(180, 200))
    experiment.imageset.external_lookup.mask.data = ImageBool(image)
    usable = static_mask(experiment.imageset)[0]
    expected = mask.copy()
    expected[20:60, 10:40] = False
    np.testing.assert_array_equal(usable, expected)
    np.testing.assert_array_equal(usable, experiment.imageset.get_mask(0)[0].as_numpy_array())
    rows = rows_of(job_for(experiment_list(experiment), masking=Masking(bragg=False, persistent=False)))
    assert not np.any((rows["xyz"][:, 0] < 4) & (rows["xyz"][:, 1] > 110))


@pytest.mark.parametrize("value", [-1, -2, 10**6, 10**6 + 1])
def test_trusted_range_is_that_of_dxtbx(value):
    detector = big_detector()
    images = poisson_images(detector, 1)
    images[0][0][90, 100] = value
    experiment = make_experiment(images, detector=detector)
    trusted = experiment.imageset.get_mask(0)[0].as_numpy_array()[90, 100]
    low, high, *_ = panel_geometry(detector[0]).reading
    assert (low <= value <= high) == trusted


def test_gain_and_pedestal():
    detector = big_detector()
    detector[0].set_gain(2.0)
    detector[0].set_pedestal(10.0)
    images = [[np.full((180, 200), 50, dtype=np.int32)]] * 2
    experiments = experiment_list(make_experiment(images, detector=detector))
    rows = rows_of(job_for(experiments, masking=Masking(bragg=False)))
    np.testing.assert_allclose(rows["counts"] / rows["pixels"], 20.0)


def test_floating_point_images_with_nan():
    detector = big_detector()
    image = np.full((180, 200), 5.5)
    image[3, 4] = np.nan
    rows = rows_of(
        job_for(experiment_list(make_experiment([[image]] * 2, detector=detector)), masking=Masking(bragg=False))
    )
    assert np.all(np.isfinite(rows["counts"]))
    np.testing.assert_allclose(rows["counts"] / rows["pixels"], 5.5)


def test_background_rate_and_variance():
    """A background with a gradient, measured twice as long: expected counts per voxel, variance from the blocks."""
    detector = big_detector()
    x = np.mgrid[:180, :200][1]
    level = 20 + 0.05 * x
    background = make_experiment(
        [[np.random.default_rng(i).poisson(2 * level).astype(np.int32)] for i in range(10)],
        detector=detector,
        exposure=[2.0] * 10,
        identifier="background",
    )
    bad = [np.zeros((180, 200), dtype=np.uint8)]
    measured = measure_background([background], detector, bad, BackgroundSmoothing(block=20, angle=360), Corrections())
    assert measured.rate[0].shape == (1, 9, 10)
    truth = level.reshape(9, 20, 10, 20).mean(axis=(1, 3))
    sigma = np.sqrt(measured.variance[0][0])
    np.testing.assert_allclose(sigma, np.sqrt(truth / (10 * 2 * 400)), rtol=0.05)
    assert np.abs((measured.rate[0][0] - truth) / sigma).max() < 4.5

    data = [[np.random.default_rng(100 + i).poisson(level + 30).astype(np.int32)] for i in range(4)]
    experiments = experiment_list(make_experiment(data, detector=detector))
    smoothing = BackgroundSmoothing(block=20)
    masking = Masking(bragg=False, persistent=False)
    job = job_for(experiments, background_images=[background], masking=masking, background=smoothing)
    rows = rows_of(replace(job, n_sub_steps=1))
    net = (rows["counts"] - rows["background"]) / rows["pixels"]
    assert np.average(net, weights=rows["pixels"]) == pytest.approx(30, rel=0.005)
    left = rows["xyz"][:, 0] < 100
    for part in (left, ~left):
        assert np.average(net[part], weights=rows["pixels"][part]) == pytest.approx(30, rel=0.01)
    # all pixels of a row share the error of their block
    np.testing.assert_allclose(
        np.sqrt(rows["background_variance"]) / rows["pixels"],
        np.sqrt(np.median(job.background.variance[0])),
        rtol=0.2,  # the level changes by 40 % over the detector
    )


def test_background_follows_the_angle():
    detector = big_detector()
    images = [[np.full((180, 200), 10 + i, dtype=np.int32)] for i in range(4)]
    background = make_experiment(images, detector=detector, width=20.0)
    bad = [np.zeros((180, 200), dtype=np.uint8)]
    measured = measure_background([background], detector, bad, BackgroundSmoothing(angle=20), Corrections())
    assert [measured.at(angle, 1.0)[0][0][0, 0] for angle in (40, 60, 80, 100)] == [10, 11, 12, 13]
    assert measured.at(40 + 360, 2.0)[0][0][0, 0] == 20
    assert measured.at(40, 2.0)[1][0][0, 0] == 2 * measured.at(40, 1.0)[1][0][0, 0] > 0


def test_background_of_another_detector_is_refused():
    background = make_experiment(detector=big_detector())
    for other in (make_detector(), big_detector(distance=80.0), big_detector(tilted=True), big_detector(n_panels=2)):
        with pytest.raises(DiffuseError, match="same detector"):
            measure_background([background], other, [], BackgroundSmoothing(), Corrections())


def test_pixels_without_background_are_masked():
    """A mask of the background images is heeded, and nothing is subtracted as if it were zero."""
    detector = big_detector()
    background = make_experiment(poisson_images(detector, 4, mean=20), detector=detector, identifier="background")
    usable = np.ones((180, 200), dtype=bool)
    usable[:, 96:] = False
    flags = flex.bool(usable.ravel())
    flags.reshape(flex.grid(180, 200))
    background.imageset.external_lookup.mask.data = ImageBool(flags)
    experiments = experiment_list(make_experiment(poisson_images(detector, 4, mean=50), detector=detector))
    job = job_for(experiments, background_images=[background], masking=Masking(bragg=False, persistent=False))
    assert np.all(job.bad[0][:, 96:] != 0) and np.all(job.bad[0][:, :96] == 0)
    rows = rows_of(job)
    assert (rows["counts"] - rows["background"]).sum() / rows["pixels"].sum() == pytest.approx(30, rel=0.01)


def test_distant_background_images_are_reported():
    detector = big_detector()
    images = poisson_images(detector, 2, mean=20)
    background = make_experiment(images, detector=detector, width=90.0, identifier="background")  # at 75 and 165
    experiments = experiment_list(make_experiment(detector=detector))
    smoothing = BackgroundSmoothing(angle=10)
    job = job_for(experiments, background_images=[background], masking=Masking(bragg=False), background=smoothing)
    assert "degrees away" in job.warnings[0]


def test_flux_is_that_of_the_crystal_when_the_background_is_known():
    """The crystal scatters 45 and 15 above a steady background of 20."""
    detector = big_detector()
    background = make_experiment(poisson_images(detector, 8, mean=20), detector=detector, identifier="background")
    images = [poisson_images(detector, 1, mean=20 + (45 if i < 4 else 15), seed=i)[0] for i in range(8)]
    job = job_for(
        experiment_list(make_experiment(images, detector=detector)),
        background_images=[background],
        masking=Masking(bragg=False, persistent=False),
        corrections=Corrections(solid_angle=False, polarization=False, efficiency=False, air=False),
    )
    flux = list(voxel_sums.reduce_block(job, job.images).flux.values())
    np.testing.assert_allclose(flux, [1.5] * 4 + [0.5] * 4, rtol=0.02)
    rows = rows_of(job)
    assert rows["background"].sum() / rows["pixels"].sum() == pytest.approx(20, rel=0.01)
    assert (rows["counts"] - rows["background"]).sum() / rows["norm"].sum() == pytest.approx(30, rel=0.01)


def test_read_noise_does_not_bias():
    detector = big_detector()
    detector[0].set_pedestal(40.0)
    for mean in (0.5, 2.0):
        rng = np.random.default_rng(8)
        shape = (180, 200)
        counts = [rng.poisson(mean, shape) + 40 + np.rint(rng.normal(0, 3, shape)) for _ in range(16)]
        images = [[c.astype(np.int32)] for c in counts]
        experiments = experiment_list(make_experiment(images, detector=detector))
        rows = rows_of(job_for(experiments, masking=Masking(bragg=False)))
        error = 4 * np.sqrt((mean + 9.1) / rows["pixels"].sum())
        assert rows["counts"].sum() / rows["pixels"].sum() == pytest.approx(mean, abs=error)


def test_a_mask_of_another_size_is_refused():
    experiment = make_experiment(detector=big_detector())
    flags = flex.bool(flex.grid(10, 20), True)
    experiment.imageset.external_lookup.mask.data = ImageBool(flags)
    with pytest.raises(DiffuseError, match="make a new one"):
        static_mask(experiment.imageset)


def test_crystals_on_overlapping_parts_of_a_sweep(monkeypatch):
    """Peaks of a second crystal, indexed on later images of the same sweep, are masked on the images in common."""
    detector = big_detector()
    one = make_experiment(detector=detector, n_images=6)
    other = make_experiment(detector=detector, n_images=6, crystal=make_crystal(angles=(70, -10, 5)), identifier="b")
    other.scan.set_oscillation((33.0, 1.0))
    starts = {id(one.imageset): 0, id(other.imageset): 3}
    monkeypatch.setattr(
        "dials_diffuse.experiment.images.identities",
        lambda imageset: [(f"image_{starts[id(imageset)] + i}", 0) for i in range(6)],
    )
    job = job_for([one, other], masking=BRAGG_ONLY)
    assert len(job.spots) == 2
    alone = job_for([other], masking=BRAGG_ONLY)
    own = job_for([one], masking=BRAGG_ONLY)
    for image in (4, 5):
        expected = painted(own, image)[0] | painted(alone, image - 3)[0]
        np.testing.assert_array_equal(painted(job, image)[0], expected)


def test_crystals_that_are_not_isomorphous():
    def crystal(beta):
        cell = uctbx.unit_cell((20, 24, 30, 90, beta, 90))
        axes = np.array(cell.orthogonalization_matrix()).reshape(3, 3).T
        return Crystal(*(tuple(a) for a in axes), space_group_symbol="P2")

    close = [make_experiment(crystal=crystal(b), identifier=str(b)) for b in (90, 91)]
    assert choose_grid(close).unit_cell[4] == pytest.approx(90.5)
    with pytest.raises(DiffuseError, match="isomorphous"):
        choose_grid([make_experiment(crystal=crystal(b)) for b in (90, 115)])
    with pytest.raises(DiffuseError, match="space groups"):
        choose_grid([make_experiment(), make_experiment(crystal=make_crystal(space_group="P1"))])


def test_sub_steps_follow_step_and_voxel_size():
    from dials_diffuse.experiment.scan import scan_geometry

    grid = MapGrid((50, 50, 50, 90, 90, 90), " P 1", (3, 3, 3), 2.0)
    for width, expected in ((0.1, 1), (0.7, 1), (0.8, 2), (2.0, 3)):
        arc, edge = np.deg2rad(width) / 2.0, 1 / 150
        assert sub_steps(grid, scan_geometry(make_experiment(width=width))) == expected == int(np.ceil(arc / edge))


def test_relative_flux_ignores_unknown_shells():
    reference = np.array([np.nan, 2.0, 4.0, 6.0])
    norm = np.full(4, 1000.0)
    assert relative_flux(np.array([5.0, 1.0, 2.0, np.nan]), reference, norm) == pytest.approx(0.5)
    assert relative_flux(np.full(4, np.nan), reference, norm) == 1.0
    assert relative_flux(np.full(4, 3.0), reference, norm / 1000) == 1.0


def test_resolution_limits_are_those_of_the_voxels(tmp_path):
    experiment = make_experiment(detector=big_detector())
    parameters = ReductionParameters(d_min=2.5, d_max=8.0, masking=Masking(bragg=False), sampling=Sampling(pixel=2))
    integrate(experiment_list(experiment), parameters, tmp_path / "a.h5", PROVENANCE)
    with ObservationFile(tmp_path / "a.h5") as result:
        s = result.grid.s_magnitude(result.read("index")["index"])
    assert s.min() >= 1 / 8.0 and s.max() <= 1 / 2.5 + 1e-9
    assert s.max() > 0.39 and s.min() < 0.135


def test_selection_is_that_of_numpy():
    rng = np.random.default_rng(4)
    for n in (1, 2, 3, 10, 77):
        for values in (rng.normal(size=n), rng.integers(0, 3, n).astype(float), np.arange(n, 0.0, -1), np.zeros(n)):
            for k in {0, n // 4, n // 2, n - 1}:
                mine = values.copy()
                assert select(mine, n, k) == np.sort(values)[k]
                assert np.all(mine[:k] <= mine[k]) and np.all(mine[k:] >= mine[k])


def test_raw_values_share_the_memory_of_dxtbx():
    experiment = make_experiment(detector=big_detector())
    array = read_raw(experiment.imageset, 0)[0]
    assert array.dtype == np.int32 and np.shares_memory(array, flumpy.to_numpy(experiment.imageset.get_raw_data(0)[0]))
