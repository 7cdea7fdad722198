"""Problems of all pairs of groups, from plain loops."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.distance import cdist

from dials_diffuse.fitting.linear import Background, Projection
from dials_diffuse.fitting.pairs.pair_objective import PairObjective
from dials_diffuse.models.covariance.group_factory import group_covariance
from dials_diffuse.structure.factors import form_factors
from helpers.structures import random_structure

CELL = (14.0, 15.0, 16.0, 80.0, 95.0, 107.0)
SCALE = 0.02


def random_covariance(n, rng, size=0.1):
    root = rng.normal(size=(n, n + 2))
    v = root @ root.T
    return size * v / np.trace(v) * n


def by_hand(structure, s, v):
    """The pair sum in P 1 of atoms that have nothing but V: plain loops."""
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index]
    q = 2 * math.pi * s
    x = np.sum(q**2, axis=1)
    total = np.zeros(len(s))
    for i, site in enumerate(structure.site_cart):
        for j, other in enumerate(structure.site_cart):
            phase = np.cos(q @ (site - other)) * np.exp(-0.5 * x * (v[i, i] + v[j, j]))
            total += f[i] * f[j] * phase * np.expm1(x * v[i, j])
    return total


def tensors_by_hand(structure, s, v):
    """The pair sum over all copies of the molecule, with tensors: <|F|²> - |<F>|² of a normal distribution."""
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index]
    total = np.zeros(len(s))
    for turn in structure.rotations:
        q = 2 * math.pi * s @ turn
        for i, site in enumerate(structure.site_cart):
            for j, other in enumerate(structure.site_cart):
                own = 0.5 * np.einsum("na,ab,nb->n", q, v[i, i] + v[j, j], q)
                both = np.einsum("na,ab,nb->n", q, v[i, j], q)
                total += f[i] * f[j] * np.cos(q @ (site - other)) * np.exp(-own) * np.expm1(both)
    return total


class Case:
    """A problem of few atoms with data, from loops, with a background that splines can follow."""

    def __init__(self, elements="CNOS", n=400, noise=0.0, tensor=False, background=6, symbol="P 1", d_min=1.4, seed=0):
        cell = CELL if symbol == "P 1" else (14.0, 15.0, 16.0, 90.0, 90.0, 90.0)
        atoms = random_structure(symbol, cell, elements=elements, radius=3.0, seed=seed)
        self.structure = atoms.without_displacements()
        rng = np.random.default_rng(seed)
        s = rng.normal(size=(n, 3))
        self.s = s / np.linalg.norm(s, axis=1)[:, None] * rng.uniform(0.05, 1 / d_min, n)[:, None]
        g = len(elements)
        distance = cdist(self.structure.site_cart, self.structure.site_cart)
        self.prior = 0.1 * np.exp(-distance / 4)
        if tensor:
            flat = random_covariance(3 * g, rng)
            self.truth = flat.reshape(g, 3, g, 3).transpose(0, 2, 1, 3)
            self.prior = self.prior[:, :, None, None] * np.diag([1.1, 1.0, 0.9])
            clean = tensors_by_hand(self.structure, self.s, self.truth)
        else:
            self.truth = 0.5 * self.prior + random_covariance(g, rng, 0.06)
            clean = by_hand(self.structure, self.s, self.truth)
        size = np.linalg.norm(self.s, axis=1)
        self.sigma = (noise or 0.01) * SCALE * clean.std()
        self.values = SCALE * clean + 3 - 2 * size + size**3 + (noise > 0) * self.sigma * rng.normal(size=n)
        self.work = np.ones(n, dtype=bool)
        self.weights = np.full(n, self.sigma**-2.0)
        self.background = Background(size, background)
        self.groups = group_covariance(self.structure, np.arange(g), self.s, adp="free", tensor=tensor, tolerance=1e-10)

    def objective(self, scale=None, work=None, **options):
        work = self.work if work is None else work
        projection = Projection(self.values[work], self.weights[work], self.background.at(work), scale)
        return PairObjective(
            self.groups, projection, self.weights, work, self.prior, background=self.background, **options
        )
