"""Where to end the sum over x^l / l! of the liquid-like motions, x = qᵀVq."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import pdtrc

#: what is left out may be this fraction of exp(x) - 1: sigma and gamma of a fit then change by less than 0.1 %
NEGLIGIBLE = 0.01
#: terms that are computed at most: enough for an rms displacement of 0.9 d_min
MOST_ORDERS = 50


def terms(x, orders: int) -> Iterator:
    """x^l / l! for l = 1 ... orders; x : number or array"""
    term = 1.0
    for order in range(1, orders + 1):
        term = term * x / order
        yield term


def exponential(x, orders: int):
    """Sum over l = 0 ... orders of x^l / l!."""
    return 1 + sum(terms(x, orders))


def missing(x: float, orders):
    """Fraction of exp(x) - 1 beyond the terms 1 ... orders, an integer or an array of them; x : positive."""
    return pdtrc(orders, x) / -np.expm1(-x)


def enough(x: float) -> int:
    """The smallest number of orders that leaves out no more than NEGLIGIBLE, or MOST_ORDERS."""
    return 1 + int(np.count_nonzero(missing(x, np.arange(1, MOST_ORDERS)) > NEGLIGIBLE))


def lack(x: float, orders: int, d_min: float) -> str:
    """What to tell a user whose orders leave out more than NEGLIGIBLE at d_min (Å); empty if they do not."""
    share, needed = missing(x, orders), enough(x)
    if share <= NEGLIGIBLE:
        return ""
    if missing(x, needed) <= NEGLIGIBLE:
        advice = f"llm.orders={needed} is enough"
    else:
        advice = f"there are no more than {MOST_ORDERS}: take a larger d_min, or a smaller displacement"
    return f"llm.orders={orders} leaves out {100 * share:.1f} % of exp(qVq) - 1 at {d_min:.2f} Å; {advice}"
