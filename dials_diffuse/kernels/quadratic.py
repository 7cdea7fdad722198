"""Quadratic forms on the points of a lattice."""

from __future__ import annotations

from dials_diffuse.kernels.jit import njit


@njit
def quadratic_form(h, k, l, metric, out):
    """Write x M x for every point x of three axes.

    h, k, l : floats, the points of the axes; metric : (3, 3), symmetric; out : (n1, n2, n3); all of one type
    """
    twice = metric.dtype.type(2)
    for i in range(h.shape[0]):
        for j in range(k.shape[0]):
            row = metric[0, 0] * h[i] * h[i] + metric[1, 1] * k[j] * k[j] + twice * metric[0, 1] * h[i] * k[j]
            slope = twice * (metric[0, 2] * h[i] + metric[1, 2] * k[j])
            for m in range(l.shape[0]):
                out[i, j, m] = row + (slope + metric[2, 2] * l[m]) * l[m]
