"""Simulate whole experiments: the library function behind ``dials.diffuse_simulate``."""

from __future__ import annotations

import glob
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dxtbx.model import Experiment

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.cbf import attach_images, image_path, write_cbf, write_experiments
from dials_diffuse.experiment.common_grid import choose_grid, resolution_limit
from dials_diffuse.experiment.reflections import write_reflections
from dials_diffuse.experiment.sweeps import background_experiment
from dials_diffuse.files.atomic import Staging, check_writable
from dials_diffuse.files.nexus import write_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.memory import check_memory
from dials_diffuse.parallel import SERIAL, Executor, Progress, quiet
from dials_diffuse.simulation.diffuse import diffuse_volume
from dials_diffuse.simulation.prepare_sweep import prepare_sweep
from dials_diffuse.simulation.simulation_parameters import SimulationParameters
from dials_diffuse.simulation.spots import spot_extent_model
from dials_diffuse.simulation.sweep import Sweep, make_sample, overflow
from dials_diffuse.simulation.truth import IdealSums, image_sums, record_of_scales, true_map
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import Dispersive, compton, dispersion
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors

logger = logging.getLogger("dials.diffuse.simulation")

#: relative difference of cell lengths, and degrees of angles / 100, that a crystal may have from the model
CELL_TOLERANCE = 0.03

