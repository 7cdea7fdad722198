"""Arrays over a panel as polynomials in tiles of pixels, with the largest error over all pixels of each."""

from __future__ import annotations

from functools import cache

import numpy as np

from dials_diffuse.kernels.tile_cells import TILE_X, TILE_Y


def _powers(order: int) -> list:
    return [(n - j, j) for n in range(order + 1) for j in range(n + 1)]


@cache
def _basis(height: int, width: int, order: int) -> tuple:
    """(terms, pixels) polynomials at the pixels of a tile about its middle, and their pseudo-inverse."""
    y, x = np.mgrid[:height, :width].astype(float)
    x, y = x.ravel() - 0.5 * (TILE_X - 1), y.ravel() - 0.5 * (TILE_Y - 1)
    basis = np.array([x**i * y**j for i, j in _powers(order)])
    return basis, np.linalg.pinv(basis)


def fit_row(values: np.ndarray, order: int) -> tuple:
    """Least-squares polynomials of one row of tiles.

    values : (m, height, nx) float64; order : 2 or 3

    Returns
    -------
    coefficients : (tiles, m, terms) float64, of positions about the middle of a whole tile
    error : (tiles, m) float64, largest over all pixels of a tile
    """
    m, height, nx = values.shape
    whole = nx // TILE_X
    parts = [values[:, :, : whole * TILE_X].reshape(m, height, whole, TILE_X)]
    if nx % TILE_X:
        parts.append(values[:, :, whole * TILE_X :].reshape(m, height, 1, nx % TILE_X))
    coefficients, error = [], []
    for part in parts:
        basis, inverse = _basis(height, part.shape[3], order)
        flat = part.transpose(2, 0, 1, 3).reshape(part.shape[2] * m, height * part.shape[3])
        fitted = flat @ inverse
        error.append(np.abs(fitted @ basis - flat).max(axis=1, initial=0).reshape(-1, m))
        coefficients.append(fitted.reshape(-1, m, len(basis)))
    return np.concatenate(coefficients), np.concatenate(error)


def direction_tiles(directions: np.ndarray) -> tuple:
    """Polynomials of the directions to the pixels of a panel, (ty, tx, 3, 10), and their largest errors (ty, tx).

    directions : (3, ny, nx) unit vectors; the errors are lengths of differences, at most
    """
    rows = [fit_row(directions[:, y : y + TILE_Y], 3) for y in range(0, directions.shape[1], TILE_Y)]
    return np.array([c for c, _ in rows]), np.linalg.norm([e for _, e in rows], axis=-1)
