"""MTZ files: whole Miller indices in the cell of the crystal, or all voxels as reflections of a supercell."""

from __future__ import annotations

import numpy as np
from cctbx import crystal, miller, sgtbx
from cctbx.array_family import flex

from dials_diffuse import __version__
from dials_diffuse.files.atomic import atomic_path
from dials_diffuse.files.provenance import Provenance
from dials_diffuse.maps.map import DiffuseMap
from dials_diffuse.maps.symmetry import map_to_asu

#: characters of a line of history
_LINE = 80


def write_mtz(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write the voxels with whole Miller indices, in the crystal's own cell and space group, beside Bragg data.

    What the space group extinguishes for Bragg reflections is there, too: diffuse scattering has no extinctions.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    grid = data.grid
    whole = np.all(data.index % np.array(grid.subdivide) == 0, axis=1)
    hkl = data.index[whole] // np.array(grid.subdivide)
    symmetry = crystal.symmetry(unit_cell=grid.unit_cell, space_group=grid.space_group)
    extinct = sum(grid.space_group.is_sys_absent(tuple(h)) for h in hkl.tolist())
    about = [
        "Whole Miller indices only, in the cell and space group of the crystal",
        f"{extinct} of {len(hkl)} are extinct for Bragg reflections; diffuse ones are not",
    ]
    _write(path, data, provenance, symmetry, hkl, whole, about)


def write_mtz_grid(path, data: DiffuseMap, provenance: Provenance, volume=True, collections=None) -> None:
    """Write all voxels: an index on the subdivided lattice is a Miller index of a supercell.

    The cell is ``subdivide`` times that of the crystal, along each axis. Symmetry is that of intensities: the point
    group of the crystal, with the lattice P and without translations, so that neither a centring nor a screw axis
    makes a voxel a systematic absence. Its Laue group is that of the crystal.

    Raises
    ------
    DiffuseError
        If the file cannot be written.
    """
    grid = data.grid
    a, b, c, *angles = grid.unit_cell
    cell = (*(length * n for length, n in zip((a, b, c), grid.subdivide)), *angles)
    group = supercell_group(grid.space_group)
    symmetry = crystal.symmetry(unit_cell=cell, space_group=group)
    numbers = ",".join(map(str, grid.subdivide))
    about = [
        f"All voxels, as a supercell {numbers}: h,k,l of the crystal = H,K,L / {numbers}",
        f"Crystal: {grid.space_group_symbol}, cell {' '.join(f'{x:.3f}' for x in grid.unit_cell)}",
        "Symmetry: point group of the crystal, no centring, no screw axes (no extinctions)",
    ]
    index, _ = map_to_asu(data.index, group, data.friedel)
    _write(path, data, provenance, symmetry, index, np.ones(len(index), dtype=bool), about)


def supercell_group(group: sgtbx.space_group) -> sgtbx.space_group:
    """The symmorphic primitive group with the point group of another one, in its setting."""
    return group.build_derived_point_group()


def _write(path, data: DiffuseMap, provenance: Provenance, symmetry, hkl, chosen, about) -> None:
    columns = [flex.int(np.ascontiguousarray(column, dtype=np.int32)) for column in hkl.T]
    reflections = miller.set(symmetry, flex.miller_index(*columns), anomalous_flag=not data.friedel)

    def column(values, sigmas=None):
        finite = np.isfinite(values)
        array = reflections.select(flex.bool(finite)).array(
            data=flex.double(np.ascontiguousarray(values[finite])),
            sigmas=None if sigmas is None else flex.double(np.ascontiguousarray(sigmas[finite])),
        )
        return array.set_observation_type_xray_intensity()

    sigma = data.sigma[chosen] if np.any(data.sigma > 0) else None
    dataset = column(data.intensity[chosen], sigma).as_mtz_dataset("I", title="Diffuse scattering")
    dataset.set_name("diffuse")
    for label, values in (("I_HALF_A", data.half_a), ("I_HALF_B", data.half_b)):
        if values is not None and np.any(np.isfinite(values[chosen])):
            dataset.add_miller_array(column(values[chosen]), column_root_label=label)
    multiplicity = flex.int(np.ascontiguousarray(data.multiplicity[chosen], dtype=np.int32))
    dataset.add_miller_array(reflections.array(multiplicity), column_root_label="MULT")
    mtz = dataset.mtz_object()
    history = [
        f"dials_diffuse {__version__}: I = diffuse intensity, {data.units}; MULT = observations",
        *about,
        f"Half sets: {data.half_sets or 'none'}; friedel={data.friedel}; not French-Wilson, may be negative",
        f"Made by {provenance.program} from {' '.join(map(str, provenance.inputs))}",
    ]
    mtz.add_history(flex.std_string([line.encode("ascii", "replace").decode()[:_LINE] for line in history]))
    with atomic_path(path) as temporary:
        mtz.write(str(temporary))
