"""dials.diffuse_scale: put observations of one or many crystals on a common scale."""

from __future__ import annotations

import logging

from libtbx.phil import parse

from dials_diffuse import __version__
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.compat import available_cores
from dials_diffuse.maps.files import write_json
from dials_diffuse.scaling.parameters import ScalingParameters
from dials_diffuse.scaling.record import curve_of_b, scaling_record
from dials_diffuse.scaling.scale import ScalingResult, scale_observations

logger = logging.getLogger("dials.diffuse.scale")

HELP = """
Scale diffuse observations: refine what the experiment did to the intensities, for all sweeps and crystals together, so
that symmetry-equivalent voxels agree. Expected counts are

  norm * a(x, y, phi) * d(module) * [b(phi) * I(voxel) + c(s, phi)]

Smoothing and the choice of terms come from voxels that are kept out of the fit. Next:
dials.diffuse_merge diffuse_scaled.h5

Examples:

  dials.diffuse_scale diffuse_integrated.h5

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
    nodes = 8
      .type = int(value_min=3)
      .help = "Spline coefficients along |s|."
  }
  d.nodes = 8
    .type = int(value_min=3)
    .help = "Spline coefficients along each edge of the detector."
}
refinement {
  max_observations = 1000000
    .type = int(value_min=1000)
    .help = "The model is refined against all observations of unique voxels that are chosen at random, about as many."
  n_folds = 4
    .type = int(value_min=2)
    .help = "Parts of these voxels, each kept out once in the cross-validation."
  n_cycles = 10
    .type = int(value_min=1)
    .help = "Steps, at most, after smoothing and terms are chosen."
  seed = 0
    .type = int(value_min=0)
    .help = "Of the choice of voxels."
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


def main(params, files, provenance) -> None:
    """Scale ``files`` and write what ``params.output`` asks for."""
    parameters = parameters_from_phil(params)
    nproc = params.nproc if isinstance(params.nproc, int) else available_cores()
    path = params.output.observations
    result = scale_observations(files, parameters, path, provenance, nproc, track)
    logger.info("\n%s\n", report(result))
    for warning in result.warnings:
        logger.warning("Warning: %s", warning)
    outputs = [{"path": path, "kind": "observations", "importance": "main"}]
    if params.output.json:
        outputs.append({"path": params.output.json, "kind": "statistics", "importance": "aid"})
        logger.info("Saving the scale model to %s", params.output.json)
        grid = result.grid
        content = {
            "schema": "dials.diffuse_scale/1",
            "version": __version__,
            "dials_version": provenance.dials_version,
            "inputs": list(files),
            "parameters": provenance.phil,
            "space_group": grid.space_group_symbol,
            "unit_cell": grid.unit_cell,
            "subdivide": grid.subdivide,
            **scaling_record(result),
            "outputs": outputs,
            "warnings": result.warnings,
        }
        write_json(params.output.json, content)
    logger.info("Next: dials.diffuse_merge %s", path)


def report(result: ScalingResult) -> str:
    """Text for the log: terms, curves and residuals in a few lines."""
    refinement = result.refinement
    first, last = refinement.history[0], refinement.history[-1]
    lines = [
        f"chi2 per observation {first['chi2']:.3f} before, {last['chi2']:.3f} after scaling; "
        f"{result.n_outliers} of {result.n_observations} observations are outliers and are left out",
        "",
        "term   fall of chi2 per observation of held-out voxels   smoothing",
    ]
    for test in refinement.tests:
        smoothing = f"{refinement.strengths[test.name]:.0e}" if test.name in refinement.strengths else "none"
        kept = smoothing if test.name in refinement.model.terms else "not used"
        lines.append(f"{test.name:5}  {test.gain:12.4f} +- {test.esd:<30.4f} {kept}")
    lines += [
        "",
        "Not determined by the data and set by convention: mean of log b 0 over all sweeps; mean of log a 0 over the",
        "detector at each rotation; mean of c 0 over all sweeps at each s, so that what they share belongs to the map.",
        "",
    ]
    for i, experiment in enumerate(result.experiments):
        _, b, c = curve_of_b(result, i)
        lines.append(
            f"sweep {i} ({experiment.identifier}): b {b.min():.3f} to {b.max():.3f}, c/I {c.min():.3f} to {c.max():.3f}"
        )
    n = len(result.experiments)
    if n > 1:
        lines += ["", "correlation of the anisotropic part between sweeps:"]
        lines += ["  ".join(f"{x:6.3f}" for x in row) for row in result.correlations]
    if result.cuts:
        text = ", ".join(f"{e}:{a}:{b}" for e, a, b in result.cuts)
        lines += ["", f"These images agree much worse than the others, consider exclude_images={text}"]
    return "\n".join(lines)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_scale; ``args`` default to the command line."""
    run_program("dials.diffuse_scale", HELP, phil, main, args, required=("observations",))


if __name__ == "__main__":
    run()
