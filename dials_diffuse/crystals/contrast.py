"""The anisotropic part of each crystal before anything is scaled, relative to what surrounds it, with its errors.

A row of the observations is divided by the isotropic part of its crystal, and then by the mean over the neighbouring
voxels that were seen together with it. Beam, absorption, drift and a background of liquid go with that. What is left
varies from voxel to voxel, and only that is compared.

Source: docs/theory.md, Which crystals belong together
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import unique_voxels
from dials_diffuse.maps.voxels import blocks_of_rows, blocks_of_voxels

COLUMNS = (
    *("index", "experiment", "entering", "counts", "norm", "background", "background_variance", "s"),
    *("counts_odd", "norm_odd", "background_odd"),
)

#: rows that are compared, those of lowest |s|; and rows that are read together
_MAX_ROWS, _READ = 2_000_000, 1 << 18

#: rows of a crystal in a shell of its isotropic part, and how many shells there may be
_PER_SHELL, _MOST_SHELLS = 100, 200

#: a block is at least so many voxels wide, and holds so many rows
_BLOCK_WIDTH, _LEAST_IN_BLOCK = 6, 8

#: of the isotropic part: where the mean of a block is below, the background is most of it
_LEAST_MEAN = 0.2

#: times the usual deviation, to which values are limited: Bragg peaks, zingers
_LIMIT = 8.0

#: voxels of which both halves are needed to see whether counts scatter as photons do
_LEAST_HALVES = 50


@dataclass(frozen=True)
class Contrasts:
    """Anisotropic part of e crystals relative to their isotropic part.

    Attributes
    ----------
    index : (u, 3) int32, unique voxels
    value : (u, e) float64, 0 where not measured
    variance : (u, e) float64, from noise; infinite where not measured
    """

    index: np.ndarray
    value: np.ndarray
    variance: np.ndarray


def read_rows(files, n_rows: int, progress) -> dict:
    """Rows of lowest |s| of some files, {column: array}; experiments are counted through all files.

    n_rows : of all files
    """
    s_max = max(1 / file.grid.d_min for file in files)
    limit = s_max * min(1.0, (_MAX_ROWS / max(n_rows, 1)) ** (1 / 3))  # their number grows with the volume
    first = np.cumsum([0] + [len(file.experiments) for file in files])
    blocks = ((n, block) for n, file in zip(first, files) for block in blocks_of_rows([file], COLUMNS, _READ))
    parts = []
    for n, block in progress(blocks, sum(-(-file.n_rows // _READ) for file in files), "Comparing crystals"):
        use = np.flatnonzero((block["norm"] > 0) & (block["s"] <= limit))
        part = {name: column[use] for name, column in block.items()}
        part["experiment"] = part["experiment"] + n
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def measure_contrasts(rows: dict, grid: MapGrid, n: int) -> Contrasts:
    """Contrasts of n crystals from their rows, all in the same frame; rows : see :func:`read_rows`."""
    voxels = unique_voxels(rows["index"], grid.space_group, True)
    shape = len(voxels.index), n
    value, variance = np.zeros(shape), np.full(shape, np.inf)
    order = np.argsort(rows["experiment"], kind="stable")
    for number, mine in enumerate(np.split(order, np.searchsorted(rows["experiment"][order], np.arange(1, n)))):
        own = {name: column[mine] for name, column in rows.items()}
        relative = _relative(own, grid) if len(mine) else None
        if relative is not None:
            value[:, number], variance[:, number] = _of_voxels(relative, voxels.inverse[mine], len(voxels.index))
    return Contrasts(voxels.index, value, variance)


@dataclass(frozen=True)
class _Relative:
    """Rows relative to their surroundings: value, weight (1 / variance), and the same of odd and of even images."""

    value: np.ndarray
    weight: np.ndarray
    halves: tuple


def _relative(rows: dict, grid: MapGrid) -> _Relative | None:
    net, norm = rows["counts"] - rows["background"], rows["norm"]
    level = _isotropic(rows["s"].astype(float), net, norm)
    seen = level > 0
    expected = np.where(seen, level, 1.0) * norm
    noise = rows["background"] + rows["background_variance"]
    weight = np.where(seen, expected**2 / (expected + noise).clip(1e-300), 0.0)
    block = 2 * blocks_of_voxels(grid, rows["index"], _BLOCK_WIDTH) + (rows["entering"] != 0)
    block = np.unique(block, return_inverse=True)[1].reshape(-1)
    ratio = _limited(net / expected, weight)
    sums = [np.bincount(block, x) for x in (seen, weight, weight * ratio)]
    mean = np.divide(sums[2], sums[1], out=np.zeros(len(sums[0])), where=sums[0] >= _LEAST_IN_BLOCK)[block]
    seen &= mean > _LEAST_MEAN
    if not np.any(seen):
        return None
    expected = np.where(seen, expected * mean, 1.0)
    share = weight / sums[1][block].clip(1e-300)  # of a row in its mean, which takes that much of its noise off
    weight = np.where(seen, expected**2 / (expected + noise).clip(1e-300), 0.0)
    value = _limited(net / expected - 1, weight)
    odd = np.clip(rows["norm_odd"] / norm, 0, 1)
    net_odd = rows["counts_odd"] - rows["background_odd"]
    halves = []
    for part, own in ((odd, net_odd), (1 - odd, net - net_odd)):
        there = part > 1e-6
        ratio = np.divide(own, expected * part, out=np.ones(len(part)), where=there)
        halves.append((ratio - 1, np.where(there, weight * part, 0.0)))
    return _Relative(value, weight / (1 - share.clip(0, 0.5)), tuple(halves))


def _isotropic(s: np.ndarray, net: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """(n,) rate at |s|, between the means of shells that hold equal numbers."""
    order = np.argsort(s, kind="stable")
    parts = np.array_split(order, int(np.clip(len(s) // _PER_SHELL, 1, _MOST_SHELLS)))
    rate = np.array([net[part].sum() / norm[part].sum() for part in parts])
    return np.interp(s, [s[part].mean() for part in parts], rate)


def _limited(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Values not further from their median than so many times what is usual, in units of their errors."""
    used = weight > 0
    if not np.any(used):
        return value
    middle = np.median(value[used])
    usual = 1.4826 * np.median(np.abs(value[used] - middle) * np.sqrt(weight[used]))
    most = _LIMIT * usual / np.sqrt(np.where(used, weight, 1.0))
    return np.clip(value, middle - most, middle + most)


def _of_voxels(rows: _Relative, voxel: np.ndarray, n: int) -> tuple:
    """(n,) values and variances of unique voxels, from the rows that lie in each."""
    total, weight = _summed(rows.value, rows.weight, voxel, n)
    odd, even = (_summed(value, weight, voxel, n) for value, weight in rows.halves)
    both = np.flatnonzero((odd[1] > 0) & (even[1] > 0))
    excess = 1.0
    if len(both) >= _LEAST_HALVES:
        difference = odd[0][both] - even[0][both]
        t2 = difference**2 / (1 / odd[1][both] + 1 / even[1][both])
        excess = max(float(np.minimum(t2, 25 * np.median(t2)).mean()), 0.01)
    seen = weight > 0
    return total, np.divide(excess, weight, out=np.full(n, np.inf), where=seen)


def _summed(value, weight, voxel, n) -> tuple:
    total = np.bincount(voxel, weight, n)
    mean = np.divide(np.bincount(voxel, weight * value, n), total, out=np.zeros(n), where=total > 0)
    return mean, total
