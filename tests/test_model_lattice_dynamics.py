"""Phonons of rigid bodies against the covariance of a large periodic block, sum rules, symmetry, halos, errors."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import at, close, some_voxels, vectors
from helpers.programs import model_of
from helpers.structures import GROUP_NAMES, GROUPS, random_structure, special_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.lattice_dynamics.waves import mesh_of_waves, symmetric_waves
from dials_diffuse.models.prepared import prepare
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.factors import form_factors
from dials_diffuse.structure.tls import rigid_motions

CUTOFF = 8.7
SMALL = (7.0, 7.5, 8.0, 80.0, 95.0, 107.0)


def molecule(symbol="P 1 21 1", cell=GROUPS[1][1], elements="CNOCS", **options):
    return random_structure(symbol, cell, elements=elements, u=(0.2, 0.3), **options)


def periodic_block(structure, supercell, central, labels=None):
    """Atoms of a block that repeats, and kT K^-1 of all of them for springs of stiffness 1, without free motion.

    By loops: sites (n, 3) in Å, asymmetric atom of each, covariance (n, n, 3, 3).
    """
    labels = np.zeros(structure.n_atoms, dtype=int) if labels is None else labels
    sites, atoms, bodies = [], [], []
    for cell in np.ndindex(*supercell):
        for number, operator in enumerate(structure.space_group):
            r = np.array(operator.r().as_double()).reshape(3, 3)
            x = structure.site_frac @ r.T + operator.t().as_double()
            sites.append((x - np.floor(x.mean(axis=0)) + cell) @ structure.orthogonalization.T)
            atoms.append(np.arange(structure.n_atoms))
            bodies += [(cell, number, label) for label in labels]
    sites, atoms = np.concatenate(sites), np.concatenate(atoms)
    names = list(dict.fromkeys(bodies))
    body = np.array([names.index(b) for b in bodies])
    n, d = len(sites), 6 * len(names)
    motion = np.zeros((n, 3, d))  # displacement of each atom by t and w of all bodies
    for i in range(n):
        arm = sites[i] - sites[body == body[i]].mean(axis=0)
        motion[i, :, 6 * body[i] : 6 * body[i] + 3] = np.eye(3)
        for axis in range(3):
            motion[i, :, 6 * body[i] + 3 + axis] = np.cross(np.eye(3)[axis], arm)
    k = np.zeros((d, d))
    for shift in np.ndindex(7, 7, 7):
        shift = np.array(shift) - 3
        move = structure.orthogonalization @ (shift * supercell)
        step = sites[None] + move - sites[:, None]
        length = np.linalg.norm(step, axis=-1)
        for i, j in np.argwhere((length < CUTOFF) & (length > 0)):
            if body[i] == body[j] and not shift.any():
                continue
            stretch = motion[j] - motion[i]
            if central:
                stretch = (step[i, j] / length[i, j] @ stretch)[None]
            k += 0.5 * stretch.T @ stretch  # each spring is met from both ends
    values, vectors_ = np.linalg.eigh(k)
    free = values < 1e-8 * values[-1]
    assert np.count_nonzero(free) == 3
    inverse = (vectors_[:, ~free] / values[~free]) @ vectors_[:, ~free].T
    covariance = np.einsum("iad,de,jbe->ijab", motion, inverse, motion, optimize=True)
    return sites, atoms, covariance


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    ("symbol", "cell", "supercell"),
    [("P 1 21 1", GROUPS[1][1], (3, 2, 2)), ("P 1", SMALL, (2, 3, 2)), ("P 21 21 21", GROUPS[4][1], (2, 1, 2))],
    ids=["P21", "P1", "P212121"],
)
def test_intensity_is_that_of_the_covariance_in_a_large_block(symbol, cell, supercell, central):
    """Direct sum over the atoms of a periodic block, at waves that fit into it: one phonon, q V_ij q."""
    structure = molecule(symbol, cell, elements="CNOC", anisotropic=True)
    sites, atoms, covariance = periodic_block(structure, supercell, central)
    model = LatticeDynamics(0.3, "central" if central else "gaussian", CUTOFF, incoherent=False)
    rng = np.random.default_rng(0)
    index = rng.integers(-4, 5, (80, 3)) * np.array(supercell) // 1 + rng.integers(0, supercell, (80, 3))
    index = index[np.any(index % np.array(supercell), axis=1)]
    assert len(index) > 30
    s = (index / np.array(supercell)) @ np.linalg.inv(structure.orthogonalization)
    q = 2 * np.pi * s
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T
    expected = 0.0
    rotations = structure.rotations
    copy = np.tile(np.repeat(np.arange(len(rotations)), structure.n_atoms), math.prod(supercell))
    u = np.array([rotations[c] @ structure.u_cart[a] @ rotations[c].T for c, a in zip(copy, atoms)])
    a = f[:, atoms] * np.exp(-0.5 * np.einsum("ma,nab,mb->mn", q, u, q) + 1j * (q @ sites.T))
    x = np.einsum("ma,ijab,mb->mij", q, covariance, q, optimize=True)
    expected = np.einsum("mi,mij,mj->m", a, x, a.conj(), optimize=True).real / math.prod(supercell)
    lattice = model.lattice(structure)
    scale, _ = model.displacements(structure, lattice, 0.3)
    close(model.intensity_at(structure, s), scale * expected, 1e-8)


def test_displacements_are_the_mean_over_waves():
    """Of a large periodic block they are nearly the same as over a mesh; the size is the one that was given."""
    structure = molecule(elements="CNO")
    supercell = (4, 4, 4)
    model = LatticeDynamics(0.25, "gaussian", CUTOFF, mesh=(8, 8, 8))
    lattice = model.lattice(structure)
    scale, tensors = model.displacements(structure, lattice, 0.25)
    assert np.mean(np.trace(tensors, axis1=1, axis2=2)) / 3 == pytest.approx(0.25**2)
    waves = np.array([k for k in np.ndindex(*supercell) if any(k)]) / np.array(supercell)
    inverse = lattice.mean_inverse(waves, np.ones(len(waves))) * scale * len(waves) / math.prod(supercell)
    modes = lattice.bodies.modes(lattice.bodies.content.site_cart)
    for atom, tensor in enumerate(tensors):
        mine = 6 * lattice.bodies.labels[atom] + np.arange(6)
        found = (modes[atom] @ inverse[np.ix_(mine, mine)] @ modes[atom].T).real
        assert np.abs(found - tensor).max() < 0.15 * np.abs(tensor).max()  # the lattice points' shares are left out


def test_shared_displacements_against_large_blocks():
    """The waves of the mesh 2,2,2, ±1/4 along each axis, are those of a block of 4 cells that one of 2 has not."""
    structure = molecule("P 1", SMALL, elements="CNO")
    total = np.zeros((3, 3, 3))
    for supercell in itertools.product((2, 4), repeat=3):
        _, _, covariance = periodic_block(structure, supercell, False)
        own = np.array([covariance[i, i] for i in range(3)])
        total += math.prod(supercell) * (-1) ** supercell.count(2) * own
    found = LatticeDynamics(0.3, "gaussian", CUTOFF, mesh=(2, 2, 2)).shared_displacements(structure)
    assert np.trace(found, axis1=1, axis2=2).mean() / 3 == pytest.approx(0.09)
    np.testing.assert_allclose(found, total * (0.27 / np.trace(total, axis1=1, axis2=2).mean()), rtol=1e-8, atol=1e-12)
    assert np.ptp(found[:, 0, 0]) > 0.1 * found[0, 0, 0]  # turns displace atoms further out more


@pytest.mark.parametrize(("symbol", "cell"), [GROUPS[1], GROUPS[4]], ids=["P21", "P212121"])
def test_shared_displacements_are_those_of_the_atoms_of_the_file(symbol, cell):
    """They turn with the copy: every tensor of the cell is that of its atom, turned by the operator."""
    structure = molecule(symbol, cell, elements="CNOC")
    model = LatticeDynamics(0.3, cutoff=CUTOFF)
    lattice = model.lattice(structure)
    _, tensors = model.displacements(structure, lattice, 0.3)
    found = model.shared_displacements(structure)
    for number, turn in enumerate(structure.rotations):
        np.testing.assert_allclose(
            tensors[lattice.bodies.content.copy == number], turn @ found @ turn.T, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("springs", ["gaussian", "central"])
@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_dynamical_matrix(springs, symbol, cell):
    """Hermitian, positive, periodic, D(-k) = D(k)*; nothing resists a displacement of the whole crystal."""
    structure = molecule(symbol, cell)
    lattice = LatticeDynamics(0.3, springs, CUTOFF).lattice(structure)
    waves = np.random.default_rng(1).uniform(-1, 1, (20, 3))
    matrices = lattice.matrices(waves)
    size = np.abs(matrices).max()
    np.testing.assert_allclose(matrices, matrices.conj().transpose(0, 2, 1), atol=1e-12 * size)
    np.testing.assert_allclose(lattice.matrices(-waves), matrices.conj(), atol=1e-12 * size)
    np.testing.assert_allclose(lattice.matrices(waves + [1, -2, 3]), matrices, atol=1e-10 * size)
    lowest = np.linalg.eigvalsh(matrices).min()
    assert lowest > (1e-6 if springs == "gaussian" else -1e-12) * size  # few atoms have too few springs along lines
    everything = []  # coordinates of all bodies that displace every atom by the unit vectors
    for body in range(len(lattice.bodies.frames)):
        mine = lattice.bodies.labels == body
        motions = lattice.bodies.modes(lattice.bodies.content.site_cart)[mine].reshape(-1, 6)
        everything.append(np.linalg.pinv(motions) @ np.tile(np.eye(3), (np.count_nonzero(mine), 1)))
    whole = np.concatenate(everything)[lattice.bodies.active]
    at_rest = lattice.matrices(np.zeros((1, 3)))[0]
    assert np.abs(at_rest @ whole).max() < 1e-10 * size
    if springs == "gaussian":
        assert np.count_nonzero(np.linalg.eigvalsh(at_rest) < 1e-9 * size) == 3


@pytest.mark.parametrize(("symbol", "cell"), GROUPS, ids=GROUP_NAMES)
def test_laue_symmetry(symbol, cell):
    """Of the intensity at any points, which nothing enforces, and of maps, Bragg positions included."""
    structure = molecule(symbol, cell, elements="CNOC")
    model = LatticeDynamics(0.2, cutoff=10.7 if symbol == "P 1" else CUTOFF, mesh=(4, 4, 4))
    hkl = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    inverse = np.linalg.inv(structure.orthogonalization)
    operators = laue_operators(structure.space_group, friedel=True)
    values = model.intensity_at(structure, np.concatenate([hkl @ r @ inverse for r in operators])).reshape(-1, 6)
    np.testing.assert_allclose(values, np.tile(values[0], (len(operators), 1)), rtol=1e-6)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 4.0)
    volume = model.intensity(structure, grid)
    index = np.argwhere(np.isfinite(volume)) - np.array(grid.extent)
    assert len(index) > 100
    ready = prepare(model, structure, grid, index[::17])
    np.testing.assert_allclose(ready.intensity([0.2]), at(volume, grid, index[::17]), rtol=1e-6)


@pytest.mark.parametrize("springs", ["gaussian", "central"])
def test_halos(springs):
    """Intensity times k² tends to a constant in each direction, of different size in different ones."""
    structure = molecule()
    model = LatticeDynamics(0.3, springs, CUTOFF, incoherent=False)
    inverse = np.linalg.inv(structure.orthogonalization)
    for point in ((1, 0, 2), (2, -1, 1)):
        limits = []
        for direction in np.random.default_rng(0).normal(size=(4, 3)):
            step = 0.003 * direction / np.linalg.norm(direction)
            values = [
                model.intensity_at(structure, (np.array(point) @ inverse + x * step)[None])[0] * x**2
                for x in (1.0, 0.5, 0.25, 0.1)
            ]
            assert values[3] == pytest.approx(values[2], rel=0.02)
            limits.append(values[3])
        assert max(limits) > 1.05 * min(limits)


def test_voxels_at_lattice_points():
    """Finite: the waves of the voxel together; the smaller the voxel the higher, as the mean of 1/k²."""
    structure = molecule()
    model = LatticeDynamics(0.3, cutoff=CUTOFF, incoherent=False)
    index, values = np.array([[1, 0, 2]]), []
    for n in (1, 2, 16, 32):
        grid = MapGrid(structure.unit_cell, structure.hall_symbol, (n, n, n), 3.0)
        values.append(prepare(model, structure, grid, n * index).intensity([0.3])[0])
    assert np.all(np.isfinite(values)) and values[3] / values[2] == pytest.approx(4, rel=0.05)
    assert 1 < values[1] / values[0] < 4
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (4, 4, 4), 3.0)
    volume = model.intensity(structure, grid)
    assert at(volume, grid, 4 * index) > 2 * at(volume, grid, 4 * index + [1, 0, 0])
    assert at(volume, grid, np.zeros((1, 3), dtype=int)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("special", [False, True])
def test_maps_and_points_are_the_same(special):
    """Also of atoms that belong to several bodies."""
    structure = special_structure() if special else molecule(elements="CNOCSC", anisotropic=True)
    model = LatticeDynamics(0.2, cutoff=CUTOFF)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 3), 2.0)
    index = some_voxels(grid, 200)
    index = index[np.any(index % np.array(grid.subdivide), axis=1)]
    values = at(model.intensity(structure, grid), grid, index)
    close(values, model.intensity_at(structure, vectors(structure, grid, index)), 1e-6)


def test_unphysical_displacements_are_said(caplog):
    structure = molecule()
    s = np.array([[0.1, 0.02, 0.03]])
    for sigma, said in ((0.2, False), (1.0, True)):
        caplog.clear()
        LatticeDynamics(sigma, cutoff=CUTOFF).intensity_at(structure, s)
        assert ("the common displacement exceeds that of" in caplog.text) == said


def test_own_terms_of_atoms():
    """With the incoherent part each atom's own term is |f|² (1 - exp(-qUq)): small displacements leave nothing else."""
    structure = molecule(anisotropic=True)
    s = np.random.default_rng(0).uniform(-0.25, 0.25, (20, 3))
    tiny = LatticeDynamics(1e-4, cutoff=CUTOFF).intensity_at(structure, s)
    close(tiny, Uncorrelated().intensity_at(structure, s), 1e-5)
    model = LatticeDynamics(0.3, cutoff=CUTOFF)
    lattice = model.lattice(structure)
    _, tensors = model.displacements(structure, lattice, 0.3)
    q = 2 * np.pi * s
    f2 = form_factors(lattice.bodies.content, np.linalg.norm(s, axis=1))[lattice.bodies.content.type_index].T ** 2
    damping = np.exp(-np.einsum("ma,nab,mb->mn", q, lattice.bodies.content.u_cart, q))
    x = np.einsum("ma,nab,mb->mn", q, tensors, q)
    expected = replace(model, incoherent=False).intensity_at(structure, s) + np.sum(
        f2 * (1 - damping * (1 + x)), axis=1
    )
    close(model.intensity_at(structure, s), expected, 1e-8)


