"""dials.diffuse_process: from DIALS or xia2 output to a map, fitted models and a verdict, with nobody watching."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from libtbx.phil import parse

from dials_diffuse.cli import fit, integrate, merge, scale
from dials_diffuse.cli.executor import EXECUTOR_PHIL, executor_from_phil, processes
from dials_diffuse.cli.fit_models import parameters_from_phil as fit_parameters_from_phil
from dials_diffuse.cli.fit_models import requests_from_phil
from dials_diffuse.cli.program import run_program, track
from dials_diffuse.errors import CommandLineError, DiffuseError
from dials_diffuse.pipeline.process import process
from dials_diffuse.pipeline.process_parameters import ProcessFiles, ProcessParameters
from dials_diffuse.pipeline.record import write_process
from dials_diffuse.pipeline.sources import find_sources

logger = logging.getLogger("dials.diffuse.process")

HELP = """
From integrated data to a map of the diffuse scattering, models fitted to it, and a verdict, in one call:
dials.diffuse_integrate, diffuse_scale, diffuse_merge, and with pdb= diffuse_fit. What nobody decides is decided from
the data, and logged with its reason. A run that was interrupted goes on where it was.

The verdict is one word: good, weak, none (no anisotropic signal), or doubtful (something contradicts the models).

Examples:

  dials.diffuse_process integrated.expt integrated.refl

  dials.diffuse_process scaled.expt scaled.refl pdb=model.pdb background=bg.expt

  dials.diffuse_process /path/to/xia2-run pdb=model.pdb output.directory=diffuse
"""


#: single programs whose parameters this one has, in scopes of their names, and those that it has once or not at all
_STEPS = (
    (integrate, ("background", "exclude_images", "images", "grid")),
    (scale, ()),
    (merge, ("reference",)),
    (fit, ("map", "selection")),
)


#: for the verdict, not the end of the work
_CHECKS = """
integrate.geometry.check = warn
scale.symmetry.check = warn
merge.symmetry.check = warn
"""


def _phil_of_steps() -> str:
    text = ""
    for program, left_out in _STEPS:
        left_out = (*left_out, "output", "nproc", "executor", "dask")
        kept = [item for item in program.phil_scope.objects if item.name.split(".")[0] not in left_out]
        name = program.__name__.rsplit(".", 1)[1]
        text += f"{name} {{\n" + "".join(item.as_str(attributes_level=3) for item in kept) + "}\n"
    return text


phil_scope = parse(
    """
pdb = None
  .type = path
  .help = "Coordinates (PDB or mmCIF). Models are fitted to the map, and the absolute scale comes from them."
selection = None
  .type = str
  .help = "Atoms of the coordinates to use, in the syntax of cctbx. Default: all."
reference = None
  .type = path
  .help = "A map on the same lattice, such as the truth of a simulation, to compare the merged map with."
background = None
  .type = path
  .multiple = True
  .help = "Experiments of images without crystal (dials.import is enough), subtracted with their variance."
          "auto: such images are looked for beside the data."
grid.subdivide = Auto
  .type = ints(size=3, value_min=1)
  .help = "Voxels per reciprocal-lattice step along a*, b*, c*. Auto: from the size of spots and pixels."
exclude_images = None
  .type = strings
  .multiple = True
  .help = "Images to leave out, as first:last, or experiment:first:last for one experiment (counted from 0)."
images.root = None
  .type = path
  .help = "Folder to look in for images that are no longer where the .expt says. The folder of the .expt and those"
          "above it are searched in any case."
"""
    + EXECUTOR_PHIL
    + _phil_of_steps()
    + """
output {
  directory = .
    .type = str
    .help = "Folder for all files. It is made if there is none."
  prefix = ""
    .type = str
    .help = "Before the names of all files."
  json = dials.diffuse_process.json
    .type = path
    .help = "Verdict, statistics and list of outputs, for programs."
  html = dials.diffuse_process.html
    .type = path
    .help = "A page with what all steps found, which any browser opens without a network; None for no such file."
  png = dials.diffuse_process.png
    .type = path
    .help = "A small picture of the map, 400 pixels, for lists of results; None for no such file."
  log = dials.diffuse_process.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
).fetch(parse(_CHECKS))


