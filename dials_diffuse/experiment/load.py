"""Read .expt and .refl files and refuse what cannot be integrated, with a message that helps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

from dials_diffuse.errors import DiffuseError, one_line
from dials_diffuse.experiment.assign import LeftOut, Table, assign_reflections
from dials_diffuse.experiment.exclusion import images_to_use
from dials_diffuse.experiment.imagesets import ImageOpener, read_models

logger = logging.getLogger("dials.diffuse.experiment")


@dataclass(frozen=True)
class InputData:
    """Validated experiments with, when given, their reflections.

    Attributes
    ----------
    experiments : dxtbx ExperimentList, able to read the images that are used
    reflections : dials reflection_table or None; ``id`` is the number of the experiment, there are no identifiers
    left_out : reflections that belong to no experiment or none of its images, LeftOut
    """

    experiments: ExperimentList
    reflections: flex.reflection_table | None
    left_out: tuple[LeftOut, ...] = ()

    def record(self) -> dict | None:
        """What became of the reflections, for the record of a program; None where there are none."""
        if self.reflections is None:
            return None
        return {"used": len(self.reflections), "left_out": [asdict(item) for item in self.left_out]}


def load_input(files: Sequence[str], excluded: Sequence[tuple] = (), images_root: str | None = None) -> InputData:
    """Load and check the files of a command line.

    Parameters
    ----------
    files : paths of one or more .expt and any number of .refl files
    excluded : images that are not used, see :func:`images_to_use`; they need not exist, and an experiment of which no
        image is used needs no crystal
    images_root : where to look for images that have moved

    Raises
    ------
    DiffuseError
        If a file is unreadable, an image is missing, the experiments are not rotation data of an indexed crystal, or
        the reflections are not theirs.
    """
    expt_files, refl_files = _by_kind(files)
    experiments = ExperimentList()
    sources: list = []
    tables: list = []
    opener = ImageOpener()
    used = []
    for k, name in enumerate(expt_files):
        models = read_models(name, images_root)
        start = len(experiments)
        for i, experiment in enumerate(models.experiments):
            number = start + i
            positions = range(1) if experiment.scan is None else images_to_use(experiment, number, excluded)
            if len(positions):
                _check_experiment(experiment, f"{name} (experiment {i})")
                opener.open(models, i, positions, number)
                used.append(number)
            else:
                opener.leave_closed(experiment)
            if experiment.identifier and experiment.identifier in experiments.identifiers():
                raise DiffuseError(
                    f"{name}: experiment {experiment.identifier} is given twice; give each experiment once"
                )
            experiments.append(experiment)
            sources.append(name)
        if len(refl_files) == len(expt_files):
            tables.append(Table(refl_files[k], _read_reflections(refl_files[k]), range(start, len(experiments))))
    if len(refl_files) != len(expt_files):
        tables = [Table(name, _read_reflections(name), None) for name in refl_files]
    if not tables:
        return InputData(experiments, None)
    reflections, left_out = assign_reflections(tables, experiments, sources, set(used))
    logger.info("%d reflections of %d experiments", len(reflections), len(set(reflections["id"])))
    for item in left_out:
        logger.info("%s: %d reflections left out, %s", item.file, item.count, item.reason)
    return InputData(experiments, reflections, tuple(left_out))


def load_experiments(path: str, images_root: str | None = None) -> ExperimentList:
    """Experiments of one file with images that can be read; every image file must exist.

    images_root : where to look for images that have moved
    """
    models = read_models(path, images_root)
    opener = ImageOpener()
    for i in range(len(models.experiments)):
        opener.open(models, i, None, None)
    return models.experiments


def _by_kind(files: Sequence[str]) -> tuple:
    """The .expt and the .refl files among some files."""
    expt_files = [f for f in files if Path(f).suffix in (".expt", ".json")]
    refl_files = [f for f in files if Path(f).suffix in (".refl", ".pickle", ".mpack")]
    unknown = [f for f in files if f not in expt_files and f not in refl_files]
    if unknown:
        raise DiffuseError(f"{unknown[0]}: neither .expt nor .refl; give integrated.expt integrated.refl")
    if not expt_files:
        raise DiffuseError(f"{refl_files[0]}: reflections without experiments; give the .expt file as well")
    return expt_files, refl_files


def _read_reflections(path: str) -> flex.reflection_table:
    with open(path, "rb") as handle:
        if handle.read(1) == b"\x80" and path.endswith(".pickle"):
            raise DiffuseError(f"{path}: pickles are not read; write a .refl file with DIALS")
    try:
        table = flex.reflection_table.from_msgpack_file(path)
        list(table.keys()), list(table.experiment_identifiers().values())  # names that are no text fail here
    except Exception as error:
        raise DiffuseError(
            f"{path}: not a readable reflection file ({one_line(error)}); write it again with DIALS"
        ) from None
    for column in ("id", "panel"):
        if column not in table:
            raise DiffuseError(f"{path}: no column {column}; give the .refl file of dials.integrate")
    if len(table) == 0:
        raise DiffuseError(f"{path}: contains no reflections; give the output of dials.integrate")
    return table


def _check_experiment(experiment, where: str) -> None:
    kind = str(experiment.get_type()) if hasattr(experiment, "get_type") else ""
    if kind.upper().endswith(("TOF", "LAUE")):
        raise DiffuseError(f"{where}: {kind} data are not supported; monochromatic rotation data are needed")
    for model, step in (("beam", "dials.import"), ("detector", "dials.import"), ("crystal", "dials.index")):
        if getattr(experiment, model) is None:
            raise DiffuseError(f"{where}: no {model} model; run {step} first and give its later output")
    if not hasattr(experiment.beam, "get_wavelength") or "Polychromatic" in type(experiment.beam).__name__:
        raise DiffuseError(f"{where}: polychromatic (Laue) beam; monochromatic rotation data are needed")
    scan = experiment.scan
    if scan is None or experiment.goniometer is None or abs(scan.get_oscillation()[1]) < 1e-9:
        raise DiffuseError(
            f"{where}: still images; a rotation scan is needed (dials.import convert_stills_to_sequences=True "
            f"geometry.scan.oscillation=start,width gives stills of a rotation series one)"
        )
