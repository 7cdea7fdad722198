"""The one place where HDF5 files of the project are read: nothing is taken but what was declared.

Whatever is wrong with a file is a :class:`DiffuseError` of one line. Data that lie in other files (external links,
external storage, virtual data sets) are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.checksum import CHECKSUM, header_checksum
from dials_diffuse.files.columns import Column
from dials_diffuse.files.hdf5 import guarded, open_schema
from dials_diffuse.files.together import where_is
from dials_diffuse.memory import check_memory


class CheckedFile:
    """A file of one of our schemas, open for reading. Names of groups and data sets are paths from the root.

    Parameters
    ----------
    path : of the file
    schema : that it must have
    remedy : what the user shall do with a damaged file

    Raises
    ------
    DiffuseError
        If it is missing, of another schema, or damaged; every method raises it, too, for what is not as declared.
    """

    def __init__(self, path, schema: str, remedy: str):
        self.path, self._remedy = Path(path), remedy
        self._handle = open_schema(path, schema)
        self._found: dict = {}
        try:
            with self.reading("the head of the file"):
                with guarded(where_is(path)) as head:
                    stored = head.attrs.get(CHECKSUM)  # older versions have none
                    found = header_checksum(head)  # whether or not: it passes all texts
                if stored not in (None, found):
                    raise ValueError(
                        f"its texts, single values or layout changed after it was written; if that was on purpose, "
                        f"delete the root attribute {CHECKSUM}"
                    )
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Errors in the block become one DiffuseError that says what could not be read."""
        try:
            yield
        except DiffuseError:
            raise
        except MemoryError:
            raise
        except Exception as error:  # h5py has no common class for what it raises on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            if "fletcher32" in reason.lower() or "checksum error" in reason.lower():
                reason = "the checksum is wrong, bits changed after it was written"
            raise DiffuseError(f"{self.path}: damaged ({what}: {reason}); {self._remedy}") from None

    def has(self, place: str) -> bool:
        """Is there a group or data set of this name?"""
        with self.reading(place):
            return self._get(place) is not None

    def expects(self, place: str, column: Column) -> bool:
        """Is a column to be read? An optional one only where the file has it."""
        return not column.optional or self.has(f"{place}/{column.name}")

    def names(self, place: str) -> list:
        """Names in a group, sorted."""
        with self.reading(place):
            group = self._present(place)
            if not isinstance(group, h5py.Group):
                raise ValueError("no group")
            return sorted(group)

    def columns(self, place: str, n_rows: int) -> list:
        """Names below a group of the numeric columns of this length; links are passed over."""
        found: list = []

        def note(name, item) -> None:
            if isinstance(item, h5py.Dataset) and item.shape == (n_rows,) and item.dtype.kind in "fiub":
                found.append(name)

        with self.reading(place):
            self._present(place).visititems(note)
        return found

    def n_rows(self, place: str) -> int:
        """Length of a data set."""
        with self.reading(place):
            shape = self._dataset(place).shape
            if not shape:
                raise ValueError("a single value in place of a column")
            return shape[0]

    def column(self, place: str, column: Column, n_rows: int | None = None, start=None, stop=None) -> np.ndarray:
        """Rows ``start:stop`` of the column ``column.name`` in the group ``place``, (n, *shape).

        n_rows : that the whole column must have, None = any
        """
        name = f"{place}/{column.name}"
        with self.reading(name):
            dataset = self._dataset(name)
            expected = (dataset.shape[0] if n_rows is None and dataset.shape else n_rows, *(column.shape or ()))
            if column.shape is None:
                expected = (expected[0], *dataset.shape[1:])
            if dataset.shape != expected:
                raise ValueError(f"column {column.name} is of shape {dataset.shape}, not {expected}")
            first, last, _ = slice(start, stop).indices(dataset.shape[0])
            self._fits(dataset, max(last - first, 0) / max(dataset.shape[0], 1), name)
            if column.dtype == "U":
                return np.array([_text(item) for item in dataset[first:last]], dtype=object)
            return column.checked(dataset[first:last], first)

    def value(self, place: str, column: Column):
        """A single value: Python's number or text, or a tuple of numbers."""
        name = f"{place}/{column.name}"
        with self.reading(name):
            dataset = self._dataset(name)
            self._fits(dataset, 1.0, name)
            return _single(column, dataset.shape, dataset[()])

    def attribute(self, place: str, column: Column):
        """The same from an attribute of a group or data set; ``place`` is ``/`` for the root."""
        with self.reading(f"attribute {column.name} of {place}"):
            attributes = self._present(place).attrs
            if column.name not in attributes:
                raise self._incomplete(f"attribute {column.name} of {place}")
            value = attributes[column.name]
            return _single(column, np.shape(value), value)

    def has_attribute(self, place: str, name: str) -> bool:
        """Is there an attribute of this name?"""
        with self.reading(place):
            return name in self._present(place).attrs

    def document(self, name: str):
        """What the JSON text in a root attribute says."""
        text = self.attribute("/", Column(name, "U"))
        with self.reading(f"attribute {name}"):
            return json.loads(text)

    def array(self, place: str) -> np.ndarray:
        """A numeric data set of any shape."""
        with self.reading(place):
            dataset = self._dataset(place)
            if dataset.dtype.kind not in "fiub":
                raise ValueError(f"of type {dataset.dtype}")
            self._fits(dataset, 1.0, place)
            return dataset[()]

    def close(self) -> None:
        """Nothing can be read afterwards."""
        self._found.clear()
        self._handle.close()

    def __enter__(self) -> CheckedFile:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _incomplete(self, place: str) -> DiffuseError:
        return DiffuseError(f"{self.path}: incomplete, {place} is missing; {self._remedy}")

    def _get(self, place: str):
        """The object of a name, None if there is none. It must be in the file itself."""
        if place in self._found:
            return self._found[place]
        item = self._handle
        for name in place.strip("/").split("/") if place.strip("/") else ():
            if not isinstance(item, h5py.Group):
                return None
            link = item.get(name, getlink=True)
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name} is a link to somewhere else, which is not followed")
            item = item[name]
        self._found[place] = item
        return item

    def _present(self, place: str):
        item = self._get(place)
        if item is None:
            raise self._incomplete(place)
        return item

    def _dataset(self, place: str) -> h5py.Dataset:
        item = self._present(place)
        if not isinstance(item, h5py.Dataset):
            raise ValueError("no data set")
        if item.is_virtual or item.external:
            raise ValueError("its values are in another file, which is not read")
        if item.shape is None:
            raise ValueError("has no values")
        return item

    def _fits(self, dataset: h5py.Dataset, share: float, place: str) -> None:
        needed = share * dataset.size * max(dataset.dtype.itemsize, 1)
        check_memory(needed, f"{self.path}: {place}, {' x '.join(map(str, dataset.shape))} values,", self._remedy)


def _single(column: Column, shape: tuple, value):
    if column.dtype == "U":
        if shape:
            raise ValueError(f"{column.name} is a list, not a text")
        return _text(value)
    if column.shape is not None and shape != column.shape:
        raise ValueError(f"{column.name} is of shape {shape}, not {column.shape}")
    result = column.checked(np.asarray(value)).tolist()
    return tuple(result) if isinstance(result, list) else result


def _text(value) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    raise ValueError(f"{type(value).__name__} in place of a text")
