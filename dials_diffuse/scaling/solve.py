"""One step of the refinement: smoothing, what is fixed because nothing can tell it, and cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.normal import Normal, add
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.terms.base import Term

#: strengths of smoothing that are tried first, per squared second difference of neighbouring coefficients
STRENGTHS = 100.0 ** np.arange(0, 6)

#: a term that lowers χ² per held-out observation by less does not matter
_LEAST_GAIN = 5e-4

#: of the anisotropic part, how much may be a smooth function of the direction
_SMOOTH_SHARE = 0.3

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


@dataclass(frozen=True)
class Space:
    """What belongs to the terms of a model, whatever their coefficients.

    Attributes
    ----------
    free : (p, q) float64, orthonormal basis of the directions that are refined
    roughness : key -> (k, k) float64, penalty of each term's own parameters, for a strength of 1
    penalties : key -> (q, q) float64, that penalty for the directions that are refined
    """

    free: np.ndarray
    roughness: dict
    penalties: dict


@dataclass(frozen=True)
class System:
    """What does not change when the normal equations do, in the space of the directions that are refined.

    Attributes
    ----------
    free : (p, q) float64, orthonormal basis of those directions
    penalties : key -> (q, q) float64, for a strength of 1
    slopes : key -> (q,) float64, half the derivative of the penalty at the present coefficients
    fixed : key -> float, strengths of the penalties that are not chosen
    crystal : slice of the parameters of P and Q, which are the crystal's
    """

    free: np.ndarray
    penalties: dict
    slopes: dict
    fixed: dict
    crystal: slice


def make_space(model: ScaleModel, data: Observations) -> Space:
    """Constraints and smoothness of the terms of a model."""
    fixed = gauge(model, data)
    free = np.eye(model.n_parameters)
    if len(fixed):
        q, r, _ = linalg.qr(fixed.T, mode="full", pivoting=True)
        diagonal = np.abs(np.diag(r))
        free = np.ascontiguousarray(q[:, int(np.count_nonzero(diagonal > 1e-8 * diagonal[0])) :])
    roughness = {b.key: b.roughness(model.reference) for b in model.blocks}
    penalties = {b.key: free[b.all].T @ roughness[b.key] @ free[b.all] for b in model.blocks}
    return Space(free, roughness, penalties)


def make_system(model: ScaleModel, space: Space, spread: float) -> System:
    """Penalties of a model; spread : expected size of the anisotropic part, relative to the isotropic."""
    spread = _SMOOTH_SHARE * spread
    free, ridge, slopes = space.free, np.zeros(model.n_parameters), {}
    for block in model.blocks:
        slopes[block.key] = free[block.all].T @ (space.roughness[block.key] @ model.coefficients[block.all])
        ridge[block.all] = block.ridge(spread)
    slopes["ridge"] = free.T @ (ridge * model.coefficients)
    penalties = {**space.penalties, "ridge": free.T @ (ridge[:, None] * free)}
    fixed = {b.key: b.smoothing for b in model.blocks if b.smoothing is not None}
    return System(free, penalties, slopes, {**fixed, "ridge": 1.0}, slice(0, model.of_crystal[-1].all.stop))


def projected(normal: Normal, system: System) -> Normal:
    """Normal equations of the directions that are refined."""
    return Normal(system.free.T @ normal.matrix @ system.free, system.free.T @ normal.vector, normal.chi2, normal.n)


def _minimum(normal: Normal, system: System, strengths: dict) -> np.ndarray:
    """(q,) the step to the minimum of χ² plus penalties, from projected normal equations."""
    matrix, vector = normal.matrix.copy(), normal.vector.copy()
    for key, strength in {**strengths, **system.fixed}.items():
        matrix += strength * system.penalties[key]
        vector -= strength * system.slopes[key]
    # penalties differ by many orders: with a unit diagonal, what keeps the solution finite is small for all parameters
    unit = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix *= unit[:, None] * unit
    matrix[np.diag_indices_from(matrix)] += 1e-12
    return unit * linalg.solve(matrix, unit * vector, assume_a="pos")


def penalty(system: System, strengths: dict, direction: np.ndarray, length: float) -> float:
    """Penalties after ``length`` times a step (p,), less those of the model itself."""
    q = system.free.T @ direction
    total = 0.0
    for key, strength in {**strengths, **system.fixed}.items():
        total += strength * (2 * length * system.slopes[key] @ q + length**2 * q @ system.penalties[key] @ q)
    return total


def best_step(normal: Normal, system: System, strengths: dict) -> np.ndarray:
    """(p,) the step of the parameters to the minimum of χ² plus penalties."""
    return system.free @ _minimum(projected(normal, system), system, strengths)


def held_out(folds: list, system: System, strengths: dict) -> np.ndarray:
    """(k,) χ² of each fold after a step from all the others; folds : normal equations of disjoint sets of voxels.

    Only scales are judged by what was kept out. The isotropic part, and the smooth anisotropic one, keep the curvature
    that they have from all folds: a block near the beam holds all there is at its |s|, and extrapolation to it would be
    all that counts.
    """
    return _held_out(_with_anchors(folds, system), system, strengths)


def _with_anchors(folds: list, system: System) -> list:
    """(projected normal equations, curvature of the crystal's own part in them) of each fold."""
    own, part = system.free[system.crystal], (system.crystal, system.crystal)
    return [(projected(f, system), own.T @ f.matrix[part] @ own) for f in folds]


def _held_out(folds: list, system: System, strengths: dict) -> np.ndarray:
    everything = add(fold for fold, _ in folds)
    result = []
    for fold, anchor in folds:
        others = Normal(everything.matrix - fold.matrix + anchor, everything.vector - fold.vector, 0.0, 0)
        result.append(fold.at(_minimum(others, system, strengths)))
    return np.array(result)


def choose_strengths(folds: list, system: System, strengths: dict, keys, coarse: bool) -> dict:
    """Strength of the smoothing of each term for which voxels kept out of the fit agree best, one term after the other.

    Parameters
    ----------
    folds : normal equations of disjoint sets of voxels
    strengths : key -> float, to begin with; keys : of those to choose
    coarse : try all ``STRENGTHS`` first, then a tenth and ten times the best; otherwise only the latter

    Returns
    -------
    key -> float
    """
    folds = _with_anchors(folds, system)
    best = _held_out(folds, system, strengths).sum()
    for turn in ("coarse", "fine") if coarse else ("fine",):
        for key in keys:
            near = strengths[key] * np.array([0.1, 10.0])
            candidates = STRENGTHS if turn == "coarse" else near[(near >= STRENGTHS[0]) & (near <= STRENGTHS[-1])]
            for candidate in candidates[candidates != strengths[key]]:
                tried = {**strengths, key: float(candidate)}
                chi2 = _held_out(folds, system, tried).sum()
                if chi2 < best:
                    strengths, best = tried, chi2
    return strengths


@dataclass(frozen=True)
class TermTest:
    """Did a term earn its parameters?

    Attributes
    ----------
    name, label : key of the term, and what people call it
    gain : fall of χ² of held-out voxels by having the term, per observation
    esd : of the gain, from its scatter between folds
    kept : was it kept
    """

    name: str
    label: str
    gain: float
    esd: float
    kept: bool


def judge(term: Term, without: np.ndarray, having: np.ndarray, n: int) -> TermTest:
    """A term is kept when the gain is more than three times its esd, and not negligible.

    without, having : (k,) χ² of held-out folds; n : observations
    """
    gains = (without - having) / n
    gain, esd = float(gains.sum()), float(np.std(gains, ddof=1) * np.sqrt(len(gains)))
    return TermTest(term.key, term.label, gain, esd, gain > max(3 * esd, _LEAST_GAIN))
