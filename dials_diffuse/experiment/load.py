"""Read .expt and .refl files and refuse what cannot be integrated, with a message that helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

from dials_diffuse.errors import DiffuseError


@dataclass(frozen=True)
class InputData:
    """Validated experiments with, when given, their reflections.

    Attributes
    ----------
    experiments : dxtbx ExperimentList, able to read images
    reflections : dials reflection_table or None
    """

    experiments: ExperimentList
    reflections: flex.reflection_table | None


def load_input(files: Sequence[str]) -> InputData:
    """Load and check the files of a command line.

    Parameters
    ----------
    files : paths of one or more .expt and any number of .refl files

    Raises
    ------
    DiffuseError
        If a file is unreadable, an image is missing, or the experiments are not rotation data of an indexed crystal.
    """
    expt_files = [f for f in files if Path(f).suffix in (".expt", ".json")]
    refl_files = [f for f in files if Path(f).suffix in (".refl", ".pickle", ".mpack")]
    unknown = [f for f in files if f not in expt_files and f not in refl_files]
    if unknown:
        raise DiffuseError(f"{unknown[0]}: neither .expt nor .refl; give integrated.expt integrated.refl")
    if not expt_files:
        raise DiffuseError(f"{refl_files[0]}: reflections without experiments; give the .expt file as well")
    if refl_files and len(refl_files) != len(expt_files):
        raise DiffuseError(
            f"{len(expt_files)} .expt and {len(refl_files)} .refl files given; give one .refl for each .expt"
        )
    experiments = ExperimentList()
    tables = []
    for i, name in enumerate(expt_files):
        part = load_experiments(name)
        for number, experiment in enumerate(part):
            _check_experiment(experiment, f"{name} (experiment {number})")
        if refl_files:
            table = _load_reflections(refl_files[i])
            _check_match(table, part, refl_files[i], name)
            table["id"] += len(experiments) * (table["id"] >= 0).as_int()
            for key in list(table.experiment_identifiers().keys()):
                del table.experiment_identifiers()[key]
            tables.append(table)
        twice = set(part.identifiers()) & set(experiments.identifiers()) - {""}
        if twice:
            raise DiffuseError(f"{name}: experiment {sorted(twice)[0]} is given twice; give each experiment once")
        experiments.extend(part)
    return InputData(experiments, flex.reflection_table.concat(tables) if tables else None)


def load_experiments(path: str) -> ExperimentList:
    """Experiments of one file with images that can be read; every image file must exist."""
    try:
        models = ExperimentList.from_file(path, check_format=False)
    except Exception as error:  # dxtbx raises many types for malformed files
        raise DiffuseError(f"{path}: not a readable experiment file ({error}); write it again with DIALS") from None
    if len(models) == 0:
        raise DiffuseError(f"{path}: contains no experiments; give the output of dials.integrate")
    for experiment in models:
        if experiment.imageset is None:
            raise DiffuseError(f"{path}: has no images; give the .expt that dials.integrate wrote")
        missing = [p for p in dict.fromkeys(experiment.imageset.paths()) if not Path(p).is_file()]
        if missing:
            raise DiffuseError(
                f"{missing[0]}: image not found ({len(missing)} missing), {path} refers to it; restore the image or "
                f"cut it out with dials.slice_sequence"
            )
    try:
        return ExperimentList.from_file(path, check_format=True)
    except Exception as error:
        raise DiffuseError(
            f"{path}: its images or the mask files that it names cannot be read ({error}); check the first image "
            f"and the masks"
        ) from None


def _load_reflections(path: str) -> flex.reflection_table:
    with open(path, "rb") as handle:
        if handle.read(1) == b"\x80" and path.endswith(".pickle"):
            raise DiffuseError(f"{path}: pickles are not read; write a .refl file with DIALS")
    try:
        return flex.reflection_table.from_msgpack_file(path)
    except Exception as error:
        raise DiffuseError(f"{path}: not a readable reflection file ({error}); write it again with DIALS") from None


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


def _check_match(table, experiments, refl_name: str, expt_name: str) -> None:
    for column in ("id", "panel"):
        if column not in table:
            raise DiffuseError(f"{refl_name}: no column {column}; give the .refl file of dials.integrate")
    if len(table) == 0:
        raise DiffuseError(f"{refl_name}: contains no reflections; give the output of dials.integrate")
    both = f"{refl_name} does not belong to {expt_name}"
    known = set(experiments.identifiers()) - {""}
    stored = set(table.experiment_identifiers().values()) - {""}
    if known and stored and not stored <= known:
        strange = sorted(stored - known)[0]
        raise DiffuseError(f"{both}: experiment identifier {strange} is not in it; give files of the same step")
    ids = np.array(table["id"])
    if ids.max() >= len(experiments):
        raise DiffuseError(f"{both}: id {ids.max()} but only {len(experiments)} experiments; give matching files")
    panels = np.array(table["panel"])
    for i, experiment in enumerate(experiments):
        mine = ids == i
        if not mine.any():
            continue
        if panels[mine].max() >= len(experiment.detector):
            raise DiffuseError(f"{both}: panel {panels[mine].max()} is not in the detector; give matching files")
        column = next((c for c in ("xyzcal.px", "xyzobs.px.value") if c in table), None)
        if column is None:
            continue
        z = np.array(table[column].parts()[2])[mine]
        first, last = experiment.scan.get_array_range()
        if np.mean((z < first - 5) | (z > last + 5)) > 0.05:
            raise DiffuseError(
                f"{both}: reflections on images {z.min():.0f}..{z.max():.0f}, but the scan has images "
                f"{first + 1}..{last}; give matching files"
            )
