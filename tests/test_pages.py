"""Pages in a browser: planes show the voxels of the map, controls do what they say, nothing is asked of a network."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, small_grid, true_intensity
from helpers.pages import chromium, opened

from dials_diffuse.cli.report import run
from dials_diffuse.files.nexus import write_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import isotropic_part
from dials_diffuse.maps.symmetry import map_to_asu, unique_voxels
from dials_diffuse.merging.statistics import COLUMNS
from dials_diffuse.report.planes import cut_plane
from dials_diffuse.report.section import SIGNED

GRIDS = [
    small_grid("P 1", (9, 10, 11, 80, 95, 105), (1, 2, 3)),
    small_grid("P 31 2 1", (9, 9, 14, 90, 90, 120), (3, 3, 2)),
]

#: anisotropic, raw, σ, multiplicity
VIEWS = ("a", "i", "s", "n")

EVIL = "</script><script>window.hacked = 1</script><b>"


def the_map(grid, units="a.u.") -> DiffuseMap:
    """A map with a fifth of its voxels missing."""
    index = unique_voxels(all_voxels(grid), grid.space_group).index
    index = index[np.arange(len(index)) % 5 != 0]
    n = len(index)
    shells = {name: np.linspace(1, 2, 3) for name in COLUMNS} | {"d_max": [9.0, 5, 4], "d_min": [5.0, 4, 3]}
    return DiffuseMap(
        grid,
        True,
        index,
        1000 * true_intensity(grid, index),
        np.linspace(0.1, 2, n),
        np.arange(n, dtype=np.int32) % 7 + 1,
        statistics={name: np.array(values) for name, values in shells.items()},
        overall={name: float(values[0]) for name, values in shells.items()},
        units=units,
    )


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list:
    """A map and its page, for each of the grids."""
    folder = tmp_path_factory.mktemp("pages")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i, grid in enumerate(GRIDS):
            data = the_map(grid)
            write_map(f"map_{i}.nxs", data, PROVENANCE, volume=False)
            run([f"map_{i}.nxs"])
            found.append((data, folder / f"map_{i}.html"))
    return found


def columns(data: DiffuseMap) -> dict:
    """(n,) values of what the buttons show."""
    s = data.grid.s_magnitude(data.index)
    raw = data.intensity
    anisotropic = raw - isotropic_part(raw, s).at(s)
    return dict(zip(VIEWS, (anisotropic, raw, data.sigma, data.multiplicity.astype(float))))


def colour(value: float, low: float, high: float) -> list:
    """That of a signed value."""
    anchors = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for _, text in SIGNED])
    at = np.round(255 * np.clip((value - low) / (high - low), 0, 1)) / 255 * (len(anchors) - 1)
    return [float(np.interp(at, np.arange(len(anchors)), channel)) for channel in anchors.T]


@pytest.mark.parametrize("number", range(len(GRIDS)))
def test_planes_show_the_voxels_of_the_map(browser, pages, number):
    """Value, colour and place of every voxel of some planes, and which of them are in the asymmetric unit."""
    data, path = pages[number]
    grid, values = data.grid, columns(data)
    rng = np.random.default_rng(0)
    with opened(browser, path) as page:
        api = "diffuse.browsers['map-slices-browser']"
        assert [view["key"] for view in page.evaluate(f"{api}.head.views")] == list(VIEWS)
        for axis, layer in ((2, 0), (1, 1), (0, -2)):
            page.evaluate(f"{api}.set({{axis: {axis}, layer: {layer}, view: 0, outline: false}})")
            index = all_voxels(grid)
            index = index[index[:, axis] == layer]
            asked = index.tolist()
            for view, key in enumerate(VIEWS):
                expected = look_up(cut_plane(data, axis, (layer,), values[key]), index, axis, grid)
                found = page.evaluate(f"asked => asked.map(index => {api}.value({view}, index))", asked)
                found = np.array([np.nan if x is None else x for x in found], dtype=float)
                np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.nanmax(np.abs(expected)))
                if view == 0:
                    assert np.isnan(expected).any() and np.nanmin(expected) < 0 < np.nanmax(expected)
                    anisotropic = expected
            plane = cut_plane(data, axis, (layer,))
            corners = (0.25 * (c[1:, 1:] + c[:-1, 1:] + c[1:, :-1] + c[:-1, :-1]) for c in (plane.x, plane.y))
            x, y = (look_up(c, index, axis, grid) for c in corners)
            screen = np.array(page.evaluate(f"asked => asked.map(index => {api}.screen(index))", asked))
            scale = np.ptp(screen[:, 0]) / np.ptp(x)
            np.testing.assert_allclose(screen[:, 0] - screen[0, 0], scale * (x - x[0]), atol=0.01)
            np.testing.assert_allclose(screen[0, 1] - screen[:, 1], scale * (y - y[0]), atol=0.01)
            limits = page.evaluate(f"[{api}.head.views[0].low, {api}.head.views[0].high]")
            assert limits[0] == -limits[1]
            pixels = page.evaluate(f"asked => {api}.pixels(asked)", asked)
            for i in rng.choice(len(asked), min(60, len(asked)), replace=False):
                wanted = [204] * 3 if np.isnan(anisotropic[i]) else colour(anisotropic[i], *limits)
                np.testing.assert_allclose(pixels[i], wanted, atol=3)
            unique = page.evaluate(f"asked => asked.map(index => {api}.unique(index))", asked)
            asu = np.all(map_to_asu(index, grid.space_group)[0] == index, axis=1)
            np.testing.assert_array_equal(unique, asu)


def look_up(plane, index, axis: int, grid) -> np.ndarray:
    """Values of voxels from a matrix over the two other indices."""
    first, second = (i for i in range(3) if i != axis)
    matrix = plane if isinstance(plane, np.ndarray) else plane.values
    return matrix[index[:, first] + grid.extent[first], index[:, second] + grid.extent[second]]


def test_controls(browser, pages):
    """Keys, slider, buttons, mouse and the width of a phone."""
    data, path = pages[1]
    with opened(browser, path, 390, 800) as page:
        api = "diffuse.browsers['map-slices-browser']"
        state = lambda name: page.evaluate(f"{api}.state.{name}")  # noqa: E731
        root = page.locator("#map-slices-browser")
        canvas = root.locator("canvas").first
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        canvas.focus()
        for keys, name, expected in (
            (["ArrowUp", "ArrowRight"], "layer", 2),
            (["ArrowDown"], "layer", 1),
            (["PageUp"], "layer", 2),
            (["PageUp"], "layer", 4),
            (["PageDown", "Home"], "layer", 0),
            (["k"], "axis", 1),
            (["h"], "axis", 0),
            (["s"], "view", 2),
            (["a"], "view", 0),
            (["o"], "outline", False),
            (["g"], "grid", True),
            (["+", "+"], "zoom", 2.25),
            (["Shift+ArrowRight"], "x", pytest.approx(0.3 * 1.02 / 3.0 / 2.25)),
            (["-"], "zoom", 1.5),
            (["0"], "zoom", 1),
        ):
            for key in keys:
                canvas.press(key)
            assert state(name) == expected, (keys, name)
        for text, name, expected in (("hk0", "axis", 2), ("multiplicity", "view", 3), ("anisotropic", "view", 0)):
            button = root.get_by_role("button", name=text, exact=True)
            before = canvas.screenshot()
            button.click()
            assert state(name) == expected and button.get_attribute("aria-pressed") == "true"
            assert canvas.screenshot() != before  # something else is seen
        slider = root.get_by_role("slider", name="plane of constant l")
        slider.fill("3")
        assert state("layer") == 3 and slider.get_attribute("aria-valuetext") == "1½"
        assert "1½" in canvas.get_attribute("aria-label") and "anisotropic" in canvas.get_attribute("aria-label")
        at = next(i for i in data.index.tolist() if i[2] == 3 and i[0] > 2)
        page.mouse.move(*page.evaluate(f"at => {api}.screen(at)", at))
        words = root.locator("output.readout").inner_text()
        assert f"d {1 / data.grid.s_magnitude(at):.4g} Å" in words and "multiplicity" in words and "l 1½" in words
        raw = data.intensity[np.flatnonzero((data.index == at).all(axis=1))[0]]
        assert f"raw {raw:.4g}" in words
        for control in root.locator("button, input").all():
            assert control.evaluate(
                "e => (e.getAttribute('aria-label') || e.textContent || e.parentElement.textContent).trim()"
            )


def test_plots_and_their_numbers(browser, pages):
    """Every plot is drawn, has a text in its place, and a table of its numbers."""
    pytest.importorskip("plotly", reason="PLOTS ARE NOT TESTED: no plotly")
    data, path = pages[0]
    with opened(browser, path) as page:
        plots = page.locator("figure.plot")
        assert plots.count() >= 4
        for plot in plots.all():
            assert plot.locator("svg.main-svg").count() >= 1
            assert len(plot.locator("[role=img]").get_attribute("aria-label")) > 40
        coverage = page.locator("#map-coverage")
        coverage.locator("summary").click()
        cells = coverage.locator("td").all_inner_texts()
        assert [float(x) for x in cells[1:6:2]] == pytest.approx(100 * data.statistics["completeness"], rel=1e-3)


def test_without_plotly_there_are_tables(browser, tmp_path, monkeypatch):
    from dials_diffuse.report import page as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "plotly_script", lambda: "")
    write_map("map.nxs", the_map(GRIDS[0]), PROVENANCE, volume=False)
    run(["map.nxs"])
    assert (tmp_path / "map.html").stat().st_size < 300_000
    with opened(browser, "map.html") as page:
        assert page.locator("figure.plot table").count() >= 6
        assert not page.locator("figure.plot .drawing").first.is_visible()


def test_markup_in_files_is_text(browser, tmp_path, monkeypatch):
    """Units, names of inputs, parameters, program: they come from files that anybody may have made."""
    monkeypatch.chdir(tmp_path)
    provenance = Provenance(f"p{EVIL}", f"d{EVIL}", EVIL, (f"i{EVIL}",), (), f"c{EVIL}", f"m{EVIL}")
    write_map("map.nxs", the_map(GRIDS[0], units=f"u{EVIL}"), provenance, volume=False)
    run(["map.nxs"])
    with opened(browser, "map.html") as page:
        assert page.evaluate("window.hacked") is None
        text = page.locator("main").inner_text()
        for letter in "pidcmu":
            assert f"{letter}{EVIL}" in text + page.title(), letter
        assert page.locator("main b").count() == 0
