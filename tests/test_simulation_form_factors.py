"""Simulated Bragg spots and diffuse scattering have the same form factors, with f', f'' where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.programs import fails
from helpers.simulations import CELL, GROUP, QUICK, SMALL
from helpers.structures import WAVELENGTH, random_structure
from helpers.synthetic import experiment_list, make_crystal, make_experiment

from dials_diffuse.cli.simulate import run
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.nexus import read_map
from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.models.compute import model_map
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.uncorrelated import Uncorrelated
from dials_diffuse.simulation.diffuse import diffuse_volume
from dials_diffuse.simulation.simulate import Outputs, bragg_intensities, simulate
from dials_diffuse.simulation.simulation_parameters import SimulationParameters
from dials_diffuse.simulation.truth import true_map
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.solvent import bulk_solvent_structure_factors
from dials_diffuse.structure.transform import direct_transform

QUICKER = [*SMALL, *QUICK, "model=uncorrelated", "d_min=4", "scan.n_images=2"]


@pytest.fixture(scope="module")
def iron():
    return random_structure(GROUP, CELL, elements=["Fe", "S", "N", "C", "H", "O"])


@pytest.fixture
def pdb(iron, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iron.hierarchy.write_pdb_file("iron.pdb", crystal_symmetry=iron.crystal_symmetry)
    return "iron.pdb"


@pytest.mark.parametrize("solvent", [(0.0, 0.0), (0.35, 46.0)])
def test_bragg_intensities_are_the_mean_of_friedel_mates(iron, solvent):
    """Against direct sums with complex form factors, and the solvent of the structure without f', f''."""
    hkl, f_squared = bragg_intensities(iron, 2.0, solvent, "it1992", WAVELENGTH)
    content = iron.expand()
    wet, dry = (bulk_solvent_structure_factors(iron, 2.0, *s, "it1992") for s in (solvent, (0.0, 0.0)))
    np.testing.assert_array_equal(wet[0], hkl)
    water = wet[1] - dry[1]
    plus, minus = (direct_transform(content, sign * hkl, "it1992", WAVELENGTH) for sign in (1, -1))
    mates = np.abs(plus + water) ** 2, np.abs(minus + water.conj()) ** 2
    expected = np.mean(mates, axis=0)
    np.testing.assert_allclose(f_squared, expected, rtol=1e-3, atol=1e-4 * expected.mean())
    assert np.abs(mates[0] - mates[1]).max() > 0.1 * expected.mean()  # they do differ
    still = bragg_intensities(iron, 2.0, solvent, "it1992")[1]
    assert np.abs(still - expected).max() > 0.1 * expected.mean()
    np.testing.assert_allclose(still, np.abs(wet[1]) ** 2)


@pytest.mark.parametrize("wavelength", [None, WAVELENGTH])
def test_the_diffuse_volume_is_that_of_the_model(iron, wavelength):
    model = LiquidLikeMotions(sigma=0.3, gamma=4.0, table="it1992")
    grid = MapGrid(CELL, iron.hall_symbol, (1, 1, 1), 4.0)
    expected = model_map(model, iron, grid, wavelength=wavelength)
    found = diffuse_volume(model, iron, 4.0, wavelength)(expected.index)
    assert np.corrcoef(found, expected.intensity)[0, 1] > 0.9999
    assert found.sum() == pytest.approx(expected.intensity.sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "table", "wavelength"),
    [
        ([], "wk1995", None),
        (["scattering_table=it1992"], "it1992", None),
        (["anomalous=True"], "wk1995", WAVELENGTH),
        (["anomalous=True", "scattering_table=it1992"], "it1992", WAVELENGTH),
    ],
)
def test_the_truth_has_the_form_factors_that_are_asked_for(pdb, options, table, wavelength):
    run([pdb, *QUICKER, *options, f"source.wavelength={WAVELENGTH}", "bragg=False", "noise=False"])
    truth, structure = read_map("truth.nxs"), load_structure(pdb)
    for other in ("wk1995", "it1992"):
        for at in (None, WAVELENGTH):
            volume = diffuse_volume(Uncorrelated(other), structure, 1 / (1 / 4.0 + truth.grid.diagonal), at)
            expected = true_map(volume, truth.grid).intensity
            assert np.allclose(truth.intensity, expected, rtol=1e-5) == ((other, at) == (table, wavelength))
    assert ("Fe -" in Path("dials.diffuse_simulate.log").read_text()) == (wavelength is not None)


def test_mistakes(pdb, iron, capsys):
    base = [pdb, *QUICKER]
    assert "scattering_table" in fails(run, [*base, "scattering_table=electron"], capsys, 2)
    far = [*base, "anomalous=True", "source.wavelength=11", "d_min=6", "detector.distance=10"]
    fails(run, far, capsys, words=["wavelength=11", "Sasaki"])
    two = [make_experiment(crystal=make_crystal(CELL[:3], "P212121"), identifier=f"sweep-{n}") for n in range(2)]
    two[1].beam.set_wavelength(1.01)
    sweeps = [[experiment] for experiment in experiment_list(*two)]
    parameters = SimulationParameters(d_min=4.0, anomalous=True)
    with pytest.raises(DiffuseError, match=r"the wavelengths are 1.* to 1\.01 Å"):
        simulate(iron, Uncorrelated(), sweeps, parameters, Outputs(), None)
    with pytest.raises(DiffuseError, match="scattering_table=electron"):
        simulate(iron, Uncorrelated("electron"), sweeps, parameters, Outputs(), None)
    assert not list(Path().glob("*.cbf"))
