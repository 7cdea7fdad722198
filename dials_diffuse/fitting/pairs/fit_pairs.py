"""The covariance of every pair of groups as one of the models that are compared."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import criteria, statistics
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.displacements import compare_displacements
from dials_diffuse.fitting.fit_parameters import FitOptions, PairParameters
from dials_diffuse.fitting.pairs.group_fit import GroupFit, fit_groups, sampled_rows
from dials_diffuse.fitting.pairs.pair_freedom import PairFreedom
from dials_diffuse.fitting.pairs.pair_minimisers import MOST_ELEMENTS
from dials_diffuse.fitting.pairs.pair_objective import Sample
from dials_diffuse.fitting.result import Estimate, Fit, ModelFit
from dials_diffuse.fitting.uncertainty import end_of_strengths, other_minima
from dials_diffuse.models.checks import fitted as fitted_to_grid
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.motion import flattened
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_names

logger = logging.getLogger("dials.diffuse.fit")


@dataclass(frozen=True, eq=False)
class PairFit(Fit):
    """The covariance of every pair of groups, fitted.

    Attributes
    ----------
    covariance : (g, g) or (g, g, 3, 3) float64, V in Å², positive semidefinite
    strength : of the prior; trials : (strength, correlation on free voxels, on the others) of each that was tried
    iterations : of the minimisation that is kept
    freedom : what the data determine; None for many groups
    groups : (g,) tuple of str, their names
    """

    covariance: np.ndarray
    strength: float
    trials: tuple
    iterations: int
    freedom: PairFreedom | None
    groups: tuple = ()


def fit_all_pairs(
    data: FitData,
    kernel_fit: ModelFit,
    structure: Structure,
    options: FitOptions,
    parameters: PairParameters,
    name: str = "",
    groups: GroupCovariance | None = None,
) -> PairFit:
    """The covariance of every pair of groups, with that of a fitted kernel as prior, see :func:`group_fit.fit_groups`.

    Parameters
    ----------
    kernel_fit : of a Covariance; its weights are used. If its displacements are tensors (V), those of all pairs are;
        if it is averaged over voxels, they are, too, if that can be afforded
    name : for tables; by default that of the kernel with ``/pairs``
    groups : at all voxels of the data, as the kernel was prepared; None: made anew

    Raises
    ------
    DiffuseError
        If the map and the structure have different Laue groups, or the minimiser is not one for these covariances.

    Notes
    -----
    AIC and BIC count as many parameters as the data determine beside the prior; of many groups all, an upper limit.
    """
    (model,) = kernel_fit.models
    name = name or f"{kernel_fit.name}/pairs"
    laue = [g.build_derived_laue_group() for g in (structure.space_group, data.grid.space_group)]
    if laue[0] != laue[1]:
        raise DiffuseError(f"{name}: the structure and the map need the same Laue group")
    placed, _ = fitted_to_grid(structure, data.grid)
    prior = model.motion(placed).covariance
    groups = groups or model.group_covariance(structure, data.grid, data.index, kernel_fit.means)
    if kernel_fit.means and not groups.means:
        logger.info("%s: too large to be averaged over voxels, taken at their centres", name)
    sample, rows = None, sampled_rows(data.free, len(prior), prior.ndim == 4)
    if rows is not None:
        sample = Sample(rows, model.group_covariance(structure, data.grid, data.index[rows], groups.means))
    found = fit_groups(
        data,
        groups,
        prior,
        parameters.strengths,
        options.scale,
        options.background,
        parameters.max_iterations,
        parameters.minimiser,
        kernel_fit.weights,
        sample,
        parameters.starts or number_of_starts(len(flattened(prior)), options.starts),
        options.seed,
        kernel_fit.adjustment,
    )
    models = (_with_covariance(model, found.covariance),)
    displacements = compare_displacements(models, structure)
    fitted = found.scale * found.intensity + found.background
    n_parameters = found.n_free + found.n_background + (options.scale is None)
    work, weights = ~data.free, kernel_fit.weights
    objective = float(np.sum(weights[work] * (data.intensity - fitted)[work] ** 2))
    warnings = [*_warnings(found), *(comparison.warning for comparison in displacements)]
    return PairFit(
        name=name,
        models=models,
        scale=Estimate("scale", "", found.scale, math.nan if options.scale is None else 0.0),
        intensity=found.intensity,
        background=found.background,
        fitted=fitted,
        weights=weights,
        statistics=statistics(data, fitted, weights, n_parameters, options.n_shells),
        criteria=criteria(objective, np.count_nonzero(work), n_parameters),
        converged=found.converged,
        starts=found.starts,
        reached=found.reached,
        means=groups.means,
        adjustment=kernel_fit.adjustment,
        displacements=displacements,
        warnings=tuple(f"{name}: {text}" for text in warnings if text),
        covariance=found.covariance,
        strength=found.strength,
        trials=found.trials,
        iterations=found.iterations,
        freedom=found.freedom,
        groups=group_names(structure, model.groups, model.selections),
    )


def number_of_starts(size: int, wanted: int) -> int:
    """size : of the matrix V, (size, size)"""
    return wanted if size * (size + 1) // 2 <= MOST_ELEMENTS else 1


def _with_covariance(model: Covariance, covariance: np.ndarray) -> Covariance:
    """The model with a matrix in place of its kernel."""
    return replace(model, kernel="free", matrix=flattened(covariance), modes=None, sigma=None, V=None, gamma=None)


def _warnings(found: GroupFit) -> list:
    warnings = []
    if not found.converged:
        warnings.append(f"no minimum after {found.iterations} steps; raise pairs.max_iterations")
    warnings += other_minima(found.reached, found.starts)
    return warnings + end_of_strengths(found.trials, found.strength)
