"""The parameters of dials.diffuse_fit as the library wants them: models to fit, and how."""

from __future__ import annotations

from libtbx.phil import parse

from dials_diffuse.cli.model_scope import SCOPES_PHIL, given_parameters, scope_of
from dials_diffuse.cli.program import flag
from dials_diffuse.fitting.data import Selection
from dials_diffuse.fitting.fit_parameters import FitOptions, FitParameters, PairParameters
from dials_diffuse.fitting.request import ModelScope, requests_from_words
from dials_diffuse.models.table import all_models
from dials_diffuse.report.fit_files import FitFiles


def requests_from_phil(params, coordinates) -> tuple:
    """A FitRequest for each model of ``model=``.

    coordinates : path of the structure

    Raises
    ------
    CommandLineError
        If a word is not known.
    DiffuseError
        If a parameter of a model is out of range, or a file cannot be read.
    """
    choices = _choices()
    scopes = {
        name: ModelScope(scope_of(params, name), choices.get(name, {}), given_parameters(params, name))
        for name in all_models()
    }
    return requests_from_words(params.model or (), scopes, coordinates, params.scattering_table, params.selection)


def parameters_from_phil(params) -> FitParameters:
    """All other parameters of the fit; Auto, which phil does not make a number, is None."""
    selection = Selection(
        d_max=params.d_max,
        d_min=params.d_min,
        free_fraction=params.free_fraction,
        seed=params.seed,
        min_multiplicity=params.min_multiplicity,
        bragg=params.bragg,
        bragg_distance=params.bragg_distance,
    )
    options = FitOptions(
        scale=1.0 if params.scale == "absolute" else None,
        background=_number(params.background.n_terms),
        weights=params.weights,
        loss=params.loss,
        n_shells=params.statistics.n_shells,
        starts=params.starts,
        seed=params.seed,
        profile=params.profile,
        strengths=tuple(params.prior.strength or ()),
    )
    pairs = PairParameters(
        strengths=tuple(params.pairs.strength or ()),
        minimiser=params.pairs.minimiser,
        starts=_number(params.pairs.starts),
        max_iterations=params.pairs.max_iterations,
    )
    return FitParameters(selection, options, pairs, params.indexing, params.voxels, params.wavelength)


def files_from_phil(params) -> FitFiles:
    """Names of the files to write."""
    output = params.output
    return FitFiles(
        map=output.map,
        volume=flag(output.volume),
        json=output.json,
        html=output.html,
        png=output.png,
        phonons=output.phonons,
        covariance=output.covariance,
        covariance_esd=output.covariance_esd,
        covariance_png=output.covariance_png,
    )


def _number(value) -> int | None:
    return value if isinstance(value, int) else None


def _choices() -> dict:
    """Name of a model -> word -> the parameter of its scope that has the word as a choice."""
    found: dict = {}
    for definition in parse(SCOPES_PHIL).all_definitions():
        model, _, parameter = definition.path.rpartition(".")
        if definition.object.type.phil_type == "choice":
            for word in definition.object.words:
                found.setdefault(model, {}).setdefault(word.value.lstrip("*"), parameter)
    return found
