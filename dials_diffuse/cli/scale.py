"""dials.diffuse_scale: put observations of one or many crystals on a common scale."""

from __future__ import annotations

import logging

from libtbx.phil import parse

from dials_diffuse.cli.program import flag, run_program, track
from dials_diffuse.compat import available_cores
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.maps.laue_check import PHIL as SYMMETRY
from dials_diffuse.maps.laue_check import check_of_phil
from dials_diffuse.report.scaling_files import ScalingFiles, write_scaling
from dials_diffuse.scaling.absolute import AbsoluteParameters
from dials_diffuse.scaling.scale import scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.scaling.terms.table import NAMES, OPTIONS, help_of_names

logger = logging.getLogger("dials.diffuse.scale")

HELP = """
Scale diffuse observations: refine what the experiment did to the intensities, for all sweeps and crystals together, so
that symmetry-equivalent voxels agree. Crystals are first compared with each other: they are brought into one setting,
and those whose unit cell or map disagrees are left out. Expected counts are

  norm * a(x, y, phi) * d(module) * [b(phi) * I(voxel) + c(s, phi)]

How large and how smooth the terms are is what makes the data most probable. Terms are used when voxels that are kept
out of the fit do not speak against them. Next:
dials.diffuse_merge diffuse_scaled.h5

Where dials.diffuse_integrate had integrated reflections, intensities come out in electrons^2 per unit cell, without
Compton scattering.

Examples:

  dials.diffuse_scale diffuse_integrated.h5

  dials.diffuse_scale diffuse_integrated.h5 absolute_scale.model=model.pdb

  dials.diffuse_scale crystal_*.h5

  dials.diffuse_scale fine_integrated.h5 scale_model.from=diffuse_scaled.json

  dials.diffuse_scale crystal_1.h5 crystal_2.h5 reindex=none crystals.keep=all output.observations=both.h5
"""

