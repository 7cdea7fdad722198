"""The scale model in numbers for output.json: curves over rotation and |s|, responses, residuals."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from dials_diffuse.crystals.record import crystals_record, indexed_otherwise
from dials_diffuse.maps.laue_group import symmetry_record
from dials_diffuse.scaling.absolute import AbsoluteScale
from dials_diffuse.scaling.bragg_scales import bragg_scale_curve
from dials_diffuse.scaling.layout import S, T, places, rotation_points
from dials_diffuse.scaling.model import ScaleModel
from dials_diffuse.scaling.scale import ScalingResult
from dials_diffuse.scaling.separation import Separation
from dials_diffuse.scaling.stored_model import model_record
from dials_diffuse.scaling.terms.base import Acts
from dials_diffuse.scaling.terms.crystal import Profile

#: points of curves over |s|
_N_S = 20


def scaling_record(result: ScalingResult) -> dict:
    """What scaling found, for ``dials.diffuse_scale/1``."""
    refinement = result.refinement
    model = refinement.model
    record = {
        "n_observations": result.n_observations,
        "n_refined_against": result.n_sample,
        "n_outliers": result.n_outliers,
        "n_off_grid": result.n_off_grid,
        "terms": {
            "used": list(model.terms),
            "smoothing": {key: s.roughness for key, s in refinement.strengths.items() if key in model.terms},
            "size": {key: s.size**-0.5 for key, s in refinement.strengths.items() if key in model.terms},
            "tests": [asdict(t) for t in refinement.judgement.tests],
            "together": asdict(refinement.judgement.together),
        },
        "scale_error": {
            "rms": refinement.scale_errors.rms,
            "sweeps": list(np.sqrt(refinement.scale_errors.variance.mean(axis=(1, 2, 3)))),
        },
        "refinement": refinement.history,
        "errors": {
            "s": refinement.errors.shells,
            "excess": refinement.errors.excess,
            "spread": refinement.errors.spread,
            "bands": refinement.errors.bands,
            "common": [list(row) for row in refinement.errors.common],
            "tails": refinement.errors.tails,
        },
        "profile": _profile(model),
        "model": model_record(model, refinement.scale_errors, result.parameters),
        "absolute_scale": _absolute(result.absolute) if result.absolute else None,
        "levels": _levels(result),
        "symmetry": symmetry_record(result.symmetry),
        "crystals": crystals_record(result.crystals),
        "indexed_otherwise": indexed_otherwise(result.crystals),
        "sweeps": [_sweep(result, i) for i in range(len(result.experiments))],
        "modules": [],
        "residuals": [asdict(b) for b in result.batches],
        "n_in_bad_images": result.n_in_bad_images,
        "images": result.images.record(),
        "suggested_exclude_images": [{"file": f, "exclude_images": text} for f, text in suggested_cuts(result).items()],
        "correlations": [list(row) for row in result.correlations],
    }
    for block in model.of_experiment:
        record.update(block.record_of_all(model.coefficients))
    return record


def _levels(result: ScalingResult) -> dict | None:
    levels = result.levels
    return levels and {"factor": levels.factor, "esd": levels.esd, "n_voxels": levels.n_voxels}


def suggested_cuts(result: ScalingResult) -> dict:
    """{observation file: text for ``exclude_images`` of dials.diffuse_integrate, which counts experiments by file}."""
    cuts: dict = {}
    for e, first, last in result.images.runs():
        path, number = result.origins[e]
        cuts.setdefault(str(path), []).append(f"{number}:{first}:{last}")
    return {path: ",".join(texts) for path, texts in cuts.items()}


def curve_of_b(result: ScalingResult, number: int) -> tuple:
    """(angles in degrees, b, c relative to the mean isotropic part) of an experiment along its rotation; (n,) each."""
    model = result.refinement.model
    t, angles = rotation_points(result.layout, number)
    rows = places(number, {T: t, S: _s_range(model).mean()})
    c = model.offset(rows) / model.profile(rows.coordinates[:, S], reference=True)
    return angles, np.exp(model.total(Acts.SCALE, rows)), c


def dials_scale_curve(result: ScalingResult, number: int) -> dict | None:
    """b and the factor of dials.scale of an experiment at the angles of :func:`curve_of_b`, their means 1.

    None where the file has no such factors, or nobody asked for them.
    """
    angles, b, _ = curve_of_b(result, number)
    g = bragg_scale_curve(result.bragg, result.layout, number, angles) if result.bragg is not None else None
    if g is None:
        return None
    varies = np.ptp(b) > 1e-9 * b.mean() and np.ptp(g) > 1e-9 * g.mean()
    return {
        "b": b / b.mean(),
        "inverse_scale_factor": g / g.mean(),
        "correlation": float(np.corrcoef(b, g)[0, 1]) if varies else float("nan"),
    }


def _absolute(absolute: AbsoluteScale) -> dict:
    """k, its uncertainty and where they are from, and intensities in shells, electrons² per unit cell."""
    shells, k = absolute.shells, absolute.k
    s = shells.s
    return {
        "k": k,
        "esd": absolute.esd,
        "relative_esd": absolute.relative,
        "method": absolute.method,
        "estimates": [asdict(e) for e in absolute.estimates],
        "left_out": absolute.left_out,
        "contents": absolute.expectation.source,
        "separation": _separation(absolute.parts),
        "shells": {
            "s": s,
            "diffuse": k * shells.diffuse,
            "bragg": k * shells.bragg,
            "total": k * shells.total,
            "sum_of_squares": absolute.expectation.at("elastic", s),
            "compton": absolute.expectation.at("compton", s),
            "interference": absolute.expectation.at("interference", s),
            "n_bragg_possible": shells.n_possible,
            "n_bragg_measured": shells.n_measured,
        },
    }


def _separation(parts: Separation | None) -> dict | None:
    """What scatters, as separated; electrons² per unit cell with the k of the separation."""
    if parts is None:
        return None
    return {"s": parts.s, "crystal": parts.crystal, "liquid": parts.liquid, "air": parts.air}


def _s_range(model: ScaleModel) -> np.ndarray:
    block = model.block(Profile.key)
    (low, step), n = block.tensor.limits[0], block.size
    return np.linspace(low, low + step * (n - 2), _N_S)


def _profile(model: ScaleModel) -> dict:
    s = _s_range(model)
    return {"s": s, "intensity": model.profile(s)}


def _sweep(result: ScalingResult, number: int) -> dict:
    model = result.refinement.model
    angles, b, _ = curve_of_b(result, number)
    record = {"identifier": result.experiments[number].identifier, "angle": angles, "b": b}
    record["dials_scale"] = dials_scale_curve(result, number)
    if any(block.acts is Acts.OFFSET for block in model.blocks):
        t, s = np.meshgrid(rotation_points(result.layout, number)[0], _s_range(model), indexing="ij")
        offset = model.offset(places(number, {T: t.ravel(), S: s.ravel()}))
        record["c"] = {"s": s[0], "offset": offset.reshape(t.shape)}
    for block in model.of_experiment:
        own = block.record(model.coefficients, result.layout, number)
        if own is not None:
            record[block.name] = own
    return record
