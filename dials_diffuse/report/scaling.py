"""Text and picture of a scale model: its terms, the absolute scale, and the scale of each sweep along its rotation."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from dials_diffuse.report.figures import new_figure, write_png
from dials_diffuse.report.tables import Column, text_table
from dials_diffuse.scaling.absolute import AbsoluteScale
from dials_diffuse.scaling.record import curve_of_b, dials_scale_curve, suggested_cuts
from dials_diffuse.scaling.scale import ScalingResult
from dials_diffuse.scaling.terms.base import Term

#: more sweeps than this are drawn without a legend
_LEGEND = 8

#: panels beside each other
_COLUMNS = 3


def _size(row) -> str:
    test, refinement = row
    return f"{refinement.strengths[test.name].size ** -0.5:.3f}" if test.name in refinement.model.terms else "not used"


#: rows : (TermTest, Refinement)
_TERMS = (
    Column("term", -24, "", lambda row: row[0].label),
    Column("fall of chi2 per observation of held-out voxels", 47, ".4f", lambda row: row[0].gain),
    Column("e.s.d.", 10, ".4f", lambda row: row[0].esd),
    Column("parameters", 12, "d", lambda row: row[0].n_parameters),
    Column("determined", 12, ".1f", lambda row: row[0].determined),
    Column("size", 10, "", _size),
)


def scaling_text(result: ScalingResult) -> str:
    """Text for the log: terms, curves and residuals in a few lines."""
    refinement = result.refinement
    lines = [
        f"{result.n_outliers} of {result.n_observations} observations are outliers and are left out",
        "",
        text_table(_TERMS, [(test, refinement) for test in refinement.tests]),
    ]
    lines += [
        "",
        f"The scale of an observation is known to {100 * refinement.scale_errors.rms:.2f} %; sigma takes that in",
        "",
        "Not determined by the data and set by convention: mean of log b 0 over all sweeps; what of a depends on s or",
        "the rotation alone 0; mean of c 0 over all sweeps at each s, so that what they share belongs to the map.",
        "",
    ]
    for i, experiment in enumerate(result.experiments):
        _, b, c = curve_of_b(result, i)
        lines.append(
            f"sweep {i} ({experiment.identifier}): b {b.min():.3f} to {b.max():.3f}, c/I {c.min():.3f} to {c.max():.3f}"
        )
        if result.levels is not None:
            lines[-1] += f"; scale changed by {result.levels.factor[i]:.4f} +- {result.levels.esd[i]:.4f} for the ratio"
        compared = dials_scale_curve(result, i)
        if compared is not None:
            lines[-1] += f"; correlation of b with the scales of dials.scale {compared['correlation']:.3f}"
    lines += ["", *_absolute_lines(result.absolute)]
    n = len(result.experiments)
    if n > 1:
        lines += ["", "correlation of the anisotropic part between sweeps:"]
        lines += ["  ".join(f"{x:6.3f}" for x in row) for row in result.correlations]
    for path, text in suggested_cuts(result).items():
        lines += ["", f"{path}: some images agree much worse than the others, consider exclude_images={text}"]
    return "\n".join(lines)


def _absolute_lines(absolute: AbsoluteScale | None) -> list:
    """Text about the absolute scale for the log."""
    if absolute is None:
        return ["Intensities are on an arbitrary scale"]
    lines = [
        f"Absolute scale by {absolute.method}: 1 unit of the scale model is {absolute.k:.4g} electrons^2 per unit cell "
        f"+- {100 * absolute.esd / absolute.k:.1f} % ("
        + ", ".join(f"{name} {100 * x:.1f} %" for name, x in absolute.relative.items())
        + ")",
        f"  contents: {absolute.expectation.source}",
    ]
    lines += [f"  {e.method:9} {e.k:.4g} +- {e.esd:.2g}" for e in absolute.estimates]
    return [*lines, "Compton scattering is subtracted"]


def write_scaling_png(path, result: ScalingResult) -> None:
    """Draw :func:`scaling_figure` into a PNG file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    write_png(path, scaling_figure(result))


