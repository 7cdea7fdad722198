"""Are the numbers of a file possible? What no program of ours writes is an error that names file, column and row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.errors import DiffuseError


@dataclass(frozen=True)
class Limits:
    """Numbers that a column may hold; they have to be finite in any case.

    Attributes
    ----------
    low, high : inclusive
    unknown : may it be NaN, for what was not measured?
    """

    low: float = -math.inf
    high: float = math.inf
    unknown: bool = False


ANY, NOT_NEGATIVE, ANY_OR_UNKNOWN = Limits(), Limits(low=0.0), Limits(unknown=True)


def check_values(path, column: str, values: np.ndarray, limits: Limits, remedy: str, first: int = 0) -> None:
    """Raise DiffuseError at the first row of a column that is not within its limits.

    Parameters
    ----------
    values : (n, ...) numbers
    remedy : what to do, ends the message
    first : number of the first row, for the message
    """
    if not values.size or _all_good(values, limits):
        return
    good = np.isfinite(values) & (values >= limits.low) & (values <= limits.high)
    if limits.unknown:
        good |= np.isnan(values)
    if not good.all():
        raise bad_rows(path, column, values, ~good, remedy, first)


def bad_rows(path, column: str, values: np.ndarray, bad: np.ndarray, remedy: str, first: int = 0) -> DiffuseError:
    """The error for rows where ``bad`` is true, (n, ...) bool; ``first`` and ``remedy`` as above."""
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    value = np.asarray(values[rows[0]]).ravel()[np.argmax(np.asarray(bad[rows[0]]).ravel())]
    more = f", and {len(rows) - 1} more rows like it" if len(rows) > 1 else ""
    place = f"{path}: column {column}, row {first + rows[0]}"
    return DiffuseError(f"{place}: {value:g} is no possible value{more}; {remedy}")


def _all_good(values: np.ndarray, limits: Limits) -> bool:
    """A quick answer for nearly all blocks: minimum and maximum are NaN where one value is."""
    if limits.unknown:
        return False
    low, high = values.min(), values.max()
    return bool(limits.low <= low and high <= limits.high and np.isfinite(low) and np.isfinite(high))
