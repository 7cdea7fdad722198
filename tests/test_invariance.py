"""What must not matter does not: from images to the merged map, and for models.

The laboratory frame, the names of the crystal's axes, the number of the first image, where the rotation begins, and the
unit of length say nothing about the crystal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cctbx import sgtbx
from dxtbx.model import Beam, Crystal, Detector, Goniometer
from helpers.builders import PROVENANCE, merge, small_grid
from helpers.structures import random_structure
from helpers.synthetic import experiment_list, make_detector, make_experiment, rotation
from scipy.spatial.transform import Rotation

from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import ReductionParameters

SIZE, N_IMAGES = (60, 50), 6
HOW = ReductionParameters(d_min=3.2, subdivide=(2, 3, 2), geometry_check="none")


def images(n_panels=2) -> list:
    rng = np.random.default_rng(3)
    return [[rng.poisson(30.0, SIZE[::-1]).astype(np.int32) for _ in range(n_panels)] for _ in range(N_IMAGES)]


def usual(**options):
    detector = options.pop("detector", None) or make_detector(SIZE, n_panels=2, tilted=True)
    return make_experiment(images(), detector=detector, kappa=True, **options)


def map_of(experiment, folder, how=HOW):
    """The merged map of an experiment, and its observations per voxel."""
    path = folder / "sums.h5"
    integrate(experiment_list(experiment), how, path, PROVENANCE)
    return merge(path).map


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return map_of(usual(), tmp_path_factory.mktemp("usual"))


def the_same(found, expected, rows=slice(None), rtol=2e-5) -> None:
    """Two maps; ``rows`` : where the voxels of the first are in the second.

    Directions are float32, so pixels at the edge of a voxel may fall on either side: a few voxels differ.
    """
    assert len(found.index) == len(expected.index) > 600
    for name in ("intensity", "sigma", "multiplicity"):
        a, b = getattr(found, name), getattr(expected, name)[rows]
        apart = ~np.isclose(a, b, rtol=rtol, atol=0, equal_nan=True)
        assert apart.mean() < 0.002, (name, apart.mean())


def turned_detector(detector, turn, factor=1.0) -> Detector:
    result = Detector()
    for panel in detector:
        axes = (panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin())
        fast, slow, origin = (turn @ np.array(v) for v in axes)
        other = result.add_panel()
        other.set_frame(tuple(fast), tuple(slow), tuple(factor * origin))
        other.set_image_size(panel.get_image_size())
        other.set_pixel_size(tuple(factor * p for p in panel.get_pixel_size()))
        other.set_trusted_range(panel.get_trusted_range())
        other.set_mu(panel.get_mu() / factor)
        other.set_thickness(panel.get_thickness() * factor)
        other.set_gain(1.0)
        other.set_px_mm_strategy(
            type(panel.get_px_mm_strategy())(panel.get_mu() / factor, panel.get_thickness() * factor)
        )
    return result


def with_models(experiment, **models):
    """The same images, seen through other models."""
    result = make_experiment(images(), detector=models.pop("detector", experiment.detector))
    for name in ("beam", "goniometer", "scan", "crystal", "profile"):
        setattr(result, name, models.get(name) or getattr(experiment, name))
    for name in ("beam", "goniometer", "scan"):
        getattr(result.imageset, f"set_{name}")(getattr(result, name))
    return result


@pytest.mark.parametrize("angles", [(0, 0, 90), (20, -35, 110), (180, 0, 0)])
def test_the_laboratory_frame_turned(expected, tmp_path, angles):
    turn, true = rotation(*angles), usual()
    beam = Beam(tuple(turn @ np.array(true.beam.get_s0())))
    beam.set_polarization_normal(tuple(turn @ np.array(true.beam.get_polarization_normal())))
    beam.set_polarization_fraction(true.beam.get_polarization_fraction())
    goniometer = Goniometer(
        true.goniometer.get_rotation_axis_datum(),
        true.goniometer.get_fixed_rotation(),
        tuple((turn @ np.array(true.goniometer.get_setting_rotation()).reshape(3, 3)).ravel()),
    )
    other = with_models(true, beam=beam, goniometer=goniometer, detector=turned_detector(true.detector, turn))
    the_same(map_of(other, tmp_path), expected)


@pytest.mark.parametrize("change", ["c,a,b", "-b,-a,-c", "a,-b,-c"])
def test_the_crystal_reindexed(expected, tmp_path, change):
    """The map has the same values where the new indices are; a voxel is divided as before."""
    operator = sgtbx.change_of_basis_op(change)
    true = usual()
    other = with_models(true, crystal=true.crystal.change_basis(operator))
    named = np.array(operator.c_inv().r().as_double()).reshape(3, 3)  # h' = h C⁻¹
    subdivide = tuple(int(n) for n in np.abs(np.array(HOW.subdivide) @ named))
    found = map_of(other, tmp_path, replace(HOW, subdivide=subdivide))
    # unique voxels are those of the new setting: compare |indices|, mmm has them all equal
    keys = np.abs(np.rint(np.abs(expected.index) @ np.abs(named))).astype(int)
    where = {tuple(key): i for i, key in enumerate(keys)}
    rows = np.array([where[tuple(key)] for key in np.abs(found.index)])
    the_same(found, expected, rows)


def test_the_number_of_the_first_image_and_the_begin_of_the_rotation(expected, tmp_path):
    """Rotation by φ + 17° of a crystal that is turned back by 17° about the axis; images are numbered from 57."""
    true = usual()
    scan = type(true.scan)((57, 56 + N_IMAGES), (47.0, 1.0))
    scan.set_exposure_times(true.scan.get_exposure_times())
    axis = np.array(true.goniometer.get_rotation_axis_datum())
    back = rotation_about(axis, -17.0) @ np.array(true.goniometer.get_fixed_rotation()).reshape(3, 3)
    goniometer = Goniometer(tuple(axis), tuple(back.ravel()), true.goniometer.get_setting_rotation())
    the_same(map_of(with_models(true, scan=scan, goniometer=goniometer), tmp_path), expected)


def rotation_about(axis, degrees) -> np.ndarray:
    return Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()


def test_the_unit_of_the_detector(tmp_path):
    """Everything on the detector side ten times as large: the angles are the same."""
    true = usual()
    large = turned_detector(true.detector, np.eye(3), 10.0)
    the_same(
        map_of(with_models(true, detector=large), tmp_path, HOW_WITHOUT_AIR), map_of(true, tmp_path, HOW_WITHOUT_AIR)
    )


def test_the_unit_of_the_crystal(tmp_path):
    """Cell, wavelength and resolution in half an Ångström."""
    true = usual()
    beam = Beam(tuple(0.5 * np.array(true.beam.get_s0())))
    beam.set_polarization_normal(true.beam.get_polarization_normal())
    beam.set_polarization_fraction(true.beam.get_polarization_fraction())
    a, b, c = (tuple(2 * np.array(v)) for v in true.crystal.get_real_space_vectors())
    crystal = Crystal(a, b, c, space_group_symbol="P222")
    how = replace(HOW_WITHOUT_AIR, d_min=2 * HOW.d_min)
    the_same(
        map_of(with_models(true, beam=beam, crystal=crystal), tmp_path, how), map_of(true, tmp_path, HOW_WITHOUT_AIR)
    )


#: the air takes more of other wavelengths and on longer ways
HOW_WITHOUT_AIR = replace(HOW, corrections=replace(HOW.corrections, air=False))


MODELS = [Uncorrelated(), LiquidLikeMotions(sigma=0.3, gamma=6.0), RigidBody(sigma=0.3)]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_the_origin_of_the_crystal(model):
    """Atoms that are all moved by the same vector in P 1 scatter the same diffuse intensity."""
    cell = (9.0, 10.0, 12.0, 80, 95, 105)
    structure = random_structure("P 1", cell, elements="CNOCSC", u=(0.15, 0.3), radius=3.5, seed=2)
    grid = small_grid("P 1", cell, (2, 2, 2), d_min=2.0)
    moved = replace(structure, site_frac=structure.site_frac + [0.13, -0.41, 0.7])
    here, there = (model.intensity(atoms, grid) for atoms in (structure, moved))
    error = np.sqrt(np.nanmean((there - here) ** 2) / np.nanmean(here**2))
    assert np.nanmax(here) > 0 and error < 2e-4  # structure factors: 1e-4
