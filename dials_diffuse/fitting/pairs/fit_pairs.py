"""The covariance of every pair of groups as one of the models that are compared."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.agreement import statistics
from dials_diffuse.fitting.data import FitData
from dials_diffuse.fitting.fit import Estimate, Fit, FitOptions, criteria
from dials_diffuse.fitting.minimise import Minimum
from dials_diffuse.fitting.pairs.group_fit import GroupFit, fit_groups, sampled_rows
from dials_diffuse.fitting.pairs.pair_minimisers import MOST_ELEMENTS
from dials_diffuse.fitting.pairs.pair_objective import Sample
from dials_diffuse.models.checks import fitted as fitted_to_grid
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.models.covariance.motion import flattened
from dials_diffuse.models.voxel_means import gauss_points
from dials_diffuse.structure.groups import group_labels

logger = logging.getLogger("dials.diffuse.fit")


def fit_all_pairs(
    data: FitData,
    kernel_fit: Fit,
    structure,
    options: FitOptions,
    strengths,
    minimiser: str = "auto",
    max_iterations: int = 200,
    name: str = "",
    starts: int | None = None,
    groups: GroupCovariance | None = None,
) -> Fit:
    """The covariance of every pair of groups, with that of a fitted kernel as prior, see :func:`groups.fit_groups`.

    Parameters
    ----------
    kernel_fit : of a Covariance; its weights are used. If its displacements are tensors (V), those of all pairs are;
        if it is averaged over voxels, they are, too, if that can be afforded
    strengths : of the prior; the best on free voxels is taken
    minimiser : one of ``pair_minimisers.MINIMISERS``
    name : for tables; by default that of the kernel with ``/pairs``
    starts : of the minimisation with the strength that is taken; None: options.starts for up to
        ``pair_minimisers.MOST_ELEMENTS`` covariances, else one, as each takes long
    groups : at all voxels of the data, as the kernel was prepared; None: made anew

    Notes
    -----
    AIC and BIC count as many parameters as the data determine beside the prior; of many groups all, an upper limit.
    """
    model, name = kernel_fit.model, name or f"{kernel_fit.name}/pairs"
    laue = [g.build_derived_laue_group() for g in (structure.space_group, data.grid.space_group)]
    if laue[0] != laue[1]:
        raise DiffuseError(f"{name}: the structure and the map need the same Laue group")
    placed, grid = fitted_to_grid(structure, data.grid)
    motion = model.motion(placed)
    prior = motion.covariance
    points = gauss_points(data.grid) if kernel_fit.means else None
    labels = group_labels(placed, model.groups, model.selections)

    def groups_at(rows) -> GroupCovariance:
        return group_covariance(
            placed if model.soft else placed.without_displacements(),
            labels,
            (data.index[rows] / np.array(grid.subdivide)) @ grid.reciprocal_matrix.T,
            adp="held" if model.soft else "free",
            tensor=prior.ndim == 4,
            table=model.table,
            tolerance=model.tolerance,
            points=points,
            u=motion.mean_square,
        )

    groups = groups or groups_at(slice(None))
    if kernel_fit.means and not groups.means:
        logger.info("%s: too large to be averaged over voxels, taken at their centres", name)
        points = None
    rows = sampled_rows(data.free, len(prior), prior.ndim == 4)
    weights = kernel_fit.weights
    found = fit_groups(
        data,
        groups,
        prior,
        strengths,
        options.scale,
        options.background,
        max_iterations,
        minimiser,
        weights,
        None if rows is None else Sample(rows, groups_at(rows)),
        number_of_starts(len(flattened(prior)), options.starts) if starts is None else starts,
        options.seed,
        kernel_fit.adjustment,
    )
    logger.info(
        "Strengths of the prior, and correlation on free voxels and on the others:\n%s",
        "\n".join(f"{strength:10.3g}{free:9.4f}{own:9.4f}" for strength, free, own in found.trials),
    )
    fitted = found.scale * found.intensity + found.background
    g = len(prior)
    n_elements = g * (g + 1) // 2 * (1 if prior.ndim == 2 else 6)
    n_free = n_elements if found.freedom is None else round(found.freedom.n_effective)
    n_parameters = n_free + options.background + (options.scale is None)
    work = ~data.free
    objective = float(np.sum(weights[work] * (data.intensity - fitted)[work] ** 2))
    return Fit(
        name=name,
        estimates=(),
        scale=Estimate("scale", "", found.scale, math.nan if options.scale is None else 0.0),
        fitted=fitted,
        intensity=found.intensity,
        background=found.background,
        statistics=statistics(data, fitted, weights, n_parameters, options.n_shells),
        criteria=criteria(objective, np.count_nonzero(work), n_parameters),
        correlations=np.zeros((0, 0)),
        eigenvalues=np.zeros(0),
        loosest=np.zeros(0),
        minimum=Minimum(np.zeros(0), objective, found.iterations, found.converged),
        reached=found.reached,
        starts=found.starts,
        weights=weights,
        pairs=found,
        warnings=_warnings(name, found),
        model=_free(model, found.covariance),
        means=groups.means,
        adjustment=kernel_fit.adjustment,
    )


def number_of_starts(size: int, wanted: int) -> int:
    """size : of the matrix V, (size, size)"""
    return wanted if size * (size + 1) // 2 <= MOST_ELEMENTS else 1


def _free(model, covariance: np.ndarray):
    """The model with a matrix in place of its kernel."""
    return replace(model, kernel="free", matrix=flattened(covariance), modes=None, sigma=None, V=None, gamma=None)


def _warnings(name: str, found: GroupFit) -> list:
    warnings = []
    if not found.converged:
        warnings.append(f"{name}: no minimum after {found.iterations} steps; raise pairs.max_iterations")
    if found.reached < found.starts:
        warnings.append(f"{name}: {found.reached} of {found.starts} starts reached the best minimum, it has others")
    if len(found.trials) > 1 and found.strength in (found.trials[0][0], found.trials[-1][0]):
        side = "strongest" if found.strength == found.trials[0][0] else "weakest"
        warnings.append(
            f"{name}: the {side} prior fits the free voxels best, {found.strength:g}: try more strengths on that side"
        )
    return warnings
