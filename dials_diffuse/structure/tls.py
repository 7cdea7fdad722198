"""Translation, libration and screw motion of rigid bodies, from parameters or from the header of a PDB file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from cctbx import sgtbx, uctbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.coordinate_file import read_coordinates
from dials_diffuse.structure.crystal import Structure, turn_of_frame, turned_elements
from dials_diffuse.structure.ncs import operators_to_apply
from dials_diffuse.structure.tensors import six_elements, symmetric_tensor

logger = logging.getLogger("dials.diffuse.structure")

#: distance from the origin at which librations are compared with translations, Å
_ARM = 10.0
#: negative eigenvalues of the joint covariance below this share of the largest are rounding of the file
_ROUNDING = 0.01


@dataclass(frozen=True)
class TlsGroup:
    """A body with the displacement u(r) = t + w x (r - origin); t and the small rotation w have a normal distribution.

    Attributes
    ----------
    T : six numbers 11, 22, 33, 12, 13, 23 in Å², <t tᵀ>
    L : the same in degrees², <w wᵀ>
    S : nine numbers 11, 12, 13, 21, ... in Å degrees, <w tᵀ>, as in PDB files
    origin : three numbers, Å
    selection : the atoms, in cctbx's syntax

    Raises
    ------
    DiffuseError
        If the numbers are no covariance of t and w.

    Source: Schomaker & Trueblood 1968, Acta Cryst. B24, 63; Urzhumtsev et al. 2013, Acta Cryst. D69, 1672
    """

    T: tuple
    L: tuple
    S: tuple = (0.0,) * 9
    origin: tuple = (0.0, 0.0, 0.0)
    selection: str = "all"

    def __post_init__(self):
        for name, length in (("T", 6), ("L", 6), ("S", 9), ("origin", 3)):
            values = getattr(self, name)
            if len(values) != length or not np.all(np.isfinite(np.asarray(values, dtype=float))):
                raise DiffuseError(f"tls.{name}={values}: {length} numbers are needed")
        eigenvalues = np.linalg.eigvalsh(self._scaled)
        if eigenvalues[0] < -1e-9 * max(eigenvalues[-1], 1e-9):
            raise DiffuseError(
                f"tls of {self.selection!r}: T, L and S are no covariance of a body's translation and rotation (lowest "
                f"eigenvalue {eigenvalues[0]:.3g} Å² with librations at {_ARM:g} Å from the origin); only the "
                "trace of S is not determined by B factors, so try to change that"
            )

    @cached_property
    def covariance(self) -> np.ndarray:
        """(6, 6) float64 of t (Å) and w (radians)."""
        scale = np.repeat([1.0, 1 / _ARM], 3)
        return self._scaled * np.outer(scale, scale)

    @property
    def _scaled(self) -> np.ndarray:
        """The covariance of t and of w times _ARM, Å²."""
        s = np.radians(np.reshape(self.S, (3, 3))) * _ARM
        l = np.radians(np.radians(symmetric_tensor(self.L))) * _ARM**2
        return np.block([[symmetric_tensor(self.T), s.T], [s, l]])

    def change_basis(self, cell: uctbx.unit_cell, operator: sgtbx.change_of_basis_op) -> TlsGroup:
        """The same motion in the Cartesian frame of another setting of the cell, see :meth:`Structure.change_basis`."""
        turn, new = turn_of_frame(cell, operator), cell.change_basis(operator)
        t, l = (turned_elements(six, turn) for six in (self.T, self.L))
        s = (turn @ np.reshape(self.S, (3, 3)) @ turn.T).reshape(-1).tolist()
        origin = new.orthogonalize(operator.c() * cell.fractionalize(self.origin))
        return replace(self, T=t, L=l, S=tuple(s), origin=tuple(origin))

    def modes(self, structure: Structure) -> np.ndarray:
        """(n, 3, 6) float64: the displacement of each atom is this matrix times t (Å) and w (radians)."""
        return rigid_motions(structure.site_cart - np.asarray(self.origin, dtype=float))


def rigid_motions(x: np.ndarray) -> np.ndarray:
    """(n, 3, 6) float64: displacement of points x, (n, 3), by t and w is this matrix times both, t + w x x."""
    a, b, c = x.T
    zero = np.zeros_like(a)
    cross = np.stack([[zero, c, -b], [-c, zero, a], [b, -a, zero]])
    return np.concatenate([np.tile(np.eye(3), (len(x), 1, 1)), cross.transpose(2, 0, 1)], axis=2)


def load_tls(path) -> tuple:
    """The TLS groups of the header of a PDB or mmCIF file.

    What is not quite a covariance because of refinement or rounding is replaced by the nearest one, with a warning.

    Returns
    -------
    tuple of TlsGroup

    Raises
    ------
    DiffuseError
        If the file cannot be read, or has none, or holds only some of the atoms that they are to move.
    """
    file = read_coordinates(path)
    groups = file.header_tls()
    if not groups:
        raise DiffuseError(f"{path}: has no TLS groups in its header; give T, L and S as parameters")
    if operators_to_apply(file.content.operators, path):
        raise DiffuseError(
            f"{path}: its TLS groups are those of the atoms in the file, but MTRIX records add copies of these; write "
            "out all atoms with a group for each copy, or give T, L and S as parameters"
        )
    return tuple(_nearest(path, g.t, g.l, g.s, tuple(float(x) for x in g.origin), g.selection) for g in groups)


def _nearest(path, t, l, s, origin, selection) -> TlsGroup:
    arm = np.radians(1.0) * _ARM
    joint = np.block([[t, s.T * arm], [s * arm, l * arm**2]])
    values, vectors = np.linalg.eigh(joint)
    if values[0] < 0:
        if values[0] < -_ROUNDING * values[-1]:
            logger.warning(
                "%s: TLS group %s is no covariance (lowest eigenvalue %.3g Å²); the nearest one is used",
                path,
                selection,
                values[0],
            )
        joint = (vectors * np.maximum(values, 0)) @ vectors.T
    t, s, l = joint[:3, :3], joint[3:, :3] / arm, joint[3:, 3:] / arm**2
    t, l = (tuple(six_elements(m).tolist()) for m in (t, l))
    return TlsGroup(t, l, tuple(s.reshape(-1).tolist()), origin, selection)
