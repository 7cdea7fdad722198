"""dials.diffuse_scale: put observations of one or many crystals on a common scale."""

from __future__ import annotations

import logging

from libtbx.phil import parse

from dials_diffuse.cli.program import run_program, track
from dials_diffuse.compat import available_cores
from dials_diffuse.errors import DiffuseError
from dials_diffuse.files.record import Output, write_record
from dials_diffuse.report.scaling import write_scaling_png
from dials_diffuse.scaling.absolute import AbsoluteParameters, AbsoluteScale
from dials_diffuse.scaling.record import curve_of_b, dials_scale_curve, scaling_record, suggested_cuts
from dials_diffuse.scaling.scale import ScalingResult, scale_observations
from dials_diffuse.scaling.scaling_parameters import ScalingParameters
from dials_diffuse.structure.expectation import make_expectation

logger = logging.getLogger("dials.diffuse.scale")

HELP = """
Scale diffuse observations: refine what the experiment did to the intensities, for all sweeps and crystals together, so
that symmetry-equivalent voxels agree. Expected counts are

  norm * a(x, y, phi) * d(module) * [b(phi) * I(voxel) + c(s, phi)]

Smoothing and the choice of terms come from voxels that are kept out of the fit. Next:
dials.diffuse_merge diffuse_scaled.h5

Where dials.diffuse_integrate had integrated reflections, intensities come out in electrons^2 per unit cell, without
Compton scattering.

Examples:

  dials.diffuse_scale diffuse_integrated.h5

  dials.diffuse_scale diffuse_integrated.h5 absolute_scale.model=model.pdb

  dials.diffuse_scale crystal_1.h5 crystal_2.h5 model=a,b,c,d output.observations=both.h5
"""