def test_mean_over_waves_is_the_sum_of_the_atoms_own_terms_of_one_atom():
    """One atom in the cell, a lattice of points: averaged over k at fixed q, qCq is q²σ²."""
    structure = molecule("P 1", (5.0, 5.0, 5.0, 90, 90, 90), elements="C")
    model = LatticeDynamics(0.3, cutoff=5.1)
    lattice = model.lattice(structure)
    assert len(lattice.bodies.active) == 3 and len(lattice.shifts) == 7
    _, tensors = model.displacements(structure, lattice, 0.3)
    np.testing.assert_allclose(tensors, 0.09 * np.eye(3)[None], atol=1e-12)
    waves = np.array([[0.1, 0.2, 0.3], [0.5, 0.0, 0.25]])
    expected = 2 * np.sum(1 - np.cos(2 * np.pi * waves), axis=1)  # a chain along each axis
    np.testing.assert_allclose(lattice.matrices(waves), expected[:, None, None] * np.eye(3), atol=1e-12)


def test_parts_of_molecules():
    """Bodies in a molecule, as in the block; one of them a single atom, without rotations."""
    structure = molecule("P 1", SMALL, elements="CNOCS")
    labels = np.array([0, 1, 1, 1, 1])
    structure = replace(structure, residue=np.array(["   1 "] + ["   2 "] * 4))
    model = LatticeDynamics(0.3, cutoff=CUTOFF, groups="residue", incoherent=False)
    lattice = model.lattice(structure)
    assert len(lattice.bodies.active) == 9
    single = structure.site_cart[0]
    assert np.allclose(lattice.bodies.centres[0], single)
    sites, _, covariance = _without_turns_of_single_atoms(structure, (2, 2, 1), labels)
    index = np.array([[1, 0, 2], [3, 1, 0], [5, 3, 1], [-3, 2, 2]])
    s = (index / np.array([2, 2, 1])) @ np.linalg.inv(structure.orthogonalization)
    q = 2 * np.pi * s
    f = np.tile(form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T, 4)
    a = f * np.exp(-0.5 * np.sum(q**2, axis=1)[:, None] * np.tile(structure.u_iso, 4) + 1j * (q @ sites.T))
    x = np.einsum("ma,ijab,mb->mij", q, covariance, q)
    expected = np.einsum("mi,mij,mj->m", a, x, a.conj()).real / 4
    lattice = model.lattice(structure)
    scale, _ = model.displacements(structure, lattice, 0.3)
    close(model.intensity_at(structure, s), scale * expected, 1e-8)


