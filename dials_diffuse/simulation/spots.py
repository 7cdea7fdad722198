"""Bragg spots: their strength, and their shape from mosaicity, divergence, bandwidth and spot size.

All imperfections are small Gaussian perturbations of the diffraction condition ``|s0 + s| = |s0|``, so a spot is a
Gaussian in x, y (pixels) and z (images).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cctbx import miller
from cctbx.crystal import symmetry

from dials_diffuse.checks import not_negative, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.scan import ScanGeometry, between_points, scan_geometry
from dials_diffuse.experiment.spot_prediction import MIN_ZETA, gaussian_profile, ray_intersections, to_pixels
from dials_diffuse.kernels.spots import add_spots
from dials_diffuse.maps.symmetry import laue_operators

logger = logging.getLogger("dials.diffuse.simulation")

N_SIGMA = 5.0  # spots end here; 6e-7 of a Gaussian lies beyond
_MAX_STEPS = 10  # of Newton's method
_STEP = 1e-3  # images, for derivatives along the rotation
_TURN = 1e-5  # radians, for derivatives on the detector


@dataclass(frozen=True)
class SpotShape:
    """What makes Bragg spots wide; standard deviations.

    Attributes
    ----------
    mosaicity : degrees about each of three axes, the misorientation of mosaic blocks
    divergence : degrees about each of two axes, of the beam
    bandwidth : relative, of the wavelength
    spot_size : mm along each axis of the detector: crystal, beam and point spread together
    """

    mosaicity: float = 0.08
    divergence: float = 0.02
    bandwidth: float = 2e-4
    spot_size: float = 0.12

    def __post_init__(self):
        positive("spots.mosaicity", self.mosaicity)
        positive("spots.spot_size", self.spot_size)
        not_negative("spots.divergence", self.divergence)
        not_negative("spots.bandwidth", self.bandwidth)


@dataclass(frozen=True)
class Spots:
    """Bragg spots of one experiment. A spot between two panels comes once for each, since its tails reach both.

    Attributes
    ----------
    panel : (n,) int32
    hkl : (n, 3) int32
    s1 : (n, 3) float64 diffracted beams, laboratory frame, 1/Å
    centre : (n, 3) float64; x, y in pixels (pixel centres at i + 0.5) and the image position counted from the start
        of the scan; outside panel and scan where only a tail is inside
    covariance : (n, 3, 3) float64 of the same
    strength : (n,) float64, integral over pixels and images, electrons² steradian images
    """

    panel: np.ndarray
    hkl: np.ndarray
    s1: np.ndarray
    centre: np.ndarray
    covariance: np.ndarray
    strength: np.ndarray

    def __len__(self) -> int:
        return len(self.panel)

    def render(self, image: int, panel_shapes) -> list:
        """Bragg intensity times solid angle in every pixel of one image, averaged over its rotation.

        Parameters
        ----------
        image : counted from the start of the scan
        panel_shapes : (ny, nx) of each panel

        Returns
        -------
        list of (ny, nx) float64, electrons² steradian; the sum over images is that of ``strength``
        """
        reach = N_SIGMA * np.sqrt(self.covariance[:, 2, 2])
        active = (self.centre[:, 2] + reach > image) & (self.centre[:, 2] - reach < image + 1)
        result = [np.zeros(shape) for shape in panel_shapes]
        for p, pixels in enumerate(result):
            mine = np.flatnonzero(active & (self.panel == p))
            add_spots(
                pixels, self.centre[mine], self.covariance[mine], self.strength[mine], image, image + 1.0, N_SIGMA
            )
        return result


def simulate_spots(experiment, f_squared: Callable | tuple, shape: SpotShape, d_min: float) -> Spots:
    """All Bragg spots of which some part lies on the detector during the scan.

    Integrating ``I(s) = |F|²/V δ³(s - h)`` over solid angle and rotation, ``d³s = λ⁻² dΩ |v·ŝ1| dz`` where v is the
    velocity of the reciprocal-lattice point, 1/Å per image, gives the strength ``|F|² λ² / (V |v·ŝ1|)``. For a static
    crystal ``v = Δφ m2 × s``, and this is Darwin's ``|F|² λ³ / (V Δφ L)`` with the Lorentz factor of DIALS,
    ``L = |s1·(m2 × s0)| / |s0|²``.

    Reflections within zeta = MIN_ZETA of the rotation axis are left out, as in DIALS: they touch the Ewald sphere for
    so long that neither a strength nor a Gaussian describes them.

    Parameters
    ----------
    experiment : dxtbx Experiment; models may vary over the scan
    f_squared : ``f(hkl)`` with (n, 3) int32 -> (n,), or a tuple: (n, 3) indices of the asymmetric unit of a Laue group,
        their |F|², and an sgtbx.space_group of that Laue group; electrons² per unit cell
    d_min : Å

    Raises
    ------
    DiffuseError
        If ``d_min`` cannot be reached with this wavelength.
    """
    scan = scan_geometry(experiment)
    middle = scan.n_images / 2
    wavelength = 1 / np.linalg.norm(scan.s0_at(middle))
    if d_min is None or not d_min > wavelength / 2:
        raise DiffuseError(f"d_min={d_min}: must be larger than half the wavelength, {wavelength / 2:.3f} Å")
    hkl, f_squared = _reflections(experiment.crystal, f_squared, d_min)
    # mosaicity and divergence give a rocking width of sigma / zeta, bandwidth sigma tan(theta) / zeta
    rocking = math.hypot(shape.mosaicity, shape.divergence) + math.degrees(shape.bandwidth) * _tan_theta(
        wavelength, d_min
    )
    which, z = _crossings(scan, hkl, N_SIGMA * rocking / MIN_ZETA / scan.oscillation[1])
    s0, s, velocity, rate = _at_crossing(scan, hkl[which], z)
    moves, delays = _perturbations(shape, s0, s, velocity, rate)
    near = np.abs(z - middle) < middle + N_SIGMA * np.linalg.norm(delays, axis=1)
    s1 = s0 + s
    direction = s1 / np.linalg.norm(s1, axis=1, keepdims=True)
    volume = experiment.crystal.get_unit_cell().volume()
    strength = f_squared[which] / (volume * np.einsum("ni,ni->n", s0, s0) * np.abs(rate))
    parts = []
    for p, panel in enumerate(experiment.detector):
        chosen, centre, covariance = _on_panel(panel, direction, moves, delays, shape.spot_size, near)
        centre = np.column_stack([centre, z[chosen]])
        parts.append(
            (np.full(len(chosen), p, np.int32), hkl[which[chosen]], s1[chosen], centre, covariance, strength[chosen])
        )
    spots = Spots(*(np.concatenate(column) for column in zip(*parts)))
    logger.info("%d Bragg spots to %.2f Å", len(spots), d_min)
    return spots


def spot_extent_model(shape: SpotShape, experiment):
    """The DIALS profile model that Bragg masks and dials.integrate need for spots of this shape.

    sigma_m and sigma_b are those at the largest scattering angle on the detector, for reflections in the plane across
    the rotation axis. Source: the linear maps of :func:`simulate_spots` at zeta = 1.
    """
    distance = min(abs(panel.get_directed_distance()) for panel in experiment.detector)
    wavelength = experiment.beam.get_wavelength()
    d_min = experiment.detector.get_max_resolution(experiment.beam.get_s0())
    tan_theta = _tan_theta(wavelength, d_min)
    bandwidth = math.degrees(shape.bandwidth) * tan_theta
    sigma_m = math.hypot(shape.mosaicity, shape.divergence, bandwidth)
    spread = math.degrees(shape.spot_size / distance)
    sigma_b = math.hypot(spread, shape.divergence, wavelength / d_min * shape.mosaicity, 2 * bandwidth)
    return gaussian_profile(sigma_b, sigma_m)


def _tan_theta(wavelength: float, d_min: float) -> float:
    return math.tan(math.asin(wavelength / (2 * d_min)))


def _reflections(model, f_squared, d_min: float) -> tuple:
    """(n, 3) int32 indices in the whole sphere, and their nonzero |F|²."""
    if callable(f_squared):
        indices = miller.build_set(symmetry(model.get_unit_cell(), "P1"), True, d_min=d_min).indices()
        hkl = indices.as_vec3_double().as_numpy_array().astype(np.int32)
        values = np.asarray(f_squared(hkl), dtype=float)
    else:
        unique, values, space_group = f_squared
        operators = laue_operators(space_group, True)
        hkl = np.concatenate([np.asarray(unique) @ operator for operator in operators]).astype(np.int32)
        hkl, first = np.unique(hkl, axis=0, return_index=True)
        values = np.tile(np.asarray(values, dtype=float), len(operators))[first]
    magnitude = np.linalg.norm(hkl @ np.array(model.get_B()).reshape(3, 3).T, axis=1)
    use = (magnitude > 0) & (magnitude <= 1 / d_min) & (values > 0)
    return hkl[use], values[use]


def _crossings(scan: ScanGeometry, hkl: np.ndarray, padding: float) -> tuple:
    """Where reflections pass through the Ewald sphere.

    In the frame before the setting rotation ``s = along a + across cos φ + (a × across) sin φ``, so the condition
    ``2 s0·s + s² = 0`` is ``A cos φ + B sin φ = C``. That is solved with the models in mid-scan; where they
    vary, Newton's method does the rest.

    Returns
    -------
    which : (m,) rows of ``hkl``
    z : (m,) position in images, up to ``padding`` images outside the scan
    """
    middle = scan.n_images / 2
    s0 = between_points(scan.setting, middle).T @ scan.s0_at(middle)
    s = hkl @ (scan.fixed @ between_points(scan.orientation, middle)).T
    along = s @ scan.axis
    across = s - along[:, None] * scan.axis
    a, b = across @ s0, np.cross(scan.axis, across) @ s0
    c = -0.5 * np.einsum("ni,ni->n", s, s) - along * (scan.axis @ s0)
    amplitude = np.hypot(a, b)
    meets = np.flatnonzero(np.abs(c) < amplitude)
    offset = np.arccos(c[meets] / amplitude[meets])
    phase = np.arctan2(b[meets], a[meets])
    which = np.concatenate([meets, meets])
    z = (np.degrees(np.concatenate([phase + offset, phase - offset])) - scan.oscillation[0]) / scan.oscillation[1]
    period = 360 / scan.oscillation[1]
    lowest, highest = -padding, scan.n_images + padding
    z = lowest + np.mod(z - lowest, period)
    turns = np.arange(int((highest - lowest) / period) + 1)
    z = (z + period * turns[:, None]).ravel()
    which = np.tile(which, len(turns))
    inside = z < highest
    which, z = which[inside], z[inside]
    keep = _zeta(scan, hkl[which], z) >= MIN_ZETA
    which, z = which[keep], z[keep]
    for _ in range(_MAX_STEPS):
        s0, s, _, rate = _at_crossing(scan, hkl[which], z)
        step = _excess(s0, s) / rate
        z = z - step
        if np.abs(step).max(initial=0) < 1e-8:
            break
    return which, z


def _vectors(scan: ScanGeometry, hkl: np.ndarray, z: np.ndarray) -> tuple:
    """(n, 3) beams s0 and scattering vectors s in the laboratory frame at positions z, 1/Å."""
    s = np.einsum("nij,nj->ni", scan.fixed @ between_points(scan.orientation, z), hkl)
    angle = np.radians(scan.angle(z))[:, None]
    along = np.outer(s @ scan.axis, scan.axis)
    s = along + np.cos(angle) * (s - along) + np.sin(angle) * np.cross(scan.axis, s)
    s = np.einsum("nij,nj->ni", between_points(scan.setting, z), s)
    return np.broadcast_to(scan.s0_at(z), s.shape), s


def _excess(s0: np.ndarray, s: np.ndarray) -> np.ndarray:
    """(n,) distance of reciprocal-lattice points from the Ewald sphere, 1/Å, positive outside."""
    return np.linalg.norm(s0 + s, axis=1) - np.linalg.norm(s0, axis=1)


def _zeta(scan: ScanGeometry, hkl: np.ndarray, z: np.ndarray) -> np.ndarray:
    """|m2 · (s1 × s0)| / |s1 × s0|, Kabsch (2010)."""
    s0, s = _vectors(scan, hkl, z)
    normal = np.cross(s, s0)
    axis = scan.axis_at(z)
    return np.abs(np.einsum("ni,ni->n", normal, np.broadcast_to(axis, normal.shape))) / np.linalg.norm(normal, axis=1)


def _at_crossing(scan: ScanGeometry, hkl: np.ndarray, z: np.ndarray) -> tuple:
    """s0, s, velocity d(s0 + s)/dz, and rate of change of the distance from the Ewald sphere, per image."""
    s0, s = _vectors(scan, hkl, z)
    (s0_before, s_before), (s0_after, s_after) = (_vectors(scan, hkl, z + step) for step in (-_STEP, _STEP))
    velocity = (s0_after + s_after - s0_before - s_before) / (2 * _STEP)
    return s0, s, velocity, (_excess(s0_after, s_after) - _excess(s0_before, s_before)) / (2 * _STEP)


def _perturbations(shape: SpotShape, s0, s, velocity, rate) -> tuple:
    """What one standard deviation of each perturbation does to a spot.

    To first order a perturbation (δs0, δs) delays the reflection by ``dz = -(ŝ1·(δs0 + δs) - δ|s0|) / rate`` and moves
    the diffracted beam by ``δs0 + δs + v dz``. Mosaic rotation: ``δs = δω × s``; divergence: δs0 across s0; relative
    change of the wave number: ``δs0 = ε s0``.

    Returns
    -------
    moves : (n, 6, 3) float64, change of the direction of the diffracted beam
    delays : (n, 6) float64, images
    """
    k = np.linalg.norm(s0, axis=1, keepdims=True)
    s1 = s0 + s
    direction = s1 / np.linalg.norm(s1, axis=1, keepdims=True)
    change = np.empty((len(s), 6, 3))
    longer = np.zeros((len(s), 6))
    change[:, :3] = math.radians(shape.mosaicity) * np.cross(np.eye(3), s[:, None])
    change[:, 3:5] = math.radians(shape.divergence) * np.stack(_across(s0 / k), axis=1) * k[:, None]
    change[:, 5] = shape.bandwidth * s0
    longer[:, 5] = shape.bandwidth * k[:, 0]
    delays = -(np.einsum("nji,ni->nj", change, direction) - longer) / rate[:, None]
    change += velocity[:, None] * delays[:, :, None]
    change -= np.einsum("nji,ni->nj", change, direction)[:, :, None] * direction[:, None]
    return change / k[:, None], delays


def _across(direction: np.ndarray) -> tuple:
    """Two (n, 3) unit vectors across (n, 3) unit vectors, and across each other."""
    reference = np.eye(3)[np.abs(direction).argmin(axis=1)]
    first = np.cross(direction, reference)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return first, np.cross(direction, first)


def _on_panel(panel, direction, moves, delays, spot_size: float, near) -> tuple:
    """Rows of the reflections of which some part lies on a panel, with their (n, 2) centre and (n, 3, 3) covariance."""
    size, pixel = np.array(panel.get_image_size()), np.array(panel.get_pixel_size())
    mm, distance = ray_intersections(panel, direction)
    oblique = distance**2 / abs(panel.get_directed_distance())  # mm per radian where rays fan out most
    reach = N_SIGMA * (spot_size + oblique * np.linalg.norm(moves, axis=(1, 2)))[:, None]
    with np.errstate(invalid="ignore"):
        chosen = np.flatnonzero(near & np.all((mm > -reach) & (mm < size * pixel + reach), axis=1))
    centre = to_pixels(panel, mm[chosen])
    u = direction[chosen]
    maps = np.zeros((len(chosen), 3, 6))
    for across in _across(u):
        ahead, behind = (to_pixels(panel, ray_intersections(panel, u + t * across)[0]) for t in (_TURN, -_TURN))
        along = np.einsum("nji,ni->nj", moves[chosen], across)
        maps[:, :2] += ((ahead - behind) / (2 * _TURN))[:, :, None] * along[:, None]
    maps[:, 2] = delays[chosen]
    covariance = maps @ maps.transpose(0, 2, 1)
    covariance[:, [0, 1], [0, 1]] += (spot_size / pixel) ** 2
    reach = N_SIGMA * np.sqrt(covariance[:, [0, 1], [0, 1]])
    keep = np.all((centre > -reach) & (centre < size + reach), axis=1)
    return chosen[keep], centre[keep], covariance[keep]
