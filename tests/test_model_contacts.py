"""A stiffness for every contact: against blocks of bodies, equal springs, symmetry, units, derivatives, voxel means."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from cctbx import sgtbx
from helpers.pair_sums import at, close, some_voxels, vectors
from helpers.structures import GROUP_NAMES, GROUPS, random_structure

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.lattice_dynamics import body_lattice
from dials_diffuse.models.lattice_dynamics.contact_lattice import ContactLattice
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.lattice_dynamics.stiffness import STIFFNESSES, Stiffnesses
from dials_diffuse.models.lattice_dynamics.voxel_waves import gauss_box, voxel_waves
from dials_diffuse.models.prepared import prepare
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.tls import rigid_motions

SMALL = (7.0, 7.5, 8.0, 80.0, 95.0, 107.0)


def molecule(symbol="P 21 21 21", cell=GROUPS[4][1], elements="CNOC", **options):
    return random_structure(symbol, cell, elements=elements, u=(0.2, 0.3), radius=3.0, **options)


def lattice_of(model, structure):
    return ContactLattice(model.bodies(structure), model.contacts(structure))


def distorted(structure, stiffness="full", seed=0, spread=0.35, **options):
    """A model with random stiffnesses."""
    options = {"contact_cutoff": 6.0, "mesh": (4, 4, 4), "solvent": False, **options}
    model = LatticeDynamics(0.3, "contacts", stiffness=stiffness, **options)
    n = len(model.parameters(structure))
    return replace(model, log_stiffness=tuple(spread * np.random.default_rng(seed).normal(size=n)))


def block_of_bodies(structure, model, supercell):
    """By loops: sites (n, 3), motions of them by t, w of all bodies of a periodic block, and kT K^-1 of these.

    Which bodies touch, and where, is found from the atoms; a contact is known by the pairs of its atoms, and turns with
    the copy of its first body.
    """
    lattice = lattice_of(model, structure)
    stiffnesses = model.stiffnesses(lattice)
    matrices = stiffnesses.matrices(model.logarithms(stiffnesses))
    known = {}
    for contact, geometry, k in zip(lattice.contacts, lattice.geometries, matrices):
        turn = np.kron(np.eye(2), geometry.axes)
        known[frozenset(map(tuple, contact.pairs))] = turn.T @ k @ turn
    assert len(known) == len(matrices)
    n, o = structure.n_atoms, structure.orthogonalization
    bodies = []
    for cell in np.ndindex(*supercell):
        for number, operator in enumerate(structure.space_group):
            r = np.array(operator.r().as_double()).reshape(3, 3)
            bodies.append((number, (structure.site_frac @ r.T + operator.t().as_double() + cell) @ o.T))
    d = 6 * len(bodies)
    energy = np.zeros((d, d))
    cells = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    sizes = (np.linalg.norm(place - place.mean(axis=0), axis=1).max() for _, place in bodies)
    reach = 2 * max(sizes) + model.contact_cutoff
    for a, (number, sites) in enumerate(bodies):
        turn = structure.rotations[number]
        whole = np.kron(np.eye(2), turn)
        whole[3:, 3:] *= np.linalg.det(turn)
        for b, (_, others) in enumerate(bodies):
            apart = others.mean(axis=0) - sites.mean(axis=0) + (cells * supercell) @ o.T
            for shift in cells[np.linalg.norm(apart, axis=1) < reach]:
                if a == b and not any(shift):
                    continue
                moved = others + o @ (shift * supercell)
                pairs = np.argwhere(np.linalg.norm(sites[:, None] - moved, axis=-1) < model.contact_cutoff)
                k = known.get(frozenset(map(tuple, pairs)))
                if k is None:  # none, or seen from the other body
                    continue
                centre = np.mean([(sites[i] + moved[j]) / 2 for i, j in pairs], axis=0)
                x = np.zeros((6, d))
                for body, place, sign in ((b, moved, 1.0), (a, sites, -1.0)):
                    by = np.eye(6)
                    by[:3] = rigid_motions((centre - place.mean(axis=0))[None])[0]
                    x[:, 6 * body : 6 * body + 6] += sign * by
                own = frozenset(map(tuple, pairs)) == frozenset((j, i) for i, j in map(tuple, pairs))
                energy += (0.5 if own else 1.0) * x.T @ whole @ k @ whole.T @ x  # met from both ends
    values, directions = np.linalg.eigh(energy)
    free = values < 1e-9 * values[-1]
    assert np.count_nonzero(free) == 3
    covariance = (directions[:, ~free] / values[~free]) @ directions[:, ~free].T
    sites = np.concatenate([place for _, place in bodies])
    motions = np.zeros((len(sites), 3, d))
    for body, (_, place) in enumerate(bodies):
        motions[body * n : (body + 1) * n, :, 6 * body : 6 * body + 6] = rigid_motions(place - place.mean(axis=0))
    return sites, motions, covariance * model.scale(structure, lattice)


def scattering(structure, supercell, s):
    """f exp(-qUq/2) of all atoms of a block, (m, n)."""
    q = 2 * np.pi * s
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T
    turned = [turn @ structure.u_cart @ turn.T for turn in structure.rotations]
    damped = [f * np.exp(-0.5 * np.einsum("ma,nab,mb->mn", q, u, q)) for u in turned]
    return np.tile(np.concatenate(damped, axis=1), math.prod(supercell))


@pytest.mark.parametrize(
    ("symbol", "cell", "supercell", "cutoff"),
    [
        ("P 1", SMALL, (4, 4, 4), 6.0),
        ("P 21 21 21", GROUPS[4][1], (2, 2, 2), 6.0),
        ("I 1 2 1", GROUPS[3][1], (2, 2, 1), 7.5),
        ("P -1", (9.0, 9.5, 10.0, 80.0, 95.0, 107.0), (2, 2, 2), 6.5),
    ],
    ids=["P1", "P212121", "I2", "P-1"],
)
def test_intensity_is_that_of_a_block_of_bodies(symbol, cell, supercell, cutoff):
    """Sum over all bodies of a periodic block, at waves that fit into it, with the exact covariance of all of them."""
    structure = molecule(symbol, cell, anisotropic=True)
    model = distorted(structure, incoherent=False, contact_cutoff=cutoff)
    assert symbol in ("P 1", "P 21 21 21") or any(c.swap is not None for c in model.contacts(structure))
    sites, motions, covariance = block_of_bodies(structure, model, supercell)
    index = np.random.default_rng(0).integers(-7, 8, (60, 3))
    index = index[np.any(index % np.array(supercell), axis=1)]
    s = (index / np.array(supercell)) @ np.linalg.inv(structure.orthogonalization)
    q = 2 * np.pi * s
    a = scattering(structure, supercell, s) * np.exp(1j * (q @ sites.T))
    v = np.einsum("mn,nad,ma->md", a, motions, q, optimize=True)
    expected = np.einsum("md,de,me->m", v.conj(), covariance, v, optimize=True).real / math.prod(supercell)
    close(model.intensity_at(structure, s), expected, 1e-8)


def test_intensity_is_that_of_an_ensemble():
    """Displacements drawn from the covariance of a block, scattering of each, variance of the structure factor."""
    structure = molecule("P 1", SMALL).without_displacements()
    model = replace(distorted(structure, incoherent=False), sigma=0.05)
    supercell, draws = (2, 2, 2), 6000
    sites, motions, covariance = block_of_bodies(structure, model, supercell)
    values, directions = np.linalg.eigh(covariance)
    random = np.random.default_rng(0).normal(size=(draws, len(values)))
    moved = sites + np.einsum("nad,kd->kna", motions, (random * np.sqrt(np.maximum(values, 0))) @ directions.T)
    index = np.array([[1, 0, 2], [3, 1, 0], [1, 1, 1], [-3, 2, 2], [2, 5, 1], [0, 3, -2]])
    s = (index / np.array(supercell)) @ np.linalg.inv(structure.orthogonalization)
    f = scattering(structure, supercell, s)
    amplitudes = np.array([np.exp(2j * np.pi * (moved @ one)) @ weights for one, weights in zip(s, f)])
    expected = np.var(amplitudes, axis=1) / math.prod(supercell)
    np.testing.assert_allclose(model.intensity_at(structure, s), expected, rtol=0.06)


def touching(symbol, cell, operators):
    """A molecule with atoms where an operator puts others of its atoms: copies share places at their contacts."""
    rng, sites = np.random.default_rng(0), []
    for text in operators:
        operator = sgtbx.rt_mx(text)
        r, t = np.array(operator.r().as_double()).reshape(3, 3), np.array(operator.t().as_double())
        centre = rng.uniform(0.2, 0.4, 3)
        for x in centre + rng.uniform(-0.1, 0.1, (5, 3)):
            sites += [x, r @ x + t]
    return make_structure(cell, symbol, list("CNOSCNOCSO" * len(operators)), np.array(sites), u=0.2)


@pytest.mark.parametrize(
    ("symbol", "cell", "operators"),
    [
        ("P 1", (20.0, 21.0, 23.0, 80.0, 95.0, 107.0), ["x+1,y,z", "x,y+1,z", "x,y,z+1", "x+1,y+1,z"]),
        ("P 21 21 21", (20.0, 21.0, 23.0, 90.0, 90.0, 90.0), ["x+1/2,-y+1/2,-z", "-x,y+1/2,-z+1/2", "-x+1/2,-y,z+1/2"]),
        ("P 1 2 1", (20.0, 21.0, 23.0, 90.0, 98.0, 90.0), ["-x+1,y,-z+1", "x,y+1,z", "x,y,z+1", "x+1,y,z"]),
    ],
    ids=["P1", "P212121", "P2"],
)
def test_equal_springs_are_the_gaussian_ones(monkeypatch, symbol, cell, operators):
    """Springs of length 0 between all pairs of atoms: both kinds of springs have the same energy."""
    monkeypatch.setattr(body_lattice, "_SAME_PLACE", -1.0)
    structure = touching(symbol, cell, operators)
    springs, contacts = (
        LatticeDynamics(0.3, kind, cutoff=0.01, contact_cutoff=0.01, solvent=False) for kind in ("gaussian", "contacts")
    )
    found = contacts.contacts(structure)
    assert len(found) == len(operators) and all(c.n_pairs == 5 or c.swap is not None for c in found)
    assert (symbol == "P 1 2 1") == any(c.swap is not None for c in found)
    waves = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    expected, values = (model.lattice(structure).matrices(waves) for model in (springs, contacts))
    np.testing.assert_allclose(values, expected, atol=1e-8 * np.abs(expected).max())
    s = np.random.default_rng(2).uniform(-0.2, 0.2, (30, 3))
    close(contacts.intensity_at(structure, s), springs.intensity_at(structure, s), 1e-8)


def test_bodies_that_cannot_turn_are_as_with_gaussian_springs():
    """One atom each: only displacements count, whatever the length of the springs."""
    structure = molecule("P 21 21 21", GROUPS[4][1], elements="CNOCS")
    options = {"groups": "residue", "solvent": False, "cutoff": 8.0, "contact_cutoff": 8.0}
    structure = replace(structure, residue=np.array([f"{i:>4d} " for i in range(5)]))
    s = np.random.default_rng(2).uniform(-0.3, 0.3, (30, 3))
    values = LatticeDynamics(0.3, "contacts", **options).intensity_at(structure, s)
    close(values, LatticeDynamics(0.3, "gaussian", **options).intensity_at(structure, s), 1e-8)


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_dynamical_matrix(symbol, cell):
    """Hermitian, periodic, D(-k) = D(k)*; three motions without energy at k = 0, those of the whole crystal."""
    structure = molecule(symbol, cell, elements="CNOCS")
    model = distorted(structure, contact_cutoff=11.0 if symbol == "P 1" else 8.7)
    lattice = model.lattice(structure)
    waves = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    matrices = lattice.matrices(waves)
    size = np.abs(matrices).max()
    np.testing.assert_allclose(matrices, matrices.conj().transpose(0, 2, 1), atol=1e-12 * size)
    np.testing.assert_allclose(lattice.matrices(-waves), matrices.conj(), atol=1e-12 * size)
    np.testing.assert_allclose(lattice.matrices(waves + [1, -2, 3]), matrices, atol=1e-10 * size)
    assert np.linalg.eigvalsh(matrices).min() > 1e-6 * size
    at_rest = lattice.matrices(np.zeros((1, 3)))[0]
    assert np.count_nonzero(np.linalg.eigvalsh(at_rest) < 1e-9 * size) == 3
    contacts = lattice_of(model, structure)
    stiffnesses = model.stiffnesses(contacts)
    again = contacts.matrices(contacts.stretches(waves), stiffnesses.matrices(model.logarithms(stiffnesses)))
    np.testing.assert_allclose(again, matrices, atol=1e-10 * size)


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_voxels_are_as_points(symbol, cell):
    """The engine of voxels, sorted by waves, against the solution at each point; also of the symmetry mates."""
    structure = molecule(symbol, cell, anisotropic=True)
    model = distorted(structure, contact_cutoff=11.0 if symbol == "P 1" else 8.7)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2 if symbol == "P 2 3" else 3), 3.0)
    index = some_voxels(grid, 50)
    index = index[np.any(index % np.array(grid.subdivide), axis=1)]
    ready = prepare(model, structure, grid, index)
    values = ready.intensity(model.log_stiffness)
    close(values, model.intensity_at(structure, vectors(structure, grid, index)), 1e-6)
    points = np.array([[2, 0, 3], [0, 2, 3]]) * [1, 1, grid.subdivide[2] / 3]
    points = (points / np.array(grid.subdivide)).round().astype(int) * np.array(grid.subdivide)
    first, second = model.parts_at_voxels(structure, grid, points)
    close(prepare(model, structure, grid, points).intensity(model.log_stiffness), 0.09 * first + second, 1e-6)
    if symbol in ("P 1", "P 21 21 21"):
        np.testing.assert_allclose(at(model.intensity(structure, grid), grid, index), values, rtol=1e-8)


def shifted(structure):
    """The same crystal from another origin."""
    return structure.change_basis(sgtbx.change_of_basis_op("x+1/2,y+1/2,z+1/2"))


def other_copy(structure):
    """The same crystal by another asymmetric unit."""
    operator = structure.space_group(1)
    r, t = np.array(operator.r().as_double()).reshape(3, 3), np.array(operator.t().as_double())
    turn = structure.rotations[1]
    return replace(structure, site_frac=structure.site_frac @ r.T + t, u_cart=turn @ structure.u_cart @ turn.T)


@pytest.mark.parametrize("other", [shifted, other_copy])
@pytest.mark.parametrize("symbol", ["P 21 21 21", "I 1 2 1"])
def test_origin_and_asymmetric_unit_do_not_matter(symbol, other):
    structure = molecule(symbol, dict(GROUPS)[symbol], anisotropic=True)
    s = np.random.default_rng(2).uniform(-0.2, 0.2, (30, 3))
    for stiffness in ("by_contact", "apart"):
        model = distorted(structure, stiffness, contact_cutoff=7.5)
        close(model.intensity_at(other(structure), s), model.intensity_at(structure, s), 1e-6)


def test_units_and_reference_points_do_not_matter():
    """Rotations in other units, motions at another point: the prior's distance is the same."""
    structure = molecule()
    model = distorted(structure)
    lattice = lattice_of(model, structure)
    stiffnesses = model.stiffnesses(lattice)
    total = 0.0
    for geometry, k in zip(lattice.geometries, stiffnesses.matrices(model.log_stiffness)):
        change = np.eye(6)
        change[:3] = rigid_motions(np.array([[3.0, -2.0, 5.0]]))[0]
        change = change @ np.diag([1, 1, 1, 0.1, 0.1, 0.1])
        first, second = change.T @ geometry.geometric @ change, change.T @ k @ change
        total += float(np.sum(np.log(np.linalg.eigvals(np.linalg.solve(first, second)).real) ** 2))
    assert total == pytest.approx(np.sum(np.square(model.log_stiffness)), rel=1e-8)


