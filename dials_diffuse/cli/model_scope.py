"""The parameters of diffuse models, shared by all programs that take one."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass

import numpy as np

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.models import MODELS
from dials_diffuse.models.covariance import CORRELATIONS, Covariance
from dials_diffuse.models.elastic_network import ElasticNetwork
from dials_diffuse.models.ensemble import Ensemble
from dials_diffuse.models.rigid_body import RigidBody
from dials_diffuse.structure.atoms import load_models, load_structure
from dials_diffuse.structure.tls import TlsGroup, load_tls

MODEL_PHIL = """
model = uncorrelated rigid_body *llm covariance ensemble
  .type = choice
  .help = "Diffuse scattering: of atoms that move independently, of rigid bodies, of liquid-like motions, of any"
          "covariance of the displacements of atoms or groups, or of an ensemble of structures."
rigid_body {
  sigma = None
    .type = float(value_min=0)
    .help = "Displacement of the body along one direction, rms, in Angstrom. Default: 0.3, unless V is given."
  V = None
    .type = floats(size=6)
    .help = "Covariance of the displacement instead: 11,22,33,12,13,23 in square Angstrom."
  body = *asu cell residue segment chain selection tls
    .type = choice
    .help = "What moves as one: each symmetry copy by itself, or the content of the cell, or parts of each copy"
            "(segment: a stretch of a chain without gaps in the residue numbers), or TLS groups, which also rotate."
  selection = None
    .type = str
    .multiple = True
    .help = "For body=selection: the atoms of a body, in the syntax of cctbx; once for each body."
  tls {
    file = None
      .type = path
      .help = "PDB file with TLS groups in its header. Default: that of the structure, unless L is given."
    T = 0,0,0,0,0,0
      .type = floats(size=6)
      .help = "Of all atoms as one body: <tt>, 11,22,33,12,13,23 in square Angstrom,"
    L = None
      .type = floats(size=6)
      .help = "<ww> in square degrees,"
    S = 0,0,0,0,0,0,0,0,0
      .type = floats(size=9)
      .help = "<wt>, row by row, in Angstrom degrees,"
    origin = None
      .type = floats(size=3)
      .help = "and the point through which the axes of rotation go. Default: the mean of the atoms' positions."
  }
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
  kernel = *exponential gaussian lorentzian
    .type = choice
    .help = "Decay of the correlation with distance. lorentzian: exp(-r/gamma)/r, halos as of acoustic vibrations."
  core = 1.5
    .type = float(value_min=0)
    .help = "Distance in Angstrom within which the Lorentzian kernel stops rising."
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
  engine = *auto pair_sum chebyshev low_rank fft
    .type = choice
    .help = "How to compute: sums over pairs, matrix products (isotropic displacements), products of the modes of the"
            "covariance (few groups, or few modes), or the Patterson function."
  tolerance = 1e-6
    .type = float(value_min=1e-14)
    .help = "Relative error that the engines chebyshev and low_rank may make in a pair's term."
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
ensemble {
  file = None
    .type = path
    .help = "PDB or mmCIF file with several models. Default: that of the structure."
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

#: parameter -> the one that may be given instead, and its default if neither is
_DEFAULTS = {"sigma": ("V", 0.3), "gamma": ("G", 10.0)}

#: parameters that nobody gives without meaning the model they belong to
_TELLING = ("sigma", "V", "gamma", "G", "file")


def model_from_phil(params, coordinates=None):
    """The model of ``params.model`` with the parameters of its scope.

    Parameters
    ----------
    coordinates : file that holds the models of an ensemble for which no other is given

    Raises
    ------
    CommandLineError
        If parameters of another model were given.
    DiffuseError
        If a value is out of range, or a file cannot be read.
    """
    if params.model is None:
        raise CommandLineError(f"model=None: choose from {', '.join(MODELS)}")
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
    if cls is RigidBody:
        values["selections"] = [text for text in scope.selection if text]
        values["tls"] = _tls_groups(scope, coordinates)
    if cls is Covariance:
        values.update(_covariance(scope))
    if cls is Ensemble:
        path = coordinates if scope.file is None else scope.file
        if path is None:
            raise CommandLineError("model=ensemble: give ensemble.file, a file with several models")
        values["members"] = load_models(path)
    bare = (cls is Covariance and scope.kernel not in CORRELATIONS) or (cls is RigidBody and scope.body == "tls")
    defaults = {} if bare else _DEFAULTS
    for key, (other, default) in defaults.items():
        if key in values and values[key] is None and values.get(other) is None:
            values[key] = default
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def _tls_groups(scope, coordinates) -> tuple:
    tls = scope.tls
    if scope.body != "tls":
        given = [key for key in ("file", "L", "origin") if getattr(tls, key) is not None]
        if given:
            raise CommandLineError(
                f"rigid_body.tls.{given[0]} is given, but rigid_body.body={scope.body}; say body=tls"
            )
        return ()
    path = coordinates if tls.file is None else tls.file
    if tls.L is None:
        if path is None:
            raise CommandLineError("rigid_body.body=tls: give rigid_body.tls.file, a PDB file, or rigid_body.tls.L")
        return load_tls(path)
    if tls.file is not None:
        raise CommandLineError("rigid_body.tls.file and rigid_body.tls.L are given; leave one of them out")
    origin = tls.origin
    if origin is None:
        if path is None:
            raise CommandLineError("rigid_body.tls.L needs rigid_body.tls.origin")
        origin = load_structure(path).site_cart.mean(axis=0)
    return (TlsGroup(tuple(tls.T), tuple(tls.L), tuple(tls.S), tuple(float(x) for x in origin)),)


def model_record(name: str, model) -> dict:
    """Name and parameters of a model, as for :func:`write_json`; arrays and structures are left out."""
    record = {"name": name}
    for field in fields(model):
        value = getattr(model, field.name)
        if is_dataclass(value):
            value = asdict(value)
        if field.name == "tls":
            value = [asdict(group) for group in value]
        if field.name == "members":
            value = len(value)
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
