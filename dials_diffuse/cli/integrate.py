"""Average every pixel of rotation images into voxels of reciprocal space.

Takes the output of dials.integrate (or dials.scale, dials.refine) and writes sums of counts and of expected counts for
each voxel and each pass through the Ewald sphere. Bragg peaks are masked, solid angle, polarization, sensor efficiency
and air are corrected pixel by pixel, and no Lorentz factor is applied. Next: dials.diffuse_merge diffuse_integrated.h5

Examples::

  dials.diffuse_integrate integrated.expt integrated.refl

  dials.diffuse_integrate integrated.expt integrated.refl background=bg.expt d_min=1.6 grid.subdivide=5,5,5
"""

from __future__ import annotations

import logging
import re

from iotbx.phil import parse
from libtbx import Auto

from dials_diffuse.cli.executor import EXECUTOR_PHIL, executor_from_phil, processes
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.errors import CommandLineError
from dials_diffuse.experiment.load import load_experiments, load_input
from dials_diffuse.reduction.corrections import CORRECTIONS, Corrections
from dials_diffuse.reduction.integrate import integrate
from dials_diffuse.reduction.reduction_parameters import (
    BackgroundSmoothing,
    Masking,
    ReductionParameters,
    Sampling,
)
from dials_diffuse.report.integrate import write_integration

logger = logging.getLogger("dials.diffuse.integrate")

phil_scope = parse(
    """
d_min = None
  .type = float(value_min=0.1)
  .help = "High resolution limit in Angstrom. Default: the corner of the detector."
d_max = None
  .type = float(value_min=0.1)
  .help = "Low resolution limit in Angstrom. Default: none."
grid {
  subdivide = 3,3,3
    .type = ints(size=3, value_min=1)
    .help = "Voxels per reciprocal-lattice step along a*, b*, c*. Axes that the symmetry mixes need equal numbers."
}
background = None
  .type = path
  .multiple = True
  .help = "Experiments of images without crystal (dials.import is enough), subtracted with their variance."
background_average {
  block = 16
    .type = int(value_min=1)
    .help = "Background images are averaged over squares of this many pixels..."
  angle = 20
    .type = float(value_min=0.01, value_max=360)
    .help = "...and over this range of rotation, in degrees."
  scale = 1.0
    .type = float(value_min=1e-6)
    .help = "Multiplies the background, for example for a different beam intensity."
}
mask {
  bragg {
    enable = True
      .type = bool
      .help = "Mask the predicted Bragg peaks. Systematic absences stay unmasked."
    mode = *adaptive fixed
      .type = choice
      .help = "adaptive: the mask of each reflection follows its intensity and the profile of the spots on the images,"
              "and what it is expected to leave outside is subtracted; needs a .refl of integrated reflections."
              "fixed, or without these: the same mask for all reflections."
    leak = 0.5
      .type = float(value_min=1e-6)
      .help = "adaptive: what a pixel outside the mask may have of a peak, before that is subtracted, over the rms of"
              "the diffuse counts."
    n_sigma = None
      .type = float(value_min=0.1)
      .help = "Radius of the fixed mask in units of the profile model's sigma_b (on the detector) and sigma_m"
              "(rotation). Default: 3. With a number the mask is fixed."
    sigma_b = None
      .type = float(value_min=1e-6)
      .help = "Degrees. Default: the profile model of the .expt, or measured on the strong reflections of the .refl."
    sigma_m = None
      .type = float(value_min=1e-6)
      .help = "Degrees. As for sigma_b."
  }
  persistent = True
    .type = bool
    .help = "Find and mask pixels that are hot, dead, stuck or shadowed on most images."
  shadow = 0.6
    .type = float(value_min=0, value_max=0.99)
    .help = "A pixel whose average lies below this fraction of its resolution shell is in a shadow."
  ice_rings = Auto
    .type = bool
    .help = "Mask ice rings. Auto: those that the radial profile of the images shows. True: all of hexagonal ice."
  unpredicted = True
    .type = bool
    .help = "Find and mask, image by image, sharp peaks that no crystal predicts: of a second lattice, salt, ice or"
            "zingers. They are what mask.outlier finds to be too high, with the tails around."
  outlier {
    n_sigma = 6.0
      .type = float(value_min=0)
      .help = "Two-sided rejection of pixels in a resolution shell of one image (ice, zingers, stray peaks). 0: off."
  }
}
corrections {
"""
    + "".join(f'{c.name} = {c.default}\n.type = bool\n.help = "{c.help}"\n' for c in CORRECTIONS)
    + """
}
sampling {
  oscillation = Auto
    .type = int(value_min=1, value_max=1000)
    .help = "Rotation sub-steps of each image. Auto: as many as keep the arc of a sub-step at d_min within one voxel."
  pixel = 1
    .type = int(value_min=1, value_max=8)
    .help = "Sub-pixels along each edge of a pixel."
}
geometry.check = *error warn none
  .type = choice
  .help = "Compare peaks on some images with the spots that the models predict. Images that do not belong to the models"
          "are an error or, with warn, a warning; with none, nothing is compared."
exclude_images = None
  .type = strings
  .multiple = True
  .help = "Images to leave out, as first:last, or experiment:first:last for one experiment (counted from 0)."
          "Several ranges are separated by commas. Images outside a scan's valid image ranges are never used."
images.root = None
  .type = path
  .help = "Folder to look in for images that are no longer where the .expt says, with as much of their old path as can"
          "be found there. The folder of the .expt and those above it are searched in any case."
"""
    + EXECUTOR_PHIL
    + """
output {
  observations = diffuse_integrated.h5
    .type = path
    .help = "Sums per voxel and pass through the Ewald sphere."
  json = diffuse_integrated.json
    .type = path
    .help = "Summary, machine-readable; None for no such file."
  html = diffuse_integrated.html
    .type = path
    .help = "A page with plots of images and detector, which any browser opens without a network; None for no such"
            "file."
  log = dials.diffuse_integrate.log
    .type = path
}
"""
)


