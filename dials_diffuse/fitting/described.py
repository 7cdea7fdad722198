"""Does the best model describe the map at all? Its correlation with voxels that were set aside, against 0 and CC*."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from dials_diffuse.fitting.agreement import anisotropic_parts
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.result import Fit
from dials_diffuse.maps.shells import correlation, correlation_of_sums, shell_residual

#: standard errors of what is significant, and on voxels that were fitted, where chance has been made the most of
_N_SIGMA, _N_SIGMA_FITTED = 3.0, 5.0

#: blocks that tell an error, voxels that tell how half sets agree
_FEWEST_BLOCKS, _FEWEST_VOXELS = 6, 50

#: part of the correlation that is possible, below which a model is far from the data
_FAR = 1 / 3

DESCRIBED, FAR, NOTHING, NO_SIGNAL, UNKNOWN = "described", "far", "nothing", "no signal", "unknown"


@dataclass(frozen=True)
class Described:
    """How much of the anisotropic part a model has.

    Attributes
    ----------
    cc, esd : correlation with the map on free voxels (all, where none is free), and its standard error
    cc_half : of the half sets; cc_star : the correlation with the true map that this leaves possible.
        NaN without half sets
    verdict : DESCRIBED; FAR: a small part of what is possible; NOTHING: not more than 0; NO_SIGNAL: the map has none;
        UNKNOWN: too few voxels
    words : a sentence for the user; empty if there is nothing to say
    """

    cc: float
    esd: float
    cc_half: float
    cc_star: float
    verdict: str
    words: str

    def record(self) -> dict:
        """For ``diffuse_fit.json``."""
        return asdict(self)


def described(fit: Fit, data: FitData) -> Described:
    """Compare a fit with the voxels that were set aside.

    Notes
    -----
    The error is that of the delete-one jackknife over blocks of voxels (Efron & Stein 1981).

    Source: docs/theory.md, Is there signal?
    """
    use = data.free if data.free.any() else np.ones(data.n, dtype=bool)
    x, y = (part[use] for part in anisotropic_parts(data, fit.fitted))
    _, block = np.unique(data.block[use], return_inverse=True)
    sums = np.array([np.bincount(block.reshape(-1), product) for product in (x * x, x * y, y * y)]).T
    cc, esd = float(correlation_of_sums(*sums.sum(axis=0))), _error(sums)
    cc_half, half_esd = _of_halves(data)
    cc_star = math.nan if math.isnan(cc_half) else math.sqrt(2 * max(cc_half, 0) / (1 + max(cc_half, 0)))
    verdict, words = DESCRIBED, ""
    by_chance = (_N_SIGMA if data.free.any() else _N_SIGMA_FITTED) * esd
    found = f"{fit.name}, the best model, correlates with the anisotropic part of the map by {cc:.3f} ± {esd:.3f}"
    found += " on voxels that were not fitted" if data.free.any() else ""
    if not (math.isfinite(cc) and math.isfinite(esd)):
        verdict = UNKNOWN
    elif cc_half < _N_SIGMA * half_esd:
        if cc < by_chance:
            verdict = NO_SIGNAL
            words = f"{found}; the half sets of the map do not agree either ({cc_half:.3f}): it seems to have no signal"
    elif cc < by_chance:
        verdict = NOTHING
        words = f"no model describes the map: {found}, no more than chance{_possible(cc_star)}; {_CAUSES}"
    elif cc + _N_SIGMA * esd < _FAR * cc_star:
        verdict = FAR
        words = f"no model comes near the map: {found}{_possible(cc_star)}; {_CAUSES}"
    return Described(cc, esd, cc_half, cc_star, verdict, words)


_CAUSES = "are coordinates, crystal form and setting (indexing=) those of the map, or is it another kind of motion?"


def _possible(cc_star: float) -> str:
    return f", where {cc_star:.2f} is possible" if math.isfinite(cc_star) else ""


def _error(sums: np.ndarray) -> float:
    """Standard error of a correlation; sums : (B, 3) of x², xy, y² over blocks."""
    number = len(sums)
    if number < _FEWEST_BLOCKS:
        return math.nan
    left_out = correlation_of_sums(*(sums.sum(axis=0) - sums).T)
    return math.sqrt((number - 1) / number * float(np.sum((left_out - left_out.mean()) ** 2)))


def _of_halves(data: FitData) -> tuple:
    """Correlation of the half sets, and its standard error; NaN where there are none, or too few voxels."""
    if data.half_a is None or data.half_b is None:
        return math.nan, math.nan
    use = np.isfinite(data.half_a) & np.isfinite(data.half_b)
    if np.count_nonzero(use) < _FEWEST_VOXELS:
        return math.nan, math.nan
    a, b = (shell_residual(half[use], data.s[use]) for half in (data.half_a, data.half_b))
    cc = correlation(a, b)
    return cc, (1 - min(cc**2, 1.0)) / math.sqrt(len(a) - 1)
