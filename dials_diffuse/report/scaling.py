"""Text and picture of a scale model: its terms, the absolute scale, and the scale of each sweep along its rotation."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from dials_diffuse.report.figures import new_figure, write_png
from dials_diffuse.report.symmetry import symmetry_text
from dials_diffuse.report.tables import Column, text_table
from dials_diffuse.scaling.absolute import AbsoluteScale
from dials_diffuse.scaling.images import BLANK, DISAGREEMENT, REGION, RING, SCALE
from dials_diffuse.scaling.record import curve_of_b, dials_scale_curve, suggested_cuts
from dials_diffuse.scaling.scale import ScalingResult
from dials_diffuse.scaling.terms.base import Term

#: more sweeps than this are drawn without a legend
_LEGEND = 8

#: runs of images in the log
_RUNS = 40

#: the log has a matrix of correlations up to so many sweeps; the JSON file always has it
_MATRIX = 12

#: of images, by reason
_MARKS = {BLANK: "v", SCALE: "^", RING: "o", REGION: "s", DISAGREEMENT: "D"}

#: panels beside each other
_COLUMNS = 3


def _size(row) -> str:
    test, refinement = row
    return f"{refinement.strengths[test.name].size ** -0.5:.3f}" if test.name in refinement.model.terms else "not used"


def _of_images(row) -> str:
    images = row[0].images
    return "-" if images is None else f"{images.mean:.4f} +- {images.esd:.4f}"


#: rows : (TermTest, Refinement)
_TERMS = (
    Column("term", -24, "", lambda row: row[0].label),
    Column("fall of chi2 per observation of held-out voxels", 47, ".4f", lambda row: row[0].gain),
    Column("e.s.d.", 10, ".4f", lambda row: row[0].esd),
    Column("of held-out images", 20, "", _of_images),
    Column("parameters", 12, "d", lambda row: row[0].n_parameters),
    Column("determined", 12, ".1f", lambda row: row[0].determined),
    Column("size", 10, "", _size),
)


def scaling_text(result: ScalingResult) -> str:
    """Text for the log: terms, curves and residuals in a few lines."""
    refinement = result.refinement
    lines = [
        f"{result.n_outliers} of {result.n_observations} observations are outliers and are left out",
        *_image_lines(result),
        "",
        text_table(_TERMS, [(test, refinement) for test in refinement.judgement.tests]),
    ]
    together = refinement.judgement.together
    lines += [
        "",
        f"All that are used lower chi2 of held-out voxels by {together.mean:.4f} +- {together.esd:.4f} per observation",
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
    if 1 < n <= _MATRIX:
        lines += ["", "correlation of the anisotropic part between sweeps:"]
        lines += ["  ".join(f"{x:6.3f}" for x in row) for row in result.correlations]
    if result.symmetry is not None:
        lines += ["", symmetry_text(result.symmetry).rstrip()]
    for path, text in suggested_cuts(result).items():
        lines += [
            "",
            f"{path}: exclude_images={text} of dials.diffuse_integrate takes out what they share with others, too",
        ]
    return "\n".join(lines)


def _image_lines(result: ScalingResult) -> list:
    """What became of images that do not belong."""
    decision = result.images
    if not decision.bad:
        return ["No image disagrees with the others of its sweep"]
    what = "are left out" if decision.left_out else "are kept"
    lines = [f"{result.n_in_bad_images} observations are on images that do not agree with the others; these {what}:"]
    runs = decision.runs()
    for e, first, last in runs[:_RUNS]:
        mine = [b for b in decision.bad if b.experiment == e and first <= b.first <= last]
        worst = max(mine, key=lambda b: b.deviation)
        lines.append(
            f"  sweep {e}, images {first} to {last}: {worst.words} ({worst.deviation:.0f} times the usual spread)"
        )
    if len(runs) > _RUNS:
        lines.append(f"  and {len(runs) - _RUNS} more, see output.json")
    return lines


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
    for e in absolute.estimates:
        reason = f" (not compared: {absolute.left_out[e.method]})" if e.method in absolute.left_out else ""
        lines.append(f"  {e.method:10} {e.k:.4g} +- {e.esd:.2g}{reason}")
    parts = absolute.parts
    if parts is None:
        lines.append(f"  separation not possible: {absolute.left_out['separation']}")
    else:
        (liquid, liquid_esd), (air, air_esd) = parts.amounts["liquid"], parts.amounts["air"]
        lines.append(
            f"  around the crystal, by separation: liquid {liquid:.2f} +- {liquid_esd:.2f} of the crystal's volume, "
            f"air {air:.0f} +- {air_esd:.0f} times as long as the crystal is thick; together "
            f"{100 * parts.share_around:.0f} % of all that scatters"
        )
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
    if result.absolute and result.absolute.parts is not None:
        panels.insert(1, _draw_parts)
    panels += [_draw_scales, _draw_images]
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


def _draw_parts(axes, result: ScalingResult) -> None:
    """What is measured, and what of it is the crystal's, liquid and air, on the scale of the separation."""
    shells, parts = result.absolute.shells, result.absolute.parts
    near = shells.s >= parts.s[0]
    axes.step(shells.s[near], parts.k * shells.total[near], where="mid", color="0.2", label="diffuse + Bragg")
    axes.step(shells.s[near], parts.k * shells.bragg[near], where="mid", color="0.6", label="Bragg")
    below = np.zeros(len(parts.s))
    for part, name, colour in zip((parts.crystal, parts.liquid, parts.air), ("crystal", "liquid", "air"), "rbg"):
        axes.fill_between(parts.s, below, below + part, color=colour, alpha=0.2, linewidth=0, label=name)
        below = below + part
    around, error = 100 * parts.share_around, 100 * parts.esd / parts.k
    axes.set(
        xlabel="|s| = 1/d (1/Å)",
        ylabel="mean intensity (electrons² per unit cell)",
        ylim=(0, 1.4 * below.max()),
        title=f"{around:.0f} % is not the crystal's: k = {parts.k:.4g} ± {error:.2g} %",
    )
    axes.ticklabel_format(axis="y", scilimits=(0, 4), useMathText=True)
    axes.legend(fontsize="small", ncol=2, loc="upper right")


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


def _draw_images(axes, result: ScalingResult) -> None:
    """χ² of each image; those that do not belong, with the reason."""
    named: set = set()
    for sweep in result.images.sweeps:
        start, width = result.experiments[sweep.experiment].oscillation
        first = result.experiments[sweep.experiment].image_range[0]
        angle = start + width * ((sweep.first + sweep.last + 1) / 2 - first)
        seen = sweep.n > 0
        axes.plot(angle[seen], sweep.chi2[seen], ".", color=f"C{sweep.experiment % 10}", markersize=3)
        for a, chi2, number in zip(angle, sweep.chi2, sweep.first):
            reason = next((b.reason for b in result.images.bad if _holds(b, sweep.experiment, number)), None)
            if reason is not None:
                label = None if reason in named else reason
                named.add(reason)
                axes.plot([a], [chi2], _MARKS[reason], color="C3", fillstyle="none", label=label)
    title = "images" + ("; those marked are left out" if result.images.left_out and result.images.bad else "")
    axes.set(xlabel="rotation (degrees)", ylabel="mean z² (at most 4 each)", ylim=(0, 4.2), title=title)
    if named:
        axes.legend(fontsize="small")


def _holds(bad, experiment: int, image: int) -> bool:
    return bad.experiment == experiment and bad.first <= image <= bad.last


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
