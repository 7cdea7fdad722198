"""A model prepared for refinement: its intensity at fixed voxels as a function of its parameters, with derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.prior import Prior
from dials_diffuse.models.refinable import Parameter, TensorComponents
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.structure.crystal import Structure


class Prepared(ABC):
    """Intensity at n voxels as a function of p parameters.

    Subclasses have the attribute ``parameters``, a tuple of p Parameter in the order of all arrays of values here;
    ``origin``, the model they were made of, and ``structure``. ``means``: is the intensity averaged over voxels?
    ``groups``: the GroupCovariance by whose covariances it can be derived, if there is one. ``prior``: what holds
    parameters that data may leave undetermined near 0, if anything does.

    Intensities are in electrons² per unit cell. They are smooth functions of all values between the bounds whose
    tensors are positive definite, and mostly beyond.
    """

    origin: object
    structure: Structure
    parameters: tuple[Parameter, ...]
    means: bool = False
    groups: object = None
    prior: Prior | None = None

    @property
    def names(self) -> tuple:
        return tuple(p.name for p in self.parameters)

    def intensity(self, values) -> np.ndarray:
        """(n,) float64; values : (p,) float64"""
        return self.jacobian(values)[0]

    @abstractmethod
    def jacobian(self, values) -> tuple:
        """Intensity, (n,), and its derivatives by the parameters, (n, p) float64."""

    @abstractmethod
    def second(self, values, weights) -> np.ndarray:
        """(p, p) float64, sum over voxels of weights times the second derivatives of the intensity.

        weights : (n,) float64
        """

    def model(self, values):
        """The model that has these values.

        Raises
        ------
        DiffuseError
            If they make no model.
        """
        return self.origin.with_values(self.structure, dict(zip(self.names, values)))

    def split(self, values) -> list:
        """(part, its own values) pairs: the parts of a sum of models; one model is its only part."""
        return [(self, values)]

    @cached_property
    def tensors(self) -> list:
        """(slice of the parameters, TensorComponents) of each tensor among them."""
        return []

    def _checked(self, values) -> np.ndarray:
        values = np.asarray(values, dtype=float)
        if values.shape != (len(self.parameters),):
            raise DiffuseError(f"{len(self.parameters)} values are needed ({', '.join(self.names)}), got {values}")
        return values


class Fixed(Prepared):
    """A model without parameters at the voxels of a grid."""

    def __init__(self, model, structure: Structure, grid: MapGrid, index: np.ndarray, executor: Executor = SERIAL):
        self.origin, self.structure, self.parameters = model, structure, ()
        self._values = intensity_of(model, structure, grid, executor).reshape(-1)[grid.key(index)]

    def jacobian(self, values) -> tuple:
        self._checked(values)
        return self._values.copy(), np.zeros((len(self._values), 0))

    def second(self, values, weights) -> np.ndarray:
        return np.zeros((0, 0))


class Averaged(Prepared):
    """The mean of a model over voxels that symmetry makes equal, but not its intensity."""

    def __init__(self, inner: Prepared, copies: int):
        self.origin, self.structure, self.parameters = inner.origin, inner.structure, inner.parameters
        self._inner, self._copies, self.means, self.prior = inner, copies, inner.means, inner.prior

    @cached_property
    def tensors(self) -> list:
        return self._inner.tensors

    def jacobian(self, values) -> tuple:
        intensity, jacobian = self._inner.jacobian(values)
        n = len(intensity) // self._copies
        mean = intensity.reshape(self._copies, n).mean(axis=0)
        return mean, jacobian.reshape(self._copies, n, -1).mean(axis=0)

    def second(self, values, weights) -> np.ndarray:
        return self._inner.second(values, np.tile(weights, self._copies) / self._copies)


def intensity_of(model, structure: Structure, grid: MapGrid, executor: Executor) -> np.ndarray:
    """The intensity of a model on a grid, in blocks by an executor if the model has such."""
    if model.in_blocks:
        return model.intensity(structure, grid, executor)
    return model.intensity(structure, grid)


def prepare(model, structure: Structure, grid: MapGrid, index, means: bool = False) -> Prepared:
    """A model at voxels of a map, averaged over symmetry of the map that the structure lacks, as ``model_map`` does.

    Parameters
    ----------
    structure : asymmetric unit
    grid : of the same cell within 1 %
    index : (n, 3) integers on the subdivided lattice, inside 1/d_min
    means : average over the voxels' volumes, as measured maps are, if the model can

    Raises
    ------
    DiffuseError
        If structure and grid do not fit together, or an index lies outside the grid.
    """
    index = np.asarray(index, dtype=np.int64).reshape(-1, 3)
    if np.any(grid.s_magnitude(index) > (1 + 1e-9) / grid.d_min):
        raise DiffuseError(f"index: some voxels lie beyond d_min={grid.d_min:g} Å; leave them out")
    return over_lacking_symmetry(partial(model.prepare, means=means), structure, grid, index)


def over_lacking_symmetry(prepared: Callable, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
    """The mean over the voxels that symmetry of the map makes equal, as far as the structure lacks it.

    prepared : of structure, grid and index makes the Prepared of the voxels themselves
    """
    return _over(_cosets(structure, grid), prepared, structure, grid, index)


def over_laue_group(prepared: Callable, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
    """The mean over the structure's Laue group of an intensity that lacks its symmetry.

    prepared : of structure, grid and index makes the Prepared of the voxels themselves
    """
    operators = half_of(laue_operators(structure.space_group, friedel=True))
    return _over(operators, prepared, structure, grid, index)


def _over(operators, prepared: Callable, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
    if len(operators) == 1:
        return prepared(structure, grid, index)
    return Averaged(prepared(structure, grid, np.concatenate([index @ r for r in operators])), len(operators))


def _cosets(structure: Structure, grid: MapGrid) -> list:
    """One operator of the map's Laue group for each coset of the part that the structure's Laue group has."""
    wanted = laue_operators(grid.space_group, friedel=True)
    own = {r.tobytes(): r for r in laue_operators(structure.space_group, friedel=True)}
    wanted_keys = {r.tobytes() for r in wanted}
    if not wanted_keys - set(own):
        return [wanted[0]]
    # The intensity has the structure's symmetry: mates that it relates already are counted once.
    chosen, covered = [], set()
    for r in wanted:
        if r.tobytes() not in covered:
            chosen.append(r)
            covered |= {(r @ s).tobytes() for s in own.values()}
    return chosen


def half_of(operators: np.ndarray) -> np.ndarray:
    """Of operators and their negatives one each: intensities have Friedel's symmetry."""
    chosen, seen = [], set()
    for r in operators:
        if r.tobytes() not in seen:
            chosen.append(r)
            seen |= {r.tobytes(), (-r).tobytes()}
    return np.array(chosen)


class Square:
    """x = qᵀVq at fixed q, as a function of sigma, or of the free elements of V.

    Parameters
    ----------
    q : (n, 3) float64, 1/Å
    components : of V; None: V = sigma² 1
    """

    def __init__(self, q: np.ndarray, components: TensorComponents | None):
        self.components = components
        self._features = np.sum(q**2, axis=1)[:, None] if components is None else components.features(q)

    def __call__(self, values) -> tuple:
        """x, (n,), and its derivatives, (n, k)."""
        values = np.asarray(values, dtype=float)
        if self.components is None:
            return values[0] ** 2 * self._features[:, 0], 2 * values[0] * self._features
        return self._features @ values, self._features

    def second(self, weights: np.ndarray) -> np.ndarray:
        """(k, k), sum over n of weights times the second derivatives of x."""
        k = self._features.shape[1]
        if self.components is None:
            return np.full((1, 1), 2 * float(weights @ self._features[:, 0]))
        return np.zeros((k, k))
