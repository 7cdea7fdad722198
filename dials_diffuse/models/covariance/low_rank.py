"""The pair sum of a covariance with few modes: phonons of growing order, each a sum over the atoms."""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.models.covariance.motion import JointMotion, flattened

#: numbers in the table of projections that are in memory together
_TERMS = 1 << 22


def modes_of(covariance: np.ndarray, neglect: float) -> np.ndarray:
    """(k, g, 3) or (k, g) float64, Å: V = sum over modes of v vᵀ, but for a part below ``neglect`` in Å².

    Those with the smallest eigenvalues are left out, as many as together have less than ``neglect``.

    Parameters
    ----------
    covariance : (g, g) or (g, g, 3, 3), Å²
    """
    values, vectors = np.linalg.eigh(flattened(covariance))
    keep = np.cumsum(np.maximum(values, 0)) > neglect  # in ascending order
    scaled = (vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0))).T
    return scaled if covariance.ndim == 2 else scaled.reshape(len(scaled), -1, 3)


def main_modes(modes: np.ndarray, neglect: float) -> np.ndarray:
    """The fewest modes with the V of those given, but for a part below ``neglect`` in Å².

    Parameters
    ----------
    modes : (k, g, 3) or (k, g) float64, Å; they need not be orthogonal, and the matrix V is not made

    Returns
    -------
    (m, g, 3) or (m, g) float64, Å, orthogonal
    """
    _, sizes, vectors = np.linalg.svd(modes.reshape(len(modes), -1), full_matrices=False)
    keep = np.cumsum(sizes[::-1] ** 2)[::-1] > neglect  # what is left out has the smallest sizes
    return (vectors[keep] * sizes[keep, None]).reshape(-1, *modes.shape[1:])


def checked_modes(name: str, values, n: int) -> np.ndarray:
    """Modes of n bodies as (k, n) float64, isotropic, or (k, n, 3) float64, in Å.

    Parameters
    ----------
    name : of the parameter, for messages
    values : (k, n), (k, 3n) with x, y, z of each body together, or (k, n, 3)

    Raises
    ------
    DiffuseError
        If the shape is another, a value is no finite number, or all are 0.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise DiffuseError(f"{name}: numbers are needed, not {values.dtype}")
    values = values.astype(float)
    if values.ndim == 2 and values.shape[1] == 3 * n:
        values = values.reshape(-1, n, 3)
    if values.ndim not in (2, 3) or len(values) == 0 or values.shape[1:] not in ((n,), (n, 3)):
        raise DiffuseError(f"{name}: shape {values.shape}; modes of {n} bodies need (k, {n}) or (k, {3 * n})")
    if not np.all(np.isfinite(values)):
        raise DiffuseError(f"{name}: has values that are not finite")
    if not values.any():
        raise DiffuseError(f"{name}: nothing moves, all values are 0")
    return values


def orders_needed(x: float, tolerance: float) -> int:
    """Smallest L with sum over l > L of x^l / l! below ``tolerance`` (exp(x) - 1): so much is missing at most."""
    term, missing, order = 1.0, math.expm1(x), 0
    limit = tolerance * missing
    while missing > limit:
        order += 1
        term *= x / order
        missing -= term
    return max(order, 1)


def number_of_sums(modes: int, orders: int) -> float:
    """Sums over the atoms for each point: products of up to ``orders`` of the modes."""
    return float(math.comb(modes + orders, orders) - 1)


def low_rank_form(q: np.ndarray, a: np.ndarray, modes: np.ndarray, orders: int) -> np.ndarray:
    """Sum over l = 1 ... orders of 1/l! Re sum_ij a_i conj(a_j) (q V_ij q)^l for V = sum over modes of v vᵀ.

    (sum_k x_k y_k)^l / l! is the sum over powers n_1 + n_2 + ... = l of the products of x_k^n_k y_k^n_k / n_k!, so that
    each product of modes is one sum over the atoms, squared.

    Parameters
    ----------
    q : (m, 3) float64, 1/Å
    a : (m, g) complex128, amplitudes with Debye-Waller factors
    modes : (k, g, 3), or (k, g) for isotropic displacements, float64, Å

    Returns
    -------
    (m,) float64

    Source: docs/theory.md, covariance
    """
    isotropic = modes.ndim == 2
    result = np.zeros(len(q))
    rows = max(1, _TERMS // max(modes.shape[0] * modes.shape[1], 1))
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        if isotropic:  # (|q| v) (|q| v) is the same as q 1 q times v v
            x = np.linalg.norm(q[part], axis=1)[None, :, None] * modes[:, None, :]
        else:
            x = np.einsum("mc,kgc->kmg", q[part], modes)
        result[part] = _products(a[part], x, 0, 0, 1.0, orders)
    return result


def low_rank_sum(motion: JointMotion, s: np.ndarray, table: str, modes: np.ndarray, orders: int) -> np.ndarray:
    """:func:`low_rank_form` of the bodies of a motion at s, (m, 3) float64 in 1/Å; (m,) float64, electrons²."""
    result = np.empty(len(s))
    block = max(1, _TERMS // motion.structure.n_atoms)
    for start in range(0, len(s), block):
        part = slice(start, start + block)
        result[part] = low_rank_form(2 * math.pi * s[part], motion.amplitudes(s[part], table), modes, orders)
    return result


def _products(product, x, first: int, repeats: int, weight: float, left: int):
    """Squares of the sums of all products that go on from one with mode ``first`` as its last, ``repeats`` times."""
    total = 0.0
    for k in range(first, len(x)):
        again = repeats + 1 if k == first else 1
        longer = product * x[k]
        amplitude = longer.sum(axis=1)
        share = weight / again
        total = total + share * (amplitude.real**2 + amplitude.imag**2)
        if left > 1:
            total = total + _products(longer, x, k, again, share, left - 1)
    return total