def parameters_from_phil(params) -> ProcessParameters:
    """Turn the extracted phil scope into checked parameters.

    Raises
    ------
    DiffuseError, CommandLineError
        If a value is out of range.
    """
    subdivide = params.grid.subdivide if isinstance(params.grid.subdivide, (list, tuple)) else None
    requests, fitting = (), ProcessParameters().fitting
    if params.pdb:
        params.fit.__inject__("selection", params.selection)
        requests, fitting = requests_from_phil(params.fit, params.pdb), fit_parameters_from_phil(params.fit)
        if params.scale.absolute_scale.model is None:
            params.scale.absolute_scale.model = params.pdb
    params.integrate.__inject__("grid", integrate.phil_scope.extract().grid)  # stands in for what is not decided yet
    return ProcessParameters(
        reduction=integrate.parameters_from_phil(params.integrate),
        subdivide=None if subdivide is None else tuple(subdivide),
        scaling=scale.parameters_from_phil(params.scale),
        absolute=scale.absolute_from_phil(params.scale),
        bragg_scales=params.scale.bragg_scales,
        merging=merge.parameters_from_phil(params.merge),
        reference=params.reference,
        requests=requests,
        fitting=fitting,
        told=phil_scope.get("fit").objects[0].format(params.fit).as_str() if params.pdb else "",
        coordinates=params.pdb,
        selection=params.selection,
        backgrounds=_backgrounds(params.background),
        excluded=tuple(integrate.parse_exclude_images(params.exclude_images)),
        images_root=params.images.root,
    )


def _backgrounds(told) -> tuple | None:
    """Paths of .expt files; None if they are to be looked for."""
    paths = tuple(str(path) for path in told or () if path)
    if any(path.lower() == "auto" for path in paths):
        if len(paths) > 1:
            raise CommandLineError(f"background={','.join(paths)}: give either files or auto")
        return None
    return paths


def place_outputs(params) -> None:
    """Make the folder of the outputs, and put their names into it.

    Raises
    ------
    DiffuseError
        If there can be no such folder.
    """
    output = params.output
    folder, prefix = output.directory or ".", output.prefix or ""
    for name, value in (("directory", folder), ("prefix", prefix)):
        if not isinstance(value, str):
            raise DiffuseError(f"output.{name}={value}: not a name; choose another")
    if "/" in prefix:
        raise DiffuseError(f"output.prefix={prefix}: a part of file names is needed, without /; use output.directory")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiffuseError(f"output.directory={folder}: no folder ({error.strerror}); choose another") from None
    for name in ("json", "html", "png", "log"):
        value = getattr(output, name)
        if value and not Path(value).is_absolute():
            setattr(output, name, str(Path(folder) / f"{prefix}{value}"))


def main(params, files, provenance, warnings) -> None:
    """Process ``files`` and write what ``params.output`` asks for."""
    nproc = processes(params)
    parameters = parameters_from_phil(params)
    sources = find_sources(files)
    provenance = replace(provenance, inputs=tuple(files))
    output = ProcessFiles(params.output.directory or ".", params.output.prefix or "")
    with executor_from_phil(params, nproc) as executor:
        result = process(sources, parameters, output, provenance, warnings, executor, nproc, track)
    names = params.output
    write_process(result, names.json, names.html, names.png, provenance, warnings)
    if result.verdict.word == "doubtful":
        logger.info(
            "Look at the report before using the map: %s", shlex.quote(params.output.html or params.output.json)
        )


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_process; ``args`` default to the command line."""
    run_program("dials.diffuse_process", HELP, phil, main, args, required=("json",), folders=True, place=place_outputs)


if __name__ == "__main__":
    run()
