"""What can be shown of a map in the place of its intensity, one function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import isotropic_residual, resolution_range


@dataclass(frozen=True)
class Column:
    """Values of the unique voxels.

    Attributes
    ----------
    name : in the programs
    about : one sentence for users
    values : of a map, (n,) float64
    halves : are there values of the half sets, too? They are made of the halves' intensities.
    power : of the map's unit, that the values have
    """

    name: str
    about: str
    values: Callable
    halves: bool = False
    power: int = 0


def anisotropic(data: DiffuseMap, values: np.ndarray | None = None) -> np.ndarray:
    """(n,) float64, what is not isotropic of the intensity, or of other values; NaN where these are.

    Source: :func:`dials_diffuse.maps.shells.isotropic_residual`
    """
    values = data.intensity if values is None else values
    result, finite = np.full(len(values), np.nan), np.isfinite(values)
    result[finite] = isotropic_residual(values[finite], data.grid.s_magnitude(data.index[finite]))
    return result


def _half(name: str) -> Callable:
    def values(data: DiffuseMap) -> np.ndarray:
        half = getattr(data, name)
        if half is None:
            raise DiffuseError(f"column={name}: this map has no half sets; choose another column")
        return half

    return values


def _half_difference(data: DiffuseMap) -> np.ndarray:
    return (_half("half_a")(data) - _half("half_b")(data)) / 2


def _weight(data: DiffuseMap) -> np.ndarray:
    if not np.any(data.sigma > 0):
        raise DiffuseError("column=weight: this map has no errors, as maps of models; choose another column")
    return np.divide(1, data.sigma**2, out=np.zeros(len(data.sigma)), where=data.sigma > 0)


#: the first one is the default
COLUMNS = (
    Column("intensity", "the diffuse intensity", lambda data: data.intensity, True, 1),
    Column("anisotropic", "the intensity less what is isotropic", anisotropic, True, 1),
    Column("sigma", "the standard error", lambda data: data.sigma, False, 1),
    Column("weight", "1/sigma²", _weight, False, -2),
    Column("multiplicity", "the number of observations", lambda data: data.multiplicity.astype(float)),
    Column("measured", "1 where there is an intensity", lambda data: np.isfinite(data.intensity).astype(float)),
    Column("half_a", "the intensity of half of the data", _half("half_a"), False, 1),
    Column("half_b", "the intensity of the other half", _half("half_b"), False, 1),
    Column("half_difference", "half of their difference, which is noise", _half_difference, False, 1),
)


def cropped(data: DiffuseMap, d_max: float | None = None, d_min: float | None = None) -> DiffuseMap:
    """The part of a map between limits in Å; None for those of the map. Sums and statistics of the whole are left out.

    Raises
    ------
    DiffuseError
        If nothing of the map lies between them.
    """
    if d_max is None and d_min is None:
        return data
    high, low = resolution_range(data.grid, d_max, d_min, "")
    grid = replace(data.grid, d_max=high, d_min=low)
    inside = grid.inside(data.index)
    columns = ("index", "intensity", "sigma", "multiplicity", "half_a", "half_b")
    values = {name: getattr(data, name) for name in columns}
    kept = {name: None if column is None else column[inside] for name, column in values.items()}
    return replace(data, grid=grid, sums={}, statistics={}, overall={}, **kept)


def with_column(data: DiffuseMap, name: str) -> DiffuseMap:
    """The map with another column in the place of the intensity.

    Half sets and sigma, which is that of the intensity, stay for the columns that have halves; else sigma is 0: none.

    Raises
    ------
    DiffuseError
        If there is no such column, or the map has nothing to make it of.
    """
    choice("column", name, [column.name for column in COLUMNS])
    column = next(row for row in COLUMNS if row.name == name)
    if column is COLUMNS[0]:
        return data
    halves = dict.fromkeys(("half_a", "half_b"))
    if column.halves and data.half_a is not None:
        halves = {half: anisotropic(data, getattr(data, half)) for half in halves}
    units = {0: "", 1: data.units, -2: f"1/({data.units})^2"}[column.power]
    sigma = data.sigma if column.halves else np.zeros(len(data.sigma))
    return replace(data, intensity=column.values(data), sigma=sigma, **halves, units=units)
