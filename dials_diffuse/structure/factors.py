"""Form factors of atoms, and sums of them over the cell that do not depend on where the atoms are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cctbx.eltbx import sasaki, tiny_pse, xray_scattering
from cctbx.eltbx.e_scattering import ito_vol_c_2011_table_4_3_2_2_entry_as_gaussian

from dials_diffuse.checks import choice
from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.crystal import Structure

#: wk1995: X-rays, Waasmaier & Kirfel 1995; it1992: X-rays, International Tables C 1992; electron: Peng et al. 1996
TABLES = ("wk1995", "it1992", "electron")

#: in place of a table: every atom scatters as 1, whatever its element, as points of an even density do
FLAT = "flat"

#: a_i (electrons) and b_i (Å²) of S(x) = Z - sum a_i exp(-b_i x²), x = |s|/2: Balyuzi 1975, Acta Cryst. A31, 600
_BALYUZI = {
    "C": ((0.7568, 82.2385), (2.5511, 31.7282), (0.7051, 11.9471), (1.4605, 1.4637), (0.5263, 0.5150)),
    "N": ((0.9070, 64.1555), (2.8972, 20.8507), (1.1659, 7.7576), (1.5526, 1.0335), (0.4769, 0.3516)),
    "O": ((0.8847, 52.0063), (3.2189, 16.4487), (1.7990, 6.5958), (1.5538, 0.8143), (0.5434, 0.2815)),
}


@dataclass(frozen=True)
class Dispersive:
    """Form factors f0 + f' + i f'' at a wavelength, the real or the imaginary part of them, in the place of a table.

    Diffuse intensity, the mean of Friedel mates, is a sum of f_i conj(f_j) cos(q(r_i - r_j)) over pairs of atoms: that
    of the real parts plus that of the imaginary parts.

    Attributes
    ----------
    table : of f0, one of TABLES for X-rays
    wavelength : Å
    imaginary : which of the two

    Raises
    ------
    DiffuseError
        If the table is none of X-rays.
    """

    table: str
    wavelength: float
    imaginary: bool = False

    def __post_init__(self):
        if self.table not in TABLES[:2]:
            raise DiffuseError(f"table={self.table}: there is no f', f'' for it; choose from {', '.join(TABLES[:2])}")


def gaussian(scattering_type: str, table="wk1995"):
    """cctbx's sum of Gaussians for a scattering type.

    table : one of TABLES, Dispersive, or FLAT

    Raises
    ------
    DiffuseError
        If the table is not one of TABLES, or does not know the type.
    """
    if table == FLAT:
        return xray_scattering.gaussian([], [], 1.0)
    if isinstance(table, Dispersive):
        extra = dispersion(scattering_type, table.wavelength)
        if table.imaginary:
            return xray_scattering.gaussian([], [], extra.imag)
        still = gaussian(scattering_type, table.table)
        return xray_scattering.gaussian(still.array_of_a(), still.array_of_b(), still.c() + extra.real)
    choice("table", table, TABLES)
    element = "".join(c for c in scattering_type if c.isalpha())
    try:
        if table == "electron":  # knows neutral atoms only
            return ito_vol_c_2011_table_4_3_2_2_entry_as_gaussian(label=element, exact=True)
        return getattr(xray_scattering, table)(scattering_type, True).fetch()
    except (RuntimeError, ValueError, KeyError):
        raise DiffuseError(
            f"scattering type {scattering_type!r}: not in the table {table} of form factors; "
            "correct the element or charge of these atoms"
        ) from None


def form_factors(structure: Structure, s, table: str = "wk1995", wavelength: float | None = None) -> np.ndarray:
    """Form factors of the scattering types of a structure, in the order of ``structure.types``.

    Parameters
    ----------
    s : (m,) float64, |s| = 1/d in 1/Å
    table : one of TABLES
    wavelength : Å; add f' + i f'' of Sasaki's tables

    Returns
    -------
    (types, m) float64 in electrons (``electron``: Å), complex128 when a wavelength is given

    Raises
    ------
    DiffuseError
        If a table does not know a type, or has no f', f'' at the wavelength.
    """
    quarter = 0.25 * np.square(np.asarray(s, dtype=float))
    f = np.empty((len(structure.types), len(quarter)))
    for row, label in zip(f, structure.types):
        terms = gaussian(label, table)
        row[:] = terms.c()
        for a, b in zip(terms.array_of_a(), terms.array_of_b()):
            row += a * np.exp(-b * quarter)
    if wavelength is None:
        return f
    return f + np.array([dispersion(label, wavelength) for label in structure.types])[:, None]


def dispersion(scattering_type: str, wavelength: float) -> complex:
    """f' + i f'' in electrons at a wavelength in Å, from Sasaki's tables; 0 for hydrogen."""
    element = "".join(c for c in scattering_type if c.isalpha())
    if element in ("H", "D"):
        return 0j
    try:
        found = sasaki.table(element, True).at_angstrom(wavelength)
    except (RuntimeError, ValueError):
        found = None
    if found is None or not (found.is_valid_fp() and found.is_valid_fdp()):
        raise DiffuseError(f"wavelength={wavelength:g}: Sasaki's tables have no f', f'' of {element} there")
    return complex(found.fp(), found.fdp())


def sum_of_squares(structure: Structure, s, table: str = "wk1995", displaced: bool = False) -> np.ndarray:
    """Sum of occupancy² f² over all atoms of the cell, without or with the factors exp(-q² U_iso).

    Parameters
    ----------
    s : (m,) float64, 1/Å
    displaced : multiply each atom's term by exp(-q² U_iso), q = 2 pi s; anisotropic tensors by their mean

    Returns
    -------
    (m,) float64, electrons² per cell
    """
    s = np.asarray(s, dtype=float)
    squares = form_factors(structure, s, table) ** 2
    weight = structure.occupancy**2 * structure.multiplicity
    if not displaced:
        return np.bincount(structure.type_index, weight, len(structure.types)) @ squares
    q2 = (2 * np.pi * s) ** 2
    total = np.zeros(len(s))
    for kind, u, w in _distinct(structure.type_index, structure.u_iso, weight):
        total += w * squares[kind] * np.exp(-q2 * u)
    return total


def _distinct(kind, u, weight):
    """Type, U and summed weight of atoms, those with the same type and U together."""
    pairs, inverse = np.unique(np.stack([kind, u], axis=1), axis=0, return_inverse=True)
    weights = np.bincount(inverse.reshape(-1), weight, len(pairs))
    return [(int(k), x, w) for (k, x), w in zip(pairs, weights)]


def atom_form_factor(element: str, s) -> np.ndarray:
    """f of a neutral atom at |s| in 1/Å, any shape; electrons (Waasmaier & Kirfel 1995)."""
    terms = gaussian(element)
    x2 = 0.25 * np.asarray(s, dtype=float) ** 2
    return terms.c() + sum(a * np.exp(-b * x2) for a, b in zip(terms.array_of_a(), terms.array_of_b()))


def incoherent(element: str, s) -> np.ndarray:
    """Incoherent (Compton) scattering of an atom, relativistic and recoil corrections left out.

    Analytic approximations S(s) with S(0) = 0 and S -> Z: hydrogen 1 - f² (exact for the free atom); C, N, O after
    Balyuzi; other elements Z - f²/Z, an upper limit.

    Parameters
    ----------
    s : array of any shape, 1/Å

    Returns
    -------
    array of that shape, electrons²

    Source: Balyuzi 1975, Acta Cryst. A31, 600-603; for the rest James 1962, The Optical Principles of the Diffraction
    of X-Rays, ch. IX
    """
    if element in _BALYUZI:
        x2 = 0.25 * np.asarray(s, dtype=float) ** 2
        return sum(a * -np.expm1(-b * x2) for a, b in _BALYUZI[element])
    f_zero = atom_form_factor(element, 0.0)  # Z within rounding
    return tiny_pse.table(element).atomic_number() * (1 - (atom_form_factor(element, s) / f_zero) ** 2)


def compton(structure: Structure, s) -> np.ndarray:
    """Incoherent scattering of all atoms of the cell, see :func:`incoherent`.

    Parameters
    ----------
    s : (m,) float64, 1/Å

    Returns
    -------
    (m,) float64, electrons² per cell
    """
    weight = structure.occupancy * structure.multiplicity
    total = np.zeros(np.shape(s))
    for element in sorted(set(structure.element.tolist())):
        total += weight[structure.element == element].sum() * incoherent(element, s)
    return total
