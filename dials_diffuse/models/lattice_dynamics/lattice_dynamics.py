"""Phonons of rigid molecules in a crystal lattice: halos around the Bragg reflections."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dials_diffuse.checks import choice, positive
from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import fill_volume, laue_operators, possible_voxels
from dials_diffuse.models.base import DiffuseModel, selections_of
from dials_diffuse.models.checks import fitted, warn_of_small_displacements
from dials_diffuse.models.lattice_dynamics.body_lattice import (
    BodyLattice,
    CrystalBodies,
    body_lattice,
    crystal_bodies,
)
from dials_diffuse.models.lattice_dynamics.body_scattering import amplitudes
from dials_diffuse.models.lattice_dynamics.contact_lattice import ContactLattice
from dials_diffuse.models.lattice_dynamics.contacts import find_contacts
from dials_diffuse.models.lattice_dynamics.lattice_dynamics_phil import PHIL
from dials_diffuse.models.lattice_dynamics.phonons import Phonons
from dials_diffuse.models.lattice_dynamics.prepared_contacts import PreparedContacts
from dials_diffuse.models.lattice_dynamics.prepared_lattice import PreparedLatticeDynamics
from dials_diffuse.models.lattice_dynamics.stiffness import STIFFNESSES, Stiffnesses
from dials_diffuse.models.lattice_dynamics.voxel_waves import voxel_waves
from dials_diffuse.models.lattice_dynamics.waves import mesh_of_waves, symmetric_waves
from dials_diffuse.models.prepared import Prepared
from dials_diffuse.models.refinable import SOME_SIGMA, Parameter, sigma_parameter, updated
from dials_diffuse.models.single_atoms import single_atoms
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.envelope import FlatSolvent
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.groups import GROUPS, group_labels
from dials_diffuse.structure.tensors import six_elements, square_features
from dials_diffuse.structure.transform import memory_estimate as transform_memory

SPRINGS = ("gaussian", "central", "contacts")

#: a point is a reciprocal-lattice point if its indices are as near as this to whole numbers
_BRAGG = 1e-6
#: numbers of a table of atoms and points in memory together, and of matrices
_TERMS = 1 << 22
_NUMBERS = 1 << 22
#: halos have no end; a grid resolves them up to so many times the longest cell edge from a lattice point
_CELLS = 3
#: bounds of the logarithm of a stiffness over the geometric one
_MOST_LOG = 8.0

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
    springs : ``gaussian``: they resist any displacement of one end from the other; ``central``: only changes of length;
        ``contacts``: a stiffness matrix for every contact of two bodies, see :class:`Stiffnesses`
    cutoff : Å, up to which atoms of different bodies are connected
    groups : what is a rigid body: one of ``structure.groups.GROUPS``, by default a symmetry copy of the atoms given
    selections : for ``groups=selection``, one text for each body
    mesh : waves along a*, b*, c*, off the lattice points, over which the mean square displacement is taken
    incoherent : add what makes each atom's own term |f|² (1 - exp(-qᵀUq)): its other motions, and further phonons. An
        atom on a special position is here several with their share of it, one in each body it belongs to
    stiffness : of contacts, one of ``stiffness.STIFFNESSES``: how many numbers they have
    contact_cutoff : Å, bodies with atoms this near to each other touch
    log_stiffness : of contacts, logarithms of the stiffnesses over the geometric ones, in the order of
        :meth:`parameters`; empty: all 0. The geometric ones are those of equal springs between all pairs of atoms of a
        contact, with which the rms displacement is ``sigma``.
    solvent : is what bodies displace of the solvent part of their contrast? None: with contacts, of X-rays
    k_sol, b_sol : of that solvent, electrons/Å³ and Å², see :class:`FlatSolvent`
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

    sigma: float | None = None
    springs: str = "gaussian"
    cutoff: float = 8.0
    groups: str = "molecule"
    selections: tuple = ()
    mesh: tuple = (6, 6, 6)
    incoherent: bool = True
    stiffness: str = "overall"
    contact_cutoff: float = 5.0
    log_stiffness: tuple = ()
    solvent: bool | None = None
    k_sol: float = 0.35
    b_sol: float = 46.0
    table: str = "wk1995"

    def __post_init__(self):
        for name, choices in (("springs", SPRINGS), ("groups", GROUPS), ("stiffness", STIFFNESSES)):
            choice(f"lattice_dynamics.{name}", getattr(self, name), choices)
        positive("lattice_dynamics.contacts.cutoff", self.contact_cutoff)
        for name in ("sigma", "cutoff"):
            positive(f"lattice_dynamics.{name}", getattr(self, name))
        if len(self.mesh) != 3 or any(n < 2 or n % 2 for n in self.mesh):
            raise DiffuseError(f"lattice_dynamics.mesh={self.mesh}: three even numbers are needed")
        if not self.touching and (self.stiffness != "overall" or self.log_stiffness):
            raise DiffuseError(
                f"lattice_dynamics.stiffness={self.stiffness}, contacts.log_stiffness={self.log_stiffness}: springs="
                f"{self.springs} are all of one stiffness; use lattice_dynamics.springs=contacts"
            )
        if not np.all(np.isfinite(self.log_stiffness)):
            raise DiffuseError(
                f"lattice_dynamics.contacts.log_stiffness={self.log_stiffness}: finite numbers are needed"
            )
        FlatSolvent(self.k_sol, self.b_sol)

    @classmethod
    def from_scope(cls, scope, coordinates=None, selection: str | None = None) -> LatticeDynamics:
        values = cls.values_of(scope) | {"selections": selections_of(scope)}
        values["sigma"] = SOME_SIGMA if scope.sigma is None else scope.sigma
        values["contact_cutoff"] = scope.contacts.cutoff
        values["log_stiffness"] = tuple(scope.contacts.log_stiffness or ())
        return cls(**values)

    @property
    def touching(self) -> bool:
        """Do contacts have stiffnesses?"""
        return self.springs == "contacts"

    @property
    def has_means(self) -> bool:
        return self.touching

    @property
    def halos(self) -> bool:
        return self.touching

    @property
    def displaced(self) -> FlatSolvent | None:
        """The solvent that bodies displace; None: they move in vacuum."""
        wanted = self.solvent
        if wanted is None:
            wanted = self.touching and self.table != "electron"
        return FlatSolvent(self.k_sol, self.b_sol) if wanted else None

    def imaginary_part(self, table) -> LatticeDynamics:
        return replace(self, table=table, solvent=False)

    def change_basis(self, cell, operator) -> LatticeDynamics:
        if self.stiffness == "full" and self.log_stiffness:
            raise DiffuseError(
                "lattice_dynamics.contacts.log_stiffness: stiffnesses along axes cannot be turned into another setting "
                "of the cell; give the structure in the setting of the map"
            )
        return super().change_basis(cell, operator)

    # -------------------------------------------------------------------------------------------------------- bodies

    def bodies(self, structure: Structure) -> CrystalBodies:
        """The rigid bodies of the cell; structure : asymmetric unit"""
        return _bodies(structure, self.groups, self.selections)

    def contacts(self, structure: Structure) -> tuple:
        """Contacts that symmetry does not relate, tuple of Contact; empty for other springs."""
        return _contacts(structure, self.groups, self.selections, self.contact_cutoff) if self.touching else ()

    def stiffnesses(self, lattice: ContactLattice) -> Stiffnesses:
        """Those of contacts as a function of the parameters.

        Raises
        ------
        DiffuseError
            If there is not one value in ``log_stiffness`` for each parameter.
        """
        found = Stiffnesses(lattice.geometries, self.stiffness)
        if self.log_stiffness and len(self.log_stiffness) != len(found.parameters):
            raise DiffuseError(
                f"lattice_dynamics.contacts.log_stiffness: has {len(self.log_stiffness)} values; "
                f"stiffness={self.stiffness} of {len(lattice.contacts)} contacts needs {len(found.parameters)}"
            )
        return found

    def logarithms(self, stiffnesses: Stiffnesses) -> np.ndarray:
        """(p,) float64, values of the parameters, 0 if none are given."""
        return np.array(self.log_stiffness or np.zeros(len(stiffnesses.parameters)))

    def scale(self, structure: Structure, lattice: ContactLattice) -> float:
        """kT over the stiffness of one pair of atoms, Å², such that the geometric stiffnesses give ``sigma``."""
        stiffnesses = self.stiffnesses(lattice)
        geometric = lattice.lattice(stiffnesses.matrices(np.zeros(len(stiffnesses.parameters))))
        return self.sigma**2 / self._mean_square(structure, geometric)[0]

    def lattice(self, structure: Structure) -> BodyLattice:
        """The bodies of the cell on springs of stiffness 1; structure : asymmetric unit"""
        bodies = self.bodies(structure)
        if self.touching:
            lattice = ContactLattice(bodies, self.contacts(structure))
            stiffnesses = self.stiffnesses(lattice)
            return lattice.lattice(stiffnesses.matrices(self.logarithms(stiffnesses)))
        return body_lattice(bodies, self.cutoff, self.springs == "central")

    def _mean_square(self, structure: Structure, lattice: BodyLattice) -> tuple:
        """Mean over the atoms of their mean square displacements along a direction, and (n, 3, 3) of each; Å²/kT"""
        lattice.check()
        bodies = lattice.bodies
        mean = lattice.mean_inverse(*symmetric_waves(mesh_of_waves(self.mesh), structure))
        tensors = atom_displacements(bodies, mean)
        return np.average(np.trace(tensors, axis1=1, axis2=2) / 3, weights=bodies.content.occupancy), tensors

    def displacements(self, structure: Structure, lattice: BodyLattice, sigma: float) -> tuple:
        """kT over the stiffness, Å², and (n, 3, 3) float64, Å², what the phonons displace each atom of the cell.

        structure : asymmetric unit; lattice : from :meth:`lattice`
        sigma : Å, rms displacement that fixes the former; of contacts that of the geometric stiffnesses
        """
        mean, tensors = self._mean_square(structure, lattice)
        scale = sigma**2 / mean
        if self.touching:
            contacts = ContactLattice(lattice.bodies, self.contacts(structure))
            scale = (sigma / self.sigma) ** 2 * self.scale(structure, contacts)
        return scale, scale * tensors

    def shared_displacements(self, structure: Structure) -> np.ndarray:
        _, tensors = self.displacements(structure, self.lattice(structure), self.sigma)
        return tensors[: structure.n_atoms]  # of the copy of the coordinate file

    # ----------------------------------------------------------------------------------------------------- intensity

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
        lattice = self.lattice(structure)
        bodies = lattice.bodies
        scale, tensors = self.displacements(structure, lattice, 1.0)
        logger.info(
            "lattice_dynamics: %d bodies in the cell with %d coordinates", len(bodies.frames), len(bodies.active)
        )
        warn_of_small_displacements(bodies.content, self.sigma**2 * tensors, "lattice_dynamics")
        hkl = s @ structure.orthogonalization
        bragg = np.all(np.abs(hkl - np.rint(hkl)) < _BRAGG, axis=1)
        if voxel is None and bragg.any():
            raise DiffuseError(
                f"lattice_dynamics: at {hkl[bragg][0].round(6)}, a reciprocal-lattice point, the intensity is infinite"
            )
        v = amplitudes(bodies, s, self.table, self.displaced)
        coherent = np.empty(len(s))
        step = lattice.blocks(len(s))
        for first in range(0, len(s), step):
            there = first + np.flatnonzero(~bragg[first : first + step])
            coherent[there] = _forms(lattice.solve(hkl[there], v[there]), v[there])
        if bragg.any():
            waves, weights = voxel_waves((0, 0, 0), structure)
            inverse = lattice.mean_inverse(waves * np.asarray(voxel), weights, centred=True)
            coherent[bragg] = _forms(v[bragg] @ inverse.T, v[bragg])
        coherent *= scale
        if not self.incoherent:
            return coherent, np.zeros(len(s))
        everything, own = single_atoms(structure, s, self.table)
        return coherent - self._own_phonons(bodies.content, tensors, s), everything - own

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
        index = np.concatenate(list(possible_voxels(replace(grid, hall_symbol=structure.hall_symbol), friedel=True)))
        ready = self.prepare_centres(structure, grid, index)
        values = ready.intensity([parameter.value for parameter in ready.parameters])
        return fill_volume(fitted(structure, grid)[1], index, values, dtype=np.float64)

    def parts_at_voxels(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> tuple:
        """:meth:`parts` at voxels of a grid, (n, 3) integers."""
        return self.parts(structure, grid.s(index), 1 / np.array(grid.subdivide))

    def intensity_at(self, structure: Structure, s: np.ndarray) -> np.ndarray:
        """Diffuse intensity at any points but those of the reciprocal lattice, which raise DiffuseError."""
        first, second = self.parts(structure, np.asarray(s, dtype=float).reshape(-1, 3))
        return self.sigma**2 * first + second

    def parameters(self, structure: Structure) -> tuple:
        if not self.touching:
            return (sigma_parameter(structure, self.sigma),)
        stiffnesses = self.stiffnesses(ContactLattice(self.bodies(structure), self.contacts(structure)))
        values = self.logarithms(stiffnesses)
        most = max(_MOST_LOG, 2 * np.abs(values).max())
        return tuple(
            Parameter(p.name, float(value), "", -most, most, 0.0) for p, value in zip(stiffnesses.parameters, values)
        )

    def with_values(self, structure: Structure, values) -> LatticeDynamics:
        if not self.touching:
            return super().with_values(structure, values)
        return replace(self, log_stiffness=tuple(updated(self.name, self.parameters(structure), values).values()))

    def prepare(self, structure: Structure, grid: MapGrid, index: np.ndarray, means: bool = False) -> Prepared:
        if self.touching:
            return PreparedContacts(self, structure, grid, index, means)
        return self.prepare_centres(structure, grid, index)

    def prepare_centres(self, structure: Structure, grid: MapGrid, index: np.ndarray) -> Prepared:
        if self.touching:
            return PreparedContacts(self, structure, grid, index)
        return PreparedLatticeDynamics(self, structure, grid, index)

    def details(self, structure: Structure, covariance: np.ndarray, share: np.ndarray | None = None) -> dict:
        return Phonons(self, structure, covariance, share).record() if self.touching else {}

    def memory_estimate(self, structure: Structure, grid: MapGrid) -> int:
        labels = group_labels(structure, self.groups, self.selections)
        coordinates = 6 * (labels.max() + 1) * structure.space_group.order_z()
        points = grid.n_voxels // len(laue_operators(grid.space_group, friedel=True)) + 1
        return transform_memory(grid) + 16 * grid.n_voxels + points * (16 * coordinates + 200) + 64 * _NUMBERS

    def correlation_length(self, structure: Structure) -> float:
        return _CELLS * max(structure.unit_cell[:3])


def atom_displacements(bodies: CrystalBodies, mean: np.ndarray) -> np.ndarray:
    """(n, 3, 3) float64, Å², displacement of each atom of the cell by a covariance of all coordinates, (d, d)."""
    whole = np.zeros((6 * len(bodies.frames),) * 2)
    whole[np.ix_(bodies.active, bodies.active)] = mean
    modes = bodies.modes(bodies.content.site_cart)
    first = 6 * bodies.labels[:, None] + np.arange(6)
    return modes @ whole[first[:, :, None], first[:, None, :]] @ modes.transpose(0, 2, 1)


@lru_cache(maxsize=8)
def _bodies(structure: Structure, groups: str, selections: tuple) -> CrystalBodies:
    return crystal_bodies(structure, groups, selections)


@lru_cache(maxsize=8)
def _contacts(structure: Structure, groups: str, selections: tuple, cutoff: float) -> tuple:
    return find_contacts(_bodies(structure, groups, selections), cutoff)


def _forms(solved: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(m,) v† D^-1 v; solved : (m, d), D^-1 v; v : (m, d)"""
    return np.einsum("md,md->m", v.conj(), solved).real
