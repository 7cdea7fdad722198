"""Per-pixel factors c of the expected counts ``C = c I + b``; one function each, and no Lorentz factor.

A pixel counts what its solid angle cuts out of the Ewald sphere while the crystal turns, so the plain sum over pixels
in a voxel already averages I over the volume they swept: a Lorentz factor, which belongs to integrated Bragg spots,
would be wrong here.
"""

from __future__ import annotations

import numpy as np
from cctbx.eltbx import attenuation_coefficient

from dials_diffuse.experiment.detector import PanelGeometry
from dials_diffuse.reduction.reduction_parameters import Corrections

#: dry air at 20 °C and 1013 hPa: mass fractions and density in g/cm³
AIR_COMPOSITION = {"N": 0.7553, "O": 0.2318, "Ar": 0.0129}
AIR_DENSITY = 1.2041e-3

#: unit of solid angle, steradian: the same for all detectors, so that intensities from several can be merged
MICROSTERADIAN = 1e-6


def solid_angle(panel: PanelGeometry) -> np.ndarray:
    """(ny, nx) solid angle of each pixel, ``area cos(incidence) / distance²``, in steradian."""
    return panel.pixel_area * panel.cos_incidence / panel.distance.astype(float) ** 2


def polarization(directions: np.ndarray, s0, normal, fraction: float) -> np.ndarray:
    """(...) factor for unit vectors ``directions`` (3, ...), all in the laboratory frame.

    ``P = (1 - 2p) (1 - (u.n)²) + p (1 + (u.k)²)`` with the beam direction k, the normal n of the plane of polarization
    and the fraction p of the light polarized in that plane (dxtbx convention); the same as
    ``p (1 - (u.(k x n))²) + (1 - p) (1 - (u.n)²)``. Source: Kabsch (1988) J. Appl. Cryst. 21, 916, as in DIALS.
    """
    along_normal = np.tensordot(np.asarray(normal) / np.linalg.norm(normal), directions, 1)
    along_beam = np.tensordot(np.asarray(s0) / np.linalg.norm(s0), directions, 1)
    return (1 - 2 * fraction) * (1 - along_normal**2) + fraction * (1 + along_beam**2)


def sensor_efficiency(panel: PanelGeometry) -> np.ndarray:
    """(ny, nx) fraction of photons stopped by the sensor, ``1 - exp(-mu t / cos(incidence))``; 1 if unknown."""
    depth = panel.mu * panel.thickness
    if depth <= 0:
        return np.ones(panel.shape)
    return -np.expm1(-depth / panel.cos_incidence.astype(float))


def air_attenuation_coefficient(wavelength: float) -> float:
    """Attenuation of air in 1/mm at a wavelength in Å (NIST tables of cctbx)."""
    per_mass = sum(
        fraction * attenuation_coefficient.get_table(element).mu_rho_at_angstrom(wavelength)
        for element, fraction in AIR_COMPOSITION.items()
    )
    return per_mass * AIR_DENSITY / 10


def air_transmission(panel: PanelGeometry, wavelength: float) -> np.ndarray:
    """(ny, nx) transmission of the air between sample and pixel."""
    return np.exp(-air_attenuation_coefficient(wavelength) * panel.distance.astype(float))


def pixel_corrections(panel: PanelGeometry, s0, normal, fraction: float, switches: Corrections) -> np.ndarray:
    """(ny, nx) float64 product of the corrections that are switched on; solid angles in microsteradian."""
    product = np.ones(panel.shape)
    if switches.solid_angle:
        product *= solid_angle(panel) / MICROSTERADIAN
    if switches.polarization:
        product *= polarization(panel.directions, s0, normal, fraction)
    if switches.efficiency:
        product *= sensor_efficiency(panel)
    if switches.air:
        product *= air_transmission(panel, 1 / np.linalg.norm(s0))
    return product
