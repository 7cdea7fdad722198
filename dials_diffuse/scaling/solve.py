"""One step of the refinement: priors and their strengths, what is fixed because nothing can tell it, tests of terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg

from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.normal import Normal, add
from dials_diffuse.scaling.sample import Observations

#: limits of the strengths of priors, and what one update may change them by
_STRENGTHS, _CHANGE = (1.0, 1e8), 30.0

#: coefficients are at most so many times as large as expected
_LARGEST = 4.0

#: the size of a term is what these many coefficients of the expected size, and its own, say together
_PSEUDO = 2.0

#: a term that lowers χ² per held-out observation by less does not matter
_LEAST_GAIN = 5e-4

#: logarithm of the least ratio of the evidences with and without a term
_LEAST_EVIDENCE = 10.0

#: of the anisotropic part, how much may be a smooth function of the direction
_SMOOTH_SHARE = 0.3

#: of second differences, before the data choose it
_FIRST_ROUGHNESS = 1e3

#: observations that tell what no data can tell
_GAUGE_ROWS = 50_000


def gauge(model: ScaleModel, data: Observations) -> np.ndarray:
    """Directions of the parameters that the data cannot tell, or only through another term, see Term.gauge.

    Returns
    -------
    (k, p) float64, each row times the parameters is to be zero
    """
    some = data.rows.at(np.arange(0, data.n, max(1, data.n // _GAUGE_ROWS)))
    terms = {block.key: block for block in model.blocks}
    rows = []
    for block in model.blocks:
        values = block.gauge(some, terms)
        full = np.zeros((len(values), model.n_parameters))
        full[:, block.all] = values
        rows.append(full / np.linalg.norm(full, axis=1, keepdims=True).clip(1e-300))
    return np.concatenate(rows)


class Strength(NamedTuple):
    """Of the prior of a term: inverse variances of a coefficient, and of a second difference of neighbouring ones."""

    size: float
    roughness: float


class Part(NamedTuple):
    """A term in the space of the directions that are refined.

    at : slice, where it is; roughness : (k,) float64, penalty of each direction; the directions are independent
    """

    at: slice
    roughness: np.ndarray


@dataclass(frozen=True)
class Space:
    """Directions that are refined, whatever the coefficients.

    Attributes
    ----------
    free : (p, q) float64, orthonormal; each belongs to one term
    parts : key -> Part
    crystal : slice of the directions of P and Q, which are the crystal's
    blocks : (slice of the coefficients, part of ``free``) of each term
    """

    free: np.ndarray
    parts: dict
    crystal: slice
    blocks: tuple = ()


@dataclass(frozen=True)
class System:
    """A space, and where a model is in it.

    Attributes
    ----------
    space : Space
    position : (q,) float64, coefficients less those that priors pull to
    origin : (q,) float64, where all coefficients are zero
    first : key -> Strength, to begin with
    chosen : key -> (bool, bool), are size and roughness found from the data?
    """

    space: Space
    position: np.ndarray
    origin: np.ndarray
    first: dict
    chosen: dict

    def precision(self, strengths: dict) -> np.ndarray:
        """(q,) inverse variance of each direction by the priors; strengths : key -> Strength."""
        result = np.zeros(len(self.position))
        for key, part in self.space.parts.items():
            result[part.at] = strengths[key].size + strengths[key].roughness * part.roughness
        return result


def make_space(model: ScaleModel, data: Observations) -> Space:
    """Directions of each term that no constraint fixes, from smooth to rough."""
    fixed = gauge(model, data)
    free, blocks, parts, q = [], [], {}, 0
    for block in model.blocks:
        own = fixed[np.any(fixed[:, block.all] != 0, axis=1), block.all]
        basis = linalg.null_space(own, rcond=1e-8) if len(own) else np.eye(block.all.stop - block.all.start)
        roughness, turn = linalg.eigh(basis.T @ block.roughness(model.reference) @ basis)
        full = np.zeros((model.n_parameters, basis.shape[1]))
        full[block.all] = basis @ turn
        free.append(full)
        blocks.append((block.all, full[block.all]))
        parts[block.key] = Part(slice(q, q + basis.shape[1]), np.maximum(roughness, 0.0))
        q += basis.shape[1]
    crystal = slice(0, parts[model.of_crystal[-1].key].at.stop)
    return Space(np.ascontiguousarray(np.hstack(free)), parts, crystal, tuple(blocks))


def make_system(model: ScaleModel, space: Space, spread: float) -> System:
    """Priors of a model; spread : expected size of the anisotropic part, relative to the isotropic."""
    pulled = np.where(np.arange(model.n_parameters) < model.blocks[0].all.stop, 0.0, model.reference)
    first, chosen = {}, {}
    for block in model.blocks:
        size, smoothing = block.ridge(_SMOOTH_SHARE * spread), block.smoothing
        first[block.key] = Strength(size, _FIRST_ROUGHNESS if smoothing is None else smoothing)
        chosen[block.key] = (size > 0, smoothing is None)
    return System(space, space.free.T @ (model.coefficients - pulled), -space.free.T @ pulled, first, chosen)


def projected(normal: Normal, space: Space) -> Normal:
    """Normal equations of the directions that are refined, term by term: each direction belongs to one."""
    half = np.hstack([normal.matrix[:, rows] @ free for rows, free in space.blocks])
    matrix = np.vstack([free.T @ half[rows] for rows, free in space.blocks])
    return Normal(matrix, space.free.T @ normal.vector, normal.chi2, normal.n)


@dataclass(frozen=True)
class Posterior:
    """The most probable place, and what is known of it.

    step : (q,) float64, to it
    fall : of χ² and priors by the step
    factor, unit : of the matrix, see :func:`_factor`
    """

    step: np.ndarray
    fall: float
    factor: np.ndarray
    unit: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(q, q) float64, of where the place is."""
        inverse, _ = linalg.lapack.dpotri(self.factor, lower=1)
        inverse = np.tril(inverse)
        return (inverse + np.tril(inverse, -1).T) * (self.unit[:, None] * self.unit)

    @property
    def variance(self) -> np.ndarray:
        """(q,) its diagonal, in half the time."""
        inverse, _ = linalg.lapack.dtrtri(self.factor, lower=1)
        return np.einsum("ij,ij->j", inverse, np.tri(len(inverse)) * inverse) * self.unit**2


