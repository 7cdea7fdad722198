"""Pictures of planes: the right voxels in the right places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import all_voxels, small_grid, true_intensity

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.report.planes import cut_plane, half_layers, planes_figure, standard_planes, write_planes_png

GRIDS = [
    small_grid("P 1", (9, 10, 11, 80, 95, 105), (1, 2, 3)),
    small_grid("P 1 2 1", (9, 10, 11, 90, 105, 90), (2, 1, 3)),
    small_grid("P 31 2 1", (9, 9, 14, 90, 90, 120), (3, 3, 2)),
]
by_name = {"argnames": "grid", "argvalues": GRIDS, "ids": lambda grid: grid.space_group_symbol}


def full_map(grid, keep=lambda index: np.ones(len(index), bool), friedel=True) -> DiffuseMap:
    index = unique_voxels(all_voxels(grid), grid.space_group, friedel).index
    index = index[keep(index)]
    ones = np.ones(len(index))
    return DiffuseMap(grid, friedel, index, true_intensity(grid, index, friedel), 0.1 * ones, ones.astype(np.int32))


@pytest.mark.parametrize("friedel", [True, False])
@pytest.mark.parametrize(**by_name)
def test_planes_are_slices_of_the_volume(grid, friedel):
    data = full_map(grid, lambda index: np.arange(len(index)) % 5 != 0, friedel)
    volume = data.volume()
    for axis in range(3):
        for layer in (-1, 0, 2):
            expected = np.take(volume, layer + grid.extent[axis], axis)
            np.testing.assert_allclose(cut_plane(data, axis, (layer,)).values, expected, rtol=1e-6)
            assert np.isnan(expected).any() and np.isfinite(expected).any()


@pytest.mark.parametrize(**by_name)
def test_coordinates_are_cartesian(grid):
    data = full_map(grid)
    for axis, (first, second) in zip(range(3), ((1, 2), (0, 2), (0, 1))):
        plane = cut_plane(data, axis, (0,))
        x, y = (0.25 * (c[1:, 1:] + c[:-1, 1:] + c[1:, :-1] + c[:-1, :-1]) for c in (plane.x, plane.y))
        for i, j in ((0, 0), (3, 1), (-2, 2), (1, -1)):
            index = np.zeros(3)
            index[first], index[second] = i, j
            at = i + grid.extent[first], j + grid.extent[second]
            assert np.hypot(x[at], y[at]) == pytest.approx(grid.s_magnitude(index), abs=1e-12)
        along = grid.extent[first] + 1, grid.extent[second]
        assert x[along] > 0 and y[along] == pytest.approx(0, abs=1e-12)
        assert y[grid.extent[first], grid.extent[second] + 1] > 0


def test_reciprocal_hexagonal_axes_make_sixty_degrees():
    data = full_map(GRIDS[2])
    plane = cut_plane(data, 2, (0,))
    step = [c[0, 1] - c[0, 0] for c in (plane.x, plane.y)]  # one voxel along b*
    assert np.degrees(np.arctan2(step[1], step[0])) == pytest.approx(60)


@pytest.mark.parametrize(
    "subdivide, layers, title",
    [
        (1, (1,), "hk1"),
        (2, (1,), "hk½"),
        (3, (1, 2), "hk½ (mean of l = ⅓, ⅔)"),
        (4, (2,), "hk½"),
        (5, (2, 3), "hk½ (mean of l = ⅖, ⅗)"),
        (9, (4, 5), "hk½ (mean of l = 4/9, 5/9)"),
    ],
)
def test_half_integer_planes(subdivide, layers, title):
    grid = small_grid("P 4", (6, 6, 7, 90, 90, 90), (1, 1, subdivide))
    data = full_map(grid)
    assert half_layers(subdivide) == layers
    plane = cut_plane(data, 2, layers)
    assert plane.title == title
    volume = data.volume()
    expected = np.mean([volume[:, :, layer + grid.extent[2]] for layer in layers], axis=0)
    np.testing.assert_allclose(plane.values, expected, rtol=1e-6)


def test_standard_planes_have_no_isotropic_part():
    grid = GRIDS[2]
    data = full_map(grid)
    planes = standard_planes(data)
    assert [p.title[:3] for p in planes] == ["hk0", "h0l", "0kl", "hk½", "h½l", "½kl"]
    isotropic = DiffuseMap(grid, True, data.index, np.full(len(data.index), 7.0), data.sigma, data.multiplicity)
    assert all(np.nanmax(np.abs(plane.values)) < 1e-9 for plane in standard_planes(isotropic))
    assert all(np.nanmin(plane.values) < 0 < np.nanmax(plane.values) for plane in planes)


def test_picture(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    grid = GRIDS[2]
    cone = full_map(grid, lambda index: np.abs(index[:, 2]) < 4 * np.abs(index).sum(axis=1) / 5)
    write_planes_png(tmp_path / "planes.png", cone, "a title")
    pixels = image.imread(tmp_path / "planes.png")[..., :3]
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1400
    grey = np.all(np.abs(pixels - 0.8) < 0.003, axis=2).mean()
    red = (pixels[..., 0] > pixels[..., 2] + 0.2).mean()
    blue = (pixels[..., 2] > pixels[..., 0] + 0.2).mean()
    assert 0.1 < grey < 0.7 and red > 0.01 and blue > 0.01


def test_picture_of_next_to_nothing(tmp_path):
    data = full_map(GRIDS[2], lambda index: np.arange(len(index)) < 1)
    write_planes_png(tmp_path / "planes.png", data)
    assert (tmp_path / "planes.png").stat().st_size > 1000


def test_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(DiffuseError, match="nowhere"):
        write_planes_png(tmp_path / "nowhere" / "planes.png", full_map(GRIDS[2]))


def picture_of(figure) -> np.ndarray:
    """(height, width, 3) colours from 0 to 1, top row first."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255


