"""From the files of a run to what pages are made of: the record of a program, and the map and arrays beside it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.hdf5 import is_hdf5, schema_of
from dials_diffuse.files.nexus import SCHEMA as MAP_SCHEMA
from dials_diffuse.files.nexus import read_collection, read_map, read_provenance
from dials_diffuse.files.observations import SCHEMA as OBSERVATIONS_SCHEMA
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import finite, grid_record, make_record, read_json
from dials_diffuse.reduction.overview import overview
from dials_diffuse.report.pages import FILE_PAGES, PROCESS, kind_of
from dials_diffuse.report.section import Material

logger = logging.getLogger("dials.diffuse.report")

#: kinds of outputs that pages show: the first map, and arrays
_MAP, _ARRAYS = "map", ("covariance",)


def load_materials(path) -> tuple:
    """What the page of a file is made of: its Material, and those of the steps where it is the record of a whole run.

    Parameters
    ----------
    path : of a record (.json), a map (.nxs) or observations (.h5) of this package. The record of a map or of
        observations is looked for beside it; without one the page has what the file itself tells.

    Raises
    ------
    DiffuseError
        If the file cannot be read, or is none of these.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return _of_record(_known(read_json(path), path), path)
    schema = schema_of(path)
    found = _record_beside(path)
    if found is not None:
        logger.info("%s: its record is %s", path, found)
        return _of_record(read_json(found), found)
    logger.info("%s: no record beside it, the page has what the file tells", path)
    if schema == MAP_SCHEMA:
        return (_of_map(path),)
    if schema == OBSERVATIONS_SCHEMA:
        return (_of_observations(path),)
    raise DiffuseError(f"{path}: there is no page for files of schema {schema}")


def _known(record: dict, path) -> dict:
    if kind_of(record) is None:
        raise DiffuseError(
            f"{path}: schema {record.get('schema')!r} is not that of a program of this package; give a .json, .nxs "
            "or .h5 that one of them wrote"
        )
    return record


def _record_beside(path: Path) -> Path | None:
    """The record that names the file among its outputs."""
    for other in (path.with_suffix(".json"), *sorted(path.parent.glob("*diffuse*.json"))):
        if not other.is_file():
            continue
        try:
            record = read_json(other)
        except DiffuseError:  # of some other program
            continue
        names = [Path(item["path"]).name for item in record.get("outputs", ()) if isinstance(item, dict)]
        if path.name in names and kind_of(record) not in (None, PROCESS):
            return other
    return None


def _of_record(record: dict, path: Path) -> tuple:
    if kind_of(record) is PROCESS:
        return (Material(record), *_steps(record, path))
    return (material_of(record, path.parent),)


def _steps(record: dict, path: Path) -> list:
    """Materials of the steps of a run, in their order."""
    steps: list = []
    for item in record["outputs"]:
        other = _place(item["path"], path.parent)
        if item["kind"] == "statistics" and other is not None and other.resolve() != path.resolve():
            steps += _of_record(_known(read_json(other), other), other)
    return steps


def material_of(record: dict, folder) -> Material:
    """A record with the map and the arrays among its outputs, of those that are still there.

    folder : where the record is; outputs are looked for there first
    """
    data, fit, arrays = None, {}, {}
    for item in record["outputs"]:
        place = _place(item["path"], Path(folder))
        if place is None:
            continue
        if item["kind"] == _MAP and data is None and is_hdf5(place):
            data, fit = read_map(place, halves=False), read_collection(place, "fit")
        elif item["kind"] in _ARRAYS and place.suffix == ".npy":
            arrays[item["kind"]] = np.load(place, allow_pickle=False)
    return Material(record, data, fit, arrays)


def _place(path, folder: Path) -> Path | None:
    return next((p for p in (folder / Path(path).name, Path(path)) if p.is_file()), None)


def _of_map(path: Path) -> Material:
    data, provenance = read_map(path, halves=False), read_provenance(path)
    shells = [dict(zip(data.statistics, values)) for values in zip(*data.statistics.values())]
    content = {
        **grid_record(data.grid),
        "d_min": data.grid.d_min,
        "d_max": data.grid.d_max,
        "units": data.units,
        "program": provenance.program,
        "n_voxels": len(data.index),
        "statistics": {"overall": data.overall, "shells": shells} if shells else None,
    }
    record = make_record(FILE_PAGES["map"].schema, provenance, (), (), **content)
    return Material(finite(record), data, read_collection(path, "fit"))


def _of_observations(path: Path) -> Material:
    with ObservationFile(path) as data:
        content = {
            **grid_record(data.grid),
            "d_min": data.grid.d_min,
            "d_max": data.grid.d_max,
            "units": data.units,
            "program": data.provenance.program,
            "n_observations": data.n_rows,
            "experiments": [asdict(e) for e in data.experiments],
        }
        provenance: Provenance = data.provenance
    record = make_record(FILE_PAGES["observations"].schema, provenance, (), (), **content, overview=overview(path))
    return Material(finite(record))
