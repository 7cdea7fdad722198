"""Picture of a scale model: the absolute scale, and the scale of each sweep along its rotation."""

from __future__ import annotations

import numpy as np

from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.scaling.record import curve_of_b, dials_scale_curve
from dials_diffuse.scaling.scale import ScalingResult

#: more sweeps than this are drawn without a legend
_LEGEND = 8


def write_scaling_png(path, result: ScalingResult) -> None:
    """Draw :func:`scaling_figure` into a PNG file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    figure = scaling_figure(result)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def scaling_figure(result: ScalingResult):
    """What the cell scatters against what its atoms should, and b against the factors of dials.scale.

    Returns
    -------
    matplotlib.figure.Figure with an Agg canvas
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = 3 if result.absolute else 1
    figure = Figure(figsize=(5.5 * n, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(1, n))
    if result.absolute:
        _draw_totals(axes[0], result.absolute)
        _draw_estimates(axes[1], result.absolute)
    _draw_scales(axes[-1], result)
    return figure


def _draw_totals(axes, absolute) -> None:
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


def _draw_estimates(axes, absolute) -> None:
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
