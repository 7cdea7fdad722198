"""Clusters of crystals that agree, and the setting of each: the crystals that agree most surely are joined first.

Hierarchical clustering as scipy has it needs a distance for every pair. Here pairs may have no voxel in common, or say
little; and how like two crystals are depends on the setting. So the maps of a cluster are merged, and compared with the
others as if they were one crystal: crystals that overlap like the links of a chain are compared as far as they can be,
and weak ones are strong together.

Source: docs/theory.md, Which crystals belong together
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dials_diffuse.crystals.cells import by_size
from dials_diffuse.crystals.pairs import Likeness, Maps, Voxels, observed_correlation, ratio_map, usual_size

#: standard errors: of ρ to link crystals, and to tell that it is lower than it must be
_TO_LINK, _TO_TELL = 4.0, 3.0

#: another setting than the given one has to be better by this
_BETTER = 0.1

#: what the correlation of crystals that agree is taken to be, if it is less
_LEAST_USUAL = 0.5


@dataclass(frozen=True)
class Clusters:
    """Clusters of e crystals.

    Attributes
    ----------
    label : (e,) int, the cluster of each from 0, the largest first
    setting : (e,) int, brings each crystal into the setting of its cluster, in which most of them are as given
    joins : tuple of (crystal of one cluster, crystal of the other, ρ), in the order in which they were joined
    """

    label: np.ndarray
    setting: np.ndarray
    joins: tuple


@dataclass(frozen=True)
class Verdict:
    """A crystal against others.

    Attributes
    ----------
    setting : int, another one in which it agrees and in this one it does not, else 0
    rho, error, observed : there, the last as it is measured; NaN where nothing is known
    rho_as_given : in the setting that the file has
    common : voxels
    contradicts : does it certainly not belong to them, in the setting in which it was compared?
    """

    setting: int
    rho: float
    error: float
    observed: float
    rho_as_given: float
    common: int
    contradicts: bool


def _errors(variance: np.ndarray) -> np.ndarray:
    """Standard errors so many times as it takes to tell; where nothing is known, more than any difference."""
    return _TO_TELL * np.sqrt(np.where(np.isfinite(variance), variance, 1e6))


def best_settings(found: Likeness, least: float) -> tuple:
    """The setting in which ρ is largest for sure, and whether another one may be as good.

    Parameters
    ----------
    found : (m, ...) arrays
    least : ρ of crystals that belong together

    Returns
    -------
    setting : (...) int; of settings that are not certainly worse, and in which crystals certainly agree, the first
    doubtful : (...) bool, another one may be better, but nobody knows
    """
    numbers = np.arange(len(found.rho)).reshape(-1, *[1] * (found.rho.ndim - 1))
    error = _errors(found.variance)
    best = np.argmax(found.rho - error, axis=0)[None]
    top, variance = (np.take_along_axis(x, best, axis=0) for x in (found.rho, found.variance))
    sure = _errors(found.variance + variance)
    worse = top - found.rho > np.maximum(sure, _BETTER)
    good = ~worse & (found.rho - error >= least)
    known = np.isfinite(found.variance) & (numbers != best)
    return np.argmax(good | (numbers == best), axis=0), np.any(known & ~good & ~worse, axis=0)


def usual_correlation(likeness: Likeness) -> float:
    """ρ of crystals that agree, as most of these data have it: 1, but for what their noise does not explain.

    The median over the crystals of that with the one that is most like each; at least ``_LEAST_USUAL``.

    likeness : (m, e, e)
    """
    error = _errors(likeness.variance)
    sure = (likeness.rho > _TO_LINK / _TO_TELL * error) & ~np.eye(likeness.rho.shape[1], dtype=bool)
    best = np.where(sure, likeness.rho, 0.0).max(axis=(0, 1))
    return float(np.clip(np.median(best[best > 0]), _LEAST_USUAL, 1.0)) if np.any(best > 0) else 1.0


class Limits(NamedTuple):
    """What is expected of ρ of crystals that belong together: at least ``least``, and mostly ``usual``."""

    least: float
    usual: float

    def contradicts(self, rho, error) -> np.ndarray:
        """Is ρ too low, and not by chance? error : so many times the standard error as it takes to tell."""
        return (rho < self.least) & (rho + error < self.usual)


class _Growing:
    """Clusters while they are joined; each is known by the number of one of its crystals."""

    def __init__(self, maps: Maps, voxels: Voxels, likeness: Likeness, product: np.ndarray):
        n = maps.value.shape[1]
        self._maps, self._voxels, self._product = Maps(*(x.copy() for x in maps)), voxels, product
        self._inverse = np.argmin(product, axis=1)  # the given setting is number 0
        self._found = Likeness(*(x.copy() for x in likeness))
        self._found.variance[:, range(n), range(n)] = np.inf
        self.members = {i: [i] for i in range(n)}
        self.setting = np.zeros(n, dtype=int)

    def surest(self, limits: Limits) -> tuple | None:
        """(cluster, setting that brings it to the other, the other, ρ) that agree most surely, None where none do."""
        setting, doubtful = best_settings(self._found, limits.least)
        rho, variance = (np.take_along_axis(x, setting[None], axis=0)[0] for x in self._found[:2])
        error = _errors(variance)
        link = np.isfinite(variance) & (rho > _TO_LINK / _TO_TELL * error) & ~limits.contradicts(rho, error)
        link &= ~doubtful | (rho - error >= limits.least)
        if not np.any(link):
            return None
        i, j = np.unravel_index(np.argmax(np.where(link, rho - error, -np.inf)), link.shape)
        return int(i), int(setting[i, j]), int(j), float(rho[i, j])

    def join(self, i: int, setting: int, j: int) -> None:
        """Bring cluster i into a setting and make it part of j, or the other way round if i is larger."""
        if len(self.members[i]) > len(self.members[j]):
            i, setting, j = j, int(self._inverse[setting]), i
        own = self._voxels.moved(self._maps.at([i]), setting)
        both = self._voxels.merged(Maps(*(np.hstack(pair) for pair in zip(own, self._maps.at([j])))))
        self._maps.value[:, [j]], self._maps.variance[:, [j]] = both
        self._maps.variance[:, i] = np.inf
        joined = self.members.pop(i)
        self.setting[joined] = self._product[self.setting[joined], setting]
        self.members[j] += joined
        rest = [k for k in self.members if k != j]
        found = self._voxels.compare(both, self._maps.at(rest))
        for new, old in zip(found, self._found):
            old[:, j, rest] = new[:, 0]
            old[:, rest, j] = new[self._inverse, 0]
        self._found.variance[:, i], self._found.variance[:, :, i] = np.inf, np.inf

    def rest(self, limits: Limits) -> list:
        """(cluster, other, ρ in the best setting, or 0) of what is left, so that all is joined in the end."""
        setting, _ = best_settings(self._found, limits.least)
        rho, variance = (np.take_along_axis(x, setting[None], axis=0)[0] for x in self._found[:2])
        first, *others = sorted(self.members, key=lambda k: -len(self.members[k]))
        joins = [(k, first, float(rho[k, first]) if np.isfinite(variance[k, first]) else 0.0) for k in others]
        return sorted(joins, key=lambda join: -join[2])


def find_clusters(maps: Maps, voxels: Voxels, likeness: Likeness, product: np.ndarray, limits: Limits) -> Clusters:
    """Join crystals as long as some agree.

    Parameters
    ----------
    maps : of e crystals; voxels : where they are compared; likeness : (m, e, e), between all of them
    product : (m, m) int, see ``maps.settings.products``
    limits : of ρ of crystals that belong together
    """
    growing, joins = _Growing(maps, voxels, likeness, product), []
    while (pair := growing.surest(limits)) is not None:
        i, setting, j, rho = pair
        joins.append((growing.members[i][0], growing.members[j][0], rho))
        growing.join(i, setting, j)
    joins += growing.rest(limits)
    label = np.empty(len(growing.setting), dtype=int)
    setting = growing.setting.copy()
    for number, members in enumerate(map(sorted, growing.members.values())):
        label[members] = number
        setting[members] = _as_most_are(setting[members], product)
    return Clusters(by_size(label), setting, tuple(joins))


def _as_most_are(setting: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Settings of a cluster, all changed alike so that as many as possible are as given, if in doubt the first."""
    changed = product[setting].T  # (m, crystals), when each of the settings follows
    return changed[np.argmax(np.count_nonzero(changed == 0, axis=1) + 0.5 * (changed[:, 0] == 0))]