@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_stiffnesses(stiffness):
    """Positive definite, symmetric as their contact; derivatives; each kind holds the ones before."""
    structure = molecule("I 1 2 1", GROUPS[3][1])
    model = distorted(structure, stiffness)
    lattice = lattice_of(model, structure)
    found, values = model.stiffnesses(lattice), np.array(model.log_stiffness)
    swaps = [c.swap is not None for c in lattice.contacts]
    assert any(swaps) and not all(swaps)
    sizes = {"overall": 1, "by_contact": len(swaps), "apart": 2 * len(swaps), "full": sum(21 - 8 * s for s in swaps)}
    assert len(values) == sizes[stiffness]
    for k, geometry in zip(found.matrices(values), lattice.geometries):
        assert np.linalg.eigvalsh(k)[0] > 0
        np.testing.assert_allclose(k * np.outer(geometry.signs, geometry.signs), k, atol=1e-12 * np.abs(k).max())
    np.testing.assert_allclose(found.values_of(found.matrices(values)), values, atol=1e-9)
    for other in STIFFNESSES[STIFFNESSES.index(stiffness) :]:
        more = Stiffnesses(lattice.geometries, other)
        again = more.matrices(more.values_of(found.matrices(values)))
        np.testing.assert_allclose(again, found.matrices(values), atol=1e-9)
    weights = [(w + w.T) / 2 for w in np.random.default_rng(1).normal(size=(len(swaps), 6, 6))]
    step = 1e-4

    def total(x):
        return sum(np.sum(w * k) for w, k in zip(weights, found.matrices(x)))

    def slope(x):
        result = np.zeros(len(x))
        for own, w, dk in zip(found.own, weights, found.derivatives(x)):
            result[own] += np.einsum("ab,pab->p", w, dk)
        return result

    units = step * np.eye(len(values))
    expected = np.array([total(values + e) - total(values - e) for e in units]) / (2 * step)
    close(slope(values), expected, 1e-6)
    expected = np.array([slope(values + e) - slope(values - e) for e in units]) / (2 * step)
    close(found.second(values, weights), expected, 1e-6)


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize(("symbol", "stiffness"), [("P 1", "full"), ("P 21 21 21", "full"), ("I 1 2 1", "apart")])
def test_derivatives(symbol, stiffness, means):
    """First, second and weighted ones, by differences; voxels at lattice points included."""
    cell = {**dict(GROUPS), "P 1": SMALL}[symbol]
    structure = molecule(symbol, cell, elements="CNOC" if symbol == "P 1" else "CNO", anisotropic=True)
    model = distorted(structure, stiffness, mesh=(2, 2, 2), contact_cutoff=7.5)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 3.5)
    index = np.concatenate([some_voxels(grid, 20), [[2, 0, 2], [0, 2, 2]]])
    ready = prepare(model, structure, grid, index, means)
    assert ready.means == means
    values = np.array(model.log_stiffness)
    intensity, jacobian = ready.jacobian(values)
    close(ready.intensity(values), intensity, 1e-12)
    step, rng = 1e-3, np.random.default_rng(3)
    weights = rng.normal(size=len(index))
    close(ready.gradient(values, weights), weights @ jacobian, 1e-10)
    chosen = rng.choice(len(values), min(len(values), 5), replace=False)
    second = ready.second(values, weights)
    np.testing.assert_allclose(second, second.T, atol=1e-9 * np.abs(second).max())
    for i in chosen:
        e = step * np.eye(len(values))[i]
        up, down = ready.jacobian(values + e), ready.jacobian(values - e)
        close(jacobian[:, i], (up[0] - down[0]) / (2 * step), 1e-5)
        close(second[i], weights @ (up[1] - down[1]) / (2 * step), 1e-5)
    assert ready.model(values) == model


