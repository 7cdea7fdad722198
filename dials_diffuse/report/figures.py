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


def write_thumbnail(path, picture, size: int = 400) -> None:
    """Write a smaller copy of a picture as PNG; size : pixels of its longer side.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    from PIL import Image  # matplotlib needs it, too

    with Image.open(picture) as image:
        image.thumbnail((size, size))
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")
