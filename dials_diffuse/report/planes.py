"""Planes through a map as pictures: hk0, h0l, 0kl and the half-integer planes between the Bragg positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import isotropic_residual
from dials_diffuse.maps.symmetry import map_to_asu
from dials_diffuse.maps.voxels import rows_of
from dials_diffuse.report.figures import new_figure, write_png

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


def write_planes_png(path, data: DiffuseMap, title: str = "", reference: DiffuseMap | None = None, scale=1.0) -> None:
    """Draw :func:`planes_figure` into a PNG file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    write_png(path, planes_figure(data, title, reference, scale))


def planes_figure(data: DiffuseMap, title: str = "", reference: DiffuseMap | None = None, scale: float = 1.0):
    """The standard planes of a map, three beside three.

    Colours are symmetric about zero; grey means not measured. With a reference, the left half of each plane is the map
    and the right half the reference at the mirrored place: whatever the symmetry of the crystal, two points at the same
    distance from the line between the halves are the same voxel.

    Parameters
    ----------
    reference : a truth or a model to compare with, on the same lattice
    scale : what the reference is multiplied with, for instance the slope of the map against it

    Returns
    -------
    matplotlib.figure.Figure with an Agg canvas
    """
    figure = new_figure(16, 9.5)
    radius = 1.03 * data.grid.s_magnitude(data.index).max(initial=0.1 / data.grid.d_min)
    planes = standard_planes(data)
    others = [None] * len(planes) if reference is None else standard_planes(reference)
    for plane, other, axes in zip(planes, others, figure.subplots(2, 3).flat):
        if other is None:
            mesh = _draw(axes, plane, _colour_limit(plane.values))
            axes.set_title(plane.title)
        else:
            mesh = _draw_halves(axes, plane, mirrored(other, scale), radius)
            axes.set_title(f"map   |   reference, mirrored\n{plane.title}")
        axes.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
        axes.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", facecolor="0.8")
        figure.colorbar(mesh, ax=axes, shrink=0.85, extend="both").set_label(f"I − ⟨I⟩ at this |s| ({data.units})")
    figure.suptitle(title or f"Anisotropic diffuse scattering, {data.grid.space_group_symbol}; grey: not measured")
    return figure


def mirrored(plane: Plane, scale: float = 1.0) -> Plane:
    """A plane seen in a mirror, left and right exchanged, with its values multiplied."""
    return replace(plane, x=-plane.x, values=plane.values * scale)


def _draw_halves(axes, plane: Plane, other: Plane, radius: float):
    """Draw the left half of a plane and the right half of another, in colours for the other, which has no noise."""
    from matplotlib.patches import Rectangle

    limit = _colour_limit(other.values if np.nanmax(np.abs(other.values), initial=0) > 0 else plane.values)
    for half, left in ((plane, -2 * radius), (other, 0.0)):
        mesh = _draw(axes, half, limit)
        mesh.set_clip_path(Rectangle((left, -2 * radius), 2 * radius, 4 * radius, transform=axes.transData))
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda x, position: f"{-abs(x):.1f}".replace("-", "−") if x else "0.0")
    return mesh


def _draw(axes, plane: Plane, limit: float):
    from matplotlib import colormaps

    return axes.pcolormesh(
        plane.x,
        plane.y,
        np.ma.masked_invalid(plane.values),
        cmap=colormaps["RdBu_r"].with_extremes(bad="0.8"),
        vmin=-limit,
        vmax=limit,
        shading="flat",
        rasterized=True,
    )


def _look_up(data: DiffuseMap, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of any voxels from those of the unique ones, NaN where there is none."""
    asu, _ = map_to_asu(index, data.grid.space_group, data.friedel)
    row = rows_of(asu, data.index)
    return np.where(row >= 0, values[row], np.nan)


def _cartesian(grid, index: np.ndarray, first: int, second: int) -> tuple:
    """Coordinates of voxel positions in a plane: x along one reciprocal axis, y normal to it towards another, 1/Å."""
    s = grid.s(index)
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
