"""Where Bragg peaks are: predicted by DIALS, with the extent of its profile model or of the strong reflections."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
from dials.algorithms.profile_model.gaussian_rs import Model as GaussianProfile
from dials.array_family import flex
from dxtbx import flumpy
from dxtbx.model import Detector, Experiment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.scan import scan_geometry

logger = logging.getLogger("dials.diffuse.experiment")

MAX_PADDING = 10.0  # degrees beyond the ends of the scan where reflections with tails inside are looked for
MIN_STRONG = 20  # reflections to measure the spot size on
MIN_ZETA = 0.05  # DIALS's own limit: closer to the rotation axis a rocking width means nothing


@dataclass(frozen=True)
class SpotSize:
    """Angular spread of Bragg spots (radians), as in the DIALS profile model: ``sigma_b`` on the detector, ``sigma_m``
    about the rotation axis; arrays of one value, or one per image."""

    sigma_b: np.ndarray
    sigma_m: np.ndarray
    source: str

    def at(self, image) -> tuple:
        """(sigma_b, sigma_m) at image numbers counted from the start of the scan."""
        return tuple(v[np.clip(image, 0, len(v) - 1).astype(int)] for v in (self.sigma_b, self.sigma_m))


@dataclass(frozen=True)
class PredictedSpots:
    """All Bragg reflections of one experiment.

    Attributes
    ----------
    panel : (n,) int
    centre : (n, 3) float64; x, y in pixels and the image position counted from the start of the scan
    direction : (n, 3) float64 unit vectors
    sigma_b : (n,) float64 radians
    sigma_z : (n,) float64, rocking width in images
    hkl : (n, 3) int32
    axes : (n, 2, 3) float64 unit vectors across the diffracted beam, e1 along s1 x s0 and e2 along s1 x e1
    s : (n,) float64, 1/Å
    speed : (n,) float64, 1/Å per radian of rotation: how fast the reciprocal-lattice point crosses the Ewald sphere
    """

    panel: np.ndarray
    centre: np.ndarray
    direction: np.ndarray
    sigma_b: np.ndarray
    sigma_z: np.ndarray
    hkl: np.ndarray
    axes: np.ndarray
    s: np.ndarray
    speed: np.ndarray

    def __len__(self) -> int:
        return len(self.panel)

    def moved(self, images: int) -> PredictedSpots:
        """These spots, where the scan starts ``images`` earlier."""
        return replace(self, centre=self.centre + [0, 0, images])


def spot_size(experiment, reflections=None) -> SpotSize:
    """Spot size from the profile model, or measured on the reflections when there is none.

    Raises
    ------
    DiffuseError
        If there is neither a profile model nor reflections with bounding boxes.
    """
    profile = experiment.profile
    if profile is not None and hasattr(profile, "sigma_b"):
        if profile.is_scan_varying():
            return SpotSize(np.array(profile._sigma_b), np.array(profile._sigma_m), "profile model (scan-varying)")
        b, m = profile.sigma_b(deg=False), profile.sigma_m(deg=False)
        return SpotSize(np.array([b]), np.array([m]), "profile model")
    if reflections is None or "bbox" not in reflections:
        raise DiffuseError(
            f"experiment {experiment.identifier or '0'} has no profile model to mask Bragg peaks with: give the "
            f".refl file of its strong reflections as well, or set mask.bragg.sigma_b and mask.bragg.sigma_m"
        )
    return _measure_spot_size(experiment, reflections)


def gaussian_profile(sigma_b: float, sigma_m: float) -> GaussianProfile:
    """The profile model that DIALS keeps in an .expt for spots of this extent (degrees)."""
    return GaussianProfile(None, 3, sigma_b, sigma_m, deg=True)


def ray_intersections(panel, rays) -> tuple:
    """Where rays from the sample meet the plane of a panel, inside its limits or not.

    Parameters
    ----------
    panel : dxtbx Panel
    rays : (n, 3) float64 laboratory frame, any length; distances are for unit vectors

    Returns
    -------
    mm : (n, 2) float64, along the fast and slow axes; NaN for rays that never meet the plane
    distance : (n,) float64, from the sample, mm; NaN likewise
    """
    x, y, forward = np.array(panel.get_D_matrix()).reshape(3, 3) @ np.asarray(rays).T
    distance = 1 / np.where(forward > 0, forward, np.nan)
    return np.stack([x * distance, y * distance], axis=1), distance


def to_pixels(panel, mm) -> np.ndarray:
    """(n, 2) float64 pixel positions of positions in mm, through the panel's own strategy (parallax included)."""
    return flumpy.to_numpy(panel.millimeter_to_pixel(flumpy.vec_from_numpy(np.ascontiguousarray(mm))))


