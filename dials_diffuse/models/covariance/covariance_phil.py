"""Parameters of a covariance in the programs, and the files that they name."""

from __future__ import annotations

import numpy as np

from dials_diffuse.errors import DiffuseError

PHIL = """
covariance {
  kernel = *exponential gaussian lorentzian elastic_network free
    .type = choice
    .help = "Covariance of the displacements of two groups in a molecule: V c(r) at a distance r, that of groups on"
            "springs, or what covariance.file says. Between molecules there is none, unless there is a supercell."
  sigma = None
    .type = float(value_min=0)
    .help = "Displacement along one direction, rms, in Angstrom. Default: 0.3, unless V is given; of an elastic network"
            "that of the B factors."
  V = None
    .type = floats(size=6)
    .help = "Covariance at r = 0 instead: 11,22,33,12,13,23 in square Angstrom."
  gamma = None
    .type = float(value_min=0)
    .help = "Correlation length in Angstrom. Default: 10."
  core = 1.5
    .type = float(value_min=0)
    .help = "Distance in Angstrom within which the Lorentzian kernel stops rising."
  file = None
    .type = path
    .help = "Covariances of kernel=free in square Angstrom, a matrix in a .npy file: one row for each group, or three"
            "(x, y, z) for displacements that are not isotropic."
  modes = None
    .type = path
    .help = "Modes v of kernel=free in Angstrom instead, of which the covariance is the sum of v v^T: a matrix in a"
            ".npy file, one row for each mode with a number for each group, or three; or a .npz file with an array"
            "'modes' like this, or with an array for each mode."
  groups = *atom residue segment chain molecule selection
    .type = choice
    .help = "What moves as one. segment: a stretch of a chain without gaps in the residue numbers."
  selection = None
    .type = str
    .multiple = True
    .help = "For groups=selection: the atoms of a group, in the syntax of cctbx; once for each group."
  soft = True
    .type = bool
    .help = "Atoms have the displacements of their B factors, of which the covariance is the part that they share."
            "Otherwise they have that part only."
  supercell = None
    .type = ints(size=3, value_min=1)
    .help = "Symmetry copies are correlated, too, in a block of so many cells along a, b, c. Default: not."
  engine = *auto pair_sum chebyshev low_rank fft
    .type = choice
    .help = "How to compute: sums over pairs, matrix products (isotropic displacements), products of the modes of the"
            "covariance (few groups, or few modes), or the Patterson function."
  tolerance = 1e-6
    .type = float(value_min=1e-14)
    .help = "What the engines chebyshev and low_rank may leave out: a fraction of a pair's term, and of the term of the"
            "group that moves most."
  network {
    type = *gaussian anisotropic
      .type = choice
      .help = "Springs that make displacements isotropic, or springs along the lines between the groups."
    cutoff = 8.0
      .type = float(value_min=0)
      .help = "Groups whose centres are this near, in Angstrom, are connected."
    crystal_contacts = True
      .type = bool
      .help = "Springs to the symmetry copies around, too."
    crystal_stiffness = 1.0
      .type = float(value_min=0)
      .help = "Stiffness of those, in units of that of the others."
  }
}
"""


def read_array(name: str, path: str) -> np.ndarray:
    """The array in a .npy file; of a .npz file the one called ``modes``, or all of them, one row each."""
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            if "modes" in content.files:
                return content["modes"]
            return np.stack([content[key] for key in content.files])
    except MemoryError:
        raise
    except Exception as error:  # headers are parsed as Python, and zip files unpacked: no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DiffuseError(f"{name}={path}: cannot be read as a .npy array ({reason})") from None
