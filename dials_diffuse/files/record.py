"""The JSON record that every program writes; its head is the same for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dials_diffuse import __version__
from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid

#: main: what the program is for; aid: what helps to judge it
IMPORTANCE = ("main", "aid")


@dataclass(frozen=True)
class Output:
    """A file that a program wrote.

    Attributes
    ----------
    path : str or Path
    kind : what it is, in a word: ``map``, ``observations``, ``picture``, ``statistics``, ``report`` ...
    importance : one of ``IMPORTANCE``

    Raises
    ------
    DiffuseError
        If ``importance`` is none of these.
    """

    path: str
    kind: str
    importance: str = "main"

    def __post_init__(self):
        choice("importance", self.importance, IMPORTANCE)


def make_record(
    schema: str, provenance: Provenance, outputs: Sequence[Output], warnings: Sequence[str], **content
) -> dict:
    """What a program tells other programs: a head, which is the same for all, and ``content``.

    Parameters
    ----------
    schema : name and version of the content, such as ``dials.diffuse_merge/1``
    outputs : files that were written
    warnings : sentences for the user
    """
    return {
        "schema": schema,
        "version": __version__,
        "dials_version": provenance.dials_version,
        "command_line": provenance.command_line,
        "inputs": [str(path) for path in provenance.inputs],
        "parameters": provenance.phil,
        "modified": provenance.modified,
        "outputs": [{**asdict(output), "path": str(output.path)} for output in outputs],
        "warnings": list(warnings),
        **content,
    }


def grid_record(grid: MapGrid) -> dict:
    """What records say about the lattice of a map."""
    return {"space_group": grid.space_group_symbol, "unit_cell": grid.unit_cell, "subdivide": grid.subdivide}


def write_record(
    path, schema: str, provenance: Provenance, outputs: Sequence[Output], warnings: Sequence[str], **content
) -> None:
    """Write what :func:`make_record` returns to a file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    write_json(path, make_record(schema, provenance, outputs, warnings, **content))


def write_json(path, content: dict) -> None:
    """Write ``content`` as JSON: finite numbers only, null for NaN and infinity.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path) -> dict:
    """What :func:`write_json` wrote.

    Raises
    ------
    DiffuseError
        If the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DiffuseError(f"{path}: cannot be read ({error.strerror}); run the program again that writes it") from None
    except (ValueError, RecursionError) as error:
        raise DiffuseError(f"{path}: not JSON ({error}); run the program again that writes it") from None
    if not isinstance(content, dict):
        raise DiffuseError(f"{path}: not the record of a program; run the program again that writes it")
    return content


def finite(value):
    """A value as JSON can hold it: lists, numbers and texts only, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
