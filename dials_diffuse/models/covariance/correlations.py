"""Correlations of the displacements of residues, or of other groups, from the covariance of what a model moves."""

from __future__ import annotations

import numpy as np

from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.groups import group_labels, group_names

#: more groups than these make a picture that nobody can read, and a large file
MAX_GROUPS = 400

#: with fewer, atoms are told one by one
_FEWEST_RESIDUES = 3


def group_correlations(structure: Structure, covariance: np.ndarray, groups: str, selections: tuple = ()) -> dict:
    """Names of groups and the correlations of their displacements; empty for fewer than two, and for too many.

    Atoms are gathered into residues, whose displacement is the mean of theirs. Of tensors a third of the trace counts.

    Parameters
    ----------
    covariance : (g, g) or (g, g, 3, 3) float64, Å², of the groups of the structure
    groups, selections : as for :func:`structure.groups.group_labels`

    Returns
    -------
    dict : ``groups``, g names; ``correlations``, g lists of g numbers from -1 to 1
    """
    if covariance.ndim == 4:
        covariance = np.trace(covariance, axis1=2, axis2=3) / 3
    names = group_names(structure, groups, selections)
    if groups == "atom":
        residue = group_labels(structure, "residue")
        if residue.max() + 1 >= _FEWEST_RESIDUES:
            share = np.equal.outer(np.arange(residue.max() + 1), residue).astype(float)
            share /= share.sum(axis=1, keepdims=True)
            names, covariance = group_names(structure, "residue"), share @ covariance @ share.T
    if not 1 < len(names) <= MAX_GROUPS:
        return {}
    size = np.sqrt(np.maximum(np.diag(covariance), 0))
    unit = np.outer(size, size)
    found = np.divide(covariance, unit, out=np.zeros_like(covariance), where=unit > 0)
    return {"groups": list(names), "correlations": np.round(found, 3).tolist()}
