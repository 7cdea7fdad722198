"""Is the map in the setting of the structure? All settings of a lattice, and the one that is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.builders import small_grid
from helpers.structures import CELL, random_structure, small_molecule

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.setting_search import compare_settings, find_setting, reindex, untested_settings
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.settings import alternative_settings
from dials_diffuse.maps.symmetry import map_to_asu, possible_voxels
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.uncorrelated import Uncorrelated


@pytest.mark.parametrize(
    ("symbol", "cell", "number"),
    [
        ("P 41", (14, 14, 17, 90, 90, 90), 2),
        ("P 3", (14, 14, 17, 90, 90, 120), 4),
        ("P 2 3", (14, 14, 14, 90, 90, 90), 2),
        ("P 43 21 2", (14, 14, 17, 90, 90, 90), 1),
        ("P 21 21 21", (14, 14.02, 17, 90, 90, 90), 2),
        ("P 1", (14, 15, 17, 80, 95, 100), 1),
    ],
)
def test_settings_of_a_lattice(symbol, cell, number):
    """As many as the lattice has cosets; each keeps |s| and takes the Laue group to itself."""
    grid = small_grid(symbol, cell, (2, 2, 2), 4.0, np.inf)
    settings = alternative_settings(grid)
    assert len(settings) == number and settings[0].operator == "h,k,l"
    index = np.concatenate(list(possible_voxels(grid)))
    ones = np.ones(len(index))
    data = DiffuseMap(grid, True, index, grid.s_magnitude(index), ones, ones.astype(int))
    for setting in settings:
        other = reindex(data, setting)
        assert other.grid.space_group == grid.space_group
        np.testing.assert_allclose(other.grid.s_magnitude(other.index), data.intensity, rtol=1e-9)
        assert len(np.unique(other.index, axis=0)) == len(index)
        np.testing.assert_array_equal(map_to_asu(other.index, grid.space_group)[0], other.index)


@pytest.mark.parametrize("symbol", ["P 41", "P 3"])
def test_the_setting_is_found(symbol):
    """Data of a model in any of the settings are brought back to that of the structure."""
    cell = CELL if symbol == "P 41" else (*CELL[:5], 120.0)
    atoms = random_structure(symbol, cell, elements="CNOCSC", u=(0.15, 0.3), radius=3.5)
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    grid = MapGrid(cell, atoms.hall_symbol, (2, 2, 2), 3.0)
    truth = model_map(model, atoms, grid)
    noise = 0.3 * truth.intensity.std() * np.random.default_rng(0).normal(size=len(truth.index))
    truth = replace(truth, intensity=truth.intensity + noise)
    for setting in alternative_settings(grid):
        first, *others = compare_settings(reindex(truth, setting), model, atoms, np.inf, 3.0)
        assert first[2] > 0.5
        assert all(cc < first[2] - 0.2 for *_, cc in others)
        order, wanted = (np.argsort(grid.key(data.index)) for data in (first[1], truth))
        np.testing.assert_array_equal(first[1].index[order], truth.index[wanted])
        np.testing.assert_allclose(first[1].intensity[order], truth.intensity[wanted])


def test_the_given_setting_is_kept_if_the_model_cannot_tell():
    """Atoms that move alone, with round U, scatter alike in both settings of P 41: no choice by rounding errors."""
    for seed in range(4):
        atoms = small_molecule(seed=seed)
        truth = model_map(
            LiquidLikeMotions(sigma=0.3, gamma=6.0), atoms, MapGrid(CELL, atoms.hall_symbol, (2, 2, 2), 3.0)
        )
        found = compare_settings(truth, Uncorrelated(), atoms, np.inf, 3.0)
        assert len(found) == 2 and found[0][0].operator == "h,k,l"
        assert found[0][2] == pytest.approx(found[1][2], abs=1e-6)


def test_a_model_that_contradicts_the_map_chooses_no_setting():
    """Negative correlations: the less negative one is no reason to reindex."""
    atoms = small_molecule()
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    truth = model_map(model, atoms, MapGrid(CELL, atoms.hall_symbol, (2, 2, 2), 3.0))
    found = compare_settings(replace(truth, intensity=-truth.intensity), model, atoms, np.inf, 3.0)
    assert [setting.operator == "h,k,l" for setting, *_ in found] == [True, False]
    assert found[0][2] < found[1][2] < 0


def test_symmetry_that_a_map_lacks_makes_no_settings():
    """A map that was merged in P 1: of the 8 settings of its lattice the structure tells 2 apart."""
    atoms = small_molecule()
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    truth = model_map(model, atoms, MapGrid(CELL, "P 1", (2, 2, 2), 3.0))
    assert len(alternative_settings(truth.grid)) == 8
    found = compare_settings(truth, model, atoms, np.inf, 3.0)
    assert len(found) == 2 and found[0][0].operator == "h,k,l"
    assert found[0][2] > found[1][2] + 0.2


#: 2 c cos(beta) = -a: the lattice has another setting, h, -k, -h-l, that mixes a* and c*
MONOCLINIC = (10.0, 12.0, 14.0, 90.0, 110.925, 90.0)


@pytest.mark.parametrize(
    ("symbol", "cell", "subdivide", "expected"),
    [
        ("P 21 21 21", (14, 14.02, 17, 90, 90, 90), (2, 3, 2), (3, 2, 2)),
        ("P 1 21 1", MONOCLINIC, (2, 3, 2), (2, 3, 2)),
        ("P 1 21 1", MONOCLINIC, (2, 2, 3), None),
        ("P 1 21 1", MONOCLINIC, (4, 2, 2), None),  # the indices stay whole, but leave half of a new lattice empty
        ("P 1 21 1", MONOCLINIC, (2, 2, 4), None),
    ],
)
def test_settings_and_unequal_subdivision(symbol, cell, subdivide, expected):
    """The voxels of a map are those of the new lattice, all of them, or reindexing is refused."""
    grid = small_grid(symbol, cell, subdivide, 4.0, np.inf)
    index = np.concatenate(list(possible_voxels(grid)))
    ones = np.ones(len(index))
    data = DiffuseMap(grid, True, index, ones, ones, ones.astype(int))
    _, other = alternative_settings(grid)
    if expected is None:
        with pytest.raises(DiffuseError, match="mixes axes of unequal subdivision"):
            reindex(data, other)
        return
    moved = reindex(data, other)
    assert moved.grid.subdivide == expected
    possible = np.concatenate(list(possible_voxels(moved.grid)))
    assert set(map(tuple, moved.index.tolist())) == set(map(tuple, possible.tolist()))


@pytest.mark.parametrize("subdivide", [(2, 2, 3), (4, 2, 2)])
def test_a_setting_that_the_subdivision_forbids(subdivide):
    """It is left out, and said so; the given one is used."""
    atoms = random_structure("P 1 21 1", MONOCLINIC, elements="CNOCSC", u=(0.15, 0.3))
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    truth = model_map(model, atoms, MapGrid(MONOCLINIC, atoms.hall_symbol, subdivide, 3.0))
    ((setting, data, cc),) = compare_settings(truth, model, atoms, np.inf, 3.0)
    assert setting.operator == "h,k,l" and data is truth and np.isnan(cc)
    (other,) = untested_settings(truth.grid, atoms)
    search = find_setting(truth, model, atoms, np.inf, 3.0)
    assert search.data is truth and [one.operator for one in search.compared] == ["h,k,l", other.operator]
    assert all(np.isnan(one.cc_anisotropic) for one in search.compared)
    (warning,) = search.warnings
    assert f"no test whether the setting is {other.operator}" in warning
    assert f"grid.subdivide={','.join(map(str, subdivide))}" in warning
    even = model_map(model, atoms, MapGrid(MONOCLINIC, atoms.hall_symbol, (2, 2, 2), 3.0))
    search = find_setting(even, model, atoms, np.inf, 3.0)
    assert [one.operator for one in search.compared] == ["h,k,l", other.operator] and not search.warnings
    assert search.compared[0].cc_anisotropic > 0.99 > search.compared[1].cc_anisotropic
    with pytest.raises(DiffuseError, match="unit cells of the model"):
        compare_settings(truth, model, random_structure("P 1 21 1", (11.0, *MONOCLINIC[1:])), np.inf, 3.0)


def test_a_lattice_that_has_the_cell_of_the_structure_in_another_setting_only():
    """The symmetry is missed by a degree: the cells of both settings differ by more than is allowed."""
    cell = (*MONOCLINIC[:4], 110.0, 90.0)
    atoms = random_structure("P 1 21 1", cell, elements="CNOCSC", u=(0.15, 0.3))
    model = LiquidLikeMotions(sigma=0.3, gamma=6.0)
    truth = model_map(model, atoms, MapGrid(cell, atoms.hall_symbol, (2, 2, 2), 3.0))
    _, other = alternative_settings(truth.grid)
    moved = reindex(truth, other)
    ((setting, found, cc),) = compare_settings(moved, model, atoms, np.inf, 3.0)
    assert setting.operator == other.operator and cc > 0.99
    np.testing.assert_allclose(found.grid.unit_cell, cell)
    np.testing.assert_array_equal(found.index, truth.index)
    uneven = replace(moved, grid=replace(moved.grid, subdivide=(2, 2, 4)))
    with pytest.raises(DiffuseError, match="as it is indexed, is not that of the structure; no test whether"):
        compare_settings(uneven, model, atoms, np.inf, 3.0)
