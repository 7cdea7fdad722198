"""Map files (``*.nxs``): NeXus containers that silx, NeXpy and h5py open, with a table of symmetry-unique voxels."""

from __future__ import annotations

import logging

import h5py
import numpy as np

from dials_diffuse import __version__
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.hdf5 import NewFile, create_hdf5, open_schema
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.memory import total_memory

logger = logging.getLogger("dials.diffuse.files")

SCHEMA = "dials_diffuse.map/1"
_EDGE = 32  # voxels along the edge of a compressed block: planes in all three directions read equally fast
_SLAB = 1 << 27  # voxels of a three-dimensional array that are in memory together
_PACKED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def write_map(path, data: DiffuseMap, provenance: Provenance, volume: bool | None = True, collections=None) -> None:
    """Write a map file; it appears under ``path`` only when complete.

    Parameters
    ----------
    volume : also write the three-dimensional arrays, without them viewers have nothing to show by default; None:
        where they take no more than half of this computer's memory
    collections : what else belongs to the map, name of a group in the entry -> {name: array, or such a dictionary}

    Raises
    ------
    DiffuseError
        If the file cannot be written, for instance because the disk is full.
    """
    if volume is None:
        volume = _fits(data.grid)
    with create_hdf5(path, SCHEMA) as handle:
        _nexus_class(handle, "NXroot")
        entry = _new_group(handle, "entry", "NXentry")
        handle.attrs["default"] = "entry"
        entry["title"] = f"Diffuse scattering of a crystal in {data.grid.space_group_symbol}"
        _write_sample(entry, data.grid)
        _write_grid(entry, data)
        _write_unique(entry, data)
        _write_statistics(entry, data)
        _write_process(entry, provenance)
        _write_collections(entry, collections or {})
        if volume:
            _write_volume(handle, entry, data)
            entry.attrs["default"] = "map"


def read_map(path) -> DiffuseMap:
    """Read a map file, without its volume.

    Raises
    ------
    DiffuseError
        If the file is missing, is no map of this schema, or lacks a part.

    Examples
    --------
    >>> data = read_map("diffuse_merged.nxs")
    >>> data.grid.space_group_symbol, data.grid.subdivide, len(data.intensity)
    ('P 41', (2, 2, 2), 432)
    """
    with open_schema(path, SCHEMA) as handle:
        try:
            entry = handle["entry"]
            unique = entry["unique"]
            halves = {name: _floats(unique[name]) if name in unique else None for name in ("half_a", "half_b")}
            return DiffuseMap(
                grid=_read_grid(entry),
                friedel=bool(entry["grid/friedel"][()]),
                index=unique["index"][()],
                intensity=_floats(unique["intensity"]),
                sigma=_floats(unique["sigma"]),
                multiplicity=unique["multiplicity"][()],
                **halves,
                half_sets=_text(unique.attrs.get("half_sets", "")),
                sums={name: item[()] for name, item in unique["sums"].items()} if "sums" in unique else {},
                statistics={name: item[()] for name, item in entry["statistics"].items() if name != "overall"},
                overall={name: item[()].item() for name, item in entry["statistics/overall"].items()},
                units=_text(unique["intensity"].attrs["units"]),
                at_centres=bool(entry["grid"]["at_centres"][()]) if "at_centres" in entry["grid"] else False,
            )
        except KeyError as error:
            raise DiffuseError(f"{path}: incomplete map file, {error.args[0]}; write it again") from None


def read_volume(path, name: str = "intensity") -> np.ndarray:
    """Three-dimensional array of a map file, axes h, k, l; expanded from the unique voxels when no volume was written.

    Parameters
    ----------
    name : ``intensity``, ``intensity_errors`` or ``multiplicity``

    Raises
    ------
    DiffuseError
        If the file is no map or ``name`` is none of these.
    """
    if name not in _VOLUMES:
        raise DiffuseError(f"{path}: no volume named {name}; choose from {', '.join(_VOLUMES)}")
    with open_schema(path, SCHEMA) as handle:
        if f"entry/map/{name}" in handle:
            return handle[f"entry/map/{name}"][()]
    column, fill, dtype = _VOLUMES[name]
    data = read_map(path)
    return data.volume(getattr(data, column), fill, dtype)


