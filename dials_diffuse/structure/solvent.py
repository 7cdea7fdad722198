"""Structure factors of the flat solvent between the molecules of a crystal."""

from __future__ import annotations

import numpy as np
from cctbx import miller
from cctbx.array_family import flex
from mmtbx import masks

from dials_diffuse.maps.grid import MapGrid
from dials_diffuse.structure.crystal import Structure

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
    mask = masks.manager(
        miller_array=wanted.array(flex.double(wanted.size(), 0)), xray_structure=symmetry.xray_structure
    )
    factors = mask.shell_f_masks()[0].expand_to_p1()
    damping = k_sol * np.exp(-0.25 * b_sol * factors.d_star_sq().data().as_numpy_array())
    values = damping * factors.data().as_numpy_array()
    index = factors.indices().as_vec3_double().as_numpy_array().reshape(-1, 3).astype(int)
    result[tuple((index + np.array(grid.extent)).T)] = values
    result[tuple((np.array(grid.extent) - index).T)] = values.conj()
    result[grid.extent] = k_sol * mask.solvent_content_via_mask * symmetry.cell.volume()
    return result
