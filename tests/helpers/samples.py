"""Samples of observations, as the scale model is refined against."""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.maps.voxels import blocks_of_rows, find_voxels
from dials_diffuse.scaling.layout import make_layout
from dials_diffuse.scaling.sample import COLUMNS, sample_observations


def read_sample(path, share=1.0):
    """(Observations, Layout) of a share of the unique voxels of a file."""
    with ObservationFile(path) as file:
        of_rows = np.empty(file.n_rows, np.int32)
        voxels, _ = find_voxels(blocks_of_rows([file], ("index", "norm"), 1000), file.grid, True, of_rows)
        layout = make_layout(file.experiments, file.grid)
        wanted = np.random.default_rng(0).random(len(voxels.index)) < share
        blocks = ((0, block) for block in blocks_of_rows([file], COLUMNS, 1000))
        return sample_observations(blocks, voxels, of_rows, layout, wanted, 4), layout