def read_column(path, name: str) -> np.ndarray:
    """What else a map file has for its unique voxels, for example ``fit/model``: (n,) float64.

    Raises
    ------
    DiffuseError
        If the file is no map or has no such column.
    """
    with open_schema(path, SCHEMA) as handle:
        entry, shape = handle["entry"], handle["entry/unique/intensity"].shape
        others: list = []

        def note(key, item) -> None:
            if isinstance(item, h5py.Dataset) and item.shape == shape and not key.startswith("unique/"):
                others.append(key)

        entry.visititems(note)
        if name not in others:
            raise DiffuseError(
                f"{path}: no column {name}; besides those of all maps it has {', '.join(others) or 'none'}"
            )
        return entry[name][()].astype(float)


def read_provenance(path) -> Provenance:
    """Which program made the map from what.

    Raises
    ------
    DiffuseError
        If the file is no map.
    """
    with open_schema(path, SCHEMA) as handle:
        process = handle["entry/process"]
        return Provenance(
            program=_text(process["program"][()]),
            dials_version=_text(process["dials_version"][()]),
            phil=_text(process["phil"][()]),
            inputs=tuple(_text(item) for item in process["inputs"][()]),
            identifiers=tuple(_text(item) for item in process["experiment_identifiers"][()]),
            command_line=_text(process["command_line"][()]) if "command_line" in process else "",
        )


#: three-dimensional arrays: column of DiffuseMap, value of voxels not measured, type
_VOLUMES = {
    "intensity": ("intensity", np.nan, np.float32),
    "intensity_errors": ("sigma", np.nan, np.float32),
    "multiplicity": ("multiplicity", 0, np.int32),
}


def _nexus_class(group, name: str) -> None:
    group.attrs["NX_class"] = name


def _new_group(parent, name: str, nexus_class: str):
    group = parent.create_group(name)
    _nexus_class(group, nexus_class)
    return group


def _new_data(group, name: str, values, units: str = ""):
    dataset = group.create_dataset(name, data=values, **(_PACKED if np.size(values) > 1000 else {}))
    if units:
        dataset.attrs["units"] = units
    return dataset


def _write_sample(entry, grid: MapGrid) -> None:
    sample = _new_group(entry, "sample", "NXsample")
    _new_data(sample, "unit_cell", np.array(grid.unit_cell, dtype=float), "angstrom, degree")
    sample["space_group"] = grid.space_group_symbol
    sample["hall_symbol"] = grid.hall_symbol
    laue = grid.space_group.build_derived_laue_group()
    sample["laue_group"] = laue.info().type().lookup_symbol()


def _write_grid(entry, data: DiffuseMap) -> None:
    group = _new_group(entry, "grid", "NXcollection")
    group["subdivide"] = np.array(data.grid.subdivide, dtype=np.int32)
    _new_data(group, "d_min", float(data.grid.d_min), "angstrom")
    _new_data(group, "d_max", float(data.grid.d_max), "angstrom")
    group["friedel"] = bool(data.friedel)
    group["at_centres"] = bool(data.at_centres)


def _read_grid(entry) -> MapGrid:
    return MapGrid(
        unit_cell=tuple(float(x) for x in entry["sample/unit_cell"][()]),
        hall_symbol=_text(entry["sample/hall_symbol"][()]),
        subdivide=tuple(int(n) for n in entry["grid/subdivide"][()]),
        d_min=float(entry["grid/d_min"][()]),
        d_max=float(entry["grid/d_max"][()]),
    )


