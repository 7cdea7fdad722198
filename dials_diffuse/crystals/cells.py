"""Unit cells of crystals, and clusters of them."""

from __future__ import annotations

import numpy as np
from cctbx import uctbx
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def own_cells(files) -> list:
    """Unit cell of every experiment of some observation files, six numbers each, in Å and degrees.

    The grid of a file has the mean cell of its crystals; the orientation of a crystal has its own.
    """
    return [
        file.grid.unit_cell
        if experiment.orientation is None or len(file.experiments) == 1
        else cell_of(experiment.orientation)
        for file in files
        for experiment in file.experiments
    ]


def cell_of(orientation, matrix=None) -> tuple:
    """Unit cell that belongs to a matrix A (9 numbers, 1/Å), after Miller indices changed to hkl @ ``matrix``."""
    a = np.array(orientation, dtype=float).reshape(3, 3)
    if matrix is not None:
        a = a @ np.linalg.inv(matrix).T
    real = np.linalg.inv(a)
    metric = real @ real.T
    return uctbx.unit_cell(metrical_matrix=metric[(0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)].tolist()).parameters()


def reindexed_cell(cell, matrix) -> tuple:
    """Unit cell after Miller indices changed to hkl @ ``matrix``; cell : six numbers."""
    return cell_of(np.array(uctbx.unit_cell(tuple(cell)).fractionalization_matrix()).reshape(3, 3).T, matrix)


def mean_cell(cells) -> tuple:
    """Of some cells; exactly that which they all have."""
    cells = np.array(cells, dtype=float)
    return tuple((cells[0] + np.mean(cells - cells[0], axis=0)).tolist())


def cell_distances(cells) -> np.ndarray:
    """(n, n) float64, largest relative difference of lengths, or of angles in units of 100 degrees."""
    cells = np.array(cells, dtype=float)
    difference = np.abs(cells[:, None] - cells[None])
    difference[..., :3] /= (cells[:, None, :3] + cells[None, :, :3]) / 2
    difference[..., 3:] /= 100
    return np.max(difference, axis=2)


def cell_clusters(cells, tolerance: float) -> np.ndarray:
    """(n,) int, number of the cluster of each cell from 0, the largest first; among equals that of the first cell.

    The mean distance between the cells of a cluster is below the tolerance (average linkage).

    cells : (n, 6), Å and degrees
    """
    if len(cells) < 2:
        return np.zeros(len(cells), dtype=int)
    distances = squareform(cell_distances(cells), checks=False)
    return by_size(fcluster(linkage(distances, method="average"), tolerance, criterion="distance"))


def by_size(labels) -> np.ndarray:
    """(n,) int, clusters numbered from 0, the largest first; among equals the one that comes first."""
    found, first, where, count = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -count))
    rank = np.empty(len(found), dtype=int)
    rank[order] = np.arange(len(found))
    return rank[where.reshape(-1)]