@pytest.mark.parametrize(**by_name)
def test_left_half_is_the_map_and_right_half_the_same_voxels_of_the_reference(grid):
    """The colour of every voxel near the middle of the picture, looked up where its centre must be."""
    colormaps = pytest.importorskip("matplotlib").colormaps
    data = full_map(grid, lambda index: np.arange(len(index)) % 5 != 0)
    other = full_map(grid)
    other = replace(other, intensity=np.cos(0.6 * np.arange(len(other.index))))
    scale = 0.3
    figure = planes_figure(data, "a title", other, scale)
    picture = picture_of(figure)
    axes = [a for a in figure.axes if a.get_title()]
    assert len(axes) == 6 and all("reference" in a.get_title() for a in axes)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.8")
    for a, ours, theirs in zip(axes, standard_planes(data), standard_planes(other)):
        assert ours.title in a.get_title()
        limit = np.percentile(np.abs(scale * theirs.values[np.isfinite(theirs.values)]), 99)
        x, y = (0.25 * (c[1:, 1:] + c[:-1, 1:] + c[1:, :-1] + c[:-1, :-1]) for c in (ours.x, ours.y))
        size = min(abs(ours.x[1, 0] - ours.x[0, 0]), abs(ours.y[0, 1] - ours.y[0, 0]))
        left = (x < -size) & (x > 0.9 * a.get_xlim()[0]) & (np.abs(y) < 0.9 * a.get_ylim()[1])
        assert left.sum() > 20 and np.isnan(ours.values[left]).any()
        for sign, values in ((1, ours.values[left]), (-1, scale * theirs.values[left])):
            expected = colours(np.ma.masked_invalid(values) / (2 * limit) + 0.5)[:, :3]
            across, up = a.transData.transform(np.stack([sign * x[left], y[left]], axis=1)).T
            found = picture[len(picture) - 1 - up.astype(int), across.astype(int)]
            np.testing.assert_allclose(found, expected, atol=0.01)


def test_pictures_with_a_reference_that_says_nothing():
    """A flat reference, and one that cannot be scaled: the colours are those of the map."""
    data = full_map(GRIDS[0])
    flat = replace(data, intensity=np.full(len(data.index), 7.0))
    for reference, scale in ((flat, 1.0), (data, np.nan)):
        figure = planes_figure(data, "", reference, scale)
        limits = [a.collections[0].get_clim()[1] for a in figure.axes if a.get_title()]
        expected = [np.percentile(np.abs(p.values[np.isfinite(p.values)]), 99) for p in standard_planes(data)]
        np.testing.assert_allclose(limits, expected)
