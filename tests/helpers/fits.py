"""Maps with a known answer, and models that start from wrong values."""

from __future__ import annotations

import numpy as np

from dials_diffuse.fitting.fit import Candidate
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.prepared import prepare


def independent(model, structure, s):
    """The intensity of a model by summation at each point, averaged over the Laue group by hand."""
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 2.0)
    b = grid.reciprocal_matrix
    turns = [np.linalg.inv(b).T @ r @ b.T for r in laue_operators(structure.space_group, friedel=False)]
    return np.mean([model.intensity_at(structure, s @ turn) for turn in turns], axis=0)


def noisy_map(grid, index, intensity, sigma, seed=0, scale=0.02, claimed=1.0, units="a.u."):
    """A map of an intensity on some scale, with a background and noise whose size is claimed to be another."""
    s = grid.s_magnitude(index)
    values = scale * intensity + 30 * np.exp(-3 * s) + 5 * np.cos(6 * s)
    values += sigma * np.random.default_rng(seed).normal(size=len(s))
    ones = np.ones(len(s))
    return DiffuseMap(grid, True, index, values, claimed * sigma * ones, 4 * ones.astype(int), units=units)


def candidate(name, model, structure, data, factor=1.3):
    """A model, starting from values that are wrong by a factor."""
    prepared = prepare(model, structure, data.grid, data.index)
    return Candidate(name, prepared, factor * np.array([p.value for p in prepared.parameters]))