def _without_turns_of_single_atoms(structure, supercell, labels):
    """The block of the oracle, in which turning a single atom displaces nothing: three more free motions for each."""
    sites, atoms, bodies = [], [], []
    for number, cell in enumerate(np.ndindex(*supercell)):
        sites.append((structure.site_frac + cell) @ structure.orthogonalization.T)
        atoms.append(np.arange(structure.n_atoms))
        bodies.append(labels + 2 * number)
    sites, body = np.concatenate(sites), np.concatenate(bodies)
    d = 6 * (body.max() + 1)
    motion = np.zeros((len(sites), 3, d))
    for i in range(len(sites)):
        arm = sites[i] - sites[body == body[i]].mean(axis=0)
        motion[i, :, 6 * body[i] : 6 * body[i] + 6] = rigid_motions(arm[None])[0]
    k = np.zeros((d, d))
    for shift in np.ndindex(5, 5, 5):
        shift = np.array(shift) - 2
        move = structure.orthogonalization @ (shift * supercell)
        length = np.linalg.norm(sites[None] + move - sites[:, None], axis=-1)
        for i, j in np.argwhere((length < CUTOFF) & (length > 0)):
            if shift.any() or body[i] != body[j]:
                stretch = motion[j] - motion[i]
                k += 0.5 * stretch.T @ stretch
    inverse = np.linalg.pinv(k, rcond=1e-9, hermitian=True)
    return sites, np.concatenate(atoms), np.einsum("iad,de,jbe->ijab", motion, inverse, motion, optimize=True)


