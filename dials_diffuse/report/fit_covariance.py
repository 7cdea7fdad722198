"""The covariance of groups as a picture: which of them move together?"""

from __future__ import annotations

import numpy as np

from dials_diffuse.maps.files import atomic_path


def write_correlations_png(path, covariance: np.ndarray, title: str = "") -> None:
    """Draw the correlations of groups, and the root of their variances, into a PNG file.

    covariance : (g, g) float64, Å²

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    size = np.sqrt(np.maximum(np.diag(covariance), 0))
    unit = np.outer(size, size)
    correlations = np.divide(covariance, unit, out=np.zeros_like(covariance), where=unit > 0)
    mesh = left.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", interpolation="nearest")
    left.set(xlabel="group", ylabel="group", title="correlation of displacements")
    figure.colorbar(mesh, ax=left, shrink=0.85)
    right.plot(size, lw=1)
    right.set(xlabel="group", ylabel="rms displacement along one direction (Å)", ylim=(0, None))
    figure.suptitle(title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
