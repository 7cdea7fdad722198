"""What the files of the project hold: columns with type, shape and range, declared once.

Readers check what they read against these declarations, writers create data sets from them, and the tables of
docs/files.md are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: kinds of numpy types that may stand for a declared one; values are converted when they are read
_ACCEPTED = {"f": "fiu", "i": "iu", "b": "biu", "U": "OSU"}


@dataclass(frozen=True)
class Column:
    """A column, a single value or an attribute.

    Attributes
    ----------
    name : in its group
    dtype : of numpy, such as ``f8``, ``i4``, ``?``; ``U`` for text
    about : what it is, for docs/files.md
    shape : of one row of a column, or of a value; None where it may be any
    low, high : inclusive limits
    missing : may it be NaN, for what is not known?
    infinite : may it be infinite?
    optional : files may lack it
    unit : as it is written into files; empty for pure numbers
    """

    name: str
    dtype: str
    about: str = ""
    shape: tuple | None = ()
    low: float | None = None
    high: float | None = None
    missing: bool = False
    infinite: bool = False
    optional: bool = False
    unit: str = ""

    def checked(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """The values in the declared type.

        values : (n, *shape) for n rows, or (*shape) for a single value; first : number of the first row

        Raises
        ------
        ValueError
            If type or values are others than declared.
        """
        kind = np.dtype(self.dtype).kind
        if values.dtype.kind not in _ACCEPTED[kind]:
            raise ValueError(f"{self.name} is of type {values.dtype}, not {np.dtype(self.dtype)}")
        if kind == "U":
            return values
        if not values.size:
            return values.astype(self.dtype, copy=False)
        low, high = self._limits()
        lowest, highest = self._extremes(values)
        if not (low <= lowest and highest <= high):  # false for NaN
            raise ValueError(self._complaint(values, first, low, high))
        return values.astype(self.dtype, copy=False)

    def of_json(self, value):
        """A value out of JSON: a number, a text, or a tuple of these, of the declared type and shape.

        Raises
        ------
        ValueError
            If it is something else.
        """
        if value is None and self.optional:
            return None
        try:
            array = np.array(value)
        except ValueError:  # lists of different lengths
            raise ValueError(f"{self.name} is no list of {self.dtype}") from None
        kind, text = np.dtype(self.dtype).kind, array.dtype.kind == "U"
        if array.size and (text != (kind == "U") or array.dtype.kind == "O"):
            raise ValueError(f"{self.name} is {value!r:.60}, which is not of type {np.dtype(self.dtype)}")
        if self.shape is not None and array.shape != self.shape:
            raise ValueError(f"{self.name} is of shape {array.shape}, not {self.shape}")
        if not array.size:
            return ()
        result = self.checked(array).tolist()
        return tuple(result) if isinstance(result, list) else result

    def _limits(self) -> tuple:
        """What is allowed; floats that shall be finite end where float64 does."""
        edge = math.inf if self.infinite else np.finfo(float).max
        return (-edge if self.low is None else self.low), (edge if self.high is None else self.high)

    def _extremes(self, values: np.ndarray) -> tuple:
        """Lowest and highest value; of those that are not NaN where NaN is allowed."""
        if values.dtype.kind != "f" or not self.missing:
            return values.min(), values.max()
        lowest, highest = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
        return self._limits() if np.isnan(lowest) else (lowest, highest)

    def _complaint(self, values: np.ndarray, first: int, low: float, high: float) -> str:
        with np.errstate(invalid="ignore"):
            bad = ~((values >= low) & (values <= high))
        if self.missing and values.dtype.kind == "f":
            bad &= ~np.isnan(values)
        place = tuple(np.argwhere(bad)[0]) if values.ndim else ()
        row = f" in row {first + int(place[0])}" if place else ""
        return f"{self.name} is {values[place]}{row}, {self.range_in_words()} is needed"

    def range_in_words(self) -> str:
        """The range, for people."""
        finite = "" if self.infinite or np.dtype(self.dtype).kind != "f" else "a finite number"
        if self.low is not None and self.high is not None:
            return f"{self.low} to {self.high}"
        if self.low is not None:
            return f"{self.low} or more"
        return finite or "a number"


def dtype_of(columns: Sequence[Column]) -> np.dtype:
    """The structured type of a row."""
    return np.dtype([(c.name, c.dtype, c.shape) if c.shape else (c.name, c.dtype) for c in columns])


def from_json(columns: Sequence[Column], content, what: str) -> dict:
    """The items of a JSON object, checked; those that are absent and optional are left out.

    Parameters
    ----------
    what : name of the object, for messages

    Raises
    ------
    ValueError
        If an item is missing, unknown, or not as declared.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{what} is no JSON object")
    unknown = set(content) - {column.name for column in columns}
    if unknown:
        raise ValueError(f"{what} has {', '.join(sorted(map(str, unknown)))}, which this version does not know")
    result = {}
    for column in columns:
        if column.name in content:
            result[column.name] = column.of_json(content[column.name])
        elif not column.optional:
            raise ValueError(f"{what} has no {column.name}")
    return result


def markdown(columns: Sequence[Column]) -> str:
    """A table for docs/files.md."""
    lines = ["| name | type | values | meaning |", "|---|---|---|---|"]
    for column in columns:
        size = "" if not column.shape else f" ({', '.join(map(str, column.shape))})"
        kind = "text" if column.dtype == "U" else "bool" if column.dtype == "?" else str(np.dtype(column.dtype))
        if column.dtype in ("U", "?"):
            values = ""
        elif column.low is None and column.high is None:
            values = "any" if column.infinite else "finite"
        elif column.high is None:
            values = f"≥ {column.low}"
        else:
            values = f"{column.low} … {column.high}"
        values += ", or NaN" if column.missing else ""
        about = (
            column.about
            + (f" ({column.unit})" if column.unit else "")
            + ("; not in all files" if column.optional else "")
        )
        lines.append(f"| `{column.name}`{size} | {kind} | {values} | {about} |")
    return "\n".join(lines)