def against(crystal: Maps, others: Maps, voxels: Voxels, limits: Limits, given: int) -> Verdict:
    """Compare one map with another, (n, 1) each; given : the setting of the crystal before it was brought into this."""
    found = Likeness(*(x[:, 0, 0] for x in voxels.compare(crystal, others)))
    order = [given, *(k for k in range(len(found.rho)) if k != given)]  # what is as good stays as it is given
    first, doubtful = (x.item() for x in best_settings(Likeness(*(x[order] for x in found)), limits.least))
    setting, known = order[first], np.isfinite(found.variance)
    rho, least_rho = found.rho[setting], _TO_LINK / _TO_TELL * _errors(found.variance[setting])
    if doubtful or rho <= least_rho or limits.contradicts(rho, _errors(found.variance[setting])):
        setting = 0  # no reason to change it
    error = float(np.sqrt(found.variance[setting])) if known[setting] else np.nan
    return Verdict(
        setting=setting,
        rho=float(found.rho[setting]) if known[setting] else np.nan,
        error=error,
        observed=float(observed_correlation(voxels.moved(crystal, setting), others)[0, 0]),
        rho_as_given=float(found.rho[given]) if known[given] else np.nan,
        common=int(found.common[setting]),
        contradicts=bool(known[0] and limits.contradicts(found.rho[0], _errors(found.variance[0]))),
    )


