"""The scale model of another run, from its JSON file: refined on a coarse grid, it serves a fine one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.record import read_json
from dials_diffuse.scaling.error_model import find_outliers, first_error_model, update_errors
from dials_diffuse.scaling.image_decision import ImageDecision, rows_of_images
from dials_diffuse.scaling.images import BadImage, check_images
from dials_diffuse.scaling.judging import Gain, Judgement, TermTest
from dials_diffuse.scaling.layout import Layout, S
from dials_diffuse.scaling.model import ScaleModel, terms_at_start
from dials_diffuse.scaling.refine import Refinement
from dials_diffuse.scaling.sample import Observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.solve import Strength
from dials_diffuse.scaling.terms.base import Extent, chosen
from dials_diffuse.scaling.terms.crystal import Profile, SmoothPart
from dials_diffuse.scaling.terms.table import OPTIONS
from dials_diffuse.scaling.uncertainty import ScaleErrors

SCHEMA = "dials.diffuse_scale/1"
#: rounds of errors and outliers, which belong to the grid
_ROUNDS = 4
#: 1/Å: positions of observations are means over voxels, so that those of a finer grid reach further
_BEYOND = 0.02


def model_record(model: ScaleModel, scale_errors: ScaleErrors, parameters: ScalingParameters) -> dict:
    """What :func:`stored_refinement` makes the model of, for ``output.json``."""
    (low, step), size = model.block(Profile.key).tensor.limits[0], model.block(Profile.key).size
    return {
        "terms": list(parameters.terms),
        "options": {kind.scope: asdict(chosen(parameters.options, kind)) for kind in OPTIONS},
        "s_range": [low, low + step * (size - 2)],
        "n_patterns": model.block(SmoothPart.key).n_sets,
        "coefficients": model.coefficients,
        "reference": model.reference,
        "levels": model.levels,
        "scale_variance": [[float(f"{x:.5g}") for x in own.reshape(-1)] for own in scale_errors.variance],
        "scale_variance_shape": list(scale_errors.variance.shape[1:]),
    }


class StoredModel:
    """A scale model in the JSON file of dials.diffuse_scale.

    Parameters
    ----------
    path : of the JSON file

    Raises
    ------
    DiffuseError
        If the file cannot be read, or is no such file.
    """

    def __init__(self, path):
        self._path, self._record = path, read_json(path)
        if self._record.get("schema") != SCHEMA or "model" not in self._record:
            raise self._wrong(
                "holds no scale model", "give the JSON file that dials.diffuse_scale wrote (output.json=)"
            )

    def settings(self) -> dict:
        """Fields of ScalingParameters that the model was made with."""
        with self._reading():
            found = self._record["model"]
            return {
                "terms": tuple(found["terms"]),
                "options": tuple(kind(**found["options"][kind.scope]) for kind in OPTIONS),
            }

    def refined(self, data: Observations, layout: Layout, experiments, parameters: ScalingParameters) -> tuple:
        """As :func:`refine_without_bad_images`, of this model; only the errors of the observations are found anew.

        Returns
        -------
        Refinement, Observations without the images that the other run left out, ImageDecision

        Raises
        ------
        DiffuseError
            If the sweeps are others than those of the model, or reach beyond its resolution.
        """
        with self._reading():
            record = self._record
            self._check_sweeps(experiments)
            bad = [_bad_image(item) for item in record["images"]["bad"]]
            left_out = bool(record["images"]["left_out"])
            terms = record["terms"]
            judgement = Judgement([_term_test(test) for test in terms["tests"]], Gain(**terms["together"]))
            strengths = {key: Strength(terms["size"][key] ** -2.0, terms["smoothing"][key]) for key in terms["used"]}
            model, scale_errors = self._model(layout), self._scale_errors(len(experiments))
        self._check_range(data)
        if left_out:
            data = data.some_rows(~rows_of_images(bad, data, experiments))
        prediction = model.predict_observations(data)
        errors, rejected = first_error_model(data), np.zeros(data.n, dtype=bool)
        for _ in range(_ROUNDS):
            errors = update_errors(prediction, data, errors, rejected)
            rejected = find_outliers(prediction, data, errors, parameters.outlier_n_sigma)
        refinement = Refinement(model, errors, strengths, judgement, record["refinement"], scale_errors, None)
        sweeps, _ = check_images(refinement, data, layout, experiments, parameters.outlier_n_sigma)
        return refinement, data, ImageDecision(bad, left_out, 0, sweeps)

    def _model(self, layout: Layout) -> ScaleModel:
        found, used = self._record["model"], self._record["terms"]["used"]
        made_with = self.settings()
        extent = Extent(layout, made_with["terms"], made_with["options"], tuple(found["s_range"]), found["n_patterns"])
        blocks = terms_at_start(extent)
        n = blocks[-1].all.stop
        model = ScaleModel(blocks, np.zeros(n), np.zeros(n)).with_terms(used)
        coefficients, reference = (np.array(found[key], dtype=float) for key in ("coefficients", "reference"))
        if not len(coefficients) == len(reference) == model.n_parameters:
            raise ValueError(f"{len(coefficients)} coefficients of {model.n_parameters}")
        levels = None if found["levels"] is None else np.array(found["levels"], dtype=float)
        return ScaleModel(model.blocks, coefficients, reference, levels)

    def _scale_errors(self, n_sweeps: int) -> ScaleErrors:
        found = self._record["model"]["scale_variance"]
        shape = (n_sweeps, *self._record["model"]["scale_variance_shape"])
        return ScaleErrors(np.array(found, dtype=float).reshape(shape), float(self._record["scale_error"]["rms"]))

    def _check_sweeps(self, experiments) -> None:
        known = [sweep["identifier"] for sweep in self._record["sweeps"]]
        given = [experiment.identifier for experiment in experiments]
        if known != given:
            raise self._wrong(
                f"is the scale model of {len(known)} sweeps ({_shown(known)}), and these are {len(given)} "
                f"({_shown(given)})",
                "scale the same sweeps, in the same order, with both grids",
            )

    def _check_range(self, data: Observations) -> None:
        low, high = self._record["model"]["s_range"]
        s = data.coordinates[:, S]
        if s.max() > high + _BEYOND or s.min() < low - _BEYOND:
            raise self._wrong(
                f"was refined from |s| = {low:.3f} to {high:.3f} 1/Å, and observations are from {s.min():.3f} to "
                f"{s.max():.3f}",
                "integrate both grids with the same d_min and d_max"
                + (f", d_max={math.floor(100 / low) / 100:g} or less" if s.min() < low - _BEYOND else ""),
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise self._wrong(f"damaged ({type(error).__name__}: {reason})", "run dials.diffuse_scale again") from None

    def _wrong(self, what: str, remedy: str) -> DiffuseError:
        return DiffuseError(f"scale_model.from={self._path}: {what}; {remedy}")


def _bad_image(item: dict) -> BadImage:
    known = {field.name for field in fields(BadImage)}
    return BadImage(**{key: tuple(x) if isinstance(x, list) else x for key, x in item.items() if key in known})


def _term_test(item: dict) -> TermTest:
    return TermTest(**{**item, "images": None if item["images"] is None else Gain(**item["images"])})


def _shown(identifiers: list) -> str:
    return ", ".join(identifiers[:3]) + (", ..." if len(identifiers) > 3 else "")
