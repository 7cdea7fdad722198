"""Symmetry on voxel indices against cctbx, for every space group and every setting of its table."""

from __future__ import annotations

import numpy as np
import pytest
from cctbx import miller, sgtbx
from cctbx.array_family import flex
from helpers.builders import all_voxels, small_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from dials_diffuse.maps.symmetry import fill_volume, laue_operators, map_to_asu, possible_voxels, unique_voxels

#: settings that the table of symbols does not hold
CHANGED_BASES = [
    ("P 4", "a+b,a-b,c"),
    ("C 1 2 1", "1/2*a+1/2*b,-1/2*a+1/2*b,c"),
    ("F 4 3 2", "1/2*b+1/2*c,1/2*a+1/2*c,1/2*a+1/2*b"),
    ("P 1 21 1", "b,c,a"),
    ("P 1 21 1", "a+c,b,c"),
    ("P 61 2 2", "c,a,b"),
    ("I 41", "a,b,1/2*a+1/2*b+1/2*c"),
    ("R 3 2 :H", "2/3*a+1/3*b+1/3*c,-1/3*a+1/3*b+1/3*c,-1/3*a-2/3*b+1/3*c"),
    ("P 1", "a,b+2*c,c"),
]
GROUP_BLOCKS = [range(start, min(start + 46, 231)) for start in range(1, 231, 46)]


def changed(symbol: str, basis: str) -> sgtbx.space_group:
    return sgtbx.space_group_info(symbol).change_basis(sgtbx.change_of_basis_op(basis)).group()


def cctbx_asu(index, space_group, friedel) -> np.ndarray:
    indices = flex.miller_index([tuple(int(x) for x in row) for row in index])
    miller.map_to_asu(space_group.type(), not friedel, indices)
    return np.array(list(indices))


