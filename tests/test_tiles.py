"""The pass in tiles against the pass row by row, which knows every pixel for itself."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from helpers.jobs import PLAIN, job_for, poisson_images
from helpers.synthetic import make_crystal, make_detector, make_experiment

from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.polynomials import direction_tiles
from dials_diffuse.kernels import accumulate as row
from dials_diffuse.kernels.discs import Discs, paint_discs
from dials_diffuse.parallel import SERIAL, Forked
from dials_diffuse.reduction import brick_table, tiling, voxel_sums
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.reduction_parameters import Masking, Sampling

SIZE = (173, 131)  # tiles are cut at both edges
GUARDED = Masking(persistent=False)
SUMS = {"norm": row.NORM, "rate": row.RATE}


def fine_detector(**options):
    """Pixels as small, seen from the sample, as those of large detectors; tiles are nearly flat."""
    return make_detector(**{"size": SIZE, "distance": 150.0, "pixel": 0.06, **options})


def fine_job(images=None, n_images=4, masking=PLAIN, **options):
    detector = options.pop("detector", None) or fine_detector()
    parameters = {name: options.pop(name) for name in ("sampling", "corrections", "d_min") if name in options}
    images = poisson_images(detector, n_images) if images is None else images
    crystal = make_crystal(cell=(150, 180, 240))
    experiment = make_experiment(images, detector=detector, crystal=crystal, width=0.5, **options)
    return job_for(experiment, masking=masking, **{"corrections": Corrections(flux=False), **parameters})


def row_by_row(job, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiling, "MAX_EXACT", -1.0)
        return voxel_sums.reduce_block(replace(job), job.images)


def pixel_by_pixel(job, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiling, "MAX_EXACT", 1.0)
        patch.setattr(tiling, "MAX_SHIFT", -1.0)
        return voxel_sums.reduce_block(replace(job), job.images)


def in_tiles(job):
    assert all(t is not None for panels in job.tiles_at(0, job.corrections_at(0)) for t in panels)
    return voxel_sums.reduce_block(job, job.images)


def both_halves(table, column):
    return table[:, column] + table[:, row.ODD + column]


def assert_alike(tiles, rows, spread=0.0):
    """What docs/theory.md says of the pass in tiles.

    spread : mean of the absolute counts of pixels, where they have both signs and sums of them nearly cancel
    """
    np.testing.assert_array_equal(tiles.keys, rows.keys)
    np.testing.assert_array_equal(tiles.tally, rows.tally)
    total = rows.table.sum(axis=0)
    moved = np.abs(both_halves(tiles.table, row.PIXELS) - both_halves(rows.table, row.PIXELS)).sum() / 2
    assert moved <= max(2e-5 * both_halves(rows.table, row.PIXELS).sum(), 1.0)
    for column in (row.PIXELS, row.COUNTS, row.ODD + row.PIXELS, row.ODD + row.COUNTS):
        assert tiles.table[:, column].sum() == pytest.approx(total[column], rel=1e-12)
    for column in (row.SUM_X, row.SUM_Y, row.SUM_ANGLE):
        assert tiles.table[:, column].sum() == pytest.approx(total[column], rel=1e-12)
    for column in (row.NORM, row.RATE, row.ODD + row.NORM, row.ODD + row.RATE, row.RATE_VARIANCE):
        assert tiles.table[:, column].sum() == pytest.approx(total[column], rel=1e-6)
    same = np.all(
        [np.isclose(tiles.table[:, c], rows.table[:, c], rtol=1e-9) for c in (0, 5, 1, 6, row.SUM_X, row.SUM_Y)], axis=0
    )
    assert same.mean() > 0.995
    pixels = both_halves(rows.table, row.PIXELS)[same]
    per_norm = pixels / both_halves(rows.table, row.NORM)[same]
    for column, power in (
        (row.NORM, None),
        (row.ODD + row.NORM, None),
        (row.RATE, 1),
        (row.ODD + row.RATE, 1),
        (row.RATE_VARIANCE, 2),
    ):
        expected = rows.table[same, column]
        scale = np.abs(expected) + (0 if power is None else spread * pixels * per_norm**power)
        assert np.all(np.abs(tiles.table[same, column] - expected) <= 2e-5 * scale + 1e-12)
    for column in (row.FIRST_IMAGE, row.LAST_IMAGE):
        np.testing.assert_array_equal(tiles.table[same, column], rows.table[same, column])


def bright_images():
    """Counts of 2 to the 17th and more, which do not fit into a packed word."""
    images = poisson_images(fine_detector(), 3)
    for (image,) in images:
        image[20:40, 30:90] += 300_000
        image[60, ::7] = 131_072
    return images


def signed_images():
    detector = fine_detector()
    detector[0].set_pedestal(25.0)
    detector[0].set_gain(1.75)
    detector[0].set_trusted_range((-400, 90_000))
    images = poisson_images(detector, 3)
    rng = np.random.default_rng(5)
    for (image,) in images:
        image += np.rint(rng.normal(20, 12, image.shape)).astype(np.int32)
        image[::17, ::13] = rng.integers(-600, 0, image[::17, ::13].shape)
        image[5, 5] = 95_000
    return {"images": images, "detector": detector}


def strange_images():
    images = poisson_images(fine_detector(), 4, mean=7.0)
    rng = np.random.default_rng(6)
    for (image,) in images:
        image[rng.random(image.shape) < 0.003] = 60
        image[rng.random(image.shape) < 0.003] = -1
        image[rng.random(image.shape) < 0.003] = 2_000_000
    return images


CASES = {
    "plain": lambda: fine_job(),
    "three sub-steps": lambda: fine_job(sampling=Sampling(oscillation=3)),
    "sub-pixels": lambda: fine_job(n_images=2, sampling=Sampling(oscillation=2, pixel=2)),
    "two panels": lambda: fine_job(detector=fine_detector(n_panels=2, tilted=True)),
    "all varies": lambda: fine_job(scan_varying=True, kappa=True, sampling=Sampling(oscillation=2)),
    "bragg": lambda: fine_job(masking=replace(GUARDED, n_sigma=3.0), profile=(0.02, 0.2)),
    "strange": lambda: fine_job(strange_images(), masking=replace(GUARDED, bragg=False)),
    "bright": lambda: fine_job(bright_images()),
    "signed": lambda: fine_job(**signed_images(), masking=replace(GUARDED, bragg=False)),
    "resolution": lambda: fine_job(d_min=60.0),
}


@pytest.mark.parametrize("case", CASES)
def test_tiles_are_like_rows(case, monkeypatch):
    job = CASES[case]()
    rows = row_by_row(job, monkeypatch)
    assert_alike(in_tiles(job), rows, spread=6.0 if case == "signed" else 0.0)
    exact = pixel_by_pixel(job, monkeypatch)
    np.testing.assert_array_equal(exact.keys, rows.keys)
    np.testing.assert_array_equal(exact.tally, rows.tally)
    np.testing.assert_allclose(exact.table, rows.table, rtol=1e-10, atol=1e-12)


def test_the_cases_are_what_they_say(monkeypatch):
    """Outliers, untrusted and Bragg pixels there are, and pixels on both sides of the rotation axis."""
    tally = in_tiles(CASES["strange"]()).tally
    assert tally[row.OUTLIER] > 100 and tally[row.UNTRUSTED] > 200  # newer DIALS trusts the limits themselves
    assert in_tiles(CASES["bragg"]()).tally[row.BRAGG] > 300
    assert in_tiles(CASES["signed"]()).tally[row.UNTRUSTED] > 50
    entering = in_tiles(CASES["plain"]()).keys % 2
    assert 0.1 < entering.mean() < 0.9


def test_pixels_off_the_grid(monkeypatch):
    """The grid ends inside the detector, through tiles; pixels beyond it are counted, and not added."""
    job = fine_job(d_min=60.0, sampling=Sampling(oscillation=2))
    job = replace(job, bad=[np.zeros_like(b) for b in job.bad])
    tiles, rows = in_tiles(job), row_by_row(job, monkeypatch)
    assert tiles.tally[row.OFF_GRID] > 1000
    assert_alike(tiles, rows)


@pytest.mark.parametrize("capacity", [0, 20])
def test_bricks_grow_in_mid_image(capacity, monkeypatch):
    job = fine_job(n_images=2, sampling=Sampling(oscillation=2))
    whole = in_tiles(job)
    monkeypatch.setattr(brick_table, "FIRST_CAPACITY", capacity)
    monkeypatch.setattr(brick_table, "_used", [])
    monkeypatch.setattr(brick_table, "SIZE", 264)  # stops when the last 1024 of 1056 + capacity bricks begin
    table = brick_table.BrickTable(job.grid, job.n_sub_steps)
    assert len(table.panel(0).place) == capacity + 1056
    grown = []
    grow = brick_table.BrickTable.grow
    monkeypatch.setattr(brick_table.BrickTable, "grow", lambda self: (grown.append(self.n_bricks), grow(self)))
    small = voxel_sums.reduce_block(job, job.images)
    assert grown
    np.testing.assert_array_equal(small.keys, whole.keys)
    np.testing.assert_array_equal(small.table, whole.table)
    np.testing.assert_array_equal(small.tally, whole.tally)


def test_number_of_processes_does_not_matter():
    job = fine_job(n_images=6, sampling=Sampling(oscillation=2))
    job = replace(job, parameters=replace(job.parameters, images_per_block=2))
    one, two = (list(voxel_sums.reduce_blocks(job, executor)) for executor in (SERIAL, Forked(2)))
    assert len(one) == 3
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a.keys, b.keys)
        np.testing.assert_array_equal(a.table, b.table)


def test_what_goes_row_by_row(caplog, monkeypatch):
    """Distorted panels, floating-point images and a measured background; the log says so."""
    coarse = fine_job(detector=make_detector(size=SIZE, pixel=0.4))
    with caplog.at_level(logging.DEBUG, logger="dials.diffuse.reduction"):
        assert coarse.tiles_at(0, coarse.corrections) == [[None]]
    assert "Row by row" in caplog.text and "tiles" in caplog.text
    job = fine_job()
    floating = fine_job([[image.astype(float)] for (image,) in poisson_images(fine_detector(), 4)])
    rows = row_by_row(job, monkeypatch)
    np.testing.assert_array_equal(voxel_sums.reduce_block(floating, floating.images).table, rows.table)
    background = replace(job.background, rate=[np.full((1, 1, 1), 2.0)], variance=[np.full((1, 1, 1), 0.1)])
    assert replace(job, background=background).tiles_at(0, job.corrections) == [[None]]
    monkeypatch.setattr(brick_table, "MAX_DIRECTORY", 100)
    assert replace(job).tiles_at(0, job.corrections) == [[None]]


def test_images_of_both_kinds_in_one_block(monkeypatch):
    """The first image is floating-point: its rows come from the other table, and are joined."""
    images = poisson_images(fine_detector(), 3)
    mixed = [[images[0][0].astype(float)], *images[1:]]
    assert_alike(voxel_sums.reduce_block(job := fine_job(mixed), job.images), row_by_row(fine_job(images), monkeypatch))


def test_polynomials_hold_at_every_pixel():
    """The error that is stated is that of an evaluation pixel by pixel, with dxtbx's own directions."""
    directions = detector_setup(fine_detector(tilted=True)).panels[0].directions
    polynomials, error = direction_tiles(directions)
    assert polynomials.shape == (9, 6, 3, 10)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    v, u = y % 16 - 7.5, x % 32 - 15.5
    terms = np.array([np.ones_like(u), u, v, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3])
    p = polynomials[y // 16, x // 32]
    difference = np.linalg.norm(np.einsum("yxck,kyx->cyx", p, terms) - directions, axis=0)
    assert np.all(difference <= error[y // 16, x // 32] * (1 + 1e-6) + 1e-15)
    assert 1e-13 < error.max() < 1e-8


def test_limits_of_a_tile_are_those_of_its_pixels():
    """What the limits of a tile let through is no outlier at any of its pixels."""
    from dials_diffuse.kernels.tiles import _counted_values

    rng = np.random.default_rng(1)
    for _ in range(200):
        rates, thresholds = rng.uniform(-1, 30, 4), rng.uniform(2, 8, 4)
        low, high = np.sort(rng.uniform(0.5, 2.0, 2))
        gain, pedestal = rng.uniform(0.5, 3), rng.uniform(-5, 20)
        first, last = _counted_values(1, 2, low, high, -50, 1_000_000, rates, thresholds, 1.3, gain, pedestal)
        for value in range(first - 2, last + 3):
            found = [
                row.is_outlier((value - pedestal) / gain, rates[s] * c * 1.3, thresholds[s])
                for s in (1, 2)
                for c in np.linspace(low, high, 5)
            ]
            if first <= value <= last:
                assert not any(found)
            elif value >= -50 and abs(value - first) > 1 and abs(value - last) > 1:
                assert any(found)


@pytest.mark.parametrize("fine", [True, False])
def test_discs_are_painted_as_pixel_by_pixel(fine):
    """Through tiles, over edges of the panel, and where the polynomials are not good enough to decide."""
    detector = fine_detector(tilted=True) if fine else make_detector(size=SIZE, pixel=0.4, tilted=True)
    panel = detector_setup(detector).panels[0]
    rng = np.random.default_rng(3)
    n = 60
    centre = rng.uniform(-4, [SIZE[0] + 4, SIZE[1] + 4], (n, 2))
    x, y = np.clip(centre.astype(int), 0, [SIZE[0] - 1, SIZE[1] - 1]).T
    direction = panel.directions[:, y, x].T + rng.normal(0, 1e-4, (n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    pixel = np.linalg.norm(panel.directions[:, 60, 80] - panel.directions[:, 60, 81])
    radius = rng.uniform(0.2, 9, n) * pixel
    # of some the limit goes through the middle of a pixel
    near = panel.directions[:, np.clip(y + 3, 0, SIZE[1] - 1), x].T
    cosine = np.where(np.arange(n) % 3 == 0, np.sum(near * direction, axis=1), np.cos(radius))
    discs = Discs(centre, direction, cosine, np.full(n, 14.0))
    mask = np.zeros(panel.shape, dtype=np.int32)
    paint_discs(mask, 7, panel.directions, *panel.polynomials, discs)
    expected = np.zeros(panel.shape, dtype=bool)
    for i in range(n):
        box = np.zeros(panel.shape, dtype=bool)
        low, high = np.floor(centre[i] - 14).astype(int), np.ceil(centre[i] + 14).astype(int) + 1
        box[max(low[1], 0) : max(high[1], 0), max(low[0], 0) : max(high[0], 0)] = True
        u, v, w = direction[i]
        expected |= box & (panel.directions[0] * u + panel.directions[1] * v + panel.directions[2] * w >= cosine[i])
    np.testing.assert_array_equal(mask == 7, expected)
    assert 2000 < expected.sum() < 0.9 * expected.size
