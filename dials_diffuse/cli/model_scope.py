"""The parameters of diffuse models, shared by all programs that take one."""

from __future__ import annotations

from dials_diffuse.errors import CommandLineError
from dials_diffuse.models import MODELS

MODEL_PHIL = """
model = uncorrelated rigid_body *llm
  .type = choice
  .help = "Diffuse scattering: of atoms that move independently, of rigid bodies, or of liquid-like motions."
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
"""

_DEFAULTS = {"sigma": ("V", 0.3), "gamma": ("G", 10.0)}


def model_from_phil(params):
    """The model of ``params.model`` with the parameters of its scope.

    Raises
    ------
    CommandLineError
        If parameters of another model were given.
    DiffuseError
        If a value is out of range.
    """
    for name in MODELS:
        scope = getattr(params, name, None)
        given = [key for key in ("sigma", "V", "gamma", "G") if getattr(scope, key, None) is not None]
        if given and name != params.model:
            raise CommandLineError(
                f"{name}.{given[0]} is given, but model={params.model}; say model={name}, or leave it out"
            )
    cls = MODELS[params.model]
    scope = getattr(params, params.model, None)
    values = {key: getattr(scope, key) for key in cls.__dataclass_fields__ if hasattr(scope, key)}
    for key, (other, default) in _DEFAULTS.items():
        if key in values and values[key] is None and values[other] is None:
            values[key] = default
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
