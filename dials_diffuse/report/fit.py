"""Fits of models to a map: tables for logs, the record for programs."""

from __future__ import annotations

import logging
import math

import numpy as np

from dials_diffuse.files.record import grid_record
from dials_diffuse.fitting.choice import Choice
from dials_diffuse.fitting.orders import orders_of
from dials_diffuse.fitting.pairs.fit_pairs import PairFit
from dials_diffuse.fitting.pairs.pair_freedom import DETERMINED
from dials_diffuse.fitting.result import Estimate, Fit, ModelFit
from dials_diffuse.fitting.run import FitResult
from dials_diffuse.report.fit_contacts import contact_text, prior_lines, prior_record
from dials_diffuse.report.tables import Column, cells, heads, text_table

logger = logging.getLogger("dials.diffuse.fit")

_SHELLS = (
    Column("d_max", 8, ".2f", lambda row: row["d_max"]),
    Column("d_min", 8, ".2f", lambda row: row["d_min"]),
    Column("n", 9, "d", lambda row: row["n"]),
    Column("CC", 8, ".3f", lambda row: row["cc"]),
    Column("CC(aniso)", 11, ".3f", lambda row: row["cc_anisotropic"]),
    Column("n free", 8, "d", lambda row: row["free"]["n"]),
    Column("free CC(aniso)", 16, ".3f", lambda row: row["free"]["cc_anisotropic"]),
    Column("CC*", 8, ".3f", lambda row: row["cc_star"]),
    Column("chi2", 10, ".4g", lambda row: row["chi2"]),
)


def format_estimate(estimate: Estimate) -> str:
    """Value, error and unit, with the digits that the error leaves."""
    unit = f" {estimate.unit}" if estimate.unit else ""
    if not math.isfinite(estimate.esd) or estimate.esd == 0:
        note = " (held)" if estimate.esd == 0 else " (no error)"
        return f"{estimate.name} = {estimate.value:.4g}{unit}{' (at a bound)' if estimate.at_bound else note}"
    digits = max(0, 1 - math.floor(math.log10(estimate.esd)))
    if digits > 6:
        return f"{estimate.name} = {estimate.value:.6g} ± {estimate.esd:.2g}{unit}"
    return f"{estimate.name} = {estimate.value:.{digits}f} ± {estimate.esd:.{digits}f}{unit}"


def shell_table(fit: Fit) -> tuple:
    """Agreement in shells of resolution: headings, and rows of cells as text."""
    return heads(_SHELLS), cells(_SHELLS, fit.statistics["shells"])


def comparison_table(fits) -> tuple:
    """One row for each model: headings, and rows of cells as text; AIC and BIC relative to the lowest."""
    columns = _comparison(fits)
    return heads(columns), cells(columns, fits)


#: parameters that are listed in the log
_MOST_ESTIMATES = 40

_SIDES = (
    "near, away: free CC(aniso) of voxels up to a third of the lattice from a lattice point, where halos are, and of "
    "the others"
)


def _comparison(fits) -> tuple:
    """Columns for these fits, one a row."""
    aic, bic = (min(f.criteria[key] for f in fits) for key in ("aic", "bic"))
    return (
        Column("model", -max(len("model"), *(len(f.name) for f in fits)), "", lambda f: f.name),
        Column("CC(aniso)", 11, ".3f", lambda f: f.statistics["cc_anisotropic"]),
        Column("free", 8, ".3f", lambda f: f.statistics["free"]["cc_anisotropic"]),
        Column("near", 8, ".3f", lambda f: f.statistics["near"]["free"]["cc_anisotropic"]),
        Column("away", 8, ".3f", lambda f: f.statistics["away"]["free"]["cc_anisotropic"]),
        Column("CC", 8, ".3f", lambda f: f.statistics["cc"]),
        Column("free", 8, ".3f", lambda f: f.statistics["free"]["cc"]),
        Column("R", 8, ".3f", lambda f: f.statistics["r"]),
        Column("free", 8, ".3f", lambda f: f.statistics["free"]["r"]),
        Column("chi2", 10, ".4g", lambda f: f.statistics["chi2"]),
        Column("free", 10, ".4g", lambda f: f.statistics["free"]["chi2"]),
        Column("dAIC", 11, ".5g", lambda f: f.criteria["aic"] - aic),
        Column("dBIC", 11, ".5g", lambda f: f.criteria["bic"] - bic),
        Column("param.", 7, "d", lambda f: f.criteria["n_parameters"]),
    )


def format_shells(fit: Fit) -> str:
    """Agreement in shells of resolution as text for logs."""
    return text_table(_SHELLS, fit.statistics["shells"])


def format_models(fits) -> str:
    """One line for each model; AIC and BIC relative to the lowest."""
    table = text_table(_comparison(fits), fits)
    notes = [_SIDES, centres_note(fits)]
    return "\n".join([table, *filter(None, notes)])


def centres_note(fits) -> str:
    """Which models were not averaged over voxels; empty if all were."""
    centres = [fit.name for fit in fits if not fit.means]
    return f"Not averaged over voxels, but taken at their centres: {', '.join(centres)}" if centres else ""


def format_choice(fits, choice: Choice) -> str:
    """How far the free correlation of each model is below the highest, with the error of the difference."""
    width = max(len(f.name) for f in fits)
    return "\n".join(
        f"  {fit.name:<{width}}{below:9.4f} ± {error:.4f}".replace("nan", "  -")
        for fit, below, error in zip(fits, choice.below, choice.errors)
    )


def verdict(choice: Choice) -> str:
    """The best model, and by what."""
    return f"The best model by {'free voxels' if choice.criterion == 'free' else 'BIC'}: {choice.best.name}"