def scaling_figure(result: ScalingResult):
    """What the cell scatters against what its atoms should, b against the factors of dials.scale, and other terms.

    Returns
    -------
    matplotlib.figure.Figure with an Agg canvas
    """
    panels = [_draw_totals, _draw_estimates] if result.absolute else []
    panels.append(_draw_scales)
    terms = [(term, _curves(result, term)) for term in result.refinement.model.of_experiment]
    panels += [partial(_draw_curves, term, curves) for term, curves in terms if curves]
    columns = min(len(panels), _COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.5 * columns, 4.6 * rows)
    for number, draw in enumerate(panels, start=1):
        draw(figure.add_subplot(rows, columns, number), result)
    return figure


def _draw_totals(axes, result: ScalingResult) -> None:
    absolute = result.absolute
    shells, expectation, k = absolute.shells, absolute.expectation, absolute.k
    s = shells.s
    gas = expectation.at("elastic", s) + expectation.at("compton", s)
    axes.step(s, k * shells.total, where="mid", color="0.2", label="diffuse + Bragg")
    axes.plot(s, k * shells.diffuse, color="C0", label="diffuse")
    axes.plot(s, gas, color="C3", label="Σf² + Compton")
    axes.plot(s, expectation.at("compton", s), color="C3", linestyle=":", label="Compton")
    near = s > 0.2  # below, the interference of molecules rules, which is not in the curve
    expected = gas + expectation.at("interference", s)
    axes.plot(s[near], expected[near], color="C1", linestyle="--", label="with interference of neighbours")
    axes.set(
        xlabel="|s| = 1/d (1/Å)",
        ylabel="mean intensity (electrons² per unit cell)",
        ylim=(0, 1.15 * max(gas[0], k * np.percentile(shells.total, 95))),
        title=f"k = {absolute.k:.4g} ± {100 * absolute.esd / absolute.k:.2g} % ({absolute.method})",
    )
    axes.ticklabel_format(axis="y", scilimits=(0, 4), useMathText=True)
    axes.legend(fontsize="small")


def _draw_estimates(axes, result: ScalingResult) -> None:
    absolute = result.absolute
    for number, estimate in enumerate(absolute.estimates):
        if estimate.method == "krogh_moe":
            q, k = estimate.details["q_max"], estimate.details["k_of_q_max"]
            axes.plot(q, k / absolute.k, "o-", color="C0", label="krogh_moe, up to q")
        else:
            axes.axhline(estimate.k / absolute.k, color=f"C{number}", label=estimate.method)
            low, high = ((estimate.k + sign * estimate.esd) / absolute.k for sign in (-1, 1))
            axes.axhspan(low, high, color=f"C{number}", alpha=0.15)
    relative = absolute.esd / absolute.k
    axes.axhspan(1 - relative, 1 + relative, color="0.5", alpha=0.15, label="± e.s.d. of k")
    axes.set(xlabel="q_max = 2π |s| (1/Å)", ylabel="estimate of k / k", title="estimates of the scale")
    axes.legend(fontsize="small")


def _draw_scales(axes, result: ScalingResult) -> None:
    compared = []
    for number in range(len(result.experiments)):
        angles, b, _ = curve_of_b(result, number)
        colour = f"C{number % 10}"
        axes.plot(angles, b / b.mean(), color=colour, label=f"sweep {number}: b")
        other = dials_scale_curve(result, number)
        if other is not None:
            compared.append(other["correlation"])
            label = f"dials.scale, correlation {other['correlation']:.2f}"
            axes.plot(angles, other["inverse_scale_factor"], color=colour, linestyle="--", label=label)
    title = "scale of the sweeps" + ("; dashed: dials.scale" if compared else "")
    axes.set(xlabel="rotation (degrees)", ylabel="scale / mean", title=title)
    if len(result.experiments) <= _LEGEND:
        axes.legend(fontsize="small")


def _curves(result: ScalingResult, term: Term) -> dict:
    """Number of a sweep -> Curve of a term, of those that there are."""
    coefficients, layout = result.refinement.model.coefficients, result.layout
    curves = {i: term.curve(coefficients, layout, i) for i in range(len(result.experiments))}
    return {i: curve for i, curve in curves.items() if curve is not None}


def _draw_curves(term: Term, curves: dict, axes, result: ScalingResult) -> None:
    for number, curve in curves.items():
        axes.plot(curve.x, curve.y, curve.line, color=f"C{number % 10}", label=f"sweep {number}")
        axes.set(xlabel=curve.xlabel, ylabel=curve.ylabel, title=term.label)
    if 1 < len(curves) <= _LEGEND:
        axes.legend(fontsize="small")
