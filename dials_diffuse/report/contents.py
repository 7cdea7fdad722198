"""What is in a file: its kind, the crystal, the grid, statistics, where it comes from, and how to go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files import nexus, observations
from dials_diffuse.files.checked import CheckedFile
from dials_diffuse.files.columns import Column as FileColumn
from dials_diffuse.files.hdf5 import is_hdf5, schema_of
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import grid_record, read_json
from dials_diffuse.maps.counting import count_unique
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.shells import TOLERANCE
from dials_diffuse.report.merge import SHELL_COLUMNS
from dials_diffuse.report.tables import Column, text_table

_REMEDY = "write it again"

#: begin of the schemas of records
_RECORD = "dials.diffuse_"

#: keys of a record that all have, and what is too long to print
_HEAD = ("schema", "version", "dials_version", "command_line", "inputs", "parameters", "outputs", "warnings")


def file_contents(path) -> dict:
    """What a file of this package holds, as ``--json`` of dials.diffuse_show writes it.

    Returns
    -------
    dict with ``file``, ``kind`` (``map``, ``observations`` or ``record``), ``schema``, ``bytes``, what belongs to the
    kind, and ``next``, commands to go on with

    Raises
    ------
    DiffuseError
        If the file cannot be read, or is none of this package.
    """
    path = Path(path)
    head = {"file": str(path), "bytes": path.stat().st_size if path.is_file() else None}
    if is_hdf5(path):
        schema = schema_of(path)
        kinds = {nexus.SCHEMA: _map_contents, observations.SCHEMA: _observation_contents}
        if schema not in kinds:
            raise DiffuseError(f"{path}: schema is {schema}; dials.diffuse_show knows {', '.join(kinds)} and records")
        with CheckedFile(path, schema, _REMEDY) as file:
            version = file.attribute("/", FileColumn("creator_version", "U"))
        return {**head, "schema": schema, "version": version, **kinds[schema](path)}
    return {**head, **_record_contents(path)}


def _map_contents(path: Path) -> dict:
    data = nexus.read_map(path)
    grid = data.grid
    with CheckedFile(path, nexus.SCHEMA, _REMEDY) as file:
        usual = {"sample", "grid", "unique", "statistics", "process", "map", "title"}
        more = {name: file.names(f"entry/{name}") for name in file.names("entry") if name not in usual}
        volume = file.has("entry/map")
    limits = np.array([(1 - TOLERANCE) / grid.d_max, (1 + TOLERANCE) / grid.d_min])
    possible = int(count_unique(grid, data.friedel, limits)[0])
    finite = data.intensity[np.isfinite(data.intensity)]
    measured = bool(np.any(data.multiplicity > 0))
    return {
        "kind": "map",
        "crystal": _crystal(grid),
        "grid": {"subdivide": grid.subdivide, "shape": grid.shape, "d_max": grid.d_max, "d_min": grid.d_min},
        "voxels": {
            "unique": len(data.index),
            "possible": possible,
            "completeness": len(data.index) / possible if possible else None,
            "friedel_mates_merged": data.friedel,
            "observations": int(data.multiplicity.sum()),
            "volume": volume,
        },
        "intensity": {
            "units": data.units,
            "of": "a measurement" if measured else "a model, or of the truth of a simulation",
            "where": "at the centres of voxels" if data.at_centres else "means over voxels",
            "mean": float(finite.mean()) if len(finite) else None,
            "minimum": float(finite.min()) if len(finite) else None,
            "maximum": float(finite.max()) if len(finite) else None,
            "half_sets": data.half_sets or None,
        },
        "statistics": {"overall": data.overall, "shells": _rows(data.statistics)},
        "columns": more,
        "provenance": _provenance(nexus.read_provenance(path)),
        "next": _after_map(path, measured),
    }


def _rows(columns: dict) -> list:
    names = list(columns)
    return [dict(zip(names, row)) for row in zip(*(np.asarray(columns[name]).tolist() for name in names))]


def _after_map(path: Path, measured: bool) -> list:
    export = f"dials.diffuse_export {path} format=ccp4"
    if not measured:
        return [f"dials.diffuse_merge diffuse_scaled.h5 reference={path}", export]
    return [f"dials.diffuse_fit {path} model.pdb", f"dials.diffuse_model model.pdb map={path}", export]


def _observation_contents(path: Path) -> dict:
    with observations.ObservationFile(path) as file:
        keys = ("identifier", "image_range", "oscillation", "n_images_used", "wavelength", "n_panels", "reindexed")
        grid = file.grid
        with CheckedFile(path, observations.SCHEMA, _REMEDY) as head:
            n_bragg = head.n_rows("bragg/intensity") if head.has("bragg") else 0
        after = [f"dials.diffuse_merge {path}"]
        return {
            "kind": "observations",
            "crystal": _crystal(grid),
            "grid": {"subdivide": grid.subdivide, "shape": grid.shape, "d_max": grid.d_max, "d_min": grid.d_min},
            "observations": {
                "rows": file.n_rows,
                "bragg_reflections": n_bragg,
                "scaled": file.scaled,
                "units": file.units,
            },
            "experiments": [{key: vars(experiment)[key] for key in keys} for experiment in file.experiments],
            "provenance": _provenance(file.provenance),
            "next": after if file.scaled else [f"dials.diffuse_scale {path}", *after],
        }


def _record_contents(path: Path) -> dict:
    try:
        record = read_json(path)
    except DiffuseError as error:
        if not path.is_file() or path.suffix == ".json":
            raise
        raise DiffuseError(f"{path}: not of dials_diffuse; give a map, observations or a .json") from error
    schema = str(record.get("schema", "none"))
    if not schema.startswith(_RECORD):
        raise DiffuseError(f"{path}: not of dials_diffuse (schema: {schema}); for files of DIALS there is dials.show")
    return {
        "kind": "record",
        "schema": schema,
        "version": record.get("version"),
        "provenance": {
            "program": schema.split("/")[0],
            **{name: record.get(name) for name in ("dials_version", "command_line", "inputs", "parameters")},
        },
        "outputs": record.get("outputs", []),
        "warnings": record.get("warnings", []),
        "content": {name: value for name, value in record.items() if name not in _HEAD},
        "next": [f"dials.diffuse_show {out['path']}" for out in record.get("outputs", []) if out.get("kind") in _KINDS],
    }


def _crystal(grid: MapGrid) -> dict:
    laue = grid.space_group.build_derived_laue_group().info().type().lookup_symbol()
    return {
        **{key: value for key, value in grid_record(grid).items() if key != "subdivide"},
        "hall_symbol": grid.hall_symbol.strip(),
        "laue_group": laue,
    }


def _provenance(made: Provenance) -> dict:
    return {
        "program": made.program,
        "dials_version": made.dials_version,
        "command_line": made.command_line,
        "inputs": list(made.inputs),
        "experiment_identifiers": list(made.identifiers),
        "parameters": made.phil,
    }


def contents_text(contents: dict) -> str:
    """The contents of a file for people: a paragraph for each part, tables for experiments and shells."""
    lines = [f"{contents['file']}: {_KINDS[contents['kind']]} ({contents['schema']}, {contents['bytes']:,} bytes)"]
    for part, values in contents.items():
        if part in ("file", "bytes", "kind", "schema", "version", "next") or values in ({}, []):
            continue
        lines += ["", part, *(f"  {line}" for line in _part(part, values))]
    if contents["next"]:
        lines += ["", "next", *(f"  {line}" for line in contents["next"])]
    return "\n".join(lines)


_KINDS = {
    "map": "a map of diffuse scattering",
    "observations": "observations of voxels",
    "record": "the record of a run",
}


def _part(part: str, values) -> list:
    if part == "experiments":
        return [line.rstrip() for line in text_table(_EXPERIMENTS, values).splitlines()]
    if part == "statistics":
        known = [row for row in SHELL_COLUMNS if row[0] in values["overall"]]
        columns = [Column(head, width, how, lambda row, name=name: row.get(name)) for name, head, width, how in known]
        return text_table(columns, values["shells"], [values["overall"]]).splitlines() if columns else ["none"]
    if isinstance(values, dict):
        return [f"{key:<23} {_words(value)}" for key, value in values.items() if key != "parameters"]
    if isinstance(values, list):
        return [_words(value) for value in values]
    return [_words(values)]


_EXPERIMENTS = (
    Column("images", 8, "d", lambda row: row["n_images_used"]),
    Column("first", 7, "d", lambda row: row["image_range"][0]),
    Column("last", 7, "d", lambda row: row["image_range"][1]),
    Column("start", 9, ".2f", lambda row: row["oscillation"][0]),
    Column("width", 7, ".3g", lambda row: row["oscillation"][1]),
    Column("Å", 8, ".4f", lambda row: row["wavelength"]),
    Column("panels", 7, "d", lambda row: row["n_panels"]),
    Column("  reindexed", -12, "", lambda row: f"  {row['reindexed'] or '-'}"),
    Column("  identifier", -40, "", lambda row: f"  {row['identifier']}"),
)

#: characters of a value that are printed
_LONGEST = 110


def _words(value) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)) and all(isinstance(x, (str, int, float)) for x in value):
        text = ", ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in value) or "-"
    elif isinstance(value, dict) and set(value) == {"path", "kind", "importance"}:
        text = f"{value['path']} ({value['kind']})"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
