"""The ratio of the crystals from all observations, by what an offset cannot imitate: the anisotropic part.

Scales of sweeps (b) and offsets (c) are told apart by the anisotropic part alone, which is often 1 % of the intensity.
In the joint refinement small errors of the isotropic part and of the absorption, which are as large, decide with it.
Here they do not: in blocks of voxels each sweep has an offset of its own, so that only what varies from voxel to voxel
counts, and the ratio is that of the largest likelihood with the intensities of the voxels and these offsets integrated
out. To take off the mean of each sweep would not do: of a sweep that measures n voxels of a block the share 1/n of the
signal would go with it, and its scale would come out too small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.voxels import blocks_of_voxels
from dials_diffuse.scaling.apply import Predictions, sums_by_sweep

#: voxels x sweeps that are used: more do not matter
_MAX_ENTRIES = 2_000_000

#: a block is at least so many voxels wide: it has an offset
_BLOCK_WIDTH = 4

#: shells in which the spread of the anisotropic part is found
_N_SHELLS = 12

#: expected error of the logarithm of a sweep's scale from the joint refinement
_PRIOR = 0.1

_FIRST_STEPS = 20


@dataclass(frozen=True)
class Levels:
    """Factors by which scales of sweeps change, the isotropic part of the counts staying as it is.

    Attributes
    ----------
    factor : (e,) float64, geometric mean 1
    esd : (e,) float64, of the logarithm
    n_voxels : measured in two sweeps or more
    """

    factor: np.ndarray
    esd: np.ndarray
    n_voxels: int


def find_levels(
    predictions: Predictions,
    rejected: np.ndarray,
    profile: np.ndarray,
    grid: MapGrid,
    index: np.ndarray,
    n_sweeps: int,
    seed: int,
) -> Levels:
    """Compare the anisotropic part of all sweeps.

    Parameters
    ----------
    rejected : (n,) bool
    profile : (u,) float64, isotropic part at the unique voxels; index : (u, 3) int, where they are
    """
    block = np.unique(blocks_of_voxels(grid, index, _BLOCK_WIDTH), return_inverse=True)[1].reshape(-1)
    share = _MAX_ENTRIES / (len(index) * n_sweeps)
    used = np.random.default_rng(seed).random(block.max() + 1)[block] < share
    used &= profile > 0
    voxel = np.where(used, np.cumsum(used) - 1, -1)
    sums = sums_by_sweep(predictions, rejected, voxel, n_sweeps)
    common = np.count_nonzero(sums[..., 1] > 0, axis=1) > 1
    used = np.flatnonzero(voxel >= 0)[common]
    sums, level, block = sums[common], profile[used], block[used]
    if not len(level):
        return Levels(np.ones(n_sweeps), np.full(n_sweeps, _PRIOR), 0)
    weight = sums[..., 1] * level[:, None] ** 2
    value = np.divide(sums[..., 0], sums[..., 1] * level[:, None], out=np.zeros(weight.shape), where=weight > 0)
    value -= _means(value, weight, block)[block]  # a start: offsets of blocks are free
    s = grid.s_magnitude(index[used])
    shell = np.searchsorted(np.quantile(s, np.linspace(0, 1, _N_SHELLS + 1)[1:-1]), s)
    order = np.argsort(block, kind="stable")
    first = np.flatnonzero(np.diff(block[order], prepend=-1))
    return _most_likely(value[order], weight[order], shell[order], first)


def _means(value, weight, block) -> np.ndarray:
    """(b, e) weighted mean of each block and sweep."""
    result = np.empty((block.max() + 1, value.shape[1]))
    for e in range(value.shape[1]):
        total = np.bincount(block, weight[:, e], minlength=len(result))
        result[:, e] = np.bincount(block, weight[:, e] * value[:, e], minlength=len(result)) / total.clip(1e-300)
    return result


def minus_log_likelihood(x, value, weight, shell) -> tuple:
    """Of measurements of voxels by several sweeps, and its gradient.

    value[v, e] = g[e] j[v] + noise of variance 1 / weight[v, e], with j normal of variance t[shell[v]], integrated out,
    and a normal prior on log g.

    x : log g (e,), log t (k,); value, weight : (n, e) float64, weight 0 where not measured; shell : (n,) int
    """
    n_sweeps = value.shape[1]
    g, spread = np.exp(x[:n_sweeps]), np.exp(x[n_sweeps:])[shell]
    curvature = 1 / spread + weight @ g**2
    mean = (weight * value) @ g / curvature
    square = mean**2 + 1 / curvature
    logs = np.sum(np.log(curvature * spread)) + np.sum((x[:n_sweeps] / _PRIOR) ** 2)
    result = 0.5 * (np.sum(weight * value**2) - np.sum(mean**2 * curvature) + logs)
    slope_g = g * (g * (square @ weight) - mean @ (weight * value)) + x[:n_sweeps] / _PRIOR**2
    slope_t = 0.5 * np.bincount(shell, 1 - square / spread, minlength=len(x) - n_sweeps)
    return result, np.concatenate([slope_g, slope_t])


def without_offsets(x, value, weight, shell, first) -> tuple:
    """Minus the logarithm of the likelihood with an offset of each block and sweep integrated out.

    -log of the integral = the lowest value + log det A / 2, A = sum over the block of the inverse covariances
    diag(weight) - u uᵀ of its voxels (Sherman & Morrison), u = weight g / sqrt(1 / t + sum weight g²).

    Parameters
    ----------
    x, value, weight, shell : see :func:`minus_log_likelihood`, sorted by block
    first : (b,) int, the first row of each block; a sweep that is not in a block has the offset 0

    Returns
    -------
    float; (e + k,) float64, its gradient by x; (b, e) float64, the offsets that are most likely
    """
    n_sweeps = value.shape[1]
    g, spread = np.exp(x[:n_sweeps]), np.exp(x[n_sweeps:])[shell]
    curvature = 1 / spread + weight @ g**2
    u = weight * g / np.sqrt(curvature)[:, None]
    total, right = (
        np.add.reduceat(a, first) for a in (weight, weight * value - u * np.sum(u * value, axis=1)[:, None])
    )
    parts = np.split(u, first[1:])
    matrix = np.array([-part.T @ part for part in parts])
    matrix[:, range(n_sweeps), range(n_sweeps)] += np.where(total > 0, total, 1.0)
    inverse = np.linalg.inv(matrix)
    offsets = np.einsum("bij,bj->bi", inverse, right)
    rows = np.diff(np.append(first, len(value)))
    result, slope = minus_log_likelihood(x, value - np.repeat(offsets, rows, axis=0), weight, shell)
    turned = u * np.concatenate([part @ own for part, own in zip(parts, inverse)])
    square = turned.sum(axis=1) / curvature
    slope[:n_sweeps] += g**2 * (square @ weight) - turned.sum(axis=0)
    slope[n_sweeps:] -= 0.5 * np.bincount(shell, square / spread, len(x) - n_sweeps)
    return result + 0.5 * np.linalg.slogdet(matrix)[1].sum(), slope, offsets


def _most_likely(value, weight, shell, first) -> Levels:
    n_sweeps = value.shape[1]
    arguments = value, weight, shell, first
    rows = np.diff(np.append(first, len(value)))
    spread = np.bincount(shell, np.sum(weight * value**2, axis=1)) / np.bincount(shell, weight.sum(axis=1))
    factor, spread = np.ones(n_sweeps), spread / 2
    rest = value
    for _ in range(_FIRST_STEPS):  # expectation maximisation: slow, but never goes astray
        curvature = 1 / spread[shell] + weight @ factor**2
        mean = (weight * rest) @ factor / curvature
        square = mean**2 + 1 / curvature
        factor = (mean @ (weight * rest)) / (square @ weight)
        factor = np.where(factor > 0, factor, 1.0)
        spread = np.bincount(shell, square) / np.bincount(shell)
        x = np.concatenate([np.log(factor), np.log(spread)])
        rest = value - np.repeat(without_offsets(x, *arguments)[2], rows, axis=0)
    start = np.concatenate([np.log(factor) - np.log(factor).mean(), np.log(spread) + 2 * np.log(factor).mean()])
    near = list(zip(start - 1, start + 1))
    x = minimize(lambda y: without_offsets(y, *arguments)[:2], start, method="L-BFGS-B", jac=True, bounds=near).x
    steps = 1e-3 * np.eye(len(x))
    slopes = [without_offsets(x + d, *arguments)[1] - without_offsets(x - d, *arguments)[1] for d in steps]
    hessian = np.array(slopes) / 2e-3
    covariance = np.linalg.inv((hessian + hessian.T) / 2)[:n_sweeps, :n_sweeps]
    centre = np.eye(n_sweeps) - 1 / n_sweeps  # the overall scale is free: geometric mean 1
    esd = np.sqrt(np.diag(centre @ covariance @ centre))
    return Levels(np.exp(centre @ x[:n_sweeps]), esd, len(value))