phil_scope = parse(
    """
model = a,b,c,d
  .type = str
  .help = "Terms to refine. a: absorption, over detector and rotation, b: scale over the rotation, c: isotropic offset"
          "over s and rotation that does not scale with the crystal, d: response of the detector, by module, and a"
          "smooth one when there is no a. None: no term at all, outliers are rejected all the same."
automatic = True
  .type = bool
  .help = "Keep only terms with which voxels that were kept out of the fit are predicted better."
space_group = None
  .type = str
  .help = "Symmetry mates under the point group of this space group should agree. By default that of the files."
outlier {
  n_sigma = 6.0
    .type = float(value_min=0)
    .help = "Leave out observations, too high or too low, that differ by more than this from the others of their voxel."
            "0: leave out none."
}
scale_model {
  a {
    form = *harmonics spline
      .type = choice
      .help = "harmonics: spherical harmonics of the directions of the incident and the diffracted beam in the crystal,"
              "as in dials.scale. spline: any smooth function of detector position and rotation; takes care of shadows"
              "that turn, but needs many symmetry mates."
    degree = 4
      .type = int(value_min=1)
      .help = "Highest degree of the harmonics."
    angle = 20.0
      .type = float
      .help = "Degrees of rotation between nodes."
    nodes = 6
      .type = int(value_min=3)
      .help = "Spline coefficients along each edge of the detector."
  }
  b.angle = 5.0
    .type = float
    .help = "Degrees of rotation between nodes."
  c {
    angle = 20.0
      .type = float
      .help = "Degrees of rotation between nodes."
    nodes = 30
      .type = int(value_min=3)
      .help = "Spline coefficients along |s|; fewer where there are many sweeps."
  }
  d.nodes = 8
    .type = int(value_min=3)
    .help = "Spline coefficients along each edge of the detector."
}
refinement {
  max_observations = 400000
    .type = int(value_min=3000)
    .help = "The model is refined against all observations of unique voxels that are chosen at random, about as many."
  n_folds = 6
    .type = int(value_min=2)
    .help = "Parts of these voxels, whole blocks of reciprocal space, each kept out once in the cross-validation."
  n_cycles = 10
    .type = int(value_min=1)
    .help = "Steps, at most, after smoothing and terms are chosen."
  seed = 0
    .type = int(value_min=0)
    .help = "Of the choice of voxels."
}
bragg_scales = True
  .type = bool
  .help = "Start b from the scale factors of dials.scale, where the integrated reflections have them, and compare both."
absolute_scale {
  method = *auto krogh_moe envelope model none
    .type = choice
    .help = "Where the files have Bragg reflections, bring intensities to electrons^2 per unit cell and subtract"
            "Compton scattering. krogh_moe: sum rule for all that the cell scatters. envelope: its values at high"
            "angles. model: the model's structure factors against the Bragg reflections. auto: model where there is one"
            "that fits, else krogh_moe. none: leave the scale arbitrary."
  model = None
    .type = path
    .help = "Coordinates of what is in the cell. Water fills the rest."
  sequence = None
    .type = str
    .help = "Without a model: sequence file of the protein, or its one-letter codes. With neither, a protein of average"
            "composition is assumed."
  copies = None
    .type = int(value_min=1)
    .help = "Copies of the sequence in the asymmetric unit. By default the most probable number."
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
  png = diffuse_scaled.png
    .type = path
    .help = "Picture of the absolute scale and of the scales of the sweeps; None for no such file."
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
    model, scope, refinement = params.model, params.scale_model, params.refinement
    terms = [] if model is None else model.replace(",", " ").replace("+", " ").split()
    return ScalingParameters(
        terms=tuple(dict.fromkeys(terms)),
        automatic=params.automatic,
        space_group=params.space_group,
        outlier_n_sigma=params.outlier.n_sigma,
        max_observations=refinement.max_observations,
        form_a=scope.a.form,
        degree_a=scope.a.degree,
        angle_b=scope.b.angle,
        angle_a=scope.a.angle,
        angle_c=scope.c.angle,
        nodes_a=scope.a.nodes,
        nodes_d=scope.d.nodes,
        nodes_c=scope.c.nodes,
        n_folds=refinement.n_folds,
        n_cycles=refinement.n_cycles,
        seed=refinement.seed,
    )


def absolute_from_phil(params) -> AbsoluteParameters:
    """How to find the absolute scale, as checked parameters."""
    scope = params.absolute_scale

    def expectation(grid):
        return make_expectation(
            grid,
            scope.model,
            scope.sequence,
            scope.copies,
            scope.bulk_solvent,
            scope.hydrogens if isinstance(scope.hydrogens, bool) else None,
        )

    method = "none" if scope.method is None else scope.method  # phil takes the word for None
    if method == "none" and (scope.model or scope.sequence):
        raise DiffuseError("absolute_scale.method=none: leave out absolute_scale.model and absolute_scale.sequence")
    asked = scope.model or scope.sequence or scope.copies or method not in ("auto", "none")
    return AbsoluteParameters(expectation, method, bool(asked))


def main(params, files, provenance, warnings) -> None:
    """Scale ``files`` and write what ``params.output`` asks for."""
    parameters = parameters_from_phil(params)
    nproc = params.nproc if isinstance(params.nproc, int) else available_cores()
    path = params.output.observations
    absolute = absolute_from_phil(params)
    result = scale_observations(files, parameters, path, provenance, nproc, track, absolute, params.bragg_scales)
    logger.info("\n%s\n", report(result))
    for warning in result.warnings:
        logger.warning("Warning: %s", warning)
    outputs = [Output(path, "observations")]
    if params.output.png:
        outputs.append(Output(params.output.png, "picture", "aid"))
        logger.info("Saving pictures to %s", params.output.png)
        write_scaling_png(params.output.png, result)
    if params.output.json:
        outputs.append(Output(params.output.json, "statistics", "aid"))
        logger.info("Saving the scale model to %s", params.output.json)
        grid = result.grid
        write_record(
            params.output.json,
            "dials.diffuse_scale/1",
            provenance,
            outputs,
            warnings,
            space_group=grid.space_group_symbol,
            unit_cell=grid.unit_cell,
            subdivide=grid.subdivide,
            **scaling_record(result),
        )
    logger.info("Next: dials.diffuse_merge %s", path)


def report(result: ScalingResult) -> str:
    """Text for the log: terms, curves and residuals in a few lines."""
    refinement = result.refinement
    lines = [
        f"{result.n_outliers} of {result.n_observations} observations are outliers and are left out",
        "",
        "term         fall of chi2 per observation of held-out voxels   smoothing",
    ]
    labels = {"h": "a", "m": "d (modules)", "d": "d (smooth)"}
    for test in refinement.tests:
        smoothing = f"{refinement.strengths[test.name]:.0e}" if test.name in refinement.strengths else "none"
        kept = smoothing if test.name in refinement.model.terms else "not used"
        label = labels.get(test.name, test.name)
        lines.append(f"{label:11}  {test.gain:12.4f} +- {test.esd:<24.4f} {kept}")
    lines += [
        "",
        "Not determined by the data and set by convention: mean of log b 0 over all sweeps; what of a depends on s or",
        "the rotation alone 0; mean of c 0 over all sweeps at each s, so that what they share belongs to the map.",
        "",
    ]
    for i, experiment in enumerate(result.experiments):
        _, b, c = curve_of_b(result, i)
        lines.append(
            f"sweep {i} ({experiment.identifier}): b {b.min():.3f} to {b.max():.3f}, c/I {c.min():.3f} to {c.max():.3f}"
        )
        if result.levels is not None:
            lines[-1] += f"; scale changed by {result.levels.factor[i]:.4f} +- {result.levels.esd[i]:.4f} for the ratio"
        compared = dials_scale_curve(result, i)
        if compared is not None:
            lines[-1] += f"; correlation of b with the scales of dials.scale {compared['correlation']:.3f}"
    lines += ["", *absolute_lines(result.absolute)]
    n = len(result.experiments)
    if n > 1:
        lines += ["", "correlation of the anisotropic part between sweeps:"]
        lines += ["  ".join(f"{x:6.3f}" for x in row) for row in result.correlations]
    for path, text in suggested_cuts(result).items():
        lines += ["", f"{path}: some images agree much worse than the others, consider exclude_images={text}"]
    return "\n".join(lines)


def absolute_lines(absolute: AbsoluteScale | None) -> list:
    """Text about the absolute scale for the log."""
    if absolute is None:
        return ["Intensities are on an arbitrary scale"]
    lines = [
        f"Absolute scale by {absolute.method}: 1 unit of the scale model is {absolute.k:.4g} electrons^2 per unit cell "
        f"+- {100 * absolute.esd / absolute.k:.1f} % ("
        + ", ".join(f"{name} {100 * x:.1f} %" for name, x in absolute.relative.items())
        + ")",
        f"  contents: {absolute.expectation.source}",
    ]
    lines += [f"  {e.method:9} {e.k:.4g} +- {e.esd:.2g}" for e in absolute.estimates]
    return [*lines, "Compton scattering is subtracted"]


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_scale; ``args`` default to the command line."""
    run_program("dials.diffuse_scale", HELP, phil, main, args, required=("observations",))


if __name__ == "__main__":
    run()
