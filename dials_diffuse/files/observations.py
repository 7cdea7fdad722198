"""Observation files (``*_integrated.h5``, ``*_scaled.h5``): sums per voxel and pass through the Ewald sphere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import h5py
import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.hdf5 import NewFile, create_hdf5, open_schema
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.values import ANY, ANY_OR_UNKNOWN, NOT_NEGATIVE, Limits, bad_rows, check_values
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.units import ARBITRARY

SCHEMA = "dials_diffuse.observations/1"
CHUNK = 1 << 16


#: One row per voxel x pass. Sums run over the pixels (fractions of pixels, when sub-sampled) that fell into the voxel.
#: ``*_odd`` hold the part that came from every second image: the half sets by frame.
OBSERVATION_DTYPE = np.dtype(
    [
        ("index", "i4", 3),  # voxel on the subdivided lattice
        ("experiment", "i4"),  # row of the experiments table
        ("panel", "i4"),
        ("entering", "i1"),  # 1: the voxel moves into the Ewald sphere, 0: out of it
        ("pixels", "f8"),  # number of pixels
        ("counts", "f8"),  # sum of photon counts C
        ("norm", "f8"),  # sum of c = exposure x all corrections
        ("background", "f8"),  # sum of expected background counts b
        ("background_variance", "f8"),
        ("rate", "f8"),  # sum of (C - b) / c
        ("rate_variance", "f8"),  # sum of C / c^2
        ("pixels_odd", "f8"),
        ("counts_odd", "f8"),
        ("norm_odd", "f8"),
        ("background_odd", "f8"),
        ("rate_odd", "f8"),
        ("xyz", "f4", 3),  # mean position: px, px, rotation angle in degrees
        ("s", "f4"),  # |s| at the mean position, 1/Å; not that of the voxel's centre
    ]
)

#: what may be in the columns; integrating detectors have negative counts, see ``_LEAST_COUNTS``
_LIMITS = {
    "index": Limits(-(1 << 30), 1 << 30),
    "experiment": NOT_NEGATIVE,
    "panel": NOT_NEGATIVE,
    "entering": Limits(0, 1),
    "counts": ANY,
    "background": ANY,
    "rate": ANY,
    "counts_odd": ANY,
    "background_odd": ANY,
    "rate_odd": ANY,
    "xyz": ANY,
}

#: counts of a pixel are not less than so many photons, and their noise is not more
_LEAST_COUNTS, _MOST_NOISE = -1.0, 10.0

#: what to do about an impossible value
_REMEDY = "the file is damaged or not written by this program; integrate again"

_UNITS = {"xyz": "px, px, degree", "s": "1/angstrom", "counts": "photons", "background": "photons"}

#: One row per integrated Bragg reflection. ``intensity`` is the integral of the intensity over the reflection in
#: reciprocal space over the volume of the reciprocal cell, in units of (counts - background) / norm: the mean rate in a
#: shell is that of the diffuse rows plus the sum of all reflections over the number of reciprocal cells in the shell.
BRAGG_DTYPE = np.dtype(
    [
        ("hkl", "i4", 3),
        ("experiment", "i4"),
        ("panel", "i4"),
        ("xyz", "f4", 3),  # px, px, rotation angle in degrees
        ("s", "f4"),  # |s| in 1/Å
        ("intensity", "f8"),
        ("variance", "f8"),
    ]
)

_BRAGG_LIMITS = {
    "hkl": Limits(-(1 << 24), 1 << 24),
    "intensity": ANY,
    "xyz": ANY,
}

#: dials.scale's factor g, for which intensity / g is on its scale; NaN for experiments that were not scaled
_BRAGG_SCALE = "inverse_scale_factor"


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
        for name in OBSERVATION_DTYPE.names:
            field = OBSERVATION_DTYPE[name]
            dataset = self._group.create_dataset(
                name,
                shape=(0, *field.shape),
                maxshape=(None, *field.shape),
                chunks=(CHUNK, *field.shape),
                dtype=field.base,
                compression="lzf",
                shuffle=True,
            )
            if name in _UNITS:
                dataset.attrs["units"] = _UNITS[name]

    def append(self, rows) -> None:
        """rows : (n,) structured array of OBSERVATION_DTYPE, or dictionary of all its columns"""
        start, self.n_rows = self.n_rows, self.n_rows + len(rows["index"])
        with self._handle.writing():
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
                for name in BRAGG_DTYPE.names:
                    field = BRAGG_DTYPE[name]
                    _bragg_column(group, name, 0, field.base, field.shape)
            start = len(group["intensity"])
            if inverse_scale_factor is not None:
                columns[_BRAGG_SCALE] = inverse_scale_factor
                if _BRAGG_SCALE not in group:
                    _bragg_column(group, _BRAGG_SCALE, start, np.dtype("f4"), ())
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


def _bragg_column(group: h5py.Group, name: str, n_rows: int, dtype: np.dtype, shape: tuple) -> None:
    """A column of the Bragg reflections, NaN (0 for integers) in the first ``n_rows``."""
    dataset = group.create_dataset(
        name,
        shape=(n_rows, *shape),
        maxshape=(None, *shape),
        chunks=(CHUNK, *shape),
        dtype=dtype,
        compression="lzf",
        shuffle=True,
        fillvalue=np.nan if dtype.kind == "f" else 0,
    )
    if name in _UNITS:
        dataset.attrs["units"] = _UNITS[name]


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
        self._handle = open_schema(path, SCHEMA)
        try:
            self._read_header()
        except DiffuseError as error:
            self.close()
            raise DiffuseError(f"{path}: {error}; integrate again") from None
        except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # h5py, json, ours
            self.close()
            raise self._damaged(error) from None

    def _read_header(self) -> None:
        attributes = self._handle["grid"].attrs
        self.grid = MapGrid(
            unit_cell=tuple(float(x) for x in attributes["unit_cell"]),
            hall_symbol=str(attributes["hall_symbol"]),
            subdivide=tuple(int(n) for n in attributes["subdivide"]),
            d_min=float(attributes["d_min"]),
            d_max=float(attributes["d_max"]),
        )
        self.experiments = tuple(
            ExperimentSummary(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()})
            for item in json.loads(self._handle.attrs["experiments"])
        )
        self.numbers = tuple(range(len(self.experiments)))
        process = json.loads(self._handle.attrs["process"])
        self.provenance = Provenance(**{k: tuple(v) if isinstance(v, list) else v for k, v in process.items()})
        self.units = str(self._handle.attrs.get("units", ARBITRARY))
        self.scaled = bool(self._handle.attrs.get("scaled", False))
        self._group = self._handle["observations"]
        missing = set(OBSERVATION_DTYPE.names) - set(self._group)
        if missing:
            raise DiffuseError(f"columns missing: {', '.join(sorted(missing))}")
        self.n_rows = len(self._group["counts"])
        for name in OBSERVATION_DTYPE.names:
            expected = (self.n_rows, *OBSERVATION_DTYPE[name].shape)
            if self._group[name].shape != expected:
                raise ValueError(f"column {name} is {self._group[name].shape}, not {expected}")

    def _damaged(self, error) -> DiffuseError:
        return DiffuseError(f"{self.path}: damaged ({' '.join(str(error).split())}); integrate again")

    def read(self, *columns, start: int = 0, stop: int | None = None) -> dict:
        """Columns as a dictionary of arrays, rows ``start:stop``."""
        try:
            # the pixels tell what counts are possible
            wanted = {*columns, "pixels"} if "counts" in columns else columns
            read = {name: self._group[name][start:stop] for name in wanted}
        except (OSError, RuntimeError) as error:  # a chunk that cannot be unpacked
            raise self._damaged(error) from None
        for name, values in read.items():
            check_values(self.path, name, values, _LIMITS.get(name, NOT_NEGATIVE), _REMEDY, start)
        if "experiment" in read:
            known = Limits(0, len(self.experiments) - 1)
            check_values(self.path, "experiment", read["experiment"], known, _REMEDY, start)
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
        return "bragg" in self._handle and len(self._handle["bragg"].get("intensity", ())) > 0

    def read_bragg(self) -> dict:
        """All Bragg reflections, {column of BRAGG_DTYPE: array}, and ``inverse_scale_factor`` where the file has it.

        Empty columns where the file has no reflections; some 60 bytes for each.
        """
        group = self._handle.get("bragg")
        if group is None or not len(group):
            return {name: np.zeros((0, *BRAGG_DTYPE[name].shape), BRAGG_DTYPE[name].base) for name in BRAGG_DTYPE.names}
        try:
            columns = {name: group[name][:] for name in BRAGG_DTYPE.names}
            if _BRAGG_SCALE in group:
                columns[_BRAGG_SCALE] = group[_BRAGG_SCALE][:].astype(float)
        except (KeyError, OSError, RuntimeError) as error:
            raise self._damaged(error) from None
        if len({len(column) for column in columns.values()}) != 1:
            raise self._damaged("columns of bragg differ in length")
        for name, values in columns.items():
            limits = ANY_OR_UNKNOWN if name == _BRAGG_SCALE else _BRAGG_LIMITS.get(name, NOT_NEGATIVE)
            check_values(self.path, f"bragg/{name}", values, limits, _REMEDY)
        known = Limits(0, len(self.experiments) - 1)
        check_values(self.path, "bragg/experiment", columns["experiment"], known, _REMEDY)
        return columns

    def chunks(self, *columns, size: int = 16 * CHUNK) -> Iterator[tuple]:
        """Yield ``(start, {column: array})`` over all rows."""
        for start in range(0, self.n_rows, size):
            yield start, self.read(*columns, start=start, stop=min(start + size, self.n_rows))

    def close(self) -> None:
        """Close the file; columns cannot be read any more."""
        self._handle.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
