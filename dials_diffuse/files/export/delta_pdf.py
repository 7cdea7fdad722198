"""A ΔPDF as a CCP4 map in Å, which Coot and others open beside the model."""

from __future__ import annotations

import numpy as np

from dials_diffuse import __version__
from dials_diffuse.files.export.ccp4 import write_points
from dials_diffuse.maps.fourier import DeltaPdf


def write_delta_pdf(path, found: DeltaPdf, noise: bool = False) -> None:
    """Write a ΔPDF, or its noise, as one period around the vector 0, which is at the origin of the coordinates.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    ValueError
        If there is no noise.
    """
    points = found.noise if noise else found.values
    if points is None:
        raise ValueError("no noise without half sets")
    parameters, filled = found.parameters, found.filled
    labels = [
        f"dials_diffuse {__version__}: {'noise of a ' if noise else ''}3D-delta-PDF, vectors in Angstrom",
        f"period {','.join(map(str, found.grid.subdivide))} unit cells; the vector 0 is at the origin",
        f"units {found.units}; weight {parameters.weight_at_d_min:g} at {found.grid.d_min:.3f} A",
        f"a point is {found.width:.2f} A wide; Bragg positions: {parameters.bragg}",
        f"measured {filled.measured:.4f}, neighbours {filled.neighbours:.4f}, isotropic mean {filled.shell:.4f}",
        f"space group {found.grid.space_group_symbol}; the file has all points, as P 1",
    ]
    start = -np.array(found.origin)
    write_points(path, points, found.cell, points.shape, start, labels)