def _write_unique(entry, data: DiffuseMap) -> None:
    group = _new_group(entry, "unique", "NXcollection")
    _new_data(group, "index", np.asarray(data.index, dtype=np.int32))
    for name in ("intensity", "sigma", "half_a", "half_b"):
        values = getattr(data, name)
        if values is not None:
            _new_data(group, name, np.asarray(values, dtype=float), data.units)
    _new_data(group, "multiplicity", np.asarray(data.multiplicity, dtype=np.int32))
    group.attrs["half_sets"] = data.half_sets
    if data.sums:
        sums = _new_group(group, "sums", "NXcollection")
        sums.attrs["columns"] = ["half_a", "half_b"]
        for name, values in data.sums.items():
            _new_data(sums, name, values)


def _write_statistics(entry, data: DiffuseMap) -> None:
    group = _new_group(entry, "statistics", "NXcollection")
    overall = _new_group(group, "overall", "NXcollection")
    for target, columns in ((group, data.statistics), (overall, data.overall)):
        for name, values in columns.items():
            _new_data(target, name, values, "angstrom" if name in ("d_min", "d_max") else "")


def _write_process(entry, provenance: Provenance) -> None:
    group = _new_group(entry, "process", "NXprocess")
    text = h5py.string_dtype()
    group["program"] = provenance.program
    group["version"] = __version__
    group["dials_version"] = provenance.dials_version
    group["command_line"] = provenance.command_line
    group["phil"] = provenance.phil
    group.create_dataset("inputs", data=[str(p) for p in provenance.inputs], dtype=text)
    group.create_dataset("experiment_identifiers", data=list(provenance.identifiers), dtype=text)


def _write_collections(parent, content: dict) -> None:
    for name, item in content.items():
        if isinstance(item, dict):
            _write_collections(_new_group(parent, name, "NXcollection"), item)
        else:
            _new_data(parent, name, item)


def _write_volume(handle: NewFile, entry, data: DiffuseMap) -> None:
    """The NXdata group; some layers of one array are in memory at a time, blocks without a voxel take no space."""
    group = _new_group(entry, "map", "NXdata")
    group.attrs["signal"] = "intensity"
    group.attrs["axes"] = ["h", "k", "l"]
    group["title"] = "diffuse intensity"
    for name, centres in zip("hkl", data.grid.axes()):
        axis = _new_data(group, name, centres, "r.l.u.")
        axis.attrs["long_name"] = f"{name} (reciprocal-lattice units)"
    chunks = tuple(min(_EDGE, n) for n in data.grid.shape)
    layers = chunks[0] * max(1, _SLAB // (chunks[0] * data.grid.shape[1] * data.grid.shape[2]))
    for name, (column, fill, dtype) in _VOLUMES.items():
        handle.check()
        dataset = group.create_dataset(name, data.grid.shape, dtype, chunks=chunks, fillvalue=fill, **_PACKED)
        if name != "multiplicity":
            dataset.attrs["units"] = data.units
        for first in range(0, data.grid.shape[0], layers):
            handle.check()
            last = min(first + layers, data.grid.shape[0])
            slab = data.volume(getattr(data, column), fill, dtype, (first, last))
            _, n2, n3 = data.grid.shape
            for block in dataset.iter_chunks(np.s_[first:last, 0:n2, 0:n3]):
                values = slab[block[0].start - first : block[0].stop - first, block[1], block[2]]
                if np.any(values > 0 if fill == 0 else np.isfinite(values)):
                    dataset[block] = values


def _fits(grid: MapGrid) -> bool:
    """Do the three-dimensional arrays take no more than half of the memory?"""
    needed, total = sum(np.dtype(dtype).itemsize for *_, dtype in _VOLUMES.values()) * grid.n_voxels, total_memory()
    if needed <= total / 2:
        return True
    logger.info(
        "Leaving out the three-dimensional arrays: %s voxels take %.1f GB; output.volume=True writes them anyway",
        "x".join(map(str, grid.shape)),
        needed / 1e9,
    )
    return False


def _floats(dataset) -> np.ndarray:
    return dataset[()].astype(float, copy=False)


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