def _measure_spot_size(experiment, reflections) -> SpotSize:
    """Half the bounding box of a strong spot spans about three sigma; the distance from its prediction adds to it."""
    missing = [name for name in ("xyzobs.px.value", "s1") if name not in reflections]
    if missing:
        raise DiffuseError(
            f"the reflections have no column {missing[0]} to measure the spot size on: give the .refl file of "
            f"dials.index, dials.refine or dials.integrate, or set mask.bragg.sigma_b and mask.bragg.sigma_m"
        )
    column = "xyzcal.px" if "xyzcal.px" in reflections else "xyzobs.px.value"
    indexed = np.ones(len(reflections), dtype=bool)
    if "miller_index" in reflections:
        indexed = np.array(reflections["miller_index"] != (0, 0, 0), dtype=bool)
    if "intensity.sum.variance" in reflections:
        variance = np.array(reflections["intensity.sum.variance"])
        signal = np.array(reflections["intensity.sum.value"]) / np.sqrt(np.where(variance > 0, variance, np.inf))
        indexed &= signal > 5
    if indexed.sum() < MIN_STRONG:
        raise DiffuseError(
            f"only {np.count_nonzero(indexed)} strong indexed reflections to measure the spot size on: give a "
            f".refl file with more, or set mask.bragg.sigma_b and mask.bragg.sigma_m"
        )
    strong = reflections.select(flumpy.from_numpy(np.flatnonzero(indexed).astype(np.uint64)))
    box = np.stack([np.array(part) for part in strong["bbox"].parts()], axis=1)
    panel = experiment.detector[0]
    pixel_angle = panel.get_pixel_size()[0] / abs(panel.get_distance())
    half_width = 0.5 * np.median((box[:, 1] - box[:, 0] + box[:, 3] - box[:, 2]) / 2) * pixel_angle
    offset = np.array(strong["xyzobs.px.value"]).reshape(-1, 3) - np.array(strong[column]).reshape(-1, 3)
    rms_offset = np.sqrt(np.median(np.sum(offset[:, :2] ** 2, axis=1))) * pixel_angle
    sigma_b = math.hypot(half_width / 3, rms_offset)
    width = abs(math.radians(experiment.scan.get_oscillation()[1]))
    zeta = np.clip(np.abs(_zeta(strong, experiment)), MIN_ZETA, None)
    first, last = experiment.scan.get_array_range()
    whole = (box[:, 4] > first) & (box[:, 5] < last)  # the ends of a scan cut boxes off, of a narrow one most of them
    whole |= np.count_nonzero(whole) < MIN_STRONG
    sigma_m = np.median(((box[:, 5] - box[:, 4]) * zeta)[whole]) * width / 6
    return SpotSize(np.array([sigma_b]), np.array([sigma_m]), f"{len(strong)} strong reflections")


def _zeta(table, experiment) -> np.ndarray:
    """zeta = e . (s1 x s0) / |s1 x s0|, Kabsch (2010), at the rotation axis in the laboratory frame."""
    s1 = np.array(table["s1"]).reshape(-1, 3)
    cross = np.cross(s1, np.array(experiment.beam.get_s0()))
    norm = np.linalg.norm(cross, axis=1)
    return cross @ np.array(experiment.goniometer.get_rotation_axis()) / np.where(norm > 0, norm, 1.0)


