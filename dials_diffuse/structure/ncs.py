"""Copies of the atoms by MTRIX records, where they complete what a file gives."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from iotbx.pdb.utils import all_chain_ids
from scipy.spatial import cKDTree

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.records import Records

logger = logging.getLogger("dials.diffuse.structure")

#: a matrix may miss a rotation by as much: six decimals, summed
_ROTATION_TOLERANCE = 1e-3

#: a chain's copy is there already if as large a share lies within as much (Å) of given atoms of the same name
_SHARE, _DISTANCE = 0.5, 1.0


def operators_to_apply(operators, path) -> tuple:
    """The operators whose copies the file leaves out: those that are not marked as given, but for the identity.

    Raises
    ------
    DiffuseError
        If an operator is no rotation, or if some copies are given and others not: what these are copies of, the file
        does not say.
    """
    missing = tuple(o for o in operators if not o.given and not o.is_identity)
    for operator in missing:
        r = operator.rotation
        error = np.abs(r @ r.T - np.eye(3)).max()
        if not (error < _ROTATION_TOLERANCE and np.linalg.det(r) > 0 and np.all(np.isfinite(operator.shift))):
            raise DiffuseError(f"{path}: the MTRIX records of operator {operator.name} are no rotation; correct them")
    given = [o for o in operators if o.given and not o.is_identity]
    if missing and given:
        raise DiffuseError(
            f"{path}: copies by the MTRIX records {_names(given)} are in the file, those by {_names(missing)} are not; "
            "write out all atoms of the asymmetric unit, and remove these records"
        )
    return missing


def with_copies(records: Records, operators, path) -> Records:
    """The atoms and their copies by some operators, in chains with names of their own; tensors are rotated.

    operators : as from :func:`operators_to_apply`. Those whose copies are in the file in spite of what it says are left
    out, with a warning.
    """
    tree, chains = cKDTree(records.site), np.unique(records.chain, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(chains)
    parts, used, renamed = [records], set(records.chain.tolist()), []
    names = (name for name in all_chain_ids() if name not in used)
    present = []
    for operator in operators:
        site = records.site @ operator.rotation.T + operator.shift
        distance, nearest = tree.query(site, distance_upper_bound=_DISTANCE)
        there = np.isfinite(distance)
        there[there] = records.name[nearest[there]] == records.name[there]
        shares = np.bincount(chains, there) / sizes
        if np.any(shares[2 * sizes >= sizes.max()] > _SHARE):
            present.append(operator)
            continue
        new = {chain: next(names) for chain in dict.fromkeys(records.chain.tolist())}
        renamed.append(", ".join(new.values()))
        parts.append(
            replace(
                records,
                chain=np.array([new[chain] for chain in records.chain.tolist()]),
                site=site,
                u_aniso=operator.rotation @ records.u_aniso @ operator.rotation.T,
            )
        )
    if present:
        logger.warning(
            "%s: the MTRIX records do not say that the copies by %s are in the file, but they are; they are not added",
            path,
            _names(present),
        )
    if len(parts) > 1:
        logger.info(
            "%s: MTRIX records complete the asymmetric unit: %d copies are added to %d atoms, as chains %s",
            path,
            len(parts) - 1,
            records.n_atoms,
            "; ".join(renamed) if len(renamed) <= 5 else f"{renamed[0]}; ...; {renamed[-1]}",
        )
    return Records.joined(parts)


def _names(operators) -> str:
    return ", ".join(operator.name for operator in operators)
