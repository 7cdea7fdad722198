"""Which terms does a scale model need? By what was kept out of the fit: blocks of voxels, and stretches of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import linalg

from dials_diffuse.scaling.normal import Normal, add
from dials_diffuse.scaling.solve import System, determined, factorised, minimum

#: a term that lowers χ² per held-out observation by less does not matter
_LEAST_GAIN = 5e-4

#: logarithm of the least ratio of the evidences with and without a term
_LEAST_EVIDENCE = 10.0


@dataclass(frozen=True)
class Gain:
    """Fall of χ² of what was kept out of the fit, per observation, by having terms; esd : from the scatter of folds."""

    mean: float
    esd: float


@dataclass(frozen=True)
class TermTest:
    """Did a term earn its parameters?

    Attributes
    ----------
    name, label : key of the term, and what people call it
    gain, esd : see Gain; of voxels that were kept out
    images : Gain of images that were kept out; None for terms that only an image itself can tell, and for those that
        failed the other tests
    evidence : logarithm of the ratio of the probabilities of the data with and without the term
    n_parameters, determined : directions in which it can change, and how many of them the data determine
    kept : was it kept
    """

    name: str
    label: str
    gain: float
    esd: float
    images: Gain | None
    evidence: float
    n_parameters: int
    determined: float
    kept: bool


@dataclass(frozen=True)
class Judgement:
    """What became of the terms.

    Attributes
    ----------
    tests : list of TermTest
    together : Gain of voxels that were kept out, by the terms that were kept, over no scaling at all
    """

    tests: list
    together: Gain


class Stretch(NamedTuple):
    """Projected normal equations of some images: what their observations add to those of the rest, and of the rest."""

    own: Normal
    rest: Normal


@dataclass(frozen=True)
class _KeptOut:
    """Folds of which each was once kept out; others : equations of the rest; local : (q,) bool, fitted to each fold."""

    folds: list
    others: list
    local: np.ndarray
    system: System
    strengths: dict

    def scores(self, lost) -> np.ndarray:
        """χ² of each fold without the terms with the keys ``lost``."""
        return np.array([self._score(fold, other, lost) for fold, other in zip(self.folds, self.others)])

    def _score(self, fold: Normal, other: Normal, lost) -> float:
        step = _without(other, self.system, self.strengths, lost)
        own = self.local & _split(self.system, lost)
        if np.any(own):
            # the curvature of all: that of the fold alone is a difference, and need not be positive
            curvature = (fold.matrix + other.matrix)[np.ix_(own, own)]
            rest = Normal(curvature, (fold.vector - fold.matrix @ step)[own], 0.0, 0)
            precision = self.system.precision(self.strengths)[own]
            step[own] += minimum(rest, precision, (self.system.position + step)[own])
        return fold.at(step)

    def gain(self, having: np.ndarray, lost) -> Gain:
        """By ``having`` scores, instead of being without the terms with the keys ``lost``."""
        gains = (self.scores(lost) - having) / sum(fold.n for fold in self.folds)
        return Gain(float(gains.sum()), float(np.std(gains, ddof=1) * np.sqrt(len(gains))))


def _voxels(folds: list, system: System, strengths: dict) -> _KeptOut:
    everything, others, crystal = add(folds), [], system.space.crystal
    for fold in folds:
        matrix = everything.matrix - fold.matrix
        matrix[crystal, crystal] += fold.matrix[crystal, crystal]
        others.append(Normal(matrix, everything.vector - fold.vector, 0.0, 0))
    return _KeptOut(folds, others, np.zeros(len(system.position), dtype=bool), system, strengths)


def _images(stretches: list, local, system: System, strengths: dict) -> _KeptOut:
    """local : keys of terms that are fitted to what was kept out."""
    others, crystal = [], system.space.crystal
    for _, rest in stretches:
        matrix = rest.matrix.copy()
        matrix[crystal, crystal] *= len(stretches) / (len(stretches) - 1)
        others.append(Normal(matrix, rest.vector, 0.0, 0))
    return _KeptOut([s.own for s in stretches], others, ~_split(system, local), system, strengths)


def judge_terms(folds: list, stretches: list, system: System, strengths: dict, terms) -> Judgement:
    """Which terms are needed? One after the other, those that are not are left out, the least useful one first.

    A term is kept when the data are much more probable with it, its coefficients integrated out, and when held-out
    voxels are predicted better with it: by more than three times the e.s.d. of the gain, which must not be negligible.
    Of terms that nearly every experiment has, it is enough that the prediction does not become worse. Nor may images
    that were kept out be predicted worse: what turns with the crystal is not the detector's, and the reverse. Terms of
    which each image has its own are then fitted to these images. If all terms together predict held-out voxels no
    better than no scaling, none is kept.

    Only scales are judged by what was kept out. The isotropic part, and the smooth anisotropic one, keep the curvature
    that they have from all folds: a block near the beam holds all there is at its |s|, and extrapolation to it would be
    all that counts.

    Parameters
    ----------
    folds : projected normal equations of disjoint sets of voxels
    stretches : of Stretch, disjoint sets of images; may be empty
    terms : of Term, those to test

    Returns
    -------
    Judgement, the tests in the order of ``terms``
    """
    everything = add(folds)
    number = determined(everything, system, strengths)
    voxels = _voxels(folds, system, strengths)
    images = _images(stretches, [t.key for t in terms if t.local], system, strengths) if stretches else None
    result: dict = {}
    lost: list = []
    wanted = list(terms)
    while wanted:
        tests, having = [], voxels.scores(lost)
        for term in wanted:
            without = [*lost, term.key]
            gain = voxels.gain(having, without)
            evidence = _evidence(everything, system, strengths, term.key, lost)
            enough = -gain.esd if term.usual else max(3 * gain.esd, _LEAST_GAIN)
            kept = gain.mean > enough and evidence > _LEAST_EVIDENCE
            n = len(system.space.parts[term.key].roughness)
            label, known = term.label, number[term.key]
            tests.append(TermTest(term.key, label, gain.mean, gain.esd, None, evidence, n, known, bool(kept)))
        if images and all(test.kept for test in tests):
            having = images.scores(lost)
            gains = [None if term.local else images.gain(having, [*lost, term.key]) for term in wanted]
            tests = [replace(x, images=g, kept=g is None or g.mean > -g.esd) for x, g in zip(tests, gains)]
        result.update((test.name, test) for test in tests)
        useless = [test for test in tests if not test.kept]
        if not useless:
            break
        worst = min(useless, key=lambda test: test.gain)
        lost.append(worst.name)
        wanted = [term for term in wanted if term.key != worst.name]
    together = voxels.gain(voxels.scores(lost), [term.key for term in terms])
    tests = [result[term.key] for term in terms]
    if together.mean < 0:
        tests = [replace(test, kept=False) for test in tests]
    return Judgement(tests, together)


def _split(system: System, lost) -> tuple:
    """(q,) bool, directions that stay when terms with these keys have the coefficients zero."""
    stay = np.ones(len(system.position), dtype=bool)
    for key in lost:
        stay[system.space.parts[key].at] = False
    return stay


def _without(normal: Normal, system: System, strengths: dict, lost) -> np.ndarray:
    """(q,) the step to the minimum with the coefficients of some terms zero."""
    stay, precision = _split(system, lost), system.precision(strengths)
    step = np.where(stay, 0.0, system.origin - system.position)
    rest = normal.vector - normal.matrix @ step
    reduced = Normal(normal.matrix[np.ix_(stay, stay)], rest[stay], 0.0, 0)
    step[stay] = minimum(reduced, precision[stay], system.position[stay])
    return step


def _evidence(normal: Normal, system: System, strengths: dict, key: str, lost) -> float:
    """Logarithm of p(data | with the term) / p(data | without), by the ratio of Savage and Dickey.

    That is the density of the prior over that of the posterior, where the coefficients of the term are zero.
    """
    precision, stay = system.precision(strengths), _split(system, lost)
    step = np.where(stay, 0.0, system.origin - system.position)
    rest = normal.vector - normal.matrix @ step
    own = np.zeros(len(stay), dtype=bool)
    own[system.space.parts[key].at] = True
    matrix = normal.matrix + np.diag(precision)
    others = stay & ~own
    factor, unit = factorised(matrix[np.ix_(others, others)])
    right = np.column_stack([matrix[np.ix_(others, own)], (rest - precision * system.position)[others]])
    solved = unit[:, None] * linalg.cho_solve(factor, unit[:, None] * right)
    curvature = matrix[np.ix_(own, own)] - matrix[np.ix_(own, others)] @ solved[:, :-1]
    vector = (rest - precision * system.position)[own] - matrix[np.ix_(own, others)] @ solved[:, -1]
    away = (system.origin - system.position)[own] - linalg.solve(curvature, vector, assume_a="pos")
    at_zero = precision[own] @ system.origin[own] ** 2
    logs = np.sum(np.log(precision[own])) - np.linalg.slogdet(curvature)[1]
    return float(0.5 * (logs - at_zero + away @ curvature @ away))
