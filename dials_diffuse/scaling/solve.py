"""One step of the refinement: smoothing, what is fixed because nothing can tell it, and cross-validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import linalg, sparse

from dials_diffuse.kernels.scaling import fill_basis
from dials_diffuse.scaling.layout import S
from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.normal import Normal, add
from dials_diffuse.scaling.sample import Observations

#: strengths of smoothing that are tried first, per squared second difference of neighbouring coefficients
STRENGTHS = 100.0 ** np.arange(0, 6)

#: a term that lowers χ² per held-out observation by less does not matter
_LEAST_GAIN = 5e-4

#: of the profile, relative to its mean: only where there are no data
_PROFILE_STRENGTH = 1e2

#: what is expected of the coefficients before there are data (logarithms of factors; for c a relative size)
_PRIOR = {"a": 0.3, "h": 0.3, "b": 0.5, "c": 0.3, "d": 0.1, "m": 0.1}

#: of the anisotropic part, how much may be a smooth function of the direction
_SMOOTH_SHARE = 0.3

#: rings of |s| in which the response of the detector averages to nothing, and that tell what is radial in absorption
_RINGS_D, _RINGS_A = 10, 30

#: a function with more than this share of its variance between the rings is radial
_RADIAL_SHARE = 0.9

#: a harmonic of which other terms can make more than this share of the variance is theirs
_ALIKE_SHARE = 0.998
_GAUGE_ROWS = 50_000


def gauge(model: ScaleModel, data: Observations) -> np.ndarray:
    """Directions of the parameters that the data cannot tell, or only through another term.

    b: mean 0 over all sweeps (the overall scale belongs to the intensities). a: no part that depends on |s| alone
    around each node of the rotation, the mean included (that is b and c, for all but the small anisotropic part). h: no
    part that functions of |s| and b can make. d:
    mean 0 over all observations in rings of |s| (that is the isotropic profile). m: mean 0. c: mean 0 over all sweeps
    at each |s| (that is the isotropic profile too).

    Returns
    -------
    (k, p) float64, each row times the parameters is to be zero
    """
    some = np.arange(0, data.n, max(1, data.n // _GAUGE_ROWS))
    rows = [np.zeros((0, model.n_parameters))]

    def add_rows(block, values):
        full = np.zeros((len(values), model.n_parameters))
        full[:, block.all] = values
        rows.append(full / np.linalg.norm(full, axis=1, keepdims=True).clip(1e-300))

    for block in model.blocks:
        shape = (block.n_sets, *block.axes[:, 1])
        if block.name in "bm":
            add_rows(block, np.ones((1, math.prod(shape))))
        elif block.name == "c":
            add_rows(block, np.tile(np.eye(shape[2]), shape[0] * shape[1]))
        elif block.name == "a":
            plane = replace(block, axes=block.axes[1:], limits=block.limits[1:], size=shape[2] * shape[3], n_sets=1)
            radial = _radial(_basis(plane, data, some), data, some)
            add_rows(block, np.kron(np.eye(shape[0] * shape[1]), radial))
        elif block.name == "h":
            for number in range(block.n_sets):
                mine = some[data.experiment[some] == number]
                full = np.zeros((0, block.size * block.n_sets))
                if len(mine):
                    alike = _alike(data.harmonics[mine], _simpler(model, data, mine))
                    full = np.zeros((len(alike), block.size * block.n_sets))
                    full[:, number * block.size : (number + 1) * block.size] = alike
                add_rows(block, full)
        elif block.name == "d":
            basis = _basis(block, data, some)
            add_rows(block, np.array([np.asarray(basis[r].sum(axis=0))[0] for r in _rings(data, some, _RINGS_D)]))
            if model.block("h"):
                add_rows(block, _alike(basis.toarray(), _of_absorption(model, data, some)))
    return np.concatenate(rows)


def _simpler(model: ScaleModel, data: Observations, some: np.ndarray) -> np.ndarray:
    """(n, k) functions of |s| and of the rotation, as the terms P and B make them, at some observations."""
    rings = np.zeros((len(some), _RINGS_A))
    for k, ring in enumerate(_rings(data, some, _RINGS_A)):
        rings[ring, k] = 1
    return np.hstack([rings, *(_basis(b, data, some).toarray() for b in model.blocks if b.name == "b")])


def _of_absorption(model: ScaleModel, data: Observations, some: np.ndarray) -> np.ndarray:
    """(n, k) the harmonics of every sweep at some observations."""
    block = model.block("h")
    result = np.zeros((len(some), block.n_sets, block.size))
    result[np.arange(len(some)), data.experiment[some]] = data.harmonics[some]
    return result.reshape(len(some), -1)


def _alike(basis: np.ndarray, simpler: np.ndarray) -> np.ndarray:
    """(k, m) combinations of the basis (n, m) that others (n, p) can make, almost; as rows, see :func:`_radial`."""
    made = simpler @ np.linalg.lstsq(simpler, basis, rcond=1e-6)[0]
    gram = basis.T @ basis / len(basis)
    gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    share, vectors = linalg.eigh(made.T @ made / len(basis), gram)
    return (gram @ vectors[:, share > _ALIKE_SHARE]).T


def _radial(basis, data: Observations, some: np.ndarray) -> np.ndarray:
    """(k, n) functions of the detector that the basis can make and that depend, almost, on |s| alone.

    As rows that give the coefficients' overlap with them. Their variance lies between rings of |s|, not within.
    """
    rings = _rings(data, some, _RINGS_A)
    gram = (basis.T @ basis).toarray() / len(some)
    means = np.array([np.asarray(basis[r].mean(axis=0))[0] for r in rings])
    gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    share, vectors = linalg.eigh(means.T @ means / len(rings), gram)
    return (gram @ vectors[:, share > _RADIAL_SHARE]).T


def _basis(block, data: Observations, some: np.ndarray):
    """(n, parameters of the block) sparse: its basis functions at some observations."""
    n = len(some)
    index, value = np.zeros((n, block.width), dtype=np.int64), np.zeros((n, block.width))
    offset = block.offset(data.experiment[some]) - block.start
    fill_basis(data.coordinates[some], offset, block.axes, block.limits, np.ones(n), index, value, 0)
    row = np.repeat(np.arange(n), block.width)
    return sparse.csr_matrix((value.ravel(), (row, index.ravel())), shape=(n, block.size * block.n_sets))


def _rings(data: Observations, some: np.ndarray, n_rings: int) -> list:
    """Positions in ``some`` of the observations in each ring of |s|, equal numbers in each."""
    return np.array_split(np.argsort(data.coordinates[some, S]), n_rings)


@dataclass(frozen=True)
class Space:
    """What belongs to the terms of a model, whatever their coefficients.

    Attributes
    ----------
    free : (p, q) float64, orthonormal basis of the directions that are refined
    roughness : name -> (k, k) float64, penalty of each block's own parameters, for a strength of 1
    penalties : name -> (q, q) float64, the same for the directions that are refined
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
    penalties : name -> (q, q) float64, for a strength of 1
    slopes : name -> (q,) float64, half the derivative of the penalty at the present coefficients
    crystal : slice of the parameters of P and Q, which are the crystal's
    """

    free: np.ndarray
    penalties: dict
    slopes: dict
    crystal: slice


def make_space(model: ScaleModel, data: Observations) -> Space:
    """Constraints and smoothness of the terms of a model."""
    fixed = gauge(model, data)
    free = np.eye(model.n_parameters)
    if len(fixed):
        q, r, _ = linalg.qr(fixed.T, mode="full", pivoting=True)
        diagonal = np.abs(np.diag(r))
        free = np.ascontiguousarray(q[:, int(np.count_nonzero(diagonal > 1e-8 * diagonal[0])) :])
    roughness = {}
    for block in model.blocks:
        roughness[block.name] = np.kron(np.eye(block.n_sets), block.penalty())
        if block.name == "p":
            roughness["p"] /= np.mean(model.reference[block.all] ** 2)
    penalties = {b.name: free[b.all].T @ roughness[b.name] @ free[b.all] for b in model.blocks}
    return Space(free, roughness, penalties)


def make_system(model: ScaleModel, space: Space, spread: float) -> System:
    """Penalties of a model; spread : expected size of the anisotropic part, relative to the isotropic."""
    spread = _SMOOTH_SHARE * spread
    free, ridge, slopes = space.free, np.zeros(model.n_parameters), {}
    for block in model.blocks:
        slopes[block.name] = free[block.all].T @ (space.roughness[block.name] @ model.coefficients[block.all])
        if block.name != "p":
            ridge[block.all] = (spread if block.name == "q" else _PRIOR[block.name]) ** -2.0
    slopes["ridge"] = free.T @ (ridge * model.coefficients)
    p, q = model.block("p").all, model.block("q").all
    assert p.start == 0 and q.start == p.stop
    penalties = {**space.penalties, "ridge": free.T @ (ridge[:, None] * free)}
    return System(free, penalties, slopes, slice(p.start, q.stop))


def projected(normal: Normal, system: System) -> Normal:
    """Normal equations of the directions that are refined."""
    return Normal(system.free.T @ normal.matrix @ system.free, system.free.T @ normal.vector, normal.chi2, normal.n)


def _minimum(normal: Normal, system: System, strengths: dict) -> np.ndarray:
    """(q,) the step to the minimum of χ² plus penalties, from projected normal equations."""
    matrix, vector = normal.matrix.copy(), normal.vector.copy()
    for name, strength in _complete(strengths).items():
        matrix += strength * system.penalties[name]
        vector -= strength * system.slopes[name]
    # penalties differ by many orders: with a unit diagonal, what keeps the solution finite is small for all parameters
    unit = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix *= unit[:, None] * unit
    matrix[np.diag_indices_from(matrix)] += 1e-12
    return unit * linalg.solve(matrix, unit * vector, assume_a="pos")


def penalty(system: System, strengths: dict, direction: np.ndarray, length: float) -> float:
    """Penalties after ``length`` times a step (p,), less those of the model itself."""
    q = system.free.T @ direction
    total = 0.0
    for name, strength in _complete(strengths).items():
        total += strength * (2 * length * system.slopes[name] @ q + length**2 * q @ system.penalties[name] @ q)
    return total


def _complete(strengths: dict) -> dict:
    return {**strengths, "p": _PROFILE_STRENGTH, "q": 0.0, "ridge": 1.0}


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


def choose_strengths(folds: list, system: System, strengths: dict, names, coarse: bool) -> dict:
    """Strength of the smoothing of each term for which voxels kept out of the fit agree best, one term after the other.

    Parameters
    ----------
    folds : normal equations of disjoint sets of voxels
    strengths : name -> float, to begin with; names : of those to choose
    coarse : try all ``STRENGTHS`` first, then a tenth and ten times the best; otherwise only the latter

    Returns
    -------
    name -> float
    """
    folds = _with_anchors(folds, system)
    best = _held_out(folds, system, strengths).sum()
    for turn in ("coarse", "fine") if coarse else ("fine",):
        for name in names:
            near = strengths[name] * np.array([0.1, 10.0])
            candidates = STRENGTHS if turn == "coarse" else near[(near >= STRENGTHS[0]) & (near <= STRENGTHS[-1])]
            for candidate in candidates[candidates != strengths[name]]:
                tried = {**strengths, name: float(candidate)}
                chi2 = _held_out(folds, system, tried).sum()
                if chi2 < best:
                    strengths, best = tried, chi2
    return strengths


@dataclass(frozen=True)
class TermTest:
    """Did a term earn its parameters?

    Attributes
    ----------
    name : the term
    gain : fall of χ² of held-out voxels by having the term, per observation
    esd : of the gain, from its scatter between folds
    kept : was it kept
    """

    name: str
    gain: float
    esd: float
    kept: bool


def judge(name: str, without: np.ndarray, having: np.ndarray, n: int) -> TermTest:
    """A term is kept when the gain is more than three times its esd, and not negligible.

    without, having : (k,) χ² of held-out folds; n : observations
    """
    gains = (without - having) / n
    gain, esd = float(gains.sum()), float(np.std(gains, ddof=1) * np.sqrt(len(gains)))
    return TermTest(name, gain, esd, gain > max(3 * esd, _LEAST_GAIN))
