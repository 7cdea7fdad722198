"""Some experiments of an observation file, each in a setting of its own: rows are rewritten while they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.files.observations import CHUNK, ExperimentSummary, ObservationFile


@dataclass(frozen=True)
class Reindexing:
    """A change of the setting.

    Attributes
    ----------
    operator : change of basis such as ``k,h,-l``
    matrix : (3, 3) int64, hkl' = hkl @ matrix
    on_lattice : (3, 3) int64, the same for indices of voxels
    """

    operator: str
    matrix: np.ndarray
    on_lattice: np.ndarray

    def of_experiment(self, experiment: ExperimentSummary) -> ExperimentSummary:
        """The summary of an experiment whose rows were reindexed: A h stays, the same place of the crystal."""
        orientation = experiment.orientation
        if orientation is not None:
            a = np.array(orientation, dtype=float).reshape(3, 3) @ np.linalg.inv(self.matrix).T
            orientation = tuple(a.ravel().tolist())
        return replace(experiment, orientation=orientation, reindexed=self.operator)


class ChosenFile:
    """Reads as the open ObservationFile does, but only rows of some experiments, which are numbered anew from 0.

    What depends on the setting is rewritten: indices of voxels and reflections, and the orientation of the crystal.
    Positions, |s|, counts and directions in the crystal are what they were.

    Parameters
    ----------
    file : an open ObservationFile
    settings : {number of an experiment in the file: its Reindexing, or None}, in ascending order; the others are left
        out

    Attributes
    ----------
    numbers : of the experiments, in the file
    The others are those of ObservationFile.
    """

    def __init__(self, file: ObservationFile, settings: dict):
        self._file, self._settings = file, settings
        self.numbers = tuple(settings)
        self.path, self.grid, self.units, self.scaled = file.path, file.grid, file.units, file.scaled
        self.experiments = tuple(
            file.experiments[n] if change is None else change.of_experiment(file.experiments[n])
            for n, change in settings.items()
        )
        self._rank = np.full(len(file.experiments), -1)
        self._rank[list(settings)] = np.arange(len(settings))
        self.n_rows = file.n_rows
        if len(settings) < len(file.experiments):
            self.n_rows = sum(
                int(np.count_nonzero(self._rank[block["experiment"]] >= 0)) for _, block in file.chunks("experiment")
            )

    def chunks(self, *columns, size: int = 16 * CHUNK) -> Iterator[tuple]:
        """As of ObservationFile; there are at most ``size`` rows in each, and perhaps none."""
        start = 0
        for _, block in self._file.chunks(*dict.fromkeys((*columns, "experiment")), size=size):
            chosen = self._chosen(block, "index", lambda change: change.on_lattice)
            yield start, {name: chosen[name] for name in columns}
            start += len(chosen["experiment"])

    def read_bragg(self) -> dict:
        """As of ObservationFile."""
        return self._chosen(self._file.read_bragg(), "hkl", lambda change: change.matrix)

    def _chosen(self, block: dict, index: str, matrix) -> dict:
        rank = self._rank[block["experiment"]]
        keep = slice(None) if len(self.numbers) == len(self._rank) else np.flatnonzero(rank >= 0)
        chosen = {name: column[keep] for name, column in block.items()}
        chosen["experiment"] = rank[keep].astype(block["experiment"].dtype)
        if index in chosen:
            for place, change in enumerate(self._settings.values()):
                if change is not None:
                    mine = chosen["experiment"] == place
                    chosen[index][mine] = chosen[index][mine] @ matrix(change)
        return chosen
