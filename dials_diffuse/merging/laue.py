"""Average observations over the Laue group: sums first, one division at the end."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from dials_diffuse.checks import choice
from dials_diffuse.crystals.choice import CrystalChoice
from dials_diffuse.crystals.choose import choose_crystals
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.identity import check_images
from dials_diffuse.files.observations import ObservationFile
from dials_diffuse.kernels.merging import add_rows, count_rows
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.laue_check import CHECKS, check_laue_group
from dials_diffuse.maps.laue_group import LaueTest
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.mates import SAMPLE_COLUMNS, LowAngles
from dials_diffuse.maps.shells import resolution_range
from dials_diffuse.maps.voxels import (
    Voxels,
    blocks_of_rows,
    check_distinct,
    common_grid,
    find_voxels,
    memory_of_voxels,
    numbered_blocks,
    refused_in_words,
)
from dials_diffuse.memory import check_memory
from dials_diffuse.merging.bragg_holes import BraggHoles, missing
from dials_diffuse.merging.brightness import SweepSums, unlike_in_words
from dials_diffuse.merging.half_sets import KINDS, SUMS, columns_needed, split
from dials_diffuse.merging.statistics import Mates, ShellTable, mates_in_words, shell_statistics
from dials_diffuse.parallel import Progress, quiet

logger = logging.getLogger("dials.diffuse.merging")

ESTIMATORS = ("ratio", "mean")

#: rows that are in memory together
_ROWS = 1 << 18


@dataclass(frozen=True)
class MergeParameters:
    """What to merge how.

    space_group : symbol of the group to average over, in the setting of the data; None: the group of the files
    friedel : treat (h, k, l) and (-h, -k, -l) as equivalent
    half_sets : one of ``half_sets.KINDS``; seed : for random half sets
    estimator : one of ``ESTIMATORS``, see :func:`estimate`
    symmetry_check : what to do about a group that the data do not have, one of ``laue_check.CHECKS``
    fill_bragg_holes : add what Bragg masks took of voxels at lattice points, see ``bragg_holes``
    crystals : which of them to keep, and in which setting; of one scaled file all are kept
    n_shells, d_max, d_min : shells and range of resolution (Å) of the statistics; None: the whole map

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """

    space_group: str | None = None
    friedel: bool = True
    half_sets: str = "random"
    seed: int = 0
    estimator: str = "ratio"
    n_shells: int = 20
    d_max: float | None = None
    d_min: float | None = None
    crystals: CrystalParameters = field(default_factory=CrystalParameters)
    symmetry_check: str = "error"
    fill_bragg_holes: bool = True

    def __post_init__(self):
        choice("half_sets", self.half_sets, KINDS)
        if self.half_sets == "friedel" and not self.friedel:
            raise DiffuseError("half_sets=friedel needs friedel=True: both mates must belong to one voxel")
        choice("estimator", self.estimator, ESTIMATORS)
        choice("symmetry.check", self.symmetry_check, CHECKS)
        for name, value in (("friedel", self.friedel), ("seed", self.seed), ("statistics.n_shells", self.n_shells)):
            if value is None:
                raise DiffuseError(f"{name}=None: a value is needed; leave it out to have the default")
        if self.seed < 0:
            raise DiffuseError(f"seed={self.seed}: must not be negative")
        if self.n_shells < 1:
            raise DiffuseError(f"n_shells={self.n_shells}: at least one shell is needed")
        d_min, d_max = self.d_min, math.inf if self.d_max is None else self.d_max
        if (d_min is not None and not d_min > 0) or not d_max > (d_min or 0):  # so that NaN is refused
            raise DiffuseError(f"statistics.d_min={self.d_min}, statistics.d_max={self.d_max}: need 0 < d_min < d_max")


@dataclass(frozen=True)
class MergeResult:
    """A merged map, its statistics, and what was left out.

    n_observations : rows that were averaged
    n_off_grid, n_refused : rows outside the resolution limits, and rows without a positive norm
    identifiers : of the experiments that were merged
    crystals : CrystalChoice of all experiments of the files; None where there is but one, or one scaled file
    warnings : sentences for the user
    symmetry : LaueTest, what the data say of their symmetry; None where nobody asked
    brightness : Brightness of each sweep, where there are several
    holes : what was added to voxels at lattice points; None where nothing was
    """

    map: DiffuseMap
    statistics: ShellTable
    n_observations: int
    n_off_grid: int
    n_refused: int
    identifiers: tuple
    crystals: CrystalChoice | None
    warnings: tuple
    symmetry: LaueTest | None
    brightness: tuple = ()
    holes: BraggHoles | None = None


def estimate(sums: np.ndarray, estimator: str = "ratio") -> tuple:
    """Intensity and sigma from sums; NaN where the norm is zero.

    ``ratio``: I = (sum C - sum b) / sum c, maximum likelihood for Poisson counts; the variance is
    (max(sum C, 1) + sum var b) / (sum c)^2. ``mean``: I = sum ((C - b) / c) / n, with the variance
    (sum (C / c^2) + (sum var b) / c'^2) / n^2, where c' = sum c / n stands for the norm of each background pixel, and
    where the first term is not less than one count at that norm, 1 / c'^2.

    Parameters
    ----------
    sums : (..., 7) float64, columns in the order of ``half_sets.SUMS``
    estimator : ``ratio`` or ``mean``

    Returns
    -------
    intensity, sigma : (...) float64

    Source: docs/theory.md, The measurement
    """
    counts, norm, background, background_variance, pixels, rate, rate_variance = np.moveaxis(sums, -1, 0)
    measured = (norm > 0) & (pixels > 0)
    c = np.where(measured, norm, np.nan)
    n = np.where(measured, pixels, np.nan)
    if estimator == "ratio":
        return (counts - background) / c, np.sqrt(np.maximum(counts, 1) + background_variance) / c
    per_count = (n / c) ** 2
    variance = np.maximum(rate_variance, per_count) + background_variance * per_count
    return rate / n, np.sqrt(variance) / n


def memory_estimate(grid: MapGrid, n_rows: int) -> float:
    """Upper limit in bytes of what merging so many observations takes; voxels without any cost nothing."""
    return 3 * memory_of_voxels(grid, n_rows) + 60 * 8 * _ROWS


def merge_observations(
    paths,
    parameters: MergeParameters,
    progress: Progress = quiet,
    rows: int = _ROWS,
) -> MergeResult:
    """Average observation files over the Laue group (or the point group).

    Two passes stream over the files: the first finds which voxels occur, the second adds up their sums. Memory depends
    on the number of voxels, hardly on the number of observations.

    Parameters
    ----------
    paths : observation files
    parameters : MergeParameters
    progress : called with (iterable, length, label), passes the items through
    rows : observations that are in memory together; the result does not depend on it

    Raises
    ------
    DiffuseError
        If a file is not readable or given twice, if the files do not fit together, if the range of the statistics lies
        outside the map, if the space group is too high, or if nothing is left to merge.

    Examples
    --------
    >>> result = merge_observations(["diffuse_integrated.h5"], MergeParameters(half_sets="frame"))
    >>> print(result.map.volume().shape, result.statistics.overall["completeness"])
    (17, 17, 25) 1.0
    """
    check_distinct(paths)
    with ExitStack() as stack:
        files = [stack.enter_context(ObservationFile(path)) for path in paths]
        for file in files:
            if file.n_rows == 0:
                raise DiffuseError(f"{file.path}: holds no observations; integrate again, or leave the file out")
        check_images(files)
        units = _common_units(files)
        files, grid, crystals = _chosen(files, parameters, progress)
        resolution_range(grid, parameters.d_max, parameters.d_min)
        _report_size(grid, files)
        total = sum(math.ceil(file.n_rows / rows) for file in files)
        blocks = progress(blocks_of_rows(files, ("index", "norm"), rows), total, "finding voxels")
        voxels, n_refused = find_voxels(blocks, grid, parameters.friedel)
        if len(voxels.index) == 0:
            raise DiffuseError(f"{files[0].path}: no observation has a positive norm inside d_min; integrate again")
        n_rows = sum(file.n_rows for file in files)
        low = LowAngles(grid, n_rows, at_centres=all(file.scaled for file in files))
        columns = {"index", *columns_needed(parameters.half_sets), *SAMPLE_COLUMNS}
        identifiers = tuple(e.identifier for file in files for e in file.experiments)
        sweeps = SweepSums(len(identifiers), grid.d_min)
        blocks = sweeps.watch(low.watch(progress(numbered_blocks(files, columns, rows), total, "merging")))
        sums, multiplicity, mates = _add_up((block for _, block in blocks), voxels, parameters)
        symmetry, notes = check_laue_group(low, parameters.symmetry_check, paths[0])

    added = _fill_holes(sums, multiplicity, grid, voxels.index, parameters) if parameters.fill_bragg_holes else None
    merged = replace(_divide(sums, multiplicity, grid, voxels.index, parameters), units=units)
    table = shell_statistics(merged, mates, parameters.n_shells, parameters.d_max, parameters.d_min)
    n_used = int(multiplicity.sum(dtype=np.int64))
    n_off_grid = n_rows - n_used - n_refused
    brightness = sweeps.compare(identifiers)
    warnings = [
        *(crystals.warnings if crystals else ()),
        *notes,
        *unlike_in_words(brightness, table.overall),
        *mates_in_words(table.overall),
    ]
    warnings += refused_in_words(n_refused, n_rows)
    if n_off_grid > 0.5 * n_rows:
        warnings.append(f"{n_off_grid} of {n_rows} observations lie outside d_min={grid.d_min:g}, d_max={grid.d_max:g}")
    if not math.isfinite(table.overall["cc_half"]):
        warnings.append(f"no correlation of half sets: half_sets={parameters.half_sets} leaves too few common voxels")
    merged = replace(merged, statistics=table.shells, overall=table.overall)
    return MergeResult(
        merged,
        table,
        n_used,
        n_off_grid,
        n_refused,
        identifiers,
        crystals,
        tuple(warnings),
        symmetry,
        brightness,
        added,
    )


def _chosen(files: list, parameters: MergeParameters, progress: Progress) -> tuple:
    """What is read, its grid, and the choice of crystals, which was made for a scaled file when it was scaled."""
    if len(files) == 1 and files[0].scaled:
        return files, common_grid(files, parameters.space_group), None
    return choose_crystals(files, parameters.crystals, parameters.space_group, progress)


def _common_units(files) -> str:
    first = files[0]
    for other in files[1:]:
        if other.units != first.units:
            raise DiffuseError(
                f"{first.path} and {other.path} cannot be merged: their intensities are in {first.units} and "
                f"{other.units}; scale them together with dials.diffuse_scale"
            )
    return first.units


def _report_size(grid: MapGrid, files) -> None:
    n_rows = sum(file.n_rows for file in files)
    needed = memory_estimate(grid, n_rows)
    logger.info(
        "Grid of %s voxels (%.1f million) to d_min = %.2f Å in %s; %d observations; memory up to about %.1f GB",
        " x ".join(map(str, grid.shape)),
        grid.n_voxels / 1e6,
        grid.d_min,
        grid.space_group_symbol,
        n_rows,
        needed / 1e9,
    )
    check_memory(
        needed,
        f"{files[0].path}: {n_rows} observations",
        "integrate with a smaller grid.subdivide or a larger d_min, or merge on a computer with more memory",
    )


def _add_up(blocks, voxels: Voxels, parameters: MergeParameters) -> tuple:
    """Sums of unique voxels by half set (u, 2, 7), their multiplicity (u,), and the sums before averaging."""
    n_unique, n_mates = len(voxels.index), len(voxels.unique)
    sums = np.zeros((n_unique * 2, len(SUMS)))
    multiplicity = np.zeros(n_unique, dtype=np.int32)
    before = np.zeros((n_mates, 3))
    rng = np.random.default_rng(parameters.seed)
    for block in blocks:
        slot = voxels.rows(block["index"], block["norm"])
        used = slot >= 0
        unique = np.where(used, voxels.unique[slot], -1)
        for in_b, values in split(parameters.half_sets, block, voxels.inverted[slot], rng):
            add_rows(np.where(used, 2 * unique + in_b, -1), values, sums)
        count_rows(unique, multiplicity)
        net = block["counts"] - block["background"]
        add_rows(slot, np.stack([net, block["norm"], block["background"] + block["background_variance"]]), before)
    return sums.reshape(n_unique, 2, -1), multiplicity, Mates(voxels.unique, voxels.inverted, *before.T)


def _fill_holes(sums, multiplicity, grid: MapGrid, index, parameters: MergeParameters) -> BraggHoles | None:
    """Take what Bragg masks left out of voxels at lattice points off their background; ``sums`` are changed."""
    columns = [sums.sum(axis=1), sums[:, 0], sums[:, 1]]  # each half by itself: their errors stay independent
    intensity, sigma = (np.stack(c, axis=1) for c in zip(*(estimate(c, parameters.estimator) for c in columns)))
    pixels = columns[0][:, SUMS.index("pixels")] / np.maximum(multiplicity, 1)
    rows, delta, variance, part = missing(grid, parameters.friedel, index, pixels, intensity, sigma)
    if not len(rows):
        return None
    norm = sums[rows, :, SUMS.index("norm")]
    sums[rows, :, SUMS.index("background")] -= delta[:, 1:] * norm
    sums[rows, :, SUMS.index("background_variance")] += (variance * norm.sum(axis=1))[:, None] * norm
    sums[rows, :, SUMS.index("rate")] += delta[:, 1:] * sums[rows, :, SUMS.index("pixels")]
    found = BraggHoles(
        len(rows), float(np.median(part)), float(delta[:, 0].mean()), float(np.sqrt(np.mean(delta[:, 0] ** 2)))
    )
    logger.info(
        "Bragg masks leave %.0f %% (median) of %d voxels at lattice points, their rims; %.4g is added (mean)",
        100 * found.pixels,
        found.voxels,
        found.added,
    )
    return found


def _divide(sums, multiplicity, grid: MapGrid, index, parameters: MergeParameters) -> DiffuseMap:
    intensity, sigma = estimate(sums.sum(axis=1), parameters.estimator)
    halves, _ = estimate(sums, parameters.estimator)
    return DiffuseMap(
        grid=grid,
        friedel=parameters.friedel,
        index=index,
        intensity=intensity,
        sigma=sigma,
        multiplicity=multiplicity,
        half_a=halves[:, 0],
        half_b=halves[:, 1],
        half_sets=parameters.half_sets,
        sums={name: sums[:, :, i] for i, name in enumerate(SUMS)},
    )
