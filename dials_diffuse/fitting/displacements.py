"""Do the displacements that the diffuse scattering asks for fit those of the Bragg reflections, the atoms' U?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_labels

#: Å², rounding of coordinate files
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class DisplacementComparison:
    """Displacements of a fitted model beside those of the structure.

    Attributes
    ----------
    model : kind of model
    u_model, u_structure : Å², mean over the atoms of a third of the trace
    correlation : of the two over groups of atoms; NaN if the model gives all the same
    n_exceeded : atoms that move less than what the model says they share
    n_atoms : int
    """

    model: str
    u_model: float
    u_structure: float
    correlation: float
    n_exceeded: int
    n_atoms: int

    @property
    def warning(self) -> str:
        if not self.n_exceeded:
            return ""
        return (
            f"the common displacement of {self.model} (mean U {self.u_model:.3g} Å²) exceeds that of {self.n_exceeded} "
            f"of {self.n_atoms} atoms (mean U {self.u_structure:.3g} Å²), which is unphysical"
        )

    def record(self) -> dict:
        return asdict(self)


def compare_displacements(model, structure: Structure) -> list:
    """A DisplacementComparison of a model; of a tuple that of each one and that of their sum, as they are independent.

    None of models without common displacements, such as ensembles.
    """
    parts = [(part, _tensors(part, structure)) for part in (model if isinstance(model, tuple) else (model,))]
    known = [(part.name, tensors) for part, tensors in parts if tensors is not None]
    found = [_compared(name, tensors, structure) for name, tensors in known]
    if len(known) > 1:
        names, tensors = zip(*known)
        found.append(_compared("+".join(names), sum(tensors), structure))
    return found


def _tensors(model, structure: Structure) -> np.ndarray | None:
    """(atoms, 3, 3) float64, Å², what a model says that atoms share with others."""
    if isinstance(model, LiquidLikeMotions):
        return np.broadcast_to(model.tensor, (structure.n_atoms, 3, 3))
    if isinstance(model, RigidBody) and not model.tls:
        if not model.separate:
            return np.broadcast_to(model.displacements[0], (structure.n_atoms, 3, 3))
        return model.displacements[group_labels(structure, _groups(model), model.selections)]
    if isinstance(model, (RigidBody, Covariance)):
        return model.motion(structure).shared[: structure.n_atoms]  # of a block of cells the first copy
    return None


def _compared(name: str, common: np.ndarray, structure: Structure) -> DisplacementComparison:
    means, own = (np.trace(t, axis1=1, axis2=2) / 3 for t in (common, structure.u_cart))
    varied = np.ptp(means) > 1e-9 and np.ptp(own) > 1e-9
    return DisplacementComparison(
        model=name,
        u_model=float(means.mean()),
        u_structure=float(own.mean()),
        correlation=float(np.corrcoef(means, own)[0, 1]) if varied else math.nan,
        n_exceeded=int(np.count_nonzero(np.linalg.eigvalsh(structure.u_cart - common)[:, 0] < -_TOLERANCE)),
        n_atoms=structure.n_atoms,
    )


def _groups(model: RigidBody) -> str:
    return "molecule" if model.body in ("cell", "asu") else model.body
