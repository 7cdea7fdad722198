"""Experiments made from numbers: what dxtbx, cctbx and published tables say of them."""

from __future__ import annotations

import numpy as np
import pytest
from cctbx import sgtbx, uctbx
from dxtbx.format import FormatPilatusHelpers
from dxtbx.model.experiment_list import ExperimentList
from helpers.synthetic import experiment_list, make_detector, make_experiment

from dials_diffuse.compat import trusted_bounds
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import (
    BeamParameters,
    DetectorParameters,
    ScanParameters,
    build_beam,
    build_crystal,
    build_detector,
    build_experiment,
    build_goniometer,
    build_scan,
    experiments_from_file,
    random_orientation,
)
from dials_diffuse.experiment.modules import PILATUS, PILATUS_SIZES, module_mask

# dxtbx has lists typed in by hand beside the function that computes them
HARD_CODED = {
    "300K": FormatPilatusHelpers.pilatus_300K_mask,
    "2M": FormatPilatusHelpers.pilatus_2M_mask,
    "6M": FormatPilatusHelpers.pilatus_6M_mask,
}


@pytest.mark.parametrize("name", HARD_CODED)
def test_gaps_of_a_pilatus(name):
    detector = build_detector(DetectorParameters(name), 1.0)
    nx, ny = PILATUS_SIZES[name]
    expected = np.ones((ny, nx), dtype=bool)
    for x0, x1, y0, y1 in HARD_CODED[name]():  # 1-based, last included
        expected[y0 - 1 : y1, x0 - 1 : x1] = False
    assert np.array_equal(module_mask(detector)[0], expected)
    assert np.array_equal(detector[0].get_untrusted_rectangle_mask().as_numpy_array(), expected)


def test_gaps_of_the_default_detector():
    mask = module_mask(build_experiment().detector)[0]
    assert mask.shape == (1043, 981)
    assert mask.sum() == 10 * 487 * 195
    assert mask[0, 486] and not mask[0, 487] and not mask[0, 493] and mask[0, 494]
    assert mask[194, 0] and not mask[195, 0] and not mask[211, 0] and mask[212, 0]


def test_gaps_are_found_where_the_model_has_none_and_taken_from_the_model_elsewhere():
    detector = make_detector(size=(981, 1043))
    assert detector[0].get_untrusted_rectangle_mask().count(False) == 0
    assert module_mask(detector)[0].sum() == 10 * 487 * 195

    detector = make_detector(size=(60, 50), n_panels=2)
    detector[1].add_mask(3, 4, 6, 8)
    first, second = module_mask(detector)
    assert first.all()
    assert np.argwhere(~second).tolist() == [[y, x] for y in range(4, 8) for x in range(3, 6)]


@pytest.mark.parametrize("size", [(60, 50), (487, 196), (981, 1044), (988, 1043), (7, 17)])
def test_other_sizes_have_no_gaps(size):
    assert not PILATUS.fits(size)
    detector = build_detector(DetectorParameters(size), 1.0)
    assert detector[0].get_image_size() == size
    assert module_mask(detector)[0].all()


def test_detector_is_across_the_beam_where_it_was_asked_for():
    parameters = DetectorParameters((60, 50), distance=123.0, beam_centre=(20.25, 33.5), pixel_size=0.1)
    detector, beam = build_detector(parameters, 0.9), build_beam(BeamParameters(0.9))
    panel = detector[0]
    np.testing.assert_allclose(beam.get_s0(), (0, 0, -1 / 0.9))
    np.testing.assert_allclose(panel.get_beam_centre_px(beam.get_s0()), (20.25, 33.5))
    assert panel.get_distance() == pytest.approx(123.0)
    # first pixel up and to the left of the beam, seen from the source: fast is +x, slow is -y
    np.testing.assert_allclose(panel.get_origin(), (-2.025, 3.35, -123.0))
    np.testing.assert_allclose(panel.get_pixel_lab_coord((21.25, 33.5))[0], 0.1, atol=5e-3)
    assert trusted_bounds(panel) == (pytest.approx(0, abs=1), pytest.approx(1_048_575, abs=1))
    assert trusted_bounds(panel)[0] > -1


def test_middle_of_the_detector_is_the_default_beam_centre():
    experiment = build_experiment(DetectorParameters("300K"))
    np.testing.assert_allclose(experiment.detector[0].get_beam_centre_px(experiment.beam.get_s0()), (243.5, 309.5))


