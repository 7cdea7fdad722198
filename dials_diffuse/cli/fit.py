"""dials.diffuse_fit: models of the motions in a crystal, fitted to a map of its diffuse scattering."""

from __future__ import annotations

import logging
from dataclasses import replace

from libtbx.phil import parse

from dials_diffuse.cli.executor import DASK_PHIL, executor_from_phil
from dials_diffuse.cli.fit_models import files_from_phil, parameters_from_phil, requests_from_phil
from dials_diffuse.cli.model import sort_files
from dials_diffuse.cli.model_scope import FORM_FACTOR_PHIL, SCOPES_PHIL
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.errors import CommandLineError
from dials_diffuse.files.formats import formats_in_words
from dials_diffuse.files.nexus import read_map
from dials_diffuse.fitting.run import fit_map
from dials_diffuse.models.table import all_models
from dials_diffuse.report.fit import log_result
from dials_diffuse.report.fit_files import write_result
from dials_diffuse.structure.atoms import load_structure
from dials_diffuse.structure.secondary import secondary_structure

logger = logging.getLogger("dials.diffuse.fit")

HELP = """
Fit models of the motions in a crystal to a merged map of its diffuse scattering: parameters with errors, agreement on
voxels that were set aside, and a comparison of the models. The scale and a smooth isotropic background are fitted, too.

Examples:

  dials.diffuse_fit diffuse_merged.nxs model.pdb

  dials.diffuse_fit diffuse_merged.nxs model.pdb model=llm,llm/overall,rigid_body d_max=10 d_min=2

  dials.diffuse_fit diffuse_merged.nxs model.pdb model=rigid_body/V,rigid_body+llm
"""

