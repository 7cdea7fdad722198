"""Experiments made from a few numbers: dxtbx models exactly as dxtbx itself reads them from a mini-CBF header."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cctbx import sgtbx, uctbx
from cctbx.eltbx import attenuation_coefficient
from dxtbx.format.FormatPilatusHelpers import determine_pilatus_mask
from dxtbx.model import Beam, Crystal, Detector, Experiment, Goniometer, ParallaxCorrectedPxMmStrategy, Scan
from dxtbx.model.beam import BeamFactory
from dxtbx.model.detector import DetectorFactory
from dxtbx.model.experiment_list import ExperimentList
from dxtbx.model.goniometer import GoniometerFactory
from dxtbx.model.scan import ScanFactory
from scipy.spatial.transform import Rotation

from dials_diffuse.compat import photon_counter_range
from dials_diffuse.errors import DiffuseError, one_line
from dials_diffuse.experiment.expt_file import make_experiments, read_content
from dials_diffuse.experiment.modules import PILATUS, PILATUS_SIZES
from dials_diffuse.memory import check_memory

_MANY_IMAGES = 1_000_000
_BYTES_PER_PIXEL = 100  # of an image, its corrections and directions
_MATERIALS = ("Si", "CdTe")  # what a mini-CBF header can name


def _finite(name: str, values, fix: str, low: float = -math.inf) -> None:
    """Raise unless all values are finite numbers above ``low``."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.all(np.isfinite(array)) or np.any(array <= low):
        raise DiffuseError(f"{name}={values}: {fix}")


@dataclass(frozen=True)
class DetectorParameters:
    """One flat panel across the beam, in front of the source.

    Attributes
    ----------
    size : name of a Pilatus (``PILATUS_SIZES``), or pixels along fast and slow; a size that is a whole number of
        Pilatus modules with their gaps has those gaps, any other has none
    distance : mm
    beam_centre : where the beam meets the panel, pixels along fast and slow; None = the middle
    pixel_size : mm
    material, thickness : of the sensor, "Si" or "CdTe", and mm
    count_cutoff : highest trusted count
    """

    size: str | tuple = "1M"
    distance: float = 200.0
    beam_centre: tuple | None = None
    pixel_size: float = 0.172
    material: str = "Si"
    thickness: float = 0.45
    count_cutoff: int = 1_048_575

    def __post_init__(self):
        if isinstance(self.size, str):
            if self.size not in PILATUS_SIZES:
                raise DiffuseError(f"size={self.size}: give one of {', '.join(PILATUS_SIZES)}, or two numbers")
        elif len(self.size) != 2 or any(int(n) != n or n < 1 for n in self.size):
            raise DiffuseError(f"size={self.size}: give two positive numbers of pixels, fast and slow")
        check_memory(
            _BYTES_PER_PIXEL * math.prod(self.pixels),
            f"detector.size={self.size}: such an image and what is known of its pixels",
            "choose fewer pixels",
        )
        for name in ("distance", "pixel_size", "thickness"):
            _finite(name, getattr(self, name), "give a positive number of mm", low=0)
        if self.beam_centre is not None:
            if np.shape(self.beam_centre) != (2,):
                raise DiffuseError(f"beam_centre={self.beam_centre}: give two numbers of pixels, fast and slow")
            _finite("beam_centre", self.beam_centre, "give two numbers of pixels, fast and slow")
        if self.material not in _MATERIALS:
            raise DiffuseError(f"material={self.material}: give one of {', '.join(_MATERIALS)}")
        if int(self.count_cutoff) != self.count_cutoff or not 0 < self.count_cutoff < 2**31:
            raise DiffuseError(f"count_cutoff={self.count_cutoff}: give a whole number between 1 and 2147483647")

    @property
    def pixels(self) -> tuple:
        """Pixels along fast and slow."""
        return PILATUS_SIZES[self.size] if isinstance(self.size, str) else tuple(int(n) for n in self.size)


@dataclass(frozen=True)
class BeamParameters:
    """Wavelength in Å; fraction polarised in the plane whose normal is (0, 1, 0), by default as dxtbx assumes it."""

    wavelength: float = 1.0
    polarization_fraction: float = 0.999

    def __post_init__(self):
        _finite("wavelength", self.wavelength, "give a positive number of Å", low=0)
        if not 0 <= self.polarization_fraction <= 1:
            raise DiffuseError(f"polarization_fraction={self.polarization_fraction}: give a number from 0 to 1")


