"""All models by name."""

from __future__ import annotations

from dials_diffuse.models.covariance.covariance import Covariance
from dials_diffuse.models.ensemble.ensemble import Ensemble
from dials_diffuse.models.lattice_dynamics.lattice_dynamics import LatticeDynamics
from dials_diffuse.models.llm.llm import LiquidLikeMotions
from dials_diffuse.models.rigid_body.rigid_body import RigidBody
from dials_diffuse.models.uncorrelated import Uncorrelated

#: name in the programs -> class
MODELS = {
    "uncorrelated": Uncorrelated,
    "rigid_body": RigidBody,
    "llm": LiquidLikeMotions,
    "covariance": Covariance,
    "ensemble": Ensemble,
    "lattice_dynamics": LatticeDynamics,
}
