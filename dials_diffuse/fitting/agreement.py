"""How well a fitted map agrees with the data, on the voxels that were fitted and on those set aside."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.fitting.data import FitData
from dials_diffuse.maps.shells import correlation, shell_residual, shells_of

#: of the distance between lattice points; voxels nearer than this to one are near
_NEAR = 1 / 3 + 1e-6


def statistics(data: FitData, fitted: np.ndarray, weights: np.ndarray, n_parameters: int, n_shells: int) -> dict:
    """``cc``, ``cc_anisotropic``, ``r``, ``chi2``, ``n``, the same under ``free``, ``shells``, ``near`` and ``away``.

    Parameters
    ----------
    fitted : (n,) float64, k I_calc + b
    weights : (n,) float64, of the fit
    n_parameters : all that were fitted; ``chi2`` is divided by the voxels fitted less these, that of ``free`` by n
    n_shells : of equal volume

    Notes
    -----
    ``cc_anisotropic`` is the correlation of :func:`anisotropic_parts`.
    ``near`` and ``away`` are voxels less and more than a third of the lattice from a lattice point, where halos are,
    and where the motions inside of molecules show: their numbers and ``cc_anisotropic``, and the same under ``free``.
    ``r`` is sum |I_obs - I_fit| / sum |I_obs|, background included, and thus small where the background is large.
    """
    observed = data.intensity
    x, y = anisotropic_parts(data, fitted)
    deviation = np.abs(observed - fitted)
    chi = weights * deviation**2

    def row(use, freedom) -> dict:
        n = int(np.count_nonzero(use))
        total = float(np.abs(observed[use]).sum())
        return {
            "cc": correlation(_centred(observed[use]), _centred(fitted[use])),
            "cc_anisotropic": correlation(x[use], y[use]),
            "r": float(deviation[use].sum()) / total if total > 0 else math.nan,
            "chi2": float(chi[use].sum()) / (n - freedom) if n > freedom else math.nan,
            "n": n,
        }

    shell, limits = shells_of(data.s, n_shells)
    halves = None
    if data.half_a is not None:
        both = np.isfinite(data.half_a) & np.isfinite(data.half_b)
        halves = [np.zeros(data.n) for _ in range(2)]
        if both.any():
            for residual, half in zip(halves, (data.half_a, data.half_b)):
                residual[both] = shell_residual(half[both], data.s[both])
    shells = []
    for i in range(n_shells):
        mine = shell == i
        half = correlation(halves[0][mine], halves[1][mine]) if halves else math.nan
        star = math.sqrt(2 * half / (1 + half)) if half > 0 else math.nan
        shells.append(
            {
                "d_max": float(limits[i]),
                "d_min": float(limits[i + 1]),
                **row(mine & ~data.free, 0),
                "free": row(mine & data.free, 0),
                "cc_half": half,
                "cc_star": star,
            }
        )
    near = near_lattice_points(data)
    sides = {}
    for name, side in (("near", near), ("away", ~near)):
        work, free = (
            {"n": int(np.count_nonzero(use)), "cc_anisotropic": correlation(x[use], y[use])}
            for use in (side & ~data.free, side & data.free)
        )
        sides[name] = {**work, "free": free}
    return {**row(~data.free, n_parameters), "free": row(data.free, 0), "shells": shells, **sides}


def near_lattice_points(data: FitData) -> np.ndarray:
    """(n,) bool, voxels whose distance from the nearest lattice point, in fractional indices, is below a third."""
    hkl = data.index / np.array(data.grid.subdivide)
    return np.linalg.norm(hkl - np.rint(hkl), axis=1) < _NEAR


def anisotropic_parts(data: FitData, fitted: np.ndarray) -> tuple:
    """Data and model, (n,) float64 each, without what is isotropic in them, see :func:`shells.shell_residual`.

    The isotropic part is that of all voxels: a shell may hold few that are free.

    fitted : (n,) float64, k I_calc + b
    """
    return shell_residual(data.intensity, data.s), shell_residual(fitted, data.s)


def criteria(objective: float, n: int, n_parameters: int) -> dict:
    """Akaike's and the Bayesian information criterion for errors known up to one factor: n ln(chi²/n) + penalty."""
    log_likelihood = n * math.log(max(objective, 1e-300) / n)
    return {
        "aic": log_likelihood + 2 * n_parameters,
        "bic": log_likelihood + n_parameters * math.log(n),
        "n_parameters": n_parameters,
    }


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean() if len(values) else values
