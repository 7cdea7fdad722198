"""The anisotropic part of voxels, and of neighbourhoods of them, given what the scale model leaves of the counts.

J of a voxel is its own part plus what its neighbourhoods have in common, of several sizes; each is normal with mean 0.
The levels are eliminated one after the other, the voxels first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.scaling import Residuals, orbit_sums
from dials_diffuse.scaling.model import Prediction
from dials_diffuse.scaling.sample import Observations


@dataclass(frozen=True)
class Weights:
    """Weights of observations, and what is expected of voxels.

    Attributes
    ----------
    weight : (n,) float64, 1 / variance of the counts, zero when rejected
    prior : (m,) float64, 1 / variance of what voxels have of their own
    common : of each level but the last, (k,) float64, standard deviation of what the next one has in common, relative
        to that of the own part
    unit : (n,) float64, counts per unit of J when the weights were made
    held : (m,) float64, 0 … 1, how far the size of J follows the scale that all observations of a voxel share, see
        :func:`held_unit`
    """

    weight: np.ndarray
    prior: np.ndarray
    common: tuple
    unit: np.ndarray
    held: np.ndarray


class Level(NamedTuple):
    """k values x that are eliminated together: voxels, or neighbourhoods of a size.

    net, square : (k,) float64; total : (k,) float64, square and the inverse variance of an own part: without parents,
        net / total is the most probable x, and 1 / total its variance
    reach : (k,) float64, what of x its parent brings, for a parent of 1
    pull : (k,) float64, how far that moves the most probable x
    parent : (k,) int, row of the next level
    """

    net: np.ndarray
    square: np.ndarray
    total: np.ndarray
    reach: np.ndarray
    pull: np.ndarray
    parent: np.ndarray


def _level(net, square, prior, common, parent) -> Level:
    total = square + prior
    reach = common / np.sqrt(prior)
    return Level(net, square, total, reach, reach * prior / total, parent)


def held_unit(prediction: Prediction, data: Observations, weights: Weights) -> np.ndarray:
    """(n,) counts per unit of J, where J takes its share of what all observations of a voxel have in common.

    How large J is tells something of the scale, but little: its distribution has long tails. A change of the scale that
    observations of a voxel share is therefore taken by J itself, all but a part, see ``ErrorModel.tails``.
    """
    share = weights.weight * weights.unit**2
    total, moved = (
        np.bincount(data.orbit, x, len(data.unique)) for x in (share, share * np.log(prediction.unit / weights.unit))
    )
    shift = weights.held * moved / np.maximum(total, np.finfo(float).tiny)
    return prediction.unit * np.exp(-shift)[data.orbit]


def levels_of(prediction: Prediction, data: Observations, weights: Weights, residual: np.ndarray) -> list:
    """Level of the voxels, and of each size of neighbourhoods.

    residual : (n,) float64, counts less what is expected without anisotropic part
    """
    sums, unit = np.zeros((len(data.unique), 2)), held_unit(prediction, data, weights)
    orbit_sums(Residuals(data.orbit, weights.weight, residual, unit), weights.weight <= 0, sums)
    members = (*data.parents, np.zeros(int(data.parents[-1].max()) + 1, dtype=np.int64))
    commons = (*weights.common, np.zeros(len(members[-1])))
    levels, (net, square), prior = [], sums.T, weights.prior
    for parent, common in zip(members, commons):
        levels.append(_level(net, square, prior, common, parent))
        one = levels[-1]
        net = np.bincount(parent, one.pull * one.net)
        square = np.bincount(parent, common**2 * one.square / one.total)
        prior = np.ones(len(net))
    return levels


def most_probable(levels: list) -> list:
    """[(k,) most probable x, (k,) its variance] of each level."""
    result: list = []
    for level in reversed(levels):
        mean, variance = level.net / level.total, 1 / level.total
        if result:
            above, spread = result[0]
            mean = mean + level.pull * above[level.parent]
            variance = variance + level.pull**2 * spread[level.parent]
        result.insert(0, (mean, variance))
    return result


def own_squares(levels: list) -> list:
    """(k,) mean square of the own part of each x, its uncertainty included, of each level."""
    found, result = most_probable(levels), []
    for number, level in enumerate(levels):
        mean, variance = level.net / level.total, 1 / level.total
        if number + 1 < len(levels):
            above, spread = found[number + 1]
            shift = level.reach * level.square / level.total
            mean = mean - shift * above[level.parent]
            variance = variance + shift**2 * spread[level.parent]
        result.append(mean**2 + variance)
    return result


def sizes_tell(levels: list) -> np.ndarray:
    """(m,) derivative of log likelihood by the scale of a voxel, as far as it comes from the size of J, its own part.

    Source: docs/theory.md, Scaling
    """
    (anisotropic, variance), level = most_probable(levels)[0], levels[0]
    return anisotropic * (level.net - level.square * anisotropic) - level.square * variance