phil_scope = parse(
    f"""
model = {",".join(NAMES)}
  .type = str
  .help = "Terms to refine. {help_of_names()}."
          "None: no term at all, outliers are rejected all the same."
"""
    """
automatic = True
  .type = bool
  .help = "Keep only terms with which the data are more probable, and voxels that were kept out of the fit predicted"
          "no worse; of those of the detector, better."
space_group = None
  .type = str
  .help = "Symmetry mates under the point group of this space group should agree. By default that of the files."
"""
    + SYMMETRY
    + CrystalParameters.phil
    + """
outlier {
  n_sigma = 6.0
    .type = float(value_min=0)
    .help = "Leave out observations, too high or too low, that differ by more than this from the others of their voxel."
            "0: leave out none."
}
reject_images = *auto none
  .type = choice
  .help = "Leave out images that do not agree with the others of their sweep: blank ones, others with ice rings or"
          "shadows, defocused ones. none: only name them."
max_rejected_fraction = 0.35
  .type = float(value_min=0, value_max=1)
  .help = "Of the images of a sweep; if more do not agree, the model lacks something, and all are kept."
scale_model {
  from = None
    .type = path
    .help = "The scale model of another run of this program on the same sweeps: its JSON file (output.json=). Refined"
            "on a coarse grid, it is applied to a fine one, whose voxels have few observations each. Terms, and which"
            "images are left out, are those of that run; model, automatic and refinement are not used."
"""
    + "".join(kind.phil for kind in OPTIONS)
    + """}
refinement {
  max_observations = 400000
    .type = int(value_min=3000)
    .help = "The model is refined against all observations of unique voxels that are chosen at random, about as many."
  n_folds = 6
    .type = int(value_min=2, value_max=100)
    .help = "Parts of these voxels, whole blocks of reciprocal space, each kept out once to test the terms."
  n_cycles = 10
    .type = int(value_min=1)
    .help = "Steps, at most, after the terms are chosen."
  seed = 0
    .type = int(value_min=0)
    .help = "Of the choice of voxels."
}
bragg_scales = True
  .type = bool
  .help = "Start b from the scale factors of dials.scale, where the integrated reflections have them, and compare both."
absolute_scale {
  method = *auto separation krogh_moe envelope model none
    .type = choice
    .help = "Where the files have Bragg reflections, bring intensities to electrons^2 per unit cell and subtract"
            "Compton scattering. separation: what is on the images is told apart into crystal, liquid and air by the"
            "shapes of their curves; Bragg reflections belong to the crystal alone. krogh_moe: sum rule for all that"
            "the cell scatters. envelope: its values at high angles. Both take all that scatters for the crystal's."
            "model: the model's structure factors against the Bragg reflections. auto: model where there is one that"
            "fits, else separation. none: leave the scale arbitrary."
  model = None
    .type = path
    .help = "Coordinates of what is in the cell. Water fills the rest."
  selection = None
    .type = str
    .help = "Atoms of the model to use, in the syntax of cctbx, e.g. 'not element H'. Default: all."
  sequence = None
    .type = str
    .help = "Without a model: sequence file of the protein, or its one-letter codes. With neither, a protein of average"
            "composition is assumed, in a small cell organic molecules."
  copies = None
    .type = int(value_min=1)
    .help = "Copies of the sequence in the asymmetric unit. By default the most probable number."
  background = *air surroundings
    .type = choice
    .help = "What images without crystal show, where they were subtracted: air, or the liquid and the loop around the"
            "crystal as well."
  bulk_solvent = True
    .type = bool
    .help = "Does water fill what the atoms of the model leave?"
  hydrogens = Auto
    .type = bool
    .help = "Add the hydrogens that the model lacks. Auto: where it has none at all."
}
nproc = Auto
  .type = int(value_min=1)
  .help = "Threads. Auto: the cores that this job may use."
output {
  observations = diffuse_scaled.h5
    .type = path
    .help = "All observations with the scale factors in norm and background."
  json = diffuse_scaled.json
    .type = path
    .help = "The scale model and its tests for programs; None for no such file."
  html = diffuse_scaled.html
    .type = path
    .help = "A page with plots of the scale model, images and detector, which any browser opens without a network;"
            "None for no such file."
  png = diffuse_scaled.png
    .type = path
    .help = "Picture of the absolute scale and of the scales of the sweeps; None for no such file."
  crystals_png = diffuse_scaled_crystals.png
    .type = path
    .help = "Picture of the correlations between crystals, where there are more than two; None for no such file."
  log = dials.diffuse_scale.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def parameters_from_phil(params) -> ScalingParameters:
    """Turn the extracted phil scope into checked parameters.

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """
    refinement = params.refinement
    names = [] if params.model is None else params.model.replace(",", " ").replace("+", " ").split()
    return ScalingParameters(
        model_from=getattr(params.scale_model, "from"),
        terms=tuple(dict.fromkeys(names)),
        options=tuple(kind.from_scope(getattr(params.scale_model, kind.scope)) for kind in OPTIONS),
        automatic=params.automatic,
        space_group=params.space_group,
        symmetry_check=check_of_phil(params.symmetry.check),
        crystals=CrystalParameters.from_phil(params),
        outlier_n_sigma=params.outlier.n_sigma,
        reject_images=params.reject_images == "auto",
        max_rejected_fraction=params.max_rejected_fraction,
        max_observations=refinement.max_observations,
        n_folds=refinement.n_folds,
        n_cycles=refinement.n_cycles,
        seed=refinement.seed,
    )


def absolute_from_phil(params) -> AbsoluteParameters:
    """How to find the absolute scale, as checked parameters."""
    scope = params.absolute_scale
    method = "none" if scope.method is None else scope.method  # phil takes the word for None
    return AbsoluteParameters(
        model=scope.model,
        sequence=scope.sequence,
        copies=scope.copies,
        bulk_solvent=scope.bulk_solvent,
        hydrogens=flag(scope.hydrogens),
        method=method,
        required=bool(
            scope.model or scope.sequence or scope.copies or scope.selection or method not in ("auto", "none")
        ),
        selection=scope.selection,
        background=scope.background,
    )


def main(params, files, provenance, warnings) -> None:
    """Scale ``files`` and write what ``params.output`` asks for."""
    parameters = parameters_from_phil(params)
    nproc = params.nproc if isinstance(params.nproc, int) else available_cores()
    path = params.output.observations
    absolute = absolute_from_phil(params)
    result = scale_observations(files, parameters, path, provenance, nproc, track, absolute, params.bragg_scales)
    output = params.output
    names = ScalingFiles(path, output.json, output.png, output.crystals_png, output.html)
    write_scaling(result, names, provenance, warnings)
    logger.info("Next: dials.diffuse_merge %s", path)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_scale; ``args`` default to the command line."""
    run_program("dials.diffuse_scale", HELP, phil, main, args, required=("observations",))


if __name__ == "__main__":
    run()
