"""What rigid bodies scatter when they move: amplitudes of their motions, and the terms of single atoms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline

from dials_diffuse.models.lattice_dynamics.body_lattice import CrystalBodies
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.envelope import FlatSolvent, displaced_solvent
from dials_diffuse.structure.factors import FLAT, form_factors
from dials_diffuse.structure.tensors import six_elements, square_features
from dials_diffuse.structure.tls import rigid_motions
from dials_diffuse.structure.transform import transform_at

#: numbers of a table of atoms and points in memory together
_TERMS = 1 << 22
#: nodes in |s|² of what round atoms scatter, between which a spline follows it
_NODES = 1024


def amplitudes(bodies: CrystalBodies, s: np.ndarray, table: str, solvent: FlatSolvent | None = None) -> np.ndarray:
    """Change of the structure factor by the coordinates of all bodies: q F and X x q of each.

    F and X are the transforms of a body's density, and of the density times the distance from its centre, with Debye-
    Waller factors.

    Parameters
    ----------
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure
    table : of form factors
    solvent : that bodies displace: their density is less by this; None: vacuum

    Returns
    -------
    (m, d) complex128, electrons for coordinates in Å
    """
    n, number, m = bodies.n_atoms, bodies.n_bodies, len(s)
    molecule, labels = bodies.content.take(np.arange(n)), bodies.labels[:n]
    turned = (s @ bodies.turns).reshape(-1, 3)  # each copy sees the waves turned
    scatterers = [[(molecule.take(labels == b), table, 1.0)] for b in range(number)]
    if solvent is not None:
        for own, points in zip(scatterers, displaced_solvent(molecule, labels, solvent)):
            own.append((points, FLAT, -1.0))
    phases = np.exp(2j * np.pi * (s @ bodies.centres.T))
    result = np.empty((m, len(bodies.frames), 6), dtype=np.complex128)
    for b, parts in enumerate(scatterers):
        f = sum(sign * _moments(part, bodies.centres[b], turned, kind) for part, kind, sign in parts)
        q = 2 * np.pi * turned
        motions = np.concatenate([q * f[:, :1], np.cross(f[:, 1:], q)], axis=1) @ bodies.frames[b]
        own = np.arange(len(bodies.turns)) * number + b
        result[:, own] = motions.reshape(len(own), m, 6).transpose(1, 0, 2) * phases[:, own, None]
    return result.reshape(m, -1)[:, bodies.active]


def _moments(part: Structure, centre: np.ndarray, s: np.ndarray, table: str) -> np.ndarray:
    """(m, 4) complex128, transforms of the density, and of it times x, y, z from the centre, where the phase is 0."""
    offset = part.site_cart - centre
    placed = replace(part, site_frac=offset @ np.linalg.inv(part.orthogonalization).T)
    weights = [part.occupancy, *(part.occupancy * x for x in offset.T)]
    return np.stack([transform_at(replace(placed, occupancy=w), s, table) for w in weights], axis=1)


def own_terms(bodies: CrystalBodies, s: np.ndarray, table: str) -> np.ndarray:
    """What each body of the asymmetric unit contributes to the atoms' own terms, f² exp(-qᵀUq) qᵀVq, by its <w wᵀ>.

    V is the displacement of an atom by its body, B <w wᵀ> Bᵀ. The terms of all copies are together, since mates have
    the same <w wᵀ>.

    Parameters
    ----------
    s : (m, 3) float64, 1/Å, Cartesian frame of the structure

    Returns
    -------
    (m, b, 21) float64, b bodies of the asymmetric unit, by elements i >= j of <w wᵀ> in the order of
    np.tril_indices(6), of which ij and ji change together; sum over bodies and elements: electrons² per cell
    """
    n, number = bodies.n_atoms, bodies.n_bodies
    molecule, labels = bodies.content.take(np.arange(n)), bodies.labels[:n]
    modes = rigid_motions(molecule.site_cart - bodies.centres[labels]) @ bodies.frames[labels]
    rows, columns = np.tril_indices(6)
    products = np.where(rows == columns, 0.5, 1.0) * (
        modes[:, :, None, rows] * modes[:, None, :, columns] + modes[:, :, None, columns] * modes[:, None, :, rows]
    )
    by_element = six_elements(np.moveaxis(products, 3, 1)) * molecule.occupancy[:, None, None] ** 2  # (n, 21, 6)
    result = np.zeros((len(s), number, 21))
    for b in range(number):
        for chosen, add in ((molecule.isotropic, _round_terms), (~molecule.isotropic, _terms)):
            mine = np.flatnonzero((labels == b) & chosen)
            if len(mine):
                add(molecule.take(mine), by_element[mine].reshape(len(mine), -1), s, bodies.turns, table, result[:, b])
    return result


def _terms(atoms: Structure, by_element: np.ndarray, s: np.ndarray, turns, table: str, result: np.ndarray) -> None:
    """Add those of all copies, atom by atom."""
    f2 = form_factors(atoms, np.linalg.norm(s, axis=1), table) ** 2
    u = six_elements(atoms.u_cart).T
    step = max(1, _TERMS // atoms.n_atoms)
    for first in range(0, len(s), step):
        rows = slice(first, first + step)
        weights = f2[:, rows][atoms.type_index].T
        for turn in turns:
            features = square_features(2 * np.pi * s[rows] @ turn)
            sums = (weights * np.exp(-features @ u)) @ by_element
            result[rows] += np.einsum("mkf,mf->mk", sums.reshape(len(sums), -1, 6), features)


def _round_terms(atoms: Structure, by_element: np.ndarray, s: np.ndarray, turns, table: str, result) -> None:
    """Add those of all copies; of round atoms the factors depend on |s|² alone."""
    s2 = np.sum(s**2, axis=1)
    nodes = np.linspace(0, max(s2.max(initial=0.0), 1e-6), _NODES)
    f2 = form_factors(atoms, np.sqrt(nodes), table)[atoms.type_index] ** 2
    weights = f2 * np.exp(-4 * np.pi**2 * np.outer(atoms.u_iso, nodes))
    follow = CubicSpline(nodes, weights.T @ by_element)
    step = max(1, _TERMS // by_element.shape[1])
    for first in range(0, len(s), step):
        rows = slice(first, first + step)
        features = sum(square_features(2 * np.pi * s[rows] @ turn) for turn in turns)
        sums = follow(s2[rows])
        result[rows] += np.einsum("mkf,mf->mk", sums.reshape(len(sums), -1, 6), features)
