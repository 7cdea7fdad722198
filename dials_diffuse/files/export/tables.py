"""Tables with one row per unique voxel: text (.csv) and Parquet."""

from __future__ import annotations

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.export.volumes import summary
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap

#: rows of text that are made together
_ROWS = 1 << 16


def unique_table(data: DiffuseMap) -> dict:
    """Name of each column -> (n,) array.

    ``h k l`` are fractional Miller indices, ``index_h index_k index_l`` those on the subdivided lattice; ``s`` is the
    length of the scattering vector in 1/Å. Columns that the map does not have are left out.
    """
    miller = data.index / np.array(data.grid.subdivide)
    columns = dict(zip("hkl", miller.T))
    columns |= {f"index_{axis}": column for axis, column in zip("hkl", np.asarray(data.index, dtype=np.int32).T)}
    columns["s"] = data.grid.s_magnitude(data.index)
    for name in ("intensity", "sigma", "multiplicity", "half_a", "half_b"):
        values = getattr(data, name)
        if values is not None:
            columns[name] = np.asarray(values)
    return columns


def write_csv(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write text: lines that begin with # say what the map is, then a line of names, then the voxels.

    Numbers are as exact as they are in memory; what is not known is an empty field.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    columns = unique_table(data)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        for key, value in summary(data, provenance).items():
            handle.write(f"# {key}: {' '.join(value.split())}\n")
        handle.write(",".join(columns) + "\n")
        for first in range(0, len(data.index), _ROWS):
            block = [_texts(values[first : first + _ROWS]) for values in columns.values()]
            handle.writelines(",".join(row) + "\n" for row in zip(*block))


def _texts(values: np.ndarray) -> list:
    return ["" if value != value else repr(value) for value in values.tolist()]


def write_parquet(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write a Parquet file; its metadata say what the map is. What is not known is null.

    Raises
    ------
    DiffuseError
        If pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DiffuseError(f"{path}: Parquet needs pyarrow ({error}); pip install pyarrow, or write .csv") from None
    columns = {name: pyarrow.array(values, from_pandas=True) for name, values in unique_table(data).items()}
    table = pyarrow.table(columns).replace_schema_metadata(summary(data, provenance))
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