@pytest.mark.parametrize(
    ("material", "density", "low", "high"),  # mass attenuation at 10 and 15 keV, cm²/g, NIST XCOM (Hubbell & Seltzer)
    [("Si", 2.33, 33.89, 10.34)],
)
def test_sensor_attenuation(material, density, low, high):
    energy = 12.0
    expected = density * low * (high / low) ** (np.log(energy / 10) / np.log(15 / 10)) / 10  # 1/mm
    panel = build_detector(DetectorParameters((60, 50), material=material, thickness=0.32), 12.39842 / energy)[0]
    assert panel.get_mu() == pytest.approx(expected, rel=0.03)
    strategy = panel.get_px_mm_strategy()
    assert (strategy.name(), strategy.mu(), strategy.t0()) == ("ParallaxCorrectedPxMmStrategy", panel.get_mu(), 0.32)
    assert (panel.get_material(), panel.get_thickness()) == (material, 0.32)


def test_beam_goniometer_and_scan():
    beam = build_beam(BeamParameters(1.1, 0.9))
    assert beam.get_wavelength() == pytest.approx(1.1)
    assert (beam.get_polarization_fraction(), beam.get_polarization_normal()) == (0.9, (0, 1, 0))
    assert build_goniometer().get_rotation_axis() == (1, 0, 0)
    scan = build_scan(ScanParameters(start=10, width=0.25, n_images=4, exposure=0.3, first_image=7))
    assert scan.get_image_range() == (7, 10)
    assert scan.get_oscillation() == pytest.approx((10, 0.25))
    np.testing.assert_allclose(scan.get_oscillation_range(), (10, 11))
    assert list(scan.get_exposure_times()) == [0.3] * 4
    np.testing.assert_allclose(scan.get_epochs(), [0, 0.3, 0.6, 0.9])
    one = build_scan(ScanParameters(start=5, width=0.1, n_images=1))
    assert one.get_image_range() == (1, 1)
    assert one.get_oscillation() == pytest.approx((5, 0.1))


@pytest.mark.parametrize(
    ("cell", "symbol"),
    [
        ((31, 42, 53, 70, 80, 95), "P 1"),
        ((31, 42, 53, 90, 100, 90), "I 1 2 1"),
        ((31, 42, 53, 90, 90, 100), "P 1 1 21"),
        ((31, 42, 53, 90, 90, 90), "P 21 2 21"),
        ((40, 40, 40, 70, 70, 70), "R 3 :R"),
        ((40, 40, 90, 90, 90, 120), "R 3 :H"),
        ((40, 40, 40, 90, 90, 90), "P 4 2 3"),
        ((31, 42, 53, 90, 90, 90), " P 2 2ab (x+1/8,y,z)"),  # a Hall symbol with a change of basis
    ],
)
def test_crystal_has_the_cell_the_setting_and_the_orientation(cell, symbol):
    u = random_orientation(np.random.default_rng(3))
    crystal = build_crystal(cell, symbol, u)
    np.testing.assert_allclose(crystal.get_unit_cell().parameters(), cell)
    np.testing.assert_allclose(np.array(crystal.get_U()).reshape(3, 3), u, atol=1e-9)
    b = np.array(uctbx.unit_cell(cell).fractionalization_matrix()).reshape(3, 3).T
    np.testing.assert_allclose(np.array(crystal.get_A()).reshape(3, 3), u @ b, atol=1e-12)
    try:
        expected = sgtbx.space_group_info(symbol).group()
    except RuntimeError:
        expected = sgtbx.space_group(symbol)
    assert crystal.get_space_group() == expected
    assert build_crystal(uctbx.unit_cell(cell), expected).get_space_group() == expected
    np.testing.assert_allclose(build_crystal(cell, expected.info()).get_U(), np.eye(3).ravel(), atol=1e-9)


