"""The slow, obvious way from pixels to voxel sums: one pixel at a time with calls to DIALS and dxtbx."""

from __future__ import annotations

import copy
import math
from collections import defaultdict

import numpy as np
from dials_algorithms_integration_ext import Corrections
from scitbx import matrix


def scan_point_mean(at, i: int):
    """Model halfway between scan points i and i + 1."""
    return 0.5 * (np.array(at(i)) + np.array(at(i + 1)))


def crystal_frame(experiment, image: int, fraction: float = 0.5):
    """(S R F A, s0) at a fraction of an image, from dxtbx's own accessors."""
    beam, goniometer, crystal, scan = experiment.beam, experiment.goniometer, experiment.crystal, experiment.scan

    def model(number, at, static):
        if number == 0:
            return np.array(static())
        return (1 - fraction) * np.array(at(image)) + fraction * np.array(at(image + 1))

    s0 = model(beam.num_scan_points, beam.get_s0_at_scan_point, beam.get_s0)
    setting = model(
        goniometer.num_scan_points, goniometer.get_setting_rotation_at_scan_point, goniometer.get_setting_rotation
    )
    a = model(crystal.num_scan_points, crystal.get_A_at_scan_point, crystal.get_A)
    angle = scan.get_angle_from_array_index(scan.get_array_range()[0] + image + fraction)
    axis = matrix.col(goniometer.get_rotation_axis_datum())
    turn = np.array(axis.axis_and_angle_as_r3_rotation_matrix(angle, deg=True)).reshape(3, 3)
    fixed = np.array(goniometer.get_fixed_rotation()).reshape(3, 3)
    return setting.reshape(3, 3) @ turn @ fixed @ a.reshape(3, 3), s0


def miller_index(experiment, panel: int, x: float, y: float, image: int, fraction: float = 0.5):
    """Fractional Miller index and s1 of a position on a panel, in pixels."""
    frame, s0 = crystal_frame(experiment, image, fraction)
    lab = np.array(experiment.detector[panel].get_pixel_lab_coord((x, y)))
    s1 = lab / np.linalg.norm(lab) * np.linalg.norm(s0)
    return np.linalg.solve(frame, s1 - s0), s1


def correction(experiment, panel: int, x: float, y: float, image: int, air_mu: float):
    """Product of all pixel corrections, with polarization and sensor efficiency from DIALS."""
    _, s0 = crystal_frame(experiment, image)
    model = experiment.detector[panel]
    lab = matrix.col(model.get_pixel_lab_coord((x, y)))
    s1 = lab.normalize() * float(np.linalg.norm(s0))
    cosine = abs(lab.normalize().dot(matrix.col(model.get_normal())))
    size = model.get_pixel_size()
    solid_angle = 1e6 * size[0] * size[1] * cosine / lab.length() ** 2
    beam = copy.deepcopy(experiment.beam)
    beam.reset_scan_points()
    beam.set_s0(tuple(s0))
    dials = Corrections(beam, experiment.goniometer, experiment.detector)
    axis = np.array(experiment.goniometer.get_rotation_axis())
    lorentz = abs(np.dot(np.array(s1), np.cross(axis, s0))) / np.dot(s0, s0)
    polarization = lorentz / dials.lp(tuple(s1))
    return solid_angle * polarization * dials.qe(tuple(s1), panel) * math.exp(-air_mu * lab.length())


def voxel_sums(experiment, images, grid, corrections, bad, n_sub: int = 1) -> dict:
    """Sums keyed by (panel, index): [pixels, counts, norm, counts of odd images], without any mask but ``bad``.

    images : list of lists of (ny, nx) arrays; corrections, bad : lists of (ny, nx) arrays
    """
    sums: dict = defaultdict(lambda: np.zeros(4))
    subdivide = np.array(grid.subdivide)
    for i, panels in enumerate(images):
        for sub in range(n_sub):
            fraction = (sub + 0.5) / n_sub
            for p, raw in enumerate(panels):
                for y, x in np.argwhere(bad[p] == 0):
                    h, _ = miller_index(experiment, p, x + 0.5, y + 0.5, i, fraction)
                    index = tuple(np.floor(h * subdivide + 0.5).astype(int))
                    odd = raw[y, x] if i % 2 else 0
                    sums[p, index] += np.array([1, raw[y, x], corrections[p][y, x], odd]) / n_sub
    return {key: value for key, value in sums.items() if grid.inside(np.array(key[1]))}
