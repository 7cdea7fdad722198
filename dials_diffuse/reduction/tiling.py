"""Panels in tiles for the fast pass: polynomials with a proven error, and which panels they are good for."""

from __future__ import annotations

import logging

import numpy as np

from dials_diffuse.experiment.polynomials import fit_row
from dials_diffuse.kernels.tile_cells import TILE_X, TILE_Y
from dials_diffuse.kernels.tiles import Tiles

logger = logging.getLogger("dials.diffuse.reduction")

#: largest error of a pixel's place on the lattice, in voxels, and relative error of a correction, beyond which the
#: pixels of a tile are taken one by one. Sums are as good as the latter, and mostly ten times better
MAX_SHIFT = 1e-5
MAX_CORRECTION_ERROR = 2e-5
MAX_EXACT = 0.1  # part of the tiles that may be like that; they cost 20 times as much, the row-by-row kernel 3 times


#: takes quadratic polynomials about the middle of a tile to those of x and y from its first pixel
_FROM_CORNER = np.array(
    [
        [1.0, -15.5, -7.5, 15.5**2, 15.5 * 7.5, 7.5**2],
        [0, 1, 0, -2 * 15.5, -7.5, 0],
        [0, 0, 1, 0, -15.5, -2 * 7.5],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
)


def correction_tiles(corrections: np.ndarray) -> tuple:
    """Polynomials of c, 1/c and 1/c², (ty, tx, 3, 6), their largest relative error and the range of c, (ty, tx, 2).

    corrections : (ny, nx) float32; the error is infinite where a correction is not positive
    """
    coefficients, error, limits = [], [], []
    starts = np.arange(0, corrections.shape[1], TILE_X)
    for y in range(0, corrections.shape[0], TILE_Y):
        c = corrections[y : y + TILE_Y].astype(float)
        low = np.minimum.reduceat(c.min(axis=0), starts)
        high = np.maximum.reduceat(c.max(axis=0), starts)
        good = (low > 0) & np.isfinite(high)
        c = np.where((c > 0) & np.isfinite(c), c, 1.0)
        fitted, worst = fit_row(np.stack([c, 1 / c, 1 / (c * c)]), 2)
        relative = (worst / np.abs(fitted[..., 0])).max(axis=1)
        coefficients.append(fitted @ _FROM_CORNER.T)
        error.append(np.where(good, relative, np.inf))
        limits.append(np.stack([low, high], axis=-1))
    return np.array(coefficients), np.array(error), np.array(limits)


def shell_range(shells: np.ndarray) -> np.ndarray:
    """(ty, tx, 2) int64, lowest and highest shell of the tiles; shells : (ny, nx) uint8."""
    rows, columns = np.arange(0, shells.shape[0], TILE_Y), np.arange(0, shells.shape[1], TILE_X)
    ends = [f.reduceat(f.reduceat(shells, rows, axis=0), columns, axis=1) for f in (np.minimum, np.maximum)]
    return np.stack(ends, axis=-1).astype(np.int64)


def least_in_tiles(corrections: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """(ty, tx) float64, the smallest correction in each tile; infinite where all its pixels are bad, (ny, nx) uint8."""
    used = np.where(bad == 0, corrections, np.inf)
    rows, columns = np.arange(0, used.shape[0], TILE_Y), np.arange(0, used.shape[1], TILE_X)
    return np.minimum.reduceat(np.minimum.reduceat(used, rows, axis=0), columns, axis=1).astype(float)


def make_tiles(directions: tuple, corrections: np.ndarray, shells: np.ndarray, voxels: float) -> Tiles:
    """The tiles of one panel.

    directions : of :func:`~dials_diffuse.experiment.polynomials.direction_tiles`
    corrections, shells : (ny, nx) of the panel
    voxels : how far a direction of length 1 reaches on the subdivided lattice, at most
    """
    polynomials, error = directions
    c, relative, limits = correction_tiles(corrections)
    exact = (error * voxels > MAX_SHIFT) | (relative > MAX_CORRECTION_ERROR)
    polynomials = np.ascontiguousarray(polynomials.transpose(0, 2, 3, 1))
    return Tiles(polynomials, c, limits, shell_range(shells), exact.astype(np.uint8))


def why_row_by_row(background, panels: list, directory_fits: bool) -> str:
    """What keeps all panels from the fast pass; empty if nothing does. The place where this is decided, with
    :func:`tiles_of_panel` for single panels; images of floating-point numbers go row by row as well."""
    if any(np.any(rate) for rate in background.rate):
        return "a background is subtracted block by block"
    if any(panel.reading.gain <= 0 for panel in panels):
        return "the gain is not positive"
    if not directory_fits:
        return "the grid is too large for a directory of bricks"
    return ""


def tiles_of_panel(directions: tuple, corrections: np.ndarray, shells: np.ndarray, voxels: float) -> Tiles | None:
    """The tiles of a panel, or None where the polynomials are too often not good enough; arguments as
    :func:`make_tiles`."""
    tiles = make_tiles(directions, corrections, shells, voxels)
    exact = float(tiles.exact.mean())
    logger.debug(
        "Pass over a panel of %d x %d pixels: %.1f %% of the tiles pixel by pixel", *corrections.shape, 100 * exact
    )
    if exact > MAX_EXACT:
        logger.debug("Row by row: too many tiles with an error above %g voxels", MAX_SHIFT)
        return None
    return tiles
