"""Observation files (``*_integrated.h5``, ``*_scaled.h5``): sums per voxel and pass through the Ewald sphere."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import h5py
import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.checked import CheckedFile
from dials_diffuse.files.columns import Column, dtype_of, from_json
from dials_diffuse.files.hdf5 import NewFile, create_hdf5
from dials_diffuse.files.provenance import ITEMS as PROVENANCE_ITEMS
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.values import bad_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.units import ARBITRARY

SCHEMA = "dials_diffuse.observations/1"
CHUNK = 1 << 16
_REMEDY = "integrate again"

#: rows of a column that are compressed on trial, and the share of their size that must not be exceeded
_TRIED, _WORTH = 1 << 13, 0.4


#: indices up to this can be turned by symmetry operators in int32
_FAR = 1 << 28

_PLACE = (
    Column("experiment", "i4", "row of the table of experiments", low=0),
    Column("panel", "i4", "of the detector", low=0),
)

#: One row per voxel x pass. Sums run over the pixels (fractions of pixels, when sub-sampled) that fell into the voxel.
OBSERVATION_COLUMNS = (
    Column("index", "i4", "voxel on the subdivided lattice: `index / subdivide` are Miller indices", (3,), -_FAR, _FAR),
    *_PLACE,
    Column("entering", "i1", "1: the voxel moves into the Ewald sphere, 0: out of it", low=0, high=1),
    Column("pixels", "f8", "number of pixels; fractions when they are sub-sampled", low=0),
    Column("counts", "f8", "Σ C, photons", unit="photons"),
    Column("norm", "f8", "Σ c, exposure × all corrections", low=0),
    Column("background", "f8", "Σ b, expected background, with tails of Bragg peaks", unit="photons"),
    Column("background_variance", "f8", "variance of the background", low=0),
    Column("rate", "f8", "Σ (C − b)/c"),
    Column("rate_variance", "f8", "Σ C/c²"),
    Column("pixels_odd", "f8", "`*_odd`: the part of a sum that came from every second image", low=0),
    Column("counts_odd", "f8"),
    Column("norm_odd", "f8", low=0),
    Column("background_odd", "f8"),
    Column("rate_odd", "f8"),
    Column("xyz", "f4", "mean position: fast, slow, rotation angle", (3,), unit="px, px, degree"),
    Column("s", "f4", "\\|s\\| at the mean position, not at the voxel's centre", low=0, unit="1/angstrom"),
)
OBSERVATION_DTYPE = dtype_of(OBSERVATION_COLUMNS)

#: counts of a pixel are not less than so many photons, and their noise is not more; integrating detectors have negative
#: ones
_LEAST_COUNTS, _MOST_NOISE = -1.0, 10.0

#: One row per integrated Bragg reflection. ``intensity`` is the integral of the intensity over the reflection in
#: reciprocal space over the volume of the reciprocal cell, in units of (counts - background) / norm: the mean rate in a
#: shell is that of the diffuse rows plus the sum of all reflections over the number of reciprocal cells in the shell.
BRAGG_COLUMNS = (
    Column("hkl", "i4", "Miller indices", (3,), -_FAR, _FAR),
    *_PLACE,
    Column("xyz", "f4", "position: fast, slow, rotation angle", (3,), unit="px, px, degree"),
    Column("s", "f4", "\\|s\\|", low=0, unit="1/angstrom"),
    Column(
        "intensity",
        "f8",
        "integral over reciprocal space over the volume of the reciprocal cell, in the unit of (counts − background)"
        "/norm; multiplied by the absolute scale it is \\|F\\|²",
    ),
    Column("variance", "f8", "of the intensity", low=0),
)
BRAGG_DTYPE = dtype_of(BRAGG_COLUMNS)

#: dials.scale's factor g, for which intensity / g is on its scale; NaN for experiments that were not scaled
BRAGG_SCALE = Column(
    "inverse_scale_factor",
    "f4",
    "g of dials.scale, divided by relative exposure and flux; NaN for experiments without",
    missing=True,
    optional=True,
)

#: attributes of /grid
GRID_ATTRIBUTES = (
    Column("unit_cell", "f8", "a, b, c, α, β, γ: Å, degrees", (6,)),
    Column("hall_symbol", "U", "space group in its setting"),
    Column("subdivide", "i4", "voxels per reciprocal-lattice step", (3,)),
    Column("d_min", "f8", "resolution limit, Å"),
    Column("d_max", "f8", "the other limit, Å", infinite=True),
)

#: what the root attribute ``experiments``, JSON, says of each
EXPERIMENT_ITEMS = (
    Column("identifier", "U", "of the dxtbx experiment"),
    Column("image_range", "i8", "first and last image", (2,)),
    Column("oscillation", "f8", "start and width of the first image, degrees", (2,)),
    Column("n_images_used", "i8", "images that are used", low=0),
    Column("wavelength", "f8", "Å", low=0),
    Column("n_panels", "i8", "of the detector", low=0),
    Column("image_size", "i8", "pixels of the first panel, fast and slow", (2,), low=0),
    Column("orientation", "f8", "A = U B row by row, 1/Å, in the frame of the goniometer head", (9,), optional=True),
    Column("axis", "f8", "rotation axis in that frame", (3,), optional=True),
    Column("beam", "f8", "beam vector at angle 0 in that frame, 1/Å", (3,), optional=True),
    Column(
        "images",
        "U",
        "checksums of some of the images used, by which another file of them is known",
        None,
        optional=True,
    ),
    Column("reindexed", "U", "change of basis that was applied to indices and orientation", optional=True),
)


@dataclass(frozen=True)
class ExperimentSummary:
    """What later steps need to know of an experiment.

    Attributes
    ----------
    identifier : of the dxtbx Experiment
    image_range : first and last image, inclusive; oscillation : start and width of the first, degrees
    n_images_used : of those
    wavelength : Å
    n_panels, image_size : of the detector; pixels, fast and slow, of its first panel
    orientation : 9 numbers, A = U B row by row, 1/Å, in the frame of the goniometer head; None in files of version 0.1
    axis, beam : rotation axis, and the beam vector (1/Å) at angle 0, in that frame
    images : checksums of some of the images used, see ``experiment.identity``; empty in files of older versions
    reindexed : change of basis, such as ``k,h,-l``, that brought what DIALS wrote into the setting of the file, or None
    """

    identifier: str
    image_range: tuple
    oscillation: tuple
    n_images_used: int
    wavelength: float
    n_panels: int
    image_size: tuple
    orientation: tuple | None = None
    axis: tuple | None = None
    beam: tuple | None = None
    images: tuple = ()
    reindexed: str | None = None


class ObservationWriter:
    """Append blocks of rows to a file; obtained from :func:`write_observations`."""

    def __init__(self, handle: NewFile):
        self._handle = handle
        self._group = handle.create_group("observations")
        self.n_rows = 0

    def append(self, rows) -> None:
        """rows : (n,) structured array of OBSERVATION_DTYPE, or dictionary of all its columns"""
        start, self.n_rows = self.n_rows, self.n_rows + len(rows["index"])
        with self._handle.writing():
            if not len(self._group):
                for column in OBSERVATION_COLUMNS:
                    _new_column(self._group, column, packed=shrinks(rows[column.name]))
            for name in OBSERVATION_DTYPE.names:
                dataset = self._group[name]
                dataset.resize(self.n_rows, axis=0)
                dataset[start:] = rows[name]

    def append_bragg(self, rows: np.ndarray, inverse_scale_factor: np.ndarray | None = None) -> None:
        """Add Bragg reflections; a file need not have any.

        rows : (n,) structured array of BRAGG_DTYPE
        inverse_scale_factor : (n,) float64 of dials.scale for ``rows["intensity"]``, None where it was not run
        """
        columns = {name: rows[name] for name in BRAGG_DTYPE.names}
        with self._handle.writing():
            group = self._handle.require_group("bragg")
            if not len(group):
                for column in BRAGG_COLUMNS:
                    _new_column(group, column)
            start = len(group["intensity"])
            if inverse_scale_factor is not None:
                columns[BRAGG_SCALE.name] = inverse_scale_factor
                if BRAGG_SCALE.name not in group:
                    _new_column(group, BRAGG_SCALE, start)
            for name in group:
                group[name].resize(start + len(rows), axis=0)
                if name in columns:
                    group[name][start:] = columns[name]

    def update_experiments(self, experiments) -> None:
        """Replace the summaries that the file was opened with: some things are known only at the end.

        experiments : ExperimentSummary objects, in the same order
        """
        with self._handle.writing():
            _write_experiments(self._handle, experiments)


@contextmanager
def write_observations(
    path, grid: MapGrid, experiments, provenance: Provenance, units: str = ARBITRARY, scaled: bool = False
) -> Iterator[ObservationWriter]:
    """Context manager: an :class:`ObservationWriter` whose file appears under ``path`` only when all went well.

    units : of (counts - background) / norm
    scaled : norm and background hold a scale model already
    """
    with create_hdf5(path, SCHEMA) as handle:
        handle.attrs["units"] = units
        handle.attrs["scaled"] = scaled
        _write_grid(handle, grid)
        _write_experiments(handle, experiments)
        handle.attrs["process"] = json.dumps(asdict(provenance))
        writer = ObservationWriter(handle)
        with handle.computing():
            yield writer
            if not writer.n_rows:
                writer.append(np.empty(0, OBSERVATION_DTYPE))


def shrinks(values: np.ndarray) -> bool:
    """Are these values worth compression? Real numbers with noise are not: it takes ten times as long as writing them.

    A part of them is tried, its bytes sorted by place as the filter of HDF5 does.
    """
    some = np.ascontiguousarray(values[:_TRIED])
    planes = some.reshape(-1).view(np.uint8).reshape(-1, some.dtype.itemsize).T
    return len(zlib.compress(planes.tobytes(), 1)) <= _WORTH * some.nbytes


def _new_column(group: h5py.Group, column: Column, n_rows: int = 0, packed: bool = True) -> None:
    """A data set that can grow; the first ``n_rows`` are NaN (0 for integers); packed : compress it."""
    dtype = np.dtype(column.dtype)
    dataset = group.create_dataset(
        column.name,
        shape=(n_rows, *(column.shape or ())),
        maxshape=(None, *(column.shape or ())),
        chunks=(CHUNK, *(column.shape or ())),
        dtype=dtype,
        compression="lzf" if packed else None,
        shuffle=packed,
        fletcher32=True,
        fillvalue=np.nan if dtype.kind == "f" else 0,
    )
    if column.unit:
        dataset.attrs["units"] = column.unit


def _write_experiments(handle: h5py.File, experiments) -> None:
    handle.attrs["experiments"] = json.dumps([asdict(e) for e in experiments])


def _write_grid(handle: h5py.File, grid: MapGrid) -> None:
    group = handle.create_group("grid")
    group.attrs["unit_cell"] = np.array(grid.unit_cell, dtype=float)
    group.attrs["hall_symbol"] = grid.hall_symbol
    group.attrs["space_group"] = grid.space_group_symbol
    group.attrs["subdivide"] = np.array(grid.subdivide, dtype=np.int32)
    group.attrs["d_min"] = grid.d_min
    group.attrs["d_max"] = grid.d_max


class ObservationFile:
    """Read an observation file; columns are read in slices, so memory stays bounded.

    Attributes
    ----------
    grid : MapGrid
    experiments : tuple of ExperimentSummary
    provenance : Provenance
    units : of (counts - background) / norm
    scaled : bool, do norm and background hold a scale model?
    n_rows : int
    numbers : of the experiments, from 0

    Raises
    ------
    DiffuseError
        If the file is missing, of another schema, or damaged, also when its columns are read; if these hold values that
        cannot be: NaN, infinite, negative variances or norms, experiments that are not there.
    """

    def __init__(self, path):
        self.path = path
        self._file = CheckedFile(path, SCHEMA, _REMEDY)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        file = self._file
        grid = {column.name: file.attribute("grid", column) for column in GRID_ATTRIBUTES}
        experiments, process = file.document("experiments"), file.document("process")
        with file.reading("attribute experiments"):
            if not isinstance(experiments, list) or not experiments:
                raise ValueError("no list of experiments")
            self.experiments = tuple(
                ExperimentSummary(**from_json(EXPERIMENT_ITEMS, item, "an experiment")) for item in experiments
            )
        with file.reading("attribute process"):
            self.provenance = Provenance(**from_json(PROVENANCE_ITEMS, process, "process"))
        try:
            self.grid = MapGrid(**grid)
        except DiffuseError as error:
            raise DiffuseError(f"{self.path}: {error}; {_REMEDY}") from None
        self.numbers = tuple(range(len(self.experiments)))
        units, scaled = Column("units", "U"), Column("scaled", "?")
        self.units = file.attribute("/", units) if file.has_attribute("/", units.name) else ARBITRARY
        self.scaled = file.attribute("/", scaled) if file.has_attribute("/", scaled.name) else False
        missing = {c.name for c in OBSERVATION_COLUMNS} - set(file.names("observations"))
        if missing:
            raise DiffuseError(f"{self.path}: columns missing: {', '.join(sorted(missing))}; {_REMEDY}")
        self.n_rows = file.n_rows("observations/counts")
        last = len(self.experiments) - 1
        self._columns = {c.name: replace(c, high=last) if c.name == "experiment" else c for c in OBSERVATION_COLUMNS}
        for column in OBSERVATION_COLUMNS:  # the lengths, before anything is read
            file.column("observations", column, self.n_rows, stop=0)

    def read(self, *columns, start: int = 0, stop: int | None = None) -> dict:
        """Columns as a dictionary of arrays, rows ``start:stop``."""
        # the pixels tell what counts are possible
        wanted = {*columns, "pixels"} if "counts" in columns else columns
        read = {
            name: self._file.column("observations", self._columns[name], self.n_rows, start, stop) for name in wanted
        }
        if "counts" in read:
            self._check_counts(read["counts"], read["pixels"], start)
        return {name: read[name] for name in columns}

    def _check_counts(self, counts: np.ndarray, pixels: np.ndarray, start: int) -> None:
        """Photons are not negative, but noise of the detector may be."""
        bad = counts < _LEAST_COUNTS * pixels - _MOST_NOISE * np.sqrt(pixels)
        if bad.any():
            raise bad_rows(self.path, "counts", counts, bad, _REMEDY, start)

    @property
    def has_bragg(self) -> bool:
        """Does the file hold Bragg reflections? Older ones do not."""
        return self._file.has("bragg/intensity") and self._file.n_rows("bragg/intensity") > 0

    def read_bragg(self) -> dict:
        """All Bragg reflections, {column of BRAGG_DTYPE: array}, and ``inverse_scale_factor`` where the file has it.

        Empty columns where the file has no reflections; some 60 bytes for each.
        """
        file = self._file
        if not file.has("bragg") or not file.names("bragg"):
            return {name: np.zeros((0, *BRAGG_DTYPE[name].shape), BRAGG_DTYPE[name].base) for name in BRAGG_DTYPE.names}
        n = file.n_rows("bragg/intensity")
        last = self._columns["experiment"].high
        declared = [replace(c, high=last) if c.name == "experiment" else c for c in BRAGG_COLUMNS]
        columns = {c.name: file.column("bragg", c, n) for c in declared}
        if file.has(f"bragg/{BRAGG_SCALE.name}"):
            columns[BRAGG_SCALE.name] = file.column("bragg", BRAGG_SCALE, n).astype(float)
        return columns

    def chunks(self, *columns, size: int = 16 * CHUNK) -> Iterator[tuple]:
        """Yield ``(start, {column: array})`` over all rows."""
        for start in range(0, self.n_rows, size):
            yield start, self.read(*columns, start=start, stop=min(start + size, self.n_rows))

    def close(self) -> None:
        """Close the file; columns cannot be read any more."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
