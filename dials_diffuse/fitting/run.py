"""The fit of models to a map, from the models that are asked for to the choice of the best one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.fitting.candidates import Preparation
from dials_diffuse.fitting.choice import Choice, choose
from dials_diffuse.fitting.data import FitData, select
from dials_diffuse.fitting.described import Described, described
from dials_diffuse.fitting.fit_parameters import FitParameters
from dials_diffuse.fitting.linear import background_terms
from dials_diffuse.fitting.orders import fit_with_enough_orders
from dials_diffuse.fitting.pairs.fit_pairs import fit_all_pairs
from dials_diffuse.fitting.request import Part, check_requests
from dials_diffuse.fitting.result import Fit
from dials_diffuse.fitting.setting_search import SettingSearch, find_setting
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.units import ELECTRON_DIFFRACTION, ELECTRONS
from dials_diffuse.models.checks import lacking_symmetry
from dials_diffuse.models.map_setting import in_map_setting
from dials_diffuse.parallel import SERIAL, Executor, Progress, quiet
from dials_diffuse.structure.crystal import Structure

logger = logging.getLogger("dials.diffuse.fit")


@dataclass(frozen=True, eq=False)
class FitResult:
    """What the fit of models to a map finds out.

    Attributes
    ----------
    models : tuple of ModelFit, of each request, of pairs of the kernel that they start from
    pairs : tuple of PairFit, one or none
    choice : Choice, the best of them
    data : FitData, the voxels of the fit
    map : DiffuseMap that the rows of ``data`` are of, in the setting that was used
    settings : tuple of SettingComparison, the settings that were compared; empty for ``indexing=given``
    parameters : FitParameters
    warnings : tuple of str, those of the fits too
    described : Described, how much of the anisotropic part the best model has
    """

    models: tuple
    pairs: tuple
    choice: Choice
    data: FitData
    map: DiffuseMap
    settings: tuple
    parameters: FitParameters
    warnings: tuple
    described: Described

    @property
    def fits(self) -> tuple:
        """All of them, those of models first."""
        return (*self.models, *self.pairs)

    @property
    def best(self) -> Fit:
        return self.choice.best

    @property
    def displacements(self) -> tuple:
        """For each fit a tuple of DisplacementComparison."""
        return tuple(fit.displacements for fit in self.fits)


def fit_map(
    data: DiffuseMap,
    structure: Structure,
    requests,
    parameters: FitParameters | None = None,
    progress: Progress = quiet,
    source: str = "the map",
    executor: Executor = SERIAL,
) -> FitResult:
    """Fit models to a map and compare them.

    Parameters
    ----------
    data : with errors, as :func:`merging.laue.merge_observations` makes it
    structure : the asymmetric unit, of the crystal of the map within 1 %; it is brought into the setting of the map
    requests : FitRequest of each model; the first one decides on the setting of the map
    parameters : by default those of a FitParameters
    progress : ``progress(items, total, label)`` passes items through and shows how far they are
    source : what messages call the map
    executor : evaluates models that take long, in blocks of voxels; the result does not depend on it

    Raises
    ------
    DiffuseError
        If requests, parameters, structure and map do not fit together; see docs/fit.md.

    Source: docs/fit.md

    Examples
    --------
    A body of six atoms moves by 0.3 Å; its scattering, with an error of 1 %, is fitted.

    >>> import numpy as np
    >>> from dataclasses import replace
    >>> from dials_diffuse.fitting.request import FitRequest
    >>> from dials_diffuse.maps.grid import MapGrid
    >>> from dials_diffuse.models.compute import compute_model
    >>> from dials_diffuse.models.rigid_body.rigid_body import RigidBody
    >>> from dials_diffuse.structure.atoms import make_structure
    >>> sites = np.random.default_rng(0).uniform(0.2, 0.5, (6, 3))
    >>> structure = make_structure((9, 10, 11, 90, 90, 90), "P 1", list("CNOCSC"), sites, u=0.2)
    >>> grid = MapGrid(structure.unit_cell, structure.hall_symbol, subdivide=(2, 2, 2), d_min=2.0)
    >>> computed = compute_model(structure, grid, RigidBody(sigma=0.3)).map
    >>> error = np.full(len(computed.index), 0.01 * computed.intensity.std())
    >>> noisy = computed.intensity + error * np.random.default_rng(1).normal(size=len(error))
    >>> data = replace(computed, intensity=noisy, sigma=error, multiplicity=np.ones(len(error), dtype=int))
    >>> result = fit_map(data, structure, [FitRequest.of(RigidBody(sigma=0.5))])
    >>> (sigma,) = result.models[0].estimates
    >>> print(f"{sigma.name} = {sigma.value:.2f} {sigma.unit}, {result.best.statistics['free']['cc']:.3f}")
    sigma = 0.30 Å, 1.000
    """
    requests, parameters = tuple(requests), parameters or FitParameters()
    check_requests(requests, parameters)
    _check_units(data, requests, parameters, source)
    structure, requests = _in_setting(structure, requests, data)
    warnings = []

    def warn(*texts: str) -> None:
        for text in filter(None, texts):
            logger.warning("Warning: %s", text)
            warnings.append(text)

    warn(lacking_symmetry(structure, data.grid))
    select(data, parameters.selection)  # complain of the range before anything takes long
    search = _searched(data, requests[0].parts[0], structure, parameters)
    warn(*search.warnings)
    voxels = select(search.data, parameters.selection, structure.space_group)
    _tell_voxels(voxels, parameters)
    means = parameters.voxels == "mean" or (parameters.voxels == "auto" and not data.at_centres)
    models, pairs = _fitted(
        requests, Preparation(voxels, structure, means, parameters.wavelength, executor), parameters, progress
    )
    fits = (*models, *pairs)
    choice = choose(fits, voxels)
    tested = described(choice.best, voxels)
    warn(*choice.warnings, tested.words)
    warnings += [text for fit in fits for text in fit.warnings]
    return FitResult(
        models, pairs, choice, voxels, search.data, search.compared, parameters, tuple(warnings), described=tested
    )


def _fitted(requests, preparation: Preparation, parameters: FitParameters, progress: Progress) -> tuple:
    """Fits of models, and of pairs, as in FitResult."""
    kernels = {request.kernel.name: request.kernel for request in requests}
    whole = {request.kernel.name for request in requests if request.pairs}
    candidates = [
        preparation.candidate(r, r.name in whole) for r in progress(kernels.values(), len(kernels), "preparing")
    ]
    data, options = preparation.data, parameters.options
    models = fit_with_enough_orders(data, candidates, options, preparation.prepare, progress)
    found = {fit.name: (fit, candidate.prepared.groups) for fit, candidate in zip(models, candidates)}
    pairs = []
    for request in requests:
        if request.pairs:
            fit, groups = found[request.kernel.name]
            pairs.append(
                fit_all_pairs(data, fit, preparation.structure, options, parameters.pairs, request.name, groups)
            )
    return tuple(models), tuple(pairs)


def _check_units(data: DiffuseMap, requests, parameters: FitParameters, source: str) -> None:
    """A scale that is held needs a map in the unit of the models."""
    if parameters.options.scale is None:
        return
    for table in {part.model.table: None for request in requests for part in request.parts}:
        units = ELECTRON_DIFFRACTION if table == "electron" else ELECTRONS
        if data.units != units:
            raise DiffuseError(
                f"scale=absolute: the intensities of {source} are in {data.units}, not in {units}, as those of models "
                f"with scattering_table={table} are; use scale=refine, or scale the data with dials.diffuse_scale "
                "absolute_scale.model="
            )


def _in_setting(structure: Structure, requests: tuple, data: DiffuseMap) -> tuple:
    """The structure, and the models of the requests, in the setting of the map."""
    models = [part.model for request in requests for part in request.parts]
    structure, models = in_map_setting(structure, models, data.grid)
    turned = iter(models)
    in_setting = [replace(r, parts=tuple(replace(part, model=next(turned)) for part in r.parts)) for r in requests]
    return structure, tuple(in_setting)


def _searched(data: DiffuseMap, part: Part, structure: Structure, parameters: FitParameters) -> SettingSearch:
    """The map in the setting in which a model fits it, or in the given one."""
    if parameters.indexing == "given":
        return SettingSearch(data, (), ())
    selection = parameters.selection
    d_min = max(selection.d_min or data.grid.d_min, data.grid.d_min)
    model = part.model.with_orders_for(structure, {}, d_min) if part.choose_orders else part.model
    return find_setting(data, model, structure, selection.d_max or math.inf, d_min)


def _tell_voxels(data: FitData, parameters: FitParameters) -> None:
    logger.info(
        "%d voxels from %.2f to %.2f Å, %d of them set aside (%.1f %%); the errors of %d voxels were raised to half "
        "the median at their resolution",
        data.n,
        1 / data.s.min(),
        1 / data.s.max(),
        np.count_nonzero(data.free),
        100 * np.mean(data.free),
        data.n_floored,
    )
    if parameters.options.background is None:
        logger.info("background.n_terms=%d", background_terms(data.s))