def test_overall_stiffness_is_the_inverse_of_the_mean_square():
    structure = molecule()
    s = np.random.default_rng(2).uniform(-0.2, 0.2, (30, 3))
    model = LatticeDynamics(0.3, "contacts", contact_cutoff=6.0, log_stiffness=(math.log(2.0),))
    close(
        model.intensity_at(structure, s),
        replace(model, sigma=0.3 / 2**0.5, log_stiffness=()).intensity_at(structure, s),
        1e-10,
    )
    np.testing.assert_allclose(
        model.shared_displacements(structure).trace(axis1=1, axis2=2).mean() / 3, 0.09 / 2, rtol=1e-10
    )


@pytest.mark.parametrize(("symbol", "cell"), [GROUPS[4], GROUPS[6]], ids=["P212121", "P3121"])
def test_means_over_voxels_by_numerical_integration(symbol, cell):
    """D^-1 on fine lattices of points in voxels, those of all mates, on a lattice point and beside it."""
    structure = molecule(symbol, cell)
    model = distorted(structure, incoherent=False, contact_cutoff=8.7)
    lattice = model.lattice(structure)
    subdivide = np.array((3, 3, 3))
    for kind in ((0, 0, 0), (1, 0, 0), (1, -1, 1)):
        moves, weights = voxel_waves(kind, structure)
        found = np.tensordot(weights, np.linalg.inv(lattice.matrices((kind + moves) / subdivide)), axes=1)
        fine, fine_weights = shells() if not any(kind) else gauss_box(6)
        rotations = {tuple(map(tuple, r)) for r in laue_operators(structure.space_group, friedel=True)}
        expected = 0
        for r in rotations:
            inverse = np.linalg.inv(lattice.matrices((kind + fine @ np.array(r)) / subdivide))
            expected = expected + np.tensordot(fine_weights, inverse, axes=1) / len(rotations)
        assert np.abs(found - expected).max() < 0.004 * np.abs(expected).max()


def shells():
    """A rule for 1/k² in a cube: half as large cubes in each other, what is inside the last by its scaling."""
    points, weights = gauss_box(2)
    parts = (np.array(list(itertools.product(range(4), repeat=3))) - 1.5) / 4
    parts = parts[np.abs(parts).max(axis=1) > 0.25]
    shell, shell_weights = (parts[:, None] + points / 4).reshape(-1, 3), np.tile(weights / 64, len(parts))
    sizes = 0.5 ** np.arange(4)
    volumes = sizes**3 * [1, 1, 1, 2]
    return np.concatenate([shell * x for x in sizes]), np.concatenate([shell_weights * v for v in volumes])
