"""Images of a beam that strays or is not focused: their resolution profile is unlike that of the sweep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import PROVENANCE
from helpers.jobs import job_for
from helpers.loops import LLM, REDUCTION, compare_with_truth, simulated
from helpers.structures import random_structure
from helpers.synthetic import make_detector, make_experiment

from dials_diffuse.experiment.cbf import write_cbf
from dials_diffuse.experiment.images import read_image
from dials_diffuse.experiment.load import load_input
from dials_diffuse.files.nexus import read_map
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.reduction.corrections import Corrections
from dials_diffuse.reduction.frames import NO_BEAM, OTHER_PROFILE
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.outliers import MIN_SHAPE_DIFFERENCE, shape_difference, usual_profile
from dials_diffuse.reduction.reduction_parameters import Masking
from dials_diffuse.reduction.voxel_sums import reduce_block
from dials_diffuse.simulation.simulation_parameters import Background

SIZE = (200, 180)
PLAIN = Masking(bragg=False, persistent=False)


def radial(steepness: float, mean: float = 20.0) -> np.ndarray:
    """(ny, nx) expected counts that fall from the middle of the detector to its corners, with a given mean."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    r = np.hypot(x - SIZE[0] / 2, y - SIZE[1] / 2) / (SIZE[0] / 2)
    profile = np.exp(-steepness * r)
    return mean * profile / profile.mean()


def unfit_of(levels) -> dict:
    """{position: reason} of the images that are not used, of a sweep with these expected counts."""
    rng = np.random.default_rng(0)
    images = [[rng.poisson(level).astype(np.int32)] for level in levels]
    experiment = make_experiment(images, detector=make_detector(size=SIZE, pixel=0.2), width=0.5)
    job = job_for(experiment, masking=PLAIN, corrections=Corrections())
    return reduce_block(job, job.images).unfit


@pytest.mark.parametrize(("every", "first"), [(4, 3), (4, 0), (3, 1), (5, 4)])
def test_images_with_a_flat_profile_are_left_out(every, first):
    """Even where those that are looked at beforehand, evenly spread, are all of them wrong (every fourth of 60)."""
    wrong = range(first, 60, every)
    assert unfit_of([radial(0.0 if i in wrong else 1.0) for i in range(60)]) == dict.fromkeys(wrong, OTHER_PROFILE)


def test_a_steep_image_and_one_without_beam():
    levels = [radial(1.0) for _ in range(20)]
    levels[7], levels[12] = radial(2.0), radial(1.0, mean=0.1)
    assert unfit_of(levels) == {7: OTHER_PROFILE, 12: NO_BEAM}


def test_the_shape_counts_not_the_size():
    """A beam that decays, and is refilled, has the same profile."""
    assert unfit_of([radial(1.0, mean=40 * np.exp(-0.1 * (i % 20))) for i in range(40)]) == {}


def test_a_profile_that_changes_as_the_crystal_turns_is_usual():
    """Absorption, the share of the solvent: what changes over the whole sweep is held against no image."""
    assert unfit_of([radial(1.0 + 0.4 * np.sin(i / 10)) for i in range(60)]) == {}


def test_weak_images_have_other_profiles_by_chance():
    assert unfit_of([radial(1.0, mean=0.02) for _ in range(40)]) == {}
    weak = [radial(0.0 if i == 9 else 2.0, mean=0.3) for i in range(40)]
    assert unfit_of(weak) == {9: OTHER_PROFILE}


def test_few_images_say_nothing_about_what_is_usual():
    assert unfit_of([radial(1.0), radial(0.0), radial(1.0), radial(0.0)]) == {}


def test_a_background_that_stays_while_the_crystal_does_not():
    """What the crystal and the background add up to changes its shape; both are known, and it is right."""
    rng = np.random.default_rng(0)
    detector = make_detector(size=SIZE, pixel=0.2)

    def images(levels):
        return [[rng.poisson(level).astype(np.int32)] for level in levels]

    empty = make_experiment(images([radial(3.0, 30.0)] * 8), detector=detector, width=2.0, identifier="empty")
    share = [1.0 if i % 3 else 0.3 for i in range(24)]
    levels = [radial(3.0, 30.0) + f * radial(0.3, 20.0) for f in share]
    levels[10] = radial(3.0, 30.0) + radial(2.0, 20.0)
    experiment = make_experiment(images(levels), detector=detector, width=0.5)
    job = job_for(experiment, masking=PLAIN, corrections=Corrections(), background_images=[empty])
    block = reduce_block(job, job.images)
    assert block.unfit == {10: OTHER_PROFILE}
    ratio = np.array([block.flux[i] for i in range(24) if i != 10]) / np.delete(share, 10)
    np.testing.assert_allclose(ratio / ratio.mean(), 1, rtol=0.05)


