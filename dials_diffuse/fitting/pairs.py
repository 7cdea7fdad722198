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
from dials_diffuse.fitting.groups import fit_groups
from dials_diffuse.fitting.minimise import Minimum
from dials_diffuse.models.common import fitted as fitted_to_grid
from dials_diffuse.models.group_covariance import GroupCovariance
from dials_diffuse.structure.groups import group_labels

logger = logging.getLogger("dials.diffuse.fit")


def fit_all_pairs(data: FitData, kernel_fit: Fit, structure, options: FitOptions, strengths) -> Fit:
    """The covariance of every pair of groups, with that of a fitted kernel as prior, see :func:`groups.fit_groups`.

    Parameters
    ----------
    kernel_fit : of a Covariance with isotropic displacements; its weights are used
    strengths : of the prior; the best on free voxels is taken

    Notes
    -----
    All elements of V count as parameters, whatever the prior leaves of their freedom: AIC and BIC are upper limits.
    """
    model = kernel_fit.model
    laue = [g.build_derived_laue_group() for g in (structure.space_group, data.grid.space_group)]
    if laue[0] != laue[1]:
        raise DiffuseError(f"{kernel_fit.name}/pairs: the structure and the map need the same Laue group")
    placed, grid = fitted_to_grid(structure, data.grid)
    prior = model.motion(placed).covariance
    if prior.ndim != 2:
        raise DiffuseError(f"{kernel_fit.name}/pairs: only isotropic displacements can be fitted; leave out /V")
    groups = GroupCovariance(
        placed if model.soft else placed.without_displacements(),
        group_labels(placed, model.groups, model.selections),
        (data.index / np.array(grid.subdivide)) @ grid.reciprocal_matrix.T,
        adp="held" if model.soft else "free",
        table=model.table,
        tolerance=model.tolerance,
    )
    weighted = replace(data, sigma=1 / np.sqrt(kernel_fit.weights))
    found = fit_groups(weighted, groups, prior, strengths, options.scale, options.background)
    fitted = found.scale * found.intensity + found.background
    g = len(prior)
    n_parameters = g * (g + 1) // 2 + options.background + (options.scale is None)
    work = ~data.free
    objective = float(np.sum(kernel_fit.weights[work] * (data.intensity - fitted)[work] ** 2))
    logger.info(
        "Strengths of the prior, and correlation on free voxels and on the others:\n%s",
        "\n".join(f"{strength:10.3g}{free:9.4f}{own:9.4f}" for strength, free, own in found.trials),
    )
    return Fit(
        name=f"{kernel_fit.name}/pairs",
        estimates=(),
        scale=Estimate("scale", "", found.scale, math.nan if options.scale is None else 0.0),
        fitted=fitted,
        intensity=found.intensity,
        background=found.background,
        statistics=statistics(data, fitted, kernel_fit.weights, n_parameters, options.n_shells),
        criteria=criteria(objective, np.count_nonzero(work), n_parameters),
        correlations=np.zeros((0, 0)),
        eigenvalues=np.zeros(0),
        loosest=np.zeros(0),
        minimum=Minimum(np.zeros(0), objective, found.iterations, found.converged),
        reached=1,
        starts=1,
        weights=kernel_fit.weights,
        covariance=found.covariance,
        warnings=[] if found.converged else [f"{kernel_fit.name}/pairs: no minimum after {found.iterations} steps"],
        model=replace(model, kernel="free", matrix=found.covariance, sigma=None, V=None, gamma=None),
    )
