"""What to process: files of DIALS, or the folder of a xia2 or xia2.multiplex run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cctbx import sgtbx

from dials_diffuse.errors import DiffuseError

#: where the results of a run are, best first; all that the first fitting row finds are taken together
_PLACES = (
    "DataFiles/*scaled.expt",  # xia2
    "scaled.expt",  # xia2.multiplex, and dials.scale by hand
    "DataFiles/*INTEGRATE*.expt",
    "DataFiles/*SWEEP*.expt",
    "integrated.expt",
    "refined.expt",
)


@dataclass(frozen=True)
class Sources:
    """Files of experiments and reflections.

    Attributes
    ----------
    files : paths of .expt and .refl files, in the order in which experiments are numbered
    xia2 : what a xia2 run says of itself: folder, space_group, unit_cell; empty where there is none
    """

    files: tuple
    xia2: dict = field(default_factory=dict)


def find_sources(names: Sequence[str]) -> Sources:
    """Turn the files and folders of a command line into files.

    Raises
    ------
    DiffuseError
        If a folder holds no results, or nothing is given.
    """
    files: list = []
    facts: dict = {}
    for name in names:
        if Path(name).is_dir():
            files += _of_folder(Path(name))
            facts = facts or _facts(Path(name))
        else:
            files.append(str(name))
    if not any(Path(name).suffix in (".expt", ".json") for name in files):
        raise DiffuseError(
            f"{', '.join(map(str, names))}: no .expt file; give integrated.expt integrated.refl, or a folder of xia2"
        )
    return Sources(tuple(files), facts)


def other_symmetry(sources: Sources, space_group: sgtbx.space_group) -> str:
    """A sentence where xia2 settled on a space group of another Laue group than that of the files; else empty."""
    settled = sources.xia2.get("space_group")
    try:
        theirs = sgtbx.space_group_info(settled).group() if settled else space_group
    except RuntimeError:  # not a symbol
        return ""
    if theirs.build_derived_laue_group() == space_group.build_derived_laue_group():
        return ""
    return (
        f"{sources.xia2['folder']}: xia2 settled on {settled}, {sources.files[0]} has {space_group.info()}; the map "
        "has the symmetry of the latter, dials.reindex changes it"
    )


def _of_folder(folder: Path) -> list:
    for pattern in _PLACES:
        pairs = []
        for experiments in sorted(folder.glob(pattern)):
            reflections = experiments.with_suffix(".refl")
            pairs += [str(experiments)] + ([str(reflections)] if reflections.is_file() else [])
        if pairs:
            return pairs
    looked = ", ".join(_PLACES)
    raise DiffuseError(f"{folder}: no results of xia2 or DIALS ({looked}) in this folder; has the run finished?")


def _facts(folder: Path) -> dict:
    """Space group and cell of a xia2 run, from xia2.json or xia2-summary.dat; only for the record."""
    facts = {"folder": str(folder), "space_group": None, "unit_cell": None}
    try:
        found = _search(json.loads((folder / "xia2.json").read_text(encoding="utf-8")))
        facts.update({key: value for key, value in found.items() if value})
    except (OSError, ValueError):
        pass
    if facts["space_group"] is None:
        try:
            summary = (folder / "xia2-summary.dat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            summary = ""
        match = re.search(r"spacegroup:?\s*(\S.*)", summary, re.IGNORECASE)
        facts["space_group"] = match[1].strip() if match else None
    known = facts["space_group"] or facts["unit_cell"] or (folder / "DataFiles").is_dir()
    return facts if known else {}


def _search(content) -> dict:
    """The first space group and cell of a scaler anywhere in xia2.json."""
    found: dict = {"space_group": None, "unit_cell": None}
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            groups, cell = item.get("_scalr_likely_spacegroups"), item.get("_scalr_cell")
            if isinstance(groups, list) and groups and found["space_group"] is None:
                found["space_group"] = str(groups[0])
            if isinstance(cell, list) and len(cell) == 6 and found["unit_cell"] is None:
                found["unit_cell"] = cell
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found
