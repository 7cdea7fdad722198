"""Parameters of the lattice dynamics in the programs."""

from __future__ import annotations

PHIL = """
lattice_dynamics {
  sigma = None
    .type = float(value_min=0)
    .help = "Displacement along one direction by all phonons, rms, mean over the atoms, in Angstrom. Default: 0.3."
  springs = *gaussian central contacts
    .type = choice
    .help = "Springs between atoms of different bodies: they resist any displacement of one end from the other, or"
            "changes of their length only. contacts: every contact of two bodies has a stiffness of its own for"
            "displacements and turns of one from the other."
  stiffness = *overall by_contact apart full
    .type = choice
    .help = "For springs=contacts, what is refined: one number; one for each contact; one for displacements and one for"
            "turns at each; all 21 of each 6x6 matrix (13 where a two-fold axis goes through the contact)."
  contacts {
    cutoff = 5.0
      .type = float(value_min=0)
      .help = "For springs=contacts: bodies with atoms this near to each other, in Angstrom, touch."
    log_stiffness = None
      .type = floats
      .help = "Logarithms of the stiffnesses, in the order of the fit's parameters. 0, the default: that of equal"
              "springs between all pairs of atoms at a contact, with which the rms displacement is sigma."
  }
  solvent = None
    .type = bool
    .help = "Bodies displace solvent when they move, so that their contrast is less. Default: for springs=contacts."
  k_sol = 0.35
    .type = float(value_min=0)
    .help = "Density of that solvent, in electrons per cubic Angstrom."
  b_sol = 46
    .type = float(value_min=0)
    .help = "Smoothness of its edge, in square Angstrom."
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
