"""Scale observation files together: the library function behind ``dials.diffuse_scale``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dials_diffuse.crystals.choice import CrystalChoice
from dials_diffuse.crystals.choose import choose_crystals
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.identity import check_images
from dials_diffuse.files.observations import OBSERVATION_DTYPE, ObservationFile, write_observations
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.laue_check import check_laue_group
from dials_diffuse.maps.laue_group import LaueTest
from dials_diffuse.maps.mates import SAMPLE_COLUMNS, LowAngles
from dials_diffuse.maps.units import ARBITRARY, ELECTRONS
from dials_diffuse.maps.voxels import (
    Voxels,
    check_distinct,
    find_voxels,
    memory_of_voxels,
    numbered_blocks,
    refused_in_words,
)
from dials_diffuse.memory import check_memory
from dials_diffuse.parallel import Progress, one_blas_thread, quiet
from dials_diffuse.scaling.absolute import AbsoluteParameters, AbsoluteScale, absolute_scale
from dials_diffuse.scaling.apply import (
    IN_MEMORY,
    Predictions,
    Scaler,
    apply_levels,
    find_all_outliers,
    predict_all,
    voxel_priors,
    write_scaled,
)
from dials_diffuse.scaling.batches import crystal_correlations, residuals_by_batch
from dials_diffuse.scaling.bragg_scales import BraggColumns, read_bragg, scaled_bragg, start_from_bragg
from dials_diffuse.scaling.error_model import find_outliers
from dials_diffuse.scaling.image_decision import ImageDecision, refine_without_bad_images
from dials_diffuse.scaling.layout import Layout, S, make_layout
from dials_diffuse.scaling.levels import Levels, find_levels
from dials_diffuse.scaling.model import start_model
from dials_diffuse.scaling.refine import Refinement, Trial, refine
from dials_diffuse.scaling.sample import COLUMNS, Observations, sample_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.stored_model import StoredModel
from dials_diffuse.scaling.terms.absorption import AbsorptionOptions
from dials_diffuse.scaling.terms.absorption_spline import AbsorptionSpline
from dials_diffuse.scaling.terms.base import chosen
from dials_diffuse.scaling.terms.drift import Drift
from dials_diffuse.scaling.terms.offset import Offset
from dials_diffuse.scaling.terms.response import Response

logger = logging.getLogger("dials.diffuse.scaling")

#: the user is told when the scale is known to no more than this share of the anisotropic part
_UNCERTAIN = 0.1

#: rows that are in memory together, for each thread
_ROWS = 1 << 18


@dataclass(frozen=True)
class ScalingResult:
    """What scaling found.

    Attributes
    ----------
    grid : of all files together
    experiments : tuple of ExperimentSummary, in the order of the scaled file
    parameters : that the model was made with
    layout, refinement : the scale model
    levels : Levels, how the ratio of the sweeps was found; None where there is but one, or none is uncertain
    n_observations, n_outliers, n_off_grid, n_sample : rows of all files, those left out, and those refined against
    n_in_bad_images : rows left out with their image
    batches : list of Batch, residuals by rotation
    crystals : CrystalChoice of all experiments of the files; None where there is but one
    correlations : (e, e) float64, anisotropic part of each experiment against each other; NaN without common voxels
    images : ImageDecision, which do not belong
    origins : (path, number in that file) of each experiment
    warnings : sentences for the user
    absolute : AbsoluteScale, None where intensities are in arbitrary units
    bragg : BraggColumns of all files; None where the factors of dials.scale are not wanted
    symmetry : LaueTest, what the data say of their symmetry; None where nobody asked
    """

    grid: MapGrid
    experiments: tuple
    parameters: ScalingParameters
    layout: Layout
    refinement: Refinement
    levels: Levels | None
    n_observations: int
    n_outliers: int
    n_off_grid: int
    n_in_bad_images: int
    n_sample: int
    batches: list
    crystals: CrystalChoice | None
    correlations: np.ndarray
    images: ImageDecision
    origins: tuple
    warnings: list
    absolute: AbsoluteScale | None
    bragg: BraggColumns | None
    symmetry: LaueTest | None


def memory_estimate(grid: MapGrid, n_rows: int, n_sample: int) -> float:
    """Rough peak memory in bytes: 41 for each row, of which 26 can be on disk."""
    of_rows = n_rows * (41 if n_rows <= IN_MEMORY else 15)
    return memory_of_voxels(grid, n_rows) + of_rows + 800 * n_sample + 8 * _ROWS * 250


@dataclass(frozen=True)
class _Source:
    """Open observation files, as one, of which the crystals were chosen."""

    files: list
    grid: MapGrid
    crystals: CrystalChoice | None
    progress: Progress

    @property
    def experiments(self) -> tuple:
        return tuple(e for file in self.files for e in file.experiments)

    @property
    def first(self) -> np.ndarray:
        """Number of the first experiment of each file among all."""
        return np.cumsum([0] + [len(file.experiments) for file in self.files])

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for file in self.files)

    def blocks(self, columns, label: str) -> Iterator:
        """(first experiment of the file, {column: array}) of all rows; label : of the progress."""
        pairs = numbered_blocks(self.files, columns, _ROWS)
        return self.progress(pairs, sum(math.ceil(file.n_rows / _ROWS) for file in self.files), label)


def _open(paths, parameters: ScalingParameters, progress, stack: ExitStack) -> _Source:
    check_distinct(paths)
    files = [stack.enter_context(ObservationFile(p)) for p in paths]
    for file in files:
        if file.n_rows == 0:
            raise DiffuseError(f"{file.path}: holds no observations; integrate again, or leave the file out")
        if file.scaled:
            raise DiffuseError(f"{file.path}: scaled already; give the files of dials.diffuse_integrate")
    check_images(files)
    return _Source(*choose_crystals(files, parameters.crystals, parameters.space_group, progress), progress)


def scale_observations(
    paths,
    parameters: ScalingParameters,
    path,
    provenance: Provenance,
    threads: int = 1,
    progress: Progress = quiet,
    absolute: AbsoluteParameters | None = None,
    bragg_scales: bool = True,
) -> ScalingResult:
    """Refine a scale model for all files together and write their observations, scaled, to one file.

    Parameters
    ----------
    paths : observation files of dials.diffuse_integrate
    path : the scaled file
    threads : for sums and for the application of the model
    progress : wraps an iterator as ``progress(items, total, label)``
    absolute : how to find the absolute scale; None: leave it arbitrary
    bragg_scales : b starts from the scale factors of dials.scale, where the files have them, and is compared with them

    Raises
    ------
    DiffuseError
        On files that do not fit together or were scaled before, or lack what the absolute scale needs, or whose space
        group is too high; ``path`` is then left as it was.

    Source: docs/theory.md, Scaling

    Examples
    --------
    >>> from dials_diffuse.scaling.terms.drift import DriftOptions
    >>> parameters = ScalingParameters(terms=("b", "c"), options=(DriftOptions(angle=20.0),))
    >>> result = scale_observations(["diffuse_integrated.h5"], parameters, "diffuse_scaled.h5", Provenance())
    >>> result.n_observations, [test.label for test in result.refinement.judgement.tests]
    (6376, ['drift', 'offset'])
    """
    stored = StoredModel(parameters.model_from) if parameters.model_from else None
    if stored:
        parameters = replace(parameters, **stored.settings())
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        source = _open(paths, parameters, progress, stack)
        grid, experiments, n_rows = source.grid, source.experiments, source.n_rows
        bragg = read_bragg(source.files, source.first)
        expectation = absolute.expectation_for(grid, len(bragg), paths) if absolute else None
        n_sample = min(n_rows, parameters.max_observations)
        needed = memory_estimate(grid, n_rows, n_sample)
        logger.info(
            "%d observations of %d sweeps; about %d of them refine the model; memory about %.1f GB",
            n_rows,
            len(experiments),
            n_sample,
            needed / 1e9,
        )
        check_memory(
            needed,
            f"{paths[0]}: {n_rows} observations",
            "scale fewer files together, or integrate with a smaller grid.subdivide or a larger d_min",
        )
        blocks = (block for _, block in source.blocks(("index", "norm"), "Finding voxels"))
        of_rows = np.empty(n_rows, dtype=np.int32)
        voxels, n_refused = find_voxels(blocks, grid, True, of_rows)
        if len(voxels.index) == 0:
            raise DiffuseError(f"{paths[0]}: no observation has a positive norm inside d_min; integrate again")
        layout = make_layout(experiments, grid)
        low = LowAngles(grid, n_rows)
        data = _sample(source, voxels, of_rows, layout, parameters, threads, low)
        symmetry, symmetry_notes = check_laue_group(low, parameters.symmetry_check, paths[0])

        def refined(data: Observations, before: Trial | None) -> Refinement:
            start = None
            if bragg_scales and np.any(bragg.inverse_scale_factor > 0):
                start = start_from_bragg(start_model(data, layout, parameters), layout, bragg)
            return refine(data, layout, parameters, threads, progress, start, before)

        if stored:
            refinement, data, images = stored.refined(data, layout, experiments, parameters)
        else:
            refinement, data, images = refine_without_bad_images(data, layout, experiments, parameters, refined)
        scaler = Scaler(grid, voxels, layout, refinement.model, refinement.errors, refinement.scale_errors)
        blocks = source.blocks(COLUMNS, "Finding outliers")
        predictions = predict_all(scaler, blocks, of_rows, threads, Path(path).absolute().parent)
        n_off_grid = int(np.count_nonzero(predictions.unique < 0))
        if images.bad and images.left_out:
            blocks = source.blocks(("experiment", "xyz"), "Leaving out images")
            predictions.unique[images.rows(blocks, experiments)] = -1
        n_left_out = int(np.count_nonzero(predictions.unique < 0))
        rejected = find_all_outliers(predictions, voxel_priors(scaler), parameters.outlier_n_sigma)
        rejected |= predictions.unique < 0
        profile = refinement.model.profile(grid.s_magnitude(voxels.index))
        levels = None
        if not stored and len(experiments) > 1 and {Drift.key, Offset.key} <= set(refinement.model.terms):
            levels = find_levels(predictions, rejected, profile, grid, voxels.index, len(experiments), parameters.seed)
            apply_levels(predictions, levels.factor, profile)
            refinement = replace(refinement, model=replace(refinement.model, levels=levels.factor))
        scale, notes = None, []
        if expectation is not None:
            try:
                scale = _absolute_scale(grid, data, layout, refinement, bragg, expectation, absolute)
                notes = scale.warnings
            except DiffuseError as error:
                if absolute.required:
                    raise
                notes = [f"intensities stay on an arbitrary scale: {error}"]
        _write(source, images.used(experiments), path, provenance, predictions, rejected, scale, threads)
        origins = tuple((file.path, i) for file in source.files for i in file.numbers)
    n_outliers = int(rejected.sum()) - n_left_out
    lost = [t.label for t in refinement.judgement.tests if not t.kept]
    if parameters.automatic and lost:
        logger.info(
            "Left out, because what is kept out of the fit is not predicted better with them: %s", ", ".join(lost)
        )
    prediction = refinement.model.predict_observations(data)
    rejected = find_outliers(prediction, data, refinement.errors, parameters.outlier_n_sigma)
    batches = residuals_by_batch(prediction, data, refinement.errors, experiments, rejected)
    return ScalingResult(
        grid=grid,
        experiments=experiments,
        parameters=parameters,
        layout=layout,
        refinement=refinement,
        levels=levels,
        n_observations=n_rows,
        n_outliers=n_outliers,
        n_off_grid=n_off_grid,
        n_in_bad_images=n_left_out - n_off_grid,
        n_sample=data.n,
        batches=batches,
        crystals=source.crystals,
        correlations=crystal_correlations(prediction, data, refinement.errors, len(experiments), rejected),
        images=images,
        origins=origins,
        warnings=[
            *refused_in_words(n_refused, n_rows),
            *_too_many_outliers(n_outliers, n_rows),
            *_without_terms(layout, parameters),
            *_uncertain_scale(refinement, data),
            *(source.crystals.warnings if source.crystals else ()),
            *notes,
            *symmetry_notes,
            *images.in_words(experiments),
        ],
        absolute=scale,
        bragg=bragg if bragg_scales else None,
        symmetry=symmetry,
    )


def _sample(
    source: _Source,
    voxels: Voxels,
    of_rows: np.ndarray,
    layout: Layout,
    parameters: ScalingParameters,
    threads: int,
    low: LowAngles,
) -> Observations:
    """All observations of unique voxels chosen at random, as many as are wanted; ``low`` watches."""
    share = parameters.max_observations / source.n_rows
    wanted = np.random.default_rng(parameters.seed).random(len(voxels.index)) < share
    degree = chosen(parameters.options, AbsorptionOptions).degree
    blocks = low.watch(source.blocks({*COLUMNS, *SAMPLE_COLUMNS}, "Choosing observations"))
    data = sample_observations(blocks, voxels, of_rows, layout, wanted, degree, threads)
    if data.n >= 1000:
        return data
    raise DiffuseError(f"{data.n} observations are too few for a scale model; merge them as they are")


def _absolute_scale(grid, data, layout, refinement, bragg, expectation, absolute) -> AbsoluteScale:
    model = refinement.model
    subtracted = np.bincount(data.experiment, data.background > 0, len(layout.start))
    seen = np.bincount(data.experiment, minlength=len(layout.start))
    return absolute_scale(
        grid,
        model.profile,
        (float(data.coordinates[:, S].min()), float(data.coordinates[:, S].max())),
        scaled_bragg(bragg, layout, model),
        expectation,
        absolute.method,
        bool(np.all(2 * subtracted[seen > 0] > seen[seen > 0])),  # tails of Bragg peaks are a background of few
        absolute.background == "surroundings",
    )


def _write(
    source: _Source,
    experiments,
    path,
    provenance: Provenance,
    predictions: Predictions,
    rejected: np.ndarray,
    scale: AbsoluteScale | None,
    threads: int,
) -> None:
    logger.info("Saving the scaled observations to %s", path)
    provenance = replace(provenance, identifiers=tuple(e.identifier for e in experiments))
    units = ELECTRONS if scale else ARBITRARY
    with write_observations(path, source.grid, experiments, provenance, units, scaled=True) as writer:
        rows = source.blocks(OBSERVATION_DTYPE.names, "Writing")
        for _ in write_scaled(predictions, rows, rejected, scale, writer, threads):
            pass


def _too_many_outliers(n_outliers: int, n_rows: int) -> list:
    share = n_outliers / n_rows
    if share <= 0.02:
        return []
    return [f"{100 * share:.1f} % of the observations are outliers: are Bragg peaks masked widely enough?"]


def _uncertain_scale(refinement: Refinement, data: Observations) -> list:
    """A warning where the scale is not well known compared with what the map is made for."""
    size, rms = refinement.errors.size, refinement.scale_errors.rms
    if rms < _UNCERTAIN * size:
        return []
    tests = {test.name: test for test in refinement.judgement.tests}
    used = [tests[key] for key in refinement.model.terms]
    parts = ", ".join(f"{t.determined:.0f} of {t.n_parameters} of {t.label}" for t in used)
    return [
        f"the scale of an observation is known to {100 * rms:.1f} %, and the anisotropic part is {100 * size:.1f} % of "
        f"the isotropic: a unique voxel has {data.n / len(data.unique):.1f} observations. Of the parameters the data "
        f"determine {parts}; the others stay near zero. More rotation or another orientation would help"
    ]


def _without_terms(layout: Layout, parameters: ScalingParameters) -> list:
    """What the user is told of terms that the files do not allow."""
    a, d = (term.name in parameters.terms for term in (AbsorptionSpline, Response))
    harmonics = chosen(parameters.options, AbsorptionOptions).form == "harmonics"
    if layout.n_panels > 1 and (a or d):
        text = "the detector has several panels: no smooth response over it, one factor for each panel"
        return [text if harmonics and layout.orientation is not None else f"{text}, and no a"]
    if layout.orientation is None and a and harmonics:
        return ["files of an older version without crystal orientation: a is a spline over the detector"]
    return []
