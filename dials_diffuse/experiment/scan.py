"""Detector, beam, goniometer and crystal as plain arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from dials_diffuse.compat import is_xray, scan_times
from dials_diffuse.maps.grid import MapGrid


@dataclass(frozen=True)
class ScanGeometry:
    """Beam, goniometer and crystal of one experiment at any array index, static or scan-varying.

    Attributes
    ----------
    first_index, n_images : array index of the first image, and their number
    oscillation : start and width in degrees
    exposure : (n_images,) float64 seconds, 1 where the scan does not say
    axis : (3,) rotation axis before the setting rotation
    fixed : (3, 3) F
    setting, orientation : (n, 3, 3) S and A = U B, n = 1 or n_images + 1 scan points
    s0 : (n, 3) beam vector, 1/Å
    polarization_normal, polarization_fraction : of the beam; the fraction is None for electrons
    """

    first_index: int
    n_images: int
    oscillation: tuple
    exposure: np.ndarray
    axis: np.ndarray
    fixed: np.ndarray
    setting: np.ndarray
    orientation: np.ndarray
    s0: np.ndarray
    polarization_normal: np.ndarray
    polarization_fraction: float | None

    def angle(self, position):
        """Rotation angle in degrees; ``position`` counts images from the start of the scan, 0.5 = mid-first."""
        return self.oscillation[0] + self.oscillation[1] * position

    def s0_at(self, position) -> np.ndarray:
        """(3,) beam vector in 1/Å; for (n,) positions (n, 3), or (1, 3) where it does not vary."""
        return between_points(self.s0, position)

    def beam_at(self, position: float) -> tuple:
        """Beam vector in 1/Å, polarization normal and fraction: the last arguments of :func:`polarization`."""
        return self.s0_at(position), self.polarization_normal, self.polarization_fraction

    def axis_at(self, position) -> np.ndarray:
        """(3,) rotation axis in the laboratory frame; for (n,) positions (n, 3), or (1, 3) where it does not vary."""
        return between_points(self.setting, position) @ self.axis

    def rotation_at(self, position: float) -> np.ndarray:
        """(3, 3) ``S R(φ) F``: takes vectors fixed to the goniometer head to the laboratory frame."""
        rotation = Rotation.from_rotvec(np.deg2rad(self.angle(position)) * self.axis).as_matrix()
        return between_points(self.setting, position) @ rotation @ self.fixed

    def matrix_at(self, position: float) -> np.ndarray:
        """(3, 3) ``S R(φ) F A``: takes Miller indices to the laboratory frame, 1/Å."""
        return self.rotation_at(position) @ between_points(self.orientation, position)

    def to_lattice(self, position: float, subdivide) -> tuple:
        """``(matrix, origin)``: a pixel in direction u lies at ``matrix @ u - origin`` on the subdivided lattice.

        subdivide : (3,) steps of the lattice per reciprocal-lattice step
        """
        s0 = self.s0_at(position)
        to_index = np.diag(subdivide) @ np.linalg.inv(self.matrix_at(position))
        return to_index * np.linalg.norm(s0), to_index @ s0

    def in_head_frame(self) -> dict:
        """Mid-scan ``orientation`` (9, A row by row, 1/Å), ``axis`` (3) and ``beam`` (3, at angle 0, 1/Å) as tuples.

        In the frame of the goniometer head, where crystals do not move: ``x_lab = S R(φ) F x_head``.
        """
        middle = self.n_images / 2
        beam = self.fixed.T @ np.linalg.solve(between_points(self.setting, middle), self.s0_at(middle))
        return {
            "orientation": tuple(between_points(self.orientation, middle).ravel().tolist()),
            "axis": tuple((self.fixed.T @ self.axis).tolist()),
            "beam": tuple(beam.tolist()),
        }

    @property
    def beam_varies(self) -> bool:
        return len(self.s0) > 1


def between_points(points: np.ndarray, position) -> np.ndarray:
    """Linear interpolation between scan points, which lie at the positions 0, 1, 2 ...

    Parameters
    ----------
    points : (m, ...) float64; m = 1 where nothing varies
    position : a number, or (n,) float64; before the first and behind the last point the line goes on

    Returns
    -------
    (...) for a number, (n, ...) for an array, (1, ...) for an array where nothing varies
    """
    position = np.asarray(position)
    if len(points) == 1:
        return points[0] if position.ndim == 0 else points
    i = np.clip(position.astype(int), 0, len(points) - 2)
    t = (position - i).reshape(*position.shape, *[1] * (points.ndim - 1))
    return (1 - t) * points[i] + t * points[i + 1]


def has_exposure_times(scan) -> bool:
    """Does a scan say how long images were exposed? False as well where there is no scan."""
    return scan is not None and any(t > 0 for t in scan_times(scan)[0])


def exposure_times(scan) -> np.ndarray:
    """(n_images,) seconds, all positive.

    Images without a time get that of the others if these agree: ``dials.import template=`` sets only the first.
    Where the scan says nothing, or not enough, it is 1 for all.
    """
    times = np.array(scan_times(scan)[0], dtype=float)
    known = times[times > 0]
    if len(times) != scan.get_num_images() or not len(known):
        return np.ones(scan.get_num_images())
    if len(known) < len(times):
        return np.full(len(times), known[0] if np.ptp(known) <= 1e-6 * known[0] else 1.0)
    return times


def scan_geometry(experiment) -> ScanGeometry:
    """The ScanGeometry of a dxtbx Experiment; the orientation is the unit matrix where there is no crystal."""
    scan, goniometer, beam, crystal = experiment.scan, experiment.goniometer, experiment.beam, experiment.crystal
    n = scan.get_num_images()

    def points(number, at, static, shape):
        values = [at(i) for i in range(number)] if number == n + 1 else [static()]
        return np.array([np.array(v) for v in values]).reshape(-1, *shape)

    return ScanGeometry(
        first_index=scan.get_array_range()[0],
        n_images=n,
        oscillation=tuple(scan.get_oscillation()),
        exposure=exposure_times(scan),
        axis=np.array(goniometer.get_rotation_axis_datum()),
        fixed=np.array(goniometer.get_fixed_rotation()).reshape(3, 3),
        setting=points(
            goniometer.num_scan_points,
            goniometer.get_setting_rotation_at_scan_point,
            goniometer.get_setting_rotation,
            (3, 3),
        ),
        orientation=np.eye(3)[None]
        if crystal is None
        else points(crystal.num_scan_points, crystal.get_A_at_scan_point, crystal.get_A, (3, 3)),
        s0=points(beam.num_scan_points, beam.get_s0_at_scan_point, beam.get_s0, (3,)),
        polarization_normal=np.array(beam.get_polarization_normal()),
        polarization_fraction=beam.get_polarization_fraction() if is_xray(beam) else None,
    )


MAX_SUB_STEPS = 20


def sub_steps(grid: MapGrid, scan: ScanGeometry) -> int:
    """Sub-steps that keep the arc of one sub-step at d_min within one voxel."""
    arc = abs(math.radians(scan.oscillation[1])) / grid.d_min
    edge = min(np.linalg.norm(grid.reciprocal_matrix, axis=0) / np.array(grid.subdivide))
    return int(min(max(math.ceil(arc / edge), 1), MAX_SUB_STEPS))
