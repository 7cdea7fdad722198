"""The files that come with scaled observations."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, grid_record, write_record
from dials_diffuse.report.crystals import crystals_text, save_crystals_png
from dials_diffuse.report.scaling import scaling_text, write_scaling_png
from dials_diffuse.scaling.record import scaling_record
from dials_diffuse.scaling.scale import ScalingResult

logger = logging.getLogger("dials.diffuse.scale")


@dataclass(frozen=True)
class ScalingFiles:
    """Where to write what; None for no such file.

    observations : the file that :func:`scale_observations` wrote
    json : the scale model and its tests
    png : the absolute scale and the scales of the sweeps
    crystals_png : correlations of crystals, if there are three or more
    """

    observations: str
    json: str | None = None
    png: str | None = None
    crystals_png: str | None = None


def write_scaling(result: ScalingResult, files: ScalingFiles, provenance: Provenance, warnings: list) -> tuple:
    """Log a scale model and write its picture and its record.

    warnings : sentences for the record; it grows with those that are logged here

    Returns
    -------
    tuple of Output
    """
    if result.crystals:
        logger.info("\n%s", crystals_text(result.crystals))
    logger.info("\n%s\n", scaling_text(result))
    for warning in result.warnings:
        logger.warning("Warning: %s", warning)
    outputs = [Output(files.observations, "observations")]
    if files.png:
        outputs.append(Output(files.png, "picture", "aid"))
        logger.info("Saving pictures to %s", files.png)
        write_scaling_png(files.png, result)
    outputs += save_crystals_png(files.crystals_png, result.crystals)
    if files.json:
        outputs.append(Output(files.json, "statistics", "aid"))
        logger.info("Saving the scale model to %s", files.json)
        content = {**grid_record(result.grid), **scaling_record(result)}
        write_record(files.json, "dials.diffuse_scale/1", provenance, outputs, warnings, **content)
    return tuple(outputs)
