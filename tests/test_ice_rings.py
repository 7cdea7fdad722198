"""Ice rings: found where ice has them, masked, named; none where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.jobs import job_of
from helpers.synthetic import experiment_list, make_detector, make_experiment

from dials_diffuse.experiment.detector import panel_geometry, s_magnitude
from dials_diffuse.reduction.ice_rings import CUBIC, HEXAGONAL, find_rings, in_rings, known_rings
from dials_diffuse.reduction.reduction_parameters import Masking

D_MIN = 1.7
WIDTH = 0.0012  # 1/Å; pixels of the images are nearly twice as wide


def usual(s):
    """The ring of water on the falling background of air."""
    return 20 / (0.1 + s) + 150 * np.exp(-0.5 * ((s - 0.31) / 0.05) ** 2)


def ring_profile(s, d):
    return np.sum(np.exp(-0.5 * ((np.asarray(s)[..., None] - 1 / np.asarray(d)) / WIDTH) ** 2), axis=-1)


def test_known_spacings():
    """Literature values of the first rings (Å); the others follow from the cells."""
    np.testing.assert_allclose(known_rings(HEXAGONAL, 2.0), [3.895, 3.669, 3.441, 2.671, 2.249, 2.071], atol=2e-3)
    np.testing.assert_allclose(known_rings(CUBIC, 1.9), [3.671, 2.248, 1.917], atol=2e-3)


@pytest.mark.parametrize("ice", [HEXAGONAL, CUBIC])
@pytest.mark.parametrize("height", [0.03, 1.0])
def test_rings_in_a_profile(ice, height):
    s = np.arange(40, 580) * 0.001 + 0.0005
    rng = np.random.default_rng(0)
    level = usual(s)
    rings = known_rings(ice, D_MIN)
    rate = level * (1 + height * ring_profile(s, rings)) * (1 + rng.normal(0, 0.002, len(s)))
    found = find_rings(s, rate, D_MIN)
    assert {r.ice for r in found} == {ice}
    first = rings[(1 / rings < s.max() - 0.02)]
    for d in first[:4]:
        assert any(abs(1 / r.d - 1 / d) < 0.003 for r in found)
    for ring in found:
        assert np.abs(1 / rings - 1 / ring.d).min() < 0.003
        assert ring.s_low < 1 / ring.d - 2 * WIDTH and ring.s_high > 1 / ring.d + 2 * WIDTH
    # what is left of the rings
    left = ~in_rings(s, found) & (s < s.max() - 0.02)
    assert height * ring_profile(s[left], first).max() < 0.1 * height + 0.005


def test_no_rings_where_there_is_no_ice():
    """Nor where something else has one ring, and rings where ice has none are not ice."""
    s = np.arange(40, 580) * 0.001 + 0.0005
    rng = np.random.default_rng(1)
    for seed in range(8):
        rate = usual(s) * (1 + rng.normal(0, 0.003, len(s)))
        assert find_rings(s, rate, D_MIN) == [], seed
    one = usual(s) * (1 + 0.5 * ring_profile(s, [3.669]))
    assert find_rings(s, one * (1 + rng.normal(0, 0.003, len(s))), D_MIN) == []
    salt = usual(s) * (1 + 0.5 * ring_profile(s, [3.1, 2.82, 1.99]))
    assert find_rings(s, salt * (1 + rng.normal(0, 0.003, len(s))), D_MIN) == []


def images_of(detector, rings=()):
    geometry = panel_geometry(detector[0])
    s = s_magnitude(geometry.directions, np.array(make_experiment(detector=detector).beam.get_s0()))
    mean = usual(s) * (1 + (0.2 * ring_profile(s, rings) if len(rings) else 0))
    rng = np.random.default_rng(2)
    return [[rng.poisson(mean).astype(np.int32)] for _ in range(6)]


@pytest.mark.parametrize("setting", [None, True, False])
def test_images_with_rings(setting):
    """What is found is masked, in every pixel of the bands; True masks all rings, False none."""
    detector = make_detector(size=(600, 560), pixel=0.1, distance=50.0)
    rings = known_rings(HEXAGONAL, 2.0)
    images = images_of(detector, rings)
    experiments = experiment_list(make_experiment(images, detector=detector, n_images=6))
    masking = Masking(False, persistent=False, ice_rings=setting)
    job = job_of(experiments, masking=masking)
    plain = job_of(experiments, masking=Masking(False, persistent=False, ice_rings=False))
    s = s_magnitude(job.panels[0].directions, job.scan.s0_at(3))
    new = (job.bad[0] != 0) & (plain.bad[0] == 0)
    np.testing.assert_array_equal(new, in_rings(s, job.ice_rings) & (plain.bad[0] == 0))
    if setting is False:
        assert not new.any() and job.ice_rings == ()
        return
    assert len(job.ice_rings) >= 4 and new.sum() > 10000
    if setting is None:
        assert {r.ice for r in job.ice_rings} == {HEXAGONAL}
        assert all(0.05 < r.excess < 0.3 for r in job.ice_rings)


def test_clean_images_lose_nothing():
    detector = make_detector(size=(600, 560), pixel=0.1, distance=50.0)
    images = images_of(detector)
    job = job_of(
        experiment_list(make_experiment(images, detector=detector, n_images=6)),
        masking=Masking(False, persistent=False),
    )
    assert job.ice_rings == ()
