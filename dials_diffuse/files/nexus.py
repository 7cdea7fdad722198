"""Map files (``*.nxs``): NeXus containers that silx, NeXpy and h5py open, with a table of symmetry-unique voxels."""

from __future__ import annotations

import logging
from dataclasses import replace

import h5py
import numpy as np

from dials_diffuse import __version__
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.checked import CheckedFile
from dials_diffuse.files.checksum import protected
from dials_diffuse.files.columns import Column
from dials_diffuse.files.hdf5 import NewFile, create_hdf5
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.values import bad_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.memory import total_memory

logger = logging.getLogger("dials.diffuse.files")

SCHEMA = "dials_diffuse.map/1"
_REMEDY = "write it again"
_UNIQUE, _STATISTICS, _PROCESS = "entry/unique", "entry/statistics", "entry/process"

#: indices up to this can be turned by symmetry operators in int32
MAX_INDEX = 1 << 28

#: /entry/unique, one row per symmetry-unique voxel
UNIQUE_COLUMNS = (
    Column("index", "i4", "voxel on the subdivided lattice", (3,), -MAX_INDEX, MAX_INDEX),
    Column("intensity", "f8", "mean over the voxel's observations", missing=True),
    Column("sigma", "f8", "its standard deviation; 0 in maps of models", low=0, missing=True),
    Column("multiplicity", "i4", "observations that were averaged; 0 in maps of models", low=0),
    Column("half_a", "f8", "intensity of one half of the data", missing=True, optional=True),
    Column("half_b", "f8", "and of the other", missing=True, optional=True),
)
_HALVES, _HALF_SETS = ("half_a", "half_b"), Column("half_sets", "U")

#: /entry/unique/sums, the same rows
SUM_COLUMN = Column("*", "f8", "sums that the averages come from, of both halves", (2,), missing=True)

#: /entry/sample
SAMPLE_ITEMS = (
    Column("unit_cell", "f8", "a, b, c, α, β, γ", (6,), unit="angstrom, degree"),
    Column("hall_symbol", "U", "space group in its setting"),
)

#: /entry/grid
GRID_ITEMS = (
    Column("subdivide", "i4", "voxels per reciprocal-lattice step", (3,), 1, MAX_INDEX),
    Column("d_min", "f8", "resolution limit", low=0, unit="angstrom"),
    Column("d_max", "f8", "the other limit", low=0, infinite=True, unit="angstrom"),
    Column("friedel", "?", "were (h, k, l) and (−h, −k, −l) merged?"),
    Column("at_centres", "?", "intensity of a model at the voxels' centres, not the mean over them", optional=True),
)

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


def read_map(path, halves: bool = True) -> DiffuseMap:
    """Read a map file, without its volume.

    Parameters
    ----------
    halves : also the half sets, and the sums that averages come from: most of the file

    Raises
    ------
    DiffuseError
        If the file is missing, is no map of this schema, lacks a part, or is damaged; if a voxel that was measured has
        no intensity or error.

    Examples
    --------
    >>> data = read_map("diffuse_merged.nxs")
    >>> data.grid.space_group_symbol, data.grid.subdivide, len(data.intensity)
    ('P 41', (2, 2, 2), 432)
    """
    with CheckedFile(path, SCHEMA, _REMEDY) as file:
        n = file.n_rows(f"{_UNIQUE}/index")
        wanted = [c for c in UNIQUE_COLUMNS if file.expects(_UNIQUE, c) and (halves or c.name not in _HALVES)]
        columns = {c.name: file.column(_UNIQUE, c, n) for c in wanted}
        grid = {c.name: file.value(group, c) for group, c in _grid_items() if file.expects(group, c)}
        half_sets = file.attribute(_UNIQUE, _HALF_SETS) if file.has_attribute(_UNIQUE, _HALF_SETS.name) else ""
        friedel, at_centres = grid.pop("friedel"), grid.pop("at_centres", False)
        data = DiffuseMap(
            grid=_grid(path, grid),
            friedel=friedel,
            half_a=columns.pop("half_a", None),
            half_b=columns.pop("half_b", None),
            half_sets=half_sets,
            sums=_sums(file, n) if halves else {},
            statistics={name: _shells(file, name) for name in file.names(_STATISTICS) if name != "overall"},
            overall={
                name: _number(file, f"{_STATISTICS}/overall/{name}") for name in file.names(f"{_STATISTICS}/overall")
            },
            units=file.attribute(f"{_UNIQUE}/intensity", Column("units", "U")),
            at_centres=at_centres,
            **columns,
        )
    _check_map(path, data)
    return data