def check_group(space_group, rng, n=60):
    index = rng.integers(-9, 10, (n, 3))
    index[: n // 3] *= rng.integers(0, 2, (n // 3, 3))  # special positions: planes and axes
    for friedel in (True, False):
        found, inverted = map_to_asu(index, space_group, friedel)
        name = f"{space_group.type().lookup_symbol()}, friedel={friedel}"
        np.testing.assert_array_equal(found, cctbx_asu(index, space_group, friedel), err_msg=name)
        for h, asu, flag in zip(index[:25].tolist(), found.tolist(), inverted):
            by_rotation = {mate.h() for mate in miller.sym_equiv_indices(space_group, tuple(h)).indices()}
            assert flag == (tuple(asu) not in by_rotation), f"{name}: {h} -> {asu}"


@pytest.mark.parametrize("numbers", GROUP_BLOCKS, ids=lambda r: f"{r[0]}-{r[-1]}")
def test_all_space_groups(numbers):
    rng = np.random.default_rng(numbers[0])
    for number in numbers:
        check_group(sgtbx.space_group_info(number=number).group(), rng, n=150)


def test_all_settings_of_the_table():
    rng = np.random.default_rng(530)
    settings = [symbols.hall() for symbols in sgtbx.space_group_symbol_iterator()]
    assert len(settings) == 530
    for hall in settings:
        check_group(sgtbx.space_group(hall), rng)


@pytest.mark.parametrize("symbol, basis", CHANGED_BASES)
def test_settings_beyond_the_table(symbol, basis):
    check_group(changed(symbol, basis), np.random.default_rng(1), n=300)


@pytest.mark.parametrize("number", [1, 2, 5, 16, 76, 91, 143, 149, 150, 154, 155, 168, 177, 195, 198, 207, 227])
def test_operators_are_those_of_cctbx(number):
    """The orbit of a general position, so that a transposed matrix cannot pass."""
    space_group = sgtbx.space_group_info(number=number).group()
    h = (3, 5, 11)
    mates = {mate.h() for mate in miller.sym_equiv_indices(space_group, h).indices()}
    operators = laue_operators(space_group, friedel=False)
    assert {tuple((np.array(h) @ r).tolist()) for r in operators} == mates
    assert np.array_equal(operators[0], np.eye(3))
    laue = laue_operators(space_group, friedel=True)
    assert {tuple((np.array(h) @ r).tolist()) for r in laue} == mates | {tuple(-x for x in mate) for mate in mates}
    assert len(laue) == space_group.build_derived_laue_group().order_p()


def test_p1_is_the_identity():
    index = np.random.default_rng(2).integers(-9, 10, (200, 3))
    found, inverted = map_to_asu(index, sgtbx.space_group("P 1"), friedel=False)
    np.testing.assert_array_equal(found, index)
    assert not inverted.any()


def test_inversion_negates_all_three_indices():
    """In P -1 and, with Friedel's law, in P 1: a mirror would be wrong."""
    index = np.random.default_rng(3).integers(-9, 10, (200, 3))
    for hall, friedel in (("-P 1", False), ("P 1", True)):
        group = sgtbx.space_group(hall)
        np.testing.assert_array_equal(map_to_asu(index, group, friedel)[0], map_to_asu(-index, group, friedel)[0])
        mirrored = map_to_asu(index * [1, 1, -1], group, friedel)[0]
        general = np.all(index != 0, axis=1)
        assert np.all(np.any(mirrored != map_to_asu(index, group, friedel)[0], axis=1)[general])


symbols = st.sampled_from(["P 1", "C 1 2 1", "I 1 2 1", "P 2 21 21", "P 41", "P 43 21 2", "R 3 2 :H", "R 3 2 :R"])
indices = st.tuples(*[st.integers(-600, 600)] * 3)


@settings(max_examples=60, deadline=None)
@given(symbols, st.lists(indices, min_size=1, max_size=20), st.booleans())
def test_invariant_under_every_operator(symbol, index, friedel):
    group = sgtbx.space_group_info(symbol).group()
    index = np.array(index)
    expected, _ = map_to_asu(index, group, friedel)
    for operator in laue_operators(group, friedel):
        np.testing.assert_array_equal(map_to_asu(index @ operator, group, friedel)[0], expected)
    np.testing.assert_array_equal(map_to_asu(expected, group, friedel)[0], expected)


@settings(max_examples=60, deadline=None)
@given(symbols, st.lists(indices, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_order_does_not_matter(symbol, index, random):
    group = sgtbx.space_group_info(symbol).group()
    shuffled = list(index)
    random.shuffle(shuffled)
    a, b = unique_voxels(np.array(index), group), unique_voxels(np.array(shuffled), group)
    np.testing.assert_array_equal(a.index, b.index)
    assert len(np.unique(a.index, axis=0)) == len(a.index)
    for i, h in enumerate(index):
        j = shuffled.index(h)
        assert a.inverse[i] == b.inverse[j] and a.inverted[i] == b.inverted[j]


def test_no_voxels():
    voxels = unique_voxels(np.zeros((0, 3), dtype=np.int32), sgtbx.space_group("P 4"))
    assert voxels.index.shape == (0, 3) and voxels.inverse.shape == (0,)


GRIDS = [
    small_grid("P 1", (9, 10, 11, 80, 95, 105), (1, 2, 3)),
    small_grid("P 1 2 1", (9, 10, 11, 90, 105, 90), (2, 1, 3)),
    small_grid("P 2 2 21", (9, 10, 11, 90, 90, 90), (1, 2, 3)),
    small_grid("P 41", (9, 9, 14, 90, 90, 90), (2, 2, 1)),
    small_grid("P 31 2 1", (9, 9, 14, 90, 90, 120), (2, 2, 3)),
    small_grid("P 2 3", (9, 9, 9, 90, 90, 90), (2, 2, 2), d_max=6.0),
]


@pytest.mark.parametrize("friedel", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.space_group_symbol)
def test_possible_voxels_are_all_voxels_once(grid, friedel):
    everything = all_voxels(grid)
    expected = unique_voxels(everything, grid.space_group, friedel).index
    found = np.concatenate(list(possible_voxels(grid, friedel)))
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found[np.lexsort(found.T[::-1])], expected)


def test_possible_voxels_in_small_blocks(monkeypatch):
    grid = GRIDS[3]
    whole = np.concatenate(list(possible_voxels(grid)))
    monkeypatch.setattr("dials_diffuse.maps.symmetry._BLOCK", 1)
    blocks = list(possible_voxels(grid))
    assert len(blocks) == grid.extent[0] + 1
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("friedel", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.space_group_symbol)
def test_volume_holds_every_mate(grid, friedel):
    voxels = unique_voxels(all_voxels(grid), grid.space_group, friedel)
    values = np.random.default_rng(4).random(len(voxels.index))
    volume = fill_volume(grid, voxels.index, values, friedel)
    expected = np.full(grid.shape, np.nan, dtype=np.float32)
    expected[tuple((all_voxels(grid) + grid.extent).T)] = values[voxels.inverse]
    np.testing.assert_array_equal(volume, expected)


def test_keys_do_not_overflow_silently():
    with pytest.raises(ValueError, match="too large"):
        map_to_asu([[1_500_000, 0, 0]], sgtbx.space_group("P 1"))
