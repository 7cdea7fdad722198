"""dials.diffuse_merge: symmetry-averaged map from observations."""

from __future__ import annotations

import logging
from dataclasses import replace

from libtbx.phil import parse

from dials_diffuse.cli.program import run_program, track
from dials_diffuse.crystals.crystal_parameters import CrystalParameters
from dials_diffuse.crystals.record import crystals_record
from dials_diffuse.files.formats import formats_in_words, save_map
from dials_diffuse.files.nexus import read_map
from dials_diffuse.files.record import Output, write_record
from dials_diffuse.merging.compare import compare_with_reference
from dials_diffuse.merging.laue import MergeParameters, merge_observations
from dials_diffuse.report.agreement import comparison_record, format_comparison, write_comparison_png
from dials_diffuse.report.crystals import crystals_text, is_drawn, write_crystals_png
from dials_diffuse.report.merge import format_statistics, merge_record
from dials_diffuse.report.planes import write_planes_png

logger = logging.getLogger("dials.diffuse.merge")

HELP = """
Average diffuse observations over the Laue group of the crystal and write a three-dimensional map with its statistics.

Examples:

  dials.diffuse_merge diffuse_integrated.h5

  dials.diffuse_merge crystal_1.h5 crystal_2.h5 half_sets=frame output.map=both.nxs

  dials.diffuse_merge diffuse_integrated.h5 reference=truth.nxs
"""

phil_scope = parse(
    CrystalParameters.phil
    + """
space_group = None
  .type = str
  .help = "Average over the point group of this space group, given in the setting of the data."
          "By default the space group of the observation files."
friedel = True
  .type = bool
  .help = "Average (h,k,l) with (-h,-k,-l)."
half_sets = *random frame friedel
  .type = choice
  .help = "How to divide the data into two halves, for CC1/2: each observation at random, every second image"
          "against the others, or Friedel mates against each other."
seed = 0
  .type = int(value_min=0)
  .help = "Seed of random half sets."
estimator = *ratio mean
  .type = choice
  .help = "ratio: sum of counts over sum of corrections, the best for weak data. mean: mean of corrected pixels."
reference = None
  .type = path
  .help = "A map to compare with, on the same lattice: truth.nxs of dials.diffuse_simulate, or that of a model. Adds"
          "correlation and slope in resolution shells to log and output.json, and its planes to the pictures."
statistics {
  n_shells = 20
    .type = int(value_min=1)
    .help = "Number of resolution shells of equal volume."
  d_max = None
    .type = float(value_min=0)
    .help = "Low-resolution limit of the statistics in Angstrom, by default that of the map."
  d_min = None
    .type = float(value_min=0)
    .help = "High-resolution limit of the statistics in Angstrom, by default that of the map."
}
output {
  map = diffuse_merged.nxs
    .type = path
    .help = "The map. The suffix of the name chooses the format. """
    + formats_in_words()
    + """"
  volume = True
    .type = bool
    .help = "Also write the map as a full three-dimensional array, for viewers."
  json = diffuse_merged.json
    .type = path
    .help = "Statistics for programs; None for no such file."
  png = diffuse_merged.png
    .type = path
    .help = "Pictures of planes through the map; None for no such file."
  crystals_png = diffuse_merged_crystals.png
    .type = path
    .help = "Picture of the correlations between crystals, where there are more than two; None for no such file."
  log = dials.diffuse_merge.log
    .type = path
    .help = "The log file; None for no such file."
}
"""
)


def parameters_from_phil(params) -> MergeParameters:
    """Turn the extracted phil scope into checked parameters.

    Raises
    ------
    DiffuseError
        If a value is out of range.
    """
    return MergeParameters(
        space_group=params.space_group,
        friedel=params.friedel,
        half_sets=params.half_sets,
        seed=params.seed,
        estimator=params.estimator,
        n_shells=params.statistics.n_shells,
        d_max=params.statistics.d_max,
        d_min=params.statistics.d_min,
        crystals=CrystalParameters.from_phil(params),
    )


def main(params, files, provenance, warnings) -> None:
    """Merge ``files`` and write what ``params.output`` asks for."""
    parameters = parameters_from_phil(params)
    reference = None if params.reference is None else read_map(params.reference)
    result = merge_observations(files, parameters, track)
    logger.info(
        "%d observations averaged to %d unique voxels; %d lie outside the resolution limits",
        result.n_observations,
        len(result.map.index),
        result.n_off_grid,
    )
    if result.crystals:
        logger.info("\n%s\n", crystals_text(result.crystals))
    for warning in result.warnings:
        logger.warning("Warning: %s", warning)
    logger.info("\n%s\n", format_statistics(result.statistics))
    content = {**merge_record(result), "crystals": crystals_record(result.crystals)}
    if reference is not None:
        comparison = compare_with_reference(
            result.map, reference, params.reference, parameters.n_shells, parameters.d_max, parameters.d_min
        )
        logger.info("Agreement with %s:\n\n%s\n", params.reference, format_comparison(comparison))
        content["comparison"] = {"reference": params.reference, **comparison_record(comparison)}

    output = params.output
    outputs = [Output(output.map, "map")]
    logger.info("Saving the map to %s", output.map)
    provenance = replace(provenance, identifiers=result.identifiers)
    save_map(output.map, result.map, provenance, output.volume)
    if output.png:
        outputs.append(Output(output.png, "picture", "aid"))
        logger.info("Saving pictures to %s", output.png)
        if reference is None:
            write_planes_png(output.png, result.map)
        else:
            write_comparison_png(output.png, result.map, reference, comparison)
    if output.crystals_png and is_drawn(result.crystals):
        outputs.append(Output(output.crystals_png, "picture", "aid"))
        logger.info("Saving a picture of the crystals to %s", output.crystals_png)
        write_crystals_png(output.crystals_png, result.crystals)
    if output.json:
        outputs.append(Output(output.json, "statistics"))
        logger.info("Saving statistics to %s", output.json)
        write_record(output.json, "dials.diffuse_merge/1", provenance, outputs, warnings, **content)


def run(args=None, phil=phil_scope) -> None:
    """Entry point of dials.diffuse_merge; ``args`` default to the command line."""
    run_program("dials.diffuse_merge", HELP, phil, main, args, required=("map",))


if __name__ == "__main__":
    run()
