"""A model prepared in blocks of voxels that an executor keeps: evaluations are computed where the blocks are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.dispersive import prepare_dispersive
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.prior import Prior
from dials_diffuse.parallel import Executor
from dials_diffuse.structure.crystal import Structure

logger = logging.getLogger("dials.diffuse.models")


def prepare_in_blocks(
    model,
    structure: Structure,
    grid: MapGrid,
    index: np.ndarray,
    means: bool,
    wavelength: float | None,
    executor: Executor,
) -> Prepared:
    """:func:`dispersive.prepare_dispersive`, in blocks where an evaluation takes long.

    The blocks, and so all results, do not depend on the executor.
    """
    number, means = model.blocks_of_voxels(structure, grid, len(index), means)
    if number == 1:
        return prepare_dispersive(model, structure, grid, index, means, wavelength)
    order = np.argsort(grid.s_magnitude(index), kind="stable")
    rows = np.array_split(order, number)
    logger.info("%s: %d blocks of %d voxels", model.name, number, max(map(len, rows)))
    task = _Task(model, structure, grid, means, wavelength)
    return PreparedBlocks(task, rows, executor.kept(_prepared, task, [index[part] for part in rows]))


@dataclass(frozen=True)
class _Task:
    model: object
    structure: Structure
    grid: MapGrid
    means: bool
    wavelength: float | None


@dataclass(frozen=True)
class _Facts:
    """What all blocks have in common."""

    parameters: tuple
    means: bool
    prior: Prior | None
    tensors: list


class PreparedBlocks(Prepared):
    """The intensity of all blocks.

    Parameters
    ----------
    task : what they were prepared with
    rows : for each block the voxels in it
    kept : Kept, Prepared of each
    """

    def __init__(self, task: _Task, rows: list, kept):
        self.origin, self.structure = task.model, task.structure
        self._rows, self._kept = rows, kept
        (self._facts,) = kept.call(_facts, [None])  # of the first block
        self.parameters, self.means, self.prior = self._facts.parameters, self._facts.means, self._facts.prior
        self._n = sum(map(len, rows))

    @cached_property
    def tensors(self) -> list:
        return self._facts.tensors

    def intensity(self, values) -> np.ndarray:
        result = np.empty(self._n)
        for rows, part in zip(self._rows, self._kept.call(_intensity, repeat(self._checked(values)))):
            result[rows] = part
        return result

    def jacobian(self, values) -> tuple:
        values = self._checked(values)
        intensity, jacobian = np.empty(self._n), np.empty((self._n, len(values)))
        for rows, parts in zip(self._rows, self._kept.call(_jacobian, repeat(values))):
            intensity[rows], jacobian[rows] = parts
        return intensity, jacobian

    def second(self, values, weights) -> np.ndarray:
        values, weights = self._checked(values), np.asarray(weights, dtype=float)
        return sum(self._kept.call(_second, [(values, weights[rows]) for rows in self._rows]))


def _prepared(task: _Task, index: np.ndarray) -> Prepared:
    return prepare_dispersive(task.model, task.structure, task.grid, index, task.means, task.wavelength)


def _facts(prepared: Prepared, _) -> _Facts:
    return _Facts(prepared.parameters, prepared.means, prepared.prior, prepared.tensors)


def _intensity(prepared: Prepared, values: np.ndarray) -> np.ndarray:
    return prepared.intensity(values)


def _jacobian(prepared: Prepared, values: np.ndarray) -> tuple:
    return prepared.jacobian(values)


def _second(prepared: Prepared, task: tuple) -> np.ndarray:
    return prepared.second(*task)
