"""Do the displacements that the diffuse scattering asks for fit those of the Bragg reflections, the atoms' U?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from dials_diffuse.models import MODELS, Covariance, LiquidLikeMotions, RigidBody
from dials_diffuse.structure.atoms import Structure
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
    """A DisplacementComparison of a model, or of each one in a tuple; none of models without common displacements."""
    if isinstance(model, tuple):
        return [found for part in model for found in compare_displacements(part, structure)]
    if isinstance(model, LiquidLikeMotions):
        tensors = np.broadcast_to(model.tensor, (structure.n_atoms, 3, 3))
    elif isinstance(model, RigidBody) and not model.tls and len(model.displacements) == 1:
        tensors = np.broadcast_to(model.displacements[0], (structure.n_atoms, 3, 3))
    elif isinstance(model, Covariance):
        covariance = model.motion(structure).covariance
        own = np.array([covariance[g, g] for g in range(len(covariance))])
        labels = group_labels(structure, model.groups, model.selections)
        tensors = (own if own.ndim == 3 else own[:, None, None] * np.eye(3))[labels]
    else:
        return []
    common, own = (np.trace(t, axis1=1, axis2=2) / 3 for t in (tensors, structure.u_cart))
    varied = np.ptp(common) > 1e-9 and np.ptp(own) > 1e-9
    return [
        DisplacementComparison(
            model=next(name for name, kind in MODELS.items() if isinstance(model, kind)),
            u_model=float(common.mean()),
            u_structure=float(own.mean()),
            correlation=float(np.corrcoef(common, own)[0, 1]) if varied else math.nan,
            n_exceeded=int(np.count_nonzero(np.linalg.eigvalsh(structure.u_cart - tensors)[:, 0] < -_TOLERANCE)),
            n_atoms=structure.n_atoms,
        )
    ]
