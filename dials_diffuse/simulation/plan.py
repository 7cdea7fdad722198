"""Which sweeps of which crystals are simulated: planned from a few numbers, or as in an .expt file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.experiment.build import (
    BeamParameters,
    DetectorParameters,
    ScanParameters,
    build_crystal,
    build_experiment,
    experiments_from_file,
    random_orientation,
)
from dials_diffuse.experiment.sweeps import groups_on_same_images, set_exposure
from dials_diffuse.simulation.streams import random_stream

#: structures that come with the package
EXAMPLES = {"lysozyme": "193l.pdb"}


def example_path(name: str) -> Path:
    """Coordinate file of an example structure.

    Raises
    ------
    CommandLineError
        If there is none of this name.
    """
    if name not in EXAMPLES:
        raise CommandLineError(f"structure={name}: choose from {', '.join(EXAMPLES)}, or give a coordinate file")
    return Path(__file__).parent / "data" / EXAMPLES[name]


def plan_sweeps(
    structure,
    detector: DetectorParameters,
    beam: BeamParameters,
    scan: ScanParameters,
    n_crystals: int = 1,
    orientation=None,
    seed: int = 0,
) -> list:
    """One sweep for each crystal, as lists of one experiment.

    Parameters
    ----------
    orientation : nine numbers, U of the first crystal row by row; None: random, as all others
    seed : of the orientations
    """
    sweeps = []
    for number in range(n_crystals):
        u = random_orientation(random_stream(seed, "orientation", number))
        if number == 0 and orientation is not None:
            u = np.reshape(orientation, (3, 3))
        crystal = build_crystal(structure.cell, structure.space_group, u)
        sweeps.append([build_experiment(detector, beam, scan, crystal, f"simulated-{number + 1}")])
    return sweeps


def sweeps_from_geometry(path, structure, exposure: float | None, seed: int = 0) -> list:
    """The sweeps of an .expt file; crystals on the same images make one sweep.

    Where the file has no crystals (from dials.import) each sweep gets one in a random orientation.

    Parameters
    ----------
    exposure : seconds per image, None: as the file says
    """
    experiments = list(experiments_from_file(path))
    with_crystal = [e.crystal is not None for e in experiments]
    if any(with_crystal) and not all(with_crystal):
        number = with_crystal.index(False)
        raise DiffuseError(f"{path}: experiment {number} has no crystal, others have; leave it out")
    for number, experiment in enumerate(experiments):
        if experiment.crystal is None:
            u = random_orientation(random_stream(seed, "orientation", number))
            experiment.crystal = build_crystal(structure.cell, structure.space_group, u)
        set_exposure(experiment, exposure)
        experiment.identifier = experiment.identifier or f"simulated-{number + 1}"
    return [[experiments[i] for i in group] for group in groups_on_same_images(path)]
