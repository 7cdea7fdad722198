"""Phonons of rigid molecules in a crystal lattice: halos around the Bragg reflections."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from dials_diffuse.checks import choice, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import fill_volume, laue_operators, possible_voxels
from dials_diffuse.memory import check_memory
from dials_diffuse.models.base import DiffuseModel, selections_of
from dials_diffuse.models.checks import fitted, warn_of_small_displacements
from dials_diffuse.models.lattice_dynamics.body_lattice import BodyLattice, body_lattice
from dials_diffuse.models.lattice_dynamics.lattice_dynamics_phil import PHIL
from dials_diffuse.models.lattice_dynamics.prepared_lattice import PreparedLatticeDynamics
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import SOME_SIGMA, sigma_parameter
from dials_diffuse.models.single_atoms import single_atoms
from dials_diffuse.structure.block import crystal_block
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.groups import GROUPS, group_labels
from dials_diffuse.structure.tensors import six_elements, square_features
from dials_diffuse.structure.transform import memory_estimate as transform_memory
from dials_diffuse.structure.transform import transform_at

SPRINGS = ("gaussian", "central")

#: a point is a reciprocal-lattice point if its indices are as near as this to whole numbers
_BRAGG = 1e-6
#: the voxel around one is divided by this number along each axis; even, so that none of the parts is at its centre
_PARTS = 6
#: numbers of a table of atoms and points in memory together, and of matrices
_TERMS = 1 << 22
_NUMBERS = 1 << 22
#: halos have no end; a grid resolves them up to so many times the longest cell edge from a lattice point
_CELLS = 3

logger = logging.getLogger("dials.diffuse.models")


@dataclass(frozen=True)
class LatticeDynamics(DiffuseModel):
    """Acoustic and optical phonons of rigid bodies, each with translation and rotation, on springs.

    Springs of equal stiffness connect the atoms of different bodies, also of symmetry copies and other cells, that are
    near to each other. Of the energy's second derivatives K(R) between cells the dynamical matrix is
    D(k) = sum over R of K(R) exp(ikR); in thermal equilibrium the amplitudes w of a wave have <w w†> = kT D(k)^-1.
    With one phonon, at q = G + k, G a reciprocal-lattice point,

    I = v† kT D(k)^-1 v,  v = sum over atoms of f exp(-qᵀUq/2) exp(iqr) qᵀB,

    U the displacements of the structure, B an atom's displacement by the coordinates w of its body. Near a lattice
    point that is a halo ~ 1/k². kT over the stiffness follows from the mean square displacement that is given.

    Attributes
    ----------
    sigma : Å, rms displacement along one direction by all waves together, mean over the atoms
    springs : ``gaussian``: they resist any displacement of one end from the other; ``central``: only changes of length
    cutoff : Å, up to which atoms of different bodies are connected
    groups : what is a rigid body: one of ``structure.groups.GROUPS``, by default a symmetry copy of the atoms given
    selections : for ``groups=selection``, one text for each body
    mesh : waves along a*, b*, c*, off the lattice points, over which the mean square displacement is taken
    incoherent : add what makes each atom's own term |f|² (1 - exp(-qᵀUq)): its other motions, and further phonons. An
        atom on a special position is here several with their share of it, one in each body it belongs to
    table : form factors, one of ``structure.factors.TABLES``

    Raises
    ------
    DiffuseError
        If a value is out of range.

    Notes
    -----
    At a reciprocal-lattice point itself the intensity is infinite. A voxel of a map has the mean of D^-1 over the voxel
    there; :meth:`intensity_at` refuses such a point.

    Source: Born & Huang 1954, Dynamical Theory of Crystal Lattices; Meisburger, Case & Ando 2020, Nat. Commun. 11, 1271
    """

    name = "lattice_dynamics"
    about = "phonons of rigid molecules on springs"
    phil = PHIL
    on_points = True
    has_means = False

    sigma: float | None = None
    springs: str = "gaussian"
    cutoff: float = 8.0
    groups: str = "molecule"
    selections: tuple = ()
    mesh: tuple = (6, 6, 6)
    incoherent: bool = True
    table: str = "wk1995"

    def __post_init__(self):
        for name, choices in (("springs", SPRINGS), ("groups", GROUPS)):
            choice(f"lattice_dynamics.{name}", getattr(self, name), choices)
        for name in ("sigma", "cutoff"):
            positive(f"lattice_dynamics.{name}", getattr(self, name))
        if len(self.mesh) != 3 or any(n < 2 or n % 2 for n in self.mesh):
            raise DiffuseError(f"lattice_dynamics.mesh={self.mesh}: three even numbers are needed")

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> LatticeDynamics:
        values = cls.values_of(scope) | {"selections": selections_of(scope)}
        values["sigma"] = SOME_SIGMA if scope.sigma is None else scope.sigma
        return cls(**values)

    def lattice(self, structure: Structure) -> tuple:
        """The content of the cell, in P 1, and its bodies on springs; structure : asymmetric unit"""
        labels = group_labels(structure, self.groups, self.selections)
        everywhere = replace(  # also on a special position each copy has an atom, with its share
            structure,
            occupancy=structure.occupancy * structure.share,
            multiplicity=np.full(structure.n_atoms, structure.space_group.order_z()),
        )
        content, labels = crystal_block(everywhere, labels, (1, 1, 1))
        return content, body_lattice(content, labels, self.cutoff, self.springs == "central")

    def displacements(self, structure: Structure, content: Structure, lattice: BodyLattice, sigma: float) -> tuple:
        """kT over the stiffness, Å², and (n, 3, 3) float64, Å², what the phonons displace each atom of the cell.

        structure : asymmetric unit; content, lattice : from :meth:`lattice`
        sigma : Å, rms displacement that fixes the former
        """
        lattice.check()
        mean = lattice.mean_inverse(*symmetric_waves(mesh_of_waves(self.mesh), structure))
        modes = lattice.modes(content.site_cart)
        whole = np.zeros((lattice.frames.shape[0] * 6,) * 2)
        whole[np.ix_(lattice.active, lattice.active)] = mean
        first = 6 * lattice.labels[:, None] + np.arange(6)
        tensors = modes @ whole[first[:, :, None], first[:, None, :]] @ modes.transpose(0, 2, 1)
        scale = sigma**2 / np.average(np.trace(tensors, axis1=1, axis2=2) / 3, weights=content.occupancy)
        return scale, scale * tensors

    def shared_displacements(self, structure: Structure) -> np.ndarray:
        content, lattice = self.lattice(structure)
        _, tensors = self.displacements(structure, content, lattice, self.sigma)
        return tensors[: structure.n_atoms]  # of the copy of the coordinate file

    def parts(self, structure: Structure, s: np.ndarray, voxel=None) -> tuple:
        """What the intensity is made of: I = sigma² (first) + (second).

        Parameters
        ----------
        structure : asymmetric unit
        s : (m, 3) float64, 1/Å, Cartesian frame of the structure
        voxel : (3,) size of a voxel in fractional indices; None: reciprocal-lattice points are refused

        Returns
        -------
        (m,), (m,) float64, electrons² per cell / Å², and electrons² per cell
        """
        content, lattice = self.lattice(structure)
        scale, tensors = self.displacements(structure, content, lattice, 1.0)
        logger.info(
            "lattice_dynamics: %d bodies in the cell with %d coordinates", len(lattice.frames), len(lattice.active)
        )
        warn_of_small_displacements(content, self.sigma**2 * tensors, "lattice_dynamics")
        hkl = s @ structure.orthogonalization
        bragg = np.all(np.abs(hkl - np.rint(hkl)) < _BRAGG, axis=1)
        if voxel is None and bragg.any():
            raise DiffuseError(
                f"lattice_dynamics: at {hkl[bragg][0].round(6)}, a reciprocal-lattice point, the intensity is infinite"
            )
        v = self._amplitudes(content, lattice, s)
        coherent = np.empty(len(s))
        step = lattice.blocks(len(s))
        for first in range(0, len(s), step):
            there = first + np.flatnonzero(~bragg[first : first + step])
            coherent[there] = _forms(lattice.solve(hkl[there], v[there]), v[there])
        if bragg.any():
            waves = mesh_of_waves((_PARTS,) * 3) * np.asarray(voxel)
            inverse = lattice.mean_inverse(*symmetric_waves(waves, structure), centred=True)
            coherent[bragg] = _forms(v[bragg] @ inverse.T, v[bragg])
        coherent *= scale
        if not self.incoherent:
            return coherent, np.zeros(len(s))
        everything, own = single_atoms(structure, s, self.table)
        return coherent - self._own_phonons(content, tensors, s), everything - own

    def _amplitudes(self, content: Structure, lattice: BodyLattice, s: np.ndarray) -> np.ndarray:
        """(m, d) complex128, v of all coordinates: q F and X x q for each body, F and X sums over its atoms."""
        q = 2 * np.pi * s
        result = np.empty((len(s), len(lattice.frames), 6), dtype=np.complex128)
        offset = content.site_cart - lattice.centres[lattice.labels]
        for b in range(len(lattice.frames)):
            mine = lattice.labels == b
            body = content.take(mine)
            f = transform_at(body, s, self.table)
            moments = [transform_at(replace(body, occupancy=body.occupancy * x), s, self.table) for x in offset[mine].T]
            turned = np.cross(np.stack(moments, axis=1), q)
            result[:, b] = np.concatenate([q * f[:, None], turned], axis=1) @ lattice.frames[b]
        return result.reshape(len(s), -1)[:, lattice.active]

    def _own_phonons(self, content: Structure, tensors: np.ndarray, s: np.ndarray) -> np.ndarray:
        """(m,) sum over atoms of f² exp(-qᵀUq) qᵀVq, V what the phonons displace them: their own part of one phonon."""
        features = square_features(2 * np.pi * s)
        f2 = form_factors(content, np.linalg.norm(s, axis=1), self.table) ** 2
        total = np.zeros(len(s))
        step = max(1, _TERMS // content.n_atoms)
        for kind in range(len(content.types)):
            mine = content.type_index == kind
            u, v = (six_elements(x[mine]).T for x in (content.u_cart, tensors))
            for rows in (slice(first, first + step) for first in range(0, len(s), step)):
                terms = np.exp(-features[rows] @ u) * (features[rows] @ v)
                total[rows] += f2[kind, rows] * (terms @ content.occupancy[mine] ** 2)
        return total

    def intensity(self, structure: Structure, grid: MapGrid) -> np.ndarray:
        structure, grid = fitted(structure, grid)
        index = np.concatenate(list(possible_voxels(grid, friedel=True)))
        return fill_volume(grid, index, self.at_voxels(structure, grid, index), dtype=np.float64)

    def at_voxels(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> np.ndarray:
        """(n,) float64, the intensity at voxels of a grid, (n, 3) integers."""
        first, second = self.parts_at_voxels(structure, grid, index)
        return self.sigma**2 * first + second

    def parts_at_voxels(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> tuple:
        """:meth:`parts` at voxels of a grid, (n, 3) integers."""
        return self.parts(structure, grid.s(index), 1 / np.array(grid.subdivide))

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points but those of the reciprocal lattice, which raise DiffuseError."""
        first, second = self.parts(structure, np.asarray(s, dtype=float).reshape(-1, 3))
        return self.sigma**2 * first + second

    def parameters(self, structure: Structure) -> tuple:
        return (sigma_parameter(structure, self.sigma),)

    def prepare_centres(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        return PreparedLatticeDynamics(self, structure, grid, index)

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        labels = group_labels(structure, self.groups, self.selections)
        coordinates = 6 * (labels.max() + 1) * structure.space_group.order_z()
        points = grid.n_voxels // len(laue_operators(grid.space_group, friedel=True)) + 1
        return transform_memory(grid) + 16 * grid.n_voxels + points * (16 * coordinates + 200) + 64 * _NUMBERS

    def correlation_length(self, structure: Structure) -> float:
        return _CELLS * max(structure.unit_cell[:3])


def mesh_of_waves(mesh: tuple) -> np.ndarray:
    """(n, 3) float64, fractional indices between -1/2 and 1/2, the centres of parts along each axis."""
    check_memory(
        200.0 * math.prod(mesh), f"lattice_dynamics.mesh={','.join(map(str, mesh))}: so many waves", "choose fewer"
    )
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in mesh]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def symmetric_waves(waves: np.ndarray, structure: Structure) -> tuple:
    """Waves, (n, 3) fractional indices, with their mates under the Laue group, and how often each occurs.

    Of opposite waves one is left out: what is taken has both.
    """
    mates = np.concatenate([waves @ r for r in laue_operators(structure.space_group, friedel=True)])
    mates, number = np.unique(mates.round(9) + 0.0, axis=0, return_counts=True)
    half = slice(len(mates) // 2, None)  # sorted, so that the opposite of the first is the last
    return mates[half], number[half].astype(float)


def _forms(solved: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(m,) v† D^-1 v; solved : (m, d), D^-1 v; v : (m, d)"""
    return np.einsum("md,md->m", v.conj(), solved).real
