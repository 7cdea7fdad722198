"""Models with f', f'', and with the form factors of electrons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.pair_sums import V, close, turns, vectors
from helpers.structures import GROUPS, WAVELENGTH, random_structure

from dials_diffuse.cli.model import phil_scope, run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.kernels.pair_sum import pair_sum
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.maps.units import ELECTRONS
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.factors import Dispersive, form_factors
from dials_diffuse.structure.tensors import symmetric_tensor
from dials_diffuse.structure.transform import direct_transform


def iron(**arguments):
    return random_structure("P 31 2 1", GROUPS[6][1], elements=["Fe", "S", "N", "C", "H"], **arguments)


def friedel_mean(structure, s, covariance_of):
    """Of the pair sums with complex form factors, over the copies."""
    f = form_factors(structure, np.linalg.norm(s, axis=1), wavelength=WAVELENGTH)[structure.type_index].T
    f = np.ascontiguousarray(f * structure.occupancy)
    content, total, out = structure.expand(), np.zeros(len(s)), np.empty(len(s))
    for number, turn in enumerate(turns(structure)):
        copy = content.take(content.copy == number)
        for sign in (1, -1):
            pair_sum(2 * np.pi * sign * s, copy.site_cart, f, covariance_of(copy, turn), out)
            total += 0.5 * out
    return total


@pytest.mark.parametrize("case", ["uncorrelated", "rigid", "covariance", "molecule"])
def test_dispersion_in_models(case):
    structure = iron(u=(0.1, 0.3), anisotropic=case == "uncorrelated")
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (2, 2, 2), 2.2)
    r = np.linalg.norm(structure.site_cart[:, None] - structure.site_cart, axis=-1)

    def covariance_of(copy, turn):
        n = copy.n_atoms
        if case == "rigid":
            return np.tile(turn @ symmetric_tensor(V) @ turn.T, (n, n, 1, 1))
        shared = np.zeros((n, n, 3, 3))
        if case != "uncorrelated":
            shared += 0.04 * np.exp(-0.5 * (r / 4.0) ** 2)[:, :, None, None] * np.eye(3)
        shared[np.arange(n), np.arange(n)] = copy.u_cart
        return shared

    model = {
        "uncorrelated": Uncorrelated(),
        "rigid": RigidBody(V=V),
        "covariance": Covariance(kernel="gaussian", sigma=0.2, gamma=4.0),
        "molecule": LiquidLikeMotions(
            kernel="gaussian", sigma=0.2, gamma=4.0, orders=5, confined_to="molecule", local_form_factor=True
        ),
    }[case]
    result = model_map(model, structure, grid, wavelength=WAVELENGTH)
    expected = friedel_mean(structure, vectors(structure, grid, result.index), covariance_of)
    tolerance = 5e-3 if case == "molecule" else 1e-4
    close(result.intensity, expected, tolerance)
    without = model_map(model, structure, grid).intensity
    assert np.abs(without - expected).max() > 20 * tolerance * np.sqrt(np.mean(expected**2))


def test_dispersion_in_an_ensemble():
    structure = iron()
    rng = np.random.default_rng(0)
    shape = structure.site_frac.shape
    members = tuple(replace(structure, site_frac=structure.site_frac + 0.01 * rng.normal(size=shape)) for _ in range(3))
    grid = MapGrid(structure.unit_cell, structure.hall_symbol, (1, 1, 1), 2.5)
    result = model_map(Ensemble(members), structure, grid, wavelength=WAVELENGTH)
    expected = 0.0
    for turn in turns(structure):
        for sign in (1, -1):
            hkl = sign * vectors(structure, grid, result.index) @ turn @ structure.orthogonalization
            f = [direct_transform(m.without_displacements(), hkl, wavelength=WAVELENGTH) for m in members]
            expected = expected + 0.5 * np.var(f, axis=0, ddof=1)
    close(result.intensity, expected, 1e-3)


def test_parts_of_the_form_factors():
    structure = iron()
    s = np.linspace(0, 1, 5)
    f = form_factors(structure, s, wavelength=WAVELENGTH)
    np.testing.assert_allclose(form_factors(structure, s, Dispersive("wk1995", WAVELENGTH)), f.real, rtol=1e-12)
    np.testing.assert_allclose(form_factors(structure, s, Dispersive("wk1995", WAVELENGTH, True)), f.imag, rtol=1e-12)
    with pytest.raises(DiffuseError, match="table=electron: there is no f', f''"):
        Dispersive("electron", WAVELENGTH)


def test_form_factors_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iron().hierarchy.write_pdb_file("m.pdb", crystal_symmetry=iron().crystal_symmetry)
    structure = load_structure("m.pdb")
    fixed = ["m.pdb", "model=uncorrelated", "d_min=3", "grid.subdivide=1,1,1", "output.png=None"]
    run([*fixed, f"wavelength={WAVELENGTH}"])
    result = read_map("diffuse_model.nxs")
    expected = model_map(Uncorrelated(), structure, result.grid, wavelength=WAVELENGTH)
    np.testing.assert_allclose(result.intensity, expected.intensity)
    assert result.units == ELECTRONS
    run([*fixed, "scattering_table=electron"])
    result = read_map("diffuse_model.nxs")
    np.testing.assert_allclose(result.intensity, model_map(Uncorrelated("electron"), structure, result.grid).intensity)
    assert result.units == "angstrom^2 per unit cell"
    assert phil_scope.extract().scattering_table == "wk1995"
    with pytest.raises(SystemExit):
        run([*fixed, "scattering_table=electron", "wavelength=1"])
