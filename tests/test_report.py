"""dials.diffuse_report, and what its pages are made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid, true_intensity, write_rows
from helpers.pages import Page
from helpers.programs import fails
from helpers.structures import random_structure
from scipy.spatial.distance import cdist

from dials_diffuse.cli import merge
from dials_diffuse.cli.report import run
from dials_diffuse.files.nexus import read_map, write_map
from dials_diffuse.files.record import read_json
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.shells import equal_count_residual, isotropic_part
from dials_diffuse.maps.symmetry import possible_voxels
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.reduction.overview import overview
from dials_diffuse.report import merge_page, slices
from dials_diffuse.report import page as page_module
from dials_diffuse.report.fit_matrices import edge_shapes, kernel_plots
from dials_diffuse.report.overview_plots import image_plots
from dials_diffuse.report.quantised import UNMEASURED, entropy, packed, spread_of
from dials_diffuse.report.section import Material, Plot, Section, Table, column, line, middle, resolution_axis
from dials_diffuse.structure.groups import group_centres, group_labels, group_names
from dials_diffuse.structure.secondary import secondary_structure

GRID = small_grid("P 41", (12, 12, 18, 90, 90, 90))


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    """A folder with observations and what dials.diffuse_merge makes of them."""
    folder = tmp_path_factory.mktemp("merged")
    index = np.tile(all_voxels(GRID), (2, 1))
    rows = observation_rows(GRID, index, true_intensity(GRID, index), np.random.default_rng(0), scale=30)
    write_rows(folder / "diffuse_integrated.h5", GRID, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        merge.run(["diffuse_integrated.h5", "output.volume=False", "output.png=None"])
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_of_a_map_is_that_of_its_program(merged, here):
    run([str(merged / "diffuse_merged.nxs")])
    assert Path("diffuse_merged.html").read_text() == (merged / "diffuse_merged.html").read_text()
    run([str(merged / "diffuse_merged.json"), "output.html=again.html"])
    assert Path("again.html").read_text() == (merged / "diffuse_merged.html").read_text()


def test_numbers_of_the_page_are_those_of_the_record(merged):
    page = Page(merged / "diffuse_merged.html")
    shells = read_json(merged / "diffuse_merged.json")["statistics"]["shells"]
    agreement = {trace["name"]: trace for trace in page.plots["merge-agreement-plot"]["traces"]}
    half = [row["cc_half"] for row in shells]
    np.testing.assert_allclose(agreement["CC½"]["y"], half, rtol=1e-4)
    star = next(trace for name, trace in agreement.items() if name.startswith("CC*"))
    np.testing.assert_allclose(star["y"], np.sqrt(2 * np.array(half) / (1 + np.array(half))), rtol=1e-4)
    intensity = {trace["name"]: trace for trace in page.plots["merge-intensity-plot"]["traces"]}
    np.testing.assert_allclose(intensity["mean, all"]["y"], [row["mean"] for row in shells], rtol=1e-4)
    assert {"mean σ, away from Bragg", "anisotropic rms, away from Bragg"} <= set(intensity)
    assert "diffuse_integrated.h5" in page.text and not page.links
    assert page.pre == ["output {\n  volume = False\n  png = None\n}"]


def test_a_map_without_its_record(merged, here):
    (here / "other.nxs").write_bytes((merged / "diffuse_merged.nxs").read_bytes())
    run(["other.nxs"])
    page = Page("other.html")
    assert page.heads[0] == "dials.diffuse_merge: Map" and "Planes of the map" in page.heads
    assert "map-agreement-plot" in page.plots


def test_observations(merged, here):
    run([str(merged / "diffuse_integrated.h5")])
    page = Page("diffuse_integrated.html")
    assert page.tables[0][1][1] == "id-1"
    assert {"observations-images-plot", "observations-residual-plot"} <= set(page.plots)


def test_several_files_on_one_page(merged, here):
    name = str(merged / "diffuse_merged.nxs")
    run([name, str(merged / "diffuse_integrated.h5"), str(merged / "diffuse_merged.json"), "output.html=all.html"])
    page = Page("all.html")  # which checks that no id is there twice
    for title in ("Merged map", "Observations"):
        assert title in page.heads
    assert {"merge-agreement-plot", "merge2-agreement-plot"} <= set(page.plots)
    assert page.text.count('id="plotly"') == 1


def test_files_without_a_page(here, capsys, merged):
    Path("other.json").write_text('{"schema": "xia2/1"}')
    fails(run, ["other.json"], capsys, 1, ["other.json", "'xia2/1'"])
    Path("broken.json").write_text("{")
    fails(run, ["broken.json"], capsys, 1, ["broken.json", "not JSON"])
    Path("text.nxs").write_text("text")
    fails(run, ["text.nxs"], capsys, 1, ["text.nxs"])
    fails(run, ["absent.nxs"], capsys, 1, ["absent.nxs"])
    name = merged / "diffuse_merged.nxs"
    fails(run, [name, f"{here / 'none'}/x.html", "output.html=none/x.html"], capsys, 1, ["no such file"])
    fails(run, [name, "output.html=none/x.html"], capsys, 1, ["output.html=none/x.html", "folder"])
    twice = [name, merged / "diffuse_merged.json"]
    fails(run, twice, capsys, 2, ["diffuse_merged.html", "choose output.html"])
    fails(run, [], capsys, 2)


def test_plotly_is_not_installed(merged, here, monkeypatch, caplog):
    page_module.plotly_script.cache_clear()
    monkeypatch.setattr(page_module, "find_spec", lambda name: None)
    try:
        run([str(merged / "diffuse_merged.nxs")])
    finally:
        page_module.plotly_script.cache_clear()
    assert "plotly is not installed: pages show tables in place of plots" in caplog.text
    assert '<script type="text/plain" id="plotly"></script>' in Path("diffuse_merged.html").read_text()


@pytest.mark.parametrize("levels", [30_000, 120, 8])
def test_codes_are_as_exact_as_they_say(levels):
    rng = np.random.default_rng(0)
    values = np.sinh(2 * rng.normal(size=5000)) * 100
    values[::7] = np.nan
    scale = spread_of(values).scale(levels)
    codes = scale.codes(values)
    found = scale.values(codes)
    known = np.isfinite(values)
    np.testing.assert_array_equal(np.isnan(found), ~known)
    assert np.all(codes[~known] == UNMEASURED) and codes.max() < 2**scale.bits
    spacing = scale.step * np.hypot(scale.width, values[known])  # of neighbouring codes there
    assert np.all(np.abs(found - values)[known] <= 0.51 * spacing * math.cosh(scale.step))
    assert len(np.unique(codes)) <= 2 * levels + 2


def test_codes_of_counts_are_exact():
    values = np.array([1.0, 2, 3, 7, 100, np.nan])
    scale = spread_of(values).scale(120)
    np.testing.assert_allclose(scale.values(scale.codes(values)), values, atol=1e-12)
    flat = spread_of(np.zeros(3)).scale(8)
    assert flat.values(flat.codes(np.zeros(3))).tolist() == [0, 0, 0]


def test_entropy_says_how_large_codes_get():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 16, 100_000).astype(np.uint8), rng.integers(0, 4096, 50_000).astype(np.uint16)):
        assert 0.75 * len(packed(values)) == pytest.approx(entropy(values), rel=0.05)


def test_the_isotropic_part_is_a_function_of_resolution():
    """The same as lines in bins of equal number, where no two voxels have the same |s|; ties share a shell."""
    rng = np.random.default_rng(0)
    s = rng.uniform(0.05, 0.5, 2000)
    values = 100 * np.exp(-5 * s) + rng.normal(size=2000)
    part = isotropic_part(values, s, 50)
    np.testing.assert_allclose(values - part.at(s), equal_count_residual(values, s, 50), atol=1e-9)
    tied = np.repeat(s[:100], 20)
    other = isotropic_part(np.arange(2000.0), tied, 77)
    assert all(len(np.unique(other.at(np.full(3, x)))) == 1 for x in s[:100])
    assert not set(other.limits) & set(tied)
    np.testing.assert_allclose(isotropic_part(3 + 2 * s, s).at(s), 3 + 2 * s)
    assert isotropic_part(np.ones(3), np.ones(3)).at(np.ones(1)) == 1


def test_pages_stay_small(monkeypatch):
    """With less room codes get coarser, then σ and multiplicity are averaged, then the resolution is cut."""
    grid = small_grid("P 1", (50, 51, 52, 80, 95, 105))
    index = np.concatenate(list(possible_voxels(grid)))
    rng = np.random.default_rng(0)
    n = len(index)
    data = DiffuseMap(
        grid, True, index, rng.normal(100, 10, n), rng.uniform(1, 2, n), rng.integers(1, 9, n, dtype=np.int32)
    )
    sizes, notes = [], []
    for budget in (1e7, 4 * n, 0.9 * n, 0.3 * n):
        monkeypatch.setattr(slices, "BUDGET", budget)
        browser = slices.browser_of_map(data)
        sizes.append(0.75 * sum(map(len, browser.voxels.values())))
        notes.append(
            (
                browser.head["columns"]["intensity"]["bits"],
                browser.head["columns"]["sigma"]["stride"],
                browser.head["note"],
            )
        )
        assert sizes[-1] < 1.25 * budget
    assert [bits for bits, _, _ in notes] == [16, 8, 8, 8] and [edge for _, edge, _ in notes] == [1, 1, 2, 2]
    assert "means over 2×2×2 voxels" in notes[2][2] and "Å only" in notes[3][2] and sizes == sorted(sizes, reverse=True)


def test_overview_finds_a_shadow(tmp_path):
    """A quarter of the detector with half the rate, and a bright image."""
    index = np.repeat(all_voxels(GRID), 20, axis=0)
    rng = np.random.default_rng(0)
    rows = observation_rows(GRID, index, true_intensity(GRID, index), rng, scale=300)
    rows["xyz"] = np.stack(
        [rng.uniform(0, 100, len(rows)), rng.uniform(0, 100, len(rows)), rng.uniform(0, 1, len(rows))], 1
    )
    factor = np.where((rows["xyz"][:, 0] < 50) & (rows["xyz"][:, 1] < 50), 0.5, 1.0)
    factor *= np.where((rows["xyz"][:, 2] > 0.3) & (rows["xyz"][:, 2] < 0.4), 2.0, 1.0)
    rows["counts"] = rows["background"] + factor * (rows["counts"] - rows["background"])
    found = overview(write_rows(tmp_path / "a.h5", GRID, rows))
    assert found["share"] == 1
    ratio = found["panels"][0]["ratio"]
    half = len(ratio) // 2
    dark = np.nanmean(ratio[: half - 1, : half - 1])
    for other in (ratio[half + 1 :, : half - 1], ratio[: half - 1, half + 1 :], ratio[half + 1 :, half + 1 :]):
        assert dark / np.nanmean(other) == pytest.approx(0.5, rel=0.03)
    images = found["sweeps"][0]["ratio"]
    assert len(images) == 10 and found["sweeps"][0]["first"] == 1
    assert images[3] / np.mean(np.delete(images, 3)) == pytest.approx(2, rel=0.05)
    assert sum(found["sweeps"][0]["pixels"]) == pytest.approx(rows["pixels"].sum(), rel=1e-4)


def test_helices_and_strands(tmp_path):
    path = tmp_path / "a.pdb"
    atom = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}   0.000   0.000  1.00 20.00           C\n"
    path.write_text(
        "HELIX    1   1 ALA A    3  ALA A    7  1                                   5\n"
        "SHEET    1   A 1 ALA A   9  ALA A  11  0\n" + "".join(atom.format(i, i, 3.8 * i) for i in range(1, 13))
    )
    found = secondary_structure(path)
    assert [(x.kind, x.chain, x.first, x.last) for x in found] == [("helix", "A", "3", "7"), ("strand", "A", "9", "11")]
    names = [f"A {i}" for i in range(1, 13)]
    shapes = edge_shapes(names, [x.record() for x in found])
    assert (
        [(x["x0"], x["x1"]) for x in shapes[::2]]
        == [(x["y0"], x["y1"]) for x in shapes[1::2]]
        == [(1.5, 6.5), (7.5, 10.5)]
    )
    assert all(x["y1"] < -0.5 for x in shapes[::2]) and all(x["x1"] < -0.5 for x in shapes[1::2])  # beside the matrix
    assert edge_shapes(["1", "2"], [x.record() for x in found]) == []


def test_a_section_is_a_function_and_a_row(merged, here, monkeypatch):
    def extra(material):
        shells = material.record["statistics"]["shells"]
        plot = Plot("r", "R of mates", "Small is good.", [line("R", middle(shells), column(shells, "r_sym"))])
        return Section("extra", "Something else", "What it is.", plots=(plot,), tables=(Table(["a"], [["<i>"]]),))

    monkeypatch.setattr(merge_page, "SECTIONS", (*merge_page.SECTIONS, extra, lambda material: None))
    run([str(merged / "diffuse_merged.json")])
    page = Page("diffuse_merged.html")
    assert page.heads[-2:] == ["Something else", "Parameters that were modified"] and page.tables[-1][-1] == ["<i>"]
    shells = read_json(merged / "diffuse_merged.json")["statistics"]["shells"]
    drawn = page.plots["merge-r-plot"]["traces"][0]
    np.testing.assert_allclose(drawn["y"], [shell["r_sym"] for shell in shells], rtol=1e-4)


def test_warnings_stand_at_their_chapter(merged, here):
    for name, texts in (("a", ["both", "one"]), ("b", ["both", "two < three"])):
        record = read_json(merged / "diffuse_merged.json")
        (here / f"{name}.json").write_text(json.dumps({**record, "warnings": texts, "outputs": []}))
    run(["a.json", "b.json", "output.html=both.html"])
    text = Path("both.html").read_text()
    assert [text.count(f"<li>{word}</li>") for word in ("both", "one", "two &lt; three")] == [1, 1, 1]
    assert text.index("<li>one</li>") < text.index('<h2 id="merge">') < text.index('<h2 id="merge2">')
    assert text.index('<h2 id="merge2">') < text.index("<li>two")


def test_displacements_by_group(atoms):
    """Of each atom where there are no three residues, else means over residues."""
    (few,) = compare_displacements((RigidBody(sigma=0.3),), atoms)
    record = few.record()
    assert [group["name"] for group in record["groups"]] == list(group_names(atoms, "atom")) and len(
        record["groups"]
    ) == 6
    own = np.trace(atoms.u_cart, axis1=1, axis2=2) / 3
    np.testing.assert_allclose([group["u_structure"] for group in record["groups"]], own)
    np.testing.assert_allclose([group["u_model"] for group in record["groups"]], 0.09)
    residues = np.array(["   1 ", "   1 ", "   2 ", "   2 ", "   3 ", "   3 "])
    many = replace(atoms, residue=residues, chain=np.array(["A"] * 6))
    groups = compare_displacements((RigidBody(sigma=0.3),), many)[0].record()["groups"]
    assert [group["name"] for group in groups] == ["A 1", "A 2", "A 3"]
    np.testing.assert_allclose([group["u_structure"] for group in groups], own.reshape(3, 2).mean(axis=1))
    assert group_names(many, "chain") == ("A",) and group_names(many, "segment") == ("A 1-3",)
    assert group_names(many, "molecule") == ("molecule",) and group_names(many, "selection", ("x", "y")) == ("x", "y")


def test_text_stands_at_the_left_of_tables():
    table = Table(["a", "b", "c"], [["x", "1.5", "−3"], ["2", "-", "5 %"]])
    assert table.kinds == ["word", "number", "number"]
    assert Table(["a"], [["x " * 20]]).kinds == ["text"] and Table(["a", "b"], []).kinds == ["word", "word"]


def test_marks_of_resolution_do_not_overlap():
    axis = resolution_axis(np.linspace(0.05, 0.8, 10))
    assert np.all(np.diff(axis["tickvals"]) > 0.04) and axis["ticktext"][0] == "20"
    np.testing.assert_allclose([1 / x for x in axis["tickvals"]], [float(x) for x in axis["ticktext"]])
    assert resolution_axis([])["range"][1] > 0 and resolution_axis([None, 0.3])["range"][1] > 0.3


def test_a_map_of_nothing(here):
    data = read_map_of_nothing()
    write_map("empty.nxs", data, PROVENANCE, volume=False)
    run(["empty.nxs"])
    assert "Planes of the map" not in Page("empty.html").heads


def read_map_of_nothing() -> DiffuseMap:
    nothing = np.zeros(0)
    return DiffuseMap(GRID, True, np.zeros((0, 3), np.int32), nothing, nothing, nothing.astype(np.int32))


def test_records_of_older_versions(merged, here):
    """Without the key they do not pretend that nothing was modified."""
    record = json.loads((merged / "diffuse_merged.json").read_text())
    del record["modified"], record["statistics"]["away_from_bragg"], record["units"]
    (here / "old.json").write_text(json.dumps(record))
    run(["old.json"])
    page = Page("old.html")
    assert page.pre == [record["parameters"]] and "This file does not tell which ones" in page.text
    assert read_map(merged / "diffuse_merged.nxs").units in ("a.u.",)


def test_what_is_left_out_of_each_image():
    """Numbers of images are their own, also where some were excluded. Records of former versions have no such plot."""
    sweep = {"first": 5, "images": 1, "pixels": [10, 10], "ratio": [1.0, 1.0]}
    images = {"image": [5, 8], "used": [70, 40], "bragg": [20, 0], "outlier": [10, 50], "untrusted": [0, 10]}
    plots = image_plots({"sweeps": [sweep]}, [{"flux": [1.0, 0.9], "images": images}])
    (masked,) = [plot for plot in plots if plot.id == "masked"]
    found = {trace["name"]: (trace["x"], trace["y"]) for trace in masked.traces}
    assert found["Bragg mask 0"] == ([5, 8], [20.0, None])  # nothing to draw on a logarithmic axis
    assert found["outliers 0"] == ([5, 8], [10.0, 50.0]) and found["untrusted 0"] == ([5, 8], [None, 10.0])
    assert plots[0].traces[0]["x"] == [5, 8]
    assert [plot.id for plot in image_plots({"sweeps": [sweep]}, [{"flux": [1.0]}])] == ["images", "pixels"]
    second = image_plots({"sweeps": [sweep, sweep]}, [{"experiment": 1, "flux": [1.0, 0.9], "images": images}])
    assert [trace["name"] for trace in second[0].traces] == ["rate 0", "flux 1", "rate 1"]
    assert second[2].traces[0]["name"] == "Bragg mask 1"


def test_correlations_of_residues_from_a_covariance():
    """Of a kernel between residues they are the kernel; of atoms, means over residues; one group has none."""
    structure = random_structure(elements="CNO" * 4, radius=4.0)
    structure = replace(structure, residue=np.repeat(["1", "2", "3", "4"], 3))
    model = Covariance(sigma=0.3, gamma=5.0, groups="residue")
    found = model.details(structure, np.zeros((2, 2)))
    centres = group_centres(structure, group_labels(structure, "residue"))
    np.testing.assert_allclose(found["correlations"], np.exp(-cdist(centres, centres) / 5.0), atol=6e-4)
    assert [name.split()[-1] for name in found["groups"]] == ["1", "2", "3", "4"]
    atoms = Covariance(sigma=0.3, gamma=5.0)
    c = np.exp(-cdist(structure.site_cart, structure.site_cart) / 5.0).reshape(4, 3, 4, 3).mean(axis=(1, 3))
    size = np.sqrt(np.diag(c))
    np.testing.assert_allclose(
        atoms.details(structure, np.zeros((2, 2)))["correlations"], c / np.outer(size, size), atol=6e-4
    )
    assert Covariance(sigma=0.3, gamma=5.0, groups="molecule").details(structure, np.zeros((2, 2))) == {}
    stretch = {"kind": "helix", "chain": found["groups"][0].split()[0], "first": "2", "last": "3"}
    (plot,) = kernel_plots(Material({"secondary_structure": [stretch]}), 1, [{}, found])
    assert plot.id == "correlations-1-1" and np.shape(plot.traces[0]["z"]) == (4, 4)
    assert [(x["x0"], x["x1"]) for x in plot.layout["shapes"][::2]] == [(0.5, 2.5)] and "helices" in plot.help
