"""The smallest run of dials.diffuse_simulate."""

from __future__ import annotations

from pathlib import Path

from cctbx import crystal

from helpers.structures import random_structure

CELL = (20.0, 22.0, 24.0, 90.0, 90.0, 90.0)
GROUP = "P 21 21 21"
#: a run of a second
QUICK = ["model=rigid_body", "source.flux=1e11", "d_min=3", "sampling.oscillation=1", "sampling.pixel=1", "nproc=1"]
SMALL = ["detector.size=60,50", "detector.pixel_size=0.8", "detector.distance=40", "scan.width=2", "scan.n_images=4"]


def write_structure(path, group=GROUP, cell=CELL) -> None:
    structure = random_structure(group, cell, "CNOCS" * 2)
    symmetry = crystal.symmetry(unit_cell=cell, space_group_symbol=group)
    Path(path).write_text(structure.hierarchy.as_pdb_string(crystal_symmetry=symmetry))
