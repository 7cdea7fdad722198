"""Plots of an observation file: pixels by place on the detector, and by image."""

from __future__ import annotations

from collections.abc import Sequence

from dials_diffuse.report.section import SIGNED, Plot, line

#: panels that are drawn below each other
_PANELS = 8

#: why pixels of an image are not used
_LEFT_OUT = {
    "bragg": "Bragg mask",
    "unpredicted": "peaks not predicted",
    "outlier": "outliers",
    "untrusted": "untrusted",
}


def image_plots(overview: dict, experiments: Sequence = ()) -> tuple:
    """By image: flux and rate, pixels used, and pixels left out.

    Parameters
    ----------
    overview : see :func:`reduction.overview.overview`
    experiments : of the record of an integration, with ``flux`` and ``images``; of former versions they lack the latter
    """
    rates, pixels = [], []
    by_number = _numbered(experiments)
    for i, sweep in enumerate(overview["sweeps"]):
        images = _images(sweep)
        mine = by_number.get(i, {})
        flux = mine.get("flux")
        if flux:
            numbers = mine.get("images", {}).get("image") or range(sweep["first"], sweep["first"] + len(flux))
            rates.append(line(f"flux {i}", numbers, flux, "lines", line={"dash": "dot"}))
        rates.append(line(f"rate {i}", images, sweep["ratio"], "lines"))
        pixels.append(line(f"sweep {i}", images, [x / sweep["images"] for x in sweep["pixels"]], "lines"))
    axis = {"xaxis": {"title": {"text": "image"}}}
    return (
        Plot(
            "images",
            "Rate of each image",
            "Intensity of an image over that of all images at the same resolution, and the flux of the incoming "
            "beam where it was measured. A single image that stands out was disturbed.",
            rates,
            {**axis, "yaxis": {"title": {"text": "relative to all images"}}},
        ),
        Plot(
            "pixels",
            "Pixels used on each image",
            "What masks, outliers and resolution limits leave. Steps show shadows, or images whose Bragg masks are "
            "larger.",
            pixels,
            {**axis, "yaxis": {"title": {"text": "pixels"}, "rangemode": "tozero"}},
        ),
        *_left_out(experiments),
    )


def _numbered(experiments: Sequence) -> dict:
    """Experiments by their number: those of which no image is used are not in a record."""
    return {experiment.get("experiment", i): experiment for i, experiment in enumerate(experiments)}


def _left_out(experiments: Sequence) -> tuple:
    """Shares of the pixels of each image behind Bragg masks, of outliers, and of untrusted ones."""
    traces = []
    for i, experiment in _numbered(experiments).items():
        images = experiment.get("images")
        if not images:
            continue
        total = [sum(counts) or 1 for counts in zip(*(images[name] for name in images if name != "image"))]
        for name, label in _LEFT_OUT.items():
            if name not in images:  # records of former versions
                continue
            share = [100 * count / whole or None for count, whole in zip(images[name], total)]
            traces.append(line(f"{label} {i}", images["image"], share, "lines"))
    if not traces:
        return ()
    return (
        Plot(
            "masked",
            "Pixels that were left out on each image",
            "Shares of the pixels that are not masked on all images: behind Bragg masks and masks of peaks that no "
            "crystal predicts, outliers, and untrusted ones (saturated, or marked by the detector). An image with many "
            "outliers has ice, a shadow or another crystal.",
            traces,
            {
                "xaxis": {"title": {"text": "image"}},
                "yaxis": {"title": {"text": "pixels (%)"}, "type": "log"},
            },
        ),
    )


def detector_plots(overview: dict) -> tuple:
    """Maps of the detector: how much of it was used, and the rate against that at the same resolution."""
    panels = overview["panels"][:_PANELS]
    if not panels or not any(any(map(any, panel["pixels"])) for panel in panels):
        return ()
    x, y, pixels, ratio = _stacked(panels)
    usual = sorted(v for row in pixels for v in row if v is not None)
    usual = usual[int(0.8 * (len(usual) - 1))]
    share = [[None if v is None else round(min(v / usual, 1.2), 3) for v in row] for row in pixels]
    spread = sorted(abs(v - 1) for row in ratio for v in row if v is not None)
    limit = max(spread[int(0.98 * (len(spread) - 1))] if spread else 0.1, 1e-3)
    note = f" The first {_PANELS} panels, below each other." if len(overview["panels"]) > _PANELS else ""
    layout = {
        "xaxis": {"title": {"text": "fast (px)"}, "constrain": "domain"},
        "yaxis": {"title": {"text": "slow (px)"}, "autorange": "reversed", "scaleanchor": "x", "constrain": "domain"},
    }
    bar = {"thickness": 12, "len": 0.9}
    return (
        Plot(
            "used",
            "Where pixels were used",
            "Pixels that were used, over all images, relative to the better places of the detector. Bragg masks, "
            "outliers and what lies outside the resolution limits lower it." + note,
            [
                {
                    "type": "heatmap",
                    "x": x,
                    "y": y,
                    "z": share,
                    "colorscale": "Viridis",
                    "zmin": 0,
                    "zmax": 1.2,
                    "colorbar": bar,
                }
            ],
            layout,
            square=True,
        ),
        Plot(
            "residual",
            "Rate over the detector",
            "Intensity over that of all pixels at the same resolution. White is as expected; shadows are blue, "
            "scattering that does not come from the crystal is red. Of few images the pattern of the crystal itself "
            "is seen, too." + note,
            [
                {
                    "type": "heatmap",
                    "x": x,
                    "y": y,
                    "z": ratio,
                    "colorscale": SIGNED,
                    "zmid": 1,
                    "zmin": 1 - limit,
                    "zmax": 1 + limit,
                    "colorbar": bar,
                }
            ],
            layout,
            square=True,
        ),
    )


def _images(sweep: dict) -> list:
    return [sweep["first"] + (i + 0.5) * sweep["images"] - 0.5 for i in range(len(sweep["pixels"]))]


def _stacked(panels: Sequence) -> tuple:
    """Positions and matrices of panels below each other, with a gap; pixels are None where nothing was used."""
    size = panels[0]["bin"]
    width = max(len(panel["pixels"][0]) for panel in panels)
    pixels: list = []
    ratio: list = []
    for panel in panels:
        if pixels:
            pixels.append([None] * width)
            ratio.append([None] * width)
        for row, values in zip(panel["pixels"], panel["ratio"]):
            rest = [None] * (width - len(row))
            pixels.append([v or None for v in row] + rest)
            ratio.append([*values, *rest])
    return [(i + 0.5) * size for i in range(width)], [(i + 0.5) * size for i in range(len(pixels))], pixels, ratio
