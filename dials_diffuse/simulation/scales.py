"""Scale factors of a simulated sweep, smooth and known: what scaling has to find again.

An image of sweep j counts ``d(x, y) [a(x, y, φ) (b(φ) I + liquid(φ)) + air]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dials_diffuse.simulation.simulation_parameters import Background, Scales


@dataclass(frozen=True)
class SweepScales:
    """Scale factors of one sweep.

    Attributes
    ----------
    drift, phase : b falls by ``drift`` in all from the first image to the last, with a wave on it; mean about 1
    liquid, liquid_phase : relative amplitude and phase (radians) of the liquid's thickness, period 180°
    absorption : rms of ln a
    dipole, quadrupole : (3,) unit vectors in the frame of the goniometer head, the pattern of the absorption
    """

    drift: float
    phase: float
    liquid: float
    liquid_phase: float
    absorption: float
    dipole: np.ndarray
    quadrupole: np.ndarray

    def b(self, fraction) -> np.ndarray:
        """Scale of the crystal's scattering at a fraction (0 to 1) of the sweep."""
        t = np.asarray(fraction, dtype=float)
        return 1 + self.drift * (0.5 - t + 0.15 * np.sin(3 * math.pi * t + self.phase))

    def liquid_factor(self, angle: float) -> float:
        """Thickness of the liquid relative to its mean; angle in degrees."""
        return 1 + self.liquid * math.cos(2 * math.radians(angle) + self.liquid_phase)

    def a(self, directions: np.ndarray, s0: np.ndarray, to_head: np.ndarray) -> np.ndarray:
        """Transmission of the crystal and what is around it, relative to its mean.

        The logarithm is a pattern on the sphere (a dipole and a quadrupole, each of rms 1) at the diffracted direction
        plus the same at the opposite of the incident one, because both paths lie in the same body.

        Parameters
        ----------
        directions : (3, ...) unit vectors in the laboratory frame
        s0 : (3,) beam vector
        to_head : (3, 3) rotation from the laboratory frame to that of the goniometer head
        """
        if self.absorption == 0:
            return np.ones(directions.shape[1:])
        incident = -s0 / np.linalg.norm(s0)
        pattern = self._pattern(directions, to_head) + self._pattern(incident, to_head)
        return np.exp(self.absorption / math.sqrt(2) * pattern)

    def _pattern(self, directions: np.ndarray, to_head: np.ndarray) -> np.ndarray:
        along = np.tensordot(self.dipole @ to_head, directions, 1)
        across = np.tensordot(self.quadrupole @ to_head, directions, 1)
        return (math.sqrt(3) * along + (across**2 - 1 / 3) / math.sqrt(4 / 45)) / math.sqrt(2)


def sweep_scales(scales: Scales, background: Background, rng: np.random.Generator) -> SweepScales:
    """Draw what is random about the scale factors of a sweep."""
    dipole, quadrupole = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    phase, liquid_phase = rng.uniform(0, 2 * math.pi, 2)
    return SweepScales(
        drift=scales.drift,
        phase=phase,
        liquid=background.liquid_variation,
        liquid_phase=liquid_phase,
        absorption=scales.absorption,
        dipole=dipole,
        quadrupole=quadrupole,
    )


def module_responses(module_numbers: list, rms: float, rng: np.random.Generator) -> list:
    """(ny, nx) float64 per panel, relative response d of the module that each pixel belongs to.

    module_numbers : (ny, nx) int per panel, counted through all panels
    """
    n = 1 + max(int(m.max()) for m in module_numbers)
    response = np.maximum(1 + rms * rng.normal(size=n), 0.1)
    return [response[m] for m in module_numbers]
