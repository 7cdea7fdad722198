"""The record of a whole run, checked against the schema that comes with the package."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.files.record import Output, finite, make_record, write_json
from dials_diffuse.pipeline.process import ProcessResult
from dials_diffuse.report.figures import write_thumbnail
from dials_diffuse.report.material import load_materials
from dials_diffuse.report.pages import write_report
from dials_diffuse.report.process import process_text
from dials_diffuse.report.section import Material

logger = logging.getLogger("dials.diffuse.process")

#: name and version of the record
SCHEMA = "dials.diffuse_process/1"

#: what the record has to be, as JSON Schema
SCHEMA_FILE = Path(__file__).with_name("process.schema.json")

#: picture of the map, after the prefix
_MAP = "diffuse_merged.png"

_SHELL = ("d_max", "d_min", "n", "completeness", "multiplicity", "mean", "rms_anisotropic", "cc_half", "cc_friedel")


def process_content(result: ProcessResult) -> dict:
    """Content of ``output.json``, schema ``dials.diffuse_process/1``; all but its head, see docs/files.md."""
    integrated, scaled, merged = (result.records[name] for name in ("integrated", "scaled", "merged"))
    statistics = merged["statistics"]
    absolute = scaled["absolute_scale"]
    return {
        "verdict": result.verdict.word,
        "reasons": list(result.verdict.reasons),
        "limits": list(result.verdict.limits),
        "space_group": merged["space_group"],
        "unit_cell": merged["unit_cell"],
        "subdivide": merged["subdivide"],
        "d_min": result.signal.d_min,
        "d_min_map": merged["d_min"],
        "n_images_used": integrated["n_images_used"],
        "n_observations": merged["n_observations"],
        "signal": asdict(result.signal),
        "statistics": {
            "overall": {name: statistics["overall"][name] for name in _SHELL},
            "shells": [{name: shell[name] for name in _SHELL} for shell in statistics["shells"]],
        },
        "absolute_scale": absolute and {name: absolute[name] for name in ("k", "esd", "method")},
        "fit": _fit(result.records.get("fit")),
        "choices": [asdict(choice) for choice in result.choices],
        "peaks": [{"experiment": e["experiment"], **e["peaks"]} for e in integrated["experiments"] if e["peaks"]],
        "xia2": result.sources.xia2 or None,
        "steps": [
            {"name": step.name, "repeated": step.repeated, "why": step.why, **step.done.resources}
            for step in result.steps
        ],
    }


def _fit(record: dict | None) -> dict | None:
    """The best model and its parameters."""
    if record is None:
        return None
    models = {model["model"]: model for model in record["models"]}
    best = models[record["best"]]
    return {
        "best": record["best"],
        "parameters": best["parameters"],
        "cc_anisotropic_free": best["statistics"]["free"]["cc_anisotropic"],
        "models": list(models),
    }


def check_record(record: dict) -> None:
    """Does a record keep to the schema? Nothing is checked where ``jsonschema`` is not installed.

    Raises
    ------
    DiffuseError
        If it does not: a fault of this package, which must not be passed on to other programs.
    """
    try:
        import jsonschema
    except ImportError:
        logger.debug("jsonschema is not installed: the record is not checked")
        return
    try:
        jsonschema.validate(record, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    except jsonschema.ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the record"
        raise DiffuseError(f"{place}: {error.message}; please report this fault of dials_diffuse") from None


def _records_of(result: ProcessResult) -> list:
    """Paths of the records of the steps, in their order."""
    return [output.path for output in result.outputs if output.kind == "statistics"]


def write_process(
    result: ProcessResult, json_path, html_path, png_path, provenance: Provenance, warnings: list
) -> dict:
    """Log the verdict, write record and report; the record.

    Parameters
    ----------
    json_path : of the record; html_path : of the report, png_path : of a thumbnail of the map; None for no such file
    warnings : sentences for the record

    Raises
    ------
    DiffuseError
        If a file cannot be written.
    """
    outputs = [Output(json_path, "statistics")]
    if html_path:
        outputs.append(Output(html_path, "report"))
    if png_path:
        write_thumbnail(png_path, next(o.path for o in result.outputs if Path(o.path).name.endswith(_MAP)))
        outputs.append(Output(png_path, "thumbnail", "aid"))
    outputs += result.outputs
    record = finite(make_record(SCHEMA, provenance, outputs, warnings, **process_content(result)))
    check_record(record)
    logger.info("\n%s", process_text(record))
    if html_path:
        steps = [material for path in _records_of(result) for material in load_materials(path)]
        write_report(html_path, Material(record), *steps)
    logger.info("Saving the summary to %s", json_path)
    write_json(json_path, record)
    return record
