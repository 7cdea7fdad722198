"""Maps in the formats of other programs, read back with the libraries of these programs."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from cctbx import sgtbx, uctbx
from helpers.builders import PROVENANCE
from helpers.exports import CRYSTALS, expanded, measured_map

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.formats import FORMATS, format_of, save_map
from dials_diffuse.maps.symmetry import map_to_asu

EVERY = pytest.mark.parametrize("crystal", CRYSTALS)


def library(name: str):
    """A package that reads a format; without it the tests that need it are skipped, and say so."""
    try:
        return __import__(name, fromlist=["_"])
    except ImportError as error:
        pytest.skip(f"{name.upper()} DOES NOT READ WHAT WE WRITE: {error} (extra [test])")


def write(folder, data, suffix):
    path = folder / f"map{suffix}"
    save_map(path, data, PROVENANCE)
    return str(path)


def assert_same_voxels(data, found, fill=np.nan, values=None, decimals=7):
    """The volume that a reader found, axes h, k, l, is the map expanded voxel by voxel, with ``fill`` elsewhere."""
    assert found.shape == data.grid.shape
    expected = np.full(found.shape, float(fill))
    for index, value in expanded(data, values).items():
        place = tuple(np.array(index) + data.grid.extent)
        if all(0 <= p < n for p, n in zip(place, found.shape)):
            expected[place] = value
    np.testing.assert_allclose(found, expected, rtol=10.0**-decimals)


# ---- MTZ


@EVERY
@pytest.mark.parametrize("friedel", [True, False], ids=["friedel", "anomalous"])
def test_mtz_grid_with_gemmi_and_iotbx(tmp_path, crystal, friedel):
    gemmi = library("gemmi")
    data = measured_map(crystal, friedel)
    path = write(tmp_path, data, ".supercell.mtz")
    mtz = gemmi.read_mtz_file(path)
    a, b, c, *angles = data.grid.unit_cell
    cell = [a * data.grid.subdivide[0], b * data.grid.subdivide[1], c * data.grid.subdivide[2], *angles]
    np.testing.assert_allclose(mtz.cell.parameters, cell, rtol=1e-6)
    # gemmi knows the group by its operators: the point group of the crystal, and nothing is a systematic absence
    operations = mtz.spacegroup.operations()
    laue = {tuple(map(tuple, op.rot)) for op in operations.sym_ops}
    crystals = gemmi.find_spacegroup_by_name(data.grid.space_group_symbol).operations()
    assert laue == {tuple(map(tuple, op.rot)) for op in crystals.sym_ops}
    hkl = mtz.make_miller_array()
    assert not any(operations.is_systematically_absent(h) for h in hkl.tolist())
    assert len(operations.cen_ops) == 1

    from iotbx.reflection_file_reader import any_reflection_file

    arrays = {a.info().labels[0]: a for a in any_reflection_file(path).as_miller_arrays(merge_equivalents=False)}
    found = arrays["I" if friedel else "I(+)"]
    assert found.is_xray_intensity_array() and found.anomalous_flag() != friedel
    index, _ = map_to_asu(data.index, found.space_group(), friedel)
    expected = dict(zip(map(tuple, index.tolist()), zip(data.intensity, data.sigma)))
    assert len(expected) == found.size()
    for h, value, sigma in zip(found.indices(), found.data(), found.sigmas()):
        assert (value, sigma) == pytest.approx(expected[h], rel=1e-6)
    labels = mtz.column_labels()
    if friedel:
        kinds = dict(zip(labels, [column.type for column in mtz.columns]))
        assert kinds == {"H": "H", "K": "H", "L": "H", "I": "J", "SIGI": "Q"} | {
            "I_HALF_A": "J",
            "I_HALF_B": "J",
            "MULT": "I",
        }
        columns = {label: np.array(mtz.column_with_label(label)) for label in labels}
        at = [dict(zip(map(tuple, index.tolist()), range(len(index))))[h] for h in map(tuple, hkl.tolist())]
        np.testing.assert_allclose(columns["I_HALF_A"], data.half_a[at], rtol=1e-6)
        np.testing.assert_allclose(columns["I_HALF_B"], data.half_b[at], rtol=1e-6)
        np.testing.assert_array_equal(columns["MULT"], data.multiplicity[at])
    history = " ".join(mtz.history)
    assert data.grid.space_group_symbol in history and "a.u." in history


@EVERY
def test_mtz_of_whole_indices(tmp_path, crystal):
    gemmi = library("gemmi")
    data = measured_map(crystal)
    mtz = gemmi.read_mtz_file(write(tmp_path, data, ".mtz"))
    np.testing.assert_allclose(mtz.cell.parameters, data.grid.unit_cell, rtol=1e-6)
    assert mtz.spacegroup.number == data.grid.space_group.info().type().number()
    whole = {h: value for h, value in expanded(data).items() if all(i % n == 0 for i, n in zip(h, data.grid.subdivide))}
    found = dict(zip(map(tuple, mtz.make_miller_array().tolist()), np.array(mtz.column_with_label("I"))))
    assert len(found) == np.all(data.index % data.grid.subdivide == 0, axis=1).sum() > 10
    for h, value in found.items():
        assert value == pytest.approx(whole[tuple(np.array(h) * data.grid.subdivide)], rel=1e-6)


@pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")  # of pandas 1.5
def test_reciprocalspaceship_reads_typed_columns(tmp_path):
    rs = library("reciprocalspaceship")
    data = measured_map("trigonal")
    found = rs.read_mtz(write(tmp_path, data, ".supercell.mtz"))
    assert found.dtypes["I"].name == "Intensity" and found.dtypes["SIGI"].name == "Stddev"
    assert len(found) == len(data.index) and found.merged
    np.testing.assert_allclose(1 / found.compute_dHKL()["dHKL"].max(), data.grid.s_magnitude(data.index).min(), 1e-5)


# ---- volumes


def test_nexus_with_nexusformat(tmp_path):
    tree = library("nexusformat.nexus").nxload(str(tmp_path / write(tmp_path, measured_map("monoclinic"), ".nxs")))
    data, shown = measured_map("monoclinic"), tree.get_default()
    assert tree["entry"].nxclass == "NXentry" and shown.nxclass == "NXdata" and shown.nxsignal.nxname == "intensity"
    assert_same_voxels(data, shown.nxsignal.nxvalue)
    assert_same_voxels(data, shown["multiplicity"].nxvalue, fill=0, values=data.multiplicity)
    for axis, name, centres in zip(shown.nxaxes, "hkl", data.grid.axes()):
        assert axis.nxname == name
        np.testing.assert_array_equal(axis.nxvalue, centres)
    np.testing.assert_array_equal(tree["entry/sample/unit_cell"].nxvalue, data.grid.unit_cell)
    assert tree["entry/sample/space_group"].nxvalue == "C 1 2 1"


@EVERY
@pytest.mark.parametrize("suffix", [".ccp4", ".mrc"])
def test_ccp4_with_gemmi(tmp_path, crystal, suffix):
    gemmi = library("gemmi")
    data = measured_map(crystal)
    found = gemmi.read_ccp4_map(write(tmp_path, data, suffix))
    assert [found.header_i32(i) for i in (5, 6, 7)] == [-m for m in data.grid.extent]
    assert [found.header_i32(i) for i in (8, 9, 10)] == list(data.grid.shape)
    assert_same_voxels(data, np.array(found.grid.array), fill=0)
    # the grid that gemmi makes of the file: a step along an axis is a step of voxels in reciprocal space
    found.setup(0.0)
    steps = np.array(found.grid.unit_cell.orth.mat.tolist()) / np.array(data.grid.shape)
    metric = data.grid.reciprocal_matrix / data.grid.subdivide
    metric = metric.T @ metric
    np.testing.assert_allclose(steps.T @ steps / 100**2, metric, rtol=0, atol=1e-6 * metric.max())
    h = data.index[len(data.index) // 2]
    assert found.grid.get_value(*h.tolist()) == pytest.approx(expanded(data)[tuple(h.tolist())], rel=1e-6)


def test_ccp4_with_mrcfile_and_iotbx(tmp_path):
    mrcfile = library("mrcfile")
    data = measured_map("trigonal")
    path = write(tmp_path, data, ".mrc")
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert_same_voxels(data, file.data.transpose(2, 1, 0), fill=0)
        assert "1 Angstrom here = 0.01 1/Angstrom" in b" ".join(file.header.label.tolist()).decode()

    from iotbx.ccp4_map import map_reader

    found = map_reader(file_name=path)
    assert found.space_group_number == 1
    reciprocal = uctbx.unit_cell(data.grid.unit_cell).reciprocal_parameters()
    np.testing.assert_allclose(found.unit_cell_parameters[3:], reciprocal[3:], rtol=1e-6)
    assert_same_voxels(data, found.map_data().as_numpy_array(), fill=0)


@EVERY
def test_vtk(tmp_path, crystal):
    pyvista = library("pyvista")
    data = measured_map(crystal)
    right = all(angle == 90 for angle in data.grid.unit_cell[3:])
    for suffix in (".vts", ".vti"):
        if suffix == ".vti" and not right:
            with pytest.raises(DiffuseError, match=r"right angles.*107|right angles.*120|right angles.*95"):
                write(tmp_path, data, suffix)
            assert not list(tmp_path.glob("*.vti"))
            continue
        found = pyvista.read(write(tmp_path, data, suffix))
        assert tuple(found.dimensions) == data.grid.shape
        for name, fill in (("intensity", np.nan), ("sigma", np.nan), ("multiplicity", 0)):
            values = found[name].reshape(data.grid.shape, order="F")
            assert_same_voxels(data, values, fill=fill, values=getattr(data, name))
        axes = np.meshgrid(*[range(-m, m + 1) for m in data.grid.extent], indexing="ij")
        points = found.points.reshape(*data.grid.shape, 3, order="F")
        np.testing.assert_allclose(points, data.grid.s(np.stack(axes, axis=-1)), atol=1e-6)


@EVERY
def test_npz(tmp_path, crystal):
    data = measured_map(crystal)
    with np.load(write(tmp_path, data, ".npz"), allow_pickle=False) as found:
        assert_same_voxels(data, found["intensity"])
        for axis, name in enumerate("hkl"):
            np.testing.assert_array_equal(found[name], data.grid.axes()[axis])
        np.testing.assert_array_equal(found["unique_index"], data.index)
        np.testing.assert_array_equal(found["unique_half_b"], data.half_b)
        assert sgtbx.space_group(str(found["hall_symbol"])) == data.grid.space_group
        np.testing.assert_array_equal(found["unit_cell"], data.grid.unit_cell)
        assert str(found["units"]) == "a.u."


@EVERY
def test_yell(tmp_path, crystal):
    data = measured_map(crystal)
    with h5py.File(write(tmp_path, data, ".yell.h5")) as found:
        assert found["format"][()] == b"Yell 1.0" and found.attrs["filetype"] == "Yell 1.0"
        n = np.array(found["data"].shape)
        assert np.all(n % 2 == 0)
        # Yell has the origin of reciprocal space in the point N/2 (from 0)
        zero = found["lower_limits"][()] + found["step_sizes"][()] * n / 2
        np.testing.assert_allclose(zero, 0, atol=1e-12)
        np.testing.assert_allclose(found["step_sizes"][()] * data.grid.subdivide, 1)
        values = np.where(found["measured"][()], found["data"][()], np.nan)
        assert np.all(np.isfinite(found["data"][()])) and not found["is_direct"][()]
        assert np.all(np.isnan(values[0])) and np.all(np.isnan(values[:, 0])) and np.all(np.isnan(values[..., 0]))
        assert_same_voxels(data, values[1:, 1:, 1:])
        cell = uctbx.unit_cell(tuple(found["unit_cell"][()]))
        np.testing.assert_allclose(np.sqrt(np.diag(found["metric_tensor"][()])), cell.parameters()[:3])


@EVERY
def test_lunus_by_its_own_rules(tmp_path, crystal):
    """What lreadlt.c and lwritehkl.c make of the file."""
    data = measured_map(crystal)
    raw = (tmp_path / write(tmp_path, data, ".lat")).read_bytes()
    n, bounds = struct.unpack("<3I", raw[:12]), struct.unpack("<6f", raw[12:36])
    values = struct.unpack(f"<{n[0] * n[1] * n[2]}f", raw[36:])
    single = np.float32
    scale = [single((single(high) - single(low)) / single(m)) for low, high, m in zip(bounds[::2], bounds[1::2], n)]
    origin = [int(-single(low) / step + single(0.5)) for low, step in zip(bounds[::2], scale)]
    np.testing.assert_allclose(scale, 1 / np.array(data.grid.subdivide), rtol=1e-6)
    seen = {}
    for i in range(n[0]):
        for j in range(n[1]):
            for k in range(n[2]):
                value = values[k * n[1] * n[0] + j * n[0] + i]
                if value != -32768:
                    seen[i - origin[0], j - origin[1], k - origin[2]] = value
    assert seen == pytest.approx(expanded(data), rel=1e-6)


# ---- tables


@EVERY
def test_csv(tmp_path, crystal):
    data = measured_map(crystal)
    path = write(tmp_path, data, ".csv")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if not line.startswith("#")]
    assert_same_table(data, np.genfromtxt(table, delimiter=",", names=True))
    head = "\n".join(lines[: len(lines) - len(table)]) + "\n"
    assert f"# space_group: {data.grid.space_group_symbol}\n" in head and "# units: a.u.\n" in head


def assert_same_table(data, found):
    for axis, name in enumerate("hkl"):
        np.testing.assert_array_equal(found[f"index_{name}"], data.index[:, axis])
        np.testing.assert_array_equal(found[name], data.index[:, axis] / data.grid.subdivide[axis])
    for name in ("intensity", "sigma", "multiplicity", "half_a", "half_b"):
        np.testing.assert_array_equal(found[name], getattr(data, name))
    np.testing.assert_array_equal(found["s"], data.grid.s_magnitude(data.index))


def test_parquet(tmp_path):
    parquet = library("pyarrow.parquet")
    data = measured_map("monoclinic")
    table = parquet.read_table(write(tmp_path, data, ".parquet"))
    assert_same_table(data, {name: table[name].to_numpy() for name in table.column_names})
    assert table["half_b"].null_count == np.isnan(data.half_b).sum() > 0
    assert table.schema.metadata[b"space_group"] == b"C 1 2 1"


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DiffuseError, match=r"map\.parquet: Parquet needs pyarrow"):
        write(tmp_path, measured_map("triclinic"), ".parquet")
    assert not list(tmp_path.iterdir())


# ---- names


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.mtz", "mtz"),
        ("a.SUPERCELL.MTZ", "mtz_grid"),
        ("supercell.mtz", "mtz"),
        ("a.yell.h5", "yell"),
        ("a.h5", "nexus"),
    ],
)
def test_the_longest_suffix_decides(name, found):
    assert format_of(name).name == found


def test_volumes_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dials_diffuse.memory.total_memory", lambda: 1000)
    data = measured_map("triclinic")
    for row in FORMATS:
        if row.name in ("ccp4", "mrc", "vts", "npz", "yell", "lunus"):
            with pytest.raises(DiffuseError, match="voxels of a whole map need about"):
                save_map(tmp_path / f"map{row.suffix}", data, PROVENANCE)
    assert not list(tmp_path.iterdir())
