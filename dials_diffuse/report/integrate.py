"""An integration: the record for programs, and the files beside the observations."""

from __future__ import annotations

import logging
from dataclasses import asdict

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, grid_record, make_record, write_json
from dials_diffuse.reduction.integrate import IntegrationResult
from dials_diffuse.reduction.overview import overview
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.section import Material

logger = logging.getLogger("dials.diffuse.integrate")


def integration_record(result: IntegrationResult) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_integrate/1``."""
    grid = result.grid
    return {
        **grid_record(grid),
        "hall_symbol": grid.hall_symbol,
        "d_min": grid.d_min,
        "d_max": grid.d_max,
        "n_observations": result.n_observations,
        "n_images_used": sum(e.n_images for e in result.experiments),
        "experiments": [asdict(e) for e in result.experiments],
    }


def write_integration(
    result: IntegrationResult,
    observations,
    json,
    provenance: Provenance,
    warnings: list,
    reflections: dict | None,
    html=None,
) -> tuple:
    """Log an integration and write its record.

    Parameters
    ----------
    observations : path of the file that :func:`integrate` wrote
    json : path of the record; None for no such file
    warnings : sentences for the record; it grows with those that are logged here
    reflections : what became of the reflections, see ``InputData.record``
    html : path of the page; None for no such file

    Returns
    -------
    tuple of Output
    """
    for warning in result.warnings:
        logger.warning(warning)
    logger.info("Saved %d observations to %s", result.n_observations, observations)
    outputs = [Output(observations, "observations")]
    outputs += [Output(path, kind) for path, kind in ((html, "report"), (json, "statistics")) if path]
    if html or json:
        content = {**integration_record(result), "reflections": reflections, "overview": overview(observations)}
        record = finite(make_record("dials.diffuse_integrate/1", provenance, outputs, warnings, **content))
    if html:
        write_report(html, Material(record))
    if json:
        logger.info("Saving the summary to %s", json)
        write_json(json, record)
    return tuple(outputs)