#: Å, difference of wavelengths that have the same f', f''
WAVELENGTH_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Outputs:
    """File names; None = no such file.

    prefix : images are ``<prefix>_<sweep>_#####.cbf``; background : the same for images without crystal

    Raises
    ------
    DiffuseError
        If a prefix is missing or has a # in it, or if two outputs have the same name.
    """

    prefix: str = "simulated"
    background: str = "background"
    experiments: str | None = "simulated.expt"
    reflections: str | None = "simulated.refl"
    truth: str | None = "truth.nxs"
    ideal: str | None = None

    def __post_init__(self):
        for name in ("prefix", "background"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "#" in value:
                raise DiffuseError(f"output.{name}={value}: give the start of a file name, without #")
        files = [self.experiments, self.reflections, self.truth, self.ideal]
        names = [Path(name).resolve() for name in files if name]
        if len(set(names)) < len(names):
            listed = ", ".join(str(name) for name in files if name)
            raise DiffuseError(f"output.*: two outputs have the same name ({listed}); change one")
        if self.prefix == self.background:
            raise DiffuseError(f"output.background={self.background}: the same as output.prefix; choose another")


@dataclass(frozen=True)
class SweepReport:
    """What was written for one sweep; means are counts per pixel that is neither shadowed nor in a gap.

    template : of the images; crystals : how many are in the beam, 0 for background images
    """

    template: str
    n_images: int
    crystals: int
    sub_steps: int
    sub_pixels: int
    mean_diffuse: float
    mean_background: float
    mean_bragg: float
    highest: int
    saturated: int


@dataclass(frozen=True)
class SimulationResult:
    """What was simulated; the files are those of the Outputs."""

    d_min: float
    sweeps: list
    outputs: list


@dataclass(frozen=True)
class ImageJob:
    """What a worker needs to write the images of one sweep."""

    sweep: Sweep
    experiment: Experiment
    template: Path
    grid: MapGrid | None


@dataclass(frozen=True)
class _SweepDone:
    """What is kept of a sweep: Bragg spots and their photons for each crystal, and the scale factors."""

    crystals: list
    record: dict


def write_image(job: ImageJob, image: int) -> tuple:
    """Write one image; returns its statistics, and voxel sums where the ideal map is wanted."""
    sweep = job.sweep
    expected = sweep.expected(image)
    raw = sweep.measure(image, [e.total for e in expected])
    number = job.experiment.scan.get_image_range()[0] + image
    write_cbf(image_path(job.template, number), raw, job.experiment, number)
    usable = sweep.usable
    n = max(sum(int(u.sum()) for u in usable), 1)
    parts = [(e.norm * e.intensity, e.other, e.bragg) for e in expected]
    means = [sum(float(part[i][u].sum()) for part, u in zip(parts, usable)) / n for i in range(3)]
    highest = max(int(r.max()) for r in raw)
    saturated = sum(int((r >= overflow(p)).sum()) for r, p in zip(raw, sweep.detector.panels))
    sums = image_sums(job.grid, sweep, image, raw, expected) if job.grid is not None else None
    return (*means, highest, saturated), sums


def simulate(
    structure,
    model,
    sweeps: list,
    parameters: SimulationParameters,
    outputs: Outputs,
    provenance: Provenance,
    executor: Executor = SERIAL,
    progress: Progress = quiet,
) -> SimulationResult:
    """Simulate images, and write them with the models they were made from and the true map.

    Parameters
    ----------
    structure : structure.atoms.Structure of the crystal
    model : its diffuse scattering, one of ``dials_diffuse.models``; Bragg spots have the form factors of its ``table``,
        or without a model (only with ``diffuse=False``) those of Waasmaier & Kirfel
    sweeps : list of lists of dxtbx experiments; those of one list are crystals on the same images
    executor : does the work, image by image
    progress : wraps an iterator as ``progress(items, total, label)``

    Raises
    ------
    DiffuseError
        If structure and crystals do not fit together, or something cannot be written; no file is left behind then.

    Examples
    --------
    Two images of a crystal in a random orientation:

    >>> import tempfile
    >>> from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
    >>> from dials_diffuse.models.rigid_body.rigid_body import RigidBody
    >>> from dials_diffuse.simulation.plan import plan_sweeps
    >>> from dials_diffuse.structure.atoms import make_structure
    >>> structure = make_structure((20, 22, 24, 90, 90, 90), "P 21 21 21", ["O", "N"], [[0.1, 0.2, 0], [0.2, 0.2, 0]])
    >>> detector = DetectorParameters((60, 50), distance=40, pixel_size=0.8)
    >>> sweeps = plan_sweeps(structure, detector, BeamParameters(), ScanParameters(n_images=2))
    >>> parameters = SimulationParameters(d_min=4.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = "image", "background", "simulated.expt", "simulated.refl", "truth.nxs"
    ...     outputs = Outputs(*(f"{folder}/{name}" for name in names))
    ...     provenance = Provenance("script", "", "")
    ...     result = simulate(structure, RigidBody(sigma=0.3), sweeps, parameters, outputs, provenance)
    ...     print(sorted(path.name for path in Path(folder).iterdir()))
    ['image_1_00001.cbf', 'image_1_00002.cbf', 'simulated.expt', 'simulated.refl', 'truth.nxs']
    >>> result.sweeps[0].n_images, result.sweeps[0].crystals, result.d_min
    (2, 1, 4.0)
    """
    experiments = [e for sweep in sweeps for e in sweep]
    table = "wk1995" if model is None else model.table
    if table == "electron":
        raise DiffuseError("scattering_table=electron: the images are those of X-rays; choose wk1995 or it1992")
    _check_crystals(structure, experiments)
    templates = [f"{outputs.prefix}_{i + 1}_#####.cbf" for i in range(len(sweeps))]
    empty = [background_experiment(s[0], parameters.background_images) for s in sweeps if parameters.background_images]
    empty_templates = [f"{outputs.background}_{i + 1}_#####.cbf" for i in range(len(empty))]
    _check_images(templates, outputs.prefix, "output.prefix")
    _check_images(empty_templates, outputs.background, "output.background")
    d_min = resolution_limit(experiments, parameters.d_min)
    grid = choose_grid(experiments, parameters.d_min, subdivide=parameters.subdivide)
    needed = 80 * grid.n_voxels / len(grid.space_group) + 8 * grid.n_voxels * (3 if outputs.ideal else 1)
    check_memory(
        needed,
        f"grid.subdivide={','.join(map(str, grid.subdivide))}, d_min={grid.d_min:g}: {grid.n_voxels:.3g} voxels",
        "choose a smaller grid.subdivide or a larger d_min",
    )
    # a voxel at the resolution limit is half beyond it, and must not hold pixels without diffuse scattering
    wavelength = None
    if parameters.anomalous:
        wavelength = _common_wavelength(experiments)
        terms = (f"{label} {dispersion(label, wavelength):.2f}" for label in structure.types)
        logger.info("f' + if'' at %.4f Å: %s", wavelength, ", ".join(terms))
    volume = None
    if parameters.diffuse:
        volume = diffuse_volume(model, structure, 1 / (1 / d_min + grid.diagonal), wavelength)
    f_squared = None
    if parameters.bragg:
        solvent = parameters.k_sol, parameters.b_sol
        f_squared = (*bragg_intensities(structure, d_min, solvent, table, wavelength), structure.space_group)
    sample = make_sample(structure, volume, parameters, lambda s: compton(structure, s))
    logger.info(
        "True map: %d x %d x %d voxels (%s per reciprocal-lattice step) to %.2f Å, about %.2f GB",
        *grid.shape,
        "x".join(map(str, grid.subdivide)),
        grid.d_min,
        needed / 1e9,
    )
    ideal = None
    if outputs.ideal:
        _check_ideal(sweeps)
        ideal = IdealSums(grid)

    reports, done = [], []
    with Staging() as images, Staging() as files:
        first = 0
        for number, (template, members) in enumerate(
            zip([*templates, *empty_templates], [*sweeps, *([e] for e in empty)])
        ):
            logger.info("\nSweep %d: %d images, %s", number + 1, members[0].scan.get_num_images(), template)
            sweep = prepare_sweep(number, members, sample, f_squared, parameters, first)
            first += len(sweep.crystals)
            job = ImageJob(sweep, members[0], images.path(template), grid if ideal and sweep.crystals else None)
            reports.append(_write_sweep(job, template, ideal, executor, progress))
            if sweep.crystals:
                crystals = [(c.spots, None if c.spots is None else sweep.spot_photons(c)) for c in sweep.crystals]
                done.append(_SweepDone(crystals, record_of_scales(sweep, members[0].scan.get_image_range()[0])))
        written = _write_maps(volume, grid, ideal, done, outputs, provenance, files)
        images.publish()  # an .expt file refers to images that exist
        for experiment in experiments:
            experiment.profile = spot_extent_model(parameters.spots, experiment)
        written = _write_models(sweeps, templates, done, outputs, files) + written
        files.publish()
        images.keep()
        files.keep()
    listed = [Output(t, "images") for t in templates]
    listed += [Output(t, "background images") for t in empty_templates]
    return SimulationResult(d_min, reports, listed + written)


def bragg_intensities(
    structure: Structure, d_min: float, solvent: tuple[float, float], table: str, wavelength: float | None = None
) -> tuple:
    """Squared structure factors with bulk solvent; with f', f'' the mean of Friedel mates.

    The mean of |F(h)|² and |F(-h)|² is the sum of those of the real and of the imaginary parts of the form factors.

    Parameters
    ----------
    solvent : k_sol (electrons/Å³) and b_sol (Å²)
    table : of the form factors, for X-rays
    wavelength : Å, add f', f'' at it

    Returns
    -------
    hkl : (n, 3) int32, indices of cctbx's asymmetric unit inside d_min
    f_squared : (n,) float64, electrons² per unit cell
    """
    if wavelength is None:
        hkl, f = bulk_solvent_structure_factors(structure, d_min, *solvent, table)
        return hkl, np.abs(f) ** 2
    hkl, f = bulk_solvent_structure_factors(structure, d_min, *solvent, Dispersive(table, wavelength))
    imaginary = Dispersive(table, wavelength, imaginary=True)
    _, g = bulk_solvent_structure_factors(structure, d_min, 0.0, 0.0, imaginary)
    return hkl, np.abs(f) ** 2 + np.abs(g) ** 2


def _common_wavelength(experiments) -> float:
    """Å, of all experiments, whose f', f'' must not differ."""
    found = [e.beam.get_wavelength() for e in experiments]
    if max(found) - min(found) > WAVELENGTH_TOLERANCE:
        raise DiffuseError(
            f"anomalous=True: the wavelengths are {min(found):g} to {max(found):g} Å, but f', f'' are those of one; "
            "simulate the experiments one by one, or give anomalous=False"
        )
    return found[0]


def _write_sweep(job: ImageJob, template: str, ideal, executor: Executor, progress: Progress) -> SweepReport:
    n = job.sweep.scan.n_images
    statistics = []
    for row, sums in progress(executor.map(write_image, job, range(n)), n, f"Simulating {Path(template).name}"):
        statistics.append(row)
        if sums is not None:
            ideal.add(*sums)
    table = np.array(statistics, dtype=float)
    report = SweepReport(
        template=template,
        n_images=n,
        crystals=len(job.sweep.crystals),
        sub_steps=job.sweep.sub_steps,
        sub_pixels=round(len(job.sweep.detector.sub_pixels) ** 0.5),
        mean_diffuse=table[:, 0].mean(),
        mean_background=table[:, 1].mean(),
        mean_bragg=table[:, 2].mean(),
        highest=int(table[:, 3].max()),
        saturated=int(table[:, 4].sum()),
    )
    logger.info(
        "Counts per pixel: diffuse %.2f, background %.2f, Bragg %.2f; highest %d, %d saturated pixels",
        report.mean_diffuse,
        report.mean_background,
        report.mean_bragg,
        report.highest,
        report.saturated,
    )
    return report


def _write_models(sweeps: list, templates: list, done: list, outputs: Outputs, files: Staging) -> list:
    experiments = attach_images(
        [e for sweep in sweeps for e in sweep], [t for t, sweep in zip(templates, sweeps) for _ in sweep]
    )
    written = []
    if outputs.experiments:
        logger.info("Saving the true models to %s", outputs.experiments)
        write_experiments(files.path(outputs.experiments), experiments)
        written.append(Output(outputs.experiments, "experiments"))
    crystals = [crystal for sweep in done for crystal in sweep.crystals]
    if outputs.reflections and any(spots is None for spots, _ in crystals):
        logger.info("No Bragg spots, so there is no %s", outputs.reflections)
    elif outputs.reflections:
        logger.info("Saving the true reflections to %s", outputs.reflections)
        write_reflections(files.path(outputs.reflections), experiments, *zip(*crystals))
        written.append(Output(outputs.reflections, "reflections"))
    return written


def _write_maps(volume, grid, ideal, done: list, outputs: Outputs, provenance: Provenance, files: Staging) -> list:
    written = []
    if outputs.truth and volume is not None:
        logger.info("Saving the true map to %s", outputs.truth)
        scales = {f"sweep_{i + 1}": sweep.record for i, sweep in enumerate(done)}
        truth = true_map(volume, grid)
        write_map(files.path(outputs.truth), truth, provenance, None, {"simulation": scales})
        written.append(Output(outputs.truth, "map"))
    if outputs.ideal and ideal is not None:
        logger.info("Saving the best possible map to %s", outputs.ideal)
        write_map(files.path(outputs.ideal), ideal.merge(), provenance, volume=False)
        written.append(Output(outputs.ideal, "map", "aid"))
    return written


def _check_crystals(structure, experiments) -> None:
    for number, experiment in enumerate(experiments):
        if experiment.crystal is None:
            raise DiffuseError(f"experiment {number}: no crystal to simulate")
        cell, group = experiment.crystal.get_unit_cell(), experiment.crystal.get_space_group()
        if group != structure.space_group:
            raise DiffuseError(
                f"experiment {number}: the space group is {group.info()}, that of the model is "
                f"{structure.space_group.info()}; reindex the experiments, or give the model in their setting"
            )
        if not cell.is_similar_to(structure.cell, CELL_TOLERANCE, 100 * CELL_TOLERANCE):
            raise DiffuseError(
                f"experiment {number}: the unit cell is {cell!s}, that of the model is {structure.cell!s}; "
                f"they must agree within {100 * CELL_TOLERANCE:.0f} %: is this the right model?"
            )


def _check_images(templates: list, prefix: str, parameter: str) -> None:
    """No image may be in the way: one that stayed from another simulation would be taken for one of this."""
    for template in templates:
        check_writable(image_path(template, 0), parameter)
        start, end = template.split("#####")
        found = sorted(Path(start).parent.glob(glob.escape(Path(start).name) + "[0-9]*" + end))
        if found:
            raise DiffuseError(
                f"{parameter}={prefix}: {found[0]} and {len(found) - 1} more images exist already; remove them or "
                f"choose another {parameter}"
            )


def _check_ideal(sweeps: list) -> None:
    if any(len(sweep) > 1 for sweep in sweeps):
        raise DiffuseError(
            "output.ideal: several crystals share images, whose scattering cannot be told apart; give None"
        )
