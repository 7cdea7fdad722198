"""The solvent that bodies displace: flat, in each body's own envelope, so that it moves with the body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx.eltbx import van_der_waals_radii
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from dials_diffuse.checks import not_negative
from dials_diffuse.structure.crystal import Structure

#: Å, by which the envelope is wider than the atoms, and what of this is taken back, as for the mask of bulk solvent
_PROBE, _SHRINK = 1.11, 0.9
#: Å, between the points that fill the envelope
_STEP = 0.7
#: Å, of elements whose radius is not known
_SOME_RADIUS = 1.7


@dataclass(frozen=True)
class FlatSolvent:
    """Solvent of an even density.

    Attributes
    ----------
    k_sol : electrons/Å³ (form factors of electrons: Å of scattering length per Å³)
    b_sol : Å², of the smooth edge of the envelope, exp(-b_sol s²/4)

    Raises
    ------
    DiffuseError
        If a value is negative.

    Source: Jiang & Brünger 1994, J. Mol. Biol. 243, 100
    """

    k_sol: float = 0.35
    b_sol: float = 46.0

    def __post_init__(self):
        for name in ("k_sol", "b_sol"):
            not_negative(name, getattr(self, name))


def displaced_solvent(structure: Structure, labels: np.ndarray, solvent: FlatSolvent) -> list:
    """What bodies displace, as a structure of points for each; their form factor is 1, see ``factors.FLAT``.

    The envelope of all atoms together is divided: a point belongs to the body of the nearest atom (its surface).

    Parameters
    ----------
    structure : one copy of the molecules, whatever its symmetry
    labels : (n,) int64, body of each atom, from 0
    solvent : FlatSolvent

    Returns
    -------
    list of Structure, in P 1, one for each body; points have an occupancy of k_sol times their volume

    Notes
    -----
    Points within the van der Waals radius and 1.11 Å of an atom, less those within 0.9 Å of the outside. The lattice of
    points has its origin at the mean of the atoms, so that it moves with them.
    """
    sites, table = structure.site_cart, van_der_waals_radii.vdw.table
    radii = np.array([table.get(str(element), _SOME_RADIUS) for element in structure.element])
    origin, widest = sites.mean(axis=0), radii.max() + _PROBE + _STEP
    first = np.floor((sites.min(axis=0) - origin - widest) / _STEP).astype(int)
    last = np.ceil((sites.max(axis=0) - origin + widest) / _STEP).astype(int)
    axes = [np.arange(a, b + 1) * _STEP for a, b in zip(first, last)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    shape = points.shape[:3]
    points = points.reshape(-1, 3) + origin
    depth, nearest = np.full(len(points), np.inf), np.zeros(len(points), dtype=np.int64)
    for radius in np.unique(radii):
        mine = np.flatnonzero(radii == radius)
        distance, atom = cKDTree(sites[mine]).query(points, distance_upper_bound=radius + _PROBE)
        closer = distance - radius < depth
        depth[closer] = (distance - radius)[closer]
        nearest[closer] = mine[atom[closer]]
    inside = (depth <= _PROBE).reshape(shape)
    # the outside begins before its nearest point, a quarter of a step on the average
    inside = distance_transform_edt(inside, sampling=_STEP) > _SHRINK + _STEP / 4
    chosen = np.flatnonzero(inside)
    body = labels[nearest[chosen]]
    return [_points(structure, points[chosen[body == b]], solvent) for b in range(labels.max() + 1)]


def _points(structure: Structure, sites: np.ndarray, solvent: FlatSolvent) -> Structure:
    n = max(len(sites), 1)  # a body inside others displaces nothing: one point without weight
    weight = solvent.k_sol * _STEP**3 if len(sites) else 0.0
    sites = sites if len(sites) else structure.site_cart[:1]
    text = np.full(n, "O")
    return Structure(
        unit_cell=structure.unit_cell,
        hall_symbol="P 1",
        element=text,
        scattering_type=text,
        site_frac=sites @ np.linalg.inv(structure.orthogonalization).T,
        occupancy=np.full(n, weight),
        u_cart=np.tile(solvent.b_sol / (8 * np.pi**2) * np.eye(3), (n, 1, 1)),
        multiplicity=np.ones(n, dtype=np.int64),
        copy=np.zeros(n, dtype=np.int64),
        chain=text,
        residue=text,
        residue_name=text,
        name=text,
        altloc=text,
        hetero=np.zeros(n, dtype=bool),
    )
