"""The solvent that bodies displace: how much, whose it is, and what it does to their contrast."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from cctbx.eltbx import tiny_pse
from helpers.pair_sums import at, close, some_voxels, vectors
from helpers.structures import GROUPS, random_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.lattice_dynamics.body_scattering import amplitudes
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.simulation.plan import example_path
from dials_diffuse.structure.atoms import load_structure, make_structure
from dials_diffuse.structure.envelope import FlatSolvent, displaced_solvent
from dials_diffuse.structure.factors import FLAT
from dials_diffuse.structure.tls import TlsGroup
from dials_diffuse.structure.transform import transform_at

CELL = (40.0, 42.0, 45.0, 90.0, 90.0, 90.0)


def test_the_envelope_of_an_atom_is_a_ball():
    """Of its van der Waals radius (carbon: 1.775 Å in cctbx's table) and 1.11 - 0.9 Å."""
    radius = 1.775 + 1.11 - 0.9
    structure = make_structure(CELL, "P 1", ["C"], [[0.3, 0.3, 0.3]], u=0.2)
    (points,) = displaced_solvent(structure, np.zeros(1, dtype=int), FlatSolvent(0.4, 46.0))
    volume = points.occupancy.sum() / 0.4
    assert volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.25)  # of 0.7 Å steps
    distance = np.linalg.norm(points.site_cart - structure.site_cart, axis=1)
    assert radius - 0.7 < distance.max() < radius + 0.7


def test_a_protein_displaces_its_volume():
    """0.73 cm³/g, as proteins do in solution, less water that they bind; hydrogens are in the radii of the others."""
    structure = load_structure(example_path("lysozyme"), "not element H and not water")
    mass = sum(tiny_pse.table(str(e)).weight() for e in structure.element) * 1.075  # with its hydrogens
    (solvent,) = displaced_solvent(structure, np.zeros(structure.n_atoms, dtype=int), FlatSolvent(1.0, 46.0))
    assert solvent.occupancy.sum() == pytest.approx(0.73 * mass / 0.6022 * 0.95, rel=0.06)


def test_many_atoms_displace_their_volume():
    """A ball of 10 Å filled with atoms on a lattice: nearly all of the ball, whose surface is not smooth."""
    points = np.array([x for x in np.ndindex(17, 17, 17) if np.linalg.norm(np.array(x) - 8) * 1.2 <= 8.0]) * 1.2
    structure = make_structure(CELL, "P 1", ["C"] * len(points), (points + 8.0) / CELL[:3], u=0.2)
    (solvent,) = displaced_solvent(structure, np.zeros(len(points), dtype=int), FlatSolvent(0.35, 46.0))
    assert solvent.occupancy.sum() / 0.35 == pytest.approx(4 / 3 * math.pi * (8.0 + 1.775 + 0.21) ** 3, rel=0.12)
    s = np.array([[0.01, 0.02, 0.0], [0.05, 0.0, 0.08]])
    phases = np.exp(2j * np.pi * (s @ solvent.site_cart.T)) @ solvent.occupancy
    close(transform_at(solvent, s, FLAT), phases * np.exp(-46.0 * np.sum(s**2, axis=1) / 4), 1e-9)


def test_parts_of_a_molecule_share_its_envelope():
    rng = np.random.default_rng(0)
    sites = rng.uniform(0.3, 0.6, (40, 3))
    structure = make_structure(CELL, "P 1", list("CNOS" * 10), sites, u=0.2)
    labels = (sites[:, 0] > 0.45).astype(int)
    whole = displaced_solvent(structure, np.zeros(40, dtype=int), FlatSolvent())[0]
    parts = displaced_solvent(structure, labels, FlatSolvent())
    assert sum(p.occupancy.sum() for p in parts) == pytest.approx(whole.occupancy.sum())
    for b, part in enumerate(parts):
        own, other = (
            np.linalg.norm(part.site_cart[:, None] - structure.site_cart[labels == k], axis=-1).min(axis=1)
            for k in (b, 1 - b)
        )
        assert np.mean(own < other + 0.4) > 0.99  # radii differ
    inside = np.concatenate([np.zeros(39, dtype=int), [1]])
    buried = displaced_solvent(replace(structure, site_frac=np.tile(sites[:1], (40, 1))), inside, FlatSolvent())
    assert buried[1].occupancy.sum() >= 0


