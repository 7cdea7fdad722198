"""What the programs hand to the models: lists for several bodies, modes, stiffness of contacts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pair_sums import V
from helpers.programs import model_of
from helpers.structures import random_structure

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.covariance.low_rank import checked_modes, main_modes, modes_of
from dials_diffuse.models.rigid_body.rigid_body import RigidBody


def test_stiffness_of_crystal_contacts():
    network = "covariance.network."
    model = model_of("model=covariance", "covariance.kernel=elastic_network", network + "crystal_stiffness=0.25")
    assert model.network == ElasticNetwork("gaussian", 8.0, True, 0.25)
    with pytest.raises(DiffuseError, match="crystal_stiffness=0"):
        model_of("model=covariance", "covariance.kernel=elastic_network", network + "crystal_stiffness=0")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sigma=0.4", {"sigma": 0.4}),
        ("sigma=0.4,0.2", {"sigma": (0.4, 0.2)}),
        ("V=" + ",".join(map(str, V)), {"V": V}),
        ("V=" + ",".join(map(str, V + V)), {"V": (V, V)}),
    ],
)
def test_displacements_of_bodies(argument, expected):
    assert model_of("model=rigid_body", "rigid_body." + argument) == RigidBody(**expected)


def test_bad_displacements_of_bodies():
    with pytest.raises(CommandLineError, match=r"rigid_body.V: 7 numbers; six are needed"):
        model_of("model=rigid_body", "rigid_body.V=1,1,1,0,0,0,1")
    model = model_of("model=rigid_body", "rigid_body.body=chain", "rigid_body.sigma=0.1,0.2")
    with pytest.raises(DiffuseError, match="displacements of 2 bodies are given, there are 1"):
        model.intensity_at(random_structure(), np.zeros((1, 3)))


@pytest.mark.parametrize("engine", ["auto", "low_rank", "pair_sum"])
@pytest.mark.parametrize("shape", [(2, 5), (2, 15), (2, 5, 3)])
def test_modes_are_a_covariance(shape, engine):
    """Modes that are not orthogonal: V is the sum of v vᵀ."""
    structure = random_structure("P 31 2 1", (11.0, 11.0, 14.0, 90.0, 90.0, 120.0), u=(0.3, 0.5))
    modes = np.random.default_rng(3).normal(size=shape) * 0.15
    rows = modes.reshape(2, -1)
    s = np.random.default_rng(0).uniform(-0.3, 0.3, (40, 3))
    values = Covariance(kernel="free", modes=modes, engine=engine).intensity_at(structure, s)
    expected = Covariance(kernel="free", matrix=rows.T @ rows, engine="pair_sum").intensity_at(structure, s)
    np.testing.assert_allclose(values, expected, rtol=2e-5)


def test_smallest_modes_are_left_out():
    """As many as of the covariance's eigenvectors, and no more than asked for is lost."""
    modes = np.random.default_rng(1).normal(size=(6, 4, 3)) * 0.3 ** np.arange(6)[:, None, None]
    rows = modes.reshape(6, -1)
    for neglect in (1e-9, 1e-4, 1e-1):
        kept = main_modes(modes, neglect)
        assert len(kept) == len(modes_of((rows.T @ rows).reshape(4, 3, 4, 3).transpose(0, 2, 1, 3), neglect))
        kept = kept.reshape(len(kept), -1)
        assert np.trace(rows.T @ rows - kept.T @ kept) < neglect
    assert len(main_modes(modes, 1e-1)) < len(main_modes(modes, 1e-4)) < 6 == len(main_modes(modes, 1e-9))


def test_modes_in_files(tmp_path):
    modes = np.random.default_rng(3).normal(size=(2, 5, 3))
    np.save(tmp_path / "modes.npy", modes.reshape(2, 15))
    np.savez(tmp_path / "one.npz", modes=modes, eigenvalues=np.ones(2))
    np.savez(tmp_path / "each.npz", modes[0], modes[1])
    free = "model=covariance", "covariance.kernel=free"
    for name in ("modes.npy", "one.npz", "each.npz"):
        model = model_of(*free, f"covariance.modes={tmp_path / name}")
        np.testing.assert_array_equal(checked_modes("modes", model.modes, 5), modes)
    np.savez(tmp_path / "unequal.npz", modes[0], modes[1, :3])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nonsense")
    np.savez(tmp_path / "none.npz")
    for name in ("unequal.npz", "empty.npz", "bad.npz", "none.npz", "missing.npy"):
        with pytest.raises(DiffuseError, match=f"covariance.modes=.*{name}: cannot be read"):
            model_of(*free, f"covariance.modes={tmp_path / name}")
    with pytest.raises(CommandLineError, match="and only one"):
        model_of(*free, "covariance.modes=a.npy", "covariance.file=b.npy")
    with pytest.raises(CommandLineError, match="belongs to kernel=free"):
        model_of("model=covariance", "covariance.modes=a.npy")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.ones((2, 4)), r"shape \(2, 4\); modes of 5 bodies need \(k, 5\) or \(k, 15\)"),
        (np.ones(5), r"shape \(5,\)"),
        (np.ones((0, 5)), r"shape \(0, 5\)"),
        (np.full((1, 5), np.inf), "not finite"),
        (np.zeros((1, 5)), "nothing moves"),
        (np.array([["a"] * 5]), "numbers are needed"),
        (np.ones((1, 5), dtype=complex), "numbers are needed"),
    ],
)
def test_bad_modes_are_refused(values, complaint):
    with pytest.raises(DiffuseError, match=complaint):
        Covariance(kernel="free", modes=values).intensity_at(random_structure(), np.zeros((1, 3)))
    with pytest.raises(DiffuseError, match="need each other"):
        Covariance(kernel="free", modes=values, matrix=np.eye(5))


def test_blocks_and_solvent():
    assert model_of("model=covariance").supercell is None
    assert model_of("model=covariance", "covariance.supercell=2,1,1").supercell == (2, 1, 1)
    model = model_of("llm.k_sol=0.35", "llm.b_sol=50")
    assert (model.k_sol, model.b_sol) == (0.35, 50.0)
    assert model_of().k_sol == 0