def test_the_difference_of_profiles():
    """A shell that is 2 % brighter, with a quarter of the counts; what chance explains is taken off."""
    norm = np.full(4, 1e8)
    usual, _ = usual_profile([np.full(4, 2.0)] * 6, np.zeros((6, 4)), norm, np.ones(6))
    assert usual.limit == MIN_SHAPE_DIFFERENCE
    image = np.array([2.04, 2.0, 2.0, 2.0])
    deviation = image / image.mean() - 1
    found = shape_difference(image, np.zeros(4), usual, norm, 1.0)
    assert found == pytest.approx(np.sqrt(np.average(deviation**2, weights=image)), rel=0.02)
    assert shape_difference(image, np.zeros(4), usual, norm, 1e-7) == 0
    assert shape_difference(np.zeros(4), np.zeros(4), usual, norm, 1.0) == 0
    assert usual_profile([np.full(4, 2.0)] * 5, np.zeros((5, 4)), norm, np.ones(5))[0] is None


def test_a_third_of_the_images_may_be_wrong():
    norm, rng = np.full(50, 200.0), np.random.default_rng(3)
    s = np.linspace(0, 1, 50)
    right, wrong = 10 * np.exp(-2 * s), np.full(50, 4.3)
    images = [rng.poisson(200 * (wrong if i % 3 == 0 else right)) / 200 for i in range(16)]
    usual, good = usual_profile(images, np.zeros((16, 50)), norm, np.ones(16))
    assert good.tolist() == [i % 3 != 0 for i in range(16)]
    np.testing.assert_allclose(usual.net / usual.net.mean(), right / right.mean(), rtol=0.12)


def test_the_map_is_that_of_the_images_that_are_right(tmp_path):
    """Against the truth, with every fourth image as flat as bright: as good as without these, not half as good."""
    structure = random_structure("P 41", (16, 16, 14, 90, 90, 90), "CNOCS" * 2, u=(0.3, 0.45))
    data = simulated(
        tmp_path, structure, LLM, REDUCTION.d_min, (120, 100, 0.8), background=Background(air=3.0, liquid=0.01)
    )
    experiment, rng = data.experiments[0], np.random.default_rng(1)
    wrong = list(range(3, 60, 4))
    for i in wrong:
        (image,) = read_image(experiment.imageset, i)
        seen = image >= 0
        flat = np.where(seen, rng.poisson(image[seen].mean(), image.shape), image).astype(np.int32)
        write_cbf(experiment.imageset.get_path(i), [flat], experiment, i + 1)
    data = load_input([str(tmp_path / "simulated.expt"), str(tmp_path / "simulated.refl")])
    truth = read_map(tmp_path / "truth.nxs")

    def run(flux: bool, excluded=()) -> tuple:
        reduction = replace(REDUCTION, corrections=Corrections(flux=flux))
        arguments = (data.experiments, reduction, tmp_path / "n.h5", PROVENANCE, data.reflections)
        result = integrate(*arguments, excluded=excluded)
        merged = merge_observations([tmp_path / "n.h5"], MergeParameters(n_shells=4)).map
        return result, compare_with_truth(merged, truth).cc

    result, cc = run(flux=True)
    right = run(flux=True, excluded=[(0, i + 1, i + 1) for i in wrong])[1]
    unchecked = run(flux=False)[1]
    assert right > 0.75 and cc == pytest.approx(right, abs=0.005) and unchecked < 0.6
    (report,) = result.experiments
    assert report.left_out == [{"image": i + 1, "reason": OTHER_PROFILE} for i in wrong]
    assert report.n_images == 45
    (warning,) = result.warnings
    assert "15 images left out" in warning and "4, 8, 12" in warning
