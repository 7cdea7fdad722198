"""What a fit finds out: what is known of every fit, and what of one with parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dials_diffuse.fitting.minimise import Minimum
from dials_diffuse.fitting.penalty import PriorResult


@dataclass(frozen=True)
class Estimate:
    """A fitted number.

    Attributes
    ----------
    name, unit : as in the model
    value, esd : in ``unit``; NaN for an error that the data do not give
    at_bound : did it end at a bound? Its error is then that of the others with it held there
    profile : (value, objective less the lowest, in units of reduced chi²) pairs: 1 is reached at one e.s.d. if the
        likelihood is Gaussian
    """

    name: str
    unit: str
    value: float
    esd: float
    at_bound: bool = False
    profile: tuple = ()


@dataclass(frozen=True, eq=False)
class Fit:
    """A fit to n voxels, whatever was fitted: what tables, the choice of the best one and reports need.

    Attributes
    ----------
    name : for tables
    models : with the fitted values; one, or those of a sum
    scale : Estimate of k; the error of a scale that was held is 0
    intensity : (n,) float64, I_calc at all voxels of the data, free ones too, electrons² per unit cell
    background : (n,) float64, b
    fitted : (n,) float64, k I_calc + b
    weights : (n,) float64, of the voxels
    statistics : see :func:`agreement.statistics`
    criteria : ``aic``, ``bic`` and ``n_parameters``, see :func:`criteria`
    converged : did the minimisation end at a minimum?
    starts : number of starting points; ``reached``: how many of them ended at the same minimum
    means : is the intensity averaged over voxels, or that of their centres?
    adjustment : of the reduced chi² for errors with a robust loss, see :class:`robust.Robust`; else 1
    displacements : tuple of DisplacementComparison, with the atoms' U
    warnings : tuple of str
    """

    name: str
    models: tuple
    scale: Estimate
    intensity: np.ndarray
    background: np.ndarray
    fitted: np.ndarray
    weights: np.ndarray
    statistics: dict
    criteria: dict
    converged: bool
    starts: int
    reached: int
    means: bool
    adjustment: float
    displacements: tuple
    warnings: tuple


@dataclass(frozen=True, eq=False)
class ModelFit(Fit):
    """The p parameters of a model, or of a sum of models, fitted.

    Attributes
    ----------
    estimates : (p,) tuple of Estimate
    correlations : (p + 1, p + 1) float64, of the parameters and the scale (the last, absent if held)
    eigenvalues : ascending, of the Hessian with its diagonal scaled to 1: near 0 for combinations that the data leave
        undetermined; ``loosest``: the combination of the lowest, in units of the e.s.d.s it would have alone
    minimum : Minimum
    covariance : (p + 1, p + 1) float64, of the estimates and the scale, errors of the data as if all were wrong by one
        factor; with a prior also what it leaves open
    prior : what a prior did; None: there is none
    details : for each of ``models`` what else it says, see :meth:`DiffuseModel.details`
    """

    estimates: tuple
    correlations: np.ndarray
    eigenvalues: np.ndarray
    loosest: np.ndarray
    minimum: Minimum
    covariance: np.ndarray
    prior: PriorResult | None
    details: tuple
