"""Atoms on special positions, cells that differ, and displacements that are too large, in all models."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pair_sums import V, at, close, some_voxels, vectors
from helpers.structures import random_structure, special_structure

from dials_diffuse.errors import DiffuseError
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models import prepared
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.single_atoms import radial
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import make_structure
from dials_diffuse.structure.factors import form_factors, sum_of_squares
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.tls import TlsGroup


def trigonal():
    """Zn on a 3-fold and a 2-fold axis, O on a 2-fold axis, and general atoms."""
    return make_structure(
        (11, 11, 13, 90, 90, 120),
        "P 3 2 1",
        ["Zn", "C", "O", "N"],
        [(0, 0, 0), (0.1, 0.27, 0.23), (0.3, 0, 0), (0.2, 0.2, 0.2)],
        u=[0.15, 0.2, 0.25, 0.3],
        occupancy=[1, 1, 1, 0.7],
    )


def pair_sum(structure, s, shared, own):
    """Pairs of different atoms in each copy, each with its share of them, and every atom of the cell once.

    shared : function of a Cartesian rotation, gives (n, n, 3, 3), V_ij; own : (n, 3, 3), U_i of the first copy
    """
    rotations, order = structure.rotations, structure.space_group.order_z()
    f = form_factors(structure, np.linalg.norm(s, axis=1))[structure.type_index].T * structure.occupancy
    q = 2 * np.pi * s
    total = np.zeros(len(s))
    for rotation in rotations:
        site = structure.site_cart @ rotation.T
        square = np.einsum("ma,nab,mb->mn", q, rotation @ own @ rotation.T, q)
        a = f * structure.multiplicity / order * np.exp(1j * q @ site.T - 0.5 * square)
        k = np.expm1(np.einsum("ma,ijab,mb->mij", q, shared(rotation), q))
        k[:, np.arange(structure.n_atoms), np.arange(structure.n_atoms)] = 0
        total += np.einsum("mi,mij,mj->m", a, k, a.conj()).real
        total += (f**2 * (1 - np.exp(-square))) @ structure.multiplicity / order
    return total


@pytest.mark.parametrize("make", [special_structure, trigonal])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("tensor", [False, True])
def test_rigid_bodies(make, soft, tensor):
    """In closed form, as rotating bodies and as a covariance; on a grid, at points and prepared."""
    structure = make()
    v = symmetric_tensor(V) if tensor else 0.04 * np.eye(3)
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.2)
    index = some_voxels(grid)
    s = vectors(structure, grid, index)
    n = structure.n_atoms
    own = structure.u_cart if soft else np.tile(v, (n, 1, 1))
    expected = pair_sum(structure, s, lambda r: np.tile(r @ v @ r.T, (n, n, 1, 1)), own)
    model = RigidBody(**({"V": V} if tensor else {"sigma": 0.2}), soft=soft)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-3)
    close(model.intensity_at(structure, s), expected, 1e-9)
    ready = prepared.prepare(model, structure, grid, index)
    close(ready.intensity([p.value for p in ready.parameters]), expected, 1e-3)
    translation = TlsGroup(T=tuple(v[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]), L=(0,) * 6)
    rotating = RigidBody(body="tls", tls=(translation,), soft=soft)
    close(at(rotating.intensity(structure, grid), grid, index), expected, 1e-3)
    given = v[None, None].repeat(n, 0).repeat(n, 1) if tensor else np.full((n, n), 0.04)
    covariance = Covariance(kernel="free", matrix=given, soft=soft, engine="pair_sum")
    close(covariance.intensity_at(structure, s), expected, 1e-9)


@pytest.mark.parametrize("make", [special_structure, trigonal])
def test_liquid_like_motions_in_the_molecule(make):
    structure = make()
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.4)
    index = some_voxels(grid)
    r = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)
    v = (0.04 * np.exp(-r / 6.0))[:, :, None, None] * np.eye(3)
    expected = pair_sum(structure, vectors(structure, grid, index), lambda turn: v, structure.u_cart)
    model = LiquidLikeMotions(sigma=0.2, gamma=6.0, orders=6, confined_to="molecule", local_form_factor=True)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-2)


# ------------------------------------------------------------------------------------------------------ cell of the map


@pytest.mark.parametrize(
    "model",
    [
        RigidBody(V=V),
        LiquidLikeMotions(sigma=0.2, gamma=4.0),
        LiquidLikeMotions(sigma=0.2, gamma=4.0, k_sol=0.35),
        Covariance(sigma=0.2, gamma=4.0, engine="fft"),
        Covariance(sigma=0.2, gamma=4.0, engine="pair_sum"),
        LatticeDynamics(sigma=0.2, cutoff=14.0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_atoms_are_put_into_the_cell_of_the_map(model):
    """The cell of a model may differ by up to 1 % from that of the map: its fractional coordinates count."""
    structure = random_structure("P 1 21 1", (14.0, 13.0, 15.0, 90, 103, 90), u=(0.1, 0.3))
    other = structure.in_cell((14.1, 12.9, 15.12, 90, 103.5, 90))
    grid = MapGrid(other.unit_cell, other.hall_symbol, (2, 2, 2), 2.5)
    index = some_voxels(grid)
    expected = at(model.intensity(other, grid), grid, index)
    close(at(model.intensity(structure, grid), grid, index), expected, 1e-9)
    ready = prepared.prepare(model, structure, grid, index)
    close(ready.intensity([p.value for p in ready.parameters]), expected, 1e-3)


# ------------------------------------------------------------------------------------------- displacements too large


def small():
    return make_structure((9, 10, 11, 90, 90, 90), "P 1", ["C", "N"], [(0.1, 0.2, 0.3), (0.2, 0.3, 0.3)], u=0.1)


@pytest.mark.parametrize(
    "model",
    [
        RigidBody(sigma=6.0, soft=True),
        Covariance(sigma=6.0, gamma=10.0),
        Covariance(sigma=6.0, gamma=10.0, soft=False, engine="chebyshev"),
    ],
)
def test_exponents_that_are_no_numbers_are_refused(model):
    structure = small()
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 1.0)
    with pytest.raises(DiffuseError, match="displacements of 6 Å rms are too large at a resolution of 1 Å"):
        model.intensity(structure, grid)
    with pytest.raises(DiffuseError, match="too large at a resolution of 1 Å"):
        model.intensity_at(structure, np.array([[1.0, 0, 0]]))


def test_large_displacements_in_llm_have_no_finite_order():
    structure = small()
    model = LiquidLikeMotions(sigma=6.0, gamma=10.0)
    assert model.missing_orders(1.0) == pytest.approx(1)
    assert np.nanmax(np.abs(model.intensity(structure, MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 1.0)))) > 0


def test_intensities_that_are_no_numbers_are_refused():
    class Broken(Uncorrelated):
        def intensity(self, structure, grid):
            volume = super().intensity(structure, grid)
            volume[grid.extent] = np.inf
            return volume

    structure = small()
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 2.0)
    with pytest.raises(DiffuseError, match="no finite number at 1 of"):
        model_map(Broken(), structure, grid)


def test_no_patterson_function_of_displacements_beyond_the_atoms_own():
    structure = small()
    grid = MapGrid(structure.unit_cell, "P 1", (1, 1, 1), 1.5)
    with pytest.raises(DiffuseError, match="no Patterson function"):
        Covariance(sigma=0.9, gamma=10.0, engine="fft").intensity(structure, grid)


# ----------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("u", [0.0, 0.3, 1.9])
def test_table_of_a_function_of_resolution(u):
    """As its docstring says: to 1e-6 of the value itself, up to the corners of a box to 1 Å."""
    structure = make_structure((9, 9, 9, 90, 90, 90), "P 1", list("CNOSH") + ["Zn"], np.zeros((6, 3)), u=u)
    s2 = np.random.default_rng(0).uniform(0, 3, 20_000)

    def exact(s):
        return sum_of_squares(structure, s, displaced=True)

    np.testing.assert_allclose(radial(exact, s2), exact(np.sqrt(s2)), rtol=1e-6)
    np.testing.assert_allclose(radial(exact, np.zeros(3)), exact(np.zeros(3)), rtol=1e-12)
