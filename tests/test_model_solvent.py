"""Liquid-like motions of a crystal with flat solvent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import at, close, some_voxels, vectors
from helpers.structures import GROUPS, random_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models import prepared
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors, solvent_structure_factors
from dials_diffuse.structure.transform import structure_factors

CASES = [("P 21 21 21", (18.0, 21.0, 24.0, 90, 90, 90)), ("P 31 2 1", (22.0, 22.0, 28.0, 90, 90, 120)), GROUPS[3]]


@pytest.mark.parametrize(("symbol", "cell"), CASES, ids=["P212121", "P3121", "I121"])
def test_solvent_fills_all_indices(symbol, cell):
    """Those of cctbx's asymmetric unit as from the function for it, all others by symmetry, up to a phase."""
    structure = random_structure(symbol, cell, u=(0.1, 0.2))
    grid, calculated = structure_factors(structure, 2.5)
    factors = solvent_structure_factors(structure, grid, 0.35, 46.0)
    total = calculated + factors
    hkl, expected = bulk_solvent_structure_factors(structure, 2.5, 0.35, 46.0)
    np.testing.assert_allclose(at(total, grid, hkl), expected, atol=1e-8 * np.abs(expected).max())
    index = np.argwhere(np.isfinite(total)) - np.array(grid.extent)
    for operator in laue_operators(structure.space_group, friedel=True):
        np.testing.assert_allclose(
            np.abs(at(total, grid, index @ operator)),
            np.abs(at(total, grid, index)),
            atol=1e-3 * np.abs(expected).max(),
        )
    s = np.linalg.norm(vectors(structure, grid, index), axis=1)
    assert not at(factors, grid, index[s > 1 / 3.0 + 1e-6]).any()
    origin = factors[grid.extent].real
    assert 0 < origin < 0.35 * structure.cell.volume()
    assert np.all(np.abs(factors) <= origin * (1 + 1e-9))  # a density that is nowhere negative


def test_solvent_in_the_sum_over_reflections():
    """What it adds is the sum over reflections of the difference of |F|², the kernel's transform written out."""
    structure = random_structure(*CASES[0], u=(0.1, 0.2))
    sigma, gamma = 0.2, 4.0
    dry = LiquidLikeMotions(sigma=sigma, gamma=gamma, orders=2)
    wet = replace(dry, k_sol=0.4, b_sol=30.0)
    grid, f = structure_factors(structure, 2.9)
    solvent = solvent_structure_factors(structure, grid, 0.4, 30.0)
    index = np.argwhere(np.isfinite(f)) - np.array(grid.extent)
    difference = np.abs(at(f + solvent, grid, index)) ** 2 - np.abs(at(f, grid, index)) ** 2
    nodes = 2 * np.pi * vectors(structure, grid, index)
    s = np.random.default_rng(0).uniform(-0.2, 0.2, (15, 3))
    q = 2 * np.pi * s
    distance = np.linalg.norm(q[:, None] - nodes, axis=-1)
    x = sigma**2 * np.sum(q**2, axis=1)
    expected = 0.0
    for order in (1, 2):
        length = gamma / order
        kernel = 8 * np.pi * length**3 / (1 + (length * distance) ** 2) ** 2
        expected += x**order / math.factorial(order) * (kernel @ difference) / structure.cell.volume()
    added = wet.intensity_at(structure, s) - dry.intensity_at(structure, s)
    assert np.abs(added).max() > 0.1 * dry.intensity_at(structure, s).max()
    close(added, expected, 1e-4)


def test_solvent_on_a_grid_and_prepared():
    structure = random_structure(*CASES[0], u=(0.1, 0.2))
    model = LiquidLikeMotions(sigma=0.2, gamma=4.0, k_sol=0.35)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    index = some_voxels(grid)
    values = at(model.intensity(structure, grid), grid, index)
    close(values, model.intensity_at(structure, vectors(structure, grid, index)), 2e-3)
    ready = prepared.prepare(model, structure, grid, index)
    close(ready.intensity([p.value for p in ready.parameters]), values, 1e-4)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"k_sol": -0.1}, "llm.k_sol=-0.1"),
        ({"b_sol": math.nan}, "llm.b_sol=nan"),
        ({"k_sol": 0.3, "confined_to": "molecule"}, "llm.k_sol=0.3: solvent needs"),
        ({"k_sol": 0.3, "adp": "overall"}, "llm.k_sol=0.3: solvent needs"),
    ],
)
def test_bad_solvent_is_refused(values, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        LiquidLikeMotions(sigma=0.2, gamma=4.0, **values)
