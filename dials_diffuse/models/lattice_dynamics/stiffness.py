"""Stiffnesses of contacts as a function of logarithms: positive definite whatever their values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, permutations

import numpy as np
from scipy.linalg import expm, logm

from dials_diffuse.checks import choice
from dials_diffuse.models.prior import Prior

#: how many numbers: one for all contacts; one for each; its translations and its rotations apart; all of them
STIFFNESSES = ("overall", "by_contact", "apart", "full")
#: names of the six relative motions of two bodies at a contact, translations and rotations
MOTIONS = ("x", "y", "z", "rx", "ry", "rz")


@dataclass(frozen=True)
class LogParameter:
    """One logarithm.

    Attributes
    ----------
    name : the number of its contact at the end, from 1
    contact : its contact, from 0; None: all
    direction : (6, 6) float64, symmetric, of Frobenius norm 1 or, of several motions alike, with 1 on the diagonal
    """

    name: str
    contact: int | None
    direction: np.ndarray


class Stiffnesses:
    """K_c = R_c exp(S_c) R_c, R_c the root of the geometric stiffness of a contact, S_c linear in the parameters.

    All S = 0 is the geometric stiffness. The eigenvalues of S_c are the logarithms of the ratios of both along the
    directions in which both are diagonal. They, and so the sum of squares of S_c, are the same in all units of length
    and rotation and for all reference points.

    Parameters
    ----------
    geometries : ContactGeometry of each contact
    kind : one of STIFFNESSES

    Attributes
    ----------
    parameters : tuple of p LogParameter; those of ``full`` are coordinates of unit length: the square of the Frobenius
        norm of all S is the sum of their squares
    """

    def __init__(self, geometries, kind: str):
        choice("lattice_dynamics.stiffness", kind, STIFFNESSES)
        self._geometries = tuple(geometries)
        self.parameters = tuple(_parameters(self._geometries, kind))
        self._roots = []
        for geometry in self._geometries:
            values, vectors = np.linalg.eigh(geometry.geometric)
            self._roots.append((vectors * np.sqrt(values)) @ vectors.T)

    @cached_property
    def own(self) -> list:
        """For each contact (m,) int64, the parameters that change it."""
        return [
            np.array([i for i, p in enumerate(self.parameters) if p.contact in (None, c)], dtype=np.int64)
            for c in range(len(self._geometries))
        ]

    @cached_property
    def prior(self) -> Prior | None:
        """Sum over contacts of |S|², of a common factor of all stiffnesses apart; None for that factor alone."""
        if self.parameters[0].contact is None:
            return None
        metric = np.array([np.sum(p.direction**2) for p in self.parameters])
        level = np.array([np.trace(p.direction) for p in self.parameters]) / metric
        return Prior(metric, level[None])

    def logarithms(self, values) -> list:
        """(6, 6) float64, S of each contact."""
        return [sum((values[i] * self.parameters[i].direction for i in own), np.zeros((6, 6))) for own in self.own]

    def matrices(self, values) -> list:
        """(6, 6) float64, K of each contact along its axes."""
        return [root @ expm(s) @ root for root, s in zip(self._roots, self.logarithms(values))]

    def derivatives(self, values) -> list:
        """(m, 6, 6) float64 for each contact, dK by the m parameters that change it.

        Source: Daleckii & Krein 1965, Amer. Math. Soc. Transl. 47, 1: in the axes of S an element of dexp is that of dS
        times the divided difference of exp at both eigenvalues
        """
        result = []
        for root, s, own in zip(self._roots, self.logarithms(values), self.own):
            sizes, axes = np.linalg.eigh(s)
            turned = axes.T @ self._directions(own) @ axes
            half = np.subtract.outer(sizes, sizes) / 2
            slopes = np.exp(np.add.outer(sizes, sizes) / 2) * np.sinc(half * 1j / np.pi).real  # sinh(x) / x
            result.append(root @ axes @ (slopes * turned) @ axes.T @ root)
        return result

    def second(self, values, gradients) -> np.ndarray:
        """(p, p), sum over contacts of tr(G d²K); gradients : (6, 6) G of each contact, symmetric"""
        total = np.zeros((len(self.parameters),) * 2)
        for root, s, own, gradient in zip(self._roots, self.logarithms(values), self.own, gradients):
            sizes, axes = np.linalg.eigh(s)
            turned = axes.T @ self._directions(own) @ axes
            weights = (axes.T @ root @ gradient @ root @ axes)[:, None, :] * _second_differences(sizes)
            forms = 2 * np.einsum("ikj,qkj->qik", weights, turned)
            total[np.ix_(own, own)] += turned.reshape(len(own), -1) @ forms.reshape(len(own), -1).T
        return total

    def _directions(self, own: np.ndarray) -> np.ndarray:
        return np.array([self.parameters[i].direction for i in own])

    def values_of(self, matrices) -> np.ndarray:
        """(p,) float64, the parameters of stiffnesses, of what lies between the parameters the nearest."""
        wanted = []
        for root, k in zip(self._roots, matrices):
            inverse = np.linalg.inv(root)
            wanted.append(logm(inverse @ k @ inverse).real)
        columns = np.zeros((len(wanted), 36, len(self.parameters)))
        for c, own in enumerate(self.own):
            for i in own:
                columns[c, :, i] = self.parameters[i].direction.reshape(-1)
        columns = columns.reshape(-1, len(self.parameters))
        return np.linalg.lstsq(columns, np.array(wanted).reshape(-1), rcond=None)[0]


def _second_differences(values: np.ndarray) -> np.ndarray:
    """(n, n, n) float64, second divided differences of exp at three of n values, which may be the same.

    Source: Opitz 1964, Z. angew. Math. Mech. 44, T52: they stand in the corner of exp of a matrix with two diagonals
    """
    triples = np.array(list(combinations_with_replacement(range(len(values)), 3)))
    matrices = np.zeros((len(triples), 3, 3))
    matrices[:, range(3), range(3)] = values[triples]
    matrices[:, [0, 1], [1, 2]] = 1.0
    corners = expm(matrices)[:, 0, 2]
    result = np.empty((len(values),) * 3)
    for order in permutations(range(3)):
        result[tuple(triples[:, order].T)] = corners
    return result


def _parameters(geometries, kind: str) -> list:
    if kind == "overall":
        return [LogParameter("log_all", None, np.eye(6))]
    found = []
    for c, geometry in enumerate(geometries):
        if kind == "by_contact":
            found.append(LogParameter(f"log_{c + 1}", c, np.eye(6)))
        elif kind == "apart":
            found.append(LogParameter(f"log_t_{c + 1}", c, np.diag([1.0, 1, 1, 0, 0, 0])))
            found.append(LogParameter(f"log_r_{c + 1}", c, np.diag([0.0, 0, 0, 1, 1, 1])))
        else:
            found += _all_of(c, geometry.signs)
    return found


def _all_of(contact: int, signs: np.ndarray) -> list:
    """Of a contact with an axis of symmetry only what has it."""
    found = []
    for i, j in zip(*np.triu_indices(6)):
        if signs[i] == signs[j]:
            direction = np.zeros((6, 6))
            direction[i, j] = direction[j, i] = 1.0 if i == j else 0.5**0.5
            found.append(LogParameter(f"log_{MOTIONS[i]}_{MOTIONS[j]}_{contact + 1}", contact, direction))
    return found