def test_derivatives():
    structure = molecule()
    model = LatticeDynamics(0.3, cutoff=CUTOFF)
    (parameter,) = model.parameters(structure)
    assert (parameter.name, parameter.value, parameter.unit) == ("sigma", 0.3, "Å")
    assert model.with_values(structure, {"sigma": 0.2}) == replace(model, sigma=0.2)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    index = some_voxels(grid)
    ready = prepare(model, structure, grid, index)
    values, jacobian = ready.jacobian([0.3])
    close(values, at(model.intensity(structure, grid), grid, index), 1e-9)
    close(ready.intensity([0.4]), at(replace(model, sigma=0.4).intensity(structure, grid), grid, index), 1e-9)
    step = 1e-4
    up, down = ready.intensity([0.3 + step]), ready.intensity([0.3 - step])
    close(jacobian[:, 0], (up - down) / (2 * step), 1e-8)
    weights = np.random.default_rng(0).normal(size=len(index))
    second = weights @ (up - 2 * values + down) / step**2
    assert ready.second([0.3], weights)[0, 0] == pytest.approx(second, rel=1e-4)
    assert ready.model([0.25]) == replace(model, sigma=0.25)


def test_from_phil():
    arguments = [
        "model=lattice_dynamics",
        "lattice_dynamics.cutoff=7",
        "lattice_dynamics.springs=central",
        "lattice_dynamics.mesh=4,4,6",
        "lattice_dynamics.incoherent=False",
    ]
    model = model_of(*arguments)
    assert model == LatticeDynamics(0.3, "central", 7.0, mesh=(4, 4, 6), incoherent=False)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"sigma": None}, "lattice_dynamics.sigma=None"),
        ({"cutoff": -1.0}, "lattice_dynamics.cutoff=-1.0"),
        ({"springs": "rubber"}, "lattice_dynamics.springs=rubber: choose from gaussian, central, contacts"),
        ({"groups": "helix"}, "lattice_dynamics.groups=helix"),
        ({"mesh": (4, 4)}, "three even numbers"),
        ({"mesh": (4, 4, 3)}, "three even numbers"),
    ],
)
def test_bad_parameters_are_refused(values, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        LatticeDynamics(**{"sigma": 0.3, **values})


def test_lattices_that_fall_apart_are_refused():
    structure = molecule("P 1", (30.0, 30.0, 30.0, 90, 90, 90))
    s = np.array([[0.1, 0.02, 0.03]])
    with pytest.raises(DiffuseError, match=r"cutoff=8: no two bodies are that near"):
        LatticeDynamics(0.3).intensity_at(structure, s)
    sheet = molecule("P 1", (8.0, 8.0, 30.0, 90, 90, 90))
    across = np.array([[0.0, 0.0, 0.01]])  # nothing holds the sheets together
    for springs in ("gaussian", "central"):
        with pytest.raises(DiffuseError, match=r"some bodies can move and stretch no spring"):
            LatticeDynamics(0.3, springs, CUTOFF).intensity_at(sheet, across)
    grid = MapGrid(sheet.unit_cell, sheet.hall_symbol, (1, 1, 1), 3.0)
    rows = replace(sheet, unit_cell=(8.0, 30.0, 30.0, 90.0, 90.0, 90.0), site_frac=sheet.site_frac * [1, 8 / 30, 1])
    grid = replace(grid, unit_cell=rows.unit_cell)
    with pytest.raises(DiffuseError, match=r"some bodies can move and stretch no spring"):
        LatticeDynamics(0.3, "central", CUTOFF).intensity(rows, grid)  # and of rows not even that
    with pytest.raises(DiffuseError, match=r"at \[1. 0. 2.\], a reciprocal-lattice point"):
        point = np.array([[1.0, 0.0, 2.0]]) @ np.linalg.inv(molecule().orthogonalization)
        LatticeDynamics(0.3, cutoff=CUTOFF).intensity_at(molecule(), point)


def test_waves_with_their_mates():
    """Half of them: with their opposites they are the mesh turned by all operators."""
    structure = molecule("P 31 2 1", GROUPS[6][1])
    mesh = mesh_of_waves((2, 2, 2))
    waves, weights = symmetric_waves(mesh, structure)
    turned = np.concatenate([mesh @ r for r in laue_operators(structure.space_group, friedel=True)])
    assert 2 * weights.sum() == len(turned)
    for wave, weight in zip(waves, weights):
        for sign in (1, -1):
            assert np.count_nonzero(np.all(np.abs(turned - sign * wave) < 1e-6, axis=1)) == weight


def test_mesh_of_waves():
    waves = mesh_of_waves((2, 4, 2))
    assert len(waves) == 16 and np.abs(waves).max() == 0.375 and np.abs(waves).min() > 0
    np.testing.assert_allclose(np.sort(waves, axis=0), np.sort(-waves, axis=0))
