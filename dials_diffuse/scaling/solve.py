"""One step of the refinement: priors and their strengths, and what is fixed because nothing can tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg

from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.normal import Normal
from dials_diffuse.scaling.sample import Observations

#: limits of the strengths of priors, and what one update may change them by
_STRENGTHS, _CHANGE = (1.0, 1e8), 30.0

#: coefficients are at most so many times as large as expected
_LARGEST = 4.0

#: the size of a term is what these many coefficients of the expected size, and its own, say together
_PSEUDO = 2.0

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
    factor, unit : of the matrix, see :func:`factorised`
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


def factorised(matrix: np.ndarray) -> tuple:
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


def minimum(normal: Normal, precision: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(q,) the step to the minimum of χ² plus priors, from projected normal equations."""
    factor, unit = factorised(normal.matrix + np.diag(precision))
    return unit * linalg.cho_solve(factor, unit * (normal.vector - precision * position))


def posterior(normal: Normal, system: System, strengths: dict) -> Posterior:
    """From projected normal equations, with given strengths."""
    precision = system.precision(strengths)
    (factor, _), unit = factorised(normal.matrix + np.diag(precision))
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
