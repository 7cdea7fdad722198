"""How air and liquid water scatter, isotropic functions of |s|: what is around a crystal, and in its bulk solvent.

Both obey the sum rule: but for the bonds of the molecules, whose atoms overlap, ``∫ q² (I - Σ f² - Compton) dq`` is
-2π² Z² / V with molecules of Z electrons, one in each V (0 for air).
"""

from __future__ import annotations

import math

import numpy as np

from dials_diffuse.structure.factors import atom_form_factor, incoherent

#: molecules per Å³ of water
WATER_DENSITY = 0.03343

#: molecules per Å³ of air (20 °C, 1013 hPa)
AIR_DENSITY = 2.504e-5

#: air by molecules, N2 and O2 with their bond lengths in Å
_AIR = (("N", 1.098, 0.79), ("O", 1.207, 0.21))

#: water: O-H and H-H of the free molecule, Å
WATER_OH, WATER_HH = 0.96, 1.52

#: neighbours of an oxygen in water: number, distance and rms width (Å); and where the even density begins, with the
#: width of its edge. Found from the peaks of S(q) at 2.0, 3.0 and 4.8 1/Å, its minima, and its limit at q = 0, 0.062
_SHELLS = ((3.90, 2.859, 0.25), (12.40, 4.338, 0.674), (4.2431, 6.429, 0.424))
_EVEN_FROM, _EVEN_WIDTH = 5.353, 1.2


def air(s) -> np.ndarray:
    """Electrons² per molecule of air at |s| in 1/Å: elastic scattering of free N2 and O2, and Compton."""
    s = np.asarray(s, dtype=float)
    total = np.zeros(s.shape)
    for element, bond, share in _AIR:
        f = atom_form_factor(element, s)
        total += share * (2 * f**2 * (1 + np.sinc(2 * s * bond)) + 2 * incoherent(element, s))
    return total


def water(s) -> np.ndarray:
    """Electrons² per molecule of liquid water at |s| in 1/Å, elastic and Compton.

    The free molecule, and its interference with others as that of their oxygens with all ten electrons.

    Source: Narten & Levy 1969, Science 165, 447 (form of the structure factor)
    """
    s = np.asarray(s, dtype=float)
    oxygen, hydrogen = atom_form_factor("O", s), atom_form_factor("H", s)
    molecule = oxygen**2 + 2 * hydrogen**2 + incoherent("O", s) + 2 * incoherent("H", s)
    molecule += 4 * oxygen * hydrogen * np.sinc(2 * s * WATER_OH) + 2 * hydrogen**2 * np.sinc(2 * s * WATER_HH)
    return molecule + (oxygen + 2 * hydrogen) ** 2 * (_structure_factor(s) - 1)


def _structure_factor(s: np.ndarray) -> np.ndarray:
    """S(q) of the oxygens: neighbours in shells, then the even density."""
    q = 2 * math.pi * s
    total = np.ones(s.shape)
    for number, r, width in _SHELLS:
        total += number * np.sinc(2 * s * r) * np.exp(-((q * width) ** 2) / 2)
    x = np.maximum(q * _EVEN_FROM, 1e-3)
    hole = 4 * math.pi * WATER_DENSITY * _EVEN_FROM**3 * (np.sin(x) - x * np.cos(x)) / x**3
    return total - hole * np.exp(-((q * _EVEN_WIDTH) ** 2) / 2)
