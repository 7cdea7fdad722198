"""Models the slow, obvious way: pair sums over atoms, and where to compare them."""

from __future__ import annotations

import numpy as np

from dials_diffuse.kernels.pair_sum import pair_sum, pair_sum_isotropic
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.transform import s_squared

V = (0.05, 0.03, 0.04, 0.01, -0.008, 0.012)
G = (3.0, 4.0, 5.0, 0.5, -0.4, 0.3)


def some_voxels(grid, n=60, seed=0):
    """Indices of random voxels inside 1/d_min, (n, 3)."""
    index = np.argwhere(s_squared(grid) <= grid.d_min**-2) - np.array(grid.extent)
    return index[np.random.default_rng(seed).choice(len(index), n, replace=False)]


def at(volume, grid, index):
    return volume[tuple((index + np.array(grid.extent)).T)]


def vectors(structure, grid, index):
    """s of voxels in the structure's Cartesian frame, (n, 3), 1/Å."""
    return (index / np.array(grid.subdivide)) @ np.linalg.inv(structure.orthogonalization)


def oracle(structure, s, covariance):
    """The pair sum; ``covariance``: (n, n) or (n, n, 3, 3), Å²."""
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T * structure.occupancy
    out = np.empty(len(s))
    engine = pair_sum if covariance.ndim == 4 else pair_sum_isotropic
    engine(2 * np.pi * s, structure.site_cart, f.astype(complex), covariance, out)
    return out


def own_displacements(structure):
    """(n, n, 3, 3) covariance of atoms that move by themselves."""
    n = structure.n_atoms
    covariance = np.zeros((n, n, 3, 3))
    covariance[np.arange(n), np.arange(n)] = structure.u_cart
    return covariance


def per_copy(structure, s, covariance_of):
    """Sum over symmetry copies of the pair sum with each copy's covariance."""
    content = structure.expand()
    copies = [content.take(content.copy == number) for number in np.unique(content.copy)]
    return sum(oracle(copy, s, covariance_of(copy, rotation)) for copy, rotation in zip(copies, turns(structure)))


def turns(structure):
    """Cartesian rotations of the operators of the space group."""
    o = structure.orthogonalization
    return [o @ np.array(op.r().as_double()).reshape(3, 3) @ np.linalg.inv(o) for op in structure.space_group]


def close(values, expected, tolerance):
    """Error below a fraction of the rms expected value."""
    assert np.all(np.isfinite(values))
    assert np.abs(values - expected).max() < tolerance * np.sqrt(np.mean(expected**2))
