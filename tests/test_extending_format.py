"""A format for maps is a file and a row: programs and library write it."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from helpers.builders import PROVENANCE, all_voxels, observation_rows, small_grid, true_intensity, write_rows
from helpers.extending import Extended

from dials_diffuse.files.formats import FORMATS, format_of, save_map
from dials_diffuse.files.nexus import read_map, write_map
from dials_diffuse.maps.map import DiffuseMap

GRID = small_grid("P 41")

TOY = '''"""Maps as lines of text: Miller indices, intensity, sigma."""

from dials_diffuse.files.atomic import atomic_path


def write_toy(path, data, provenance, volume=True, collections=None) -> None:
    with atomic_path(path) as temporary, open(temporary, "w") as handle:
        handle.write(f"# {provenance.program}: {data.grid.space_group_symbol}, {data.units}\\n")
        for (h, k, l), intensity, sigma in zip(data.index / data.grid.subdivide, data.intensity, data.sigma):
            handle.write(f"{h} {k} {l} {float(intensity)!r} {float(sigma)!r}\\n")
'''
ROW = '    MapFormat("toy", ".toy", "Lines of text.", "dials_diffuse.files.toy:write_toy"),'


SCRIPT = """
from dials_diffuse.cli.merge import phil_scope
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.merging.laue import MergeParameters, merge_observations

merged = merge_observations(["diffuse_integrated.h5"], MergeParameters()).map
for name in ("map.nxs", "MAP.TOY"):
    save_map(name, merged, Provenance("a script", "DIALS", ""), volume=False)
print(phil_scope.as_str(attributes_level=2))
"""


def test_program_and_library_write_a_new_format(tmp_path):
    package = Extended(tmp_path)
    package.add_file("files/toy.py", TOY)
    package.add_row("files/formats.py", 'MapFormat("nexus"', ROW)
    index = np.tile(all_voxels(GRID), (2, 1))
    rows = observation_rows(GRID, index, true_intensity(GRID, index), np.random.default_rng(0), scale=30)
    write_rows(tmp_path / "diffuse_integrated.h5", GRID, rows)
    package.program("merge", "diffuse_integrated.h5", "output.map=x.toy")
    assert ".toy: Lines of text." in package.run("-c", SCRIPT).stdout
    data = read_map(tmp_path / "map.nxs")
    for name, program in (("x.toy", "dials.diffuse_merge"), ("MAP.TOY", "a script")):
        head, *lines = (tmp_path / name).read_text().splitlines()
        assert head == f"# {program}: P 41, a.u."
        numbers = np.array([[float(word) for word in line.split()] for line in lines])
        np.testing.assert_array_equal(numbers[:, :3], data.index / GRID.subdivide)
        np.testing.assert_array_equal(numbers[:, 3], data.intensity)
        np.testing.assert_array_equal(numbers[:, 4], data.sigma)


def test_no_two_rows_have_a_name_or_a_suffix():
    assert len({row.name for row in FORMATS}) == len({row.suffix for row in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_every_row_can_write(tmp_path, row):
    index = all_voxels(GRID)[:0]
    data = DiffuseMap(GRID, True, index, *np.zeros((2, 0)), np.zeros(0, np.int32))
    assert row.suffix == row.suffix.lower() and row.suffix.startswith(".") and row.about.endswith(".")
    assert format_of(f"a.b{row.suffix.upper()}") is row
    if row.needs:
        try:
            import_module(row.needs)
        except ImportError as error:
            pytest.skip(f"FORMAT {row.name} NOT WRITTEN: {error} (extra [test])")
    row.write(tmp_path / f"a{row.suffix}", data, PROVENANCE, True, None)
    assert (tmp_path / f"a{row.suffix}").stat().st_size > 0


@pytest.mark.parametrize("name", ["map", "map.h5", "map.nxs", "map.nxs.1"])
def test_other_names_are_nexus(tmp_path, name):
    index = all_voxels(GRID)[:3]
    data = DiffuseMap(GRID, True, index, np.arange(3.0), np.ones(3), np.ones(3, np.int32))
    save_map(tmp_path / name, data, PROVENANCE, True, {"fit": {"model": np.arange(3)}})
    write_map(tmp_path / "expected", data, PROVENANCE, True, {"fit": {"model": np.arange(3)}})
    np.testing.assert_array_equal(read_map(tmp_path / name).intensity, data.intensity)
    assert (tmp_path / name).stat().st_size == (tmp_path / "expected").stat().st_size