def model_lines(fit: ModelFit) -> list:
    """The numbers of a fitted model."""
    shown = fit.estimates
    if len(shown) > _MOST_ESTIMATES:
        shown = ()
    lines = [*(format_estimate(estimate) for estimate in (*shown, fit.scale)), *prior_lines(fit)]
    if not shown and fit.estimates:
        lines.insert(0, f"{len(fit.estimates)} parameters, of which the JSON file has a list")
    return lines + [f"{model.name}.orders = {model.orders}" for model in fit.models if model.orders is not None]


def pair_lines(fit: PairFit) -> list:
    """The scale, and what the data determine of the covariances of all pairs of groups."""
    lines = [format_estimate(fit.scale), f"strength of the prior = {fit.strength:g}"]
    if fit.freedom is not None:
        freedom = fit.freedom
        lines += [
            f"{freedom.n_effective:.1f} of {len(freedom.errors)} covariances come from the data, not the prior",
            f"{freedom.n_determined} combinations are determined to {DETERMINED:g} of the variances by the data alone",
        ]
    return lines


def log_result(result: FitResult) -> None:
    """All of a result in the log: each model, with its warnings, and their comparison."""
    for fit in result.models:
        _log_trials(fit.prior.trials if fit.prior is not None else ())
        _log_fit(fit, model_lines(fit))
        for text in filter(None, map(contact_text, fit.details)):
            logger.info("%s: contacts\n\n%s\n", fit.name, text)
    for fit in result.pairs:
        _log_trials(fit.trials)
        _log_fit(fit, pair_lines(fit))
    fits, choice, loss = result.fits, result.choice, result.parameters.options.loss
    logger.info("All models:\n\n%s\n", format_models(fits))
    logger.info(
        "Errors are those of the least-squares fit times the root of the reduced chi², as if the data's errors were "
        "all too small by one factor%s",
        "" if loss == "squares" else f"; those of the loss {loss} from the spread of its residuals",
    )
    logger.info("%s", verdict(choice))
    if len(fits) > 1 and choice.criterion == "free":
        logger.info("Free CC(aniso) below the highest:\n%s", format_choice(fits, choice))


def _log_trials(trials: tuple) -> None:
    """trials : (strength, correlation on free voxels, on the others) and, if it was chosen so, on these kept out"""
    if trials:
        kept_out = ", on these kept out in folds" if len(trials[0]) > 3 else ""
        logger.info(
            "Strengths of the prior, and correlation on free voxels, on the others%s:\n%s",
            kept_out,
            "\n".join(f"{strength:10.3g}" + "".join(f"{x:9.4f}" for x in found) for strength, *found in trials),
        )


def _log_fit(fit: Fit, lines) -> None:
    logger.info("%s:\n  %s\n\n%s\n", fit.name, "\n  ".join(lines), format_shells(fit))
    for text in fit.warnings:
        logger.warning("Warning: %s", text)


def result_record(result: FitResult) -> dict:
    """What ``diffuse_fit.json`` says about the fit of models to a map."""
    data = result.data
    return {
        **grid_record(data.grid),
        "d_max": 1 / data.s.min(),
        "d_min": 1 / data.s.max(),
        "units": result.map.units,
        "indexing": [setting.record() for setting in result.settings],
        "models": [*map(model_record, result.models), *map(pair_record, result.pairs)],
        "best": result.best.name,
        "choice": result.choice.record(result.fits),
        "described": result.described.record(),
    }


def model_record(fit: ModelFit) -> dict:
    """What the file says about a fitted model."""
    names = [e.name for e in fit.estimates]
    if len(fit.correlations) > len(names):
        names = [*names, "scale"]
    identifiability = {
        "order": names,
        "correlations": fit.correlations.tolist(),
        "eigenvalues": fit.eigenvalues.tolist(),
        "loosest": fit.loosest.tolist(),
    }
    orders = orders_of(fit.models)
    return {
        **_record(fit, {e.name: _estimate(e) for e in fit.estimates}, identifiability),
        **({"orders": list(orders)} if orders else {}),
        **prior_record(fit),
        **({"details": list(fit.details)} if any(fit.details) else {}),
    }


def pair_record(fit: PairFit) -> dict:
    """What the file says about fitted covariances of all pairs of groups; none of them is a parameter with a name."""
    trials = [{"strength": s, "free": free, "work": work} for s, free, work in fit.trials]
    pairs = {"strength": fit.strength, "trials": trials, "steps": fit.iterations, "groups": list(fit.groups)}
    if fit.freedom is not None:
        pairs["n_effective"] = fit.freedom.n_effective
        pairs["n_determined"] = fit.freedom.n_determined
        pairs["errors"] = fit.freedom.errors.tolist()
    nothing: dict = {"order": [], "correlations": [], "eigenvalues": [], "loosest": []}
    return {**_record(fit, {}, nothing), "pairs": pairs}


def _record(fit: Fit, parameters: dict, identifiability: dict) -> dict:
    return {
        "model": fit.name,
        "parameters": parameters,
        "scale": _estimate(fit.scale),
        "statistics": fit.statistics,
        **fit.criteria,
        "identifiability": identifiability,
        "converged": fit.converged,
        "voxels": "mean" if fit.means else "centre",
        "starts": {"number": fit.starts, "reached": fit.reached},
        "warnings": list(fit.warnings),
        "displacements": [comparison.record() for comparison in fit.displacements],
    }


def _estimate(estimate: Estimate) -> dict:
    record = {"value": estimate.value, "esd": estimate.esd, "unit": estimate.unit}
    if estimate.at_bound:
        record["at_bound"] = True
    if estimate.profile:
        values, rises = np.transpose(estimate.profile).tolist()
        record["profile"] = {"value": values, "rise": rises}
    return record
