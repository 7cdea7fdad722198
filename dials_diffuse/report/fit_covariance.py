"""The covariance of groups as a picture: which of them move together?"""

from __future__ import annotations

import numpy as np

from dials_diffuse.report.figures import new_figure, write_png


def write_correlations_png(path, covariance: np.ndarray, title: str = "", share: np.ndarray | None = None) -> None:
    """Draw the correlations of groups, and the root of their variances, into a PNG file.

    Parameters
    ----------
    covariance : (g, g) or (g, g, 3, 3) float64, Å²; of tensors a third of the trace is drawn
    share : of the same shape, how much of each element the data determine, 0 to 1; of tensors the mean is drawn. None:
        not known, not drawn

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    if covariance.ndim == 4:
        covariance = np.trace(covariance, axis1=2, axis2=3) / 3
        share = None if share is None else share.mean(axis=(2, 3))
    panels = 2 if share is None else 3
    figure = new_figure(6.5 * panels, 6.5)
    left, *middle, right = figure.subplots(1, panels, width_ratios=[3] * (panels - 1) + [2])
    size = np.sqrt(np.maximum(np.diag(covariance), 0))
    unit = np.outer(size, size)
    correlations = np.divide(covariance, unit, out=np.zeros_like(covariance), where=unit > 0)
    style = {"origin": "lower", "interpolation": "nearest"}
    mesh = left.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1, **style)
    left.set(xlabel="group", ylabel="group", title="correlation of displacements")
    figure.colorbar(mesh, ax=left, shrink=0.85)
    if share is not None:
        mesh = middle[0].imshow(share, cmap="viridis", vmin=0, vmax=1, **style)
        middle[0].set(xlabel="group", ylabel="group", title="share that comes from the data, not from the prior")
        figure.colorbar(mesh, ax=middle[0], shrink=0.85)
    right.plot(size, lw=1)
    right.set(xlabel="group", ylabel="rms displacement along one direction (Å)", ylim=(0, None))
    figure.suptitle(title)
    write_png(path, figure)
