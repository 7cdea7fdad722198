"""Where observations are in their sweep, on the detector and in the crystal."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dials_diffuse.kernels.jit import njit


class Sweeps(NamedTuple):
    """What the coordinates of e sweeps are measured in.

    scan : (e, 2) float64, first angle and width in degrees; size : (e, 2) float64, pixels along fast and slow
    modules : (e, 4) int64, distance from module to module and number of modules, each along fast and slow
    orientation : (e, 3, 3) float64, from indices on the subdivided lattice to reciprocal space
    axis, beam : (e, 3) float64, unit vector along the rotation axis, and the beam vector at angle 0
    directions : is there a meaning in the last three?
    """

    scan: np.ndarray
    size: np.ndarray
    modules: np.ndarray
    orientation: np.ndarray
    axis: np.ndarray
    beam: np.ndarray
    directions: bool


@njit
def fill_coordinates(sweeps, experiment, panel, xyz, s, index, out):
    """Columns of ``scaling.layout``: T, X, Y, S, MODULE, and two unit vectors.

    Parameters
    ----------
    sweeps : Sweeps; experiment : (n,) int64, which of them
    panel : (n,) integers; xyz : (n, 3) floats, pixels, pixels, degrees; s : (n,) floats; index : (n, 3) integers
    out : (n, 11) float64, written; 0 for the vectors without ``directions``
    """
    for i in range(experiment.shape[0]):
        e, row = experiment[i], out[i]
        x, y, angle = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
        row[0] = (angle - sweeps.scan[e, 0]) / sweeps.scan[e, 1]
        row[1] = x / sweeps.size[e, 0]
        row[2] = y / sweeps.size[e, 1]
        row[3] = s[i]
        fast, slow, columns, rows = sweeps.modules[e]
        column = min(max(math.floor(x / fast), 0), columns - 1)
        line = min(max(math.floor(y / slow), 0), rows - 1)
        row[4] = (panel[i] * rows + line) * columns + column
        row[5:] = 0.0
        if not sweeps.directions:
            continue
        # the beam turned back by the angle (Rodrigues), then what is scattered: incident + s
        c, n = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
        a, b, m = sweeps.axis[e], sweeps.beam[e], sweeps.orientation[e]
        along = (1.0 - c) * (a[0] * b[0] + a[1] * b[1] + a[2] * b[2])
        for k in range(3):
            p, q = (k + 1) % 3, (k + 2) % 3
            row[8 + k] = c * b[k] + n * (a[p] * b[q] - a[q] * b[p]) + along * a[k]
            row[5 + k] = row[8 + k] + m[k, 0] * index[i, 0] + m[k, 1] * index[i, 1] + m[k, 2] * index[i, 2]
        for first, sign in ((5, 1.0), (8, -1.0)):
            length = sign * math.sqrt(row[first] ** 2 + row[first + 1] ** 2 + row[first + 2] ** 2)
            for k in range(3):
                row[first + k] /= length