def test_random_orientations_are_rotations_without_a_preferred_one():
    rng = np.random.default_rng(5)
    n = 4000
    rotations = np.array([random_orientation(rng) for _ in range(n)])
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (n, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    # each column is uniform on the sphere: variance 1/3 of a component, 4/45 of its square
    assert np.abs(rotations.mean(axis=0)).max() < 5 * np.sqrt(1 / 3 / n)
    assert np.abs((rotations**2).mean(axis=0) - 1 / 3).max() < 5 * np.sqrt(4 / 45 / n)
    # the trace of a uniform rotation has mean 0 and variance 1 (Haar measure of SO(3))
    assert abs(np.trace(rotations, axis1=1, axis2=2).mean()) < 5 / np.sqrt(n)
    again = random_orientation(np.random.default_rng(5))
    assert np.array_equal(again, rotations[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DetectorParameters("5M"), ["size=5M", "1M"]),
        (lambda: DetectorParameters((10, 0)), ["size=(10, 0)"]),
        (lambda: DetectorParameters((10, 20, 30)), ["size="]),
        (lambda: DetectorParameters(distance=0), ["distance=0", "mm"]),
        (lambda: DetectorParameters(distance=float("nan")), ["distance=nan"]),
        (lambda: DetectorParameters(pixel_size=-0.1), ["pixel_size=-0.1"]),
        (lambda: DetectorParameters(thickness=0), ["thickness=0"]),
        (lambda: DetectorParameters(beam_centre=(1, 2, 3)), ["beam_centre=(1, 2, 3)"]),
        (lambda: DetectorParameters(beam_centre=(1, float("inf"))), ["beam_centre="]),
        (lambda: DetectorParameters(material="Fe"), ["material=Fe", "CdTe"]),
        (lambda: DetectorParameters(count_cutoff=0), ["count_cutoff=0"]),
        (lambda: DetectorParameters(count_cutoff=2**31), ["count_cutoff="]),
        (lambda: BeamParameters(0), ["wavelength=0", "Å"]),
        (lambda: BeamParameters(1, 1.1), ["polarization_fraction=1.1"]),
        (lambda: ScanParameters(width=0), ["width=0"]),
        (lambda: ScanParameters(width=-0.1), ["width=-0.1", "axis"]),  # dxtbx of DIALS 3.12 knows none such
        (lambda: ScanParameters(n_images=0), ["n_images=0"]),
        (lambda: ScanParameters(n_images=2.5), ["n_images=2.5"]),
        (lambda: ScanParameters(exposure=0), ["exposure=0"]),
        (lambda: ScanParameters(first_image=0), ["first_image=0"]),
        (lambda: build_crystal((10, 20, 30, 90, 90, 90), "P 4"), ["unit_cell=(10.0, 20.0, 30.0", "P 4"]),
        (lambda: build_crystal((10, 20, 30, 90, 90), "P 1"), ["unit_cell=(10, 20, 30, 90, 90)"]),
        (lambda: build_crystal((10, 20, 30, 40, 40, 100), "P 1"), ["unit_cell=", "angles"]),
        (lambda: build_crystal("10,20", "P 1"), ["unit_cell=10,20"]),
        (lambda: build_crystal((10, 10, 10, 90, 90, 90), "P 7"), ["space_group=P 7"]),
        (lambda: build_crystal((10, 10, 10, 90, 90, 90), "P 1", -np.eye(3)), ["orientation=", "determinant"]),
        (lambda: build_crystal((10, 10, 10, 90, 90, 90), "P 1", 2 * np.eye(3)), ["orientation="]),
    ],
)
def test_wrong_numbers_are_refused(make, words):
    with pytest.raises(DiffuseError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


def test_geometry_from_a_file_keeps_scan_varying_models(tmp_path):
    experiment = make_experiment(scan_varying=True, kappa=True, detector=make_detector(n_panels=2, tilted=True))
    experiment.imageset = None
    background = make_experiment(n_images=2)
    background.imageset, background.crystal, background.profile = None, None, None
    background.identifier = "background"
    path = tmp_path / "geometry.expt"
    experiment_list(experiment, background).as_file(str(path))

    read, read_background = experiments_from_file(path)
    for name in ("beam", "detector", "goniometer", "scan", "crystal"):
        assert getattr(read, name) == getattr(experiment, name), name
    assert read.crystal.num_scan_points == read.beam.num_scan_points == read.goniometer.num_scan_points == 5
    assert read.crystal.get_A_at_scan_point(3) == pytest.approx(experiment.crystal.get_A_at_scan_point(3))
    assert read.profile.sigma_b(deg=True) == pytest.approx(0.1)
    assert (read.identifier, read_background.identifier) == ("synthetic", "background")
    assert read_background.crystal is None
    assert read_background.scan.get_num_images() == 2


def _without(name):
    experiment = make_experiment()
    experiment.imageset = None
    setattr(experiment, name, None)
    return experiment_list(experiment)


def _still():
    experiment = make_experiment(width=0.0)
    experiment.imageset = None
    return experiment_list(experiment)


@pytest.mark.parametrize(
    ("experiments", "words"),
    [
        (lambda: _without("scan"), ["experiment 0", "no scan"]),
        (lambda: _without("goniometer"), ["no goniometer"]),
        (lambda: _without("detector"), ["no detector"]),
        (_still, ["still"]),
        (ExperimentList, ["no experiments"]),
    ],
)
def test_geometry_that_is_no_rotation_is_refused(tmp_path, experiments, words):
    path = tmp_path / "geometry.expt"
    experiments().as_file(str(path))
    with pytest.raises(DiffuseError) as error:
        experiments_from_file(path)
    assert all(word in str(error.value) for word in ["geometry.expt", *words]), error.value


@pytest.mark.parametrize("text", [None, "", "{", '{"__id__": "nothing"}'])
def test_file_that_is_no_experiment_list_is_refused(tmp_path, text):
    path = tmp_path / "geometry.expt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DiffuseError, match=r"geometry\.expt"):
        experiments_from_file(path)