@dataclass(frozen=True)
class ScanParameters:
    """Start and width of an image in degrees, number of images, seconds per image, number of the first image."""

    start: float = 0.0
    width: float = 0.5
    n_images: int = 180
    exposure: float = 0.1
    first_image: int = 1

    def __post_init__(self):
        _finite("start", self.start, "give a number of degrees")
        _finite("width", self.width, "give a positive number of degrees (for the other sense, turn the axis)", low=0)
        _finite("exposure", self.exposure, "give a positive number of seconds", low=0)
        if int(self.n_images) != self.n_images or not 1 <= self.n_images < _MANY_IMAGES:
            raise DiffuseError(f"n_images={self.n_images}: give a positive whole number below {_MANY_IMAGES}")
        if int(self.first_image) != self.first_image or self.first_image < 1:
            raise DiffuseError(f"first_image={self.first_image}: give a positive whole number")


def build_beam(parameters: BeamParameters = BeamParameters()) -> Beam:
    """A beam along -z: s0 = (0, 0, -1/λ)."""
    beam = BeamFactory.simple(parameters.wavelength)
    beam.set_polarization_fraction(parameters.polarization_fraction)
    return beam


def build_detector(parameters: DetectorParameters, wavelength: float) -> Detector:
    """The detector of these parameters; the wavelength (Å) decides how deep the sensor is seen."""
    nx, ny = parameters.pixels
    pixel = parameters.pixel_size
    centre = parameters.beam_centre or (nx / 2, ny / 2)
    return flat_detector(
        (nx, ny),
        (pixel, pixel),
        parameters.distance,
        (centre[0] * pixel, centre[1] * pixel),
        photon_counter_range(parameters.count_cutoff),
        parameters.material,
        parameters.thickness,
        wavelength,
        gaps=PILATUS.fits((nx, ny)),
    )


def flat_detector(size, pixel_size, distance, centre, trusted, material, thickness, wavelength, gaps) -> Detector:
    """The model that dxtbx makes of the header of a mini-CBF.

    Parameters
    ----------
    size : pixels along fast and slow
    pixel_size : mm along fast and slow
    distance : mm
    centre : where the beam meets the panel, mm along fast and slow
    trusted : lowest and highest trusted value, in dxtbx's sense
    material, thickness : of the sensor ("" = not known, no parallax correction), mm
    wavelength : Å
    gaps : mask what lies between the modules of a Pilatus
    """
    if material:
        mu = attenuation_coefficient.get_table(material).mu_at_angstrom(wavelength) / 10.0
        strategy = ParallaxCorrectedPxMmStrategy(mu, thickness)
    else:
        strategy = None
    detector = DetectorFactory.simple(
        "PAD" if material else None, distance, centre, "+x", "-y", pixel_size, size, trusted, px_mm=strategy
    )
    panel = detector[0]
    if material:
        panel.set_thickness(thickness)
        panel.set_material(material)
        panel.set_mu(mu)
    if gaps:
        for x0, x1, y0, y1 in determine_pilatus_mask(detector):
            panel.add_mask(x0 - 1, y0 - 1, x1, y1)
    return detector


def build_goniometer() -> Goniometer:
    """One axis, (1, 0, 0), as dxtbx assumes it for mini-CBF files."""
    return GoniometerFactory.single_axis()


def build_scan(parameters: ScanParameters = ScanParameters()) -> Scan:
    """A scan without pauses; the epochs count seconds from the start of the first image."""
    p = parameters
    numbers = range(p.first_image, p.first_image + p.n_images)
    scan = ScanFactory.make_scan(
        (numbers[0], numbers[-1]),
        [p.exposure] * p.n_images,
        (p.start, p.width),
        {n: round(i * p.exposure, 6) for i, n in enumerate(numbers)},  # headers have microseconds
    )
    scan.set_batch_offset(p.first_image - 1)  # as dials.import does
    return scan


