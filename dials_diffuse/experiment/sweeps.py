"""Sweeps as the simulator needs them: which crystals share images, exposure times, scans for background images."""

from __future__ import annotations

from dxtbx.model import Experiment, Scan

from dials_diffuse.compat import scan_times
from dials_diffuse.experiment.expt_file import make_experiments, read_content
from dials_diffuse.experiment.scan import exposure_times

#: seconds per image where a scan does not say
DEFAULT_EXPOSURE = 0.1


def groups_on_same_images(path) -> list:
    """Numbers of the experiments of an .expt file, as lists of those whose crystals are on the same images."""
    experiments = make_experiments(read_content(path)[0], path)
    groups: dict = {}
    for number, experiment in enumerate(experiments):
        imageset = experiment.imageset
        images = number if imageset is None else (imageset.get_template(), tuple(experiment.scan.get_image_range()))
        groups.setdefault(images, []).append(number)
    return list(groups.values())


def set_exposure(experiment, seconds: float | None) -> None:
    """Give all images an exposure time; None: those of the scan, DEFAULT_EXPOSURE where it has none at all."""
    scan = experiment.scan
    if seconds is None and any(t > 0 for t in scan_times(scan)[0]):
        scan.set_exposure_times([float(t) for t in exposure_times(scan)])
    else:
        scan.set_exposure_times([seconds or DEFAULT_EXPOSURE] * scan.get_num_images())


def background_experiment(experiment, n_images: int) -> Experiment:
    """An experiment without crystal whose images are spread over the rotation of another one.

    Beam, detector and goniometer are those of the other experiment, at its start where they vary.
    """
    scan = experiment.scan
    start, width = scan.get_oscillation()
    exposure = scan.get_exposure_times()[0]
    spread = Scan((1, n_images), (start, width * scan.get_num_images() / n_images))
    spread.set_exposure_times([exposure] * n_images)
    beam, goniometer = (_static(model) for model in (experiment.beam, experiment.goniometer))
    return Experiment(beam=beam, detector=experiment.detector, goniometer=goniometer, scan=spread)


def _static(model):
    """A model without its scan points."""
    if model.num_scan_points == 0:
        return model
    static = type(model).from_dict(model.to_dict())
    static.reset_scan_points()
    return static