@pytest.mark.parametrize(("symbol", "cell"), [GROUPS[0], GROUPS[4], GROUPS[6]])
def test_contrast_of_moving_bodies(symbol, cell):
    """Amplitudes less those of the points as atoms of their own; the intensity keeps the symmetry."""
    structure = random_structure(symbol, cell, "CNOCS", u=(0.2, 0.3))
    model = LatticeDynamics(0.2, "contacts", contact_cutoff=11.0, mesh=(2, 2, 2))
    bodies = model.bodies(structure)
    s = np.random.default_rng(0).uniform(-0.2, 0.2, (20, 3))
    solvent = FlatSolvent(0.35, 46.0)
    found = amplitudes(bodies, s, "wk1995", None) - amplitudes(bodies, s, "wk1995", solvent)
    (points,) = displaced_solvent(bodies.content.take(np.arange(5)), np.zeros(5, dtype=int), solvent)
    weights = points.occupancy[:, None] * np.exp(-46.0 * np.sum(s**2, axis=1) / 4)
    expected = []
    for b, turn in enumerate(bodies.turns):
        arms = (points.site_cart - bodies.centres[0]) @ turn.T
        motions = np.concatenate([np.tile(np.eye(3), (len(arms), 1, 1)), -np.array([cross(a) for a in arms])], axis=2)
        phase = weights * np.exp(2j * np.pi * ((arms + bodies.centres[b]) @ s.T))
        expected.append(np.einsum("nm,mc,ncd->md", phase, 2 * np.pi * s, motions @ bodies.frames[b]))
    close(found, np.concatenate(expected, axis=1), 1e-8)
    inverse = np.linalg.inv(structure.orthogonalization)
    hkl = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    operators = laue_operators(structure.space_group, friedel=True)
    values = model.intensity_at(structure, np.concatenate([hkl @ r @ inverse for r in operators])).reshape(-1, 6)
    np.testing.assert_allclose(values, np.tile(values[0], (len(operators), 1)), rtol=1e-6)


def cross(a):
    """The matrix of a x."""
    return np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])


def test_contrast_is_on_for_contacts_and_can_be_switched():
    assert LatticeDynamics(0.2).displaced is None
    assert LatticeDynamics(0.2, "contacts").displaced == FlatSolvent()
    assert LatticeDynamics(0.2, "contacts", solvent=False).displaced is None
    assert LatticeDynamics(0.2, solvent=True, k_sol=0.4).displaced == FlatSolvent(0.4, 46.0)
    assert LatticeDynamics(0.2, "contacts", table="electron").displaced is None
    with pytest.raises(DiffuseError, match="k_sol=-1"):
        LatticeDynamics(0.2, k_sol=-1.0)


@pytest.mark.parametrize("body", ["asu", "residue"])
def test_contrast_of_rigid_bodies(body):
    """|F - F of the points|² of each body and copy; maps and points are the same."""
    structure = random_structure("P 21 21 21", GROUPS[4][1], "CNOCS", u=(0.2, 0.3))
    structure = replace(structure, residue=np.array(["   1 ", "   1 ", "   2 ", "   2 ", "   2 "]))
    labels = np.array([0, 0, 1, 1, 1]) * (body == "residue")
    model = RigidBody(sigma=0.3, body=body, solvent=True)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 3.0)
    index = some_voxels(grid, 40)
    s = vectors(structure, grid, index)
    resting = structure.molecule().without_displacements()
    expected = 0.0
    for turn in structure.rotations:
        for b, points in enumerate(displaced_solvent(resting, labels, FlatSolvent())):
            f = transform_at(resting.take(labels == b), s @ turn) - transform_at(points, s @ turn, FLAT)
            expected = expected + np.abs(f) ** 2
    expected = expected * -np.expm1(-((2 * np.pi * 0.3) ** 2) * np.sum(s**2, axis=1))
    close(model.intensity_at(structure, s), expected, 1e-8)
    close(at(model.intensity(structure, grid), grid, index), expected, 2e-4)
    assert np.mean(expected) < 0.9 * np.mean(replace(model, solvent=False).intensity_at(structure, s))
    with pytest.raises(DiffuseError, match="not of bodies that rotate"):
        RigidBody(body="tls", tls=(TlsGroup((0.1,) * 3 + (0.0,) * 3, (1.0,) * 3 + (0.0,) * 3),), solvent=True)
