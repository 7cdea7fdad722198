"""Figures that are drawn into files, without a window."""

from __future__ import annotations

from dials_diffuse.files.atomic import atomic_path

#: pixels per inch
DPI = 110


def new_figure(width: float, height: float):
    """An empty matplotlib figure with an Agg canvas; width, height : inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(path, figure) -> None:
    """Save a figure as a PNG file.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
