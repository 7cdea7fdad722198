"""Any joint normal distribution of the displacements of atoms or groups of atoms."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from cctbx import sgtbx, uctbx
from scipy.spatial.distance import cdist

from dials_diffuse.checks import choice, positive
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.base import DiffuseModel, TensorWord, Words, selections_of
from dials_diffuse.models.checks import (
    check_exponent,
    check_supercell,
    displacement_tensor,
    fitted,
    warn_of_small_displacements,
)
from dials_diffuse.models.covariance.correlations import group_correlations
from dials_diffuse.models.covariance.covariance_phil import PHIL, read_array
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.covariance.engines import ENGINES, choose_engine, molecule_sum
from dials_diffuse.models.covariance.group_covariance import GroupCovariance
from dials_diffuse.models.covariance.group_factory import averages_tensors, group_covariance, number_of_blocks
from dials_diffuse.models.covariance.low_rank import checked_modes
from dials_diffuse.models.covariance.motion import JointMotion, checked_covariance
from dials_diffuse.models.covariance.patterson import memory_estimate as patterson_memory
from dials_diffuse.models.covariance.patterson import patterson_sum
from dials_diffuse.models.covariance.prepared_covariance import TOO_LARGE_FOR_MEANS, PreparedCovariance
from dials_diffuse.models.laue import laue_average
from dials_diffuse.models.lorentzian import lorentzian, lorentzian_derivatives
from dials_diffuse.models.prepared import Prepared, half_of, over_laue_group
from dials_diffuse.models.refinable import (
    SOME_GAMMA,
    SOME_SIGMA,
    Parameter,
    TensorComponents,
    displacement,
    gamma_parameter,
    sigma_parameter,
    tensor_components,
    updated,
)
from dials_diffuse.models.single_atoms import ATOM_LENGTH, NEGLIGIBLE_CORRELATION, displaced, squares
from dials_diffuse.models.voxel_means import gauss_points
from dials_diffuse.parallel import SERIAL, Executor
from dials_diffuse.structure.block import crystal_block
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import GROUPS, group_centres, group_labels
from dials_diffuse.structure.transform import inside, s_squared

logger = logging.getLogger("dials.diffuse.models")

#: how the displacements of two groups at a distance r are correlated
CORRELATIONS = {
    "exponential": lambda r, gamma, core: np.exp(-r / gamma),
    "gaussian": lambda r, gamma, core: np.exp(-0.5 * (r / gamma) ** 2),
    "lorentzian": lorentzian,
}
KERNELS = (*CORRELATIONS, "elastic_network", "free")


@dataclass(frozen=True, eq=False)
class Covariance(DiffuseModel):
    """Displacements of atoms or groups with the covariance V_ij = <d_i d_jᵀ> inside a molecule, or a block of cells.

    I = sum over molecules of sum_ij a_i conj(a_j) (exp(qᵀV_ijq) - 1). The molecule is what the structure holds; every
    symmetry copy moves by itself, with V rotated by its operator.

    With ``supercell`` i and j go over a block of cells instead: I is that of the block for each of its cells, averaged
    over the Laue group. V is then between all groups of the block, and in the same Cartesian frame for all copies.
    Correlations end at the surface of the block, which should be large compared to their length.

    Attributes
    ----------
    kernel : ``exponential``, ``gaussian``, ``lorentzian``: V_ij = V c(r), r the distance of the groups' centres;
        ``elastic_network``: see :class:`ElasticNetwork`; ``free``: ``matrix``
    sigma : Å, rms displacement along one direction; or
    V : six numbers 11, 22, 33, 12, 13, 23 in Å², Cartesian frame of the coordinate file, for the three kernels c(r)
    gamma : Å, correlation length of c(r)
    core : Å, the Lorentzian kernel's correlation stops rising within this distance; see :func:`lorentzian`
    network : of ``elastic_network``
    matrix : for ``free``: V of the groups in Å², (g, g) for isotropic displacements, (3g, 3g) or (g, g, 3, 3); or
    modes : V = sum over modes of v vᵀ: (k, g) for isotropic displacements, (k, 3g) or (k, g, 3), Å
    groups : what moves as one: one of ``structure.groups.GROUPS``
    selections : for ``groups=selection``, one text for each group
    supercell : cells along a, b, c of a block in which symmetry copies are correlated, too; of a ``matrix`` or
        ``modes`` the order is that of :func:`structure.block.crystal_block`. None: each copy by itself
    soft : atoms keep their own displacements U, of which V is the part that groups share; otherwise U is V_ii
    engine : one of ENGINES; ``auto`` takes the one that should be fastest
    tolerance : of what the engines leave out of exp(x) - 1, x = qᵀV_ijq. ``chebyshev``: at most this times
        |x| exp(max(x, 0)) in each pair's term; ``low_rank``: about this times exp(x) - 1 of the body that moves most
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If parameters are missing, superfluous or out of range.

    Source: docs/theory.md, covariance
    """

    name = "covariance"
    about = "any covariance of the displacements of atoms or groups"
    phil = PHIL
    words = Words({"V": TensorWord("sigma", 2, SOME_SIGMA)}, pairs=True)
    in_blocks = True

    kernel: str = "exponential"
    sigma: float | None = None
    V: tuple | None = None
    gamma: float | None = None
    core: float = 1.5
    network: ElasticNetwork = field(default_factory=ElasticNetwork)
    matrix: np.ndarray | None = None
    modes: np.ndarray | None = None
    groups: str = "atom"
    selections: tuple = ()
    supercell: tuple | None = None
    soft: bool = True
    engine: str = "auto"
    tolerance: float = 1e-6
    table: str = "wk1995"

    def __post_init__(self):
        for name, choices in (("kernel", KERNELS), ("groups", GROUPS), ("engine", ENGINES)):
            choice(f"covariance.{name}", getattr(self, name), choices)
        positive("covariance.tolerance", self.tolerance)
        if self.supercell is not None:
            check_supercell("covariance.supercell", self.supercell)
        if (self.matrix is not None) + (self.modes is not None) != (self.kernel == "free"):
            raise DiffuseError("covariance: kernel=free and a matrix of covariances, or modes, need each other")
        if self.kernel in CORRELATIONS:
            positive("covariance.gamma", self.gamma)
            _ = self.tensor
            if self.kernel == "lorentzian" and not 0 < self.core < self.gamma:
                raise DiffuseError(f"covariance.core={self.core}: must be positive and below gamma={self.gamma:g} Å")
        elif self.gamma is not None or self.V is not None:
            raise DiffuseError(f"covariance.kernel={self.kernel} takes neither covariance.gamma nor covariance.V")

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> Covariance:
        if ((scope.file is not None) + (scope.modes is not None)) != (scope.kernel == "free"):
            raise CommandLineError(
                f"covariance.kernel={scope.kernel}, covariance.file={scope.file}, covariance.modes={scope.modes}: a "
                "file belongs to kernel=free, and only there, and only one"
            )
        network = scope.network
        values = cls.values_of(scope) | {
            "network": ElasticNetwork(
                network.type, network.cutoff, network.crystal_contacts, network.crystal_stiffness
            ),
            "selections": selections_of(scope),
            "matrix": None if scope.file is None else read_array("covariance.file", scope.file),
            "modes": None if scope.modes is None else read_array("covariance.modes", scope.modes),
        }
        if scope.kernel in CORRELATIONS:
            values = cls.with_defaults(values)
            values["gamma"] = SOME_GAMMA if scope.gamma is None else scope.gamma
        return cls(**values)

    def change_basis(self, cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> Covariance:
        if self.kernel == "free":
            raise DiffuseError(
                "covariance.kernel=free: a matrix or modes are not brought into the setting of the map; reindex the "
                "data (dials.reindex) into that of the coordinates, or give both in that of the map"
            )
        return super().change_basis(cell, operator)

    @property
    def if_memory_is_short(self) -> str:
        return ", or a smaller supercell" if self.supercell else ""

    @property
    def on_points(self) -> bool:
        return self.engine != "fft"

    def shared_displacements(self, structure: Structure) -> np.ndarray:
        return self.motion(structure).shared[: structure.n_atoms]  # of a block of cells the first copy

    def details(self, structure: Structure, covariance: np.ndarray, share: np.ndarray | None = None) -> dict:
        motion = self.motion(structure).covariance
        return {} if self.supercell else group_correlations(structure, motion, self.groups, self.selections)

    @cached_property
    def tensor(self) -> np.ndarray:
        """(3, 3) float64, Å², covariance of a group's displacement for the kernels c(r)."""
        return displacement_tensor("covariance", self.sigma, self.V)

    @property
    def cells(self) -> int:
        """How many unit cells move together, 1 also if a molecule does by itself."""
        return 1 if self.supercell is None else math.prod(self.supercell)

    def placed(self, structure: Structure) -> tuple:
        """The atoms that move together, as a molecule or a block in P 1, and the group of each."""
        labels = group_labels(structure, self.groups, self.selections)
        return (structure, labels) if self.supercell is None else crystal_block(structure, labels, self.supercell)

    def motion(self, structure: Structure) -> JointMotion:
        """The joint motion of the atoms of one molecule, or of a block.

        Raises
        ------
        DiffuseError
            If the groups do not fit the structure, or V is no covariance of them.
        """
        structure, labels = self.placed(structure)
        n = labels.max() + 1
        if self.kernel == "free":
            values = self._given(n)
        elif self.kernel == "elastic_network":
            values = self.network.covariance(structure, labels, self.sigma, self.supercell or (1, 1, 1))
        else:
            centres = group_centres(structure, labels)
            values = CORRELATIONS[self.kernel](cdist(centres, centres), self.gamma, self.core)
            if self.V is None:
                values = self.sigma**2 * values
            else:
                values = values[:, :, None, None] * self.tensor
        return JointMotion(structure.molecule(), labels, np.ascontiguousarray(values), self.soft)

    def _given(self, n: int) -> np.ndarray:
        """V of n groups from the matrix or the modes."""
        if self.modes is None:
            return checked_covariance("covariance.matrix", self.matrix, n)
        modes = checked_modes("covariance.modes", self.modes, n)
        values = np.tensordot(modes, modes, axes=(0, 0))
        return values if values.ndim == 2 else values.transpose(0, 2, 1, 3)

    def parameters(self, structure: Structure) -> tuple:
        if self.kernel == "free":
            return ()
        share = 0.5 if self.soft else 1.0
        if self.kernel == "elastic_network":
            sigma = self.network.mean_square(structure) ** 0.5 if self.sigma is None else self.sigma
            found = (sigma_parameter(structure, sigma, share=share),)
            if not self.network.crystal_contacts:
                return found
            return (*found, Parameter("crystal_stiffness", self.network.crystal_stiffness, "", 0.01, 100.0, 1.0))
        found = displacement(structure, self.components(structure), self.sigma, self.V, share)
        return (*found, gamma_parameter(self.gamma, 1.1 * self.core if self.kernel == "lorentzian" else 0.0))

    def components(self, structure: Structure) -> TensorComponents | None:
        """Free elements of V, None if there is sigma; that of a molecule turns with it, that of a block does not."""
        return None if self.V is None else tensor_components(structure, symmetric=self.supercell is not None)

    def with_values(self, structure: Structure, values: Mapping) -> Covariance:
        merged = updated("covariance", self.parameters(structure), values)
        components = self.components(structure)
        changed: dict = {name: merged[name] for name in ("sigma", "gamma") if name in merged}
        if "crystal_stiffness" in merged:
            changed["network"] = replace(self.network, crystal_stiffness=merged["crystal_stiffness"])
        if components is not None:
            changed["V"] = components.six([merged["V" + e] for e in components.names])
        return replace(self, **changed)

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        """For groups; of single atoms the derivatives cost as much as the engine ``pair_sum``.

        Tensors of many groups are not averaged over voxels.
        """
        prepared = partial(PreparedCovariance, self, means=means)
        if self.supercell is None:
            return prepared(structure, grid, index)
        return over_laue_group(prepared, structure, grid, index)  # a block has no symmetry

    def blocks_of_voxels(self, structure: Structure, grid: MapGrid, n: int, means: bool) -> tuple:
        """Several of tensors only: of numbers the sum over pairs is a product of matrices, which takes seconds."""
        fixed, _ = fitted(structure, grid)
        motion = self.motion(fixed)
        if motion.isotropic:
            return 1, means
        voxels = n
        if self.supercell is not None:
            n *= len(half_of(laue_operators(structure.space_group, friedel=True)))
        g, copies = len(motion.covariance), len(self.placed(fixed)[0].rotations)
        points = len(gauss_points(grid))
        if means and not averages_tensors(points * copies, n, g):
            logger.info(TOO_LARGE_FOR_MEANS)
            means = False
        return min(number_of_blocks(points * copies if means else copies, n, g), max(voxels, 1)), means

    def group_covariance(
        self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False
    ) -> GroupCovariance:
        """The intensity at voxels of a grid as a function of the covariance of all groups.

        Parameters
        ----------
        structure : asymmetric unit
        grid : of the same cell within 1 %
        index : (n, 3) int64, inside 1/d_min
        means : average over voxels, where that can be afforded, see :func:`group_factory.group_covariance`

        Returns
        -------
        GroupCovariance, in electrons² per molecule and its copies, or per block of cells
        """
        points = gauss_points(grid) if means else None
        structure, grid = fitted(structure, grid)
        motion = self.motion(structure)
        structure, labels = self.placed(structure)
        return group_covariance(
            structure if self.soft else structure.without_displacements(),
            labels,
            grid.s(index),
            adp="held" if self.soft else "free",
            tensor=motion.covariance.ndim == 4,
            table=self.table,
            tolerance=self.tolerance,
            points=points,
            u=motion.mean_square,
        )

    def correlation(self, r: np.ndarray, gamma: float) -> tuple:
        """c(r) and its first and second derivatives by gamma; r : float64, Å"""
        if self.kernel == "lorentzian":
            return lorentzian_derivatives(r, gamma, self.core)
        x = r / gamma
        if self.kernel == "exponential":
            c = np.exp(-x)
            return c, c * x / gamma, c * x * (x - 2) / gamma**2
        c = np.exp(-0.5 * x**2)
        return c, c * x**2 / gamma, c * x**2 * (x**2 - 3) / gamma**2

    def intensity(self, structure: Structure, grid: MapGrid, executor: Executor = SERIAL) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        motion = self._checked_motion(structure, 1 / grid.d_min)
        bodies = structure.space_group.order_z() if self.supercell is None else 1 / self.cells
        engine = choose_engine(self, motion, grid)
        if engine == "fft":
            volume = bodies * patterson_sum(motion, grid, self.table)
            s2 = s_squared(grid)
            atoms = structure if self.soft else motion.with_shared(self.placed(structure)[0])
            own = displaced(atoms, grid, s2, self.table) / (1 if self.soft else self.cells)
            volume += squares(structure, s2, self.table) - own
            return laue_average(volume, grid)
        index = np.argwhere(inside(grid, s_squared(grid))) - np.array(grid.extent)
        index = index[: len(index) // 2 + 1]  # of Friedel mates one, and the origin
        s = grid.s(index)
        values = bodies * molecule_sum(self, self.placed(structure)[0].share, motion, s, engine, executor)
        volume = np.full(grid.n_voxels, np.nan)
        volume[grid.key(index)] = volume[grid.key(-index)] = values
        return laue_average(volume.reshape(grid.shape), grid)

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        s = np.asarray(s, dtype=float).reshape(-1, 3)
        motion = self._checked_motion(structure, max(np.linalg.norm(s, axis=1).max(initial=0.0), 1e-6))
        engine = choose_engine(self, motion, None, s)
        if engine == "fft":
            raise DiffuseError("covariance.engine=fft works on grids only; use chebyshev, pair_sum or auto")
        turned = np.concatenate([s @ turn for turn in structure.rotations])
        share = self.placed(structure)[0].share
        total = molecule_sum(self, share, motion, turned, engine).reshape(-1, len(s)).sum(axis=0)
        return total if self.supercell is None else total / (len(structure.rotations) * self.cells)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        _, labels = self.placed(structure)
        matrices = 40 * (labels.max() + 1) ** 2 * (1 if self.V is None else 9)
        return matrices + max(patterson_memory(grid), 100 * grid.n_voxels)

    def correlation_length(self, structure: Structure) -> float:
        motion = self.motion(structure)
        spread = _mean_square(motion.covariance)
        variance = np.sqrt(np.diag(spread))
        correlated = np.abs(spread) > NEGLIGIBLE_CORRELATION * np.outer(variance, variance)
        sites = motion.structure.site_cart
        if self.supercell is None:
            return max([ATOM_LENGTH, *_longest_distances(sites, motion.labels, correlated)])
        centres = group_centres(motion.structure, motion.labels)
        radius = np.zeros(len(centres))
        np.maximum.at(radius, motion.labels, np.linalg.norm(sites - centres[motion.labels], axis=1))
        return max(ATOM_LENGTH, float((cdist(centres, centres) + np.add.outer(radius, radius))[correlated].max()))

    def _checked_motion(self, structure: Structure, s_max: float) -> JointMotion:
        motion = self.motion(structure)
        check_exponent("covariance", motion.shared, s_max)
        if self.soft:
            warn_of_small_displacements(motion.structure, motion.shared, "covariance")
        return motion


def _mean_square(covariance: np.ndarray) -> np.ndarray:
    """(g, g), the size of each V_ij: of tensors the Frobenius norm / sqrt(3)."""
    return covariance if covariance.ndim == 2 else np.linalg.norm(covariance, axis=(2, 3)) / np.sqrt(3)


def _longest_distances(sites: np.ndarray, labels: np.ndarray, correlated: np.ndarray):
    """The largest distance of each atom from those its group is correlated with, Å."""
    for i, site in enumerate(sites):
        yield float(np.linalg.norm(sites[correlated[labels[i], labels]] - site, axis=1).max(initial=0.0))
