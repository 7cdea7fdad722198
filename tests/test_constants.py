"""Constants of nature against the literature or other constants, and limits that constants of method have."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.builders import small_grid, true_intensity
from scipy import constants

from dials_diffuse.experiment.pixel_factors import AIR_COMPOSITION, AIR_DENSITY, air_attenuation_coefficient
from dials_diffuse.fitting.data import Selection, select
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.simulation.sweep import ANGSTROM_PER_MM, R_E_SQUARED
from dials_diffuse.structure import surroundings
from dials_diffuse.structure.contents import PROTEIN_VOLUME

ROOM, PRESSURE = 293.15, 101325.0  # K, Pa
CUBIC_ANGSTROM = 1e-30  # m³


def test_classical_radius_of_the_electron():
    radius = constants.physical_constants["classical electron radius"][0]
    assert pytest.approx((1e10 * radius) ** 2, rel=1e-7) == R_E_SQUARED
    assert constants.milli / constants.angstrom == ANGSTROM_PER_MM


def test_air_is_an_ideal_gas():
    """Molecules of 28.9647 g/mol (Picard et al. 2008, Metrologia 45, 149) at 20 °C and 1013.25 hPa."""
    molecules = PRESSURE / (constants.k * ROOM) * CUBIC_ANGSTROM
    assert pytest.approx(molecules, rel=1e-3) == surroundings.AIR_DENSITY
    grams = molecules * 28.9647 / constants.N_A / CUBIC_ANGSTROM * 1e-6
    assert pytest.approx(grams, rel=1e-3) == AIR_DENSITY
    assert sum(AIR_COMPOSITION.values()) == pytest.approx(1, abs=1e-3)
    # mass fractions of molecules: 78.08 % N2, 20.95 % O2, 0.93 % Ar by number
    for element, weight in (("N", 0.7808 * 28.013), ("O", 0.2095 * 31.998), ("Ar", 0.0093 * 39.948)):
        assert AIR_COMPOSITION[element] == pytest.approx(weight / 28.9647, abs=1e-3)


@pytest.mark.parametrize("energy, per_gram", [(10.0, 5.120), (15.0, 1.614), (20.0, 0.7779)])
def test_attenuation_of_air(energy, per_gram):
    """cm²/g of dry air at an energy in keV: Hubbell & Seltzer (2004), NIST Standard Reference Database 126."""
    wavelength = constants.h * constants.c / (energy * constants.kilo * constants.e) / constants.angstrom
    assert air_attenuation_coefficient(wavelength) == pytest.approx(per_gram * 1.2041e-3 / 10, rel=0.02)


def test_water():
    """Of 1 g/cm³ and 18.0153 g/mol; the molecule of Benedict, Gailar & Plyler (1956): 0.9572 Å and 104.52°."""
    assert pytest.approx(constants.N_A / 18.0153 * 1e-24, rel=3e-3) == surroundings.WATER_DENSITY
    assert pytest.approx(0.9572, abs=0.01) == surroundings.WATER_OH
    assert pytest.approx(2 * 0.9572 * np.sin(np.radians(104.52 / 2)), abs=0.01) == surroundings.WATER_HH


def test_molecules_of_air():
    """Bonds of N2 and O2: Huber & Herzberg (1979), 1.0977 and 1.2075 Å."""
    bonds = {element: (length, share) for element, length, share in surroundings._AIR}
    assert bonds["N"] == (pytest.approx(1.0977, abs=2e-3), pytest.approx(0.79, abs=0.01))
    assert bonds["O"] == (pytest.approx(1.2075, abs=2e-3), pytest.approx(0.21, abs=0.01))


def test_volume_of_protein():
    """0.73 cm³/g, in Å³ per dalton."""
    assert pytest.approx(0.73 / constants.N_A * 1e24, rel=5e-3) == PROTEIN_VOLUME


def test_no_voxel_weighs_more_than_four_others():
    """Whatever error a voxel claims, its weight in a fit is at most four times that of the median beside it."""
    grid = small_grid()
    index = grid.index(np.arange(grid.n_voxels))
    index = index[grid.inside(index)]
    sigma = np.ones(len(index))
    sigma[::50] = 1e-6
    intensity = true_intensity(grid, index)
    data = select(DiffuseMap(grid, True, index, intensity, sigma, np.ones(len(index), np.int32)), Selection())
    weight = data.sigma**-2
    assert data.n_floored > 0 and weight.max() / np.median(weight) == pytest.approx(4)
