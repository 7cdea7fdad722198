"""Simulated images as mini-CBF files, and experiments that refer to them.

Where a Pilatus header can say the geometry exactly, the file is an ordinary mini-CBF for any program. Any other
geometry (tilted or several panels, another rotation axis, a refined beam direction) travels as JSON in the header, see
:mod:`dials_diffuse.experiment.format_cbf`; such a file lacks the header lines with distance and beam centre, so that a
program that does not know the JSON refuses it rather than assume another geometry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from cctbx import factor_ev_angstrom
from dxtbx import flumpy
from dxtbx.ext import compress
from dxtbx.imageset import ImageSetFactory
from dxtbx.model.beam import BeamFactory
from dxtbx.model.experiment_list import ExperimentList
from dxtbx.model.goniometer import GoniometerFactory

from dials_diffuse import __version__
from dials_diffuse.compat import photon_counter_range, scan_times
from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.build import flat_detector
from dials_diffuse.experiment.format_cbf import MARK, SCHEMA, panel_slices
from dials_diffuse.experiment.modules import PILATUS, PILATUS_SIZES
from dials_diffuse.files.atomic import atomic_path

_LINE = 1900  # characters of JSON in a line: CIF allows lines of 2048
_PADDING = 4095
_BINARY = b"\x0c\x1a\x04\xd5"
_STRATEGIES = ("SimplePxMmStrategy", "ParallaxCorrectedPxMmStrategy")


def image_path(template, number: int) -> Path:
    """File of an image: its number takes the place of the ``#`` in the name, as many digits."""
    found = re.fullmatch(r"(.*[^#]|)(#+)([^#]*)", str(template))
    if found is None or "#" in found[1]:
        raise DiffuseError(f"template={template}: give a name with one row of #, for instance image_#####.cbf")
    width = len(found[2])
    if number < 0 or len(str(number)) > width:
        raise DiffuseError(f"template={template}: image {number} needs {len(str(number))} digits; give more #")
    return Path(f"{found[1]}{number:0{width}d}{found[3]}")


