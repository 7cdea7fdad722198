"""Solvent between the molecules of a crystal: how much, its structure factors, and those of the crystal with it."""

from __future__ import annotations

import numpy as np
from cctbx import miller
from cctbx.array_family import flex
from cctbx.eltbx import tiny_pse
from mmtbx import masks

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.structure.contents import water_molecules
from dials_diffuse.structure.crystal import Structure
from dials_diffuse.structure.factors import Dispersive
from dials_diffuse.structure.transform import structure_factors

#: Å, beyond which the surface of the solvent is too smooth to scatter
_SOLVENT_D_MIN = 3.0


def solvent_structure_factors(structure: Structure, grid: MapGrid, k_sol: float, b_sol: float) -> np.ndarray:
    """k_sol exp(-b_sol s²/4) F_mask at all whole indices.

    Parameters
    ----------
    structure : asymmetric unit
    grid : of the same cell, in P 1, with subdivide 1, 1, 1
    k_sol : electrons/Å³; b_sol : Å²

    Returns
    -------
    complex128 of ``grid.shape``, electrons per cell; 0 beyond 3 Å. At the origin: the electrons of the solvent

    Source: Jiang & Brünger 1994, J. Mol. Biol. 243, 100
    """
    result = np.zeros(grid.shape, dtype=np.complex128)
    symmetry = structure.in_cell(grid.unit_cell)
    wanted = miller.build_set(symmetry.crystal_symmetry, anomalous_flag=False, d_min=max(grid.d_min, _SOLVENT_D_MIN))
    if wanted.size() == 0:
        return result
    mask, fraction = _mask_factors(symmetry, wanted)
    factors = mask.expand_to_p1()
    values = _scattering(factors, k_sol, b_sol)
    index = factors.indices().as_vec3_double().as_numpy_array().reshape(-1, 3).astype(int)
    result[tuple((index + np.array(grid.extent)).T)] = values
    result[tuple((np.array(grid.extent) - index).T)] = values.conj()
    result[grid.extent] = k_sol * fraction * symmetry.cell.volume()
    return result


def bulk_solvent_structure_factors(
    structure: Structure, d_min: float, k_sol: float = 0.35, b_sol: float = 46.0, table: str | Dispersive = "wk1995"
) -> tuple:
    """Structure factors of the crystal with flat bulk solvent, F_calc + k_sol exp(-b_sol s²/4) F_mask.

    Parameters
    ----------
    structure : asymmetric unit
    d_min : Å; the solvent's part is left out beyond 3 Å
    k_sol : electrons/Å³; b_sol : Å²

    Returns
    -------
    hkl : (n, 3) int32, indices of cctbx's asymmetric unit inside d_min, absences and 000 left out
    f : (n,) complex128, electrons per cell

    Source: Jiang & Brünger 1994, J. Mol. Biol. 243, 100; Afonine et al. 2005, Acta Cryst. D61, 850
    """
    wanted = miller.build_set(structure.crystal_symmetry, anomalous_flag=False, d_min=d_min)
    hkl = wanted.indices().as_vec3_double().as_numpy_array().astype(np.int32).reshape(-1, 3)
    grid, calculated = structure_factors(structure, d_min * (1 - 1e-6), table)
    f = calculated[tuple((hkl + np.array(grid.extent)).T)]
    mask, _ = _mask_factors(structure, wanted)
    return hkl, f + _scattering(mask, k_sol, b_sol)


def solvent_molecules(structure: Structure) -> float:
    """Water molecules that fill what the molecules of a crystal leave of the unit cell."""
    mass = {element: tiny_pse.table(str(element)).weight() for element in set(structure.element)}
    per_atom = np.array([mass[element] for element in structure.element])
    total = float(np.sum(per_atom * structure.occupancy * structure.multiplicity))
    return water_molecules(structure.cell.volume(), total)


def _mask_factors(structure: Structure, wanted: miller.set) -> tuple:
    """Miller array of the transform of the solvent's mask, 0 beyond 3 Å, and the fraction of the cell in the mask."""
    indices = wanted.array(flex.double(wanted.size(), 0))
    mask = masks.manager(miller_array=indices, xray_structure=structure.xray_structure)
    return mask.shell_f_masks()[0], mask.solvent_content_via_mask


def _scattering(mask: miller.array, k_sol: float, b_sol: float) -> np.ndarray:
    """complex128, k_sol exp(-b_sol s²/4) F_mask"""
    damping = k_sol * np.exp(-0.25 * b_sol * mask.d_star_sq().data().as_numpy_array())
    return damping * mask.data().as_numpy_array()