def judge(
    maps: Maps, voxels: Voxels, clusters: Clusters, product: np.ndarray, number: int, limits: Limits, fixed: bool
) -> tuple:
    """Compare every crystal with the others of a cluster, each in its setting.

    Parameters
    ----------
    number : of the cluster
    fixed : settings stay as they are

    Returns
    -------
    inside : (e,) bool, the crystals of the cluster, without those that do not belong to the rest of it
    setting : (e,) int, those of the clusters, where another one is better than that; 0 for all others
    verdicts : list of Verdict of each crystal, in that setting, against the cluster without it
    """
    inside, inverse = clusters.label == number, np.argmin(product, axis=1)
    setting = np.where(inside, clusters.setting, 0)
    turned = Maps(*(x.copy() for x in maps))
    for i in np.flatnonzero(setting):
        _turn(turned, i, voxels.moved(maps.at([i]), setting[i]))
    for _ in range(2 * len(inside)):
        verdicts = _verdicts(turned, voxels, inside, limits, inverse[setting])
        members = np.flatnonzero(inside) if np.count_nonzero(inside) > 2 else np.zeros(0, int)
        changed = [i for i in members if verdicts[i].setting and not fixed]
        worst = [i for i in members if verdicts[i].contradicts]
        if changed:
            i = max(changed, key=lambda i: verdicts[i].rho)
            setting[i] = product[setting[i], verdicts[i].setting]
        elif worst:
            i = min(worst, key=lambda i: verdicts[i].rho)
            inside[i], setting[i] = False, 0
        else:
            break
        _turn(turned, i, voxels.moved(maps.at([i]), setting[i]))
    return inside, setting, verdicts


def _turn(maps: Maps, number: int, new: Maps) -> None:
    maps.value[:, [number]], maps.variance[:, [number]] = new


def _verdicts(maps: Maps, voxels: Voxels, inside: np.ndarray, limits: Limits, given: np.ndarray) -> list:
    weight = np.where(inside, 1 / maps.variance, 0.0)
    total, top = (x.sum(axis=1, keepdims=True) for x in (weight, weight * maps.value))
    verdicts = []
    for i in range(len(inside)):
        left = total - weight[:, [i]]
        left[left < 1e-9 * total] = 0.0  # nobody else has seen it
        others = ratio_map(top - weight[:, [i]] * maps.value[:, [i]], left)
        size = usual_size(*voxels.squares(others), 1.0)
        others = Maps(others.value / size, others.variance / size**2)
        verdicts.append(against(maps.at([i]), others, voxels, limits, int(given[i])))
    return verdicts
