"""Parameters of an ensemble in the programs."""

from __future__ import annotations

PHIL = """
ensemble {
  file = None
    .type = path
    .help = "PDB or mmCIF file with several models. Default: that of the structure."
  trajectory = None
    .type = path
    .help = "Trajectory of a simulation (DCD, XTC, TRR, NetCDF ...), of the atoms in the file; needs mdtraj."
  stride = 1
    .type = int(value_min=1)
    .help = "Every so many frames of the trajectory one is taken."
  weights = None
    .type = floats(value_min=0)
    .help = "Probabilities of the models. Default: all the same."
  body = *asu cell
    .type = choice
    .help = "Is each symmetry copy one of the models by itself, or are all copies in a cell the same one?"
  supercell = 1,1,1
    .type = ints(size=3, value_min=1)
    .help = "The models are blocks of so many cells, in P 1. Needs grid.subdivide to be the same."
  soft = False
    .type = bool
    .help = "The B factors are displacements besides those that the models show."
}
"""
