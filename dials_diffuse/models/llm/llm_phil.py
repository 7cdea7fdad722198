"""Parameters of the liquid-like motions in the programs."""

from __future__ import annotations

PHIL = """
llm {
  sigma = None
    .type = float(value_min=0)
    .help = "Correlated displacement along one direction, rms, in Angstrom. Default: 0.3, unless V is given."
  V = None
    .type = floats(size=6)
    .help = "Covariance of the displacement instead: 11,22,33,12,13,23 in square Angstrom."
  gamma = None
    .type = float(value_min=0)
    .help = "Correlation length in Angstrom. Default: 10, unless G is given."
  G = None
    .type = floats(size=6)
    .help = "Correlation matrix instead: 11,22,33,12,13,23 in Angstrom."
  adp = *individual overall
    .type = choice
    .help = "Structure factors with each atom's own B factor, or without and with one overall displacement."
  kernel = *exponential gaussian lorentzian
    .type = choice
    .help = "Decay of the correlation with distance. lorentzian: exp(-r/gamma)/r, halos as of acoustic vibrations."
  core = 1.5
    .type = float(value_min=0)
    .help = "Distance in Angstrom within which the Lorentzian kernel stops rising."
  orders = Auto
    .type = int(value_min=1, value_max=50)
    .help = "Terms of the sum over multiple phonons. Auto: as many as the displacement needs at the high resolution"
            "limit; those left out are then at most 1 % of exp(qVq) - 1."
  incoherent = True
    .type = bool
    .help = "Add what makes each atom's own term exact."
  confined_to = *crystal molecule
    .type = choice
    .help = "Do correlations end at the surface of the molecule?"
  k_sol = 0
    .type = float(value_min=0)
    .help = "Flat solvent between the molecules that moves along with them, in electrons per cubic Angstrom (0.35 is"
            "typical); only with confined_to=crystal and adp=individual."
  b_sol = 46
    .type = float(value_min=0)
    .help = "B factor of the solvent in square Angstrom."
  local_form_factor = False
    .type = bool
    .help = "Take the decay of the structure factors with resolution out before the convolution, and put it back after."
}
"""
