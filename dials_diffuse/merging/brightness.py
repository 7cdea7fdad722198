"""Are all sweeps equally bright? One that was exposed otherwise and not scaled makes a pattern in the map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_N_SHELLS = 30

#: shells and rows in each, fewer tell nothing
_FEWEST_SHELLS, _FEWEST_ROWS = 5, 20

#: standard errors by which a sweep has to differ
_N_SIGMA = 5.0


@dataclass(frozen=True)
class Brightness:
    """How bright a sweep is relative to the median of all, at equal |s|.

    Attributes
    ----------
    experiment, identifier : of the sweep
    ratio, esd : NaN where it has too few observations in common with others
    """

    experiment: int
    identifier: str
    ratio: float
    esd: float


class SweepSums:
    """Net counts and norms of each sweep in shells of |s|, collected from blocks that pass by.

    Parameters
    ----------
    n_sweeps : of all files
    d_min : Å
    """

    def __init__(self, n_sweeps: int, d_min: float):
        self._s_max = 1.05 / d_min
        self._shape = n_sweeps, _N_SHELLS
        self._net, self._norm, self._rows = np.zeros((3, *self._shape))

    def watch(self, blocks: Iterable) -> Iterator:
        """Pass (first experiment of the file, {column: array}) through."""
        for first, block in blocks:
            use = (block["norm"] > 0) & (block["s"] < self._s_max)
            shell = (block["s"][use] / self._s_max * _N_SHELLS).astype(np.int64)
            place = (block["experiment"][use] + first) * _N_SHELLS + shell
            for total, values in (
                (self._net, (block["counts"] - block["background"])[use]),
                (self._norm, block["norm"][use]),
                (self._rows, None),
            ):
                total += np.bincount(place, values, math.prod(self._shape)).reshape(self._shape)
            yield first, block

    def compare(self, identifiers: Sequence[str]) -> tuple:
        """A Brightness of each sweep; empty where there is but one."""
        if len(identifiers) < 2:
            return ()
        known = (self._rows >= _FEWEST_ROWS) & (self._net > 0)
        log = np.full(self._shape, np.nan)
        log[known] = np.log(self._net[known] / self._norm[known])
        several = known.sum(axis=0) > 1
        log[:, ~several] = np.nan
        usual = np.full(_N_SHELLS, np.nan)
        usual[several] = np.nanmedian(log[:, several], axis=0)
        return tuple(Brightness(e, name, *_middle(log[e] - usual)) for e, name in enumerate(identifiers))


def _middle(difference: np.ndarray) -> tuple:
    """exp of the median of some logarithms, NaN left out, and its standard error."""
    difference = difference[np.isfinite(difference)]
    if len(difference) < _FEWEST_SHELLS:
        return math.nan, math.nan
    middle = float(np.median(difference))
    spread = 1.4826 * float(np.median(np.abs(difference - middle)))
    return math.exp(middle), math.exp(middle) * 1.25 * spread / math.sqrt(len(difference))


def unlike_in_words(sweeps: Sequence[Brightness], overall: dict) -> list:
    """Sentences on sweeps that differ from the others by more than the voxels of the map do for whatever reason.

    overall : of the map's ShellTable
    """
    known = [b for b in sweeps if math.isfinite(b.ratio)]
    limit = overall["rms_anisotropic"] / overall["mean"] if overall["mean"] > 0 else math.nan
    if len(known) < 2 or not math.isfinite(limit):
        return []
    advice = "are exposure times right, and were they scaled together? Run dials.diffuse_scale on all of them first"
    if len(known) == 2:
        fainter, brighter = sorted(known, key=lambda b: b.ratio)
        ratio = brighter.ratio / fainter.ratio
        if math.log(ratio) < max(limit, _N_SIGMA * 2 * brighter.esd / brighter.ratio):
            return []
        return [
            f"sweep {brighter.experiment} ({brighter.identifier}) is {ratio:.2f} times as bright as sweep "
            f"{fainter.experiment} ({fainter.identifier}), which is more than the {100 * limit:.0f} % by which voxels "
            f"vary: {advice}"
        ]
    return [
        f"sweep {b.experiment} ({b.identifier}) is {b.ratio:.2f} times as bright as most others, which is more than "
        f"the {100 * limit:.0f} % by which voxels vary: {advice}"
        for b in known
        if abs(math.log(b.ratio)) > max(limit, _N_SIGMA * b.esd / b.ratio)
    ]
