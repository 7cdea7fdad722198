"""Other series of images beside those of the data, and whether they have spots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dxtbx.format.Registry import get_format_class_for_file
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory
from dxtbx.sequence_filenames import template_regex

from dials_diffuse.errors import DiffuseError
from dials_diffuse.experiment.images import image_readings, read_image, static_mask
from dials_diffuse.experiment.imagesets import image_paths, refuse_pickle
from dials_diffuse.experiment.peaks import find_peaks

#: one file holds the whole series
_CONTAINERS = (".nxs", "_master.h5")

#: images that are looked at in each series
_N_IMAGES = 5


@dataclass(frozen=True)
class Series:
    """Images that belong together.

    name : template with # for digits, or path of the file that holds them; first : path of one of them
    """

    name: str
    first: str


def series_beside(experiments: Sequence) -> list[Series]:
    """Series of images in the folders of the data and in the folders beside these, without the data themselves.

    Parameters
    ----------
    experiments : dxtbx experiments of the data

    Returns
    -------
    Those in the folders of the data come first; within a folder by name.
    """
    own: set = set()
    folders: dict = {}
    for experiment in experiments:
        for path in map(os.path.realpath, image_paths(experiment)):
            own.add(path)
            folders[os.path.dirname(path)] = None
    beside: dict = {}
    for folder in folders:
        for other in _folders_in(os.path.dirname(folder)):
            beside[other] = None
    found: dict = {}
    used = {_series_of(path) for path in own}
    for folder in [*folders, *(name for name in beside if name not in folders)]:
        for name, first in _series_in(folder).items():
            if name not in used and first not in own:
                found.setdefault(name, Series(name, first))
    return list(found.values())


def open_series(series: Series) -> ExperimentList:
    """All images of a series.

    Raises
    ------
    DiffuseError
        If dxtbx cannot make image sets of it.
    """
    refuse_pickle(series.first)
    try:
        if "#" in series.name:
            return ExperimentListFactory.from_templates([series.name])
        return ExperimentListFactory.from_filenames([series.name])
    except Exception as error:  # formats raise many types
        raise DiffuseError(f"{series.name}: cannot be read ({error})") from None


def open_first(series: Series) -> ExperimentList:
    """One image of a series; reads no other.

    Raises
    ------
    DiffuseError
        If it is no image.
    """
    refuse_pickle(series.first)
    try:
        experiments = ExperimentListFactory.from_filenames([series.first])
    except Exception as error:  # formats raise many types
        raise DiffuseError(f"{series.first}: cannot be read ({error})") from None
    if not experiments or any(experiment.detector is None for experiment in experiments):
        raise DiffuseError(f"{series.first}: no image of a detector")
    return experiments


def median_spots(imageset, positions: Sequence[int]) -> float:
    """Spots of an image, see :func:`find_peaks`: the median of a few positions.

    Raises
    ------
    DiffuseError
        If an image cannot be read.
    """
    places = np.linspace(0, len(positions) - 1, min(_N_IMAGES, len(positions))).astype(int)
    chosen = np.unique(np.asarray(positions)[places])
    good, readings = static_mask(imageset), image_readings(imageset)
    counts = []
    for i in chosen:
        panels = zip(read_image(imageset, int(i)), readings, good)
        counts.append(sum(len(find_peaks(r.counts(v), usable & r.trusted(v))[1]) for v, r, usable in panels))
    return float(np.median(counts))


def _folders_in(folder: str) -> list:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _series_in(folder: str) -> dict:
    """{name of a series: path of its first image}; of files that dxtbx can read."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return {}
    found: dict = {}
    for name in names:
        path = os.path.join(folder, name)
        series = _series_of(path)
        if series and series not in found and os.path.isfile(path):
            found[series] = path
    return {series: path for series, path in found.items() if _readable(path)}


def _series_of(path: str) -> str:
    """Template of a file with a number, or the name of a file that holds a series; empty for others."""
    if path.endswith(_CONTAINERS):
        return path
    if Path(path).suffix in (".h5", ".expt", ".refl", ".json", ".log"):
        return ""
    template, _ = template_regex(path)
    return template or ""


def _readable(path: str) -> bool:
    try:
        refuse_pickle(path)
        return get_format_class_for_file(path) is not None
    except Exception:  # formats raise many types
        return False
