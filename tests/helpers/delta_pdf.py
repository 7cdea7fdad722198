"""The ΔPDF of a joint normal distribution of displacements, pair by pair, without a transform.

Form factors are sums of Gaussians, displacements and apodisation are Gaussians: so is what each pair contributes.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from cctbx import crystal

from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.factors import gaussian

#: far from its copies; the two domains are 8 Å apart
CELL, GROUP = (24.0, 20.0, 26.0, 90.0, 105.0, 90.0), "P 1 21 1"
AXIS = np.array([0.6, 0.64, 0.48])
DISTANCE = 8.0

#: of a domain, Å
_SITES = np.array([(0.9, 0.1, -0.3), (-0.8, 0.6, 0.2), (0.1, -0.9, 0.5), (-0.2, 0.3, -0.9)])


def two_domains(cell=CELL, group=GROUP):
    """Two domains of four atoms each, residues 1 and 2, and the Cartesian vector from one to the other."""
    unit = crystal.symmetry(unit_cell=cell, space_group_symbol=group).unit_cell()
    first = np.array(unit.orthogonalize((0.3, 0.2, 0.3)))
    sites = np.concatenate([first + _SITES, first + DISTANCE * AXIS - _SITES])
    fractional = [unit.fractionalize(tuple(site)) for site in sites]
    residue = ["   1 "] * 4 + ["   2 "] * 4
    return make_structure(cell, group, list("SSSSSSSS"), fractional, u=0.25, residue=residue), DISTANCE * AXIS


def moving(structure, along: float, apart: bool, axis=AXIS) -> np.ndarray:
    """(n, n, 3, 3) covariance of two domains that move along an axis, along² Å²: apart, or to the same side."""
    domain = np.where(np.char.strip(structure.residue) == "1", 1, -1 if apart else 1)
    return along**2 * np.multiply.outer(np.outer(domain, domain), np.outer(axis, axis))


def pair_delta_pdf(structure, covariance, r, apodisation: float) -> np.ndarray:
    """(m,) ΔPDF at vectors of the sum over pairs of atoms of a molecule, added for all symmetry copies.

    covariance : (n, n, 3, 3), Å², Cartesian frame of the coordinates; its own copies' are turned
    r : (m, 3), Å; apodisation : Å², of the weight exp(-apodisation s²)
    """
    total = np.zeros(len(r))
    terms = [_products(gaussian(a), gaussian(b)) for a, b in itertools.product(structure.types, repeat=2)]
    terms = np.array(terms, dtype=object).reshape(len(structure.types), len(structure.types))
    for rotation in structure.rotations:
        sites = structure.site_cart @ rotation.T
        u = rotation @ structure.u_cart @ rotation.T
        v = rotation @ covariance @ rotation.T
        for i, j in itertools.combinations_with_replacement(range(structure.n_atoms), 2):
            shift = sites[j] - sites[i]
            for exponent, weight in terms[structure.type_index[i], structure.type_index[j]].items():
                still = (exponent / 4 + apodisation) * np.eye(3) + 2 * math.pi**2 * (u[i] + u[j])
                moved = still - 4 * math.pi**2 * v[i, j]
                weight = weight * structure.occupancy[i] * structure.occupancy[j]
                for x in (r - shift, r + shift) if i != j else (r,):  # the pair (j, i) is the inverse vector
                    total += weight * (_transformed(moved, x) - _transformed(still, x))
    return total


def _products(first, second) -> dict:
    """Exponent -> weight of the product of two sums of Gaussians."""
    parts = [[*zip(t.array_of_a(), t.array_of_b())] + ([(t.c(), 0.0)] if t.c() else []) for t in (first, second)]
    found: dict = {}
    for (a, b), (c, d) in itertools.product(*parts):
        key = round(b + d, 9)
        found[key] = found.get(key, 0.0) + a * c
    return found


def _transformed(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Fourier transform of exp(-sᵀMs) at x."""
    inverse = np.linalg.inv(matrix)
    return math.sqrt(math.pi**3 * np.linalg.det(inverse)) * np.exp(-(math.pi**2) * np.sum(x @ inverse * x, axis=1))


def without_isotropic(function, r: np.ndarray, r_max: float, n_radii: int = 57, n_directions: int = 80) -> np.ndarray:
    """(m,) values of a function of vectors less its mean over all directions, which is interpolated in |r|."""
    k = np.arange(n_directions) + 0.5
    z, phi = 1 - 2 * k / n_directions, math.pi * (1 + 5**0.5) * k
    sphere = np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z], axis=1)
    radii = np.linspace(0, r_max, n_radii)
    means = function((radii[:, None, None] * sphere).reshape(-1, 3)).reshape(n_radii, -1).mean(axis=1)
    return function(r) - np.interp(np.linalg.norm(r, axis=1), radii, means)
