"""What of a model can be refined: named numbers with units and bounds, and tensors that keep the point group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cctbx import sgtbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.tensors import ELEMENTS, six_elements, square_features, symmetric_tensor

#: rms displacements, Å: the lowest; the highest is at least the second, or so many times that of the loosest atom
_LOWEST_SIGMA = 0.01
_HIGHEST_SIGMA = 1.0
_BEYOND_LOOSEST = 1.5
#: what models have where nothing is given, and fits start from where the structure has no displacements, Å
SOME_SIGMA = 0.3
#: correlation lengths, Å: below the first, shorter than a bond, nothing tells them from none
GAMMA_BOUNDS = (1.0, 100.0)
SOME_GAMMA = 10.0

#: a tensor has the symmetry of the point group if turned ones differ by less than this, relative to its largest element
_SYMMETRIC = 1e-6


@dataclass(frozen=True)
class Parameter:
    """A number that can be refined.

    Attributes
    ----------
    name : as in the programs, without the model's name
    value : what the model has, in ``unit``
    unit : ``Å``, ``Å²`` or empty
    lower, upper : bounds, in ``unit``
    start : to start from if nothing is known but the structure
    """

    name: str
    value: float
    unit: str
    lower: float
    upper: float
    start: float


@dataclass(frozen=True, eq=False)
class TensorComponents:
    """The elements of a symmetric tensor in the Cartesian frame that a point group leaves free.

    The others depend on them linearly, so that a tensor of these elements always has the symmetry.

    Attributes
    ----------
    names : of the free elements, some of ELEMENTS
    basis : (6, k) float64, from the free elements to all six
    """

    names: tuple
    basis: np.ndarray

    def tensor(self, values) -> np.ndarray:
        """(3, 3) float64 of the (k,) free elements."""
        return symmetric_tensor(self.basis @ np.asarray(values, dtype=float))

    def six(self, values) -> tuple:
        return tuple(float(x) for x in self.basis @ np.asarray(values, dtype=float))

    def free(self, name: str, six) -> np.ndarray:
        """(k,) float64, the free ones of six elements; DiffuseError if the others do not follow from them."""
        six = np.asarray(six, dtype=float)
        values = six[[ELEMENTS.index(e) for e in self.names]]
        symmetric = self.basis @ values
        if np.abs(symmetric - six).max() > _SYMMETRIC * np.abs(six).max():
            text = ",".join(f"{x:.4g}" for x in symmetric)
            raise DiffuseError(
                f"{name}={','.join(f'{x:.4g}' for x in six)}: the point group of the structure turns it into another "
                f"tensor, so that it cannot be refined; start from {name}={text}"
            )
        return values

    def features(self, q: np.ndarray) -> np.ndarray:
        """(n, k) float64: q T q = features @ values.

        q : (n, 3) float64
        """
        return square_features(q) @ self.basis

    def elements(self, tensor: np.ndarray) -> np.ndarray:
        """(k,) float64, the free elements of a (3, 3) tensor that has the symmetry."""
        return six_elements(tensor)[[ELEMENTS.index(name) for name in self.names]]


def tensor_components(structure: Structure, symmetric: bool) -> TensorComponents:
    """Free elements of a tensor.

    Parameters
    ----------
    symmetric : the point group of the structure must leave it alone; otherwise all six are free
    """
    if not symmetric:
        return TensorComponents(ELEMENTS, np.eye(6))
    constraints = sgtbx.tensor_rank_2_constraints(space_group=structure.space_group, reciprocal_space=True)
    number = constraints.n_independent_params()
    o = structure.orthogonalization
    columns = []
    for k in range(number):
        u_star = constraints.all_params(tuple(float(k == j) for j in range(number)))
        columns.append(six_elements(o @ symmetric_tensor(u_star) @ o.T))
    columns = np.array(columns).T
    chosen: list = []
    for k in range(6):  # the first elements that determine the others
        if np.linalg.matrix_rank(columns[[*chosen, k]], tol=1e-6 * np.abs(columns).max()) > len(chosen):
            chosen.append(k)
    basis = columns @ np.linalg.inv(columns[chosen])
    basis[np.abs(basis) < 1e-12] = 0
    return TensorComponents(tuple(ELEMENTS[k] for k in chosen), basis)


def displacement(
    structure: Structure, components: TensorComponents | None, sigma, V, share: float, suffix: str = ""
) -> list:
    """Parameters of a displacement: sigma, or if there are ``components`` the free elements of V."""
    if components is None:
        return [sigma_parameter(structure, sigma, "sigma" + suffix, share)]
    return displacement_parameters(structure, components, V, "V", suffix, share)


def sigma_parameter(structure: Structure, value: float, name: str = "sigma", share: float = 0.5) -> Parameter:
    """An rms displacement; it starts from the share of the atoms' median U that is given."""
    lower, upper, start = _sigma_limits(structure, share, value)
    return Parameter(name, float(value), "Å", lower, upper, start)