def predict_spots(
    experiment, size: SpotSize, d_min: float, n_sigma: float = 3.0, margin: float = 0.0
) -> PredictedSpots:
    """Every reflection that DIALS predicts within ``n_sigma`` rocking widths of the scan.

    Systematic absences are not predicted, so the voxels there stay unmasked.

    Parameters
    ----------
    margin : pixels; spots with their centre this far beyond the edges of a panel come too, once for each panel, since
        their tails lie on it
    """
    padding = min(MAX_PADDING, n_sigma * math.degrees(size.sigma_m.max()) / MIN_ZETA)
    seen_from = experiment if margin == 0 else _with_margin(experiment, margin)
    table = flex.reflection_table.from_predictions(seen_from, dmin=d_min, padding=padding)
    if len(table) == 0:
        raise DiffuseError(
            f"no Bragg reflection to d_min={d_min:g} Å is predicted inside the scan of experiment "
            f"{experiment.identifier or '0'}: give a smaller d_min, or check the models of the .expt file"
        )
    s1 = np.array(table["s1"]).reshape(-1, 3)
    centre = np.array(table["xyzcal.px"]).reshape(-1, 3)
    panel = np.array(table["panel"], dtype=np.int64)
    centre[:, 2] -= experiment.scan.get_array_range()[0]
    sigma_b, sigma_m = size.at(centre[:, 2])
    width = abs(math.radians(experiment.scan.get_oscillation()[1]))
    zeta = np.clip(np.abs(_zeta(table, experiment)), MIN_ZETA, None)
    sigma_z = sigma_m / (zeta * width)
    reach = n_sigma * sigma_z
    rows = np.flatnonzero((centre[:, 2] > -reach) & (centre[:, 2] < experiment.scan.get_num_images() + reach))
    if margin > 0:
        rows, panel, centre = _on_panels(experiment.detector, s1, centre[:, 2], rows, margin)
    else:
        panel, centre = panel[rows], centre[rows]
    s1 = s1[rows]
    direction = s1 / np.linalg.norm(s1, axis=1, keepdims=True)
    geometry = scan_geometry(experiment)
    middle = np.clip(centre[:, 2], 0, geometry.n_images)
    s = s1 - geometry.s0_at(middle)
    first = np.cross(s1, s1 - s)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return PredictedSpots(
        panel=panel,
        centre=centre,
        direction=direction,
        sigma_b=sigma_b[rows],
        sigma_z=sigma_z[rows],
        hkl=np.rint(np.array(table["miller_index"].as_vec3_double()).reshape(-1, 3)[rows]).astype(np.int32),
        axes=np.stack([first, np.cross(direction, first)], axis=1),
        s=np.linalg.norm(s, axis=1),
        speed=np.abs(np.einsum("ni,ni->n", direction, np.cross(geometry.axis_at(middle), s))),
    )


def _with_margin(experiment, margin: float) -> Experiment:
    """The experiment with panels that are larger on all sides; what DIALS predicts between panels is on one of them."""
    more = math.ceil(margin)
    detector = Detector()
    for panel in experiment.detector:
        fast, slow, pixel = np.array(panel.get_fast_axis()), np.array(panel.get_slow_axis()), panel.get_pixel_size()
        larger = detector.add_panel()
        larger.set_pixel_size(pixel)
        larger.set_image_size([n + 2 * more for n in panel.get_image_size()])
        origin = np.array(panel.get_origin()) - more * (pixel[0] * fast + pixel[1] * slow)
        larger.set_frame(tuple(fast), tuple(slow), tuple(origin))
    return Experiment(
        beam=experiment.beam,
        detector=detector,
        goniometer=experiment.goniometer,
        scan=experiment.scan,
        crystal=experiment.crystal,
        imageset=experiment.imageset,  # DIALS takes experiments without one for stills
    )


def _on_panels(detector, s1, position, rows, margin: float) -> tuple:
    """Rows of the reflections on or near each panel, with the panel and (n, 3) centres."""
    parts = []
    for p, panel in enumerate(detector):
        mm, _ = ray_intersections(panel, s1[rows])
        size, pixel = np.array(panel.get_image_size()), np.array(panel.get_pixel_size())
        with np.errstate(invalid="ignore"):
            near = np.all((mm > -2 * margin * pixel) & (mm < (size + 2 * margin) * pixel), axis=1)
        xy = to_pixels(panel, mm[near])
        keep = np.all((xy > -margin) & (xy < size + margin), axis=1)
        mine = rows[near][keep]
        parts.append((mine, np.full(len(mine), p, np.int64), np.column_stack([xy[keep], position[mine]])))
    return tuple(np.concatenate(column) for column in zip(*parts))
