"""Counts that are cut off at some value are told from those that are not, however they are distributed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jobs import job_for
from helpers.synthetic import make_detector, make_experiment

from dials_diffuse.reduction.clipped import cut_off, cut_off_in_words

SIZE = (120, 100)


def job_with(images):
    detector = make_detector(size=SIZE)
    return job_for(make_experiment(images=[[i.astype(np.int32)] for i in images], detector=detector))


def counts(mean, n=8, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.poisson(mean, SIZE[::-1]) for _ in range(n)]


def peaks(mean=20.0):
    """Background, and a few hundred pixels of exponentially distributed peaks."""
    rng = np.random.default_rng(1)
    images = counts(mean)
    for image in images:
        image[rng.random(image.shape) < 0.03] += rng.exponential(400.0, np.shape(image)).astype(int)[0, 0] + 50
        rows, columns = rng.integers(0, 100, 300), rng.integers(0, 120, 300)
        image[rows, columns] += rng.exponential(300.0, 300).astype(int)
    return images


@pytest.mark.parametrize("mean", [0.002, 0.05, 0.5, 3.0, 100.0, 5000.0])
def test_counts_that_nothing_cuts_off(mean):
    assert cut_off(job_with(counts(mean))) is None


def test_peaks_that_nothing_cuts_off():
    assert cut_off(job_with(peaks())) is None


@pytest.mark.parametrize("limit", [30, 150, 255])
def test_peaks_that_are_cut_off(limit):
    job = job_with([np.minimum(image, limit) for image in peaks()])
    value, n = cut_off(job)
    assert value == limit and n > 100
    (text,) = cut_off_in_words(job)
    assert f"highest value, {limit}" in text and "trusted_range" in text
    assert text in job.warnings


def test_hot_pixels_are_none_of_that():
    images = counts(5.0)
    for image in images:
        image[::25, ::30] = 60_000  # sixteen pixels, on all images
    assert cut_off(job_with(images)) is None


def test_images_of_one_value_say_nothing():
    assert cut_off(job_with([np.full(SIZE[::-1], 10)] * 8)) is None
    assert cut_off(job_with([np.zeros(SIZE[::-1])] * 8)) is None