def write_cbf(path, panels, experiment, image_number: int, comment: str = "") -> None:
    """Write one image, which appears under its name when it is complete.

    Parameters
    ----------
    path : file name; ends in the image number, for that is where dxtbx reads it
    panels : one (ny, nx) int32 array per panel, raw values as dxtbx will return them
    experiment : dxtbx Experiment with beam, detector, goniometer and scan; of scan-varying models the static part is
        written, the rest belongs into an .expt file (:func:`attach_images`)
    image_number : one of those of the scan (1-based, as in file names)
    comment : one line of text for the header

    Raises
    ------
    DiffuseError
        If arrays and panels differ, the number is not in the scan or in the name, or the file cannot be written.
    """
    path = Path(path)
    digits = re.search(r"(\d+)$", path.stem)
    if digits is None or int(digits[1]) != image_number:
        raise DiffuseError(f"{path}: the name of image {image_number} must end in its number; see image_path()")
    header = cbf_header(experiment, image_number, comment)
    array = _stack(path, panels, experiment.detector)
    data = compress(flumpy.from_numpy(array))
    ny, nx = array.shape
    lines = [
        f"###CBF: VERSION 1.5, dials_diffuse {__version__}: simulated image",
        "",
        f"data_{re.sub('[^A-Za-z0-9_.-]', '_', path.stem)}",
        "",
        *header,
        "",
        "_array_data.data",
        ";",
        "--CIF-BINARY-FORMAT-SECTION--",
        "Content-Type: application/octet-stream;",
        '     conversions="x-CBF_BYTE_OFFSET"',
        "Content-Transfer-Encoding: BINARY",
        f"X-Binary-Size: {len(data)}",
        "X-Binary-ID: 1",
        'X-Binary-Element-Type: "signed 32-bit integer"',
        "X-Binary-Element-Byte-Order: LITTLE_ENDIAN",
        f"Content-MD5: {base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}",
        f"X-Binary-Number-of-Elements: {array.size}",
        f"X-Binary-Size-Fastest-Dimension: {nx}",
        f"X-Binary-Size-Second-Dimension: {ny}",
        f"X-Binary-Size-Padding: {_PADDING}",
        "",
        "",
    ]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write("\r\n".join(lines).encode("ascii"))
        file.write(_BINARY + data + bytes(_PADDING))
        file.write(b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n")


def _stack(path, panels, detector) -> np.ndarray:
    """All panels in one writable array, -1 beside the narrower ones."""
    sizes = [panel.get_image_size() for panel in detector]
    shapes = [(ny, nx) for nx, ny in sizes]
    panels = [np.asarray(panel) for panel in panels]
    if [panel.shape for panel in panels] != shapes or any(panel.dtype != np.int32 for panel in panels):
        found = [f"{panel.dtype} {panel.shape}" for panel in panels]
        raise DiffuseError(f"{path}: panels are {', '.join(found)}; give int32 arrays of {shapes}, as the detector")
    if len(panels) == 1:
        return np.require(panels[0], requirements=["C", "W"])
    array = np.full((sum(ny for _, ny in sizes), max(nx for nx, _ in sizes)), -1, dtype=np.int32)
    for where, panel in zip(panel_slices(sizes), panels):
        array[where] = panel
    return array


def is_plain(experiment) -> bool:
    """Does dxtbx read the static geometry of this experiment from an ordinary mini-CBF header?"""
    return _convention(experiment) is not None


def _convention(experiment) -> str | None:
    """Header convention under which dxtbx reads exactly these models from an ordinary header; None if there is none."""
    beam, detector = experiment.beam, experiment.detector
    plain_beam = BeamFactory.simple(beam.get_wavelength())
    plain_beam.set_flux(beam.get_flux())
    plain_beam.set_transmission(beam.get_transmission())
    if not _same(_static(beam), _static(plain_beam)):
        return None
    if not _same(_static(experiment.goniometer), _static(GoniometerFactory.single_axis())):
        return None
    if len(detector) > 1 or not _strategy_is_of_panel(detector[0]):
        return None
    panel = detector[0]
    x, y, z = panel.get_origin()
    cutoff = panel.get_trusted_range()[1]
    conventions = {"GENERIC_MINI": False}
    if PILATUS.fits(panel.get_image_size()):
        conventions["PILATUS_1.2"] = True
    for convention, gaps in conventions.items():
        plain = flat_detector(
            panel.get_image_size(),
            panel.get_pixel_size(),
            -z,
            (-x, y),
            photon_counter_range(math.floor(min(max(cutoff, 1), 2**31 - 1))),
            panel.get_material() if panel.get_material() in ("Si", "CdTe") else "",
            panel.get_thickness(),
            beam.get_wavelength(),
            gaps,
        )
        if _same(_static(detector), _static(plain)):
            return convention
    return None


def _strategy_is_of_panel(panel) -> bool:
    """A dictionary of a panel names its pixel-to-millimetre strategy, the strategy's numbers are those of the panel."""
    strategy = panel.get_px_mm_strategy()
    if strategy.name() not in _STRATEGIES:
        return False
    return strategy.name() == _STRATEGIES[0] or _same(
        (strategy.mu(), strategy.t0()), (panel.get_mu(), panel.get_thickness())
    )


def _static(model) -> dict:
    return {key: value for key, value in model.to_dict().items() if not key.endswith("_at_scan_points")}


def _same(a, b) -> bool:
    """Equal, numbers but for rounding: headers are in metres and pixels, models in millimetres."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-11)
    return a == b


def cbf_header(experiment, image_number: int, comment: str = "") -> list:
    """Lines of the header of one image, from its convention to the end of its contents."""
    scan, beam, panel = experiment.scan, experiment.beam, experiment.detector[0]
    first, last = scan.get_image_range()
    if not first <= image_number <= last:
        raise DiffuseError(f"image {image_number} is not in the scan, which has images {first} to {last}")
    convention = _convention(experiment)
    start, width = scan.get_image_oscillation(image_number)[0], scan.get_oscillation()[1]
    exposure, epoch = (times[image_number - first] for times in scan_times(scan))
    when = datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=epoch)
    nx, ny = panel.get_image_size()
    names = {size: f"PILATUS3 {name}" for name, size in PILATUS_SIZES.items()}
    # only what dxtbx is to take for a Pilatus may have the word in it
    name = names.get((nx, ny), "PILATUS3") if convention == "PILATUS_1.2" else "photon counter"
    sensor = {"Si": "Silicon", "CdTe": "CdTe"}.get(panel.get_material())
    lines = [
        f"Detector: {name}, simulated by dials_diffuse",
        when.strftime("%Y-%m-%dT%H:%M:%S.%f"),
        "Pixel_size {!r} m x {!r} m".format(*(_metres(size) for size in panel.get_pixel_size())),
        *([f"{sensor} sensor, thickness {_metres(panel.get_thickness())!r} m"] if sensor else []),
        f"Exposure_time {exposure!r} s",
        f"Exposure_period {exposure!r} s",
        "Tau = 0 s",
        f"Count_cutoff {math.floor(panel.get_trusted_range()[1])} counts",
        f"Threshold_setting: {factor_ev_angstrom / beam.get_wavelength() / 2:.0f} eV",
        f"Wavelength {beam.get_wavelength()!r} A",
        f"Start_angle {start!r} deg.",
        f"Angle_increment {width!r} deg.",
        f"Polarization {beam.get_polarization_fraction()!r}",
        *([f"Flux {beam.get_flux()!r} ph/s"] if beam.get_flux() else []),
        *([f"Transmission {beam.get_transmission()!r}"] if beam.get_transmission() != 1 else []),
    ]
    if convention:
        x, y, z = panel.get_origin()
        size = panel.get_pixel_size()
        lines += [f"Detector_distance {_metres(-z)!r} m", f"Beam_xy ({-x / size[0]!r}, {y / size[1]!r}) pixels"]
    else:
        text = _models_text(experiment)
        lines += [MARK[2:] + text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    if comment:
        text = " ".join(comment.encode("ascii", "replace").decode().replace(":", " ").replace("=", " ").split())
        lines.append(f"Comment {text[:_LINE]}")
    header = [f'_array_data.header_convention "{convention or "GENERIC_MINI"}"', "_array_data.header_contents", ";"]
    return [*header, *(f"# {line}" for line in lines), ";"]


def _metres(millimetres: float) -> float:
    """Metres that dxtbx turns into exactly these millimetres, where there are such."""
    metres = millimetres / 1000
    near = (float(f"{metres:.12g}"), metres, math.nextafter(metres, 0), math.nextafter(metres, math.inf))
    return next((value for value in near if value * 1000 == millimetres), metres)


def _models_text(experiment) -> str:
    for i, panel in enumerate(experiment.detector):
        if not _strategy_is_of_panel(panel):
            raise DiffuseError(
                f"panel {i} ({panel.get_name()}): its {panel.get_px_mm_strategy().name()} cannot be written; give "
                f"panels with the parallax of their own sensor, or with none"
            )
    models = {name: _static(getattr(experiment, name)) for name in ("beam", "detector", "goniometer")}
    return json.dumps({"schema": SCHEMA, **models}, separators=(",", ":"))


def attach_images(experiments, templates) -> ExperimentList:
    """Experiments, with the models that they have, on images that were written.

    Parameters
    ----------
    experiments : dxtbx experiments
    templates : name of the images of each experiment, with one row of ``#``; the same for crystals on the same images

    Returns
    -------
    ExperimentList that can read the images; write it with :func:`write_experiments`
    """
    experiments, templates = list(experiments), [str(Path(template).absolute()) for template in templates]
    if len(templates) != len(experiments):
        raise DiffuseError(f"{len(templates)} templates for {len(experiments)} experiments; give one for each")
    result = ExperimentList()
    imagesets = {}
    for experiment, template in zip(experiments, templates):
        first, last = experiment.scan.get_image_range()
        for number in range(first, last + 1):
            if not image_path(template, number).is_file():
                raise DiffuseError(f"{image_path(template, number)}: no such image; write all images first")
        if template not in imagesets:
            imagesets[template] = ImageSetFactory.make_sequence(
                template,
                range(first, last + 1),
                beam=experiment.beam,
                detector=experiment.detector,
                goniometer=experiment.goniometer,
                scan=experiment.scan,
            )
        elif imagesets[template].get_scan().get_image_range() != (first, last):
            raise DiffuseError(f"{template}: two experiments with different scans; give different templates")
        experiment.imageset = imagesets[template]
        result.append(experiment)
    return result


def write_experiments(path, experiments: ExperimentList) -> None:
    """Write an .expt file, whole or not at all."""
    with atomic_path(path) as temporary:
        experiments.as_file(str(temporary))
