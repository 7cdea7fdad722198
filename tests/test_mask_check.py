"""Bragg masks without peaks in them are noticed; those of good and weak data are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.drawn import D_MIN, MASKS, drawn, moved_beam, true_experiment, turned
from helpers.jobs import job_of
from helpers.synthetic import experiment_list, make_crystal

from dials_diffuse.reduction.frames import empty_bragg, paint_bragg
from dials_diffuse.reduction.mask_check import MaskCheck, check_masks, masks_in_words


def checked(experiment) -> MaskCheck:
    job = job_of(experiment_list(experiment), masking=MASKS, d_min=D_MIN, subdivide=(1, 1, 1), geometry_check="none")
    return check_masks(job, job.images)


@pytest.fixture(scope="module")
def images():
    return drawn(true_experiment())


@pytest.mark.parametrize("photons, level", [(60.0, 3.0), (3.0, 3.0), (60.0, 100.0), (1.0, 0.05)])
def test_peaks_fill_their_masks(photons, level):
    check = checked(true_experiment(drawn(true_experiment(), photons, level)))
    assert not check.empty and masks_in_words(0, check) == []
    assert check.difference > 5 * check.esd > 0 and check.difference == pytest.approx(check.inside - check.beside)


@pytest.mark.parametrize(
    "fault",
    [turned(6, -7, 4), moved_beam(12, -16), {"crystal": make_crystal((34, 41, 53), "P222", angles=(70, -20, 5))}],
)
def test_masks_beside_the_peaks(images, fault):
    check = checked(true_experiment(images, **fault))
    assert check.empty
    (words,) = masks_in_words(7, check)
    assert "experiment 7" in words and "count no more than those beside them" in words


def test_what_is_compared():
    """Flat images of Poisson noise; the pixels of every mask count one standard deviation more."""
    true = true_experiment()
    job = job_of(experiment_list(true), masking=MASKS, d_min=D_MIN, subdivide=(1, 1, 1), geometry_check="none")
    rng, bragg, images = np.random.default_rng(2), empty_bragg(job), []
    for i in range(true.scan.get_num_images()):
        paint_bragg(job, bragg, i)
        images.append([(rng.poisson(25.0, m.shape) + 5 * (m == i + 1)).astype(np.int32) for m in bragg])
    raised = checked(true_experiment(images))
    assert raised.difference == pytest.approx(5 / np.sqrt(26), abs=0.12)


def test_too_little_says_nothing():
    job = job_of(
        experiment_list(true_experiment(drawn(true_experiment()))), masking=MASKS, d_min=D_MIN, subdivide=(1, 1, 1)
    )
    assert check_masks(job, job.images[:3]) is None and check_masks(job, job.images[:0]) is None
    assert check_masks(job, job.images) is not None and masks_in_words(0, None) == []
