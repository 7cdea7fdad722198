"""Directions, Miller indices and corrections of single pixels against DIALS and dxtbx."""

from __future__ import annotations

import numpy as np
import pytest
from cctbx.eltbx import attenuation_coefficient
from helpers import oracle
from helpers.jobs import job_for
from helpers.synthetic import GEOMETRIES, make_crystal, make_detector, make_experiment

from dials_diffuse.experiment.detector import panel_geometry
from dials_diffuse.experiment.pixel_factors import (
    air_attenuation_coefficient,
    polarization,
    sensor_efficiency,
    solid_angle,
)
from dials_diffuse.experiment.scan import exposure_times, scan_geometry
from dials_diffuse.reduction.corrections import Corrections

EXPERIMENTS = {
    **GEOMETRIES,
    "no parallax": {"detector": make_detector(parallax=False)},
    "triclinic": {"crystal": make_crystal((20, 24, 30), "P1", (33, -20, 71)), "kappa": True},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_miller_indices_and_corrections_of_random_pixels(name):
    experiment = make_experiment(**EXPERIMENTS[name])
    job = job_for(experiment)
    air_mu = air_attenuation_coefficient(experiment.beam.get_wavelength())
    rng = np.random.default_rng(1)
    for _ in range(60):
        p = int(rng.integers(len(experiment.detector)))
        image = int(rng.integers(4))
        ny, nx = job.panels[p].shape
        y, x = int(rng.integers(ny)), int(rng.integers(nx))
        matrix, origin = job.scan.to_lattice(image + 0.5, job.grid.subdivide)
        h = (matrix @ job.panels[p].directions[:, y, x] - origin) / job.grid.subdivide
        expected, _ = oracle.miller_index(experiment, p, x + 0.5, y + 0.5, image)
        np.testing.assert_allclose(h, expected, atol=1e-6)
        c = oracle.correction(experiment, p, x + 0.5, y + 0.5, image, air_mu)
        assert job.corrections_at(image)[p][y, x] == pytest.approx(c, rel=1e-6)


@pytest.mark.parametrize("mistake", ["corner", "axis sense", "transposed setting", "no parallax", "no fixed rotation"])
def test_the_oracle_catches_mistakes(mistake):
    """Half a pixel, a mirrored axis, a transposed setting rotation, ... move the Miller index by far more than 1e-6."""
    experiment = make_experiment(**EXPERIMENTS["everything"])
    scan = scan_geometry(experiment)
    offset = (0.0, 0.0) if mistake == "corner" else (0.5, 0.5)
    panel = experiment.detector[0]
    if mistake == "no parallax":
        panel = make_detector(n_panels=2, tilted=True, parallax=False)[0]
    u = panel_geometry(panel, offset).directions[:, 5, 7]
    setting = scan.setting.mean(axis=0)
    axis = -scan.axis if mistake == "axis sense" else scan.axis
    fixed = np.eye(3) if mistake == "no fixed rotation" else scan.fixed
    changed = type(scan)(
        **{
            **scan.__dict__,
            "axis": axis,
            "fixed": fixed,
            "setting": setting.T[None] if mistake == "transposed setting" else scan.setting,
        }
    )
    s0 = changed.s0_at(1.5)
    h = np.linalg.solve(changed.matrix_at(1.5), u * np.linalg.norm(s0) - s0)
    expected, _ = oracle.miller_index(experiment, 0, 7.5, 5.5, 1)
    assert np.abs(h - expected).max() > 1e-3


def test_pixel_centre_lies_between_corners():
    panel = make_detector(parallax=False)[0]
    centre, corner = panel_geometry(panel), panel_geometry(panel, (0.0, 0.0))
    lab = np.array(panel.get_pixel_lab_coord((3.5, 2.5)))
    np.testing.assert_allclose(centre.directions[:, 2, 3], lab / np.linalg.norm(lab), atol=1e-12)
    lab = np.array(panel.get_pixel_lab_coord((3, 2)))
    np.testing.assert_allclose(corner.directions[:, 2, 3], lab / np.linalg.norm(lab), atol=1e-12)


def test_unpolarized_limit_and_vertical_plane():
    rng = np.random.default_rng(0)
    u = rng.normal(size=(3, 50))
    u /= np.linalg.norm(u, axis=0)
    s0, normal = np.array([0, 0, -1.0]), np.array([0, 1.0, 0])
    cos2 = (u[2] * -1) ** 2
    np.testing.assert_allclose(polarization(u, s0, normal, 0.5), (1 + cos2) / 2, atol=1e-12)
    vertical = np.array([[0, 0, 0], np.sin([0.1, 0.5, 1.0]), -np.cos([0.1, 0.5, 1.0])])
    np.testing.assert_allclose(polarization(vertical, s0, normal, 1.0), 1.0, atol=1e-12)
    horizontal = vertical[[1, 0, 2]]
    np.testing.assert_allclose(polarization(horizontal, s0, normal, 1.0), np.cos([0.1, 0.5, 1.0]) ** 2, atol=1e-12)
    cross = np.cross(s0, normal)
    theory = 0.9 * (1 - (cross @ u) ** 2) + 0.1 * (1 - (normal @ u) ** 2)
    np.testing.assert_allclose(polarization(u, s0, normal, 0.9), theory, atol=1e-12)


def test_solid_angles_add_up_to_that_of_the_panel():
    """Sum over pixels against the closed formula for a centred rectangle, 4 asin(ab / sqrt((a²+d²)(b²+d²)))."""
    panel = panel_geometry(make_detector(size=(100, 80), distance=40, parallax=False)[0])
    a, b, d = 100 * 0.4 / 2, 80 * 0.4 / 2, 40.0
    exact = 4 * np.arcsin(a * b / np.sqrt((a**2 + d**2) * (b**2 + d**2)))
    assert solid_angle(panel).sum() == pytest.approx(exact, rel=1e-4)


def test_thick_and_unknown_sensors():
    detector = make_detector()
    panel = panel_geometry(detector[0])
    efficiency = sensor_efficiency(panel)
    assert efficiency.max() > efficiency.min() > 0
    detector[0].set_thickness(0)
    assert np.all(sensor_efficiency(panel_geometry(detector[0])) == 1)
    detector[0].set_thickness(100)
    np.testing.assert_allclose(sensor_efficiency(panel_geometry(detector[0])), 1, atol=1e-12)


def test_air_is_nitrogen_and_oxygen_at_its_density():
    """At 1 Å air attenuates by about 0.3 % per centimetre."""
    mu = air_attenuation_coefficient(1.0)
    nitrogen = attenuation_coefficient.get_table("N").mu_rho_at_angstrom(1.0) * 1.2041e-3 / 10
    assert nitrogen < mu < 1.5 * nitrogen
    assert 2e-4 < mu < 4e-4


@pytest.mark.parametrize("off", [f for f in Corrections.__dataclass_fields__ if f not in ("exposure", "flux")])
def test_every_correction_can_be_switched(off):
    experiment = make_experiment()
    switches = {name: False for name in Corrections.__dataclass_fields__}
    nothing = job_for(experiment, corrections=Corrections(**switches)).corrections_at(0)[0]
    one = job_for(experiment, corrections=Corrections(**{**switches, off: True})).corrections_at(0)[0]
    assert np.all(nothing == 1)
    assert np.ptp(one) > 0


def test_corrections_multiply():
    experiment = make_experiment()
    names = ("solid_angle", "polarization", "efficiency", "air")
    nothing = {name: False for name in Corrections.__dataclass_fields__}
    product = 1.0
    for name in names:
        product = product * job_for(experiment, corrections=Corrections(**{**nothing, name: True})).corrections[0]
    together = job_for(experiment, corrections=Corrections(flux=False)).corrections[0]
    np.testing.assert_allclose(together, product, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.1, 0.2, 0.4], [0.1, 0.2, 0.4]),
        ([0.1, 0.0, 0.0], [0.1, 0.1, 0.1]),  # what dials.import template= makes
        ([0.1, 0.0, 0.2], [1.0, 1.0, 1.0]),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ],
)
def test_exposure_times(given, expected):
    experiment = make_experiment(n_images=3, exposure=given)
    assert exposure_times(experiment.scan) == pytest.approx(expected)
    assert scan_geometry(experiment).exposure == pytest.approx(expected)
