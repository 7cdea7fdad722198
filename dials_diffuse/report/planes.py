"""Planes through a map as pictures: hk0, h0l, 0kl and the half-integer planes between the Bragg positions."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np

from dials_diffuse.maps.files import atomic_path
from dials_diffuse.maps.nexus import DiffuseMap
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.merging.statistics import isotropic_residual

#: share of the pixels of a picture whose colour is not cut off
_RANGE_PERCENTILE = 99.0

_VULGAR = {(1, 2): "½", (1, 3): "⅓", (2, 3): "⅔", (2, 5): "⅖", (3, 5): "⅗", (3, 7): "3/7", (4, 7): "4/7"}


@dataclass(frozen=True)
class Plane:
    """A plane of voxels with one constant Miller index.

    title : for example ``hk½ (mean of l = ⅓, ⅔)``
    labels : names of the horizontal and the vertical axis, for example ``a*`` and ``in the plane, normal to a*``
    x, y : (n + 1, m + 1) float64, Cartesian coordinates of the corners of the voxels in 1/Å
    values : (n, m) float64, NaN where not measured
    """

    title: str
    labels: tuple
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray


def half_layers(subdivide: int) -> tuple:
    """Voxel layers that stand for the plane half way between two Bragg layers.

    The layer at 1/2 where there is one; else the two next to it; layer 1 when only whole indices are on the grid.
    """
    if subdivide == 1:
        return (1,)
    if subdivide % 2 == 0:
        return (subdivide // 2,)
    return (subdivide // 2, subdivide // 2 + 1)


def cut_plane(data: DiffuseMap, axis: int, layers, values=None) -> Plane:
    """Cut a plane, the mean of one or more layers, out of a map.

    Parameters
    ----------
    axis : 0, 1, 2: the constant index is h, k, l
    layers : voxel numbers along that axis
    values : (n,) one number for each unique voxel, by default the intensity
    """
    values = data.intensity if values is None else values
    grid = data.grid
    first, second = (i for i in range(3) if i != axis)
    spans = [np.arange(-grid.extent[i], grid.extent[i] + 1) for i in (first, second)]
    index = np.zeros((len(spans[0]), len(spans[1]), 3), dtype=np.int32)
    index[..., first], index[..., second] = np.meshgrid(*spans, indexing="ij")
    stack = []
    for layer in layers:
        index[..., axis] = layer
        stack.append(_look_up(data, index.reshape(-1, 3), values).reshape(index.shape[:2]))
    corners = np.zeros((len(spans[0]) + 1, len(spans[1]) + 1, 3))
    edges = [np.append(span, span[-1] + 1) - 0.5 for span in spans]
    corners[..., first], corners[..., second] = np.meshgrid(*edges, indexing="ij")
    corners[..., axis] = np.mean(layers)
    x, y = _cartesian(grid, corners, first, second)
    names = "abc"
    labels = (f"along {names[first]}* (1/Å)", f"normal to {names[first]}*, towards {names[second]}* (1/Å)")
    return Plane(_title(axis, layers, grid.subdivide[axis]), labels, x, y, np.mean(stack, axis=0))


def standard_planes(data: DiffuseMap) -> list:
    """hk0, h0l, 0kl and the three half-integer planes, with the isotropic part of the map removed."""
    measured = np.isfinite(data.intensity)
    residual = np.full(len(data.intensity), np.nan)
    residual[measured] = isotropic_residual(data.intensity[measured], data.grid.s_magnitude(data.index[measured]))
    planes = [cut_plane(data, axis, (0,), residual) for axis in (2, 1, 0)]
    return planes + [cut_plane(data, axis, half_layers(data.grid.subdivide[axis]), residual) for axis in (2, 1, 0)]


def write_planes_png(path, data: DiffuseMap, title: str = "") -> None:
    """Draw the standard planes of a map, three beside three, into a PNG file.

    Colours are symmetric about zero; grey means not measured.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.8")
    radius = 1.03 * data.grid.s_magnitude(data.index).max(initial=0.1 / data.grid.d_min)
    for plane, axes in zip(standard_planes(data), figure.subplots(2, 3).flat):
        limit = _colour_limit(plane.values)
        mesh = axes.pcolormesh(
            plane.x,
            plane.y,
            np.ma.masked_invalid(plane.values),
            cmap=colours,
            vmin=-limit,
            vmax=limit,
            shading="flat",
            rasterized=True,
        )
        axes.set(title=plane.title, xlabel=plane.labels[0], ylabel=plane.labels[1])
        axes.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", facecolor="0.8")
        figure.colorbar(mesh, ax=axes, shrink=0.85, extend="both").set_label(f"I − ⟨I⟩ at this |s| ({data.units})")
    figure.suptitle(title or f"Anisotropic diffuse scattering, {data.grid.space_group_symbol}; grey: not measured")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _look_up(data: DiffuseMap, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of any voxels from those of the unique ones, NaN where there is none."""
    grid = data.grid
    asu, _ = map_to_asu(index, grid.space_group, data.friedel)
    known, wanted = grid.key(data.index), grid.key(asu)
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    row = order[place]
    return np.where((known[row] == wanted) & grid.inside(asu), values[row], np.nan)


def _cartesian(grid, index: np.ndarray, first: int, second: int) -> tuple:
    """Coordinates of voxel positions in a plane: x along one reciprocal axis, y normal to it towards another, 1/Å."""
    s = index / np.array(grid.subdivide) @ grid.reciprocal_matrix.T
    along = grid.reciprocal_matrix[:, first]
    along = along / np.linalg.norm(along)
    other = grid.reciprocal_matrix[:, second]
    other = other - (other @ along) * along
    return s @ along, s @ (other / np.linalg.norm(other))


def _colour_limit(values: np.ndarray) -> float:
    """Range of a symmetric colour scale: a high percentile of |value|, 1 if there is nothing to show."""
    finite = np.abs(values[np.isfinite(values)])
    limit = float(np.percentile(finite, _RANGE_PERCENTILE)) if finite.size else 0.0
    return limit if limit > 0 else 1.0


def _title(axis: int, layers, subdivide: int) -> str:
    name = "hkl"[axis]
    fractions = [_fraction(layer, subdivide) for layer in layers]
    if len(layers) == 1:
        return "hkl".replace(name, fractions[0])
    middle = _fraction(sum(layers), subdivide * len(layers))
    return f"{'hkl'.replace(name, middle)} (mean of {name} = {', '.join(fractions)})"


def _fraction(numerator: int, denominator: int) -> str:
    common = gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    if denominator == 1:
        return str(numerator)
    return _VULGAR.get((numerator, denominator), f"{numerator}/{denominator}")