phil_scope = parse(
    f"""
model = llm
  .type = strings
  .help = "Models to fit and compare, with commas between them: {", ".join(all_models())}."
          "Choices of a model may follow its name: llm/overall, llm/gaussian, rigid_body/cell, and /V or /G for tensors"
          "in place of sigma and gamma, e.g. llm/overall/V. A sum of models: rigid_body+llm. Bodies with a motion each:"
          "rigid_body/chain/each. The covariance of every pair of groups: covariance/residue/pairs, with tensors"
          "covariance/residue/pairs/V."
          "What the models' own parameters give is where the fit starts."
"""
    + """
map = None
  .type = path
  .help = "The merged map, may also be given without map=."
selection = None
  .type = str
  .help = "Atoms to use, in the syntax of cctbx, e.g. 'not element H'. Default: all."
d_max = None
  .type = float(value_min=0.1)
  .help = "Low resolution limit in Angstrom. Default: all of the map."
d_min = None
  .type = float(value_min=0.1)
  .help = "High resolution limit in Angstrom. Default: that of the map."
free_fraction = 0.05
  .type = float(value_min=0, value_max=0.5)
  .help = "Fraction of the voxels that is not fitted but tests the fit: blocks of neighbours, with all symmetry mates."
seed = 0
  .type = int(value_min=0)
  .help = "Of the choice of these blocks, and of the starting points."
min_multiplicity = 1
  .type = int(value_min=0)
  .help = "Leave out voxels with fewer observations."
bragg = False
  .type = bool
  .help = "Also use the voxels on the lattice points, where Bragg peaks are."
bragg_distance = 0
  .type = float(value_min=0)
  .help = "Leave out voxels whose centres are within this distance of a lattice point, in 1/Angstrom: for maps with"
          "remains of strong Bragg peaks beside their masks."
indexing = *auto given
  .type = choice
  .help = "Where the lattice has more symmetry than the crystal: find the setting in which the first model fits the"
          "map, or take the one of the map."
scale = *refine absolute
  .type = choice
  .help = "Refine the scale of the model against the map, or hold it at 1: for maps in electrons squared per unit cell."
background.n_terms = Auto
  .type = int(value_min=0, value_max=100)
  .help = "Cubic splines of the isotropic background; 0 for none. Auto: one for each 0.02 1/Angstrom."
voxels = *auto mean centre
  .type = choice
  .help = "Compare the data with the mean over a voxel (models that cannot be averaged: centre, as the log says) or"
          "with the value at the centre. auto: what the map holds, means if it was measured."
weights = *sigma shell
  .type = choice
  .help = "1/sigma², or this divided by the reduced chi² that the best model reaches in a shell of resolution, so that"
          "shells in which no model fits do not rule the others."
loss = *squares huber soft_l1 cauchy
  .type = choice
  .help = "What is summed over the voxels: squares of residuals, or a function of which outliers get less, as in"
          "scipy.optimize.least_squares. An outlier is far from the model whose loss is lowest."
starts = 2
  .type = int(value_min=1, value_max=10000)
  .help = "Starting points of each model; all but the first are random."
prior.strength = 1,0.1,0.01,0.001,0.0001
  .type = floats(value_min=0)
  .help = "Of lattice_dynamics/contacts with stiffness=by_contact, apart or full: how firmly stiffnesses are held near"
          "those of equal springs. Of several the one is taken that predicts best voxels that are kept out of the fit."
pairs.strength = 1,0.1,0.01,0.001
  .type = floats(value_min=0)
  .help = "Of covariance/.../pairs: how firmly the covariances are held near those of the fitted kernel. Of several the"
          "one is taken that agrees best with the free voxels."
pairs.minimiser = *auto newton lbfgs descent
  .type = choice
  .help = "Of covariance/.../pairs: Levenberg-Marquardt steps in the cone of positive semidefinite V, L-BFGS by the"
          "root of V, plain descent along the gradient, which is slow; auto takes the first for up to 30 groups with"
          "isotropic displacements, else the second."
pairs.starts = Auto
  .type = int(value_min=1, value_max=10000)
  .help = "Starting points with the strength that is taken, all but the first random. Auto: starts= for up to 1000"
          "covariances, else one."
pairs.max_iterations = 200
  .type = int(value_min=1)
  .help = "Steps of a minimisation with one strength."
profile = True
  .type = bool
  .help = "Compute the profile likelihood of sigma and gamma."
"""
    + SCOPES_PHIL
    + FORM_FACTOR_PHIL
    + DASK_PHIL
    + """
statistics.n_shells = 10
  .type = int(value_min=1, value_max=10000)
  .help = "Resolution shells, of equal volume."
output {
  map = diffuse_fit.nxs
    .type = path
    .help = "The voxels of the fit with the data, and model, background and residual of the best model."
            "The suffix of the name chooses the format. """
    + formats_in_words()
    + """"
  volume = Auto
    .type = bool
    .help = "Also write the data as a full three-dimensional array, for viewers. Auto: if it is not too large for this"
            "computer."
  json = diffuse_fit.json
    .type = path
    .help = "Parameters, errors and statistics of all models; None for no such file."
  html = diffuse_fit.html
    .type = path
    .help = "A page with tables, plots and a browser of planes, which any browser opens without a network; None for no"
            "such file."
  png = diffuse_fit.png
    .type = path
    .help = "Pictures of planes, data on the left and the best model on the right; None for no such file."
  phonons = diffuse_fit_phonons.npz
    .type = path
    .help = "Of model=lattice_dynamics/contacts: stiffnesses with errors, their covariance, dispersion and"
            "displacements as arrays; None for no such file."
  covariance = diffuse_fit_covariance.npy
    .type = path
    .help = "The covariances of model=covariance/.../pairs in square Angstrom, one row for each group, or three with"
            "tensors; None for no such file."
  covariance_esd = diffuse_fit_covariance_esd.npy
    .type = path
    .help = "Their errors, where they are known: from the noise of the data, not from the prior; None for none."
  covariance_png = diffuse_fit_covariance.png
    .type = path
    .help = "The correlations as a picture; None for no such file."
  log = dials.diffuse_fit.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def main(params, files, provenance, warnings) -> None:
    """Fit the models of ``params`` to the map and the structure in ``files``, and write ``params.output``."""
    coordinates, map_path = sort_files(files, params.map)
    if map_path is None:
        raise CommandLineError("no map given; give one (.nxs) as dials.diffuse_merge writes it")
    requests, parameters = requests_from_phil(params, coordinates), parameters_from_phil(params)
    data, structure = read_map(map_path), load_structure(coordinates, params.selection)
    logger.info(
        "Structure: %s, %d atoms, %s", coordinates, structure.n_atoms, structure.crystal_symmetry.space_group_info()
    )
    with executor_from_phil(params) as executor:
        result = fit_map(data, structure, requests, parameters, track, map_path, executor)
    log_result(result)
    provenance = replace(provenance, inputs=(str(coordinates), str(map_path)))
    write_result(result, files_from_phil(params), provenance, warnings, secondary_structure(coordinates))


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_fit; ``args`` default to the command line."""
    run_program("dials.diffuse_fit", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
