"""Scattering that is not the crystal's diffuse signal: air, water and Compton, isotropic functions of |s|.

They need to look and weigh like the real thing, not to be exact: the density of air and water, the free-molecule
scattering of N2 and O2, the first peak of water at 3.2 Å.
"""

from __future__ import annotations

import numpy as np
from cctbx.eltbx import tiny_pse

from dials_diffuse.structure.contents import water_molecules
from dials_diffuse.structure.factors import atom_form_factor, incoherent

#: molecules per Å³ of air (20 °C, 1013 hPa)
AIR_DENSITY = 2.504e-5

#: Å², the square of the classical radius of the electron
R_E_SQUARED = 2.8179403e-5**2

#: air by molecules, N2 and O2 with their bond lengths in Å
_AIR = (("N", 1.098, 0.79), ("O", 1.207, 0.21))


def air(s) -> np.ndarray:
    """Electrons² per molecule of air at |s| in 1/Å: elastic scattering of free N2 and O2, and Compton."""
    s = np.asarray(s, dtype=float)
    total = np.zeros(s.shape)
    for element, bond, share in _AIR:
        f = atom_form_factor(element, s)
        total += share * (2 * f**2 * (1 + np.sinc(2 * s * bond)) + 2 * incoherent(element, s))
    return total


def water(s) -> np.ndarray:
    """Electrons² per molecule of liquid water at |s| in 1/Å.

    The molecule as one neutral atom of ten electrons, times a structure factor with the compressibility limit at
    s = 0, the peak at 1/3.2 Å with its shoulder, and 1 at large s; and Compton.
    """
    s = np.asarray(s, dtype=float)
    f = atom_form_factor("O", s) + 2 * atom_form_factor("H", s)
    structure = 1 - 0.936 * np.exp(-((s / 0.21) ** 2))
    structure += 0.75 * _gaussian(s, 0.315, 0.04) + 0.2 * _gaussian(s, 0.46, 0.06)
    return f**2 * structure + incoherent("O", s) + 2 * incoherent("H", s)


def solvent_molecules(structure) -> float:
    """Water molecules that fill what the molecules of a crystal leave of the unit cell."""
    mass = {element: tiny_pse.table(str(element)).weight() for element in set(structure.element)}
    per_atom = np.array([mass[element] for element in structure.element])
    total = float(np.sum(per_atom * structure.occupancy * structure.multiplicity))
    return water_molecules(structure.cell.volume(), total)


def _gaussian(s: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((s - centre) / width) ** 2) / 2)
