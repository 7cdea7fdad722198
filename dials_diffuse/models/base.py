"""What every model is: a class to derive from, with defaults for all that a model need not have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import ClassVar

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.prepared import Fixed, Prepared
from dials_diffuse.models.refinable import Parameter, updated
from dials_diffuse.models.voxel_means import averaged
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.crystal import Structure, turn_of_frame, turned_elements


@dataclass(frozen=True)
class TensorWord:
    """A tensor that can be fitted in place of a number.

    Attributes
    ----------
    number : name of the number among the parameters of the model
    power : the tensor is the number to this power times the unit tensor
    default : what the number is if neither is given
    """

    number: str
    power: int
    default: float

    def six(self, given) -> list:
        """Six elements of the tensor that is as large as the number, of several as their mean; None: the default."""
        value = float(np.mean(self.default if given is None else given)) ** self.power
        return [value, value, value, 0.0, 0.0, 0.0]


@dataclass(frozen=True)
class Words:
    """What may follow the name of a model in ``diffuse_fit model=name/word/...``, besides the choices of its scope.

    Attributes
    ----------
    tensors : name of a parameter with six numbers -> TensorWord; ``name/V``
    each : ``name/each``: every body has a motion of its own, see :meth:`DiffuseModel.for_each_body`
    pairs : ``name/pairs``: the covariance of every pair of groups is fitted, from the model on
    """

    tensors: Mapping[str, TensorWord] = field(default_factory=dict)
    each: bool = False
    pairs: bool = False


class DiffuseModel(ABC):
    """Base class of all models: frozen dataclasses of parameters that can be asked for a map.

    A new model is a file with such a class and a row in ``models/table.py``. It has to say what its intensity is and
    how far its correlations reach, which is enough to compute, to simulate and to compare it with data. What is to be
    refined also needs :meth:`parameters` and :meth:`prepare_centres`.

    Attributes
    ----------
    name : in the programs, and of its scope
    about : what scatters, for the help of ``model=``: "... of (about)"
    phil : text of its scope, ``name { ... }``; empty for none
    words : of ``diffuse_fit``
    in_blocks : does :meth:`intensity` take an Executor as its last argument, which computes blocks of points?
    table : form factors, one of ``structure.factors.TABLES``, or ``Dispersive``; a field of every model

    Examples
    --------
    A model of the package, and what of it can be refined:

    >>> from dials_diffuse.models.llm.llm import LiquidLikeMotions
    >>> from dials_diffuse.structure.atoms import make_structure
    >>> structure = make_structure((20, 20, 30, 90, 90, 90), "P 41", ["O", "N"], [[0.1, 0.1, 0], [0.2, 0.1, 0.1]])
    >>> model = LiquidLikeMotions(sigma=0.4, gamma=10.0)
    >>> [(p.name, p.value, p.unit) for p in model.parameters(structure)]
    [('sigma', 0.4, 'Å'), ('gamma', 10.0, 'Å')]
    >>> model.with_values(structure, {"gamma": 12.0}).gamma
    12.0
    >>> model.intensity_at(structure, [[0.1, 0.2, 0.3]]).shape
    (1,)
    """

    name: ClassVar[str]
    about: ClassVar[str]
    phil: ClassVar[str] = ""
    words: ClassVar[Words] = Words()
    in_blocks: ClassVar[bool] = False

    table: str

    # ------------------------------------------------------------------------------------------------ from the programs

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> DiffuseModel:
        """The model that the parameters of a program describe.

        Parameters
        ----------
        scope : what was extracted from the model's scope: an object with its parameters as attributes; None if the
            model has no scope
        coordinates : path of the structure, for models that read more from it
        selection : of the atoms that they read there, in cctbx's syntax

        Raises
        ------
        CommandLineError
            If parameters contradict each other.
        DiffuseError
            If a value is out of range, or a file cannot be read.
        """
        return cls(**cls.with_defaults(cls.values_of(scope)))

    @classmethod
    def values_of(cls, scope) -> dict:
        """Fields of the class that the scope has, lists as tuples."""
        given = {} if scope is None else vars(scope)
        names = [f.name for f in fields(cls) if f.name in given]
        return {name: tuple(given[name]) if isinstance(given[name], list) else given[name] for name in names}

    @classmethod
    def with_defaults(cls, values: dict) -> dict:
        """The values, with a number where neither it nor a tensor in its place (:attr:`words`) is given."""
        values = dict(values)
        for name, tensor in cls.words.tensors.items():
            if values.get(name) is None and values.get(tensor.number) is None:
                values[tensor.number] = tensor.default
        return values

    @classmethod
    def leaves_orders_open(cls, scope) -> bool:
        """Shall the program choose the number of orders, see :meth:`with_orders_for`?"""
        return False

    def structure(self, coordinates, selection: str | None = None) -> Structure:
        """The crystal form: that of the coordinate file, of all atoms or of a selection in cctbx's syntax."""
        return load_structure(coordinates, selection)

    def select(self, selection: str | None) -> DiffuseModel:
        """The model of some of the atoms; of all that has no atoms of its own, it is the same."""
        return self

    def change_basis(self, cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> DiffuseModel:
        """The model of a structure that changes its setting: tensors turn with the Cartesian frame.

        cell : the old one; operator : see :meth:`Structure.change_basis`

        Raises
        ------
        DiffuseError
            If the model cannot be turned.
        """
        turn, given = turn_of_frame(cell, operator), {name: getattr(self, name) for name in self.words.tensors}
        return replace(self, **{name: turned_elements(six, turn) for name, six in given.items() if six is not None})

    def record(self) -> dict:
        """Name and parameters, as for :func:`write_json`; arrays are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}
        return {"name": self.name} | {k: value for k, value in values.items() if not isinstance(value, np.ndarray)}

    # ------------------------------------------------------------------------------------------------------- intensity

    @abstractmethod
    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        """Diffuse intensity at the voxel centres of a grid, averaged over the structure's Laue group.

        Parameters
        ----------
        structure : asymmetric unit
        grid : of the same cell, within 1 %

        Returns
        -------
        float64 of ``grid.shape``, electrons² per unit cell; NaN where |s| > 1/d_min

        Raises
        ------
        DiffuseError
            If structure and grid do not fit together.
        """

    @abstractmethod
    def correlation_length(self, structure: Structure) -> float:
        """Largest distance between atoms whose interference the intensity holds, Å.

        The Fourier transform of the intensity is negligible beyond it, so that it says how fine a grid must be to be
        interpolated.
        """

    @property
    def on_points(self) -> bool:
        """Is there an intensity between the voxels of a grid, see :meth:`intensity_at`?"""
        return False

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points.

        Parameters
        ----------
        structure : asymmetric unit
        s : (m, 3) float64, 1/Å, Cartesian frame of the coordinate file

        Returns
        -------
        (m,) float64, electrons² per unit cell

        Raises
        ------
        DiffuseError
            If the model is computed on grids only.
        """
        raise DiffuseError(f"{self.name}: computed on grids only")

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        """Bytes that :meth:`intensity` takes at its peak, roughly."""
        return 64 * grid.n_voxels

    @property
    def has_means(self) -> bool:
        """Is there a mean over the volume of a voxel?"""
        return True

    @property
    def halos(self) -> bool:
        """Are means over voxels those of the halos alone (:meth:`prepare`), not those of the intensity at 27 points?"""
        return False

    @property
    def if_memory_is_short(self) -> str:
        """What else to do about a grid that is too large: ``", or ..."``, or ``""``."""
        return ""

    def imaginary_part(self, table) -> DiffuseModel:
        """What scatters with f'', the table; :func:`dispersive.dispersive_parts` has the other part."""
        return replace(self, table=table)

    # ------------------------------------------------------------------------------------------------------ refinement

    def parameters(self, structure: Structure) -> tuple[Parameter, ...]:
        """What can be refined, maybe nothing."""
        return ()

    def with_values(self, structure: Structure, values: Mapping) -> DiffuseModel:
        """The model with other values of some parameters, by name.

        Raises
        ------
        DiffuseError
            If there is no such parameter, or the values make no model.
        """
        return replace(self, **updated(self.name, self.parameters(structure), values))

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        """Intensity at voxels of a grid as a function of the parameters; see :func:`prepared.prepare`.

        Parameters
        ----------
        index : (n, 3) int64, inside 1/d_min
        means : average over the voxels' volumes. Where that cannot be done they are taken at their centres, as
            ``Prepared.means`` says.
        """
        if means and self.has_means:
            return averaged(self.prepare_centres, structure, grid, index)
        return self.prepare_centres(structure, grid, index)

    def blocks_of_voxels(self, structure: Structure, grid: MapGrid, n: int, means: bool) -> tuple:
        """Into how many blocks n voxels are divided for :meth:`prepare`, and whether they are averaged over voxels.

        More than one where evaluations take so long that workers may share them. means : shall they be averaged?
        """
        return 1, means

    def prepare_centres(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        """:meth:`prepare` for the centres of voxels."""
        return Fixed(self, structure, grid, index)

    def for_each_body(self, structure: Structure) -> DiffuseModel:
        """The model with parameters of their own for each body, all equal so far, if it has bodies."""
        return self

    def shared_displacements(self, structure: Structure) -> np.ndarray | None:
        """(n, 3, 3) float64, Å², covariance of what each atom's displacement shares with other atoms'.

        That cannot exceed the atom's U. None: the model does not say.
        """
        return None

    def details(self, structure: Structure, covariance: np.ndarray, share: np.ndarray | None = None) -> dict:
        """More than parameters that a fitted model says, for reports and JSON files; empty: nothing.

        Parameters
        ----------
        covariance : (p, p) float64, of the errors of the parameters, NaN where they are not known
        share : (p,) float64, how much of each comes from the data, not from a prior; None: there was no prior
        """
        return {}

    # --------------------------------------------------------------------------------------------------------- orders

    #: terms of a series that are computed; None: there is no series
    orders = None

    def with_orders_for(self, structure: Structure, values: Mapping, d_min: float) -> DiffuseModel:
        """The model with as many orders as it needs at d_min (Å) when its parameters have these values, by name."""
        return self

    def lack_of_orders(self, d_min: float) -> str:
        """A sentence for the user if the orders leave out too much at d_min (Å), or ``""``."""
        return ""


def selections_of(scope) -> tuple:
    """The texts of a scope's ``selection``, which may be given several times."""
    return tuple(text for text in scope.selection if text)
