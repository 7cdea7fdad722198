"""The map of a model: the record for programs, and its page."""

from __future__ import annotations

import logging

import numpy as np

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, grid_record, make_record, write_json
from dials_diffuse.models.compute import ComputedModel
from dials_diffuse.report.agreement import comparison_record
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.section import Material

logger = logging.getLogger("dials.diffuse.model")


def model_map_record(computed: ComputedModel, data_path=None) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_model/1``; data_path : of the map in the comparison."""
    data = computed.map
    record = {
        "model": computed.model.record(),
        **grid_record(data.grid),
        "d_min": data.grid.d_min,
        "units": data.units,
        "voxels": "centre" if data.at_centres else "mean",
        "mean_intensity": float(np.mean(data.intensity)),
    }
    if computed.comparison is not None:
        record["comparison"] = {"map": str(data_path), **comparison_record(computed.comparison)}
    return record


def write_summary(
    computed: ComputedModel, data_path, html, json, provenance: Provenance, outputs: list, warnings: list
) -> None:
    """Write page and record.

    Parameters
    ----------
    data_path : of the map in the comparison, or None
    html, json : paths, None for no such file
    outputs : of the program so far; it grows with these
    """
    outputs += [Output(path, kind) for path, kind in ((html, "report"), (json, "statistics")) if path]
    content = model_map_record(computed, data_path)
    record = finite(make_record("dials.diffuse_model/1", provenance, outputs, warnings, **content))
    if html:
        write_report(html, Material(record, computed.map))
    if json:
        logger.info("Saving the summary to %s", json)
        write_json(json, record)
