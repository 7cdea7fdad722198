"""A simulation: the record for programs, and its page."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, make_record, write_json
from dials_diffuse.models.base import DiffuseModel
from dials_diffuse.report.material import material_of
from dials_diffuse.report.pages import write_report
from dials_diffuse.simulation.simulate import SimulationResult

logger = logging.getLogger("dials.diffuse.simulate")


def write_simulation(
    result: SimulationResult, model: DiffuseModel, html, json, provenance: Provenance, warnings: list
) -> None:
    """Write page and record, schema ``dials.diffuse_simulate/1``.

    html, json : paths, None for no such file
    """
    outputs = [*result.outputs]
    outputs += [Output(path, kind) for path, kind in ((html, "report"), (json, "statistics")) if path]
    record = finite(
        make_record(
            "dials.diffuse_simulate/1",
            provenance,
            outputs,
            warnings,
            model=model.record(),
            d_min=result.d_min,
            sweeps=[asdict(sweep) for sweep in result.sweeps],
        )
    )
    if html:
        write_report(html, material_of(record, Path(html).parent))
    if json:
        logger.info("Saving the summary to %s", json)
        write_json(json, record)
