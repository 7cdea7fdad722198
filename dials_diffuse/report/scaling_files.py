"""The files that come with scaled observations."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, grid_record, make_record, write_json
from dials_diffuse.reduction.overview import overview
from dials_diffuse.report.crystals import crystals_text, save_crystals_png
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.scaling import scaling_text, write_scaling_png
from dials_diffuse.report.section import Material
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
    html : a page with plots of all of this
    """

    observations: str
    json: str | None = None
    png: str | None = None
    crystals_png: str | None = None
    html: str | None = None


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
    outputs += [
        Output(path, kind, "aid") for path, kind in ((files.html, "report"), (files.json, "statistics")) if path
    ]
    if files.html or files.json:
        content = {**grid_record(result.grid), **scaling_record(result), "overview": overview(files.observations)}
        record = finite(make_record("dials.diffuse_scale/1", provenance, outputs, warnings, **content))
    if files.html:
        write_report(files.html, Material(record))
    if files.json:
        logger.info("Saving the scale model to %s", files.json)
        write_json(files.json, record)
    return tuple(outputs)
