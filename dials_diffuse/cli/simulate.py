"""Simulate diffraction images with a known answer: Bragg spots, diffuse scattering, background, noise and defects.

Takes the coordinates of a structure, and optionally an .expt file for the geometry, and writes images that dials.import
reads, the models they were made from, and the noise-free diffuse map. structure=lysozyme takes the one that comes with
the program. Next: dials.import simulated_1_*.cbf, or dials.diffuse_integrate simulated.expt simulated.refl

Examples::

  dials.diffuse_simulate model.pdb model=llm llm.sigma=0.4 llm.gamma=10

  dials.diffuse_simulate model.pdb geometry.expt source.flux=1e12 scale.drift=0.15

  dials.diffuse_simulate structure=lysozyme crystal.number=2 crystal.thickness=0.2,0.1 background.images=10
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from iotbx.phil import parse

from dials_diffuse.cli.model_scope import MODEL_PHIL, automatic_orders, model_from_phil
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.compat import available_cores
from dials_diffuse.errors import CommandLineError
from dials_diffuse.experiment.build import BeamParameters, DetectorParameters, ScanParameters
from dials_diffuse.experiment.common_grid import resolution_limit
from dials_diffuse.models.compute import with_orders
from dials_diffuse.parallel import make_executor
from dials_diffuse.report.simulate import write_simulation
from dials_diffuse.simulation.plan import EXAMPLES, example_path, plan_sweeps, sweeps_from_geometry
from dials_diffuse.simulation.simulate import Outputs, simulate
from dials_diffuse.simulation.simulation_parameters import Background, Defects, Scales, SimulationParameters, Source
from dials_diffuse.simulation.spots import SpotShape

logger = logging.getLogger("dials.diffuse.simulate")

phil_scope = parse(
    f"""
structure = None
  .type = str
  .help = "A structure that comes with the program, instead of a coordinate file: {", ".join(EXAMPLES)}."
selection = None
  .type = str
  .help = "Atoms to use, in the syntax of cctbx, e.g. 'not element H'. Default: all."
{MODEL_PHIL}
"""
    + """
scattering_table = *wk1995 it1992
  .type = choice
  .help = "Form factors, by Waasmaier & Kirfel 1995 or the International Tables 1992."
anomalous = False
  .type = bool
  .help = "Add the f', f'' of Sasaki's tables at the wavelength of the source to the form factors, of Bragg spots and"
          "diffuse scattering. Friedel mates keep one intensity, their mean."
crystal {
  number = None
    .type = int(value_min=1, value_max=10000)
    .help = "Crystals, each with a sweep of its own. Default: 1. With an .expt file: those in it."
  orientation = None
    .type = floats(size=9)
    .help = "The matrix U, row by row, of the first crystal. Default: random, as those of the others."
  thickness = 0.2
    .type = floats(value_min=1e-6)
    .help = "Crystal in the beam in mm, one number for each crystal; the last one holds for all that follow."
  k_sol = 0.35
    .type = float(value_min=0)
    .help = "Bulk solvent of the Bragg reflections: electrons per cubic Angstrom..."
  b_sol = 46
    .type = float(value_min=0)
    .help = "...and its B factor in square Angstrom."
}
source {
  flux = 1e13
    .type = float(value_min=0)
    .help = "Photons per second through the crystal."
  exposure = None
    .type = float(value_min=0)
    .help = "Seconds per image. Default: what the scan of the .expt file says, else 0.1."
  wavelength = None
    .type = float(value_min=0.1, value_max=12)
    .help = "Angstrom. Default: 1. Not with an .expt file."
  polarization = None
    .type = float(value_min=0, value_max=1)
    .help = "Fraction polarized in the horizontal plane. Default: 0.999. Not with an .expt file."
}
detector {
  size = None
    .type = str
    .help = "Name of a Pilatus (100K, 300K, 1M, 2M, 6M) or pixels as fast,slow. Default: 1M. Not with an .expt file."
  distance = None
    .type = float(value_min=1)
    .help = "mm. Default: 200. Not with an .expt file."
  beam_centre = None
    .type = floats(size=2)
    .help = "Pixels, fast and slow. Default: the middle. Not with an .expt file."
  pixel_size = None
    .type = float(value_min=0)
    .help = "mm. Default: 0.172. Not with an .expt file."
  hot_pixels = 20
    .type = int(value_min=0)
  dead_pixels = 20
    .type = int(value_min=0)
}
beam_stop {
  radius = 4.0
    .type = float(value_min=0)
    .help = "Of its shadow on the detector, mm; 0: no beam stop."
  arm = 1.0
    .type = float(value_min=0)
    .help = "Width of the shadow of its horizontal holder, mm."
}
scan {
  start = None
    .type = float
    .help = "Degrees. Default: 0. Not with an .expt file."
  width = None
    .type = float
    .help = "Degrees per image. Default: 0.5. Not with an .expt file."
  n_images = None
    .type = int(value_min=1, value_max=99999)
    .help = "Images of a sweep. Default: 180. Not with an .expt file."
}
spots {
  mosaicity = 0.08
    .type = float(value_min=0)
    .help = "Degrees rms about each axis."
  divergence = 0.02
    .type = float(value_min=0)
    .help = "Degrees rms of the incident beam, in both directions."
  bandwidth = 2e-4
    .type = float(value_min=0)
    .help = "Relative rms spread of the wavelength."
  spot_size = 0.12
    .type = float(value_min=0)
    .help = "Size of the crystal or beam and point spread of the detector, mm rms on the detector."
}
background {
  air = 10
    .type = float(value_min=0)
    .help = "Air in the beam that the detector sees, mm. It does not scale with the crystal."
  liquid = 0.05
    .type = float(value_min=0)
    .help = "Mother liquor and loop around the crystal, mm."
  liquid_variation = 0.0
    .type = float(value_min=0, value_max=0.99)
    .help = "Relative amplitude with which the liquid's thickness changes over the rotation."
  solvent = True
    .type = bool
    .help = "Bulk solvent inside the crystal, where the molecules of the model leave room."
  compton = True
    .type = bool
    .help = "Incoherent scattering of the model's atoms."
  images = 0
    .type = int(value_min=0, value_max=99999)
    .help = "Images without crystal and liquid for each sweep, spread over its rotation."
}
scale {
  drift = 0.0
    .type = float(value_min=0, value_max=0.99)
    .help = "Relative loss of scattering power from the first to the last image."
  absorption = 0.0
    .type = float(value_min=0, value_max=0.99)
    .help = "rms of the logarithm of a smooth factor that depends on direction and rotation."
  module = 0.0
    .type = float(value_min=0, value_max=0.99)
    .help = "rms of the relative response of detector modules."
}
d_min = None
  .type = float(value_min=0.1)
  .help = "High resolution limit of spots and diffuse scattering. Default: the corner of the detector."
