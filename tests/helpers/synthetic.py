"""Synthetic experiments: any geometry, images from arrays in memory or mini-CBF files."""

from __future__ import annotations

import numpy as np
from dials.algorithms.profile_model.gaussian_rs import Model as GaussianProfile
from dxtbx import flumpy
from dxtbx.imageset import ImageSequence, ImageSetData, MemReader
from dxtbx.model import Beam, Crystal, Detector, Experiment, Goniometer, ParallaxCorrectedPxMmStrategy, Scan
from dxtbx.model.experiment_list import ExperimentList
from scipy.spatial.transform import Rotation
from scitbx.array_family import flex

SILICON_MU = 3.9  # 1/mm, about 1 Å
THICKNESS = 0.45  # mm


class MemoryImage:
    """What dxtbx's MemReader expects: one flex array per panel."""

    def __init__(self, panels):
        self._panels = tuple(flumpy.from_numpy(np.ascontiguousarray(p)) for p in panels)

    def get_raw_data(self):
        return self._panels


def rotation(*angles) -> np.ndarray:
    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def make_detector(size=(60, 50), distance=60.0, pixel=0.4, n_panels=1, tilted=False, parallax=True) -> Detector:
    """One panel, or two beside each other; tilted panels are rotated about all axes."""
    nx, ny = size
    detector = Detector()
    for i in range(n_panels):
        panel = detector.add_panel()
        turn = rotation(7 + 3 * i, -12 + 20 * i, 4) if tilted else np.eye(3)
        fast, slow, normal = turn @ [1, 0, 0], turn @ [0, -1, 0], turn @ [0, 0, 1]
        shift = (i - (n_panels - 1) / 2) * (nx + 4) * pixel
        centre = np.array([shift, 0, 0]) - distance * normal * (1 if not tilted else 0.98)
        origin = centre - fast * nx * pixel / 2 - slow * ny * pixel / 2
        panel.set_frame(tuple(fast), tuple(slow), tuple(origin))
        panel.set_image_size((nx, ny))
        panel.set_pixel_size((pixel, pixel))
        panel.set_trusted_range((-1, 1e6))
        panel.set_name(f"panel{i}")
        panel.set_mu(SILICON_MU)
        panel.set_thickness(THICKNESS)
        panel.set_gain(1.0)
        if parallax:
            panel.set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(SILICON_MU, THICKNESS))
    return detector


def make_crystal(cell=(20, 24, 30), space_group="P222", angles=(10, 20, 30)) -> Crystal:
    axes = rotation(*angles) @ np.diag(cell)
    return Crystal(*(tuple(v) for v in axes.T), space_group_symbol=space_group)


def make_experiment(
    images=None,
    n_images=4,
    width=1.0,
    detector=None,
    crystal=None,
    scan_varying=False,
    kappa=False,
    exposure=None,
    profile=(0.1, 0.2),
    identifier="synthetic",
    polarization=0.99,
    first_image=1,
) -> Experiment:
    """An Experiment on images in memory.

    images : list over images of lists over panels of (ny, nx) arrays; default: all pixels 10
    scan_varying : crystal, beam and setting rotation drift over the scan
    kappa : a tilted rotation axis with fixed and setting rotations
    """
    detector = detector or make_detector()
    n_images = len(images) if images is not None else n_images
    if images is None:
        images = [[np.full(p.get_image_size()[::-1], 10, dtype=np.int32) for p in detector]] * n_images
    beam = Beam((0.01, -0.02, 1.0), 1.0)
    beam.set_polarization_normal((0, 1, 0))
    beam.set_polarization_fraction(polarization)
    goniometer = Goniometer((1, 0, 0))
    if kappa:
        axis = rotation(5, 10, 40) @ [1, 0, 0]
        goniometer = Goniometer(tuple(axis), tuple(rotation(20, 40, -30).ravel()), tuple(rotation(3, -8, 5).ravel()))
    times = flex.double(exposure if exposure is not None else [1.0] * n_images)
    scan = Scan((first_image, first_image + n_images - 1), (30.0, width))
    scan.set_exposure_times(times)
    crystal = crystal or make_crystal()
    if scan_varying:
        points = range(n_images + 1)
        a = np.array(crystal.get_A()).reshape(3, 3)
        crystal.set_A_at_scan_points([tuple((rotation(0.02 * i, 0.03 * i, -0.01 * i) @ a).ravel()) for i in points])
        s0 = np.array(beam.get_s0())
        beam.set_s0_at_scan_points(flex.vec3_double([tuple(rotation(0.01 * i, 0, 0) @ s0) for i in points]))
        setting = np.array(goniometer.get_setting_rotation()).reshape(3, 3)
        goniometer.set_setting_rotation_at_scan_points(
            [tuple((rotation(0, 0.02 * i, 0) @ setting).ravel()) for i in points]
        )
    reader = MemReader([MemoryImage(panels) for panels in images])
    data = ImageSetData(reader=reader, masker=None)
    imageset = ImageSequence(
        data, beam=beam, detector=detector, goniometer=goniometer, scan=scan, indices=flex.size_t(range(n_images))
    )
    return Experiment(
        imageset=imageset,
        beam=beam,
        detector=detector,
        goniometer=goniometer,
        scan=scan,
        crystal=crystal,
        profile=GaussianProfile(None, 3, *profile, deg=True) if profile else None,
        identifier=identifier,
    )


def experiment_list(*experiments) -> ExperimentList:
    result = ExperimentList()
    for experiment in experiments:
        result.append(experiment)
    return result


#: options of make_experiment: what positions and corrections have to cope with
GEOMETRIES = {
    "simple": {},
    "scan_varying": {"scan_varying": True},
    "tilted two-panel": {"detector": make_detector(n_panels=2, tilted=True)},
    "kappa": {"kappa": True},
    "everything": {"kappa": True, "scan_varying": True, "detector": make_detector(n_panels=2, tilted=True)},
}
