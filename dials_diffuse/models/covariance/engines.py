"""Engines for the sum over pairs of a covariance, and which of them is the fastest."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.covariance.low_rank import (
    checked_modes,
    low_rank_sum,
    main_modes,
    modes_of,
    number_of_sums,
    orders_needed,
)
from dials_diffuse.models.covariance.motion import JointMotion, cost_of_chebyshev, cost_of_pair_form
from dials_diffuse.models.covariance.patterson import real_grid
from dials_diffuse.parallel import SERIAL, Executor

logger = logging.getLogger("dials.diffuse.models")

#: pair_sum: compiled loops over all pairs; chebyshev: matrix products in shells of q², isotropic V only; low_rank: sums
#: over the atoms for each product of modes of V; fft: the Patterson function of all pairs of atoms, on a grid only
ENGINES = ("auto", "pair_sum", "chebyshev", "low_rank", "fft")

#: cost of a pair's two peaks and of a point of the density, in units of a product of numbers in a matrix product
_PRODUCTS_PER_PEAKS = 60_000
_PRODUCTS_PER_POINT = 600
#: cost of an atom in the sum for a product of modes, in the same units; V is looked at for modes up to this size
_PRODUCTS_PER_MODE = 60
_MOST_FOR_MODES = 1000
#: products of modes that engine ``low_rank`` goes through at most
_MOST_SUMS = 20_000


def choose_engine(model, motion: JointMotion, grid: MapGrid | None, s=None) -> str:
    """The engine that a model asks for, or the cheapest.

    Parameters
    ----------
    model : Covariance
    grid : of the map; None: the intensity is wanted at s, (m, 3) float64 in 1/Å
    """
    if model.engine == "chebyshev" and not motion.isotropic:
        raise DiffuseError("covariance.engine=chebyshev needs isotropic displacements; use fft, pair_sum or auto")
    if model.engine != "auto":
        return model.engine
    n, atoms = len(motion.covariance), motion.structure.n_atoms
    m = max(1, grid.n_voxels // 4 if s is None else len(s))
    span = (2 * np.pi / grid.d_min) ** 2 if s is None else (2 * np.pi) ** 2 * np.square(s).sum(axis=1).max()
    costs = {"pair_sum": cost_of_pair_form(m, n)}
    if model.modes is not None or n * (1 if motion.isotropic else 3) <= _MOST_FOR_MODES:
        modes, orders = _modes(model, motion, span)
        sums = number_of_sums(len(modes), orders)
        if sums <= _MOST_SUMS:
            costs["low_rank"] = m * n * sums * _PRODUCTS_PER_MODE
    if motion.isotropic:
        largest = max(np.abs(motion.covariance).max(), 1e-300)
        costs["chebyshev"] = cost_of_chebyshev(m, n, span, largest, model.tolerance)
    if grid is not None:
        kinds = len(motion.structure.types)
        points = 0.5 * kinds * (kinds + 1) * np.prod(real_grid(grid), dtype=float)
        costs["fft"] = 0.5 * atoms**2 * _PRODUCTS_PER_PEAKS + points * _PRODUCTS_PER_POINT
    engine = min(costs, key=costs.get)
    logger.info(
        "covariance: engine=%s for %d groups of %d atoms (expected cost: %s)",
        engine,
        n,
        atoms,
        ", ".join(f"{name} {cost / costs[engine]:.1f}" for name, cost in costs.items()),
    )
    return engine


@dataclass(frozen=True)
class _Sums:
    """What the blocks of :func:`molecule_sum` have in common; modes, orders : of ``low_rank``"""

    motion: JointMotion
    share: np.ndarray
    table: str
    tolerance: float
    soft: bool
    engine: str
    modes: np.ndarray | None = None
    orders: int = 0


def molecule_sum(
    model, share: np.ndarray, motion: JointMotion, s: np.ndarray, engine: str, executor: Executor = SERIAL
) -> np.ndarray:
    """The intensity of a molecule, or a block of cells, by an engine, in blocks of points of about the same |s|.

    Parameters
    ----------
    model : Covariance
    share : (n,) float64, that the occupancy of each atom contains: on special positions below 1
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure
    executor : does the work, block by block; the blocks do not depend on it

    Returns
    -------
    (m,) float64, electrons²
    """
    sums = _Sums(motion, share, model.table, model.tolerance, model.soft, engine)
    if engine == "low_rank":
        modes, orders = _modes(model, motion, (2 * np.pi) ** 2 * np.square(s).sum(axis=1).max(initial=0.0))
        logger.info("covariance: %d modes, %d orders", len(modes), orders)
        if number_of_sums(len(modes), orders) > _MOST_SUMS:
            raise DiffuseError(
                f"covariance.engine=low_rank: {len(modes)} modes to order {orders} have too many products; take "
                "another engine, or a larger covariance.tolerance"
            )
        sums = replace(sums, modes=modes, orders=orders)
    blocks = motion.blocks(s)
    total = np.empty(len(s))
    for where, values in zip(blocks, executor.map(_sum_of_block, sums, (s[where] for where in blocks))):
        total[where] = values
    return total


def _sum_of_block(sums: _Sums, s: np.ndarray) -> np.ndarray:
    motion = sums.motion
    if sums.engine == "low_rank":
        total = low_rank_sum(motion, s, sums.table, sums.modes, sums.orders)
    else:
        total = motion.coherent(s, sums.table, sums.engine, sums.tolerance)
    if sums.soft or np.any(sums.share != 1):
        total += motion.remainder(s, sums.share, sums.table)
    return total


def _modes(model, motion: JointMotion, square: float) -> tuple:
    """Modes of V, and the orders of their products, that tolerance and the largest q² ask for."""
    neglect = model.tolerance / max(square, 1e-9)
    if model.modes is None:
        modes = modes_of(motion.covariance, neglect)
    else:
        modes = main_modes(checked_modes("covariance.modes", model.modes, len(motion.covariance)), neglect)
    largest = np.linalg.norm(motion.shared, ord=2, axis=(1, 2)).max()
    return modes, orders_needed(square * largest, model.tolerance)
