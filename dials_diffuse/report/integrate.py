"""An integration: the record for programs, and the files beside the observations."""

from __future__ import annotations

import logging
from dataclasses import asdict

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, grid_record, write_record
from dials_diffuse.reduction.integrate import IntegrationResult

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
    result: IntegrationResult, observations, json, provenance: Provenance, warnings: list, reflections: dict | None
) -> tuple:
    """Log an integration and write its record.

    Parameters
    ----------
    observations : path of the file that :func:`integrate` wrote
    json : path of the record; None for no such file
    warnings : sentences for the record; it grows with those that are logged here
    reflections : what became of the reflections, see ``InputData.record``

    Returns
    -------
    tuple of Output
    """
    for warning in result.warnings:
        logger.warning(warning)
    logger.info("Saved %d observations to %s", result.n_observations, observations)
    outputs = [Output(observations, "observations")]
    if json:
        outputs.append(Output(json, "statistics"))
        logger.info("Saving the summary to %s", json)
        content = {**integration_record(result), "reflections": reflections}
        write_record(json, "dials.diffuse_integrate/1", provenance, outputs, warnings, **content)
    return tuple(outputs)
