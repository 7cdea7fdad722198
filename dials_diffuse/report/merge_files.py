"""The files that a merged map is written to."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from dials_diffuse.crystals.record import crystals_record
from dials_diffuse.files.formats import save_map
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, make_record, write_json
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.merging.compare import compare_with_reference
from dials_diffuse.merging.laue import MergeParameters, MergeResult
from dials_diffuse.report.agreement import comparison_record, format_comparison, write_comparison_png
from dials_diffuse.report.crystals import crystals_text, save_crystals_png
from dials_diffuse.report.merge import format_statistics, merge_record
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.planes import write_planes_png
from dials_diffuse.report.section import Material
from dials_diffuse.report.symmetry import symmetry_text

logger = logging.getLogger("dials.diffuse.merge")


@dataclass(frozen=True)
class MergeFiles:
    """Where to write what; None for no such file.

    map : its suffix chooses the format
    volume : also write three-dimensional arrays; None: if they are not too large
    json : statistics; png : planes through the map; crystals_png : correlations of crystals, if there are three or more
    html : a page with all of this and a browser of planes
    """

    map: str
    volume: bool | None = None
    json: str | None = None
    png: str | None = None
    crystals_png: str | None = None
    html: str | None = None


@dataclass(frozen=True)
class Reference:
    """A map to compare with, and the path that a user knows it by."""

    map: DiffuseMap
    path: str


def write_merged(
    result: MergeResult,
    parameters: MergeParameters,
    files: MergeFiles,
    provenance: Provenance,
    warnings: list,
    reference: Reference | None = None,
) -> tuple:
    """Log a merged map and its statistics, and write map, picture and record.

    Parameters
    ----------
    parameters : that it was merged with
    warnings : sentences for the record; it grows with those that are logged here

    Returns
    -------
    tuple of Output

    Raises
    ------
    DiffuseError
        If a file cannot be written, or the reference is no map of this crystal and lattice.
    """
    logger.info(
        "%d observations averaged to %d unique voxels; %d lie outside the resolution limits",
        result.n_observations,
        len(result.map.index),
        result.n_off_grid,
    )
    if result.crystals:
        logger.info("\n%s\n", crystals_text(result.crystals))
    for warning in result.warnings:
        logger.warning("Warning: %s", warning)
    if result.symmetry is not None:
        logger.info("\n%s", symmetry_text(result.symmetry))
    logger.info("\n%s\n", format_statistics(result.statistics))
    content, comparison = {**merge_record(result), "crystals": crystals_record(result.crystals)}, None
    if reference is not None:
        comparison = compare_with_reference(
            result.map, reference.map, reference.path, parameters.n_shells, parameters.d_max, parameters.d_min
        )
        logger.info("Agreement with %s:\n\n%s\n", reference.path, format_comparison(comparison))
        content["comparison"] = {"reference": reference.path, **comparison_record(comparison)}

    outputs = [Output(files.map, "map")]
    logger.info("Saving the map to %s", files.map)
    provenance = replace(provenance, identifiers=result.identifiers)
    save_map(files.map, result.map, provenance, files.volume)
    if files.png:
        outputs.append(Output(files.png, "picture", "aid"))
        logger.info("Saving pictures to %s", files.png)
        if reference is None:
            write_planes_png(files.png, result.map)
        else:
            write_comparison_png(files.png, result.map, reference.map, comparison)
    outputs += save_crystals_png(files.crystals_png, result.crystals)
    outputs += [Output(path, kind) for path, kind in ((files.html, "report"), (files.json, "statistics")) if path]
    record = finite(make_record("dials.diffuse_merge/1", provenance, outputs, warnings, **content))
    if files.html:
        write_report(files.html, Material(record, result.map))
    if files.json:
        logger.info("Saving statistics to %s", files.json)
        write_json(files.json, record)
    return tuple(outputs)
