"""Structures along a trajectory of a simulation, read by mdtraj where it is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dials_diffuse.errors import DiffuseError
from dials_diffuse.structure.atoms import structure_of_model
from dials_diffuse.structure.coordinate_file import read_coordinates
from dials_diffuse.structure.crystal import Structure

#: Å in the units of length that mdtraj's files have
_UNITS = {"angstroms": 1.0, "nanometers": 10.0}


def load_trajectory(path, coordinates, stride: int = 1, selection: str | None = None) -> tuple:
    """The atoms of a coordinate file at the positions that a trajectory has for them.

    Each atom is taken to the lattice translation that is nearest to its position in the coordinate file, so that it
    does not matter whether molecules were wrapped into the cell.

    Parameters
    ----------
    path : DCD, XTC, TRR, NetCDF or another format of coordinates that mdtraj reads, not superposed
    coordinates : PDB or mmCIF file with the same atoms in the same order, with the unit cell or that of a block
    stride : every so many frames one is taken
    selection : the atoms of the members, see :func:`atoms.load_structure`; frames have all atoms

    Returns
    -------
    tuple of Structure, at least two

    Raises
    ------
    DiffuseError
        If mdtraj is not installed, the file cannot be read, or it does not fit the coordinate file.
    """
    try:
        import mdtraj
    except ImportError:
        raise DiffuseError(f"{path}: mdtraj is not installed; pip install mdtraj, or give a multi-model file") from None
    file = read_coordinates(coordinates)
    structure, chosen = structure_of_model(file, 0, selection)
    if not Path(path).is_file():
        raise DiffuseError(f"{path}: no such file; give a trajectory")
    try:
        with mdtraj.open(str(path)) as handle:
            content = handle.read(stride=stride)
            unit = _UNITS[handle.distance_unit]
    except Exception as error:  # each format has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DiffuseError(f"{path}: cannot be read as a trajectory ({reason})") from None
    xyz = unit * np.asarray(content[0] if isinstance(content, tuple) else content, dtype=float)
    if xyz.ndim != 3 or xyz.shape[1:] != (len(chosen), 3):
        raise DiffuseError(f"{path}: frames of shape {xyz.shape[1:]}, but {coordinates} has {len(chosen)} atoms")
    if len(xyz) < 2:
        raise DiffuseError(f"{path}: {len(xyz)} frames with a stride of {stride}; at least two are needed")
    if not np.all(np.isfinite(xyz)):
        raise DiffuseError(f"{path}: has coordinates that are not finite")
    matrix, shift = file.fractional_frame
    return tuple(_moved(structure, frame @ matrix.T + shift) for frame in xyz[:, chosen])


def _moved(structure: Structure, site: np.ndarray) -> Structure:
    return replace(structure, site_frac=site - np.rint(site - structure.site_frac))
