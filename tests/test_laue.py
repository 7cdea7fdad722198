"""Which Laue group do observations have? Simulated sweeps of known symmetry, under other names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from cctbx import sgtbx
from helpers.builders import PROVENANCE, small_grid
from helpers.programs import fails
from helpers.sweeps import random_intensity, summary, sweep_rows, write_sweeps

from dials_diffuse.cli import merge as cli_merge
from dials_diffuse.cli import scale as cli_scale
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.maps.lattice import in_words, lattice_group, lattice_rotations
from dials_diffuse.maps.laue_check import check_laue_group
from dials_diffuse.maps.laue_group import FAILS, HOLDS, UNDECIDED, find_laue_group
from dials_diffuse.maps.mates import SAMPLE_COLUMNS, LowAngles, _number, _representatives, _Table
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.report.symmetry import symmetry_text
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters

TETRAGONAL = (20, 20, 26, 90, 90, 90)
HEXAGONAL = (20, 20, 26, 90, 90, 120)
CUBIC = (20, 20, 20, 90, 90, 90)


def absorption(x, y, t, s):
    """By a factor of seven over the detector, turning with the crystal, which loses 40 %."""
    return np.exp(-(x - 0.5) * np.cos(6 * t) - 0.8 * (y - 0.5) * np.sin(5 * t)) * (1 - 0.4 * t)


def drifting_background(x, y, t, s):
    return np.exp(-5 * s) * (3 + 2 * np.cos(5 * t))


def simulated(symbol, cell, subdivide=(2, 2, 2), spread=0.3, seed=0, **options):
    """Grid with the true symmetry, and rows of a sweep."""
    grid = small_grid(symbol, cell, subdivide)
    intensity = partial(random_intensity, spread=spread)
    return grid, sweep_rows(grid, intensity, np.random.default_rng(seed), **options)


def declared(grid, symbol):
    return replace(grid, hall_symbol=sgtbx.space_group_info(symbol).group().type().hall_symbol())


def find(grid, *sweeps):
    rows = {name: np.concatenate([s[name] for s in sweeps]) for name in SAMPLE_COLUMNS}
    rows["experiment"] = np.repeat(np.arange(len(sweeps)), [len(s) for s in sweeps])
    return find_laue_group(rows, grid)


@pytest.mark.parametrize(
    "true, cell, given, laue, failing",
    [
        ("P 1", TETRAGONAL, "P 4 2 2", "P -1", 6),
        ("P 4", TETRAGONAL, "P 4 2 2", "P 4/m", 4),
        ("P 1 2 1", (20, 23, 26, 90, 90, 90), "P 2 2 2", "P 1 2/m 1", 2),
        ("P 3", HEXAGONAL, "P 6 2 2", "P -3", 8),
        ("P 3 2 1", HEXAGONAL, "P 6 2 2", "P -3 m 1", 5),
        ("P 3 1 2", HEXAGONAL, "P 6 2 2", "P -3 1 m", 5),
        ("P 3 1 2", HEXAGONAL, "P 3 2 1", "P -3 1 m", 3),
        ("P 2 2 2", CUBIC, "P 2 3", "P m m m", 4),
        ("P 1", CUBIC, "P 1", "P -1", 0),
        ("P 3", HEXAGONAL, "P 3", "P -3", 0),
        ("P 2 3", CUBIC, "P 2 3", "P m -3", 0),
        ("C 2 2 2", (20, 34.64, 24, 90, 90, 90), "C 2 2 2", "C m m m", 0),
        ("I 1 2 1", (20, 23, 26, 90, 95, 90), "I 1 2 1", "I 1 2/m 1", 0),
    ],
)
def test_the_true_laue_group_is_found(true, cell, given, laue, failing):
    grid, rows = simulated(true, cell)
    test = find(declared(grid, given), rows)
    assert test.recommended.laue_group == laue and test.recommended.verdict == HOLDS
    assert len(test.failing) == failing
    own = lattice_group(grid)
    true_operators = {own.operator(i) for i in own.declared}
    for o in test.operators:
        assert o.verdict == (HOLDS if o.operator in true_operators else FAILS)
        assert abs(o.ratio - (o.operator in true_operators)) < max(4 * o.esd, 0.25)
        assert 0.9 < o.cc_expected < 1.05
    assert sum(g.likelihood for g in test.groups) == pytest.approx(1)


def test_absorption_drift_and_noise_are_no_lack_of_symmetry():
    options = {"factor": absorption, "added": drifting_background, "scale": 20.0}
    test = find(*simulated("P 4 2 2", TETRAGONAL, **options))
    assert not test.failing and test.recommended.laue_group == "P 4/m m m"
    assert all(o.verdict == HOLDS and o.cc < 0.85 for o in test.operators)  # most is noise: the ratio sees through it


@pytest.mark.parametrize("turn, spread, scale", [(180.0, 0.0, 20.0), (180.0, 0.02, 1.0), (10.0, 0.3, 300.0)])
def test_nothing_is_decided_without_signal_or_overlap(turn, spread, scale):
    grid, rows = simulated("P 4", TETRAGONAL, spread=spread, scale=scale, turn=turn, factor=absorption)
    test = find(declared(grid, "P 4 2 2"), rows)
    assert test.recommended is None and not test.failing and not test.is_more
    assert {o.verdict for o in test.operators} == {UNDECIDED}
    assert "The Laue group is not decided" in symmetry_text(test)


def test_false_alarms():
    """Weak data of the declared symmetry, many times: never an error."""
    grid = small_grid("P 4 2 2", TETRAGONAL, d_min=4.0)
    for seed in range(16):
        rng = np.random.default_rng(seed)
        rows = sweep_rows(grid, partial(random_intensity, spread=0.1, seed=seed), rng, scale=rng.choice([3.0, 30.0]))
        assert not find(grid, rows).failing


def test_sweeps_that_are_indexed_otherwise_do_not_spoil_each_other():
    """Pairs come from single sweeps, where there are enough; the scale of each sweep is its own."""
    grid, first = simulated("P 4", TETRAGONAL)
    _, second = simulated("P 4", TETRAGONAL, seed=1, scale=1000.0, start=90.0)
    h, k, l = second["index"].T
    second["index"] = np.transpose([k, h, -l])
    test = find(declared(grid, "P 4 2 2"), first, second)
    assert test.within_sweeps and test.recommended.laue_group == "P 4/m" and len(test.failing) == 4


def test_small_wedges_are_compared_with_each_other():
    grid = small_grid("P 4", TETRAGONAL)
    wedges = [
        sweep_rows(grid, random_intensity, np.random.default_rng(i), turn=8.0, start=45.0 * i, seed=i)
        for i in range(16)
    ]
    test = find(declared(grid, "P 4 2 2"), *wedges)
    assert not test.within_sweeps and test.recommended.laue_group == "P 4/m" and test.failing


def test_unequal_subdivision_forbids_some_rotations():
    grid, rows = simulated("P 2 2 2", CUBIC, (2, 2, 3))
    test = find(grid, rows)
    assert len(test.untested) == 16 and test.recommended.laue_group == "P m m m"
    assert "Not tested" in symmetry_text(test) and "k,l,h" in symmetry_text(test)


def test_centred_cells_on_lattices_with_more_symmetry():
    """Rotations that are fractions in the setting of the cell are told, and do not stop the search for settings."""
    grid = small_grid("C 2 2 21", (10, 10 * 3**0.5, 12, 90, 90, 90))
    lattice = lattice_group(grid)
    assert len(lattice_rotations(grid)) == 12 and len(lattice.rotations) == 4 and len(lattice.untested) == 8
    assert "1/2" in in_words(lattice.untested[0])
    assert [s.operator for s in alternative_settings(grid)] == ["h,k,l"]


@pytest.mark.parametrize("symbol, cell", [("P 4", TETRAGONAL), ("P 3", HEXAGONAL), ("R 3 2 :H", HEXAGONAL)])
def test_groups_of_a_lattice(symbol, cell):
    """Products against matrices, groups are closed, and the symbols that users are told give the group back."""
    lattice = lattice_group(small_grid(symbol, cell))
    r = lattice.rotations
    for i, j in product(range(len(r)), repeat=2):
        np.testing.assert_array_equal(r[lattice.product[i, j]], r[i] @ r[j])
    groups = lattice.subgroups()
    assert groups[0] == {0} and len(groups[-1]) == len(r) and lattice.declared in groups
    for group in groups:
        assert {int(lattice.product[i, j]) for i, j in product(group, repeat=2)} == group
        for name in (lattice.laue_symbol(group), lattice.space_group_symbol(group).replace(" ", "")):
            assert lattice.members(sgtbx.space_group_info(name).group()) == group
    assert lattice.space_group_symbol(lattice.declared) == symbol


def test_sums_over_pairs_equal_loops():
    grid, rows = simulated("P 3", HEXAGONAL, turn=40.0)
    lattice = lattice_group(grid)
    rng = np.random.default_rng(0)
    index = rows["index"][rng.random(len(rows)) < 0.2]
    operator, inverted, unique = _representatives(index, lattice)
    keep = operator >= 0
    index, operator, inverted, unique = index[keep], operator[keep], inverted[keep], unique[keep]
    n = len(index)
    y, weight, block = rng.normal(size=n), rng.uniform(0.5, 1, n), unique[:, 0] // 4
    table = _Table(lattice, _number(*unique.T), operator, np.arange(n), _number(block))
    found = table.sums(y, weight, True)
    rows_of: dict = {}
    for i, h in enumerate(index):
        rows_of.setdefault(max(tuple(h), tuple(-h)), []).append(i)
    same = np.zeros(2)
    for members in rows_of.values():
        for i, j in product(members, repeat=2):
            same += (i != j) * weight[i] * weight[j] * np.array([y[i] * y[j], 1])
    np.testing.assert_allclose(found.same.sum(axis=0), same)
    for number, rotation in enumerate(lattice.on_voxels):
        total, pairs = np.zeros(2), 0
        for h, members in rows_of.items():
            image = np.array(h) @ rotation
            others = rows_of.get(max(tuple(image), tuple(-image)), [])
            pairs += bool(others)
            for i, j in product(members, others):
                total += weight[i] * weight[j] * np.array([y[i] * y[j], 1])
        np.testing.assert_allclose(found.mates[:, number].sum(axis=0), total)
        assert found.n_pairs[number] == pairs


def test_the_highest_group_that_holds_is_named(tmp_path):
    """In both libraries: P4 given as P4322 names P43; as it is, with a warning, when the user insists."""
    grid, rows = simulated("P 4", TETRAGONAL)
    path = write_sweeps(tmp_path / "a.h5", declared(grid, "P 43 2 2"), rows)
    scaling = ScalingParameters(terms=("b",))

    def run(merge: bool, **options):
        if merge:
            return merge_observations([path], MergeParameters(**options))
        parameters = replace(scaling, **options)
        return scale_observations([path], parameters, tmp_path / "scaled.h5", PROVENANCE)

    for merge in (True, False):
        with pytest.raises(DiffuseError) as error:
            run(merge)
        text = str(error.value)
        assert str(path) in text and "space group P 43 2 2 is too high" in text and "give space_group=P43" in text
        assert "-h,k,-l correlates by -0.1" in text and "is expected" in text and "symmetry.check=warn" in text
        assert not run(merge, space_group="P43").symmetry.failing
        forced = run(merge, symmetry_check="warn")
        assert forced.symmetry.failing and any("too high" in w for w in forced.warnings)
        assert run(merge, symmetry_check="none").symmetry is None
    scaled = tmp_path / "scaled.h5"
    run(False, symmetry_check="warn")
    with pytest.raises(DiffuseError, match=r"scaled\.h5: space group P 43 2 2 is too high"):
        merge_observations([scaled], MergeParameters())


def test_a_group_that_is_too_low_is_a_note(tmp_path):
    grid, rows = simulated("P 4 2 2", TETRAGONAL)
    path = write_sweeps(tmp_path / "a.h5", declared(grid, "P 1"), rows)
    (note,) = merge_observations([path], MergeParameters()).warnings
    assert "space_group=P422 would average 8 times more" in note and "Laue group P 4/m m m" in note


def test_programs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid, rows = simulated("P 4", TETRAGONAL)
    write_sweeps("a.h5", declared(grid, "P 4 2 2"), rows)
    for run in (cli_merge.run, cli_scale.run):
        assert "a.h5: space group P 4 2 2 is too high" in fails(run, ["a.h5"], capsys)
    cli_merge.run(["a.h5", "space_group=P4", "output.png=None"])
    record = json.loads((tmp_path / "diffuse_merged.json").read_text())["symmetry"]
    assert record["decided"] and not record["too_high"]
    assert record["recommended"]["laue_group"] == record["declared"]["laue_group"] == "P 4/m"
    assert {o["verdict"] for o in record["operators"]} == {HOLDS, FAILS}
    log = (tmp_path / "dials.diffuse_merge.log").read_text()
    assert "Likeliest Laue group: P 4/m" in log
    cli_merge.run(["a.h5", "symmetry.check=none", "output.png=None"])
    assert json.loads((tmp_path / "diffuse_merged.json").read_text())["symmetry"] is None


def test_rows_pass_by_unchanged(tmp_path):
    """The collector sees all low angles, whatever the blocks, with the numbers of experiments among all files."""
    grid, rows = simulated("P 4", TETRAGONAL)
    path = write_sweeps(tmp_path / "a.h5", grid, rows, experiments=[summary()])
    with ObservationFile(path) as file:
        blocks = [(3, block) for _, block in file.chunks(*SAMPLE_COLUMNS, size=1000)]
    low = LowAngles(grid, 8 * 250_000)
    assert low.s_max == pytest.approx(0.5 / grid.d_min)
    assert [b for b in low.watch(blocks)] == blocks
    found = low.rows()
    assert set(found["experiment"]) == {3} and len(found["s"]) == np.count_nonzero(rows["s"] <= low.s_max)
    assert check_laue_group(low, "none", path) == (None, [])
