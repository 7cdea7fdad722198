"""Which crystals of some observation files are kept, and in which setting: before anything is scaled or merged."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.crystals.cells import cell_clusters, mean_cell, own_cells, reindexed_cell
from dials_diffuse.crystals.choice import AGREES, CONTRADICTS, OTHER_CELL, UNTESTED, Crystal, CrystalChoice
from dials_diffuse.crystals.clusters import Limits, Verdict, find_clusters, judge, usual_correlation
from dials_diffuse.crystals.contrast import measure_contrasts, read_rows
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.crystals.pairs import Compared, Likeness, compare_crystals
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.chosen import ChosenFile, Reindexing
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.settings import products, settings_of_lattice, untested_in_words
from dials_diffuse.maps.voxels import cell_text, common_grid
from dials_diffuse.parallel import Progress, quiet

logger = logging.getLogger("dials.diffuse.crystals")

#: crystals that are left out are named one by one if there are not more
_NAMED = 10


def choose_crystals(
    files, parameters: CrystalParameters, space_group: str | None = None, progress: Progress = quiet
) -> tuple:
    """Compare unit cells and maps of all crystals, and choose those that belong together.

    Parameters
    ----------
    files : open ObservationFile objects
    space_group : symbol; None: that of the files
    progress : wraps an iterator as ``progress(items, total, label)``

    Returns
    -------
    files : to be read in place of those given: without the crystals that are left out, and the others in one setting
    grid : MapGrid of them, with their mean cell
    choice : CrystalChoice; None where there is only one crystal

    Raises
    ------
    DiffuseError
        If files differ in what must be alike (subdivision, space group), if two clusters of unit cells are equally
        large, or if a cluster is asked for that is not there.

    Source: docs/theory.md, Which crystals belong together
    """
    places = [(file, number) for file in files for number in range(len(file.experiments))]
    if len(places) < 2:
        return list(files), common_grid(files, space_group), None
    cells = own_cells(files)
    cell_label = cell_clusters(cells, parameters.cell_tolerance)
    same_cell = _same_cell(places, cell_label, parameters)
    grid = common_grid(files, space_group, mean_cell([c for c, same in zip(cells, same_cell) if same]))
    if parameters.keep == "auto":  # after what all files must have in common
        _check_cells(places, cells, cell_label, parameters.cell_cluster)
    compared = np.flatnonzero(same_cell)
    settings, untested = settings_of_lattice(grid)
    found = _compare(files, grid, settings, compared, progress)
    decided = _decide(found, products(settings, grid.space_group), parameters)

    crystals, reindexed = [], {}
    mean = cell_text(round(x, 3) for x in grid.unit_cell)
    for k, (file, number) in enumerate(places):
        crystal = Crystal(
            path=str(file.path),
            number=number,
            identifier=file.experiments[number].identifier,
            unit_cell=tuple(cells[k]),
            cell_cluster=int(cell_label[k]) + 1,
            kept=False,
            verdict=OTHER_CELL,
            operator=settings[0].operator,
            reason=f"its unit cell {cell_text(cells[k])} differs from {mean}, the mean of those that are kept",
        )
        if same_cell[k]:
            place = int(np.searchsorted(compared, k))
            crystal = _described(crystal, decided, place, [s.operator for s in settings])
            if decided.setting[place]:
                setting = settings[decided.setting[place]]
                on_lattice = setting.on_lattice(grid.subdivide)[0]
                reindexed[k] = Reindexing(setting.operator, setting.matrix, on_lattice)
        crystals.append(crystal)
    warnings = _warnings(crystals, decided, parameters)
    if untested:
        warnings.append(untested_in_words(untested, grid.subdivide))
    opened, grid = _opened(files, crystals, reindexed, space_group)
    choice = CrystalChoice(
        crystals=tuple(crystals),
        operators=tuple(s.operator for s in settings),
        compared=compared,
        **decided.matrices,
        joins=decided.joins,
        usual=decided.usual,
        warnings=tuple(warnings),
    )
    _log(choice)
    return opened, grid, choice


def _same_cell(places: list, label: np.ndarray, parameters: CrystalParameters) -> np.ndarray:
    """(n,) bool, the crystals whose cells are those that are kept."""
    if parameters.keep == "all" or (parameters.cell_cluster is None and _no_majority(label) and _one_file(places)):
        return np.ones(len(label), dtype=bool)
    return label == min((parameters.cell_cluster or 1) - 1, label.max())


def _no_majority(label: np.ndarray) -> bool:
    sizes = np.bincount(label)
    return len(sizes) > 1 and sizes[0] == sizes[1]


def _one_file(places: list) -> bool:
    """Have the crystals been brought onto one grid by dials.diffuse_integrate?"""
    return len({id(file) for file, _ in places}) == 1


def _check_cells(places, cells, label: np.ndarray, wanted: int | None) -> None:
    """DiffuseError if no cluster of cells is the largest, or the one that is wanted is not there."""
    if wanted is not None:
        n = int(label.max()) + 1
        if wanted > n:
            raise DiffuseError(f"crystals.cell_cluster={wanted}: there are only {n} clusters of unit cells")
    elif _no_majority(label) and not _one_file(places):
        a, b = (int(np.argmax(label == k)) for k in range(2))
        raise DiffuseError(
            f"{places[a][0].path} and {places[b][0].path} cannot be merged: the unit cells are {cell_text(cells[a])} "
            f"and {cell_text(cells[b])}, and no cluster of cells is the largest; merge crystals of the same cell only "
            "(crystals.cell_cluster=1 or 2), or give crystals.keep=all"
        )


def _compare(files, grid: MapGrid, settings: list, crystals: np.ndarray, progress: Progress) -> Compared:
    n_all = sum(len(file.experiments) for file in files)
    rows = read_rows(files, sum(file.n_rows for file in files), progress)
    rank = np.full(n_all, -1)
    rank[crystals] = np.arange(len(crystals))
    if len(crystals) < n_all:
        keep = np.flatnonzero(rank[rows["experiment"]] >= 0)
        rows = {name: column[keep] for name, column in rows.items()}
    if not len(rows["norm"]):
        raise DiffuseError(f"{files[0].path}: no observation has a positive norm inside d_min; integrate again")
    rows["experiment"] = rank[rows["experiment"]]
    return compare_crystals(measure_contrasts(rows, grid, len(crystals)), grid, settings)


@dataclass(frozen=True)
class _Decided:
    """Of the crystals whose maps were compared: cluster from 0, setting, whether they are kept, and what for."""

    label: np.ndarray
    setting: np.ndarray
    kept: np.ndarray
    verdicts: list
    inside: np.ndarray
    majority: bool
    joins: tuple
    usual: float
    matrices: dict


def _decide(found: Compared, product: np.ndarray, parameters: CrystalParameters) -> _Decided:
    usual = usual_correlation(found.likeness)
    fixed, limits = parameters.reindex == "none", Limits(parameters.min_correlation * usual, usual)
    few = slice(1) if fixed else slice(None)
    likeness = Likeness(*(x[few] for x in found.likeness))
    voxels = replace(found.voxels, source=found.voxels.source[few])
    clusters = find_clusters(found.maps, voxels, likeness, product[few, few], limits)
    number = (parameters.cluster or 1) - 1
    sizes = np.bincount(clusters.label)
    if number >= len(sizes):
        raise DiffuseError(f"crystals.cluster={parameters.cluster}: there are only {len(sizes)} clusters of maps")
    inside, setting, verdicts = judge(found.maps, found.voxels, clusters, product, number, limits, fixed)
    outside = np.array([v.contradicts for v in verdicts]) & ~inside
    rivals = [n for n in range(1, len(sizes)) if sizes[n] == sizes[0] and np.all(outside[clusters.label == n])]
    majority = parameters.cluster is not None or not rivals
    kept = ~outside if majority and parameters.keep == "auto" else np.ones(len(outside), dtype=bool)
    n = len(setting)
    inverse = np.argmin(product, axis=1)
    relation = product[setting[:, None], inverse[setting][None]]
    i, j = np.ogrid[:n, :n]
    rho, variance, common = (x[relation, i, j] for x in found.likeness)
    known = np.isfinite(variance)
    matrices = {
        "observed": np.where(known, found.observed[relation, i, j], np.nan),
        "corrected": np.where(known, rho, np.nan),
        "esd": np.where(known, np.sqrt(np.where(known, variance, 0.0)), np.nan),
        "common": common,
    }
    return _Decided(clusters.label, setting, kept, verdicts, inside, majority, clusters.joins, usual, matrices)


def _described(crystal: Crystal, decided: _Decided, place: int, operators: list) -> Crystal:
    """The crystal with what its map told."""
    verdict: Verdict = decided.verdicts[place]
    best = operators[verdict.setting] if verdict.setting else operators[decided.setting[place]]
    if decided.inside[place]:
        told = AGREES if verdict.rho > 0 else UNTESTED
    else:
        told = CONTRADICTS if verdict.contradicts else UNTESTED
    reasons = {
        AGREES: "",
        UNTESTED: f"too weak, or too few voxels in common with others ({verdict.common}), to be tested",
        CONTRADICTS: "its map contradicts those of the others: the anisotropic parts, corrected for noise, correlate "
        f"by {verdict.rho:.2f} +- {verdict.error:.2f}",
    }
    if told == CONTRADICTS and verdict.setting:
        reasons[told] = (
            f"it is indexed otherwise than the others: their anisotropic parts, corrected for noise, correlate by "
            f"{verdict.rho:.2f} +- {verdict.error:.2f} after {best}, and by {verdict.rho_as_given:.2f} as they are"
        )
    return replace(
        crystal,
        cluster=int(decided.label[place]) + 1,
        operator=operators[decided.setting[place]],
        suggested=best,
        observed=verdict.observed,
        correlation=verdict.rho,
        esd=verdict.error,
        correlation_as_given=verdict.rho_as_given,
        common=verdict.common,
        kept=bool(decided.kept[place]),
        verdict=told,
        reason=reasons[told],
    )


def _opened(files, crystals: list, reindexed: dict, space_group: str | None) -> tuple:
    """Files without crystals that are left out, with the others reindexed, and their grid."""
    opened, cells, first = [], [], 0
    for file in files:
        numbers = range(first, first + len(file.experiments))
        kept = [k for k in numbers if crystals[k].kept]
        whole = len(kept) == len(numbers)
        for k in kept:
            cell = file.grid.unit_cell if whole else crystals[k].unit_cell
            cells.append(reindexed_cell(cell, reindexed[k].matrix) if k in reindexed else cell)
        if whole and not any(k in reindexed for k in kept):
            opened.append(file)
        elif kept:
            opened.append(ChosenFile(file, {k - first: reindexed.get(k) for k in kept}))
        first = numbers.stop
    return opened, common_grid(opened, space_group, mean_cell(cells))


def _warnings(crystals: list, decided: _Decided, parameters: CrystalParameters) -> list:
    bad = [(k, c) for k, c in enumerate(crystals) if c.verdict in (CONTRADICTS, OTHER_CELL)]
    untested = [str(k) for k, c in enumerate(crystals) if c.verdict == UNTESTED]
    doubts = []
    if untested and any(decided.setting):
        doubts = [
            f"no test of crystals {', '.join(untested)}: too weak, or too few voxels in common with others; they are "
            "kept as they are indexed, though others were reindexed"
        ]
    if not bad:
        return doubts
    kept = sum(c.kept for c in crystals)
    if len(bad) <= _NAMED:
        warnings = [
            f"crystal {k} ({c.identifier}) {'is kept, but' if c.kept else 'is left out:'} {c.reason}" for k, c in bad
        ]
    elif kept < len(crystals):
        causes = [(what, sum(c.verdict == what for _, c in bad)) for what in (OTHER_CELL, CONTRADICTS)]
        text = " and ".join(f"{n} for the {what}" for what, n in causes if n)
        warnings = [
            f"{len(crystals) - kept} of {len(crystals)} crystals are left out: {text}; the table above tells why"
        ]
    else:
        warnings = [f"{len(bad)} of {len(crystals)} crystals are kept, but do not agree with the others"]
    if not decided.majority and parameters.keep == "auto":
        warnings.append(
            "no cluster of crystals is larger than the others, all are kept; choose one with crystals.cluster=1 "
            "(2, 3 ...), or say crystals.keep=all"
        )
    elif kept < len(crystals) / 2:
        warnings.append(f"only {kept} of {len(crystals)} crystals are kept")
    return [*warnings, *doubts]


def _log(choice: CrystalChoice) -> None:
    n = len(choice.crystals)
    kept = sum(c.kept for c in choice.crystals)
    turned = sum(c.operator != choice.operators[0] for c in choice.crystals if c.kept)
    logger.info("%d of %d crystals are kept, %d of them reindexed", kept, n, turned)
