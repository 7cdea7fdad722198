"""Two independent halves of the data, whose agreement tells how much of a map is signal."""

from __future__ import annotations

import numpy as np

#: sums that are kept for each voxel and half set, see ``OBSERVATION_DTYPE`` in files/observations.py
SUMS = ("counts", "norm", "background", "background_variance", "pixels", "rate", "rate_variance")

KINDS = ("random", "frame", "friedel")

_ODD = ("counts_odd", "norm_odd", "background_odd", "pixels_odd", "rate_odd")


def columns_needed(kind: str) -> tuple:
    """Columns of an observation file that :func:`split` reads for a kind of half sets."""
    return SUMS + (_ODD if kind == "frame" else ())


def split(kind: str, columns: dict, inverted: np.ndarray, rng: np.random.Generator) -> list:
    """Divide observations between half a and half b; the halves add up to the whole.

    Parameters
    ----------
    kind : ``random``: each observation goes to one half by the toss of a coin. ``frame``: every second image against
        the others, an observation has a part in both. ``friedel``: mates that need an inversion to reach the
        asymmetric unit against those that do not.
    columns : name -> (n,) array, the names are those of :func:`columns_needed`
    inverted : (n,) bool, for ``friedel``
    rng : for ``random``; one number is drawn for each observation, so that the size of blocks does not matter

    Returns
    -------
    list of (half, sums) : (n,) bool, True for half b, and (7, n) float64 in the order of ``SUMS``
    """
    whole = np.stack([np.asarray(columns[name], dtype=float) for name in SUMS])
    if kind == "random":
        return [(rng.random(whole.shape[1]) < 0.5, whole)]
    if kind == "friedel":
        return [(inverted, whole)]
    odd = odd_part(columns, whole)
    in_b = np.ones(whole.shape[1], dtype=bool)
    return [(~in_b, whole - odd), (in_b, odd)]


def odd_part(columns: dict, whole: np.ndarray) -> np.ndarray:
    """(7, n) sums from every second image alone.

    Variances are not kept by image: that of the background is shared out by the number of pixels, that of the rate,
    sum of C / c^2, by the number of counts.
    """
    counts, _, _, background_variance, pixels, _, rate_variance = whole
    share_of_pixels = _ratio(columns["pixels_odd"], pixels)
    share_of_counts = _ratio(columns["counts_odd"], counts)
    odd = np.stack(
        [
            columns["counts_odd"],
            columns["norm_odd"],
            columns["background_odd"],
            share_of_pixels * background_variance,
            columns["pixels_odd"],
            columns["rate_odd"],
            share_of_counts * rate_variance,
        ]
    )
    # Fractions of pixels are summed in another order: leave no rounding error behind as the norm of an empty half.
    all_odd = share_of_pixels > 1 - 1e-9
    odd[:, all_odd] = whole[:, all_odd]
    odd[:, share_of_pixels < 1e-9] = 0
    return odd


def _ratio(part, whole) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
