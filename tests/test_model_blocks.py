"""Covariances between symmetry copies in a block of cells against the pair sum over all atoms of the block."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import at, close, oracle, some_voxels, turns, vectors
from helpers.structures import GROUPS, random_structure, special_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.symmetry import laue_operators
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.covariance.motion import flattened
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.block import crystal_block

#: group, cell, engines' tolerance as in the tests of single molecules
CASES = [GROUPS[1], GROUPS[3], GROUPS[6]]
NAMES = ["P1211", "I121", "P3121"]
TOLERANCE = {"pair_sum": 1e-10, "chebyshev": 5e-6, "low_rank": 5e-6, "fft": 3e-5}


def block_of(structure, supercell):
    """Cartesian sites (n, 3) in Å, asymmetric atom and number of the molecule, by loops over cells and operators."""
    sites, atoms, molecules = [], [], []
    for cell in np.ndindex(*supercell):
        for operator in structure.space_group:
            r = np.array(operator.r().as_double()).reshape(3, 3)
            x = structure.site_frac @ r.T + operator.t().as_double()
            x = x - np.floor(x.mean(axis=0)) + cell
            sites.append(x @ structure.orthogonalization.T)
            atoms.append(np.arange(structure.n_atoms))
            molecules.append(np.full(structure.n_atoms, len(molecules)))
    return np.concatenate(sites), np.concatenate(atoms), np.concatenate(molecules)


def direct(structure, s, supercell, covariance):
    """Pair sum over the block for each cell, averaged over the rotations; covariance : (n, n, 3, 3), of the block."""
    sites, atoms, _ = block_of(structure, supercell)
    block = replace(structure.molecule().take(atoms), site_frac=sites @ np.linalg.inv(structure.orthogonalization).T)
    values = [oracle(block, s @ turn, covariance) for turn in turns(structure)]
    return np.mean(values, axis=0) / math.prod(supercell)


def points(structure, n=25):
    return np.random.default_rng(0).uniform(-0.25, 0.25, (n, 3)) @ np.eye(3)


@pytest.mark.parametrize(("symbol", "cell"), CASES, ids=NAMES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("engine", ["pair_sum", "chebyshev", "fft"])
def test_distance_kernel_across_copies_and_cells(symbol, cell, soft, engine):
    structure = random_structure(symbol, cell, elements="CNO", u=(0.1, 0.2))
    supercell = (2, 1, 1)
    model = Covariance(sigma=0.2, gamma=6.0, supercell=supercell, soft=soft, engine=engine)
    sites, atoms, _ = block_of(structure, supercell)
    r = np.linalg.norm(sites[:, None] - sites, axis=-1)
    covariance = 0.04 * np.exp(-r / 6.0)[:, :, None, None] * np.eye(3)
    if soft:
        covariance[np.arange(len(r)), np.arange(len(r))] = structure.u_cart[atoms]
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.0)
    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    expected = direct(structure, s, supercell, covariance)
    close(at(model.intensity(structure, grid), grid, index), expected, TOLERANCE[engine])
    if engine != "fft":
        close(model.intensity_at(structure, s), expected, TOLERANCE[engine])


@pytest.mark.parametrize("engine", ["pair_sum", "low_rank", "fft"])
def test_given_covariance_of_a_block(engine):
    """Tensors between all groups in the documented order, in one frame for all copies; also given as modes."""
    structure = random_structure("P 1 21 1", GROUPS[1][1], elements="CNOC", u=(0.2, 0.3), anisotropic=True)
    structure = replace(structure, residue=np.array(["   1 ", "   1 ", "   2 ", "   2 "]))
    supercell, groups = (1, 2, 2), 2 * 2 * 4
    modes = np.random.default_rng(3).normal(size=(2, 3 * groups)) * 0.1
    _, atoms, molecules = block_of(structure, supercell)
    labels = 2 * molecules + np.array([0, 0, 1, 1])[atoms]
    tensors = (modes.T @ modes).reshape(groups, 3, groups, 3).transpose(0, 2, 1, 3)
    expected = tensors[labels[:, None], labels]
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 2, 2), 2.5)
    index = some_voxels(grid)
    expected = direct(structure, vectors(structure, grid, index), supercell, expected)
    options = {"kernel": "free", "groups": "residue", "supercell": supercell, "soft": False, "engine": engine}
    for given in ({"matrix": modes.T @ modes}, {"modes": modes}):
        close(at(Covariance(**options, **given).intensity(structure, grid), grid, index), expected, TOLERANCE[engine])


@pytest.mark.parametrize("network", ["gaussian", "anisotropic"])
@pytest.mark.parametrize("stiffness", [1.0, 0.3])
def test_network_of_a_block_is_the_inverse_of_its_springs(network, stiffness):
    """By loops over pairs: springs between copies are of their own stiffness, beyond the block the ends are held."""
    structure = random_structure("P 21 21 21", (8.0, 9.0, 10.0, 90, 90, 90), elements="CCCC", radius=3.0)
    supercell, cutoff = (2, 1, 1), 5.0
    sites, _, molecules = block_of(structure, supercell)
    n, size = len(sites), 1 if network == "gaussian" else 3
    k = np.zeros((n, size, n, size))
    across = held = 0
    for shift in np.ndindex(5, 5, 5):
        shift = np.array(shift) - 2
        move = (shift * supercell) @ structure.orthogonalization.T
        for i in range(n):
            for j in range(n):
                step = sites[j] + move - sites[i]
                length = np.linalg.norm(step)
                if not 1e-6 < length < cutoff:
                    continue
                inner = not shift.any() and molecules[i] == molecules[j]
                spring = (1.0 if inner else stiffness) * (np.outer(step, step) / length**2 if size == 3 else 1.0)
                k[i, :, i, :] += spring
                if not shift.any():
                    k[i, :, j, :] -= spring
                    across += not inner
                else:
                    held += 1
    assert across > 10 and held > 10
    inverse = np.linalg.inv(k.reshape(n * size, n * size))
    expected = 0.3**2 * inverse / np.mean(np.diag(inverse))
    model = Covariance(
        kernel="elastic_network",
        sigma=0.3,
        network=ElasticNetwork(network, cutoff, True, stiffness),
        supercell=supercell,
        soft=False,
    )
    found = model.motion(structure).covariance
    np.testing.assert_allclose(flattened(found), expected, atol=1e-10)
    if size == 1:
        found = found[:, :, None, None] * np.eye(3)
    s = points(structure)
    close(model.intensity_at(structure, s), direct(structure, s, supercell, found), 1e-5)


def test_copies_without_correlation_are_single_molecules():
    """Whatever the size of the block, if the kernel is much shorter than the distance between copies."""
    structure = random_structure("P 21 21 21", (24.0, 25.0, 26.0, 90, 90, 90), elements="CNO", u=(0.2, 0.3))
    s = points(structure)
    alone = Covariance(sigma=0.3, gamma=1.0, kernel="gaussian")
    for supercell in ((1, 1, 1), (2, 1, 1)):
        values = replace(alone, supercell=supercell).intensity_at(structure, s)
        close(values, alone.intensity_at(structure, s), 1e-8)


def test_long_correlations_reach_the_rigid_crystal():
    """gamma -> inf: the block moves as one, (1 - exp(-q²σ²)) |F_block|² per cell."""
    structure = random_structure("P 1 21 1", GROUPS[1][1], elements="CNO")
    supercell = (2, 2, 1)
    model = Covariance(sigma=0.2, gamma=1e9, supercell=supercell, soft=False)
    sites, _, _ = block_of(structure, supercell)
    everything = np.full((len(sites), len(sites)), 0.04)[:, :, None, None] * np.eye(3)
    s = points(structure)
    close(model.intensity_at(structure, s), direct(structure, s, supercell, everything), 1e-5)


def test_maps_of_blocks_have_the_laue_symmetry():
    """Though a block has none, nor a tensor."""
    structure = random_structure("P 31 2 1", GROUPS[6][1], elements="CNO")
    model = Covariance(V=(0.05, 0.03, 0.04, 0.01, -0.008, 0.012), gamma=5.0, supercell=(1, 1, 2), soft=False)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.5)
    volume = model.intensity(structure, grid)
    index = np.argwhere(np.isfinite(volume)) - np.array(grid.extent)
    assert len(index) > 1000
    for operator in laue_operators(grid.space_group, friedel=True):
        np.testing.assert_allclose(at(volume, grid, index @ operator), at(volume, grid, index), rtol=1e-9)


@pytest.mark.parametrize("engine", ["pair_sum", "fft"])
def test_special_positions_in_blocks(engine):
    """Without correlations each atom of the cell counts once."""
    structure = special_structure()
    labels = np.arange(4)
    block, groups = crystal_block(structure, labels, (1, 1, 2))
    n = block.n_atoms
    assert n == 2 * np.sum(structure.multiplicity) and sorted(groups) == list(range(n))
    matrix = np.zeros((n, n))
    matrix[groups, groups] = block.u_iso
    model = Covariance(kernel="free", matrix=matrix, supercell=(1, 1, 2), soft=False, engine=engine)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.0)
    expected = Uncorrelated().intensity(structure, grid)
    known = np.isfinite(expected)
    close(model.intensity(structure, grid)[known], expected[known], 1e-5)


def test_a_block_is_an_ensemble_of_its_displacements():
    """Many drawn blocks, on a grid subdivided alike, within the error of their number."""
    structure = random_structure("P 1", GROUPS[0][1], elements="CN", u=(0.05, 0.06))
    supercell, draws = (2, 1, 1), 1000
    model = Covariance(sigma=0.3, gamma=8.0, supercell=supercell, soft=False, engine="pair_sum")
    block, _ = crystal_block(structure, np.arange(2), supercell)
    covariance = model.motion(structure).covariance
    steps = np.random.default_rng(2).multivariate_normal(np.zeros(4), covariance, (draws, 3)).transpose(0, 2, 1)
    size = np.array(supercell)
    cell = (*(float(x) for x in np.array(structure.unit_cell[:3]) * size), *structure.unit_cell[3:])
    fractional = steps @ np.linalg.inv(structure.orthogonalization).T
    members = tuple(replace(block, unit_cell=cell, site_frac=(block.site_frac + x) / size) for x in fractional)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, supercell, 4.5)
    drawn = Ensemble(members, supercell=supercell, body="cell").intensity(structure, grid)
    expected = model.intensity(structure, grid)
    known = np.isfinite(expected) & (expected > 0)
    assert np.count_nonzero(known) > 50
    error = np.abs(drawn[known] / expected[known] - 1)  # the intensity of a block is distributed about exponentially
    assert error.max() < 5 / math.sqrt(draws)


def test_correlation_length_of_a_block():
    structure = random_structure("P 1 21 1", GROUPS[1][1], elements="CNO")
    model = Covariance(sigma=0.2, gamma=1e6, supercell=(3, 1, 1), groups="molecule")
    sites, _, _ = block_of(structure, (3, 1, 1))
    diameter = max(np.linalg.norm(sites - x, axis=1).max() for x in sites)
    assert diameter <= model.correlation_length(structure) < 1.5 * diameter
    assert replace(model, gamma=0.1).correlation_length(structure) < 7.0


def test_bad_blocks_are_refused():
    for supercell in ((2, 1), (0, 1, 1), (1, 1, 1.5)):
        with pytest.raises(DiffuseError, match=r"covariance.supercell=.*three positive whole numbers"):
            Covariance(sigma=0.1, gamma=3.0, supercell=supercell)
    structure = random_structure("P 1 21 1", GROUPS[1][1])
    with pytest.raises(DiffuseError, match=r"10 bodies need \(10, 10\) or \(30, 30\)"):
        Covariance(kernel="free", matrix=np.eye(5), supercell=(1, 1, 1)).intensity_at(structure, np.zeros((1, 3)))
