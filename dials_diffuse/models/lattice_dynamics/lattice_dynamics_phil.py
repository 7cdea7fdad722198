"""Parameters of the lattice dynamics in the programs."""

from __future__ import annotations

PHIL = """
lattice_dynamics {
  sigma = None
    .type = float(value_min=0)
    .help = "Displacement along one direction by all phonons, rms, mean over the atoms, in Angstrom. Default: 0.3."
  springs = *gaussian central
    .type = choice
    .help = "Springs between atoms of different bodies: they resist any displacement of one end from the other, or"
            "changes of their length only."
  cutoff = 8.0
    .type = float(value_min=0)
    .help = "Atoms of different bodies that are this near, in Angstrom, are connected."
  groups = atom residue segment chain *molecule selection
    .type = choice
    .help = "What is a rigid body: each symmetry copy of all atoms given (molecule), or parts of it."
  selection = None
    .type = str
    .multiple = True
    .help = "For groups=selection: the atoms of a body, in the syntax of cctbx; once for each body."
  mesh = 6,6,6
    .type = ints(size=3, value_min=2)
    .help = "Phonons along a*, b*, c* for the mean square displacement; even numbers."
  incoherent = True
    .type = bool
    .help = "Add the other motions of each atom, as its B factor says."
}
"""
