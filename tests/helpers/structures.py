"""Small crystal structures: random atoms in any space group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cctbx import crystal, sgtbx, uctbx

from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.crystal import Structure

#: of small_molecule
CELL = (14.0, 14.0, 17.0, 90.0, 90.0, 90.0)

#: Å, near the K edge of iron, where f' = -4.5 and f'' = 3.9
WAVELENGTH = 1.73

#: a .pdb file
CRYST1 = "CRYST1   20.000   21.000   22.000  90.00  95.00  90.00 P 1 21 1      2\n"
ATOMS = """\
ATOM      1  N   GLY A   1       1.000   2.000   3.000  1.00 10.00           N
ANISOU    1  N   GLY A   1     1000   2000   3000    100    200   -300       N
ATOM      2  CA AGLY A   1       2.000   2.500   3.500  0.60 11.00           C
ATOM      3  CA BGLY A   1       2.100   2.700   3.300  0.40 12.00           C
ATOM      4  O   GLY A   1A      4.000   2.500   5.500  1.00 13.00           O1-
ATOM      5  H   GLY A   1A      4.500   2.500   6.200  1.00 14.00           H
HETATM    6 ZN    ZN B   5       9.000   8.000   7.000  1.00 15.00          ZN2+
"""

#: symbol, cell: one of each crystal system, and settings that are not the reference ones
GROUPS = [
    ("P 1", (9.0, 10.5, 12.0, 80.0, 95.0, 107.0)),
    ("P 1 21 1", (9.0, 10.5, 12.0, 90.0, 103.0, 90.0)),
    ("P 1 1 21", (9.0, 10.5, 12.0, 90.0, 90.0, 103.0)),
    ("I 1 2 1", (13.0, 10.5, 12.0, 90.0, 98.0, 90.0)),
    ("P 21 21 21", (9.0, 10.5, 12.0, 90.0, 90.0, 90.0)),
    ("P 41", (11.0, 11.0, 13.0, 90.0, 90.0, 90.0)),
    ("P 31 2 1", (11.0, 11.0, 14.0, 90.0, 90.0, 120.0)),
    ("P 6", (12.0, 12.0, 9.0, 90.0, 90.0, 120.0)),
    ("P 2 3", (12.0, 12.0, 12.0, 90.0, 90.0, 90.0)),
]

#: the names of GROUPS, for pytest
GROUP_NAMES = [symbol.replace(" ", "") for symbol, _ in GROUPS]


def random_structure(
    space_group="P 1",
    unit_cell=(9.0, 10.5, 12.0, 80.0, 95.0, 107.0),
    elements="CNOCS",
    u=(0.1, 0.3),
    anisotropic=False,
    seed=0,
    radius=2.5,
) -> Structure:
    """A molecule of atoms scattered over a ball, away from special positions.

    u : range of U in Å²; with ``anisotropic`` random tensors whose eigenvalues lie in the range
    """
    rng = np.random.default_rng(seed)
    n = len(elements)
    cell = uctbx.unit_cell(unit_cell)
    group = sgtbx.space_group_info(space_group).group()
    settings = crystal.special_position_settings(
        crystal.symmetry(unit_cell=cell, space_group=group), min_distance_sym_equiv=0.8
    )
    centre = cell.orthogonalize((0.21, 0.17, 0.28))
    sites = []
    while len(sites) < n:
        step = rng.uniform(-radius, radius, 3)
        site = cell.fractionalize(tuple(np.array(centre) + step))
        if np.linalg.norm(step) < radius and not settings.site_symmetry(site).multiplicity() < group.order_z():
            sites.append(site)
    values = rng.uniform(*u, n)
    if anisotropic:
        turns = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
        values = np.einsum("nij,nj,nkj->nik", turns, rng.uniform(*u, (n, 3)), turns)
    return make_structure(unit_cell, space_group, list(elements), sites, u=values)


def small_molecule(seed=0) -> Structure:
    """Six atoms in P 41."""
    return random_structure("P 41", CELL, elements="CNOCSC", u=(0.15, 0.3), radius=3.5, seed=seed)


def members(structure, n=4):
    """``n`` copies of a structure, each atom displaced at random."""
    rng = np.random.default_rng(0)
    shape = structure.site_frac.shape
    return tuple(replace(structure, site_frac=structure.site_frac + 0.02 * rng.normal(size=shape)) for _ in range(n))


def special_structure() -> Structure:
    """Zn on a 4-fold axis of P 4, partial S near a 2-fold axis, and general atoms."""
    return make_structure(
        (9.0, 9.0, 11.0, 90, 90, 90),
        "P 4",
        ["Zn", "C", "S", "O"],
        [(0.01, -0.005, 0.2), (0.2, 0.3, 0.4), (0.5, 0.01, 0.7), (0.35, 0.1, 0.9)],
        u=[0.1, 0.2, 0.25, 0.3],
        occupancy=[1.0, 1.0, 0.5, 0.7],
    )