def build_crystal(unit_cell, space_group, orientation=None) -> Crystal:
    """A crystal in any setting.

    Parameters
    ----------
    unit_cell : 6 numbers, Å and degrees, or a cctbx unit cell
    space_group : Hermann-Mauguin or Hall symbol, or a cctbx space group (info), in the setting of the cell
    orientation : (3, 3) U, takes the Cartesian frame of cctbx (a along x, c* along z) to the laboratory at rotation
        angle 0; default: no rotation

    Raises
    ------
    DiffuseError
        If the symbol is unknown, the cell does not fit the space group, or U is no rotation.
    """
    group = _space_group(space_group)
    if not isinstance(unit_cell, uctbx.ext.unit_cell):
        _finite("unit_cell", unit_cell, "give three positive lengths in Å and three angles in degrees", low=0)
        if np.shape(unit_cell) != (6,):
            raise DiffuseError(f"unit_cell={unit_cell}: give three lengths in Å and three angles in degrees")
        try:
            unit_cell = uctbx.unit_cell([float(x) for x in unit_cell])
        except (RuntimeError, ValueError) as error:
            raise DiffuseError(f"unit_cell={unit_cell}: no such cell ({error}); check the angles") from None
    if not group.is_compatible_unit_cell(unit_cell):
        raise DiffuseError(
            f"unit_cell={unit_cell.parameters()}: does not fit the space group {group.info()}; give the cell in the "
            f"same setting"
        )
    u = np.eye(3) if orientation is None else np.asarray(orientation, dtype=float)
    if u.shape != (3, 3) or not np.allclose(u @ u.T, np.eye(3), atol=1e-6) or np.linalg.det(u) < 0:
        raise DiffuseError(f"orientation={u.tolist()}: give a rotation matrix, orthogonal with determinant 1")
    axes = u @ np.array(unit_cell.orthogonalization_matrix()).reshape(3, 3)
    return Crystal(*(tuple(column) for column in axes.T), space_group=group)


def _space_group(symbol) -> sgtbx.space_group:
    if isinstance(symbol, sgtbx.space_group):
        return symbol
    if isinstance(symbol, sgtbx.space_group_info):
        return symbol.group()
    for make in (lambda s: sgtbx.space_group_info(s).group(), sgtbx.space_group):
        try:
            return make(str(symbol))
        except (RuntimeError, ValueError):
            continue
    raise DiffuseError(f"space_group={symbol}: unknown; give a Hermann-Mauguin or Hall symbol that cctbx knows")


def random_orientation(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) rotation, all orientations equally likely."""
    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


def build_experiment(
    detector: DetectorParameters = DetectorParameters(),
    beam: BeamParameters = BeamParameters(),
    scan: ScanParameters = ScanParameters(),
    crystal: Crystal | None = None,
    identifier: str = "",
) -> Experiment:
    """An experiment without images; None as crystal for a measurement of the background."""
    return Experiment(
        beam=build_beam(beam),
        detector=build_detector(detector, beam.wavelength),
        goniometer=build_goniometer(),
        scan=build_scan(scan),
        crystal=crystal,
        identifier=identifier,
    )


def experiments_from_file(path) -> ExperimentList:
    """The models of a file that DIALS wrote, scan-varying ones included; its images need not exist.

    Images and scaling models are left out: they belong to other data than those that are simulated.

    Raises
    ------
    DiffuseError
        If the file cannot be read, or has no rotation data in it.
    """
    if not Path(path).exists():
        raise DiffuseError(f"{path}: no such file; check the path")
    try:
        given = make_experiments(read_content(path)[0], path)
    except Exception as error:  # dxtbx raises many types for malformed files
        raise DiffuseError(
            f"{path}: not a readable experiment file ({one_line(error)}); write it again with DIALS"
        ) from None
    if len(given) == 0:
        raise DiffuseError(f"{path}: contains no experiments; give an .expt file of DIALS")
    experiments = ExperimentList()
    for number, experiment in enumerate(given):
        where = f"{path} (experiment {number})"
        for model in ("beam", "detector", "goniometer", "scan"):
            if getattr(experiment, model) is None:
                raise DiffuseError(f"{where}: no {model} model; give the .expt file of a rotation measurement")
        if experiment.scan.is_still():
            raise DiffuseError(f"{where}: still images; give the .expt file of a rotation measurement")
        experiment.imageset = None
        experiment.scaling_model = None
        experiments.append(experiment)
    return experiments