def run(args=None, phil=phil_scope) -> None:
    """Run ``dials.diffuse_integrate``; raises SystemExit on errors, see :func:`run_program`."""
    run_program("dials.diffuse_integrate", __doc__, phil, _main, args, required=("observations",))


def _main(params, files, provenance, warnings) -> None:
    parameters = parameters_from_phil(params)
    excluded = parse_exclude_images(params.exclude_images)
    data = load_input(files, excluded, params.images.root)
    background = [e for path in params.background or [] if path for e in load_experiments(path, params.images.root)]
    with executor_from_phil(params, processes(params)) as executor:
        result = integrate(
            data.experiments,
            parameters,
            params.output.observations,
            provenance,
            reflections=data.reflections,
            background_experiments=background,
            excluded=excluded,
            executor=executor,
            progress=track,
        )
    output = params.output
    write_integration(result, output.observations, output.json, provenance, warnings, data.record(), output.html)
    logger.info("Next: dials.diffuse_merge %s", params.output.observations)


def parameters_from_phil(params) -> ReductionParameters:
    """The phil parameters as a validated dataclass."""
    bragg = params.mask.bragg
    oscillation = params.sampling.oscillation
    return ReductionParameters(
        d_min=params.d_min,
        d_max=params.d_max,
        subdivide=tuple(params.grid.subdivide or ()),
        corrections=Corrections(**{c.name: getattr(params.corrections, c.name) for c in CORRECTIONS}),
        masking=Masking(
            bragg=bragg.enable,
            leak=bragg.leak,
            adaptive=bragg.mode == "adaptive",
            n_sigma=bragg.n_sigma,
            sigma_b=bragg.sigma_b,
            sigma_m=bragg.sigma_m,
            persistent=params.mask.persistent,
            shadow=params.mask.shadow,
            ice_rings=None if params.mask.ice_rings in (None, Auto) else params.mask.ice_rings,
            unpredicted=params.mask.unpredicted,
            outlier_n_sigma=params.mask.outlier.n_sigma,
        ),
        sampling=Sampling(
            oscillation=oscillation if isinstance(oscillation, int) else None, pixel=params.sampling.pixel
        ),
        background=BackgroundSmoothing(
            block=params.background_average.block,
            angle=params.background_average.angle,
            scale=params.background_average.scale,
        ),
        geometry_check=params.geometry.check or "none",
    )


def parse_exclude_images(values) -> list:
    """``first:last`` or ``experiment:first:last`` to (experiment or None, first, last).

    Raises
    ------
    CommandLineError
        If a range cannot be read.
    """
    result = []
    for item in (
        ",".join(" ".join(v) if isinstance(v, list) else str(v) for v in values or [] if v).replace(" ", ",").split(",")
    ):
        if not item:
            continue
        match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", item.strip("'\""))
        if match is None or int(match[2]) > int(match[3]):
            raise CommandLineError(f"exclude_images={item}: write first:last or experiment:first:last, e.g. 0:1:20")
        result.append((None if match[1] is None else int(match[1]), int(match[2]), int(match[3])))
    return result


if __name__ == "__main__":
    run()
