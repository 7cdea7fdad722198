"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from helpers.builders import all_voxels, observation_rows, small_grid, true_intensity, write_rows

from dials_diffuse.experiment.common_grid import choose_grid
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.maps.fourier import delta_pdf
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.models.compute import compute_model
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.simulation.simulate import simulate

#: what a script meets first
EXAMPLES = [
    MapGrid,
    DiffuseMap,
    read_map,
    save_map,
    choose_grid,
    scale_observations,
    merge_observations,
    DiffuseModel,
    compute_model,
    delta_pdf,
    fit_map,
    simulate,
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the examples find files under the names that programs give them."""
    monkeypatch.chdir(tmp_path)
    grid = small_grid("P 41")
    index = np.tile(all_voxels(grid), (2, 1))
    rows = observation_rows(grid, index, true_intensity(grid, index), np.random.default_rng(0))
    path = write_rows("diffuse_integrated.h5", grid, rows)
    save_map("diffuse_merged.nxs", merge_observations([path], MergeParameters()).map, Provenance("", "", ""))


@pytest.mark.parametrize("thing", EXAMPLES, ids=lambda thing: thing.__name__)
def test_example(thing):
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, thing.__name__)
    assert test.examples, f"{thing.__name__} has no example"
    said = []
    failures, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert failures == 0, "".join(said)
