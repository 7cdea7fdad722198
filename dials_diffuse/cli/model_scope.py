"""The parameters of diffuse models, shared by all programs that take one."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from zipfile import BadZipFile

import numpy as np
from libtbx.phil import parse

from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.models.covariance.covariance import CORRELATIONS, Covariance
from dials_diffuse.models.covariance.elastic_network import ElasticNetwork
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.table import MODELS
from dials_diffuse.structure.atoms import load_models, load_structure
from dials_diffuse.structure.tls import TlsGroup, load_tls
from dials_diffuse.structure.trajectory import load_trajectory

MODEL_PHIL = """
model = uncorrelated rigid_body *llm covariance ensemble lattice_dynamics
  .type = choice
  .help = "Diffuse scattering: of atoms that move independently, of rigid bodies, of liquid-like motions, of any"
          "covariance of the displacements of atoms or groups, of an ensemble of structures, or of phonons of rigid"
          "molecules on springs."
rigid_body {
  sigma = None
    .type = floats(size_min=1, value_min=0)
    .help = "Displacement of the body along one direction, rms, in Angstrom: one number, or one for each body."
            "Default: 0.3, unless V is given."
  V = None
    .type = floats(size_min=6)
    .help = "Covariance of the displacement instead: 11,22,33,12,13,23 in square Angstrom, once or for each body."
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

FORM_FACTOR_PHIL = """
scattering_table = *wk1995 it1992 electron
  .type = choice
  .help = "Form factors: of X-rays, by Waasmaier & Kirfel 1995 or the International Tables 1992, or of electrons."
wavelength = None
  .type = float(value_min=0.1)
  .help = "Of X-rays, in Angstrom: add the f', f'' of Sasaki's tables to the form factors. Default: leave them out."
"""

#: parameter -> the one that may be given instead, and its default if neither is
_DEFAULTS = {"sigma": ("V", 0.3), "gamma": ("G", 10.0)}

#: what the scopes hold if nothing is given
_UNCHANGED = parse(MODEL_PHIL).extract()


def model_from_phil(params, coordinates=None):
    """The model of ``params.model`` with the parameters of its scope.

    Parameters
    ----------
    coordinates : file that holds the models of an ensemble for which no other is given

    Returns
    -------
    One of ``MODELS``; how many orders a liquid needs is for :func:`cli.model.with_orders` to say

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
        given = _given(getattr(params, name, None), getattr(_UNCHANGED, name, None))
        if given and name != params.model:
            raise CommandLineError(
                f"{name}.{given[0]} is given, but model={params.model}; say model={name}, or leave it out"
            )
    cls = MODELS[params.model]
    scope = getattr(params, params.model, None)
    values = {key: getattr(scope, key) for key in cls.__dataclass_fields__ if hasattr(scope, key)}
    if cls is LiquidLikeMotions and automatic_orders(params):
        del values["orders"]
    if cls is RigidBody:
        values["selections"] = [text for text in scope.selection if text]
        values["tls"] = _tls_groups(scope, coordinates)
        values.update(_displacements(scope))
    if cls is Covariance:
        values.update(_covariance(scope))
    if cls is LatticeDynamics:
        values["selections"] = [text for text in scope.selection if text]
    if cls is Ensemble:
        path = coordinates if scope.file is None else scope.file
        if path is None:
            raise CommandLineError("model=ensemble: give ensemble.file, a file with several models")
        if scope.trajectory is None:
            values["members"] = load_models(path)
        else:
            values["members"] = load_trajectory(scope.trajectory, path, scope.stride)
    bare = (cls is Covariance and scope.kernel not in CORRELATIONS) or (cls is RigidBody and scope.body == "tls")
    defaults = {} if bare else _DEFAULTS
    for key, (other, default) in defaults.items():
        if key in values and values[key] is None and values.get(other) is None:
            values[key] = default
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def automatic_orders(params) -> bool:
    """Is ``llm.orders`` Auto?"""
    return not isinstance(params.llm.orders, int)


def _given(scope, unchanged) -> list:
    """Parameters of a scope that differ from their defaults."""
    found = []
    for key, default in vars(unchanged).items() if unchanged is not None and scope is not None else ():
        if key.startswith("__"):
            continue
        value = getattr(scope, key, default)
        if hasattr(default, "__phil_path__"):
            found += [f"{key}.{inner}" for inner in _given(value, default)]
        elif _without_none(value) != _without_none(default):
            found.append(key)
    return found


def _without_none(value):
    """What may be given several times is a list with None if it was not."""
    return [x for x in value if x is not None] if isinstance(value, list) else value


def _displacements(scope) -> dict:
    """One sigma or V as such, several as a tuple with one for each body."""
    sigma, six = scope.sigma, scope.V
    if sigma is not None and len(sigma) == 1:
        sigma = sigma[0]
    if six is not None:
        if len(six) % 6:
            raise CommandLineError(
                f"rigid_body.V: {len(six)} numbers; six are needed (11,22,33,12,13,23), or six for each body"
            )
        six = tuple(tuple(six[k : k + 6]) for k in range(0, len(six), 6))
        six = six[0] if len(six) == 1 else six
    return {"sigma": sigma, "V": six}


def _tls_groups(scope, coordinates) -> tuple:
    tls = scope.tls
    if scope.body != "tls":
        given = [key for key in ("file", "L", "origin") if getattr(tls, key) is not None] + _motions(tls)
        if given:
            raise CommandLineError(
                f"rigid_body.tls.{given[0]} is given, but rigid_body.body={scope.body}; say body=tls"
            )
        return ()
    path = coordinates if tls.file is None else tls.file
    if tls.L is None:
        if path is None:
            raise CommandLineError("rigid_body.body=tls: give rigid_body.tls.file, a PDB file, or rigid_body.tls.L")
        for key in _motions(tls) or (["origin"] if tls.origin is not None else []):
            raise CommandLineError(f"rigid_body.tls.{key} is given without rigid_body.tls.L; give both, or a file only")
        return load_tls(path)
    if tls.file is not None:
        raise CommandLineError("rigid_body.tls.file and rigid_body.tls.L are given; leave one of them out")
    origin = tls.origin
    if origin is None:
        if path is None:
            raise CommandLineError("rigid_body.tls.L needs rigid_body.tls.origin")
        origin = load_structure(path).site_cart.mean(axis=0)
    return (TlsGroup(tuple(tls.T), tuple(tls.L), tuple(tls.S), tuple(float(x) for x in origin)),)


def _motions(tls) -> list:
    """Which of T and S are not 0."""
    return [key for key in ("T", "S") if any(getattr(tls, key))]


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
    network = scope.network
    springs = ElasticNetwork(network.type, network.cutoff, network.crystal_contacts, network.crystal_stiffness)
    values = {"network": springs, "selections": [text for text in scope.selection if text], "modes": None}
    given = [name for name in ("file", "modes") if getattr(scope, name) is not None]
    if len(given) != (scope.kernel == "free"):
        raise CommandLineError(
            f"covariance.kernel={scope.kernel}, covariance.file={scope.file}, covariance.modes={scope.modes}: a file "
            "belongs to kernel=free, and only there, and only one"
        )
    if scope.file is not None:
        values["matrix"] = _array("covariance.file", scope.file)
    if scope.modes is not None:
        values["modes"] = _array("covariance.modes", scope.modes)
    return values


def _array(name: str, path: str) -> np.ndarray:
    """The array in a .npy file; of a .npz file the one called ``modes``, or all of them, one row each."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            if "modes" in content.files:
                return content["modes"]
            return np.stack([content[key] for key in content.files])
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DiffuseError(f"{name}={path}: cannot be read as a .npy array ({reason})") from None
