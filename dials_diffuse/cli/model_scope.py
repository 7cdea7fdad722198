"""The parameters of diffuse models, shared by all programs that take one."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass

import numpy as np

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.models import MODELS
from dials_diffuse.models.covariance import CORRELATIONS, Covariance
from dials_diffuse.models.elastic_network import ElasticNetwork

MODEL_PHIL = """
model = uncorrelated rigid_body *llm covariance
  .type = choice
  .help = "Diffuse scattering: of atoms that move independently, of rigid bodies, of liquid-like motions, or of any"
          "covariance of the displacements of atoms or groups."
rigid_body {
  sigma = None
    .type = float(value_min=0)
    .help = "Displacement of the body along one direction, rms, in Angstrom. Default: 0.3, unless V is given."
  V = None
    .type = floats(size=6)
    .help = "Covariance of the displacement instead: 11,22,33,12,13,23 in square Angstrom."
  body = *asu cell
    .type = choice
    .help = "What moves as one: each symmetry copy by itself, or the content of the cell."
  soft = False
    .type = bool
    .help = "Atoms also move by themselves, as their B factors say, and share the body's motion."
}
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
  kernel = *exponential gaussian
    .type = choice
    .help = "Decay of the correlation with distance."
  orders = 3
    .type = int(value_min=1, value_max=20)
    .help = "Terms of the sum over multiple phonons."
  incoherent = True
    .type = bool
    .help = "Add what makes each atom's own term exact."
  confined_to = *crystal molecule
    .type = choice
    .help = "Do correlations end at the surface of the molecule?"
  local_form_factor = False
    .type = bool
    .help = "Take the decay of the structure factors with resolution out before the convolution, and put it back after."
}
covariance {
  kernel = *exponential gaussian lorentzian elastic_network free
    .type = choice
    .help = "Covariance of the displacements of two groups in a molecule: V c(r) at a distance r, that of groups on"
            "springs, or what covariance.file says. Between molecules there is none."
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
  engine = *auto pair_sum chebyshev fft
    .type = choice
    .help = "How to compute: sums over pairs, matrix products (isotropic displacements), or the Patterson function."
  tolerance = 1e-6
    .type = float(value_min=1e-14)
    .help = "Relative error that engine=chebyshev may make in a pair's term."
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
  }
}
"""

#: parameter -> the one that may be given instead, and its default if neither is
_DEFAULTS = {"sigma": ("V", 0.3), "gamma": ("G", 10.0)}

#: parameters that nobody gives without meaning the model they belong to
_TELLING = ("sigma", "V", "gamma", "G", "file")


def model_from_phil(params):
    """The model of ``params.model`` with the parameters of its scope.

    Raises
    ------
    CommandLineError
        If parameters of another model were given.
    DiffuseError
        If a value is out of range, or a file cannot be read.
    """
    for name in MODELS:
        scope = getattr(params, name, None)
        given = [key for key in _TELLING if getattr(scope, key, None) is not None]
        if given and name != params.model:
            raise CommandLineError(
                f"{name}.{given[0]} is given, but model={params.model}; say model={name}, or leave it out"
            )
    cls = MODELS[params.model]
    scope = getattr(params, params.model, None)
    values = {key: getattr(scope, key) for key in cls.__dataclass_fields__ if hasattr(scope, key)}
    if cls is Covariance:
        values.update(_covariance(scope))
    defaults = {} if cls is Covariance and scope.kernel not in CORRELATIONS else _DEFAULTS
    for key, (other, default) in defaults.items():
        if key in values and values[key] is None and values.get(other) is None:
            values[key] = default
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def model_record(name: str, model) -> dict:
    """Name and parameters of a model, as for :func:`write_json`; arrays are left out."""
    record = {"name": name}
    for field in fields(model):
        value = getattr(model, field.name)
        if is_dataclass(value):
            value = asdict(value)
        if not isinstance(value, np.ndarray):
            record[field.name] = value
    return record


def _covariance(scope) -> dict:
    network = ElasticNetwork(scope.network.type, scope.network.cutoff, scope.network.crystal_contacts)
    values = {"network": network, "selections": [text for text in scope.selection if text]}
    if (scope.file is None) == (scope.kernel == "free"):
        raise CommandLineError(
            f"covariance.kernel={scope.kernel}, covariance.file={scope.file}: a file belongs to kernel=free, and only "
            "there"
        )
    if scope.file is not None:
        try:
            values["matrix"] = np.load(scope.file, allow_pickle=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DiffuseError(f"covariance.file={scope.file}: cannot be read as a .npy array ({reason})") from None
    return values
