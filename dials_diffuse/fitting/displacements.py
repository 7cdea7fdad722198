"""Do the displacements that the diffuse scattering asks for fit those of the Bragg reflections, the atoms' U?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_labels, group_names

#: Å², rounding of coordinate files
_TOLERANCE = 1e-4

#: with fewer, displacements are told atom by atom
_FEWEST_RESIDUES = 3


@dataclass(frozen=True)
class DisplacementComparison:
    """Displacements of a fitted model beside those of the structure.

    Attributes
    ----------
    model : its name in the programs, of a sum all with + between them
    u_model, u_structure : Å², mean over the atoms of a third of the trace
    correlation : of the two over groups of atoms; NaN if the model gives all the same
    n_exceeded : atoms that move less than what the model says they share
    n_atoms : int
    groups : names of residues, or of atoms where there are fewer than three residues
    u_groups : (groups, 2) float64, Å², the mean over each of them, of the model and of the structure
    """

    model: str
    u_model: float
    u_structure: float
    correlation: float
    n_exceeded: int
    n_atoms: int
    groups: tuple = ()
    u_groups: tuple = ()

    @property
    def warning(self) -> str:
        if not self.n_exceeded:
            return ""
        return (
            f"the common displacement of {self.model} (mean U {self.u_model:.3g} Å²) exceeds that of {self.n_exceeded} "
            f"of {self.n_atoms} atoms (mean U {self.u_structure:.3g} Å²), which is unphysical"
        )

    def record(self) -> dict:
        groups = [{"name": n, "u_model": u, "u_structure": v} for n, (u, v) in zip(self.groups, self.u_groups)]
        return {**asdict(replace(self, groups=(), u_groups=())), "groups": groups}


def compare_displacements(models, structure: Structure) -> tuple:
    """A DisplacementComparison of each model, and of their sum, as models of a sum move independently.

    Parameters
    ----------
    models : one, or those of a sum; models that do not say what displacement their atoms share are left out
    """
    shared = [(model.name, model.shared_displacements(structure)) for model in models]
    known = [(name, tensors) for name, tensors in shared if tensors is not None]
    found = [_compared(name, tensors, structure) for name, tensors in known]
    if len(known) > 1:
        names, tensors = zip(*known)
        found.append(_compared("+".join(names), sum(tensors), structure))
    return tuple(found)


def _compared(name: str, common: np.ndarray, structure: Structure) -> DisplacementComparison:
    means, own = (np.trace(t, axis1=1, axis2=2) / 3 for t in (common, structure.u_cart))
    varied = np.ptp(means) > 1e-9 and np.ptp(own) > 1e-9
    kind = "residue" if len(set(group_labels(structure, "residue"))) >= _FEWEST_RESIDUES else "atom"
    labels = group_labels(structure, kind)
    number = np.bincount(labels)
    return DisplacementComparison(
        model=name,
        u_model=float(means.mean()),
        u_structure=float(own.mean()),
        correlation=float(np.corrcoef(means, own)[0, 1]) if varied else math.nan,
        n_exceeded=int(np.count_nonzero(np.linalg.eigvalsh(structure.u_cart - common)[:, 0] < -_TOLERANCE)),
        n_atoms=structure.n_atoms,
        groups=group_names(structure, kind),
        u_groups=tuple(zip(*((np.bincount(labels, u) / number).tolist() for u in (means, own)))),
    )