def _factor(matrix: np.ndarray) -> tuple:
    """Cholesky factor of a matrix with its diagonal made 1, and the factors (q,) that do so.

    Penalties differ by many orders: with a unit diagonal, what keeps the solution finite is small for all parameters.
    """
    unit = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix = matrix * unit[:, None]
    matrix *= unit
    for tiny in (1e-12, 1e-9, 1e-6):
        factor, failed = linalg.lapack.dpotrf(_ridged(matrix, tiny).T, lower=1, overwrite_a=1, clean=0)
        if not failed:
            return (factor, True), unit
    raise linalg.LinAlgError("the normal equations of the scale model have no solution")


def _ridged(matrix: np.ndarray, ridge: float) -> np.ndarray:
    result = matrix.copy()
    result.ravel()[:: len(result) + 1] += ridge
    return result


def _minimum(normal: Normal, precision: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(q,) the step to the minimum of χ² plus priors, from projected normal equations."""
    factor, unit = _factor(normal.matrix + np.diag(precision))
    return unit * linalg.cho_solve(factor, unit * (normal.vector - precision * position))


def posterior(normal: Normal, system: System, strengths: dict) -> Posterior:
    """From projected normal equations, with given strengths."""
    precision = system.precision(strengths)
    (factor, _), unit = _factor(normal.matrix + np.diag(precision))
    slope = normal.vector - precision * system.position
    step = unit * linalg.cho_solve((factor, True), unit * slope)
    return Posterior(step, float(slope @ step), factor, unit)


def most_probable_strengths(normal: Normal, system: System, strengths: dict, rounds: int = 3) -> dict:
    """Strengths of the priors that make the data most probable, with the coefficients integrated out.

    Steps of Fellner and Schall, which raise the marginal likelihood of the normal approximation. The size has a prior
    of its own, see ``_PSEUDO``: terms of few coefficients would say little of it.

    Source: docs/theory.md, Scaling; Wood & Fasiolo 2017, Biometrics 73, 1071

    Parameters
    ----------
    normal : projected normal equations; strengths : key -> Strength, to begin with

    Returns
    -------
    key -> Strength
    """
    for _ in range(rounds):
        found = posterior(normal, system, strengths)
        place, variance = system.position + found.step, found.variance
        changed = dict(strengths)
        for key, (at, roughness) in system.space.parts.items():
            old, first, (by_size, by_roughness) = strengths[key], system.first[key], system.chosen[key]
            square, own = place[at] ** 2, old.size + old.roughness * roughness
            gain = 1 / np.maximum(own, 1e-300) - variance[at]
            size, rough = old
            if by_size:
                size = old.size * _ratio(gain.sum() + _PSEUDO / old.size, square.sum() + _PSEUDO / first.size)
            if by_roughness:
                rough = old.roughness * _ratio(gain @ roughness, square @ roughness)
            least, most = _STRENGTHS
            changed[key] = Strength(
                float(np.clip(size, first.size / _LARGEST**2, most)) if by_size else size,
                float(np.clip(rough, least, most)) if by_roughness else rough,
            )
        strengths = changed
    return strengths


def _ratio(above: float, below: float) -> float:
    return float(np.clip(max(above, 0.0) / max(below, 1e-300), 1 / _CHANGE, _CHANGE))


def penalty(system: System, strengths: dict, step: np.ndarray, length: float) -> float:
    """Priors after ``length`` times a step (q,), less those of the model itself."""
    return float(system.precision(strengths) @ (2 * length * system.position * step + (length * step) ** 2))


def determined(normal: Normal, system: System, strengths: dict) -> dict:
    """key -> number of parameters that the data determine, and not the priors; between 0 and all."""
    variance, precision = posterior(normal, system, strengths).variance, system.precision(strengths)
    return {key: float(np.sum(1 - precision[at] * variance[at])) for key, (at, _) in system.space.parts.items()}


@dataclass(frozen=True)
class TermTest:
    """Did a term earn its parameters?

    Attributes
    ----------
    name, label : key of the term, and what people call it
    gain : fall of χ² of held-out voxels by having the term, per observation
    esd : of the gain, from its scatter between folds
    evidence : logarithm of the ratio of the probabilities of the data with and without the term
    n_parameters, determined : directions in which it can change, and how many of them the data determine
    kept : was it kept
    """

    name: str
    label: str
    gain: float
    esd: float
    evidence: float
    n_parameters: int
    determined: float
    kept: bool


def judge_terms(folds: list, system: System, strengths: dict, terms) -> list:
    """Which terms are needed? One after the other, those that are not are left out, the least useful one first.

    A term is kept when the data are much more probable with it, its coefficients integrated out, and when held-out
    voxels are predicted better with it: by more than three times the e.s.d. of the gain, which must not be negligible.
    Of terms that nearly every experiment has, it is enough that the prediction does not become worse.

    Only scales are judged by what was kept out. The isotropic part, and the smooth anisotropic one, keep the curvature
    that they have from all folds: a block near the beam holds all there is at its |s|, and extrapolation to it would be
    all that counts.

    Parameters
    ----------
    folds : projected normal equations of disjoint sets of voxels
    terms : of Term, those to test

    Returns
    -------
    list of TermTest, in the order of ``terms``
    """
    everything = add(folds)
    number = determined(everything, system, strengths)
    crystal = system.space.crystal
    others = []
    for fold in folds:
        matrix = everything.matrix - fold.matrix
        matrix[crystal, crystal] += fold.matrix[crystal, crystal]
        others.append(Normal(matrix, everything.vector - fold.vector, 0.0, 0))

    def scores(lost) -> np.ndarray:
        return np.array([f.at(_without(o, system, strengths, lost)) for f, o in zip(folds, others)])

    result: dict = {}
    lost: list = []
    wanted = list(terms)
    while wanted:
        having = scores(lost)
        tests = []
        for term in wanted:
            gains = (scores([*lost, term.key]) - having) / everything.n
            gain, esd = float(gains.sum()), float(np.std(gains, ddof=1) * np.sqrt(len(gains)))
            evidence = _evidence(everything, system, strengths, term.key, lost)
            enough = -esd if term.usual else max(3 * esd, _LEAST_GAIN)
            kept = gain > enough and evidence > _LEAST_EVIDENCE
            n = len(system.space.parts[term.key].roughness)
            tests.append(TermTest(term.key, term.label, gain, esd, evidence, n, number[term.key], kept))
        result.update((test.name, test) for test in tests)
        useless = [test for test in tests if not test.kept]
        if not useless:
            break
        worst = min(useless, key=lambda test: test.gain)
        lost.append(worst.name)
        wanted = [term for term in wanted if term.key != worst.name]
    return [result[term.key] for term in terms]


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
    step[stay] = _minimum(reduced, precision[stay], system.position[stay])
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
    factor, unit = _factor(matrix[np.ix_(others, others)])
    right = np.column_stack([matrix[np.ix_(others, own)], (rest - precision * system.position)[others]])
    solved = unit[:, None] * linalg.cho_solve(factor, unit[:, None] * right)
    curvature = matrix[np.ix_(own, own)] - matrix[np.ix_(own, others)] @ solved[:, :-1]
    vector = (rest - precision * system.position)[own] - matrix[np.ix_(own, others)] @ solved[:, -1]
    away = (system.origin - system.position)[own] - linalg.solve(curvature, vector, assume_a="pos")
    at_zero = precision[own] @ system.origin[own] ** 2
    logs = np.sum(np.log(precision[own])) - np.linalg.slogdet(curvature)[1]
    return float(0.5 * (logs - at_zero + away @ curvature @ away))
