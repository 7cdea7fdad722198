"""What a term of the scale model is: a function of where observations are, with all that goes with it.

A new term is a file here with a subclass of :class:`Term` (mostly of :class:`~.spline.Spline`), and a row in ``table``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
from scipy import sparse

from dials_diffuse.kernels.scaling import Design
from dials_diffuse.scaling.layout import Layout, Rows, S


class Acts(Enum):
    """What the value v of a term does to the expected counts, see :mod:`dials_diffuse.scaling.model`."""

    GAIN = "multiplies all counts by exp(v)"
    SCALE = "multiplies what the crystal scatters by exp(v)"
    OFFSET = "adds v times the isotropic profile that refinement starts from"
    PROFILE = "is the isotropic part of what the crystal scatters"
    SMOOTH = "is a part of the anisotropic scattering of the crystal, relative to the isotropic"


@dataclass(frozen=True)
class TermOptions:
    """What a user may choose for a term: fields of a frozen dataclass, checked where it is made.

    Attributes
    ----------
    scope : name of its phil scope in ``scale_model`` of dials.diffuse_scale
    phil : text of that scope; it defines the fields, with the same defaults
    """

    scope: ClassVar[str]
    phil: ClassVar[str]

    @classmethod
    def from_scope(cls, scope) -> TermOptions:
        """From the extracted phil scope.

        Raises
        ------
        DiffuseError
            If a value is out of range.
        """
        return cls(**{field.name: getattr(scope, field.name) for field in fields(cls)})


Options = TypeVar("Options", bound=TermOptions)


@dataclass(frozen=True)
class Extent:
    """What the size of a term depends on.

    Attributes
    ----------
    layout : of the sweeps and detectors
    names : of the terms that the user wants
    options : tuple of TermOptions that differ from the defaults
    s_range : least and largest |s| of the observations, 1/Å
    n_patterns : smooth functions of the direction with the symmetry of the crystal
    """

    layout: Layout
    names: tuple
    options: tuple
    s_range: tuple
    n_patterns: int

    @property
    def n_sweeps(self) -> int:
        return len(self.layout.start)

    def of(self, kind: type[Options]) -> Options:
        """The options of one kind."""
        return chosen(self.options, kind)

    def nodes_along(self, angle: float) -> int:
        """Coefficients of a spline over the longest sweep with this many degrees between nodes."""
        return max(3, math.ceil(float(np.abs(self.layout.width).max()) / angle) + 2)


def chosen(options: tuple, kind: type[Options]) -> Options:
    """The member of ``options`` that is of one kind, else the defaults of that kind."""
    return next((o for o in options if type(o) is kind), None) or kind()


class Curve(NamedTuple):
    """What is drawn of a term for one sweep: ``y`` (n,) over ``x`` (n,), what both axes are, and a style."""

    x: np.ndarray
    y: np.ndarray
    xlabel: str
    ylabel: str
    line: str = "-"


@dataclass(frozen=True)
class Term(ABC):
    """A term with its place among the parameters of a scale model: as many sets of coefficients as it needs.

    Attributes
    ----------
    start : first parameter
    n_sets : sets of coefficients: one for each sweep, or 1

    Class attributes
    ----------------
    name : what the user types in ``model=``; several terms may share one, the data then tell which are there
    key : of the term in models and files; its own
    label : for people, in logs and pictures
    words : for the help of ``model=``: what it is, and over what
    options : its kind of TermOptions, or None
    acts : one of Acts
    each_sweep : has each sweep a set of its own?
    repeats : do many observations touch the same coefficients, as those of one image do of a function of the rotation?
        Such terms are summed much faster
    smoothing : strength of the penalty on roughness; None: what makes the data most probable
    expected : what is expected of the size of the coefficients before there are data, which then tell more of it
    usual : does nearly every experiment have it? Others have to predict better what was kept out of the fit
    local : is each coefficient that of a few images, so that other images do not tell it?
    """

    start: int
    n_sets: int

    name: ClassVar[str]
    key: ClassVar[str]
    label: ClassVar[str]
    words: ClassVar[str] = ""
    options: ClassVar[type | None] = None
    acts: ClassVar[Acts] = Acts.GAIN
    each_sweep: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    smoothing: ClassVar[float | None] = None
    expected: ClassVar[float] = 0.3
    usual: ClassVar[bool] = False
    local: ClassVar[bool] = False

    @classmethod
    def fits(cls, extent: Extent) -> bool:
        """Can these data have the term?"""
        return True

    @classmethod
    @abstractmethod
    def make(cls, extent: Extent, start: int) -> Term:
        """The term in the size that fits the data."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Coefficients of one set."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Coefficients that one observation touches."""

    @property
    def all(self) -> slice:
        """Where its coefficients are among the parameters of the model."""
        return slice(self.start, self.start + self.size * self.n_sets)

    def offset(self, experiment: np.ndarray) -> np.ndarray:
        """(n,) int64, first parameter for observations of these experiments."""
        return self.start + (self.size * experiment if self.n_sets > 1 else np.zeros_like(experiment))

    def placed(self, start: int) -> Term:
        """The term at another place among the parameters."""
        return replace(self, start=start)

    @abstractmethod
    def value(self, coefficients: np.ndarray, rows: Rows) -> np.ndarray:
        """(n,) float64, its value; coefficients : (p,) float64, all parameters of the model."""

    @abstractmethod
    def fill(self, rows: Rows, factor: np.ndarray, design: Design, at: int) -> None:
        """Write its columns of the sparse design matrix, the derivatives of the expected counts by its coefficients.

        Parameters
        ----------
        factor : (n,) float64, derivative of the expected counts by the value of the term
        design : written from column ``at`` on
        """

    @abstractmethod
    def penalty(self) -> np.ndarray:
        """(size, size) float64, quadratic form of one set of coefficients that grows with its roughness."""

    def roughness(self, reference: np.ndarray) -> np.ndarray:
        """The penalty of all its coefficients; reference : (p,) float64, see ScaleModel."""
        return np.kron(np.eye(self.n_sets), self.penalty())

    def ridge(self, spread: float) -> float:
        """Inverse variance that is expected of a coefficient.

        spread : expected size of the smooth anisotropic part, relative to the isotropic
        """
        return self.expected**-2.0

    def gauge(self, rows: Rows, terms: dict) -> np.ndarray:
        """Directions that the data cannot tell, or only through another term: each row times the coefficients is 0.

        By default the mean of the coefficients: a factor for all sweeps belongs to the intensities.

        Parameters
        ----------
        rows : a choice of observations
        terms : key -> Term, all of the model

        Returns
        -------
        (k, size x n_sets) float64
        """
        return np.ones((1, self.size * self.n_sets))

    def basis(self, rows: Rows) -> sparse.csr_matrix:
        """(n, size x n_sets), its functions at some observations."""
        n = len(rows.experiment)
        index, value = design = Design(np.zeros((n, self.width), dtype=np.int64), np.zeros((n, self.width)))
        self.placed(0).fill(rows, np.ones(n), design, 0)
        row = np.repeat(np.arange(n), self.width)
        return sparse.csr_matrix((value.ravel(), (row, index.ravel())), shape=(n, self.size * self.n_sets))

    def record(self, coefficients: np.ndarray, layout: Layout, number: int) -> dict | None:
        """What the JSON file tells of it for a sweep, under its name; None: nothing there."""
        own = coefficients[self.all].reshape(self.n_sets, -1)
        return {"coefficients": own[number if self.n_sets > 1 else 0]}

    def record_of_all(self, coefficients: np.ndarray) -> dict:
        """What the JSON file tells of it for all sweeps together, with keys of its own."""
        return {}

    def curve(self, coefficients: np.ndarray, layout: Layout, number: int) -> Curve | None:
        """What is drawn of it for a sweep; None: nothing."""
        return None


def rings(rows: Rows, number: int) -> list:
    """Positions of the observations in each of ``number`` rings of |s|, equal numbers in each."""
    return np.array_split(np.argsort(rows.coordinates[:, S]), number)
