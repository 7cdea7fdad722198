"""dials.diffuse_export as it is typed: names, columns, what it refuses; and the commands of docs/export.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cctbx import uctbx
from helpers.builders import PROVENANCE
from helpers.checkout import ROOT
from helpers.delta_pdf import moving, two_domains
from helpers.exports import measured_map
from helpers.programs import fails
from matplotlib.pyplot import close
from scipy.spatial.transform import Rotation

from dials_diffuse.cli.export import run
from dials_diffuse.files.formats import FORMATS, save_map
from dials_diffuse.maps.columns import COLUMNS, anisotropic, cropped, with_column
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.models.compute import compute_model
from dials_diffuse.models.covariance.covariance import Covariance


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name="map.nxs", crystal="trigonal", columns=None, **options):
    data = measured_map(crystal, **options)
    save_map(name, data, PROVENANCE, volume=False, collections=columns and columns(data))
    return data


def read_points(path):
    """The points of a CCP4 map, axes x, y, z, and its header as words; an own reader, by the words of the standard."""
    raw = Path(path).read_bytes()
    words, floats = np.frombuffer(raw[:1024], "<i4"), np.frombuffer(raw[:1024], "<f4")
    assert words[3] == 2 and list(words[16:19]) == [1, 2, 3] and raw[208:212] == b"MAP "
    points = np.frombuffer(raw[1024 + words[23] :], "<f4").reshape(words[2::-1][:3])
    return points.transpose(2, 1, 0), words, floats


def test_all_formats_by_name(folder):
    write(crystal="orthorhombic")
    names = [row.name for row in FORMATS if not row.needs]
    run(["map.nxs", f"format={','.join(names)}", "output.prefix=out"])
    record = json.loads(Path("diffuse_export.json").read_text())
    written = {output["kind"]: output["path"] for output in record["outputs"]}
    assert written == {row.name: f"out{row.suffix}" for row in FORMATS if row.name in names} | {
        "statistics": "diffuse_export.json"
    }
    assert all(Path(path).stat().st_size > 0 for path in written.values())
    assert record["schema"] == "dials.diffuse_export/1" and record["column"] == "intensity"


@pytest.mark.parametrize(("crystal", "suffix"), [("orthorhombic", "vti"), ("monoclinic", "vts")])
def test_vtk_follows_the_cell(folder, crystal, suffix):
    write(crystal=crystal)
    run(["map.nxs", "format=vtk"])
    assert [path.suffix for path in Path().glob("map.vt*")] == [f".{suffix}"]


def test_defaults_are_mtz_and_ccp4(folder):
    write()
    run(["map.nxs"])
    assert {path.name for path in Path().iterdir()} == {
        *("map.nxs", "map.mtz", "map.ccp4", "diffuse_export.json", "dials.diffuse_export.log")
    }


def test_columns_and_limits(folder):
    data = write(columns=lambda data: {"fit": {"model": data.intensity * 2, "n": np.arange(3)}})
    run(["map.nxs", "format=npz", "column=anisotropic", "d_max=12", "d_min=4"])
    with np.load("map_anisotropic.npz") as found:
        part = cropped(data, 12, 4)
        assert 0 < len(part.index) < len(data.index)
        np.testing.assert_array_equal(found["unique_index"], part.index)
        # of the whole map, not of what is left
        keep = np.isin(data.grid.key(data.index), data.grid.key(part.index))
        np.testing.assert_array_equal(found["unique_intensity"], anisotropic(data)[keep])
    run(["map.nxs", "format=npz", "column=fit/model"])
    with np.load("map_fit_model.npz") as found:
        np.testing.assert_array_equal(found["unique_intensity"], data.intensity * 2)


def test_every_column_has_its_values():
    data = measured_map("trigonal")
    expected = {
        "intensity": data.intensity,
        "anisotropic": anisotropic(data),
        "sigma": data.sigma,
        "weight": data.sigma**-2.0,
        "multiplicity": data.multiplicity,
        "measured": np.ones(len(data.index)),
        "half_a": data.half_a,
        "half_b": data.half_b,
        "half_difference": (data.half_a - data.half_b) / 2,
    }
    assert set(expected) == {column.name for column in COLUMNS}
    for name, values in expected.items():
        np.testing.assert_allclose(with_column(data, name).intensity, values, rtol=1e-12)
    # MTZ files and others have no errors of what is no intensity
    assert all(np.any(with_column(data, c.name).sigma) == c.halves for c in COLUMNS)
    assert with_column(data, "weight").units == "1/(a.u.)^2" and with_column(data, "multiplicity").units == ""
    assert abs(anisotropic(data).mean()) < 1e-12 < np.std(anisotropic(data)) < np.std(data.intensity)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["map.nxs", "format=pdf"], 2, ["format=pdf", "delta_pdf", "mtz_grid"]),
        (["map.nxs", "format=None"], 2, ["format=None"]),
        (["map.nxs", "map.nxs"], 2, ["2 maps"]),
        (["model.pdb"], 2, ["0 maps"]),
        (["map.nxs", "model.pdb"], 2, ["model.pdb: coordinates are for format=delta_pdf"]),
        (["map.nxs", "model.pdb", "delta_pdf.pdb=text.nxs", "format=delta_pdf"], 2, ["2 coordinate files"]),
        (["map.nxs", "model.pdb", "format=delta_pdf"], 1, ["model.pdb"]),
        (["map.nxs", "column=phase"], 1, ["column=phase", "anisotropic"]),
        (["map.nxs", "column=fit/model"], 1, ["no column fit/model", "none"]),
        (["map.nxs", "format=vti"], 1, [".vti is for right angles", "90, 90, 120"]),
        (["map.nxs", "d_min=50"], 1, ["d_min=50", "no such part"]),
        (["map.nxs", "format=nexus"], 1, ["map.nxs: the same file as the input map.nxs", "output.prefix"]),
        (["map.nxs", "output.json=map.mtz"], 1, ["map.mtz: the same file as output.json"]),
        (["map.nxs", "output.prefix=none/x"], 1, ["output.prefix", "does not exist"]),
        (["map.nxs", "format=delta_pdf", "delta_pdf.weight_at_d_min=0"], 1, ["weight_at_d_min=0"]),
        (["map.nxs", "format=delta_pdf", "delta_pdf.pdb=no.pdb"], 1, ["no.pdb"]),
        (["text.nxs"], 1, ["text.nxs"]),
    ],
)
def test_what_is_refused(folder, capsys, args, code, words):
    write()
    Path("text.nxs").write_text("no map")
    Path("model.pdb").write_text("REMARK no atoms\n")
    fails(run, args, capsys, code, words)


def test_a_disk_that_is_full_leaves_nothing(folder, capsys, monkeypatch):
    write()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dials_diffuse.files.export.arrays.np.savez_compressed", full)
    fails(run, ["map.nxs", "format=npz"], capsys, 1, ["map.npz", "the disk is full"])


# ---- |F|² on the lattice


@pytest.mark.parametrize("crystal", ["monoclinic", "trigonal", "triclinic"])
def test_squares_of_structure_factors_lie_on_the_lattice(folder, crystal):
    """|F|² of cctbx at whole indices, and where gemmi finds them in the map: at 100 s, up to a rotation of all."""
    gemmi = pytest.importorskip("gemmi", reason="GEMMI DOES NOT READ WHAT WE WRITE (extra [test])")
    from cctbx.development import random_structure

    grid = measured_map(crystal).grid
    atoms = random_structure.xray_structure(
        space_group_info=grid.space_group.info(), unit_cell=grid.unit_cell, elements=["O"] * 4, u_iso=0.1
    )
    f = atoms.structure_factors(d_min=grid.d_min, algorithm="direct").f_calc()
    f = f.select(~f.sys_absent_flags().data()).map_to_asu()
    hkl, square = np.array(list(f.indices())), np.abs(f.data().as_numpy_array()) ** 2
    n = len(hkl)
    data = DiffuseMap(grid, True, hkl * grid.subdivide, square, np.zeros(n), np.zeros(n, np.int32), at_centres=True)
    save_map("model.nxs", data, PROVENANCE)
    run(["model.nxs", "format=ccp4"])
    found = gemmi.read_ccp4_map("model.ccp4")
    found.setup(0.0)
    b = np.array(uctbx.unit_cell(grid.unit_cell).fractionalization_matrix()).reshape(3, 3).T
    every = f.expand_to_p1()
    hkl, square = np.array(list(every.indices())), np.abs(every.data().as_numpy_array()) ** 2
    inside = np.linalg.norm(hkl @ b.T, axis=1) < 1 / grid.d_min * (1 - 1e-9)
    hkl, square = hkl[inside], square[inside]
    # the rotation from cctbx's frame (a along x) to that of the file (a* along x)
    orth = np.array(found.grid.unit_cell.orth.mat.tolist())
    edges = orth / np.linalg.norm(orth, axis=0)
    turn, _ = Rotation.align_vectors(edges.T, (b / np.linalg.norm(b, axis=0)).T)
    places = 100 * turn.apply(hkl @ b.T)
    heights = [found.grid.interpolate_value(gemmi.Position(*place)) for place in places]
    # interpolation between points 1e-6 off the lattice gives what is off in height
    np.testing.assert_allclose(heights, square, rtol=0, atol=2e-5 * square.max())
    fractional = places @ np.linalg.inv(orth).T * data.grid.shape
    np.testing.assert_allclose(fractional, hkl * grid.subdivide, rtol=0, atol=1e-6 * np.abs(fractional).max())


# ---- ΔPDF


def test_delta_pdf_with_coordinates(folder, capsys):
    structure, between = two_domains()
    Path("model.pdb").write_text(structure.hierarchy.as_pdb_string(crystal_symmetry=structure.crystal_symmetry))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.2)
    data = compute_model(structure, grid, Covariance(kernel="free", matrix=moving(structure, 0.4, True))).map
    save_map("model.nxs", data, PROVENANCE)
    run(
        [
            "model.nxs",
            "format=delta_pdf",
            "delta_pdf.pdb=model.pdb",
            "delta_pdf.peaks.r_min=4",
            "delta_pdf.peaks.n=5",
            "delta_pdf.spacing=0.4",
        ]
    )
    record = json.loads(Path("diffuse_export.json").read_text())
    peaks = record["delta_pdf"]["peaks"]
    assert len(peaks) == 5 and peaks[0]["height"] < 0 and peaks[0]["sigma"] is None
    assert abs(peaks[0]["length"] - np.linalg.norm(between)) < 0.7
    assert peaks[0]["nearest"][0]["distance"] < 1 and peaks[0]["n_pairs"] > 0
    assert record["delta_pdf"]["filled"]["measured"] == pytest.approx(1)
    log = Path("dials.diffuse_export.log").read_text()
    assert "100.0% measured" in log and "nearest pair of atoms" in log and "A/UNK 1/S" in log
    assert not Path("model_delta_pdf_noise.ccp4").exists()

    # in the file: the point of each peak is the one that a viewer shows at this vector
    points, words, floats = read_points("model_delta_pdf.ccp4")
    start, intervals, cell = words[4:7], words[7:10], floats[10:16]
    a, b, c, *angles = structure.unit_cell
    np.testing.assert_allclose(cell, (2 * a, 2 * b, 2 * c, *angles), rtol=1e-6)
    assert tuple(intervals) == points.shape == tuple(-2 * start)
    orth = np.array(uctbx.unit_cell(tuple(map(float, cell))).orthogonalization_matrix()).reshape(3, 3)
    for peak in peaks:
        index = np.rint(np.linalg.solve(orth, peak["vector"]) * intervals).astype(int) - start
        assert points[tuple(index)] == pytest.approx(peak["height"], rel=0.15)
    gemmi = pytest.importorskip("gemmi", reason="GEMMI DOES NOT READ WHAT WE WRITE (extra [test])")
    found = gemmi.read_ccp4_map("model_delta_pdf.ccp4")
    found.setup(0.0)
    for peak in peaks:
        value = found.grid.interpolate_value(gemmi.Position(*peak["vector"]))
        assert value == pytest.approx(peak["height"], rel=0.06)


def test_delta_pdf_of_a_measured_map_has_noise_and_its_sigma(folder):
    write(crystal="monoclinic", share=0.9)
    run(["map.nxs", "format=delta_pdf", "delta_pdf.peaks.min_sigma=0", "delta_pdf.undo_voxels=False"])
    record = json.loads(Path("diffuse_export.json").read_text())["delta_pdf"]
    noise, _, floats = read_points("map_delta_pdf_noise.ccp4")
    assert floats[54] == pytest.approx(noise.std(), rel=1e-5)
    assert np.median(record["sigma"]["sigma"]) == pytest.approx(noise.std(), rel=0.2)
    assert record["parameters"]["bragg"] == "neighbours"
    filled = record["filled"]
    assert filled["measured"] < 0.9 and filled["measured"] + filled["neighbours"] + filled["shell"] == pytest.approx(1)
    assert all(peak["sigma"] > 0 for peak in record["peaks"])


# ---- the page


@pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")  # of pandas 1.5
def test_the_python_of_the_page_runs(folder):
    """The blocks of docs/export.md, on a small file of that name; test_guide.py runs its commands."""
    structure, _ = two_domains()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 4.0)
    model = compute_model(structure, grid, Covariance(sigma=0.2, gamma=5)).map
    n = np.ones(len(model.index), np.int32)
    data = DiffuseMap(grid, True, model.index, model.intensity, 0.1 * abs(model.intensity) + 1, n)
    save_map("diffuse_merged.nxs", data, PROVENANCE)
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    run(["diffuse_merged.nxs", "format=npz,mtz_grid,vts"])
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict = {}
        try:
            exec(compile(block, "docs/export.md", "exec"), names)
        except ImportError as error:
            pytest.skip(f"DOCS/EXPORT.MD NOT RUN TO ITS END: {error} (extra [test])")
        finally:
            close("all")
    assert names["hkl"].shape == (len(model.index), 3) and len(names["table"]) == len(model.index)
    assert set(re.findall(r"`format=(\w+)`", text)) >= {row.name for row in FORMATS} - {"nexus", "mrc", "vti", "vts"}