def _check_map(path, data: DiffuseMap) -> None:
    """Voxels that were not measured (multiplicity 0) may lack an intensity; errors are all 0 in a map without noise."""
    measured = data.multiplicity > 0
    no_error = ~(data.sigma > 0) & np.any(data.sigma > 0)
    for name, bad in (("intensity", ~np.isfinite(data.intensity)), ("sigma", no_error)):
        if np.any(bad & measured):
            raise bad_rows(path, f"unique/{name}", getattr(data, name), bad & measured, _REMEDY)


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
    with CheckedFile(path, SCHEMA, _REMEDY) as file:
        if file.has(f"entry/map/{name}"):
            return file.array(f"entry/map/{name}")
    column, fill, dtype = _VOLUMES[name]
    data = read_map(path)
    return data.volume(getattr(data, column), fill, dtype)


def read_collection(path, name: str) -> dict:
    """Columns of a collection in the entry of a map file, such as ``fit``; empty where the file has no such collection.

    Raises
    ------
    DiffuseError
        If the file is no map.
    """
    with CheckedFile(path, SCHEMA, _REMEDY) as file:
        n = file.n_rows(f"{_UNIQUE}/intensity")
        own = [key for key in file.columns("entry", n) if key.startswith(f"{name}/")]
        return {key[len(name) + 1 :]: file.array(f"entry/{key}") for key in own}


def read_column(path, name: str) -> np.ndarray:
    """What else a map file has for its unique voxels, for example ``fit/model``: (n,) float64.

    Raises
    ------
    DiffuseError
        If the file is no map or has no such column.
    """
    with CheckedFile(path, SCHEMA, _REMEDY) as file:
        n = file.n_rows(f"{_UNIQUE}/intensity")
        others = [key for key in file.columns("entry", n) if not key.startswith("unique/")]
        if name not in others:
            raise DiffuseError(
                f"{path}: no column {name}; besides those of all maps it has {', '.join(others) or 'none'}"
            )
        return file.array(f"entry/{name}").astype(float)


def read_provenance(path) -> Provenance:
    """Which program made the map from what.

    Raises
    ------
    DiffuseError
        If the file is no map.
    """
    with CheckedFile(path, SCHEMA, _REMEDY) as file:
        texts = {name: file.value(_PROCESS, Column(name, "U")) for name in ("program", "dials_version", "phil")}
        lists = {name: file.column(_PROCESS, Column(name, "U")) for name in ("inputs", "experiment_identifiers")}
        typed, changed = Column("command_line", "U"), Column("modified", "U")  # the first versions did not write them
        return Provenance(
            **texts,
            inputs=tuple(lists["inputs"]),
            identifiers=tuple(lists["experiment_identifiers"]),
            command_line=file.value(_PROCESS, typed) if file.has(f"{_PROCESS}/{typed.name}") else "",
            modified=file.value(_PROCESS, changed) if file.has(f"{_PROCESS}/{changed.name}") else None,
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
    packing = _PACKED if np.size(values) > 1000 else {}
    dataset = group.create_dataset(name, data=values, **packing, **protected(values))
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
    _new_data(group, "subdivide", np.array(data.grid.subdivide, dtype=np.int32))
    _new_data(group, "d_min", float(data.grid.d_min), "angstrom")
    _new_data(group, "d_max", float(data.grid.d_max), "angstrom")
    group["friedel"] = bool(data.friedel)
    group["at_centres"] = bool(data.at_centres)


def _grid_items() -> list:
    return [("entry/sample", c) for c in SAMPLE_ITEMS] + [("entry/grid", c) for c in GRID_ITEMS]


def _grid(path, items: dict) -> MapGrid:
    try:
        return MapGrid(**items)
    except DiffuseError as error:
        raise DiffuseError(f"{path}: {error}; {_REMEDY}") from None


def _sums(file: CheckedFile, n: int) -> dict:
    place = f"{_UNIQUE}/sums"
    if not file.has(place):
        return {}
    return {name: file.column(place, replace(SUM_COLUMN, name=name), n) for name in file.names(place)}


def _number(file: CheckedFile, place: str):
    """An integer or a float."""
    value = file.array(place)
    if value.ndim:
        raise DiffuseError(f"{file.path}: damaged ({place} is no single number); {_REMEDY}")
    return value.item()


def _shells(file: CheckedFile, name: str) -> np.ndarray:
    """A column of the shell table; counts stay integers."""
    values = file.array(f"{_STATISTICS}/{name}")
    if values.ndim != 1:
        raise DiffuseError(f"{file.path}: damaged ({name} of the shells is no column); {_REMEDY}")
    return values


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
    if provenance.modified is not None:
        group["modified"] = provenance.modified
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
        dataset = group.create_dataset(
            name, data.grid.shape, dtype, chunks=chunks, fillvalue=fill, fletcher32=True, **_PACKED
        )
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
