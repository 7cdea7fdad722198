"""From experiments to sweeps that can be simulated."""

from __future__ import annotations

import logging

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.common_grid import resolution_limit
from dials_diffuse.experiment.detector import detector_setup
from dials_diffuse.experiment.modules import module_mask
from dials_diffuse.experiment.scan import scan_geometry
from dials_diffuse.simulation.sampling import choose_sampling
from dials_diffuse.simulation.scales import module_responses, sweep_scales
from dials_diffuse.simulation.simulation_parameters import Defects, SimulationParameters
from dials_diffuse.simulation.spots import simulate_spots
from dials_diffuse.simulation.streams import random_stream
from dials_diffuse.simulation.sweep import HOT, CrystalInBeam, Sample, Sweep

logger = logging.getLogger("dials.diffuse.simulation")


def prepare_sweep(
    number: int,
    experiments: list,
    sample: Sample,
    f_squared,
    parameters: SimulationParameters,
    first_crystal: int = 0,
) -> Sweep:
    """Everything that the images of one sweep need.

    Parameters
    ----------
    number : of the sweep, part of the seeds
    experiments : the crystals on these images; one experiment without a crystal gives background images
    f_squared : Bragg intensities, see :func:`simulate_spots`; None = no Bragg spots
    first_crystal : number of the first crystal, counted through all sweeps
    """
    experiment = experiments[0]
    detector = experiment.detector
    setup = detector_setup(detector)
    active = module_mask(detector)
    rng = random_stream(parameters.seed, "detector")  # it is the same for all sweeps
    response = module_responses(module_numbers(active), parameters.scales.module, rng)
    lit = [
        beam_stop_mask(panel.directions, experiment.beam.get_s0(), detector, parameters.defects)
        for panel in setup.panels
    ]
    hot, dead = random_pixels(active, (parameters.defects.hot_pixels, parameters.defects.dead_pixels), rng)
    heat = rng.uniform(*HOT, len(hot))
    d_min = resolution_limit(experiments, parameters.d_min)
    crystals = []
    for i, e in enumerate(experiments):
        if e.crystal is not None:
            spots = None if f_squared is None else simulate_spots(e, f_squared, parameters.spots, d_min)
            thickness = parameters.crystal_thickness(first_crystal + i)
            crystals.append(CrystalInBeam(scan_geometry(e), spots, thickness))
    sweep = Sweep(
        number=number,
        detector=setup,
        lit=lit,
        active=active,
        response=response,
        hot=hot,
        heat=heat,
        dead=dead,
        sample=sample,
        crystals=crystals,
        scan=crystals[0].scan if crystals else scan_geometry(experiment),
        scales=sweep_scales(parameters.scales, parameters.background, random_stream(parameters.seed, "scales", number)),
        parameters=parameters,
    )
    return _sampled(sweep, detector, parameters) if crystals and sample.volume is not None else sweep


def _sampled(sweep: Sweep, detector, parameters: SimulationParameters) -> Sweep:
    """The sweep with the sub-steps and sub-pixels that were asked for, or are needed."""
    sub_steps, sub_pixels = parameters.sub_steps, parameters.sub_pixels
    if sub_steps is None or sub_pixels is None:
        rng = random_stream(parameters.seed, "sampling", sweep.number)
        choice = choose_sampling(sweep, detector, parameters.tolerance, rng)
        sub_steps, sub_pixels = sub_steps or choice.sub_steps, sub_pixels or choice.sub_pixels
        logger.info(
            "Sampling: %d rotation steps per image, %d x %d points per pixel; with what is needed, the rms error is "
            "%.4f of the Poisson noise",
            sub_steps,
            sub_pixels,
            sub_pixels,
            choice.error,
        )
    return sweep.sampled(sub_steps, detector_setup(detector, sub_pixels) if sub_pixels > 1 else sweep.detector)


def module_numbers(active: list) -> list:
    """(ny, nx) int per panel: the modules, separated by lines of inactive pixels, are counted through all panels."""
    result, first = [], 0
    for mask in active:
        rows, columns = (np.cumsum(np.diff(mask.any(axis=axis).astype(int), prepend=0) > 0) for axis in (1, 0))
        n_columns = max(int(columns.max()), 1)
        modules = np.maximum(rows - 1, 0)[:, None] * n_columns + np.maximum(columns - 1, 0)[None, :]
        result.append(first + modules)
        first += int(modules.max()) + 1
    return result


def beam_stop_mask(directions: np.ndarray, s0, detector, defects: Defects) -> np.ndarray:
    """(ny, nx) bool, False in the shadow of the beam stop and of its horizontal arm.

    Shadows are measured on a plane across the beam at the distance of the nearest panel. Horizontal is the direction
    of the first panel's fast axis.
    """
    beam = np.asarray(s0) / np.linalg.norm(s0)
    distance = min(abs(panel.get_directed_distance()) for panel in detector)
    fast = np.array(detector[0].get_fast_axis())
    fast = fast - (fast @ beam) * beam
    fast /= np.linalg.norm(fast)
    along = np.tensordot(beam, directions, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = distance * np.tensordot(fast, directions, 1) / along
        y = distance * np.tensordot(np.cross(beam, fast), directions, 1) / along
    forward = along > 0
    stop = forward & (np.hypot(x, y) < defects.beam_stop)
    arm = forward & (np.abs(y) < defects.arm / 2) & (x > 0) & (defects.beam_stop > 0)
    return ~(stop | arm)


def random_pixels(active: list, numbers: tuple, rng: np.random.Generator) -> list:
    """Arrays (n, 3) of panel, y and x of different active pixels, one array for each of the numbers."""
    counts = np.cumsum([mask.sum() for mask in active])
    if sum(numbers) > counts[-1]:
        raise DiffuseError(
            f"detector.hot_pixels={numbers[0]}, detector.dead_pixels={numbers[1]}: only {counts[-1]} pixels are there"
        )
    chosen = rng.choice(counts[-1], sum(numbers), replace=False)
    panel = np.searchsorted(counts, chosen, side="right")
    pixels = np.zeros((len(chosen), 3), dtype=np.int64)
    pixels[:, 0] = panel
    for p, mask in enumerate(active):
        mine = panel == p
        flat = np.flatnonzero(mask)[chosen[mine] - (counts[p] - mask.sum())]
        pixels[mine, 1], pixels[mine, 2] = np.unravel_index(flat, mask.shape)
    return np.split(pixels, np.cumsum(numbers)[:-1])