def displacement_parameters(
    structure: Structure, components: TensorComponents, six, name: str = "V", suffix: str = "", share: float = 0.5
) -> list:
    """The free elements of a covariance of displacements."""
    lower, upper, start = _sigma_limits(structure, share, math.sqrt(np.abs(six).max()))
    round_tensor = start**2 * components_of_identity(components)
    values = components.free(name, six)
    return [
        Parameter(
            f"{name}{element}{suffix}",
            float(value),
            "Å²",
            lower**2 if element in ELEMENTS[:3] else -(upper**2),
            upper**2,
            float(first),
        )
        for element, value, first in zip(components.names, values, round_tensor)
    ]


def gamma_parameter(value: float, lower: float = GAMMA_BOUNDS[0]) -> Parameter:
    upper = max(GAMMA_BOUNDS[1], 2 * value)
    lower = min(max(GAMMA_BOUNDS[0], lower), value)
    return Parameter("gamma", float(value), "Å", lower, upper, max(SOME_GAMMA, 2 * lower))


def correlation_parameters(components: TensorComponents, six) -> list:
    """The free elements of a correlation matrix G."""
    sizes = np.linalg.eigvalsh(symmetric_tensor(six))
    lower, upper = min(GAMMA_BOUNDS[0], float(sizes[0])), max(GAMMA_BOUNDS[1], 2 * float(sizes[-1]))
    start = SOME_GAMMA * components_of_identity(components)
    return [
        Parameter(f"G{e}", float(v), "Å", lower if e in ELEMENTS[:3] else -upper, upper, float(first))
        for e, v, first in zip(components.names, components.free("llm.G", six), start)
    ]


def components_of_identity(components: TensorComponents) -> np.ndarray:
    """(k,) float64, the free elements of the unit tensor."""
    return np.array([1.0 if e in ELEMENTS[:3] else 0.0 for e in components.names])


def updated(model: str, parameters, values: Mapping) -> dict:
    """Values of all parameters, by name: those given, and of the rest what the model has.

    Raises
    ------
    DiffuseError
        If a name is none of the model's.
    """
    result = {p.name: p.value for p in parameters}
    for name, value in values.items():
        if name not in result:
            known = ", ".join(result) or "none"
            raise DiffuseError(f"{model}: no parameter {name!r} can be refined; there is {known}")
        result[name] = float(value)
    return result


def _sigma_limits(structure: Structure, share: float, value: float) -> tuple:
    """Bounds that hold the value, and where to start."""
    u = structure.u_iso
    upper = max(_HIGHEST_SIGMA, _BEYOND_LOOSEST * math.sqrt(max(u.max(), 0.0)), 2 * value)
    lower = min(_LOWEST_SIGMA, 0.5 * value)
    median = float(np.median(u))
    start = math.sqrt(share * median) if median > 0 else SOME_SIGMA
    return lower, upper, max(start, 2 * _LOWEST_SIGMA)
