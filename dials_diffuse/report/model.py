"""The map of a model: the record for programs."""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.record import grid_record
from dials_diffuse.models.compute import ComputedModel
from dials_diffuse.report.agreement import comparison_record


def model_map_record(computed: ComputedModel, data_path=None) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_model/1``; data_path : of the map in the comparison."""
    data = computed.map
    record = {
        "model": computed.model.record(),
        **grid_record(data.grid),
        "d_min": data.grid.d_min,
        "voxels": "centre" if data.at_centres else "mean",
        "mean_intensity": float(np.mean(data.intensity)),
    }
    if computed.comparison is not None:
        record["comparison"] = {"map": str(data_path), **comparison_record(computed.comparison)}
    return record
