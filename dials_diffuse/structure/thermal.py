"""Displacements of atoms where a file has none, or only what its TLS groups leave over."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from cctbx import adptbx

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.coordinate_file import CoordinateFile
from dials_diffuse.structure.records import Records
from dials_diffuse.structure.tls import rigid_motions

logger = logging.getLogger("dials.diffuse.structure")

#: a tensor and a B factor that differ by no more (Å²), which is rounding, are of the same motion
_SAME_MOTION = 5e-4


def with_tls(records: Records, file: CoordinateFile) -> Records:
    """The atoms with the motion of the TLS groups added to B factors that lack it, U = U + T + A L Aᵀ + A S + Sᵀ Aᵀ.

    Anisotropic tensors lack it too where they agree with the B factor beside them; others are whole already. If the
    groups cannot be read, that is said and nothing is added.

    Source: Schomaker & Trueblood 1968, Acta Cryst. B24, 63
    """
    try:
        groups = file.header_tls()
        chosen = [records.select(group.selection) for group in groups]
        reason = "those of the header hold no atoms" if groups else "the header has none that can be read"
    except DiffuseError as error:
        chosen, reason = [], str(error)
    if not np.any(chosen):
        logger.warning(
            "%s: says that its B factors are residual, without the motion of TLS groups, but %s; displacements are too "
            "small by that. Write the sum of both (refmac's TLSOUT ADDU, or tlsanl)",
            file.path,
            reason,
        )
        return records
    matrix, shift = file.fractional_frame
    orthogonalization = np.linalg.inv(np.array(file.cell.fractionalization_matrix()).reshape(3, 3))
    site = (records.site @ matrix.T + shift) @ orthogonalization.T  # in the frame of the groups
    added = np.zeros((records.n_atoms, 3, 3))
    for group, mine in zip(groups, chosen):
        added[mine] += _motion(group, site[mine])
    added = file.rotation.T @ added @ file.rotation
    lacking = _lacking(records) & np.any(chosen, axis=0)
    whole = np.where(np.isfinite(records.u_aniso), records.u_aniso, records.u_iso[:, None, None] * np.eye(3)) + added
    if lacking.any():
        mean = np.trace(added[lacking], axis1=1, axis2=2).mean() / 3
        logger.info(
            "%s: its B factors are residual; the motion of %d TLS groups is added to %d of %d atoms, on the average "
            "%.3f Å² (B = %.1f Å²) to %.3f Å²",
            file.path,
            len(groups),
            np.count_nonzero(lacking),
            records.n_atoms,
            mean,
            adptbx.u_as_b(mean),
            np.nanmean(records.u_iso[lacking]),
        )
    tensors = np.where(lacking[:, None, None], whole, records.u_aniso)
    u_iso = np.where(lacking, np.trace(tensors, axis1=1, axis2=2) / 3, records.u_iso)
    return replace(records, u_aniso=tensors, u_iso=u_iso)


def with_all_displacements(records: Records, path) -> Records:
    """The atoms with a displacement for each: the mean of the others for those that have none.

    Where none has any, all are taken at rest. Both are said.
    """
    known = np.isfinite(records.u_iso) | np.isfinite(records.u_aniso).all(axis=(1, 2))
    if known.all():
        _warn_of_rest(records, path)
        return records
    advice = "write B factors (columns 61-66, or _atom_site.B_iso_or_equiv)"
    if not known.any():
        logger.warning("%s: has no B factors, so that all atoms are taken at rest; %s", path, advice)
        return replace(records, u_iso=np.zeros(records.n_atoms))
    means = np.where(np.isfinite(records.u_aniso).all(axis=(1, 2)), np.trace(records.u_aniso, axis1=1, axis2=2) / 3, 0)
    means = np.where(np.isfinite(records.u_iso), records.u_iso, means)
    mean = means[known].mean()
    logger.warning(
        "%s: %d of %d atoms have no B factor, such as %s; they have the mean of the others, %.1f Å²; %s",
        path,
        np.count_nonzero(~known),
        records.n_atoms,
        records.label(np.flatnonzero(~known)[0]),
        adptbx.u_as_b(mean),
        advice,
    )
    return replace(records, u_iso=np.where(known, means, mean))


def _warn_of_rest(records: Records, path) -> None:
    rest = (records.u_iso == 0) & ~np.isfinite(records.u_aniso).all(axis=(1, 2))
    if rest.all():
        logger.warning("%s: all B factors are 0, so that all atoms are taken at rest; write B factors", path)
    elif rest.any():
        logger.warning(
            "%s: %d of %d atoms have a B factor of 0, such as %s; they are taken at rest. If it is not known, leave "
            "its columns blank, for the mean of the others",
            path,
            np.count_nonzero(rest),
            records.n_atoms,
            records.label(np.flatnonzero(rest)[0]),
        )


def _lacking(records: Records) -> np.ndarray:
    """(n,) bool, atoms with displacements that lack the motion of their TLS group."""
    equivalent = np.trace(records.u_aniso, axis1=1, axis2=2) / 3
    return ~(np.abs(equivalent - records.u_iso) > _SAME_MOTION)  # NaN where there is no tensor, or no B factor


def _motion(group, site: np.ndarray) -> np.ndarray:
    """(n, 3, 3) float64, Å², of a HeaderTls at sites, (n, 3), Å."""
    s = np.radians(group.s)
    joint = np.block([[group.t, s.T], [s, np.radians(np.radians(group.l))]])
    modes = rigid_motions(site - group.origin)
    return modes @ joint @ modes.transpose(0, 2, 1)
