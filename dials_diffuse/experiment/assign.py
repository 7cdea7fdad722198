"""Which reflections belong to which experiment: identifiers say it, not positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dials.array_family import flex
from dxtbx import flumpy

from dials_diffuse.errors import DiffuseError

#: of reflections that no identifier assigns, the part that may be on none of the images
MAX_STRANGE = 0.05

#: images on both sides of its centre that a reflection without bounding box may reach
HALF_BOX = 5.0


@dataclass(frozen=True)
class LeftOut:
    """Reflections of a file that belong to no experiment, or to none of its images."""

    file: str
    reason: str
    count: int


@dataclass(frozen=True)
class Table:
    """A reflection file.

    Attributes
    ----------
    path : str
    reflections : dials reflection_table
    experiments : range, the experiments of the .expt file that was given with it; None where that is not clear
    """

    path: str
    reflections: flex.reflection_table
    experiments: range | None


def assign_reflections(tables: Sequence[Table], experiments, sources: Sequence[str], used) -> tuple:
    """One table of all reflections that belong to an experiment, with the number of the experiment as ``id``.

    A table that names its data sets by identifiers gives its reflections to the experiments of these names, in whatever
    order and file they are. Data sets that are not among the experiments are left out: dials.scale, for one, drops
    some of them from the .expt but not from the .refl. Tables without identifiers go by position, each with its .expt.
    Of a scan only its images count: a reflection belongs if its bounding box is on one of them, wherever its centre is
    predicted.

    Parameters
    ----------
    experiments : dxtbx experiments
    sources : the .expt file of each of them, for messages
    used : numbers of the experiments of which any image is used

    Returns
    -------
    reflections : dials reflection_table without identifiers
    left_out : list of LeftOut

    Raises
    ------
    DiffuseError
        If a table belongs to none of the experiments, or if two hold reflections of the same one.
    """
    left_out: list = []
    result = flex.reflection_table()
    owners: dict = {}
    for table in tables:
        number, reason = _experiment_numbers(table, experiments, sources)
        for i in np.unique(number[number >= 0]).tolist():
            if i in owners:
                raise DiffuseError(
                    f"{table.path}: holds reflections of experiment {i} ({sources[i]}), as {owners[i]} does; give one "
                    f"of them"
                )
            owners[i] = table.path
        by_name = bool(_names(table.reflections)) and bool(_positions(experiments))
        strict = 1.0 if by_name else MAX_STRANGE
        number, reason = _on_images(table, experiments, sources, used, number, reason, strict)
        for why in dict.fromkeys(reason[number < 0]):
            left_out.append(LeftOut(table.path, str(why), int(np.count_nonzero((reason == why) & (number < 0)))))
        part = table.reflections
        part["id"] = flumpy.from_numpy(number.astype(np.int32))
        for key in list(part.experiment_identifiers().keys()):  # the numbers hold now, and extend() refuses both
            del part.experiment_identifiers()[key]
        result.extend(part.select(flumpy.from_numpy(np.flatnonzero(number >= 0).astype(np.uint64))))
    return result, left_out


def _names(reflections) -> dict:
    """Identifiers of a table, {id: identifier}; tables of old versions have none, or empty ones."""
    identifiers = reflections.experiment_identifiers()
    return {int(key): identifiers[key] for key in list(identifiers.keys()) if identifiers[key]}


def _positions(experiments) -> dict:
    """{identifier: number of the experiment}"""
    return {e.identifier: i for i, e in enumerate(experiments) if e.identifier}


def _experiment_numbers(table: Table, experiments, sources) -> tuple:
    """Number of the experiment of each reflection (-1: none), and why there is none; (n,) each."""
    ids = np.array(table.reflections["id"])
    known, names = _positions(experiments), _names(table.reflections)
    number = np.full(len(ids), -1)
    reason = np.full(len(ids), "not indexed", dtype=object)
    if names and known:
        if len(set(names.values())) < len(names):
            twice = sorted(v for v in names.values() if list(names.values()).count(v) > 1)[0]
            raise DiffuseError(f"{table.path}: identifier {twice} stands for two ids; write the file again with DIALS")
        if not set(names.values()) & set(known):
            raise DiffuseError(
                f"{table.path} does not belong to {_partner(table, sources)}: experiment identifier "
                f"{sorted(names.values())[0]} is not in it; give files of the same step"
            )
        for i in np.unique(ids[ids >= 0]).tolist():
            mine = ids == i
            number[mine] = known.get(names.get(i), -1)
            reason[mine] = f"no experiment {names[i]}" if i in names else f"id {i} without identifier"
        return number, reason
    if table.experiments is None:
        raise DiffuseError(
            f"{table.path}: without experiment identifiers (in it or in the .expt) one .refl for each .expt is needed, "
            f"in the same order; give as many"
        )
    highest = int(ids.max())
    if highest < 0:
        raise DiffuseError(f"{table.path}: no reflection is indexed; give the output of dials.integrate")
    if highest + 1 != len(table.experiments):
        raise DiffuseError(
            f"{table.path} does not belong to {_partner(table, sources)}: without identifiers ids are positions; it "
            f"has id {highest} but the other has {len(table.experiments)} experiments; give matching files"
        )
    number[ids >= 0] = ids[ids >= 0] + table.experiments.start
    return number, reason


def _partner(table: Table, sources) -> str:
    """The .expt file, or files, that a table should belong to."""
    return sources[table.experiments.start] if table.experiments else ", ".join(dict.fromkeys(sources))


def _on_images(table: Table, experiments, sources, used, number, reason, strict: float) -> tuple:
    """As :func:`_experiment_numbers`, without the reflections that are on no image of their experiment.

    strict : part of the reflections of an experiment that may be so, in experiments that are ``used``
    """
    reflections = table.reflections
    number, reason = number.copy(), reason.copy()
    reach = _reach(reflections)
    panels = np.array(reflections["panel"])
    for i in np.unique(number[number >= 0]).tolist():
        mine = np.flatnonzero(number == i)
        experiment, both = experiments[i], f"{table.path} does not belong to {sources[i]}"
        if i in used and panels[mine].max() >= len(experiment.detector):
            raise DiffuseError(f"{both}: panel {panels[mine].max()} is not in the detector; give matching files")
        if reach is None or experiment.scan is None:
            continue
        low, high = reach[0][mine], reach[1][mine]
        first, last = experiment.scan.get_array_range()
        empty = high <= low
        outside = ~empty & ((high <= first) | (low >= last))
        if i in used and outside.any() and np.mean(outside[~empty]) >= strict:
            raise DiffuseError(
                f"{both}: reflections on images {low[outside].min() + 1:.0f}..{high[outside].max():.0f}, but the scan "
                f"has images {first + 1}..{last}; give matching files"
            )
        for strange, why in ((empty, "no bounding box"), (outside, "on none of the images")):
            number[mine[strange]], reason[mine[strange]] = -1, why
    return number, reason


def _reach(reflections) -> tuple | None:
    """First and last array index that a reflection reaches, (n,) each; None where the table does not say.

    From the bounding boxes; where there are none, some images around the centres, which are predicted or observed.
    """
    if "bbox" in reflections:
        return tuple(np.array(part, dtype=float) for part in reflections["bbox"].parts()[4:])
    column = next((c for c in ("xyzcal.px", "xyzobs.px.value") if c in reflections), None)
    if column is None:
        return None
    z = np.array(reflections[column].parts()[2])
    return z - HALF_BOX, z + HALF_BOX
