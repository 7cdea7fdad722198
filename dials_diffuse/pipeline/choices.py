"""What a person would otherwise have to decide before the images are reduced, each choice with its reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cctbx import uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.background_search import median_spots, open_first, open_series, series_beside
from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.experiment.spot_prediction import spot_size
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.memory import total_memory
from dials_diffuse.reduction.background import check_detector, check_wavelength
from dials_diffuse.reduction.voxel_sums import rows_estimate
from dials_diffuse.scaling.scale import memory_estimate as scaling_memory
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

logger = logging.getLogger("dials.diffuse.process")

#: full width of a Gaussian at half its height, in standard deviations
_FWHM = 2.355

#: voxels along a step of the lattice: as many as a person starts with, and as many as are tried
_USUAL, _MOST = 3, 7

#: pixels along the edge of a voxel, at least; twice as many where there are more than three voxels to a step
_PIXELS = 1.0

#: images of a background have this part of the data's spots, at most; where these have few, nothing can be told
_BACKGROUND_SPOTS, _FEW_SPOTS = 0.1, 20

#: series beside the data that are looked at, at most
_N_SERIES = 50


@dataclass(frozen=True)
class Choice:
    """A decision that nobody typed.

    name : of the parameter; value : as it would be typed; reason : a sentence
    """

    name: str
    value: str
    reason: str


def choose_subdivision(experiments: Sequence, reflections: Sequence, d_min: float) -> tuple:
    """Voxels per step of the reciprocal lattice, and the Choice for the record.

    A voxel is not finer than a Bragg spot, whose tails would be in all of them, nor than a pixel. The number is
    odd, so that Bragg positions are at centres of voxels and the rest is away from them. It is three, which separates
    halos from Bragg peaks; more where the lattice is so open that five or seven voxels fit between peaks; and one where
    it is so dense that a third of a step is less than half a spot. It is smaller where memory is short.

    Parameters
    ----------
    experiments : dxtbx experiments with crystals
    reflections : the table of each, or None
    d_min : Å, of the map

    Returns
    -------
    subdivide : three integers
    Choice
    """
    s = 0.5 / d_min
    finest, spots, pixels = [], [], []
    for experiment, table in zip(experiments, reflections):
        size = spot_size(experiment, table)
        wavelength = experiment.beam.get_wavelength()
        spread = math.hypot(float(np.mean(size.sigma_b)) / wavelength, float(np.mean(size.sigma_m)) * s)
        spot = _FWHM * spread + abs(math.radians(experiment.scan.get_oscillation()[1])) * s
        panel = experiment.detector[0]
        pixel = panel.get_pixel_size()[0] / abs(panel.get_directed_distance()) / wavelength
        lengths = np.array(uctbx.unit_cell(experiment.crystal.get_unit_cell().parameters()).reciprocal_parameters()[:3])
        finest.append([_odd(step, spot, pixel) for step in lengths])
        spots.append(spot / lengths)
        pixels.append(lengths / pixel)
    numbers = _alike(np.min(finest, axis=0), experiments[0].crystal)
    width, apart = np.max(spots, axis=0), np.min(pixels, axis=0)
    reason = (
        f"Bragg spots are {_three(width)} of a step along a*, b*, c* wide at {1 / s:.1f} Å, steps are "
        f"{_three(apart)} pixels long"
    )
    numbers, short = _within_memory(numbers, experiments, d_min)
    return numbers, Choice("grid.subdivide", ",".join(map(str, numbers)), reason + short)


def _within_memory(numbers: tuple, experiments: Sequence, d_min: float) -> tuple:
    """As many voxels as scaling and merging have memory for, and why there are no more."""
    there = total_memory()
    wanted = needed = memory_needed(numbers, experiments, d_min)
    while needed > there and max(numbers) > 1:
        numbers = _alike([max(n - 2, 1) for n in numbers], experiments[0].crystal)
        needed = memory_needed(numbers, experiments, d_min)
    if wanted <= there:
        return numbers, ""
    return numbers, f"; finer voxels would take about {wanted / 1e9:.1f} GB of memory, there are {there / 1e9:.1f}"


def memory_needed(subdivide: tuple, experiments: Sequence, d_min: float) -> float:
    """Bytes that the steps after the images take for a map with so many voxels, roughly."""
    grid = choose_grid(experiments, d_min, subdivide=subdivide)
    turns = (float(np.ptp(e.scan.get_oscillation_range())) for e in experiments)
    rows = sum(rows_estimate(grid, e, min(turn, 360.0)) for e, turn in zip(experiments, turns))
    return scaling_memory(grid, int(rows), ScalingParameters().max_observations)


def choices_of_steps(integrated: Mapping, scaled: Mapping) -> list:
    """What the steps decided from the data, by their records."""
    widths = [e["peaks"]["spot_sigma"] for e in integrated["experiments"] if e["peaks"]]
    found = []
    if widths:
        reason = f"masks follow the width of the spots, sigma_b of {max(widths):.1f} pixels"
        adaptive = any(e["bragg_masks"] for e in integrated["experiments"])
        found.append(Choice("mask.bragg.mode", "adaptive" if adaptive else "fixed", reason))
    tests = scaled["terms"]["tests"]
    if tests:
        kept, lost = ([t["label"] for t in tests if t["kept"] == use] for use in (True, False))
        reason = f"voxels kept out of the fit are predicted better with {', '.join(kept) or 'none'}"
        reason += f", not with {', '.join(lost)}" if lost else ""
        found.append(Choice("scale.model", ",".join(scaled["terms"]["used"]) or "None", reason))
    why = [
        f"image {item['image']} of experiment {e['experiment']}: {item['reason']}"
        for e in integrated["experiments"]
        for item in e["left_out"]
    ]
    bad = scaled["images"]["bad"] if scaled["images"]["left_out"] else []
    number = len(why) + sum(item["last"] - item["first"] + 1 for item in bad)
    why += [item["words"] for item in bad]
    found.append(Choice("images left out", f"{number}", "; ".join(why[:5]) or "all agree with the others"))
    return found


def _odd(step: float, spot: float, pixel: float) -> int:
    """Voxels along a step, all in 1/Å."""
    for n in range(_MOST, _USUAL, -2):
        if step / n >= max(spot, 2 * _PIXELS * pixel):
            return n
    return _USUAL if step / _USUAL >= max(spot / 2, _PIXELS * pixel) else 1


def _alike(numbers, crystal) -> tuple:
    """The smaller number for axes that the symmetry mixes; MapGrid refuses others."""
    group = crystal.get_space_group()
    numbers = [int(n) for n in numbers]
    rotations = np.array([op.r().as_double() for op in group]).reshape(-1, 3, 3)
    mixed = np.any(np.abs(rotations) > 1e-6, axis=0)
    for _ in range(2):
        numbers = [min(numbers[j] for j in range(3) if mixed[i, j] or mixed[j, i] or i == j) for i in range(3)]
    MapGrid(crystal.get_unit_cell().parameters(), group.type().hall_symbol(), tuple(numbers), d_min=10.0)
    return tuple(numbers)


def _three(values) -> str:
    return ", ".join(f"{x:.2g}" for x in values)


def choose_backgrounds(experiments: Sequence, positions: Sequence) -> tuple:
    """Series of images without crystal beside the data, and the Choice for the record.

    They are of the same detector in the same place and of the same wavelength, and have hardly any spots where the
    images of the data have many.

    Parameters
    ----------
    experiments : dxtbx experiments of the data, which can read their images
    positions : for each the images that are used, counted from the start of the scan

    Returns
    -------
    tuple of Series
    Choice
    """
    name = "background"
    spots = [median_spots(e.imageset, used) for e, used in zip(experiments, positions)]
    least = min(spots)
    if least < _FEW_SPOTS:
        return (), Choice(name, "None", f"images of the data have {least:.0f} spots: those without crystal look alike")
    found, refused = [], []
    series = series_beside(experiments)
    for item in series[:_N_SERIES]:
        try:
            first = open_first(item)
            check_wavelength(first, experiments[0].beam.get_wavelength())
            for experiment in first:
                check_detector(experiment, experiments[0].detector)
            whole = open_series(item)
            number = max(median_spots(e.imageset, range(len(e.imageset))) for e in whole)
        except DiffuseError as error:
            refused.append(f"{item.name}: {error}")
            continue
        if number <= _BACKGROUND_SPOTS * least:
            found.append((item, number))
        else:
            refused.append(f"{item.name}: {number:.0f} spots on an image")
    for reason in refused:
        logger.debug("No background images: %s", reason)
    if not found:
        looked = f"of {len(series)} series of images beside the data none is of the same detector and without spots"
        return (), Choice(name, "None", looked)
    names = ", ".join(item.name for item, _ in found)
    most = max(number for _, number in found)
    reason = f"beside the data, same detector, {most:.0f} spots on an image where the data have {least:.0f}"
    return tuple(item for item, _ in found), Choice(name, names, reason)
