"""Fits of models to a map: tables for logs, the record for programs."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.fitting.fit import Estimate, Fit
from dials_diffuse.fitting.orders import orders_of
from dials_diffuse.fitting.pairs.pair_freedom import DETERMINED
from dials_diffuse.report.tables import Column, cells, heads, text_table

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


def _comparison(fits) -> tuple:
    """Columns for these fits, one a row."""
    aic, bic = (min(f.criteria[key] for f in fits) for key in ("aic", "bic"))
    return (
        Column("model", -max(len("model"), *(len(f.name) for f in fits)), "", lambda f: f.name),
        Column("CC(aniso)", 11, ".3f", lambda f: f.statistics["cc_anisotropic"]),
        Column("free", 8, ".3f", lambda f: f.statistics["free"]["cc_anisotropic"]),
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
    note = centres_note(fits)
    return f"{table}\n{note}" if note else table


def centres_note(fits) -> str:
    """Which models were not averaged over voxels; empty if all were."""
    centres = [fit.name for fit in fits if not fit.means]
    return f"Not averaged over voxels, but taken at their centres: {', '.join(centres)}" if centres else ""


def format_choice(fits, choice) -> str:
    """How far the free correlation of each model is below the highest, with the error of the difference.

    choice : choice.Choice
    """
    width = max(len(f.name) for f in fits)
    return "\n".join(
        f"  {fit.name:<{width}}{below:9.4f} ± {error:.4f}".replace("nan", "  -")
        for fit, below, error in zip(fits, choice.below, choice.errors)
    )


def format_pairs(pairs) -> list:
    """What the data determine of the covariances of all pairs of groups, as lines for logs.

    pairs : groups.GroupFit
    """
    lines = [f"strength of the prior = {pairs.strength:g}"]
    if pairs.freedom is not None:
        freedom = pairs.freedom
        lines += [
            f"{freedom.n_effective:.1f} of {len(freedom.errors)} covariances come from the data, not the prior",
            f"{freedom.n_determined} combinations are determined to {DETERMINED:g} of the variances by the data alone",
        ]
    return lines


def fit_record(fit: Fit) -> dict:
    """What ``diffuse_fit.json`` says about a model."""
    names = [e.name for e in fit.estimates]
    if len(fit.correlations) > len(names):
        names = [*names, "scale"]
    record = {
        "model": fit.name,
        "parameters": {e.name: _estimate(e) for e in fit.estimates},
        "scale": _estimate(fit.scale),
        "statistics": fit.statistics,
        "aic": fit.criteria["aic"],
        "bic": fit.criteria["bic"],
        "n_parameters": fit.criteria["n_parameters"],
        "identifiability": {
            "order": names,
            "correlations": fit.correlations.tolist(),
            "eigenvalues": fit.eigenvalues.tolist(),
            "loosest": fit.loosest.tolist(),
        },
        "converged": fit.minimum.converged,
        "voxels": "mean" if fit.means else "centre",
        "starts": {"number": fit.starts, "reached": fit.reached},
        "warnings": fit.warnings,
    }
    if orders := orders_of(fit.model):
        record["orders"] = list(orders)
    if fit.pairs is not None:
        record["pairs"] = _pairs(fit.pairs)
    return record


def _pairs(pairs) -> dict:
    trials = [{"strength": s, "free": free, "work": work} for s, free, work in pairs.trials]
    record = {"strength": pairs.strength, "trials": trials, "steps": pairs.iterations}
    if pairs.freedom is not None:
        record["n_effective"] = pairs.freedom.n_effective
        record["n_determined"] = pairs.freedom.n_determined
        record["errors"] = pairs.freedom.errors.tolist()
    return record


def _estimate(estimate: Estimate) -> dict:
    record = {"value": estimate.value, "esd": estimate.esd, "unit": estimate.unit}
    if estimate.at_bound:
        record["at_bound"] = True
    if estimate.profile:
        values, rises = np.transpose(estimate.profile).tolist()
        record["profile"] = {"value": values, "rise": rises}
    return record
