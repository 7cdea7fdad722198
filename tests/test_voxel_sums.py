"""Voxel sums against the pixel-by-pixel oracle, and what must not change them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers import oracle
from helpers.builders import PROVENANCE
from helpers.jobs import job_for, poisson_images, rows_of
from helpers.synthetic import experiment_list, make_crystal, make_detector, make_experiment

from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.kernels import accumulate as kernel
from dials_diffuse.kernels.accumulate import is_outlier
from dials_diffuse.parallel import SERIAL, Forked
from dials_diffuse.reduction import voxel_sums
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import Masking, ReductionParameters, Sampling

COLUMNS = ("pixels", "counts", "norm", "rate", "rate_variance", "counts_odd", "norm_odd", "rate_odd", "pixels_odd")


def per_voxel(rows, *names):
    """{(panel, index, entering): sums}, independent of how passes are cut."""
    result = {}
    for row in rows:
        key = (int(row["panel"]), tuple(row["index"]), int(row["entering"]))
        result[key] = result.get(key, 0) + np.array([row[n] for n in names])
    return result


def assert_same_sums(a, b):
    a, b = per_voxel(a, *COLUMNS), per_voxel(b, *COLUMNS)
    assert a.keys() == b.keys()
    keys = list(a)
    np.testing.assert_allclose([a[k] for k in keys], [b[k] for k in keys], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_sub", [1, 3])
def test_sums_equal_the_oracle(n_sub):
    detector = make_detector(size=(21, 17), pixel=1.1, n_panels=2, tilted=True)
    images = poisson_images(detector, 3)
    experiment = make_experiment(images, detector=detector, kappa=True, scan_varying=True)
    job = job_for(experiment, sampling=Sampling(oscillation=n_sub), corrections=Corrections(flux=False))
    bad = [np.zeros(p.shape, dtype=np.uint8) for p in job.panels]
    bad[0][:5, :7] = 1
    job = replace(job, bad=[b | m for b, m in zip(job.bad, bad)])
    rows = rows_of(job)
    truth = oracle.voxel_sums(experiment, images, job.grid, job.corrections_at(1), job.bad, n_sub)
    found = {}
    for row in rows:
        key = (int(row["panel"]), tuple(int(i) for i in row["index"]))
        found[key] = found.get(key, 0) + np.array([row["pixels"], row["counts"], row["norm"], row["counts_odd"]])
    assert found.keys() == truth.keys()
    # the beam drifts by 0.03 degrees over the scan, so the norm of image 1 stands for all to 1e-3
    for key in truth:
        np.testing.assert_allclose(found[key][[0, 1, 3]], truth[key][[0, 1, 3]], rtol=1e-9)
        np.testing.assert_allclose(found[key][2], truth[key][2], rtol=1e-3)


def test_norm_equals_the_oracle_with_exposures():
    detector = make_detector(size=(21, 17), pixel=1.1)
    images = poisson_images(detector, 3)
    experiment = make_experiment(images, detector=detector, exposure=[2.0, 2.0, 2.0])
    job = job_for(experiment, sampling=Sampling(oscillation=1), corrections=Corrections(flux=False))
    truth = oracle.voxel_sums(experiment, images, job.grid, job.corrections, job.bad)
    norms = per_voxel(rows_of(job), "norm")
    total = {}
    for (panel, index, _), value in norms.items():
        key = panel, tuple(int(i) for i in index)
        total[key] = total.get(key, 0) + value[0]
    for key, value in truth.items():
        assert total[key] == pytest.approx(2 * value[2], rel=1e-6)


@pytest.fixture(scope="module")
def job():
    detector = make_detector(n_panels=2)
    images = poisson_images(detector, 12)
    experiment = make_experiment(images, width=2.0, detector=detector, scan_varying=True)
    return job_for(experiment, sampling=Sampling(oscillation=2))


@pytest.mark.parametrize("n", [1, 3, 5, 12])
def test_blocks_do_not_matter(job, n):
    cut = replace(job, parameters=replace(job.parameters, images_per_block=n))
    assert_same_sums(rows_of(cut), rows_of(job))


def test_passes_are_joined_across_blocks(job, monkeypatch):
    """With the seam as wide as the sweep, cutting it into blocks changes nothing at all, only the order of rows."""
    monkeypatch.setattr(voxel_sums, "SEAM_ANGLE", 100.0)
    one = rows_of(replace(job, parameters=replace(job.parameters, images_per_block=12)))
    many = replace(job, parameters=replace(job.parameters, images_per_block=2))
    assert sum(len(b.keys) for b in voxel_sums.reduce_blocks(many)) > 1.2 * len(one)
    many = rows_of(many)
    assert len(many) == len(one)
    order = ["panel", "entering", "index", "s"]
    for a, b in ((np.sort(one, order=order), np.sort(many, order=order)),):
        np.testing.assert_array_equal(a["index"], b["index"])
        np.testing.assert_allclose(a["norm"], b["norm"], rtol=1e-12)
        np.testing.assert_allclose(a["xyz"], b["xyz"], rtol=1e-5)


def test_a_voxel_not_seen_for_long_starts_a_new_pass(job, monkeypatch):
    """The seam of 5 degrees is two and a half images here: a gap of three images cuts every pass."""
    monkeypatch.setattr(voxel_sums, "SEAM_ANGLE", 5.0)
    images = np.array([0, 1, 5, 6])
    for n in (1, 2, 12):
        rows = rows_of(replace(job, images=images, parameters=replace(job.parameters, images_per_block=n)))
        first = rows_of(replace(job, images=images[:2]))
        last = rows_of(replace(job, images=images[2:]))
        assert len(rows) == len(first) + len(last)
    # a rotation by 360 degrees brings the same voxels back, in a pass of their own
    again = np.concatenate([np.arange(4), 180 + np.arange(4)])
    assert [len(b) for b in voxel_sums.blocks_of_images(replace(job, images=again))] == [4, 4]


def test_order_of_images_does_not_matter(job):
    forward = voxel_sums.reduce_block(job, job.images)
    shuffled = voxel_sums.reduce_block(job, np.random.default_rng(3).permutation(job.images))
    np.testing.assert_array_equal(forward.keys, shuffled.keys)
    np.testing.assert_allclose(forward.table, shuffled.table, rtol=1e-12)


def test_number_of_processes_does_not_matter(job):
    job = replace(job, parameters=replace(job.parameters, images_per_block=3))
    np.testing.assert_array_equal(rows_of(job, SERIAL), rows_of(job, Forked(2)))


def test_sub_steps_and_sub_pixels_conserve_the_sums():
    detector = make_detector()
    experiment = make_experiment(poisson_images(detector, 2), detector=detector)
    plain = rows_of(job_for(experiment, sampling=Sampling(oscillation=1), d_min=4.2))
    fine = rows_of(job_for(experiment, sampling=Sampling(oscillation=4, pixel=3), d_min=4.2))
    for name in ("pixels", "counts", "norm"):
        # only pixels that straddle the resolution limit may differ
        assert fine[name].sum() == pytest.approx(plain[name].sum(), rel=0.02)
    assert not np.array_equal(fine["counts"] % 1, np.zeros(len(fine)))


def test_positions_are_means_over_pixels(job):
    rows = rows_of(job)
    angles = rows["xyz"][:, 2]
    assert angles.min() >= 30 and angles.max() <= 54
    assert np.all((rows["xyz"][:, 0] > 0) & (rows["xyz"][:, 0] < 60))
    # within half a voxel of the centre's |s|, and not equal to it
    edge = np.linalg.norm(job.grid.reciprocal_matrix / np.array(job.grid.subdivide), axis=0).sum()
    difference = rows["s"] - job.grid.s_magnitude(rows["index"])
    assert 0.01 * edge < np.abs(difference).max() < edge


def test_s_is_that_of_the_mean_position():
    """Not that of the voxel's centre; one row at a time with dxtbx, also where the beam and the panels are odd."""
    detector = make_detector(size=(21, 17), pixel=1.1, n_panels=2, tilted=True)
    experiment = make_experiment(poisson_images(detector, 3), detector=detector, kappa=True, scan_varying=True)
    job = job_for(experiment, corrections=Corrections(flux=False))
    rows = rows_of(job)
    centres = job.grid.s_magnitude(rows["index"])
    assert np.abs(rows["s"] - centres).max() > 1e-3
    start, width = experiment.scan.get_oscillation()
    for row in rows[:: len(rows) // 40]:
        x, y, angle = (float(value) for value in row["xyz"])
        image = min(int((angle - start) / width), 2)
        _, s1 = oracle.miller_index(experiment, int(row["panel"]), x, y, image, (angle - start) / width - image)
        _, s0 = oracle.crystal_frame(experiment, image, (angle - start) / width - image)
        # directions are interpolated linearly between pixels of one degree
        assert row["s"] == pytest.approx(np.linalg.norm(s1 - s0), abs=5e-5)


def test_table_grows():
    table = voxel_sums.VoxelTable((1, 1, 1), capacity=8)
    for key in range(0, 800, 8):
        if table.n_rows + 1 > len(table.rows.keys):
            table.grow()
        slot = kernel.find_slot(key, table.rows.entries)
        assert slot < 0
        table.rows.entries[-1 - slot] = key, table.n_rows
        table.rows.keys[table.n_rows] = key
        table.n_rows += 1
    assert [kernel.find_slot(k, table.rows.entries) for k in range(0, 800, 8)] == list(range(100))
    assert kernel.find_slot(3, table.rows.entries) < 0


def test_entering_agrees_with_dials():
    """The flag of a voxel at a reflection is DIALS's own for the predicted reflection."""
    from dials.array_family import flex

    experiment = make_experiment(n_images=20, width=2.0, crystal=make_crystal(space_group="P1"))
    predicted = flex.reflection_table.from_predictions(experiment, dmin=4.5)
    job = job_for(
        experiment, subdivide=(1, 1, 1), sampling=Sampling(oscillation=1), corrections=Corrections(flux=False)
    )
    seen = {}
    for row in rows_of(job):
        seen.setdefault(tuple(int(i) for i in row["index"]), set()).add(int(row["entering"]))
    compared = 0
    for h, entering in zip(predicted["miller_index"], predicted["entering"]):
        if len(seen.get(tuple(h), ())) == 1:
            compared += 1
            assert seen[tuple(h)] == {int(entering)}
    assert compared > 50


SWITCHES = ("solid_angle", "polarization", "efficiency", "air", "exposure", "flux")


@pytest.mark.parametrize(
    "on", list(itertools.product([True, False], repeat=len(SWITCHES))), ids=lambda on: str(sum(on))
)
def test_flat_scattering_gives_a_flat_map(on, tmp_path):
    """Images of a constant intensity, attenuated by the physics that is switched on, come back flat."""
    switches = Corrections(**dict(zip(SWITCHES, on)))
    detector = make_detector(size=(120, 100), pixel=0.25)
    blank = make_experiment(detector=detector, n_images=8)
    exposure = [1.0, 2.0] * 4 if switches.exposure else [1.0] * 8
    c = job_for(blank, corrections=replace(switches, flux=False)).corrections[0]
    rng = np.random.default_rng(5)
    level = 50.0
    images = [[rng.poisson(level * c * t).astype(np.int32)] for t in exposure]
    experiment = make_experiment(images, detector=detector, exposure=exposure)
    parameters = ReductionParameters(corrections=switches, masking=Masking(bragg=False))
    path = tmp_path / "flat.h5"
    integrate(experiment_list(experiment), parameters, path, PROVENANCE)
    rows = ObservationFile(path).read("counts", "norm", "s", "rate", "pixels", "rate_variance")
    total = rows["counts"].sum() / rows["norm"].sum()
    assert total == pytest.approx(level, rel=0.005 if switches.flux else 0.002)
    # chi² of the voxels about the flat level, and no trend with resolution or between estimators
    expected = rows["norm"] * total
    chi2 = np.mean((rows["counts"] - expected) ** 2 / expected)
    assert chi2 == pytest.approx(1, abs=5 * np.sqrt(2 / len(expected)))
    for low in np.percentile(rows["s"], [0, 25, 50, 75]):
        shell = (rows["s"] >= low) & (rows["s"] < low * 1.3 + 0.02)
        counts = rows["counts"][shell].sum()
        assert counts == pytest.approx(expected[shell].sum(), abs=5 * np.sqrt(counts))
    assert rows["rate"].sum() / rows["pixels"].sum() == pytest.approx(total, rel=0.002)


def test_a_missing_correction_is_seen():
    """The flat map is not flat when the physics has solid angle but the reduction ignores it."""
    detector = make_detector(size=(120, 100), pixel=0.25)
    c = job_for(make_experiment(detector=detector), corrections=Corrections(flux=False)).corrections[0]
    images = [[np.random.default_rng(1).poisson(50 * c).astype(np.int32)]] * 4
    experiment = make_experiment(images, detector=detector)
    rows = rows_of(job_for(experiment, corrections=Corrections(solid_angle=False, flux=False)))
    expected = rows["norm"] * rows["counts"].sum() / rows["norm"].sum()
    assert np.mean((rows["counts"] - expected) ** 2 / expected) > 1.5


def test_flux_follows_a_decaying_beam(tmp_path):
    detector = make_detector(size=(120, 100), pixel=0.25)
    flux = np.array([1.5, 1.4, 1.2, 1.1, 0.9, 0.8, 0.6, 0.5])
    rng = np.random.default_rng(2)
    shape = detector[0].get_image_size()[::-1]
    images = [[rng.poisson(40 * f, shape).astype(np.int32)] for f in flux]
    experiment = make_experiment(images, detector=detector)
    parameters = ReductionParameters(masking=Masking(bragg=False), corrections=Corrections())
    result = integrate(experiment_list(experiment), parameters, tmp_path / "a.h5", PROVENANCE)
    np.testing.assert_allclose(result.experiments[0].flux, flux / flux.mean(), rtol=0.01)


@pytest.mark.parametrize("mean", [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0])
def test_flux_of_weak_images(mean):
    """Two thirds of the beam in half of the images, however few counts there are."""
    detector = make_detector(size=(240, 200), pixel=0.125)
    rng = np.random.default_rng(3)
    images = [[rng.poisson(mean * (1.2 if i < 6 else 0.8), (200, 240)).astype(np.int32)] for i in range(12)]
    job = job_for(make_experiment(images, detector=detector), corrections=Corrections())
    flux = np.array(list(voxel_sums.reduce_block(job, job.images).flux.values()))
    assert len(flux) == 12
    counts = mean * job.sample.norm.sum() / job.sample.correction.mean()
    assert flux[6:].mean() / flux[:6].mean() == pytest.approx(2 / 3, abs=4 / np.sqrt(counts))


def test_flux_ignores_the_shadow_of_the_goniometer(monkeypatch):
    detector = make_detector(size=(120, 100), pixel=0.25)
    images = poisson_images(detector, 10, mean=50)
    lit = np.ones((100, 120), dtype=bool)
    shadowed = lit.copy()
    shadowed[:, :40] = False
    for (image,) in images[5:]:
        image[:, :40] //= 4
    masks = {i: [shadowed if i >= 5 else lit] for i in range(10)}
    monkeypatch.setattr("dials_diffuse.reduction.frames.image_mask", lambda imageset, i: masks[i])
    masking = Masking(bragg=False, persistent=False)
    job = job_for(make_experiment(images, detector=detector), corrections=Corrections(), masking=masking)
    flux = list(voxel_sums.reduce_block(job, job.images).flux.values())
    np.testing.assert_allclose(flux, 1, atol=0.02)
    rows = rows_of(job)
    assert rows["pixels"].sum() <= 5 * 120 * 100 + 5 * 80 * 100


def test_one_dropped_frame_does_not_spoil_the_flux():
    detector = make_detector(size=(120, 100), pixel=0.25)
    flux = np.linspace(1.5, 0.5, 12)
    images = [[np.random.default_rng(i).poisson(40 * f, (100, 120)).astype(np.int32)] for i, f in enumerate(flux)]
    images[4] = [np.full((100, 120), -5, dtype=np.int32)]
    masking = Masking(bragg=False, persistent=False)
    job = job_for(make_experiment(images, detector=detector), corrections=Corrections(), masking=masking)
    found = np.array(list(voxel_sums.reduce_block(job, job.images).flux.values()))
    others = np.arange(12) != 4
    np.testing.assert_allclose(found[others] / found[0], flux[others] / flux[0], rtol=0.02)


def test_intensities_do_not_depend_on_the_distance():
    """The same scattering per solid angle and second on a near and on a far detector."""
    levels = []
    for distance, pixel in ((60.0, 0.25), (120.0, 0.5), (120.0, 0.25)):
        detector = make_detector(size=(120, 100), pixel=pixel, distance=distance)
        c = job_for(make_experiment(detector=detector), corrections=Corrections(flux=False)).corrections[0]
        images = [[np.random.default_rng(1).poisson(2.0 * c).astype(np.int32)]] * 2
        rows = rows_of(job_for(make_experiment(images, detector=detector), corrections=Corrections(flux=False)))
        levels.append(rows["counts"].sum() / rows["norm"].sum())
    np.testing.assert_allclose(levels, 2.0, rtol=0.02)


def test_a_varying_beam_makes_no_outliers():
    detector = make_detector(size=(120, 100), pixel=0.25)
    blank = make_experiment(detector=detector, scan_varying=True, n_images=8)
    model = job_for(blank, corrections=Corrections(flux=False))
    images = [[np.random.default_rng(i).poisson(40 * model.corrections_at(i)[0]).astype(np.int32)] for i in range(8)]
    assert np.median(images[0][0]) > 500
    experiment = make_experiment(images, detector=detector, scan_varying=True)
    job = job_for(experiment, masking=Masking(bragg=False), corrections=Corrections(flux=False))
    assert voxel_sums.reduce_block(job, job.images).tally[kernel.OUTLIER] <= 1
    assert (job.bad[0] != 0).sum() == 0


def test_scans_that_do_not_start_at_the_first_image():
    """Image numbers shift nothing: not the geometry, not the Bragg mask, not the exclusion of images."""
    from dials_diffuse.experiment.exclusion import images_to_use

    detector = make_detector(size=(120, 100), pixel=0.25)
    images = poisson_images(detector, 6)
    masking = Masking(persistent=False, outlier_n_sigma=0)
    one = make_experiment(images, detector=detector)
    eleven = make_experiment(images, detector=detector, first_image=11)
    np.testing.assert_array_equal(rows_of(job_for(one, masking=masking)), rows_of(job_for(eleven, masking=masking)))
    assert images_to_use(eleven, 0, [(None, 12, 13)]).tolist() == [0, 3, 4, 5]
    eleven.scan.set_valid_image_ranges("synthetic", [(13, 15)])
    assert images_to_use(eleven, 0, [(0, 15, 20)]).tolist() == [2, 3]


def test_an_image_without_beam_is_left_out_and_named(tmp_path):
    detector = make_detector(size=(120, 100), pixel=0.25)
    images = poisson_images(detector, 8, mean=30)
    images[3] = [np.zeros_like(images[3][0])]
    experiment = make_experiment(images, detector=detector)
    parameters = ReductionParameters(masking=Masking(bragg=False))
    result = integrate(experiment_list(experiment), parameters, tmp_path / "a.h5", PROVENANCE)
    assert any("no beam on image 4" in w for w in result.warnings)
    fate = result.experiments[0]
    assert fate.n_images == 7
    fates = fate.never_used + fate.used + fate.untrusted + fate.bragg + fate.outlier + fate.off_grid
    fates += fate.unpredicted
    assert fates == 7 * 120 * 100
    with ObservationFile(tmp_path / "a.h5") as file:
        assert file.experiments[0].n_images_used == 7


def test_outlier_shortcut_equals_the_formula():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 60, 5000).astype(float)
    mean = rng.uniform(0, 40, 5000)
    z = 2 * np.abs(np.sqrt(counts + 0.375) - np.sqrt(mean + 0.375))
    for threshold in (1.0, 3.0, 6.0):
        clear = np.abs(z - threshold) > 1e-9
        found = np.array([is_outlier(c, m, threshold) for c, m in zip(counts, mean)])
        np.testing.assert_array_equal(found[clear], (z > threshold)[clear])
