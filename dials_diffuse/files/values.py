"""Values that are possible by themselves, but not beside those of another column."""

from __future__ import annotations

import numpy as np

from dials_diffuse.errors import DiffuseError


def bad_rows(path, column: str, values: np.ndarray, bad: np.ndarray, remedy: str, first: int = 0) -> DiffuseError:
    """The error for rows where ``bad`` is true.

    Parameters
    ----------
    values : (n,) numbers; bad : (n,) bool
    remedy : what to do, ends the message
    first : number of the first row, for the message
    """
    rows = np.flatnonzero(bad)
    more = f", and {len(rows) - 1} more rows like it" if len(rows) > 1 else ""
    place = f"{path}: column {column}, row {first + rows[0]}"
    return DiffuseError(f"{place}: {values[rows[0]]:g} is no possible value{more}; {remedy}")