grid.subdivide = 3,3,3
  .type = ints(size=3, value_min=1)
  .help = "Voxels of the true map per reciprocal-lattice step, as for dials.diffuse_integrate."
sampling {
  tolerance = 0.02
    .type = float(value_min=1e-4)
    .help = "Sampling error allowed in a pixel, in units of its Poisson noise; decides what follows where that is Auto."
  oscillation = Auto
    .type = int(value_min=1, value_max=1000)
    .help = "Rotation sub-steps of each image."
  pixel = Auto
    .type = int(value_min=1, value_max=8)
    .help = "Points along each edge of a pixel."
}
bragg = True
  .type = bool
  .help = "Draw Bragg spots."
diffuse = True
  .type = bool
  .help = "Draw diffuse scattering."
noise = True
  .type = bool
  .help = "Poisson noise; without it, counts are the expected ones, rounded."
seed = 0
  .type = int(value_min=0)
  .help = "Seed of everything that is random."
nproc = Auto
  .type = int(value_min=1)
  .help = "Processes. Auto: the cores that this job may use."
output {
  prefix = simulated
    .type = str
    .help = "Images are named prefix_sweep_#####.cbf."
  background = background
    .type = str
    .help = "The same for background images."
  experiments = simulated.expt
    .type = path
    .help = "The true models; None for no such file."
  reflections = simulated.refl
    .type = path
    .help = "The Bragg spots with their expected photons; None for no such file."
  truth = truth.nxs
    .type = path
    .help = "The noise-free diffuse map in electrons² per unit cell, and every scale applied; None for no such file."
  ideal = None
    .type = path
    .help = "Map of these images with the true scales, background and orientation: what processing reaches at best."
  html = diffuse_simulate.html
    .type = path
    .help = "A page with plots and a browser of the true map, which any browser opens without a network;"
            "None for no such file."
  json = diffuse_simulate.json
    .type = path
    .help = "Summary, machine-readable; None for no such file."
  log = dials.diffuse_simulate.log
    .type = path
}
"""
)

_GEOMETRY = (
    "crystal.number",
    "crystal.orientation",
    "source.wavelength",
    "source.polarization",
    "detector.size",
    "detector.distance",
    "detector.beam_centre",
    "detector.pixel_size",
    "scan.start",
    "scan.width",
    "scan.n_images",
)


def run(args=None, phil=phil_scope) -> None:
    """Run ``dials.diffuse_simulate``; raises SystemExit on errors, see :func:`run_program`."""
    run_program(
        "dials.diffuse_simulate", __doc__, phil, _main, args, without_files=lambda params: params.structure is not None
    )


def _main(params, files, provenance, warnings) -> None:
    parameters = parameters_from_phil(params)
    coordinates, geometry = sort_files(files, params.structure)
    model = replace(model_from_phil(params, coordinates, params.selection), table=params.scattering_table)
    if geometry is not None:
        _refuse_geometry(params, geometry)
    executor = make_executor(params.nproc if isinstance(params.nproc, int) else available_cores())
    logger.info("Structure: %s", coordinates)
    structure = model.structure(coordinates, params.selection)
    model = model.select(params.selection)
    if geometry is None:
        sweeps = plan_sweeps(structure, **geometry_from_phil(params))
    else:
        sweeps = sweeps_from_geometry(geometry, structure, parameters.source.exposure, parameters.seed)
    if parameters.diffuse:
        d_min = resolution_limit([e for s in sweeps for e in s], parameters.d_min)
        model = with_orders(model, structure, d_min, automatic_orders(params, model.name))
    out = params.output
    outputs = Outputs(out.prefix, out.background, out.experiments, out.reflections, out.truth, out.ideal)
    result = simulate(structure, model, sweeps, parameters, outputs, provenance, executor, track)
    write_simulation(result, model, out.html, out.json, provenance, warnings)
    images = " ".join(s.template.replace("#####", "*") for s in result.sweeps if s.crystals)
    logger.info("Next: dials.import %s", images)


def parameters_from_phil(params) -> SimulationParameters:
    """The phil parameters, except model and geometry, as a validated dataclass."""
    steps = params.sampling
    return SimulationParameters(
        spots=SpotShape(**_fields(params.spots, "mosaicity", "divergence", "bandwidth", "spot_size")),
        source=Source(params.source.flux, params.source.exposure),
        background=Background(**_fields(params.background, "air", "liquid", "liquid_variation", "solvent", "compton")),
        scales=Scales(**_fields(params.scale, "drift", "absorption", "module")),
        defects=Defects(
            params.detector.hot_pixels, params.detector.dead_pixels, params.beam_stop.radius, params.beam_stop.arm
        ),
        thickness=tuple(params.crystal.thickness or ()),
        d_min=params.d_min,
        subdivide=tuple(params.grid.subdivide or ()),
        k_sol=params.crystal.k_sol,
        b_sol=params.crystal.b_sol,
        tolerance=steps.tolerance,
        sub_steps=steps.oscillation if isinstance(steps.oscillation, int) else None,
        sub_pixels=steps.pixel if isinstance(steps.pixel, int) else None,
        anomalous=params.anomalous,
        bragg=params.bragg,
        diffuse=params.diffuse,
        noise=params.noise,
        background_images=params.background.images,
        seed=params.seed,
    )


def geometry_from_phil(params) -> dict:
    """Arguments of :func:`plan_sweeps`; what is not given has the defaults of the dataclasses."""
    size = params.detector.size
    if size is not None and "," in size:
        try:
            size = tuple(int(n) for n in size.split(","))
        except ValueError:
            raise CommandLineError(f"detector.size={size}: give a name, or pixels as fast,slow") from None
    return {
        "detector": DetectorParameters(
            **_given(
                size=size,
                distance=params.detector.distance,
                beam_centre=tuple(params.detector.beam_centre) if params.detector.beam_centre else None,
                pixel_size=params.detector.pixel_size,
            )
        ),
        "beam": BeamParameters(
            **_given(wavelength=params.source.wavelength, polarization_fraction=params.source.polarization)
        ),
        "scan": ScanParameters(
            **_given(
                start=params.scan.start,
                width=params.scan.width,
                n_images=params.scan.n_images,
                exposure=params.source.exposure,
            )
        ),
        "n_crystals": params.crystal.number or 1,
        "orientation": params.crystal.orientation,
        "seed": params.seed,
    }


def sort_files(files, example) -> tuple:
    """Path of the coordinates and of the geometry (None if there is none).

    Raises
    ------
    CommandLineError
        Unless there is one structure, and at most one .expt file.
    """
    geometry = [f for f in files if Path(f).suffix in (".expt", ".json")]
    coordinates = [f for f in files if f not in geometry]
    if example is not None:
        if coordinates:
            raise CommandLineError(f"structure={example} and {coordinates[0]}: give one structure only")
        coordinates = [example_path(example)]
    if len(coordinates) != 1 or len(geometry) > 1:
        raise CommandLineError(
            f"{len(coordinates)} coordinate files and {len(geometry)} .expt files given; give one of coordinates, or "
            f"structure=, and at most one .expt"
        )
    return str(coordinates[0]), geometry[0] if geometry else None


def _refuse_geometry(params, path) -> None:
    for name in _GEOMETRY:
        scope, key = name.split(".")
        value = getattr(getattr(params, scope), key)
        if value is not None:
            raise CommandLineError(f"{name}={value}: {path} says already what the geometry is; leave one of them out")


def _fields(scope, *names) -> dict:
    return {name: getattr(scope, name) for name in names}


def _given(**values) -> dict:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    run()
