"""Which Laue group does diffuse scattering have? Each rotation of the lattice is tested, then each group of them.

Source: docs/theory.md, The Laue group of the data; Evans (2006) Acta Cryst. D62, 72
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.lattice import LatticeGroup, in_words, lattice_group
from dials_diffuse.maps.mates import MateSums, mate_sums

HOLDS, FAILS, UNDECIDED = "holds", "fails", "not decided"

#: a rotation holds if more than half of the signal has it, fails if less than half has: by so many standard errors
_HALF, _N_SIGMA = 0.5, 3.0

#: signal that passages of the same voxel must share before anything is decided, in standard errors
_LEAST_SIGNIFICANCE = 5.0

#: correlation of passages below which nothing is decided: errors of the background are shared, too, without symmetry
_LEAST_CORRELATION = 0.1

#: what systematic errors may take of a correlation, in the likelihoods
_SYSTEMATIC = 0.15

_FEWEST_PAIRS = 50
_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class OperatorTest:
    """A rotation of the lattice, with its inverse.

    Attributes
    ----------
    operator : what becomes of h, k, l
    declared : is it one of the Laue group that the data were given?
    n_pairs : of voxels and their images
    cc : correlation of what varies from voxel to voxel between these
    cc_expected : that correlation if the crystal has the symmetry, from passages of the same voxel
    ratio, esd : of both; the share of the signal that has the symmetry
    likelihood : that the crystal has it, if no other rotation is known
    verdict : HOLDS, FAILS or UNDECIDED
    """

    operator: str
    declared: bool
    n_pairs: int
    cc: float
    cc_expected: float
    ratio: float
    esd: float
    likelihood: float
    verdict: str


@dataclass(frozen=True)
class GroupTest:
    """A Laue group of the lattice.

    Attributes
    ----------
    laue_group : symbol in the setting of the data; space_group : symbol for ``space_group=``
    n_operators : rotations in it
    likelihood : of all groups 1 together
    verdict : HOLDS if all its rotations do, FAILS if one does, else UNDECIDED
    """

    laue_group: str
    space_group: str
    n_operators: int
    likelihood: float
    verdict: str


@dataclass(frozen=True)
class LaueTest:
    """What the data say of their symmetry.

    Attributes
    ----------
    declared : GroupTest of the group that the data were given
    recommended : GroupTest of the likeliest group; None where nothing is decided
    largest_inside : GroupTest of the largest group within the declared one that does not fail
    operators : list of OperatorTest; groups : list of GroupTest, likeliest first
    untested : rotations of the lattice that do not bring voxels to voxels, as what becomes of h, k, l
    significance : of the signal, in standard errors
    n_observations : that were compared
    d_min : Å, of those
    within_sweeps : were pairs within single sweeps compared only?
    """

    declared: GroupTest
    recommended: GroupTest | None
    largest_inside: GroupTest
    operators: list
    groups: list
    untested: list
    significance: float
    n_observations: int
    d_min: float
    within_sweeps: bool

    @property
    def failing(self) -> list:
        """OperatorTest of the declared group that do not hold."""
        return [o for o in self.operators if o.declared and o.verdict == FAILS]

    @property
    def is_more(self) -> bool:
        """Does all of a larger group hold that contains the declared one?"""
        if self.recommended is None or self.failing or self.recommended.verdict != HOLDS:
            return False
        extra = [o for o in self.operators if not o.declared and o.verdict == HOLDS]
        return bool(extra) and self.recommended.n_operators > self.declared.n_operators


def find_laue_group(rows: dict, grid: MapGrid) -> LaueTest:
    """Compare voxels with their images under all rotations of the lattice.

    Parameters
    ----------
    rows : {column: (n, ...) array} of observations, scaled or not, see ``mates.SAMPLE_COLUMNS``; all norms positive
    grid : whose space group is the declared one
    """
    lattice = lattice_group(grid)
    sums, significance = None, 0.0
    for within in (True, False):
        tried = mate_sums(rows, lattice, within)
        found = _significance(tried)
        if sums is None or found > significance:
            sums, significance = tried, found
        if significance >= _LEAST_SIGNIFICANCE or len(np.unique(rows["experiment"])) < 2:
            break
    decided = sums is not None and significance >= _LEAST_SIGNIFICANCE
    classes = sorted({frozenset((i, int(j))) for i, j in enumerate(lattice.inverse) if i}, key=sorted)
    tests = [_test(sums, lattice, members, decided) for members in classes]
    groups = _score(lattice, classes, tests)
    declared = next(g for members, g in groups if members == lattice.declared)
    inside = [(members, g) for members, g in groups if members <= lattice.declared and g.verdict != FAILS]
    return LaueTest(
        declared=declared,
        recommended=groups[0][1] if any(t.verdict != UNDECIDED for t in tests) else None,
        largest_inside=max(inside, key=lambda item: len(item[0]))[1],
        operators=tests,
        groups=[g for _, g in groups],
        untested=[in_words(r) for r in lattice.untested],
        significance=significance,
        n_observations=len(rows["s"]),
        d_min=1 / max(float(rows["s"].max(initial=0.0)), 1e-9),
        within_sweeps=sums is not None and sums.within,
    )


def symmetry_record(test: LaueTest | None) -> dict | None:
    """For ``output.json``."""
    if test is None:
        return None
    return {**asdict(test), "decided": test.recommended is not None, "too_high": bool(test.failing)}


def _jackknife(left_out: np.ndarray) -> float:
    """Standard error of a function of sums over blocks; left_out : (b,), the function without one block each."""
    good = left_out[np.isfinite(left_out)]
    if len(good) < _FEWEST_BLOCKS:
        return math.inf
    return math.sqrt((len(good) - 1) / len(good) * float(((good - good.mean()) ** 2).sum()))


def _mean(sums: np.ndarray, weights: np.ndarray) -> tuple:
    """Σ sums / Σ weights over blocks, and without each block that has weight."""
    total, weight = sums.sum(), weights.sum()
    rest = weight - weights
    use = (weights > 0) & (rest > 0)
    left_out = np.divide(total - sums, rest, out=np.full(len(sums), np.nan), where=use)
    return (total / weight if weight > 0 else math.nan), left_out


def _significance(sums: MateSums | None) -> float:
    if sums is None:
        return 0.0
    signal, left_out = _mean(*sums.same.T)
    esd = _jackknife(left_out)
    return max(signal / esd, 0.0) if signal == signal and 0 < esd < math.inf else 0.0


def _test(sums: MateSums | None, lattice: LatticeGroup, members: frozenset, decided: bool) -> OperatorTest:
    numbers = sorted(members)
    first = numbers[0]
    n_pairs, cc, expected, ratio, esd = 0, math.nan, math.nan, math.nan, math.inf
    if sums is not None:
        n_pairs = int(sums.n_pairs[first])
        products, weights = sums.mates[:, first].T
        own, size = sums.same.sum(axis=0), float(sums.size[:, first].sum())
        signal = own[0] / own[1] if own[1] > 0 else math.nan
        if size > 0:
            cc, expected = products.sum() / size, signal * weights.sum() / size
        ratio, esd = _ratio(sums, products, weights)
        esd = max(esd, n_pairs**-0.5) if n_pairs else esd  # few blocks may look alike by chance
    known = decided and n_pairs >= _FEWEST_PAIRS and math.isfinite(esd) and expected >= _LEAST_CORRELATION
    verdict = UNDECIDED
    if known and ratio - _N_SIGMA * esd > _HALF:
        verdict = HOLDS
    elif known and ratio + _N_SIGMA * esd < _HALF:
        verdict = FAILS
    has, lacks = _densities(ratio, esd) if known else (1.0, 1.0)
    return OperatorTest(
        operator=lattice.operator(first),
        declared=first in lattice.declared,
        n_pairs=n_pairs,
        cc=float(cc),
        cc_expected=float(expected),
        ratio=float(ratio),
        esd=float(esd),
        likelihood=has / (has + lacks),
        verdict=verdict,
    )


def _ratio(sums: MateSums, products: np.ndarray, weights: np.ndarray) -> tuple:
    """Signal shared by mates over signal shared by passages of the same voxel, and its standard error."""
    own, total = sums.same.sum(axis=0), np.array([products.sum(), weights.sum()])
    if not (own[0] > 0 and total[1] > 0):
        return math.nan, math.inf
    use = (weights > 0) | (sums.same[:, 1] > 0)
    rest_own, rest = own - sums.same[use], total - np.stack([products, weights], axis=1)[use]
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = rest[:, 0] * rest_own[:, 1] / (rest[:, 1] * rest_own[:, 0])
    ratio = total[0] * own[1] / (total[1] * own[0])
    return ratio, _jackknife(left_out)


def _densities(ratio: float, esd: float) -> tuple:
    """Probability density of a measured ratio if the crystal has the symmetry, and if it does not.

    Without the symmetry a share m of the signal may have it all the same, with probability as the root of 1 - m².
    """
    width = math.hypot(esd, _SYSTEMATIC)
    m = (np.arange(200) + 0.5) / 200
    prior = np.sqrt(1 - m**2)

    # a floor: no single test decides alone against all others
    def density(share):
        return np.exp(-0.5 * ((min(ratio, 1.0) - share) / width) ** 2) / width + 1e-6

    return float(density(1.0)), float(density(m) @ prior / prior.sum())


def _score(lattice: LatticeGroup, classes: list, tests: list) -> list:
    """(rotations, GroupTest) of all groups, likeliest first."""
    with_it = np.log([t.likelihood for t in tests])
    without = np.log1p([-t.likelihood for t in tests])
    groups = lattice.subgroups()
    inside = np.array([[members <= group for members in classes] for group in groups]).reshape(len(groups), -1)
    score = np.where(inside, with_it, without).sum(axis=1)
    likelihood = np.exp(score - score.max())
    likelihood /= likelihood.sum()
    result = []
    for group, mine, value in zip(groups, inside, likelihood):
        verdicts = {test.verdict for test, has in zip(tests, mine) if has}
        verdict = FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS
        names = lattice.laue_symbol(group), lattice.space_group_symbol(group)
        result.append((group, GroupTest(*names, len(group), float(value), verdict)))
    return sorted(result, key=lambda item: (-item[1].likelihood, -item[1].n_operators))
