"""What decides how much of the scattering a pixel counts: solid angle, polarization, sensor and air.

Both the reduction, which divides by these factors, and the simulation, which multiplies by them, take them from here.
There is no Lorentz factor among them, see docs/theory.md, The measurement.
"""

from __future__ import annotations

import numpy as np
from cctbx.eltbx import attenuation_coefficient

from dials_diffuse.experiment.detector import PanelGeometry

#: dry air at 20 °C and 1013 hPa: mass fractions and density in g/cm³
AIR_COMPOSITION = {"N": 0.7553, "O": 0.2318, "Ar": 0.0129}
AIR_DENSITY = 1.2041e-3


def solid_angle(panel: PanelGeometry) -> np.ndarray:
    """(ny, nx) solid angle of each pixel, ``area cos(incidence) / distance²``, in steradian."""
    return panel.pixel_area * panel.cos_incidence / panel.distance.astype(float) ** 2


def polarization(directions: np.ndarray, s0, normal, fraction: float | None) -> np.ndarray:
    """(...) factor for unit vectors ``directions`` (3, ...), all in the laboratory frame.

    ``P = (1 - 2p) (1 - (u.n)²) + p (1 + (u.k)²)`` with the beam direction k, the normal n of the plane of polarization
    and the fraction p of the light polarized in that plane (dxtbx convention); equal to
    ``p (1 - (u.(k x n))²) + (1 - p) (1 - (u.n)²)``. Source: Kabsch (1988) J. Appl. Cryst. 21, 916, as in DIALS.

    fraction : p; None for electrons, whose factor is 1
    """
    if fraction is None:
        return np.ones(directions.shape[1:])
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
